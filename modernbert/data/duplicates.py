"""Which texts have been seen before.

In: texts in a fixed order. Out: for each, whether the same came earlier. A file of its own because a corpus has more
documents than a set of Python objects has room for.
"""

import hashlib

__all__ = ["SeenTexts"]

NUM_BUCKETS = 1 << 16
REST_BYTES = 14


class SeenTexts:
    """Remember texts by 16 bytes of their SHA-256.

    Two bytes choose a bucket, the other 14 are kept end to end in it: with what a growing array holds in reserve some
    16 bytes a text (and 4 MiB at the start), where a set of Python objects takes about 100. Among 10^12 texts, two
    different ones agree in their 16 bytes with a chance of 10^-15.
    """

    def __init__(self) -> None:
        self._buckets = [bytearray() for _ in range(NUM_BUCKETS)]

    def add(self, text: str) -> bool:
        """Tell whether a text is new, and remember it."""
        digest = hashlib.sha256(text.encode()).digest()
        bucket = self._buckets[int.from_bytes(digest[:2])]
        rest = digest[2 : 2 + REST_BYTES]
        place = bucket.find(rest)
        while place % REST_BYTES and place >= 0:  # found across the border of two others
            place = bucket.find(rest, place + 1)
        if place >= 0:
            return False
        bucket += rest
        return True
