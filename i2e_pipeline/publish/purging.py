"""What a run's own tables hold of pairs that are left out, found and taken away.

A unit's pairs are found by their addresses in `pairs`, and by image and perceptual hash in the tables of the first
stage that names images. Whatever is theirs in other tables is told by the columns of these alone: pair_id; else shard
and row; else text_id, of texts that no other pair of the unit has; else image_id, of images that no other pair of the
unit holds. So a table that comes later, or is somebody else's, needs nothing here.
"""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.core.schemas import ID, Reason
from i2e_pipeline.engine.catalogue import Passed
from i2e_pipeline.engine.records import Commit, WrittenFile
from i2e_pipeline.engine.tables import Tables
from i2e_pipeline.engine.tasks import OpenFile, conform
from i2e_pipeline.publish.exclusion import REASONS, Exclusions, near

REJECTS = "rejects"
PURGED = "purged"
"""The fact of a commit record that says how many pairs were purged, by reason."""
_LOOKED_AT = 65_536
"""Rows of a few columns."""
_ROWS_AT_ONCE = 1024
"""Rows of images are large."""
_ROW_BITS = 40
_REWRITTEN = re.compile(r"-without-[0-9a-f]{8}\Z")


@dataclass
class Leaving:
    """Pairs that are left out, and what goes with them."""

    reasons: dict[bytes, str] = field(default_factory=dict)
    """Ids of the pairs, each with the reason."""
    places: set[tuple[int, int]] = field(default_factory=set)
    """Shard and row of each, and of rows of the input that became no pair."""
    texts: dict[bytes, int] = field(default_factory=dict)
    """Ids of their texts, and how many of the pairs have each."""
    shared_texts: set[bytes] = field(default_factory=set)
    """Those of the texts that pairs which stay have, too."""
    images: set[bytes] = field(default_factory=set)
    """Ids of images that no other pair of the unit holds."""

    def __bool__(self) -> bool:
        return bool(self.places)

    def counts(self) -> dict[str, int]:
        """Pairs by reason."""
        return dict(sorted(Counter(self.reasons.values()).items()))

    @classmethod
    def of_all(cls, units: Iterable[Leaving]) -> Leaving:
        """What goes of tables in which the rows of many units lie together: a text or an image stays where any unit
        keeps it, which nobody asked."""
        whole = cls()
        for one in units:
            whole.reasons |= one.reasons
            whole.places |= one.places
        return whole

    def columns(self, names: Sequence[str], table: str, key: Sequence[str] = ()) -> list[str]:
        """The columns that tell which rows of a table go; none: no row does."""
        if table == REJECTS:
            return ["id", "shard", "row"]
        if "pair_id" in names:
            return ["pair_id"]
        if {"shard", "row"} <= set(names) and tuple(key) != ("image_id",):
            return ["shard", "row"]
        return next(([name] for name in ("text_id", "image_id") if name in names), [])

    def mask(self, rows: pa.RecordBatch, columns: Sequence[str]) -> np.ndarray:
        """Which rows go, by the columns that `columns` named."""
        found = np.zeros(rows.num_rows, dtype=bool)
        for name in columns:
            if name in self._ids:
                found |= _among(rows.column(name), self._ids[name])
        if "shard" in columns:
            found |= np.isin(_places(rows), self._at)
        return found

    def of_pairs(self, rows: pa.Table) -> pa.Array:
        """Which rows go of a table that names a pair in each, as a mask."""
        return pa.array(_among(rows.column("pair_id").combine_chunks(), self._ids["pair_id"]))

    @cached_property
    def _ids(self) -> dict[str, pa.Array]:
        texts = self.texts.keys() - self.shared_texts
        of = {"pair_id": self.reasons.keys(), "text_id": texts, "image_id": self.images}
        named = {name: pa.array(sorted(ids), ID) for name, ids in of.items()}
        return {**named, "id": pa.concat_arrays(named.values())}

    @cached_property
    def _at(self) -> np.ndarray:
        return np.array(sorted((shard << _ROW_BITS) + row for shard, row in self.places), dtype=np.int64)


