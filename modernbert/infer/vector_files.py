"""Files that hold vectors: arrays, lines, and tables with the texts beside them.

In: parts of an array, and texts in the same order. Out: a file or folder that appears whole. A file of its own because
each kind is written part by part, so that none has to fit in memory.
"""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from modernbert.errors import InputError
from modernbert.extras import require
from modernbert.storage import new_file, new_folder, unwrapped

__all__ = ["WRITERS", "Write", "check_writer", "json_line"]

Write = Callable[[Path, Iterator[np.ndarray], Iterator[str]], None]
"""(where to, parts of an array [N, D], texts)"""


def check_writer(out: Path) -> Write:
    """Return what writes a file of this name.

    Raises: InputError for an unknown ending, a library that is absent or cannot write such a name, or a table that is
    there already.
    """
    if out.suffix not in WRITERS:
        *known, last = WRITERS
        raise InputError(f"{out}: expected a name that ends in {', '.join(known)} or {last}")
    for suffix, libraries, extra in ((".parquet", ("pyarrow",), "data"), (".lance", ("lancedb", "pyarrow"), "index")):
        if out.suffix == suffix:
            require(str(out), *libraries, extra=extra)
            try:
                str(out.absolute()).encode()
            except UnicodeEncodeError:
                raise InputError(f"{out}: is a name that {libraries[0]} cannot write, expected UTF-8 text") from None
    if out.suffix == ".lance" and out.exists():
        raise InputError(f"{out}: exists already, expected a new folder")
    return WRITERS[out.suffix]


def json_line(vector: np.ndarray) -> str:
    """Return a vector [D] as a JSON list: of whole numbers if it has those, else with seven places.

    >>> json_line(np.array([44, -1], np.int8)), json_line(np.array([0.5], np.float32))
    ('[44, -1]', '[0.5]')
    """
    return json.dumps([round(x, 7) for x in vector.tolist()])


def _write_npy(out: Path, parts: Iterator[np.ndarray], texts: Iterator[str]) -> None:
    # The header tells the number of rows, which is known behind the last: it is written anew there, in the same length.
    with new_file(out) as partial, partial.open("w+b") as file:
        shape, dtype = (0, 0), np.dtype(np.float32)
        _write_header(file, shape, dtype)
        for part in parts:
            shape, dtype = (shape[0] + len(part), part.shape[1]), part.dtype
            file.write(np.ascontiguousarray(part).tobytes())
        file.seek(0)
        _write_header(file, shape, dtype)


def _write_header(file: Any, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
    header = repr({"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
    room = 256 - 10
    file.write(b"\x93NUMPY\x01\x00" + room.to_bytes(2, "little") + header.ljust(room - 1).encode() + b"\n")


def _write_jsonl(out: Path, parts: Iterator[np.ndarray], texts: Iterator[str]) -> None:
    with new_file(out) as partial, partial.open("w") as file:
        for part in parts:
            for vector in part:
                file.write(json_line(vector) + "\n")


def _tables(parts: Iterator[np.ndarray], texts: Iterator[str]) -> Iterator[Any]:
    import pyarrow

    first = 0
    for part in parts:
        flat = pyarrow.array(np.ascontiguousarray(part).ravel())
        columns = {
            "number": pyarrow.array(np.arange(first, first + len(part))),
            "text": pyarrow.array(list(islice(texts, len(part))), pyarrow.string()),
            "vector": pyarrow.FixedSizeListArray.from_arrays(flat, part.shape[1]),
        }
        first += len(part)
        yield pyarrow.table(columns)


def _write_parquet(out: Path, parts: Iterator[np.ndarray], texts: Iterator[str]) -> None:
    import pyarrow.parquet

    with new_file(out) as partial:
        writer = None
        for table in _tables(parts, texts):
            writer = writer or pyarrow.parquet.ParquetWriter(partial, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()


def _write_lance(out: Path, parts: Iterator[np.ndarray], texts: Iterator[str]) -> None:
    import lancedb

    with new_folder(out) as partial, unwrapped():
        table = None
        for rows in _tables(parts, texts):
            if table is None:
                table = lancedb.connect(partial).create_table("vectors", rows)
            else:
                table.add(rows)


WRITERS: dict[str, Write] = {
    ".npy": _write_npy, ".jsonl": _write_jsonl, ".parquet": _write_parquet, ".lance": _write_lance
}  # fmt: skip
