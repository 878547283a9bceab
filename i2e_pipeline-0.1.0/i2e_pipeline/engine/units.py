"""Units of work: which input files are carried together, remembered from run to run.

A unit is a batch of input shards. It is named by its files' content, so the same files make the same unit in every
output, and files that were not there before become new units beside the old ones. `<output>/units/<unit>.json` holds
its files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.core.config import PairsConfig
from i2e_pipeline.core.errors import I2EError

_ONE_FILE_UNITS = 1000
_ROWS_PER_UNIT = 1_000_000
_REMEDY = "put a copy of it in its place, or use another output: it numbers the input files of a unit"


class InputError(I2EError, RuntimeError):
    """Input that cannot be used; the message names the file and the remedy."""


@dataclass(frozen=True)
class InputFile:
    shard: int
    """Number of the file among all that this output has read."""
    path: str
    size: int
    modified: int
    digest: str
    """32 hex characters that name the content"""
    rows: int


@dataclass(frozen=True)
class Unit:
    name: str
    files: tuple[InputFile, ...]

    @property
    def rows(self) -> int:
        return sum(f.rows for f in self.files)


class Units:
    """The registry of one output."""

    def __init__(self, output: str) -> None:
        self.folder = files.join(output, "units")
        self.forgotten = files.join(output, "forgotten_units")

    def known(self) -> list[Unit]:
        """Units in the order of their first shard."""
        return self._read(self.folder)

    def _read(self, folder: str) -> list[Unit]:
        records = files.records(folder, _REMEDY)
        units = [Unit(r["name"], tuple(InputFile(**f) for f in r["files"])) for r in records.values()]
        return sorted(units, key=lambda u: u.files[0].shard)

    def plan(self, pairs: PairsConfig, remember: bool = True) -> list[Unit]:
        """Known units and new ones for files that were not there before, forgotten ones left out.

        remember   False: look only, register nothing
        Raises InputError where a file that was read has changed since, or holds what another file holds.
        """
        units = self.known()
        if not pairs.path:
            if units:
                return units
            raise InputError("pairs.path is not set: name the Parquet files of image + alt-text pairs")
        try:
            listed = files.find(pairs.path, ".parquet")
        except I2EError as error:
            raise InputError(f"pairs.path: {error}") from None
        seen = {f.path: (unit, f) for unit in units for f in unit.files}
        unchanged = {(f.path, f.size, f.modified) for _, f in seen.values()}
        to_read = [i for i in listed if (i.path, i.size, i.modified) not in unchanged]
        dropped = {f.digest for unit in self._read(self.forgotten) for f in unit.files}
        with ThreadPoolExecutor(64) as pool:
            read = list(pool.map(lambda info: _read(info, pairs), to_read))
        by_digest = {f.digest: f for _, f in seen.values()}
        present = {i.path for i in listed}
        fresh: list[InputFile] = []
        for file in read:
            if file.digest in dropped:
                continue
            twin = by_digest.get(file.digest)
            if file.path in seen and (twin is None or twin.path != file.path):
                raise InputError(
                    f"{file.path} has changed since unit {seen[file.path][0].name} was read from it: use another "
                    f"output, or give the new content another name, or `i2e run --forget {seen[file.path][0].name}`"
                )
            if twin is not None and twin.path != file.path and (twin.path in present or twin in fresh):
                raise InputError(f"{file.path} and {twin.path} hold the same rows: leave one of them out of pairs.path")
            if twin is not None:
                units = [self._with_file(unit, twin, file, remember) for unit in units]
                continue
            by_digest[file.digest] = file
            fresh.append(file)
        next_shard = 1 + max((f.shard for unit in units for f in unit.files), default=-1)
        fresh = [replace(f, shard=next_shard + n) for n, f in enumerate(fresh)]
        for group in _groups(fresh, pairs.files_per_unit):
            unit = Unit(_name(group), tuple(group))
            if remember:
                self._save(unit)
            units.append(unit)
        return sorted(units, key=lambda u: u.files[0].shard)

    def forget(self, name: str) -> None:
        """Drop a unit: what was made of it no longer counts, and its files are passed over from now on.

        Raises InputError where it is not known. To take it back, remove its file in forgotten_units/.
        """
        unit = next((u for u in self.known() if u.name == name), None)
        if unit is None:
            raise InputError(f"no unit {name} in {self.folder}: its files are named as the units are")
        self._save(unit, self.forgotten)
        files.remove(files.join(self.folder, f"{name}.json"))

    def _with_file(self, unit: Unit, old: InputFile, new: InputFile, remember: bool) -> Unit:
        """The unit with a file whose content is the same under another path or time of change."""
        if old not in unit.files:
            return unit
        moved = tuple(
            replace(f, path=new.path, size=new.size, modified=new.modified) if f == old else f for f in unit.files
        )
        unit = replace(unit, files=moved)
        if remember:
            self._save(unit)
        return unit

    def _save(self, unit: Unit, folder: str | None = None) -> None:
        files.write_json(
            files.join(folder or self.folder, f"{unit.name}.json"),
            {"name": unit.name, "files": [asdict(f) for f in unit.files]},
        )


def _read(info: files.FileInfo, pairs: PairsConfig) -> InputFile:
    filesystem, inner = files.open_filesystem(info.path)
    try:
        with filesystem.open_input_file(inner) as stream:
            footer = pq.ParquetFile(stream)
            names, rows = footer.schema_arrow.names, footer.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{info.path} is not a readable Parquet file ({error}): mend it or leave it out") from None
    wanted = {"url_column": pairs.url_column, "text_column": pairs.text_column, "image_column": pairs.image_column}
    for setting, column in wanted.items():
        if column not in names:
            raise InputError(f"{info.path} has no column {column!r} (pairs.{setting}); it has {', '.join(names)}")
    return InputFile(-1, info.path, info.size, info.modified, files.fingerprint(info.path), rows)


def _groups(fresh: Sequence[InputFile], per_unit: int | None) -> list[list[InputFile]]:
    if per_unit is None and len(fresh) <= _ONE_FILE_UNITS:
        per_unit = 1
    groups: list[list[InputFile]] = []
    for file in fresh:
        full = not groups or (
            len(groups[-1]) >= per_unit if per_unit else sum(f.rows for f in groups[-1]) >= _ROWS_PER_UNIT
        )
        if full:
            groups.append([])
        groups[-1].append(file)
    return groups


def _name(group: Sequence[InputFile]) -> str:
    return "u-" + hashlib.blake2b("".join(f.digest for f in group).encode(), digest_size=6).hexdigest()