def _among(ids: pa.Array, wanted: pa.Array) -> np.ndarray:
    """Which ids, bytes or (in datasets) hex digits, are among others; null is not."""
    if pa.types.is_string(ids.type):
        wanted = pa.array([one.hex() for one in wanted.to_pylist()], pa.string())
    found: np.ndarray = pc.is_in(ids, value_set=wanted.cast(ids.type)).to_numpy(zero_copy_only=False)
    return found


def _places(rows: pa.RecordBatch) -> np.ndarray:
    """Shard and row of each as one number; -1 where there is none."""
    shard, row = (pc.fill_null(rows.column(c).cast(pa.int64()), -1).to_numpy() for c in ("shard", "row"))
    return np.where((shard < 0) | (row < 0), -1, (shard << _ROW_BITS) + row)


# Finding


def find(
    tables: Tables,
    pairs: Sequence[WrittenFile],
    of_images: Mapping[str, Sequence[WrittenFile]],
    lists: Exclusions,
) -> Leaving:
    """The pairs of a unit that lists name by address, domain, image or hash, whether they got a label or not.

    pairs       the unit's files of the table pairs
    of_images   table to the unit's files, of tables with image_id or image_hash, and pair_id or shard and row
    Entities leave nobody out here: a pair that shows nothing else has lost its labels, and what is left is the pair.
    Memory holds a batch of rows, and the ids of what is found.
    """
    by_image: dict[bytes | tuple[int, int], str] = {}
    if lists.items["image_id"] or lists.items["perceptual_hash"]:
        for rows in _of_tables(tables, of_images):
            for mask, kind in _listed_images(rows, lists):
                of_kind = rows.filter(pa.array(mask))
                for one in _owners(of_kind):
                    by_image[one] = min(by_image.get(one, REASONS[kind]), REASONS[kind])
    # An image may be known of a row that is no pair any more.
    found = Leaving(places={one for one in by_image if isinstance(one, tuple)})
    for rows in _of_table(tables, "pairs", pairs, ["pair_id", "shard", "row", "url", "text_id"]):
        reasons = _reasons(rows, by_image, lists)
        for n in np.flatnonzero([one is not None for one in reasons]).tolist():
            pair, shard, row, _, text = (rows.column(c)[n].as_py() for c in range(5))
            found.reasons[pair] = str(reasons[n])
            found.places.add((shard, row))
            found.texts[text] = found.texts.get(text, 0) + 1
    if not found.reasons:
        return found
    gone, texts = (pa.array(sorted(ids), ID) for ids in (found.reasons, found.texts))
    for rows in _of_table(tables, "pairs", pairs, ["pair_id", "text_id"]):
        stays = _among(rows.column("text_id"), texts) & ~_among(rows.column("pair_id"), gone)
        found.shared_texts.update(rows.column("text_id").filter(pa.array(stays)).to_pylist())
    images = _images(tables, of_images, found)
    kept = _images(tables, of_images, found, images) if images else images
    return replace(found, images=images - kept)


def _images(
    tables: Tables, of_images: Mapping[str, Sequence[WrittenFile]], found: Leaving, kept: set[bytes] | None = None
) -> set[bytes]:
    """Ids of the images of pairs that go; of these (`kept`), those that other pairs hold."""
    wanted = None if kept is None else pa.array(sorted(kept), ID)
    images: set[bytes] = set()
    for rows in _of_tables(tables, of_images):
        if "image_id" in rows.schema.names:
            mask = found.mask(rows, ["pair_id"] if "pair_id" in rows.schema.names else ["shard", "row"])
            if wanted is not None:
                mask = ~mask & _among(rows.column("image_id"), wanted)
            images.update(rows.column("image_id").filter(pa.array(mask)).to_pylist())
    return images


def _listed_images(rows: pa.RecordBatch, lists: Exclusions) -> Iterator[tuple[np.ndarray, str]]:
    """Which rows a list names, and by which kind of item."""
    if lists.items["image_id"] and "image_id" in rows.schema.names:
        ids = pa.array([bytes.fromhex(i) for i in sorted(lists.items["image_id"])], ID)
        yield _among(rows.column("image_id"), ids), "image_id"
    if lists.items["perceptual_hash"] and "image_hash" in rows.schema.names:
        hashes = rows.column("image_hash")
        mask = pc.is_valid(hashes).to_numpy(zero_copy_only=False)
        mask[mask] = near(hashes.drop_null(), lists.near_hashes)
        yield mask, "perceptual_hash"


