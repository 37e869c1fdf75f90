"""The UTF-8 policy of all readers: a byte order mark is dropped, UTF-16 is refused, and invalid bytes are reported.

Unless `strict`, invalid bytes become unpaired surrogates (`surrogateescape`), so that the caller can repair or refuse
the one text that holds them.
"""

import codecs
from collections.abc import Iterable, Iterator

from modernbert.data.input_errors import BrokenInput

__all__ = ["BOM", "decode_chunks", "decode_lines", "find_problem"]

BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def decode_lines(lines: Iterable[bytes], origin: object, *, strict: bool = False) -> Iterator[tuple[int, str]]:
    """Decode lines; yield each with its number from 1.

    Raises:
        BrokenInput: The first line begins like UTF-16; or, if `strict`, a line has invalid bytes.
    """
    for number, line in enumerate(lines, 1):
        if number == 1:
            line = _without_bom(line, origin)
        try:
            yield number, line.decode("utf-8", "strict" if strict else "surrogateescape")
        except UnicodeDecodeError as error:
            raise BrokenInput(f"{origin}:{number}", _invalid_byte(error.object[error.start])) from None


def decode_chunks(chunks: Iterable[bytes], origin: object, *, strict: bool = False) -> Iterator[str]:
    """Decode the chunks of a file.

    Raises:
        BrokenInput: The file begins like UTF-16; or, if `strict`, it has invalid bytes.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("strict" if strict else "surrogateescape")
    line = 1
    is_first = True
    try:
        for chunk in chunks:
            if is_first:
                chunk, is_first = _without_bom(chunk, origin), False
            yield decoder.decode(chunk)
            line += chunk.count(b"\n")
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        line += error.object[: error.start].count(b"\n")
        raise BrokenInput(f"{origin}:{line}", _invalid_byte(error.object[error.start])) from None


def find_problem(text: str) -> tuple[int, str] | None:
    """Return the index of the first invalid byte or unpaired surrogate in a decoded text, and the error message.

    >>> find_problem(b"caf\\xe9".decode("utf-8", "surrogateescape"))
    (3, 'found byte 0xe9, expected UTF-8')
    """
    try:
        text.encode()
        return None
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        is_byte = 0xDC80 <= code <= 0xDCFF
        problem = (
            _invalid_byte(code - 0xDC00) if is_byte else f"found the unpaired surrogate U+{code:04X}, expected UTF-8"
        )
        return error.start, problem


def _without_bom(first: bytes, origin: object) -> bytes:
    if first.startswith(_UTF16):
        raise BrokenInput(origin, "begins with the mark of UTF-16, expected UTF-8")
    return first.removeprefix(BOM)


def _invalid_byte(byte: int) -> str:
    return f"found byte 0x{byte:02x}, expected UTF-8"
