"""Units of work: which input files are carried together, remembered from run to run.

A unit is a batch of input shards, or a share of their rows (`pairs.sample`). It is named by its files' content, so the
same files make the same unit in every output, and files, or shares of them, that were not there before become new units
beside the old ones. `<output>/units/<unit>.json` holds its files; `<output>/units/index/` what formats without numbered
rows need to find them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.core.config import PairsConfig
from i2e_pipeline.core.ids import rows_in_share
from i2e_pipeline.engine import looking
from i2e_pipeline.engine.records import is_count, is_name
from i2e_pipeline.inputs import kept, listing, look
from i2e_pipeline.inputs.columns import InputError
from i2e_pipeline.inputs.formats import FORMATS
from i2e_pipeline.inputs.shard import Shard, Source, shard_of

log = logging.getLogger(__name__)

_ONE_FILE_UNITS = 1000
_ROWS_PER_UNIT = 1_000_000
_REMEDY = "put a copy of it in its place, or use another output: it numbers the input files of a unit"


ALL_ROWS = (0.0, 1.0)


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
    in_unit: int | None = None
    """Rows that the unit takes of it; None: all."""
    format: str = "parquet"
    """How it is read (inputs/formats.py)."""
    indexed: bool = False
    """Whether an index says where its rows lie."""
    kinds: Mapping[str, str] = field(default_factory=dict)
    """What columns hold that are kept in the dataset (inputs/kept.py)."""

    @property
    def taken(self) -> int:
        return self.rows if self.in_unit is None else self.in_unit


@dataclass(frozen=True)
class Unit:
    name: str
    files: tuple[InputFile, ...]
    share: tuple[float, float] = ALL_ROWS
    """Which of its files' rows are its own (core/ids.py, rows_in_share)."""
    replaces: str | None = None
    """The unit whose place it took when the bytes of a file were mended."""

    @property
    def rows(self) -> int:
        return sum(f.taken for f in self.files)


@dataclass(frozen=True)
class Gone:
    """An input file of a unit that is not what it was."""

    unit: str
    path: str
    what: Literal["is gone", "has changed"]

    def __str__(self) -> str:
        return f"{self.path} {self.what}"


def files_gone(units: Sequence[Unit]) -> list[Gone]:
    """Which files of units are no longer there, or of another size, in the units' order. In a store a listing a folder;
    on a disk a look at each."""
    sizes = files.sizes([f.path for unit in units for f in unit.files])
    found = []
    for unit in units:
        for file in unit.files:
            size = sizes[file.path]
            if size is None:
                found.append(Gone(unit.name, file.path, "is gone"))
            elif size != file.size and file.format != "files":  # a shard of many files stands under the first of them
                found.append(Gone(unit.name, file.path, "has changed"))
    return found


def _unit_of(record: Any, path: str) -> Unit:
    """Raises RecordError."""
    try:
        read = tuple(InputFile(**f) for f in record["files"])
        unit = Unit(record["name"], read, tuple(record.get("share", ALL_ROWS)), record.get("replaces"))
        for name in (unit.name, *(f.digest for f in read), *([] if unit.replaces is None else [unit.replaces])):
            if not is_name(name):
                raise ValueError(f"{name!r} is no name of a unit or of content")
        if not read or not all(map(_is_file, read)):
            raise ValueError("it has no files that are read")
        if len(unit.share) != 2 or not all(isinstance(end, int | float) and 0 <= end <= 1 for end in unit.share):
            raise ValueError(f"{unit.share!r} is no share of rows")
        return unit
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise files.RecordError(f"{path} is no record of a unit ({error}): {_REMEDY}") from None


def _is_file(file: InputFile) -> bool:
    counts = (file.shard, file.size, file.rows, *([] if file.in_unit is None else [file.in_unit]))
    texts = (file.path, file.format, *(file.kinds if isinstance(file.kinds, dict) else [None]))
    return (
        all(map(is_count, counts))
        and all(isinstance(text, str) for text in texts)
        and file.path != ""
        and "\0" not in file.path
        and isinstance(file.modified, int)
        and isinstance(file.indexed, bool)
        and all(isinstance(kind, str) for kind in file.kinds.values())
        and file.format in FORMATS
    )


