"""Which shards `pairs.path` names, and of which format each is: one listing, whatever people have.

A file's format is told by its name, or by `pairs.format`; a folder is looked through. What img2dataset keeps beside its
shards, and shards that it has not finished, are no pairs (`img2dataset.py`). What nothing here reads is said, with the
way there.
"""

from __future__ import annotations

import logging
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.core.config import PairsConfig
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.files import Ancestors, Beside, FileInfo, folder_of
from i2e_pipeline.inputs import columns, img2dataset, samples, sidecars, versioned
from i2e_pipeline.inputs.columns import InputError
from i2e_pipeline.inputs.formats import FORMATS
from i2e_pipeline.inputs.shard import Source

log = logging.getLogger(__name__)

_FOOTERS_AT_ONCE = 16
_OTHERS = {
    ".tfrecord": "TFRecord: write its features as Parquet (img2dataset has output_format=parquet)",
    ".tfrecords": "TFRecord: write its features as Parquet (img2dataset has output_format=parquet)",
    ".arrow": "an Arrow file: Hugging Face's `dataset.to_parquet(…)` writes Parquet",
    ".feather": "a Feather file: `pyarrow.parquet.write_table(pyarrow.feather.read_table(…), …)` writes Parquet",
    ".orc": "ORC: Spark's `spark.read.orc(…).write.parquet(…)` writes Parquet",
    ".avro": "Avro: Spark's `spark.read.format('avro').load(…).write.parquet(…)` writes Parquet",
    ".zip": "a zip: unpack it, and name the folder",
    ".tar.gz": "a compressed tar: unpack it to .tar, since tasks read at their rows' places",
    ".tgz": "a compressed tar: unpack it to .tar, since tasks read at their rows' places",
    ".tar.zst": "a compressed tar: unpack it to .tar, since tasks read at their rows' places",
    ".h5": "HDF5: write its rows as Parquet",
    ".hdf5": "HDF5: write its rows as Parquet",
    ".lmdb": "LMDB: write its rows as Parquet, or as WebDataset's tars",
    ".mdb": "LMDB: write its rows as Parquet, or as WebDataset's tars",
    ".pkl": "a pickle, which is never opened: write its rows as Parquet",
    ".npz": "arrays of numpy: write images and texts as Parquet",
    ".xlsx": "a spreadsheet: save it as CSV",
    ".json": "JSON: write an object a line (.jsonl)",
}


def listed(pairs: PairsConfig, known: Iterable[Sequence[str]] = ()) -> list[Source]:
    """All shards that `pairs.path` names, sorted by path.

    known   images of the shards of folders that were planned before, each in its order
    Raises InputError where a pattern names nothing, or nothing that can be read.
    """
    found: dict[str, Source] = {}
    known = list(known)
    for pattern in pairs.path:
        for source in _of_pattern(pattern, pairs, known):
            found[source.path] = source
    return [found[path] for path in sorted(found)]


def _of_pattern(pattern: str, pairs: PairsConfig, known: Iterable[Sequence[str]]) -> list[Source]:
    if files.exists(files.join(pattern, versioned.DELTA_LOG)):
        return versioned.of_delta(pattern)
    beside = Beside(versioned.NAMES)
    try:
        infos = files.find((pattern,), "", beside)
    except I2EError as error:
        raise InputError(f"pairs.path: {img2dataset.unfinished_fetch(pattern) or error}") from None
    live, rest = versioned.live(pattern, infos, beside)
    return [*live, *_sorted(rest, pairs, known, pattern, beside, live)] if rest or not live else live


def _sorted(
    infos: Sequence[FileInfo],
    pairs: PairsConfig,
    known: Iterable[Sequence[str]],
    pattern: str,
    beside: Beside,
    read: Sequence[Source],
) -> list[Source]:
    """Shards among what a pattern has found. Raises InputError where there is none.

    read   what else is read from the pattern; then there may be none
    """
    by_format: dict[str, list[FileInfo]] = {}
    alone = len(infos) == 1 and infos[0].path.rstrip("/") == pattern.removeprefix("file://").rstrip("/")
    looked_through = Ancestors(beside.whole)
    for info in infos:
        name = format_of(info.path)
        if name is None and (alone or pairs.format):
            name = _sniffed(info.path)
        if name is None and pairs.format and looked_through.nearest(folder_of(info.path)) is None:
            name = _as_said(info.path, pairs.format)
        by_format.setdefault(name or "", []).append(info)
    others = by_format.pop("", [])
    images = by_format.pop("files", [])
    facts: list[FileInfo] = []
    if not alone:  # who names one file means it
        by_format = img2dataset.without_unfinished({**by_format, "files": images}, others, pairs.allow_partial)
        tables = by_format.get("parquet", [])
        by_format = img2dataset.without_facts(by_format, others, partial(_with_images, pairs=pairs))
        facts = [] if "parquet" in by_format else tables
        images = by_format.pop("files", [])
    if pairs.format is not None:
        images = images if pairs.format == "files" else []
        by_format = {name: found for name, found in by_format.items() if name == pairs.format}
    sources = [Source(info, name) for name, found in by_format.items() for info in found]
    if not sources and images:
        sources = sidecars.shards(images, others, known)
        passed_over = others
    else:
        passed_over = [*others, *images]
    if not sources and not read:
        raise InputError(_nothing(pattern, [*others, *images], pairs, facts))
    if pairs.format is None:
        _say_passed_over(pattern, passed_over, images, [*read, *sources], pairs)
    return sources


