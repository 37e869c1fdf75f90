"""Files of vectors, written block by block: arrays, JSON lines, and tables with the texts beside the vectors."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modernbert.errors import InputError
from modernbert.extras import require
from modernbert.files import check_target, new_file, new_folder, unwrap_errors
from modernbert.inference.text_rows import TextRow

__all__ = ["WRITERS", "Block", "Write", "block_lines", "check_writer", "json_line"]


@dataclass(frozen=True)
class Block:
    """Consecutive rows: their numbers in the input, the rows, and their vectors [N, D].

    `is_null` [N] marks rows without a vector; what `vectors` holds for them is undefined.
    """

    numbers: np.ndarray
    rows: Sequence[TextRow]
    vectors: np.ndarray
    is_null: np.ndarray


Write = Callable[[Path, Iterator[Block], bool], None]
"""(target, blocks, whether JSON lines name their rows)"""


def check_writer(out: Path, *, overwrite: bool = False) -> Write:
    """Return the function that writes a file of this name.

    Raises: InputError for an unknown suffix, a missing library, a name that the library cannot write, a folder that is
        not writable, or a file that exists already and is not to be overwritten.
    """
    if out.suffix not in WRITERS:
        *known, last = WRITERS
        raise InputError(f"{out}: expected a name that ends in {', '.join(known)} or {last}")
    for suffix, libraries, extra in ((".parquet", ("pyarrow",), "train"), (".lance", ("lancedb", "pyarrow"), "index")):
        if out.suffix == suffix:
            require(str(out), *libraries, extra=extra)
            try:
                str(out.absolute()).encode()
            except UnicodeEncodeError:
                raise InputError(f"{out}: is a name that {libraries[0]} cannot write, expected UTF-8 text") from None
    if out.suffix != ".lance":
        check_target(out, overwrite=overwrite)
    elif out.exists() and not overwrite:
        raise InputError(f"{out}: exists already, expected a new folder, or `overwrite=True` to replace it")
    return WRITERS[out.suffix]


def json_line(vector: np.ndarray) -> str:
    """Return a vector [D] as a JSON list: integers as they are, other numbers with seven places.

    >>> json_line(np.array([44, -1], np.int8)), json_line(np.array([0.5], np.float32))
    ('[44, -1]', '[0.5]')
    """
    return json.dumps([round(x, 7) for x in vector.tolist()])


def block_lines(block: Block, named: bool) -> Iterator[str]:
    """Yield a block as JSON lines: a list for each vector, or if `named` an object with the row's number and place."""
    for number, row, vector, is_null in zip(block.numbers, block.rows, block.vectors, block.is_null, strict=True):
        line = "null" if is_null else json_line(vector)
        place = json.dumps(row.origin, ensure_ascii=False)
        yield f'{{"number": {number}, "origin": {place}, "vector": {line}}}' if named else line


def _write_npy(out: Path, blocks: Iterator[Block], named: bool) -> None:
    # The number of rows is known after the last block. NumPy pads the header for it, so that any number fits.
    with new_file(out) as partial, partial.open("w+b") as file:
        header: dict[str, Any] = {}
        num_rows = 0
        for block in blocks:
            vectors = block.vectors
            if block.is_null.any():
                vectors = np.where(block.is_null[:, None], np.array(np.nan, vectors.dtype), vectors)
            vectors = np.ascontiguousarray(vectors)
            if not header:
                header = np.lib.format.header_data_from_array_1_0(vectors)
                np.lib.format.write_array_header_1_0(file, header)
            file.write(vectors.tobytes())
            num_rows += len(vectors)
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header | {"shape": (num_rows, header["shape"][1])})


def _write_jsonl(out: Path, blocks: Iterator[Block], named: bool) -> None:
    # File names may have bytes that are not valid UTF-8.
    with new_file(out) as partial, partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for block in blocks:
            file.writelines(line + "\n" for line in block_lines(block, named))


def _tables(blocks: Iterator[Block]) -> Iterator[Any]:
    import pyarrow

    for block in blocks:
        flat = pyarrow.array(np.ascontiguousarray(block.vectors).ravel())
        width, mask = block.vectors.shape[1], pyarrow.array(block.is_null)
        origins = [row.origin.encode("utf-8", "backslashreplace").decode() for row in block.rows]
        columns = {
            "number": pyarrow.array(block.numbers),
            "origin": pyarrow.array(origins, pyarrow.string()),
            "text": pyarrow.array([row.text for row in block.rows], pyarrow.string()),
            "vector": pyarrow.FixedSizeListArray.from_arrays(flat, width, mask=mask if block.is_null.any() else None),
        }
        yield pyarrow.table(columns)


def _write_parquet(out: Path, blocks: Iterator[Block], named: bool) -> None:
    import pyarrow.parquet

    with new_file(out) as partial:
        writer = None
        for table in _tables(blocks):
            # Without Arrow's schema, since pyarrow before 26 cannot read a fixed-size list that is null.
            writer = writer or pyarrow.parquet.ParquetWriter(partial, table.schema, store_schema=False)
            writer.write_table(table)
        if writer is not None:
            writer.close()


def _write_lance(out: Path, blocks: Iterator[Block], named: bool) -> None:
    import lancedb

    with new_folder(out, replace=True) as partial, unwrap_errors():
        table = None
        for rows in _tables(blocks):
            bad: Any = "null" if rows["vector"].null_count else "error"
            if table is None:
                table = lancedb.connect(partial).create_table("vectors", rows, on_bad_vectors=bad)
            else:
                table.add(rows, on_bad_vectors=bad)


WRITERS: dict[str, Write] = {
    ".npy": _write_npy, ".jsonl": _write_jsonl, ".parquet": _write_parquet, ".lance": _write_lance
}  # fmt: skip