class Units:
    """The registry of one output."""

    def __init__(self, output: str) -> None:
        self.output = output
        self.folder = files.join(output, "units")
        self.forgotten = files.join(output, "forgotten_units")

    def shard(self, file: InputFile, pairs: PairsConfig) -> Shard:
        """A file as workers open it."""
        index = self._index(file.digest) if file.indexed else None
        return shard_of(file.path, file.format, index, pairs)

    def _index(self, digest: str) -> str:
        return files.join(self.folder, "index", f"{digest}.parquet")

    def known(self, broken: dict[str, str] | None = None) -> list[Unit]:
        """Units in the order of their first shard.

        broken   gets what is wrong with records that cannot be read, by the unit's name. None: that is a RecordError
        """
        units = self.lying(broken)
        gone = {unit.replaces for unit in units}
        return [unit for unit in units if unit.name not in gone]

    def lying(self, broken: dict[str, str] | None = None) -> list[Unit]:
        """The same, and those whose place others have taken and of which something may lie there still."""
        return self._read(self.folder, broken)

    def left_out(self, broken: dict[str, str] | None = None) -> list[Unit]:
        """Units that were forgotten. `broken` as of `known`."""
        return self._read(self.forgotten, broken)

    def take_over(self, other: Units, unit: Unit, forgotten: bool = False) -> None:
        """Know a unit of another registry, under the numbers that it has here."""
        for file in unit.files:
            if file.indexed and not forgotten:
                files.copy(other._index(file.digest), self._index(file.digest))
        self._save(unit, self.forgotten if forgotten else None)

    def _read(self, folder: str, broken: dict[str, str] | None = None) -> list[Unit]:
        units = []
        for name, record in files.records(folder, _REMEDY, broken).items():
            try:
                units.append(_unit_of(record, files.join(folder, f"{name}.json")))
            except files.RecordError as error:
                if broken is None:
                    raise
                broken[name] = str(error)
        return sorted(units, key=lambda u: u.files[0].shard)

    def plan(
        self,
        pairs: PairsConfig,
        remember: bool = True,
        looks: looking.Looks = looking.by_threads,
        changed: list[Gone] | None = None,
        replace_changed: bool = False,
        unknown: list[str] | None = None,
    ) -> list[Unit]:
        """Known units and new ones for files that were not there before, forgotten ones left out.

        remember   False: look only, register nothing
        looks      who looks at files that were not there before
        changed    gets the files that have changed since they were read; None: such a file is an error
        replace_changed   a unit one of whose files has changed gives its place to one with the file as it is now
        unknown    gets the names of units that had no record
        Raises InputError where a file that was read has changed since, or holds what another file holds, or where more
        of it was read than `pairs.sample` says.
        """
        units = self.known()
        if not pairs.path:
            if units:
                return units
            raise InputError("pairs.path is not set: name the files of image + alt-text pairs (docs/inputs.md)")
        listed = listing.listed(pairs, self._images_known(units))
        seen = {f.path: (unit, f) for unit in units for f in unit.files}
        forgotten = [f for unit in self._read(self.forgotten) for f in unit.files]
        unchanged = {(f.path, f.size, f.modified) for f in (*(f for _, f in seen.values()), *forgotten)}
        to_read = [s for s in listed if (s.path, s.info.size, s.info.modified) not in unchanged]
        dropped = {f.digest for f in forgotten}
        sampled = look.sampled(len(to_read))
        passed_over = frozenset(seen) if changed is not None else frozenset()
        look_at = partial(self._look_again, pairs=pairs, remember=remember, passed_over=passed_over)
        found: list[InputFile | None] = looks(look_at, to_read, [n in sampled for n in range(len(to_read))])
        if changed is not None:
            unreadable = [source.path for source, file in zip(to_read, found, strict=True) if file is None]
            changed += [Gone(seen[path][0].name, path, "has changed") for path in unreadable]
        read = [file for file in found if file is not None]
        if remember:  # of forgotten files that were touched, or lie elsewhere now
            self._remove_indexes({f.digest for f in read if f.indexed and f.digest in dropped})
        present = {s.path for s in listed}
        if empty := [f for f in read if not f.rows]:
            if len(empty) == len(listed):
                raise InputError(f"no row in any of {len(empty)} files, the first of which is {empty[0].path}")
            log.info("%d input files without a row, such as %s", len(empty), empty[0].path)
        with_rows = [f for f in read if f.rows and f.digest not in dropped]
        if changed is None:
            _refuse_emptied([f for f in read if not f.rows or f.digest in dropped], seen)
        mended: dict[str, InputFile] | None = {} if replace_changed else None
        fresh, moved = _fresh_and_moved(with_rows, seen, present, changed, mended)
        units = [self._with_files(unit, moved, remember) for unit in units]
        lying = {unit.name: unit for unit in self.lying()}
        next_shard = 1 + max((f.shard for unit in lying.values() for f in unit.files), default=-1)
        if replace_changed and not mended:
            log.info("no file has changed at the path from which it was read: nothing takes another's place")
        if mended:
            numbers = count(next_shard)
            units = [self._with_mended(unit, mended, numbers, lying, remember) for unit in units]
            next_shard = next(numbers)
        for done, to_read_on in sorted(_by_share_done(units, list(fresh.values()), present, pairs.sample).items()):
            share = (done, pairs.sample)
            numbered = [replace(f, shard=next_shard + n, in_unit=_taken(f, share)) for n, f in enumerate(to_read_on)]
            next_shard += len(numbered)
            for group in _groups(numbered, pairs.files_per_unit):
                unit = Unit(_name(group, share), tuple(group), share)
                if remember:
                    self._save(unit)
                if unknown is not None:
                    unknown.append(unit.name)
                units.append(unit)
        units = self._with_kinds(units, {s.path: s for s in listed}, pairs, remember, looks)
        kept_columns(units, pairs)
        return sorted(units, key=lambda u: u.files[0].shard)

    def _with_kinds(
        self,
        units: Sequence[Unit],
        sources: Mapping[str, Source],
        pairs: PairsConfig,
        remember: bool,
        looks: looking.Looks,
    ) -> list[Unit]:
        """The units, files that were read before a column was kept looked at again for what it holds."""
        waiting = [f for unit in units for f in unit.files if f.path in sources and kept.unknown(f.kinds, pairs)]
        if not waiting:
            return list(units)
        found = looks(partial(_kinds, pairs=pairs), [sources[f.path] for f in waiting], [False] * len(waiting))
        kinds = {f.digest: {**f.kinds, **new} for f, new in zip(waiting, found, strict=True)}
        known = []
        for unit in units:
            if any(f.digest in kinds for f in unit.files):
                now = tuple(replace(f, kinds=kinds.get(f.digest, f.kinds)) for f in unit.files)
                unit = replace(unit, files=now)
                if remember:
                    self._save(unit)
            known.append(unit)
        return known

    def _look_again(
        self, source: Source, images: bool, pairs: PairsConfig, remember: bool, passed_over: Set[str]
    ) -> InputFile | None:
        """`_look`; None for one of these that can no longer be read."""
        try:
            return self._look(source, images, pairs, remember)
        except InputError:
            if source.path in passed_over:
                return None
            raise

    def _look(self, source: Source, images: bool, pairs: PairsConfig, remember: bool) -> InputFile:
        """What is to be known of a file; its index is written at once, since those of thousands fill the memory."""
        found, info = look.look(source, pairs, images), source.info
        digest = str(found.digest)
        if remember and found.index is not None and found.rows:
            if isinstance(found.index, pa.Table):
                files.write_table(self._index(digest), found.index)
            else:
                files.write_batches(self._index(digest), found.index())
        indexed = found.index is not None
        return InputFile(
            -1, info.path, info.size, info.modified, digest, found.rows, None, source.format, indexed, found.kinds
        )

    def _images_known(self, units: Sequence[Unit], damaged: bool = False) -> Iterator[list[str]]:
        """Images of each shard of a folder that was planned before.

        damaged   pass over shards whose index is gone or cannot be read, which is an InputError else
        """
        for digest in dict.fromkeys(f.digest for unit in units for f in unit.files if f.format == "files"):
            filesystem, inner = files.open_filesystem(index := self._index(digest))
            try:
                rows = pq.read_table(inner, columns=["image"], filesystem=filesystem, partitioning=None)
            except (OSError, pa.ArrowException, KeyError) as error:
                if damaged:
                    continue
                raise InputError(
                    f"{index}, which says what images were read, is gone or damaged ({error}): `i2e repair` makes it "
                    "again"
                ) from None
            yield rows["image"].to_pylist()

    def changed(
        self, units: Sequence[Unit], pairs: PairsConfig, looks: looking.Looks = looking.by_threads
    ) -> list[Gone]:
        """Which files of units are gone, or hold something else than was read, as far as their digests say: of large
        files windows, of archives and folders what lies where.

        looks   who looks at them
        """
        try:
            listed = {s.path: s for s in listing.listed(pairs, self._images_known(units, damaged=True))}
        except InputError:  # nothing is left there
            listed = {}
        wanted = [(unit, file) for unit in units for file in unit.files]
        # What a config has named before, and does not name any more, is there all the same.
        for _, file in wanted:
            if file.path not in listed and file.format != "files" and (info := files.info(file.path)):
                listed[file.path] = Source(info, file.format)
        lying = [listed[file.path] for _, file in wanted if file.path in listed]
        found: list[str | None] = looks(partial(_digest, pairs=pairs), lying, [False] * len(lying))
        digests = {source.path: digest for source, digest in zip(lying, found, strict=True)}
        return [
            Gone(unit.name, file.path, "is gone" if file.path not in digests else "has changed")
            for unit, file in wanted
            if digests.get(file.path) != file.digest
        ]

    def index_again(self, lost: Set[str], pairs: PairsConfig) -> set[str]:
        """Make indexes again that are lost. Returns the digests of those that were made: the other files are gone, or
        are not what they were.

        lost   digests of the files that they belong to
        """
        units = self.lying()
        whole = [replace(u, files=tuple(f for f in u.files if f.digest not in lost)) for u in units]
        paths = {f.path for unit in units for f in unit.files if f.digest in lost}
        others = {f.path for unit in whole for f in unit.files}
        made: set[str] = set()
        try:
            listed = listing.listed(pairs, self._images_known(whole, damaged=True))
        except InputError:  # nothing is left there
            return made
        for source in listed:
            if source.path not in paths and (source.format != "files" or source.path in others):
                continue
            with suppress(InputError):
                made.add(self._look(source, False, pairs, remember=True).digest)
        for digest in made - lost - {f.digest for unit in units for f in unit.files}:
            files.remove(self._index(digest))
        return made & lost

    def repeats(self, file: InputFile) -> bool:
        """Whether the file's index repeats its rows, and does not only say where they lie."""
        nothing = pa.RecordBatch.from_pydict({}), pa.array([], pa.bool_())
        return file.indexed and FORMATS[file.format].emptied(*nothing) is not None

    def empty_rows(self, file: InputFile, rows: Set[int]) -> None:
        """Take what the file's index repeats of rows out of it, so that they are read as rows that hold nothing."""
        if not self.repeats(file):
            return
        filesystem, inner = files.open_filesystem(self._index(file.digest))
        with filesystem.open_input_file(inner) as stream:
            opened = pq.ParquetFile(stream)
            wanted = np.array(sorted(rows), dtype=np.int64)

            def batches() -> Iterator[pa.RecordBatch]:
                start = 0
                for group in range(opened.num_row_groups):
                    for batch in opened.read_row_group(group).combine_chunks().to_batches():
                        mask = np.isin(np.arange(start, start + batch.num_rows), wanted)
                        start += batch.num_rows
                        emptied = FORMATS[file.format].emptied(batch, pa.array(mask))
                        assert emptied is not None
                        yield emptied

            files.write_batches(self._index(file.digest), batches())

    def forget(self, name: str) -> None:
        """Drop a unit: what was made of it no longer counts, and its files are passed over from now on.

        One that is dropped already stays so: a command that was killed goes on. Raises InputError where it is not
        known. To take it back, remove its file in forgotten_units/.
        """
        unit = next((u for u in self.known() if u.name == name), None)
        if unit is None and any(u.name == name for u in self.left_out()):
            log.info("unit %s was forgotten before", name)
            return
        if unit is None:
            raise InputError(f"no unit {name} in {self.folder}: its files are named as the units are")
        self._save(unit, self.forgotten)
        self._remove([name])

    def _with_files(self, unit: Unit, moved: Mapping[str, InputFile], remember: bool) -> Unit:
        """The unit with files whose content is the same under another path or time of change, by their digest."""
        if not any(f.digest in moved for f in unit.files):
            return unit
        now = tuple(
            replace(f, path=new.path, size=new.size, modified=new.modified) if (new := moved.get(f.digest)) else f
            for f in unit.files
        )
        unit = replace(unit, files=now)
        if remember:
            self._save(unit)
        return unit

    def _with_mended(
        self,
        unit: Unit,
        mended: Mapping[str, InputFile],
        shards: Iterator[int],
        lying: Mapping[str, Unit],
        remember: bool,
    ) -> Unit:
        """The unit in whose place this one goes where one of its files has other content now; its other files keep
        their numbers. From the record of the new one on, the old one counts no more.

        mended   by the path of the file
        lying    all units that have a record, those that others have taken the place of among them
        """
        if not any(f.path in mended for f in unit.files):
            return unit
        now = [
            replace(new, shard=next(shards), in_unit=_taken(new, unit.share))
            if (new := mended.get(file.path))
            else file
            for file in unit.files
        ]
        made = Unit(_name(now, unit.share), tuple(now), unit.share, unit.name)
        if made.name in lying:
            # It is again what it was before it was mended, once or often, and no run has ended since.
            last: Unit | None = unit
            while remember and last is not None and last.name != made.name:
                files.remove(files.join(self.folder, f"{last.name}.json"))
                last = lying.get(last.replaces or "")
            return self._with_files(lying[made.name], {f.digest: f for f in now}, remember)
        if remember:
            self._save(made)
        return made

    def replaced(self) -> list[str]:
        """Names of units whose place others have taken, and of which something may lie there still."""
        return sorted({unit.replaces for unit in self.lying() if unit.replaces})

    def _remove(self, names: Sequence[str]) -> None:
        """Remove units' records, and indexes that no other unit has, since they repeat rows."""
        for name in names:
            files.remove_below(self.output, files.join("units", f"{name}.json"))
        for info in self.indexes_left():
            files.remove_below(self.output, files.join("units", "index", info.path))

    def _remove_indexes(self, digests: Set[str]) -> None:
        """Remove the indexes of these files that are in no unit."""
        if digests:
            for digest in digests - self._used():
                files.remove(self._index(digest))

    def indexes_left(self) -> list[files.FileInfo]:
        """Indexes of files that are in no unit; their paths are relative to `index`."""
        used = self._used()
        return [info for digest, info in self._indexes().items() if digest not in used]

    def _used(self) -> set[str]:
        """Digests of the files of all units that have a record."""
        return {f.digest for unit in self.lying() for f in unit.files}

    def indexes_missing(self, units: Sequence[Unit]) -> list[tuple[Unit, InputFile]]:
        """Files of these units whose index is not there."""
        wanted = [(unit, file) for unit in units for file in unit.files if file.indexed]
        lying = self._indexes() if wanted else {}
        return [(unit, file) for unit, file in wanted if file.digest not in lying]

    def _indexes(self) -> dict[str, files.FileInfo]:
        """By the digest of their file."""
        suffix = ".parquet"
        lying = files.list_files(files.join(self.folder, "index"))
        return {i.path.removesuffix(suffix): i for i in lying if i.path.endswith(suffix)}

    def drop_replaced(self, names: Sequence[str]) -> None:
        """Remove the records of units of which nothing lies there any more."""
        self._remove(names)
        for unit in self.lying():
            if unit.replaces in names:
                self._save(replace(unit, replaces=None))

    def _save(self, unit: Unit, folder: str | None = None) -> None:
        record = {"name": unit.name, "files": [asdict(f) for f in unit.files], "share": list(unit.share)}
        if unit.replaces is not None:
            record["replaces"] = unit.replaces
        files.write_json(files.join(folder or self.folder, f"{unit.name}.json"), record)


