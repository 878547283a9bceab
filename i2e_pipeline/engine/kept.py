"""Work that a stage keeps as it goes, beside its tables: answers that cost money or hours and that a kill must not cost
again.

    <output>/_kept/<stage>/<unit>/<digest>.parquet     named by the digest of its bytes

A stage's tables count when a unit is whole. What it keeps here is there as soon as it is known, and whoever makes the
unit again finds it: after a kill, or with other settings that ask the same again. Nothing that is published depends on
it: what is lost or damaged is worked on again. A file may be written by several tasks, and a row may lie in several
files. It has a column `pair_id`, so that purging finds what goes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from i2e_pipeline.core import digests, files

FOLDER = "_kept"
_LARGEST = 1 << 30
_LISTINGS = 5
"""How often a folder is listed anew while files of it go."""


def folder(root: str, stage: str, unit: str) -> str:
    """Where a stage keeps what it knows of a unit. `root`: the output."""
    return files.join(root, FOLDER, stage, unit)


def write(folder: str, rows: pa.Table) -> str:
    """Write rows into a folder of kept work, so that a reader sees all of them or none; returns the file's path."""
    stream = io.BytesIO()
    pq.write_table(rows, stream, compression="zstd")
    content = stream.getvalue()
    path = files.join(folder, f"{digests.of_bytes(content)}.parquet")
    files.write_bytes(path, content)
    return path


def read(folders: Iterable[str], schema: pa.Schema) -> tuple[pa.Table, int]:
    """The rows of all whole files, and how many files are none and are passed over."""
    known: dict[str, pa.Table | None] = {}
    for folder_ in folders:
        for _ in range(_LISTINGS):
            gone = False
            for path in _files(folder_):
                if path not in known:
                    try:
                        known[path] = _read(path)
                    except FileNotFoundError:  # another task has put one file in the place of several
                        gone = True
            if not gone:
                break
    whole = [rows for rows in known.values() if rows is not None and rows.schema == schema]
    return pa.concat_tables([schema.empty_table(), *whole]), len(known) - len(whole)


def _files(folder: str) -> list[str]:
    found = [i.path for i in files.list_files(folder) if i.path.endswith(".parquet") and not files.is_hidden(i.path)]
    return [files.join(folder, path) for path in sorted(found)]


def _read(path: str) -> pa.Table | None:
    """The rows of a file; None where it is not what was written. Raises FileNotFoundError."""
    try:
        content = files.read_bytes(path, most=_LARGEST)
        if digests.of_bytes(content) != path.rpartition("/")[2].removesuffix(".parquet"):
            return None
        return pq.read_table(io.BytesIO(content))
    except (files.TooLarge, pa.ArrowException):
        return None


def joined(folder: str, paths: Collection[str], rows: pa.Table) -> str:
    """One file in the place of several that hold these rows. A kill in between leaves rows in two files."""
    whole = write(folder, rows)
    for path in set(paths) - {whole}:
        files.remove(path)
    return whole


def forget(root: str, unit: str) -> None:
    """Remove what any stage keeps of a unit that is no longer part of the dataset."""
    for stage in stages(root):
        files.remove_below(root, files.join(FOLDER, stage, unit))


def forget_stage(root: str, stage: str) -> None:
    """Remove all that a stage keeps: it is asked for again."""
    files.remove_below(root, files.join(FOLDER, stage))


def stages(root: str) -> list[str]:
    """Names of the stages that keep something."""
    return sorted(files.list_folders(files.join(root, FOLDER)))


def purge(root: str, units: Collection[str], goes: Callable[[pa.Table], pa.Array]) -> int:
    """Write files of these units again without the rows that go; returns how many rows did. A file that cannot be read
    goes as a whole, since nobody knows what it holds.

    goes   which rows of a table with a column `pair_id` go, as a mask
    """
    gone = 0
    for stage in stages(root):
        for unit in units:
            place = folder(root, stage, unit)
            for path in _files(place):
                rows = _read(path)
                if rows is not None and "pair_id" in rows.schema.names:
                    mask = goes(rows)
                    count = mask.true_count
                    if not count:
                        continue
                    gone += count
                    stays = rows.filter(pc.invert(mask))
                    if stays.num_rows:
                        write(place, stays)
                files.remove(path)
    return gone
