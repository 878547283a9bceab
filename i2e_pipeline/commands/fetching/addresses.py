"""Tables of addresses and texts, in any form that is read, as the Parquet files that img2dataset is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from i2e_pipeline.core.config import PairsConfig
from i2e_pipeline.inputs import formats, listing, look, where
from i2e_pipeline.inputs.columns import InputError
from i2e_pipeline.inputs.shard import Source

URL, CAPTION, KEY = "url", "caption", "source_key"
"""Columns of what is fetched. img2dataset numbers pairs anew and calls that `key`; the table's own key is kept beside
it."""
COLUMNS = pa.schema([(URL, pa.string()), (CAPTION, pa.string()), (KEY, pa.string())])
_TABLES = ("parquet", "csv", "jsonl")
_NOT_TAKEN, _NO_ADDRESS, _NO_TEXT = "not taken (pairs.where)", "without an address", "without a text"
LEFT_OUT = (_NOT_TAKEN, _NO_ADDRESS, _NO_TEXT)
"""Names under which rows are counted that are not fetched."""
ROWS_OF_A_FILE = 1_000_000

Linked = Callable[[Sequence[str]], set[str]]
"""From distinct texts those that lead to an entity."""


def tables(pairs: PairsConfig) -> list[tuple[Source, str]]:
    """The tables at `pairs.path`, each with a digest of its content. Raises InputError where one has no addresses or
    texts."""
    if not pairs.path:
        raise InputError("pairs.path is not set: name the table of addresses and texts (docs/inputs.md)")
    if pairs.url_column is None:
        raise InputError("pairs.url_column is null: name the column of the addresses")
    pairs = pairs.model_copy(update={"image_column": None})  # what these tables lack
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
        found.append((source, str(seen.digest)))
    return found


def without_images(pairs: PairsConfig) -> bool:
    """Whether `pairs.path` begins with a table of addresses that has no images. Raises InputError as listing does."""
    if not pairs.path or pairs.url_column is None:
        return False
    first = listing.listed(pairs)[0]
    if first.format not in _TABLES:
        return False
    names = look.look(first, pairs.model_copy(update={"image_column": None})).schema.names
    return pairs.url_column in names and pairs.image_column not in names


def batches(source: Source, pairs: PairsConfig, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a table that `pairs.where` takes in `COLUMNS`, as valid text without white space around addresses.

    counts   gets how many rows there are, and how many are not taken
    """
    shard = source.shard(pairs)
    wanted = {URL: pairs.url_column, CAPTION: pairs.text_column, KEY: pairs.key_column}
    named = {name: column for name, column in wanted.items() if column is not None}
    looked_at = where.columns(pairs.where) if pairs.where else []
    for _, stored in formats.columns(shard, list(dict.fromkeys([*named.values(), *looked_at]))):
        batch = stored.filter(where.mask(pairs.where, stored)) if pairs.where else stored
        counts["rows"] += stored.num_rows
        counts[_NOT_TAKEN] += stored.num_rows - batch.num_rows
        texts, _ = formats.texts(shard, batch.select(list(dict.fromkeys(named.values()))))
        arrays = [
            texts.column(named[name]).cast(pa.string()) if name in named else pa.nulls(len(texts), pa.string())
            for name in COLUMNS.names
        ]
        arrays[0] = pc.utf8_trim_whitespace(arrays[0])
        yield pa.RecordBatch.from_arrays(arrays, schema=COLUMNS)


def write(sources: Sequence[Source], pairs: PairsConfig, folder: Path, linked: Linked | None) -> Counter[str]:
    """Write the rows that are to be fetched as Parquet files of a folder; returns how many rows were what.

    A row that `pairs.where` does not take, or without an address or a text, is left out, and where `linked` is given
    one whose text leads to no entity.
    """
    counts: Counter[str] = Counter()
    waiting: list[pa.RecordBatch] = []
    written = 0

    def put() -> None:
        nonlocal written
        table = _kept(pa.Table.from_batches(waiting, COLUMNS), linked, counts)
        waiting.clear()
        if table.num_rows:
            pq.write_table(table, folder / f"{written:06}.parquet")
            written += 1

    for source in sources:
        for batch in batches(source, pairs, counts):
            waiting.append(batch)
            if sum(len(b) for b in waiting) >= ROWS_OF_A_FILE:
                put()
    if waiting:
        put()
    return counts


def _kept(table: pa.Table, linked: Linked | None, counts: Counter[str]) -> pa.Table:
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