def _with_images(tables: Sequence[FileInfo], pairs: PairsConfig) -> set[str]:
    """Paths of those of some Parquet files that have the image column; a file that cannot be read has none."""

    def has(info: FileInfo) -> bool:
        try:
            return pairs.image_column in FORMATS["parquet"].names(Source(info).shard(pairs))
        except (pa.ArrowException, OSError):
            return False

    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        return {info.path for info, found in zip(tables, pool.map(has, tables), strict=True) if found}


def format_of(path: str) -> str | None:
    """The format that a file's name tells; None for none of ours."""
    lower = path.lower()
    return next((f.name for f in FORMATS.values() if lower.endswith(f.suffixes)), None)


def _sniffed(path: str) -> str | None:
    """The format that the first bytes tell, of a file whose name does not."""
    if _other(path):
        return None
    filesystem, inner = files.open_filesystem(path)
    with filesystem.open_input_file(inner) as stream:
        first = bytes(stream.read(512))
    if first[:4] == b"PAR1":
        return "parquet"
    return "webdataset" if first[257:262] == b"ustar" else None


def _as_said(path: str, format_: str) -> str | None:
    """The format that `pairs.format` gives a file that is named and whose name tells none; None where it can be none of
    that format."""
    if _belongs(path) or format_ == "files":
        return None
    other = _other(path)
    return format_ if other is None or (other == ".json" and format_ == "jsonl") else None


def _other(path: str) -> str | None:
    """The ending of a format that is known and not read."""
    lower = path.lower()
    return next((end for end in _OTHERS if lower.endswith(end)), None)


# What is passed over


_SIDECARS = tuple(f".{suffix}" for suffix in (*samples.TEXT_SUFFIXES, "json"))
_OF_FOLDERS = re.compile(
    r"(readme|license|licence|citation|notice)(\.[a-z]+)?|.*\.(md|idx)|\d+_stats\.json", re.IGNORECASE
)
"""Names of what people keep beside data, and that is none."""


def _belongs(path: str) -> bool:
    return _OF_FOLDERS.fullmatch(path.rpartition("/")[2]) is not None


def _say_passed_over(
    pattern: str, infos: Sequence[FileInfo], images: Sequence[FileInfo], sources: Sequence[Source], pairs: PairsConfig
) -> None:
    """Warn of what lies at a pattern beside what is read from it: nothing is left out without a word.

    Not of what belongs to what is read: texts beside images, images that a table names, papers on the data.
    """
    stems = {samples.split(i.path)[0] for i in images}
    texts = [i.path for i in infos if i.path.lower().endswith(_SIDECARS)]
    of_images = {path for path in texts if samples.split(path)[0] in stems}
    with_text = {samples.split(path)[0] for path in of_images}
    pictures = {i.path for i in images}
    named = not with_text.issuperset(stems) and _name_images(sources, pairs)
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for info in infos:
        path = info.path
        if _belongs(path) or path in of_images:
            continue
        if path not in pictures:
            ending = _other(path) or posixpath.splitext(path)[1].lower()
            kind = f"{ending} files" if ending else "files whose names have no ending"
        elif samples.split(path)[0] in with_text:
            kind = "images with a text beside (pairs.format=files reads these)"
        elif named:
            continue
        else:
            kind = "images without a text"
        counts[kind] += 1
        examples.setdefault(kind, path)
    if counts:
        read = " and ".join(sorted({f"each {FORMATS[s.format].kind}" for s in sources}))
        what = "; ".join(f"{n} {kind}, such as {examples[kind]}" for kind, n in counts.most_common())
        log.warning("pairs.path: %s: passed over are %s. Read is %s", pattern, what, read)


def _name_images(sources: Sequence[Source], pairs: PairsConfig) -> bool:
    """Whether a table that is read names its images by path: the files beside it are its own."""
    if any(s.format in ("csv", "jsonl") for s in sources):
        return True
    for source in [s for s in sources if s.format == "parquet"][:1]:
        with suppress(pa.ArrowException, OSError):  # the plan says it
            filesystem, inner = files.open_filesystem(source.path)
            with filesystem.open_input_file(inner) as stream:
                schema = pq.read_schema(stream)
            index = schema.get_field_index(pairs.image_column)
            return index >= 0 and not columns.is_bytes(schema.field(index).type)
    return False


def _nothing(pattern: str, infos: Sequence[FileInfo], pairs: PairsConfig, facts: Sequence[FileInfo]) -> str:
    """What lies at a pattern where nothing can be read.

    facts   tables that were taken for img2dataset's facts
    """
    kinds = "; ".join(f"{' '.join(f.suffixes[:4])} ({f.kind})" for f in FORMATS.values() if f.name != "files")
    other = next((f"{i.path} is {_OTHERS[end]}" for i in infos if (end := _other(i.path))), None)
    if any(versioned.is_iceberg(i.path) for i in infos):
        what = versioned.refused("an Iceberg table")
    elif pairs.format is not None:
        what = f"nothing of the format {pairs.format} (pairs.format) among {len(infos)} files"
        what += f"; {other}" if other else ""
    elif other is not None:
        what = other
    elif infos and all(format_of(i.path) == "files" for i in infos):
        what = f"{len(infos)} images without a text: put NAME.txt or NAME.json beside each, or name a table of paths"
    elif infos:
        what = (
            f"nothing that can be read; the first file is {infos[0].path} (name the files, and pairs.format, where "
            "their names do not tell what they are)"
        )
    else:
        what = "no file"
    if facts:
        what += (
            f". {facts[0].path} is called like a tar or a folder beside it and has no column {pairs.image_column!r} "
            "(pairs.image_column), so it is taken for img2dataset's facts of these"
        )
    return (
        f"pairs.path: {pattern}: {what}. Read are {kinds}; a folder of images with .txt or .json beside; a Delta table"
    )