def _kinds(source: Source, images: bool, pairs: PairsConfig) -> Mapping[str, str]:
    return look.look(source, pairs, images).kinds


def _digest(source: Source, images: bool, pairs: PairsConfig) -> str | None:
    """None: it cannot be read any more."""
    try:
        return str(look.look(source, pairs, images).digest)
    except InputError:
        return None


def kept_columns(units: Sequence[Unit], pairs: PairsConfig) -> pa.Schema:
    """The columns that the dataset of these units keeps of its input. Raises InputError where no file has one."""
    return kept.schema([(f.path, f.kinds) for unit in units for f in unit.files], pairs)


def _fresh_and_moved(
    read: Sequence[InputFile],
    seen: Mapping[str, tuple[Unit, InputFile]],
    present: Set[str],
    changed: list[Gone] | None,
    mended: dict[str, InputFile] | None = None,
) -> tuple[dict[str, InputFile], dict[str, InputFile]]:
    """Files whose content was not there before, and those that lie elsewhere than they did, by their digests.

    seen      files of units by their paths
    present   all paths that are listed
    mended    gets files that have changed since they were read, by their paths; None: such a file is an error
    """
    by_digest = {f.digest: f for _, f in seen.values()}
    now = {file.path: file.digest for file in read}
    lie_elsewhere = {file.digest for file in read if file.path not in seen or seen[file.path][1].digest != file.digest}
    fresh: dict[str, InputFile] = {}
    moved: dict[str, InputFile] = {}
    for file in read:
        twin = by_digest.get(file.digest)
        if twin is None:
            older = seen[file.path][1] if file.path in seen else None
            if older is None or older.digest in lie_elsewhere:  # what was read from that path lies at another one now
                by_digest[file.digest] = fresh[file.digest] = file
            elif mended is not None:
                by_digest[file.digest] = mended[file.path] = file
            elif changed is not None:
                changed.append(Gone(seen[file.path][0].name, file.path, "has changed"))
            else:
                unit = seen[file.path][0].name
                what = f"an image or a text in the folder of {file.path}" if file.format == "files" else file.path
                raise InputError(
                    f"{what} has changed since unit {unit} was read from it: `i2e run --replace` takes it as it is now "
                    f"in the unit's place; or use another output, or `i2e run --forget {unit}`"
                )
        elif twin.path == file.path or not (
            twin.digest in fresh
            or twin.path in (mended or {})
            or (twin.path in present and now.get(twin.path, twin.digest) == twin.digest)
        ):
            moved[file.digest] = file
        elif changed is not None and file.path in seen:
            changed.append(Gone(seen[file.path][0].name, file.path, "has changed"))
        else:
            raise InputError(f"{file.path} and {twin.path} hold the same rows: leave one of them out of pairs.path")
    return fresh, moved