def _owners(rows: pa.RecordBatch) -> list[bytes] | list[tuple[int, int]]:
    """The pair of each row: its id, or its place."""
    if "pair_id" in rows.schema.names:
        ids: list[bytes] = rows.column("pair_id").to_pylist()
        return ids
    return list(zip(rows.column("shard").to_pylist(), rows.column("row").to_pylist(), strict=True))


def _reasons(
    rows: pa.RecordBatch, by_image: Mapping[bytes | tuple[int, int], str], lists: Exclusions
) -> list[str | None]:
    """Why each row of `pairs` goes, of several reasons the first by name as in `exclusion`; None: it stays."""
    urls = rows.column("url")
    reasons: list[str | None] = [None] * rows.num_rows
    if lists.items["url"]:
        named = pc.is_in(urls, value_set=pa.array(sorted(lists.items["url"]), urls.type))
        for n in np.flatnonzero(named.to_numpy(zero_copy_only=False)).tolist():
            reasons[n] = str(Reason.EXCLUDED_URL)
    if by_image:
        pairs, shards, places = (rows.column(c).to_pylist() for c in ("pair_id", "shard", "row"))
        for n, of_row in enumerate(zip(pairs, zip(shards, places, strict=True), strict=True)):
            for one in of_row:
                if one in by_image:
                    reasons[n] = min(filter(None, (reasons[n], str(by_image[one]))))
    for n in np.flatnonzero(lists.domains.hold(urls)).tolist():
        reasons[n] = min(filter(None, (reasons[n], str(Reason.EXCLUDED_DOMAIN))))
    return reasons


def _of_tables(tables: Tables, made: Mapping[str, Sequence[WrittenFile]]) -> Iterator[pa.RecordBatch]:
    for table, of_table in made.items():
        yield from _of_table(tables, table, of_table, ["pair_id", "shard", "row", "image_id", "image_hash"])


