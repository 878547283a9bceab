"""Folders that img2dataset fills, by itself or for `i2e fetch`: which of their shards are whole, and what is facts.

A shard is `00000.parquet`, `00000.tar` or `00000/`. `00000_stats.json` is written when it is whole; `_tmp` lists what a
run of img2dataset has still to do, and goes at its end. Beside tars and folders `00000.parquet` has facts and no image.
`i2e fetch` keeps `_fetch/record.json` beside the shards, which says how many there will be.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from i2e_pipeline.core import files
from i2e_pipeline.core.files import FileInfo
from i2e_pipeline.inputs.columns import InputError

log = logging.getLogger(__name__)

OURS, RECORD = "_fetch", "record.json"
"""Folder of `i2e fetch` beside the shards, over whose name a run passes, and its file on what is fetched."""
_STATS = re.compile(r"(\d+)_stats\.json")
_REST = re.compile(r"(\d+)\.feather")
_SUFFIXES = {"parquet": ".parquet", "webdataset": ".tar"}
_REMEDY = "or set pairs.allow_partial=true to read the shards that are whole"


class ShardName(NamedTuple):
    folder: str
    number: str


def shard_name(path: str, format_: str) -> ShardName | None:
    """Which shard of a folder of img2dataset's a file would be, or be in."""
    place = path.rpartition("/")[0] if format_ == "files" else path.removesuffix(_SUFFIXES.get(format_, "/"))
    number = place.rpartition("/")[2]
    return ShardName(_folder(place), number) if place != path and number.isdecimal() else None


def _folder(path: str) -> str:
    return path.rpartition("/")[0] or ("/" if path.startswith("/") else ".")


def done(folder: str, listed: Iterable[FileInfo] = ()) -> set[str]:
    """Numbers of a folder's shards that are whole.

    listed   what is known to lie there; where it has no such file the folder is looked at
    """
    infos = [i for i in listed if _folder(i.path) == folder] or _found(f"{folder}/*_stats.json")
    numbers = ((_STATS.fullmatch(i.path.rpartition("/")[2]), i.size) for i in infos)
    return {match[1] for match, size in numbers if match and size}  # an empty one: killed while it was written


def _found(pattern: str) -> list[FileInfo]:
    try:
        return files.find((pattern,), "")
    except files.NoSuchFile:
        return []


def shards_of_fetch(folder: str) -> int | None:
    """How many shards `i2e fetch` makes of its table in this folder; None for any other folder."""
    path = files.join(folder, OURS, RECORD)
    if not files.exists(path):
        return None
    record = files.record(path, remedy := "remove the folder, and fetch again")
    try:
        of_older = -(-record["counts"].get("to fetch", 0) // 10_000)  # which did not say it
        return int(record.get("shards", of_older))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise files.RecordError(f"{path} is no record of a fetch ({error!r}): {remedy}") from None


def unfinished_fetch(folder: str, whole: Collection[str] | None = None) -> str | None:
    """How far `i2e fetch` came with a folder that it has not filled to the end; None for any other folder.

    whole   numbers of the shards that are whole, where they are known
    """
    shards = shards_of_fetch(folder)
    if shards is None or (there := len(done(folder) if whole is None else whole)) >= shards:
        return None
    return (
        f"{folder} is not whole: `i2e fetch` has filled {there} of {shards} shards. The same command goes on with it; "
        f"wait for it, {_REMEDY}"
    )


def without_unfinished(
    by_format: Mapping[str, Sequence[FileInfo]], others: Sequence[FileInfo], partial: bool
) -> dict[str, list[FileInfo]]:
    """What is listed, without the files of shards that are not whole.

    A folder without stats is read as it is, since many publish shards alone; unless `i2e fetch` fills it, or a run of
    img2dataset has left word of what it has not done.

    Raises InputError where something is not whole, unless `partial`; and where nothing is.
    """
    named = {i.path: name for kind, infos in by_format.items() for i in infos if (name := shard_name(i.path, kind))}
    numbers: defaultdict[str, set[str]] = defaultdict(set)
    for name in named.values():
        numbers[name.folder].add(name.number)
    stats = [i for i in others if _STATS.fullmatch(i.path.rpartition("/")[2])]
    gone: set[ShardName] = set()
    for folder, found in sorted(numbers.items()):
        whole = done(folder, stats)
        rest = found - whole
        if rest and not whole and shards_of_fetch(folder) is None:
            to_do = {match[1] for i in _found(f"{folder}/_tmp/*") if (match := _REST.search(i.path))}
            rest = {number for number in rest if str(int(number)) in to_do}
        gone |= {ShardName(folder, number) for number in rest}
        said = unfinished_fetch(folder, whole)
        if said is None and rest:
            first = min(rest)
            said = (
                f"{folder} is not whole: img2dataset has not finished {len(rest)} of its {len(found)} shards, such as "
                f"{first} (there is no {first}_stats.json). Run its command again, which goes on, or leave them out "
                f"of pairs.path, {_REMEDY}"
            )
        if said is not None and not partial:
            raise InputError(said)
        if said is not None:
            log.warning("%s: %d shards that are not whole are left out (pairs.allow_partial)", folder, len(rest))
    if not gone:
        return {kind: list(infos) for kind, infos in by_format.items()}
    kept = {kind: [i for i in infos if named.get(i.path) not in gone] for kind, infos in by_format.items()}
    if not any(kept.values()):
        raise InputError(f"{min(gone).folder}: none of its shards is whole yet, so there is nothing to read")
    return {kind: infos for kind, infos in kept.items() if infos}


def without_facts(
    by_format: Mapping[str, Sequence[FileInfo]],
    others: Sequence[FileInfo],
    with_images: Callable[[Sequence[FileInfo]], set[str]],
) -> dict[str, list[FileInfo]]:
    """What is listed, without the Parquet files of facts beside tars and folders.

    with_images   paths of those of some Parquet files that have the image column

    A folder of img2dataset's has one format. So beside tars or folders a Parquet file of a shard that has stats is
    facts, too, where none of the shard's images could be had, and no folder is listed. A file of that name without
    stats may be a table of somebody else's (`train.parquet` beside `train/`): it is facts if it has no image column.
    """
    tables = by_format.get("parquet", [])
    stems = {i.path.removesuffix(".tar") for i in by_format.get("webdataset", [])}
    stems |= {i.path.rpartition("/")[0] for i in by_format.get("files", [])}
    there = {i.path for i in others}
    with_stats = {i.path for i in tables if i.path.rpartition(".")[0] + "_stats.json" in there}
    namesakes = [i for i in tables if i.path.rpartition(".")[0] in stems]
    facts = {i.path for i in namesakes} - with_images([i for i in namesakes if i.path not in with_stats])
    folders = {path.rpartition("/")[0] for path in facts}
    facts |= {path for path in with_stats if path.rpartition("/")[0] in folders}
    if facts:
        log.info(
            "%d Parquet files beside tars or folders of the same name are img2dataset's facts of these: not read",
            len(facts),
        )
    kept = {kind: [i for i in infos if i.path not in facts] for kind, infos in by_format.items()}
    return {kind: infos for kind, infos in kept.items() if infos}
