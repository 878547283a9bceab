"""Merged items, and what has changed since an older dump.

Reads    redirects (from, into) of a dump's own lines or of a file · entities of the older knowledge base and the new
Writes   redirects (REDIRECTS), each to where it ends · changes (CHANGES)

Wikidata merges items by making one a redirect to the other: the id stays, and no dump has an item for it. Whoever used
it, in gold links, anchors, popularities or truths, means the target. A chain is followed to its end. An id that the
dump has an item for is none of these, whatever a file of another day says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from wikidata.schemas import REDIRECTS
from wikidata.source_files import SourceError

Ids = npt.NDArray[np.int64]

COMPARED = ("name", "description", "aliases", "types", "parents", "has_image")
"""Columns of ENTITIES that make an entity another one. Its counts change with every dump, and what is worked out from
these columns changes with them."""
OF_A_FILE = "take out a row"
"""What mends rows of a file that contradict each other."""
OF_A_DUMP = (
    'the dump\'s own lines ({"entity": …, "redirect": …}) say so, and contradict each other. Name a dump of one day '
    "in one piece, or take those lines out of it"
)
"""What mends lines of a dump that do."""
_HOPS = 64
"""Doublings after which a chain must have ended."""


def refuse_contradictions(redirects: DataFrame, remedy: str = OF_A_FILE) -> None:
    """Raise SourceError, which ends in `remedy`, where an id leads to two or to itself.

    redirects  REDIRECTS, as they stand in their files or lines
    """
    resolve = partial(resolved, remedy=remedy)
    redirects.distinct().repartition(1).mapInArrow(resolve, from_arrow_schema(REDIRECTS)).count()


def led(redirects: DataFrame, entities: DataFrame, remedy: str = OF_A_FILE) -> DataFrame:
    """REDIRECTS of which each leads to one of the entities, chains followed to their ends.

    redirects  REDIRECTS, from each id at most one, or the same again
    One task holds all of them, 16 bytes each: Wikidata has some five million. The job raises SourceError, which ends in
    `remedy`, for an id that leads to two, and for a circle.
    """
    known = entities.select("entity_id")
    gone = redirects.select(*REDIRECTS.names).join(known, on="entity_id", how="left_anti")
    ends = gone.distinct().repartition(1).mapInArrow(partial(resolved, remedy=remedy), from_arrow_schema(REDIRECTS))
    return ends.join(known.withColumnRenamed("entity_id", "into"), on="into", how="left_semi").select(*REDIRECTS.names)


def together(of_dump: DataFrame, of_file: DataFrame) -> DataFrame:
    """REDIRECTS of both; where both say something of an id, what the dump says."""
    others = of_file.join(of_dump.select("entity_id"), on="entity_id", how="left_anti")
    return of_dump.select(*REDIRECTS.names).unionByName(others.select(*REDIRECTS.names))


def resolved(batches: Iterable[pa.RecordBatch], remedy: str = OF_A_FILE) -> Iterator[pa.RecordBatch]:
    """REDIRECTS, distinct, to REDIRECTS of which none leads to another, by rising id. A kernel for one task.

    Raises SourceError, which ends in `remedy`, for an id that leads to two, and for a circle.
    """
    rows = [pa.Table.from_batches([batch]).cast(REDIRECTS) for batch in batches]
    table = pa.concat_tables([REDIRECTS.empty_table(), *rows]).sort_by(
        [(name, "ascending") for name in REDIRECTS.names]
    )
    ids, into = (table.column(name).to_numpy() for name in REDIRECTS.names)
    twice = np.flatnonzero(ids[1:] == ids[:-1])
    if len(twice):
        n = int(twice[0])
        raise SourceError(
            f"Q{ids[n]} is merged into Q{into[n]} and into Q{into[n + 1]}: an item is merged into one: {remedy}"
        )
    for _ in range(_HOPS):
        further = follow(into, ids, into)
        if (further == into).all():
            break
        into = further
    turning = follow(into, ids, into) != into
    if turning.any() or (ids == into).any():
        turning |= ids == into
        raise SourceError(f"Q{int(into[turning].min())} is merged into itself, over others or not: {remedy}")
    yield pa.RecordBatch.from_arrays([pa.array(ids), pa.array(into)], schema=REDIRECTS)


def follow(values: Ids, ids: Ids, into: Ids) -> Ids:
    """The values, each that is one of `ids` (rising) replaced by what stands in its place in `into`."""
    if not len(ids):
        return values
    places = np.minimum(np.searchsorted(ids, values), len(ids) - 1)
    return np.where(ids[places] == values, into[places], values)


def followed(rows: DataFrame, redirects: DataFrame) -> DataFrame:
    """The rows, those of merged items under the id of their target; the same columns. Ids may then stand twice."""
    joined = rows.join(redirects, on="entity_id", how="left")
    entity = F.coalesce("into", "entity_id").alias("entity_id")
    return joined.select(*(entity if name == "entity_id" else name for name in rows.columns))


def followed_in(column: pa.Array, ids: Ids, into: Ids) -> pa.Array:
    """`follow` of a column of int64, or of list<int64>; nulls stay."""
    if pa.types.is_list(column.type):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        values = followed_in(column.flatten(), ids, into)
        return pa.ListArray.from_arrays(offsets, values, type=column.type, mask=column.is_null())
    values = follow(pc.fill_null(column, 0).to_numpy(), ids, into)
    return pc.if_else(column.is_valid(), pa.array(values, pa.int64()), pa.scalar(None, pa.int64()))


def changes(older: DataFrame, newer: DataFrame, redirects: DataFrame | None, columns: Sequence[str]) -> DataFrame:
    """CHANGES from one knowledge base to the next: entities that are not the same in both.

    older, newer  ENTITIES, at least entity_id and `columns`, which are compared (COMPARED, or those of them that both
                  have)
    redirects     REDIRECTS of the newer; None: there is none
    Added, changed, merged (a redirect leads from it to `into`), or else removed. One join of 16 bytes an entity.
    """
    old, new = (_marked(entities, columns, name) for entities, name in ((older, "old"), (newer, "new")))
    both = old.join(new, on="entity_id", how="full_outer").where("old is null or new is null or old != new")
    change = F.when(F.col("old").isNull(), "added").when(F.col("new").isNull(), "removed").otherwise("changed")
    rows = both.select("entity_id", change.alias("change"))
    if redirects is None:
        return rows.select("entity_id", "change", F.lit(None).cast("bigint").alias("into"))
    # Whoever has a redirect is not in the newer one, so these are all of removed ones.
    merged = F.when(F.col("into").isNotNull(), "merged").otherwise(F.col("change"))
    return rows.join(redirects, on="entity_id", how="left").select("entity_id", merged.alias("change"), "into")


def _marked(entities: DataFrame, columns: Sequence[str], name: str) -> DataFrame:
    """entity_id, and a hash of the columns under this name."""
    types = dict(entities.dtypes)
    parts: list[Column] = []
    for column in columns:
        value = F.col(column)
        # The hash passes over nulls, and sees no borders between lists.
        parts += [value.isNull(), F.coalesce(F.size(value), F.lit(-1)) if types[column].startswith("array") else value]
        parts += [value] if types[column].startswith("array") else []
    return entities.select("entity_id", F.xxhash64(*parts).alias(name))


def counted(changed: DataFrame) -> dict[str, int]:
    """How many entities have each change: added, changed, removed and merged."""
    found = {row["change"]: row["count"] for row in changed.groupBy("change").count().collect()}
    return {change: found.get(change, 0) for change in ("added", "changed", "removed", "merged")}