def _of_table(
    tables: Tables, table: str, made: Iterable[WrittenFile], columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Those of the columns that the files have."""
    for file in made:
        if file.rows:
            filesystem, inner = files.open_filesystem(tables.path(table, file.path))
            with filesystem.open_input_file(inner) as stream:
                opened = pq.ParquetFile(stream)
                here = [c for c in columns if c in opened.schema_arrow.names]
                yield from opened.iter_batches(_LOOKED_AT, columns=here)


# Taking away


@dataclass(frozen=True)
class Rewritten:
    """A file without the rows that go."""

    table: str
    old: WrittenFile
    new: WrittenFile | None
    """None: it is only asked for."""
    rows: int
    """that go"""
    passed: int
    """Rows, as the stage counts them, that go of those that it passed on."""
    rejected: dict[str, int]


def rewrite(
    tables: Tables,
    staging: str | None,
    table: str,
    file: WrittenFile,
    leaving: Leaving,
    passed: Passed | None = None,
    key: Sequence[str] = (),
) -> Rewritten | None:
    """The file once more in `staging`, without the rows that go; None where it holds none of them.

    staging   None: nothing is written
    passed    how the stage counts what it passes on
    key       the table's
    Texts that other pairs have, too, say of how many pairs they are now. In memory is a batch of rows.
    """
    filesystem, inner = files.open_filesystem(tables.path(table, file.path))
    with filesystem.open_input_file(inner) as stream:
        opened = pq.ParquetFile(stream)
        names = opened.schema_arrow.names
        told_by = leaving.columns(names, table, key)
        fewer = {t: n for t, n in leaving.texts.items() if t in leaving.shared_texts} if _counts_pairs(names) else {}
        if not told_by or not any(
            _touched(b, leaving, told_by, fewer) for b in opened.iter_batches(_LOOKED_AT, columns=told_by)
        ):
            return None
        counted = passed if passed is not None and passed.table == table else None
        asked = [*told_by, *(counted.key if counted else ()), *(["reason"] if table == REJECTS else [])]
        asked += [counted.where_null] if counted and counted.where_null else []
        schema = opened.schema_arrow.remove_metadata()
        out = None
        if staging is not None:
            path = f"{file.path.rpartition('/')[0]}/{_fresh_name(file)}"
            out = OpenFile(files.join(staging, table), path, schema, tables.storage)
        rows, keys, rejected = 0, set[tuple[object, ...]](), Counter[str]()
        try:
            columns = None if out is not None else list(dict.fromkeys(asked))
            for batch in opened.iter_batches(_ROWS_AT_ONCE if out is not None else _LOOKED_AT, columns=columns):
                mask = leaving.mask(batch, told_by)
                going = batch.filter(pa.array(mask))
                rows += going.num_rows
                if table == REJECTS:
                    rejected.update(going.column("reason").to_pylist())
                if counted:
                    keys |= _keys(going, counted)
                if out is not None:
                    staying = _with_fewer_pairs(batch.filter(pa.array(~mask)), fewer)
                    out.add(conform(staying, out.schema, table))
        except BaseException:
            if out is not None:
                out.abandon()
            raise
    new = out.close() if out is not None else None
    return Rewritten(table, file, new, rows, len(keys), dict(rejected))


def _touched(rows: pa.RecordBatch, leaving: Leaving, told_by: Sequence[str], fewer: Mapping[bytes, int]) -> bool:
    if leaving.mask(rows, told_by).any():
        return True
    return bool(fewer) and bool(_among(rows.column("text_id"), pa.array(sorted(fewer), ID)).any())


def _counts_pairs(names: Sequence[str]) -> bool:
    """Whether a table says of each text how many pairs have it."""
    return {"text_id", "pairs"} <= set(names) and "pair_id" not in names


def _with_fewer_pairs(rows: pa.RecordBatch, fewer: Mapping[bytes, int]) -> pa.RecordBatch:
    if not fewer:
        return rows
    gone = pa.array([fewer.get(t, 0) for t in rows.column("text_id").to_pylist()], pa.int64())
    at = rows.schema.get_field_index("pairs")
    return rows.set_column(at, rows.schema.field(at), pc.subtract(rows.column(at), gone))


def _keys(rows: pa.RecordBatch, passed: Passed) -> set[tuple[object, ...]]:
    if passed.where_null:
        rows = rows.filter(pc.is_null(rows.column(passed.where_null)))
    return set(zip(*(rows.column(c).to_pylist() for c in passed.key), strict=True))


def _fresh_name(file: WrittenFile) -> str:
    """It stands where the old file stood in the order of names."""
    stem = file.path.rpartition("/")[2].removesuffix(".parquet")
    return f"{_REWRITTEN.sub('', stem)}-without-{uuid.uuid4().hex[:8]}.parquet"


def told_rejects(
    tables: Tables, staging: str, stage: str, unit: str, counts: Mapping[str, int], name: str
) -> WrittenFile:
    """A file of rejects that say nothing but their reason: what is left of pairs that were purged."""
    reasons = [reason for reason, rows in counts.items() for _ in range(rows)]
    schema = tables.catalogue.schema(REJECTS)
    batch = pa.RecordBatch.from_pydict({"reason": pa.array(reasons, pa.string())})
    out = OpenFile(files.join(staging, REJECTS), f"stage={stage}/unit={unit}/{name}", schema, tables.storage)
    out.add(conform(batch, schema, REJECTS))
    return out.close()


def without(commit: Commit, made: Sequence[Rewritten]) -> Commit:
    """The record of a unit with the files that were written in the place of others, and its rows as they count now."""
    rejected = Counter(commit.rejected)
    for one in made:
        rejected.subtract(one.rejected)
    passed = sum(one.passed for one in made)
    by_path = {(one.table, one.old.path): one.new or one.old for one in made}
    return replace(
        commit,
        files={
            table: sorted((by_path.get((table, f.path), f) for f in of_table), key=lambda f: f.path)
            for table, of_table in commit.files.items()
        },
        rows_in=commit.rows_in - passed - sum(n for one in made for n in one.rejected.values()),
        rows_out=commit.rows_out - passed,
        rejected={reason: rows for reason, rows in sorted(rejected.items()) if rows},
    )
