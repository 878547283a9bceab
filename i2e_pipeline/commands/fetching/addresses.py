"""Tables of addresses and texts, in any form that is read, as the Parquet files that img2dataset is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from i2e_pipeline.core.config import PairsConfig
from i2e_pipeline.inputs import formats, kept, listing, look, where
from i2e_pipeline.inputs.columns import InputError
from i2e_pipeline.inputs.shard import Source

URL, CAPTION, KEY = "url", "caption", "source_key"
"""Columns of what is fetched. img2dataset numbers pairs anew and calls that `key`; the table's own key is kept beside
it."""
COLUMNS = pa.schema([(URL, pa.string()), (CAPTION, pa.string()), (KEY, pa.string())])
_ITS_OWN = (
    "key", "url", "caption", "status", "error_message", "width", "height", "original_width", "original_height", "exif",
    "sha256", "jpg", "png", "webp", KEY,
)  # fmt: skip
"""Columns that img2dataset writes by itself. Where `pairs.keep_columns` names one that the table has not, a run finds
it there."""
_TABLES = ("parquet", "csv", "jsonl")
_NOT_TAKEN, _NO_ADDRESS, _NO_TEXT = "not taken (pairs.where)", "without an address", "without a text"
LEFT_OUT = (_NOT_TAKEN, _NO_ADDRESS, _NO_TEXT)
"""Names under which rows are counted that are not fetched."""
ROWS_OF_A_FILE = 1_000_000

Linked = Callable[[Sequence[str]], set[str]]
"""From distinct texts those that lead to an entity."""


@dataclass(frozen=True)
class Addresses:
    """A table of them."""

    source: Source
    digest: str
    """Of its content."""
    kinds: Mapping[str, str]
    """What its columns hold that are kept (inputs/kept.py)."""


def kept_columns(pairs: PairsConfig) -> list[str]:
    """Columns of the tables that are fetched along, since the dataset is to keep them."""
    return [name for name in pairs.keep_columns if name not in _ITS_OWN]


def tables(pairs: PairsConfig) -> list[Addresses]:
    """The tables at `pairs.path`. Raises InputError where one has no addresses or texts, or none a column to keep."""
    if not pairs.path:
        raise InputError("pairs.path is not set: name the table of addresses and texts (docs/inputs.md)")
    if pairs.url_column is None:
        raise InputError("pairs.url_column is null: name the column of the addresses")
    pairs = pairs.model_copy(update={"image_column": None})  # what these tables lack
    its_own = [name for name in pairs.keep_columns if name in _ITS_OWN and name != pairs.text_column]
    pairs = _without_its_own(pairs)
    found = []
    for source in listing.listed(pairs):
        if source.format not in _TABLES:
            raise InputError(f"{source.path} holds images already ({source.format}): nothing is to be fetched")
        seen = look.look(source, pairs)
        if seen.rows and pairs.url_column not in seen.schema.names:
            raise InputError(
                f"{source.path} has no column {pairs.url_column!r} (pairs.url_column); it has "
                f"{', '.join(seen.schema.names)}"
            )
        if lost := [name for name in its_own if name in seen.schema.names]:
            raise InputError(
                f"{source.path}: column {lost[0]!r} (pairs.keep_columns) would be lost, since img2dataset writes one "
                "of that name by itself: give it another name in the table, or leave it out of pairs.keep_columns"
            )
        found.append(Addresses(source, str(seen.digest), seen.kinds))
    _schema(found, pairs)
    return found


def _without_its_own(pairs: PairsConfig) -> PairsConfig:
    return pairs.model_copy(update={"keep_columns": {n: pairs.keep_columns[n] for n in kept_columns(pairs)}})


def _schema(found: Sequence[Addresses], pairs: PairsConfig) -> pa.Schema:
    """The columns of the rows that are to be fetched."""
    kept_ones = kept.schema([(one.source.path, one.kinds) for one in found], _without_its_own(pairs))
    return pa.schema([*COLUMNS, *kept_ones])


def without_images(pairs: PairsConfig) -> bool:
    """Whether `pairs.path` begins with a table of addresses that has no images. Raises InputError as listing does."""
    if not pairs.path or pairs.url_column is None:
        return False
    first = listing.listed(pairs)[0]
    if first.format not in _TABLES:
        return False
    names = look.look(first, pairs.model_copy(update={"image_column": None, "keep_columns": {}})).schema.names
    return pairs.url_column in names and pairs.image_column not in names


def batches(
    source: Source, pairs: PairsConfig, counts: Counter[str], schema: pa.Schema = COLUMNS
) -> Iterator[pa.RecordBatch]:
    """The rows of a table that `pairs.where` takes, as valid text without white space around addresses.

    counts   gets how many rows there are, and how many are not taken
    schema   COLUMNS, and those that are kept
    """
    kept_ones = [field for field in schema if field.name not in COLUMNS.names]
    shard = replace(source.shard(pairs), kept=tuple(field.name for field in kept_ones))
    wanted = {URL: pairs.url_column, CAPTION: pairs.text_column, KEY: pairs.key_column}
    named = {name: column for name, column in wanted.items() if column is not None}
    looked_at = where.columns(pairs.where) if pairs.where else []
    for _, stored in formats.columns(shard, list(dict.fromkeys([*named.values(), *looked_at, *shard.kept]))):
        batch = stored.filter(where.mask(pairs.where, stored)) if pairs.where else stored
        counts["rows"] += stored.num_rows
        counts[_NOT_TAKEN] += stored.num_rows - batch.num_rows
        texts, _ = formats.texts(shard, batch.select(list(dict.fromkeys(named.values()))))
        arrays = [
            texts.column(named[name]).cast(pa.string()) if name in named else pa.nulls(len(texts), pa.string())
            for name in COLUMNS.names
        ]
        arrays[0] = pc.utf8_trim_whitespace(arrays[0])
        for field in kept_ones:
            values, lost = kept.values(batch.column(field.name), field.type)
            counts[f"whose {field.name} is no {field.type}"] += lost
            arrays.append(values)
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def write(found: Sequence[Addresses], pairs: PairsConfig, folder: Path, linked: Linked | None) -> Counter[str]:
    """Write the rows that are to be fetched as Parquet files of a folder; returns how many rows were what.

    A row that `pairs.where` does not take, or without an address or a text, is left out, and where `linked` is given
    one whose text leads to no entity.
    """
    counts: Counter[str] = Counter()
    schema = _schema(found, pairs)
    waiting: list[pa.RecordBatch] = []
    written = 0

    def put() -> None:
        nonlocal written
        table = _to_fetch(pa.Table.from_batches(waiting, schema), linked, counts)
        waiting.clear()
        if table.num_rows:
            pq.write_table(table, folder / f"{written:06}.parquet")
            written += 1

    for one in found:
        for batch in batches(one.source, pairs, counts, schema):
            waiting.append(batch)
            if sum(len(b) for b in waiting) >= ROWS_OF_A_FILE:
                put()
    if waiting:
        put()
    return counts


def _to_fetch(table: pa.Table, linked: Linked | None, counts: Counter[str]) -> pa.Table:
    for column, reason in ((URL, _NO_ADDRESS), (CAPTION, _NO_TEXT)):
        has = pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(table[column]), ""), False)
        counts[reason] += table.num_rows - (table := table.filter(has)).num_rows
    if linked is not None:
        counts["asked"] += table.num_rows
        texts = linked(pc.unique(table[CAPTION]).to_pylist())
        table = table.filter(pc.is_in(table[CAPTION], pa.array(sorted(texts), pa.string())))
        counts["linked"] += table.num_rows
    counts["to fetch"] += table.num_rows
    counts["with a key"] += table.num_rows - table[KEY].null_count
    return table