def _refuse_emptied(passed_over: Sequence[InputFile], seen: Mapping[str, tuple[Unit, InputFile]]) -> None:
    """Raises InputError where rows were read from a file that is passed over now: it has none, or those of a unit that
    was forgotten."""
    for file in passed_over:
        if file.path in seen and seen[file.path][1].digest != file.digest:
            unit = seen[file.path][0].name
            what = "has no row any more" if not file.rows else "holds now what was forgotten with another unit"
            raise InputError(
                f"{file.path} {what}, and rows of unit {unit} were read from it: put it back as it was, or leave the "
                f"unit out: `i2e run --forget {unit}`"
            )


def _by_share_done(
    units: Sequence[Unit], fresh: Sequence[InputFile], present: set[str], sample: float
) -> dict[float, list[InputFile]]:
    """Files of which rows are still to be read, by the share of them that was."""
    found: dict[float, list[InputFile]] = {0.0: list(fresh)}
    done: dict[str, tuple[float, InputFile]] = {}
    for unit in units:
        for file in unit.files:
            if file.digest not in done or done[file.digest][0] < unit.share[1]:
                done[file.digest] = (unit.share[1], file)
    for share, file in done.values():
        if share > sample and file.path in present:
            raise InputError(
                f"pairs.sample={sample:g}, and {share:g} of the rows of {file.path} were read before: a sample can "
                "grow and not shrink; use another output"
            )
        if share < sample and file.path in present:
            found.setdefault(share, []).append(file)
    return found


def _taken(file: InputFile, share: tuple[float, float]) -> int | None:
    """Rows of a file that are in a share; None: all."""
    if share == ALL_ROWS:
        return None
    return int(rows_in_share(bytes.fromhex(file.digest), np.arange(file.rows), share).sum())


def _groups(files_: Sequence[InputFile], per_unit: int | None) -> list[list[InputFile]]:
    if per_unit is None and len(files_) <= _ONE_FILE_UNITS:
        per_unit = 1
    groups: list[list[InputFile]] = []
    for file in files_:
        full = not groups or (
            len(groups[-1]) >= per_unit if per_unit else sum(f.taken for f in groups[-1]) >= _ROWS_PER_UNIT
        )
        if full:
            groups.append([])
        groups[-1].append(file)
    return groups


def _name(group: Sequence[InputFile], share: tuple[float, float]) -> str:
    named = "".join(f.digest for f in group)
    if share != ALL_ROWS:
        named += f"{share[0]:.12g}-{share[1]:.12g}"
    return "u-" + hashlib.blake2b(named.encode(), digest_size=6).hexdigest()
