"""Exact deduplication of texts in bounded memory per text."""

import hashlib

__all__ = ["SeenTexts"]

NUM_BUCKETS = 1 << 16
REST_BYTES = 14


class SeenTexts:
    """Remembers texts by 16 bytes of their SHA-256.

    Two bytes choose a bucket, in which the other 14 are stored end to end. This takes about 16 bytes per text (and
    4 MiB at the start), a set of Python objects about 100. Among 10^12 texts, the probability that two different ones
    have the same 16 bytes is 10^-15.
    """

    def __init__(self) -> None:
        self._buckets = [bytearray() for _ in range(NUM_BUCKETS)]

    def add(self, text: str) -> bool:
        """Return whether a text is new, and remember it."""
        digest = hashlib.sha256(text.encode()).digest()
        bucket = self._buckets[int.from_bytes(digest[:2])]
        rest = digest[2 : 2 + REST_BYTES]
        place = bucket.find(rest)
        while place % REST_BYTES and place >= 0:  # a match that spans two entries
            place = bucket.find(rest, place + 1)
        if place >= 0:
            return False
        bucket += rest
        return True
