"""Link: which entities can each mention mean?

Reads    mentions (text_id, start, end, surface, normal_form, label, source) · texts (text_id, text) · kb/surfaces
Writes   nothing: hands rows of LINK_ROWS, one per text, to the kernel of disambiguate.py

Surfaces repeat far more than mentions do, so the knowledge base is asked once per distinct normal form and the answer
carried back: 1.4 to 7 times less CPU than joining every mention under each of its keys (benchmarks/linking.py). Both
joins are left to the planner: nothing that grows with the corpus or the knowledge base is collected or broadcast by
hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from wikidata.surface import inflections, lookup_keys

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

CANDIDATE = pa.struct(
    [
        pa.field("entity_id", pa.int64()),
        pa.field("prior", pa.float32()),
        pa.field("kind", pa.string()),
        pa.field("inflected", pa.bool_()),  # found under the singular of a form that is also a name itself
    ]
)
MENTION = pa.struct(
    [
        pa.field("start", pa.int32()),
        pa.field("end", pa.int32()),
        pa.field("surface", pa.string()),
        pa.field("normal_form", pa.string()),
        pa.field("label", pa.string()),
        pa.field("source", pa.string()),
        pa.field("candidates", pa.list_(CANDIDATE)),
    ]
)
GROUP_NAME = pa.struct(
    [
        pa.field("normal_form", pa.string()),
        pa.field("candidates", pa.list_(pa.struct([("entity_id", pa.int64()), ("prior", pa.float32())]))),
    ]
)
LINK_ROWS = pa.schema(
    [
        pa.field("text_id", pa.binary(16)),
        pa.field("text", pa.string()),
        pa.field("mentions", pa.list_(MENTION)),
        pa.field("group_names", pa.list_(GROUP_NAME)),
    ]
)
"""A row per text: its mentions by start and end, each with its candidates, [] where the knowledge base has none, and
the names of several words in the texts of its group, [] without a group."""
GROUP_NAMES = 64
"""Distinct names of a group that count for each of its texts: of more, those whose MD5 is lowest, so that a group of
any size costs the same and the choice depends on nothing but the names."""
GROUP_CANDIDATES = 3
"""Candidates kept of each such name, the first ones."""

KEYS = pa.schema(
    [
        pa.field("normal_form", pa.string()),
        pa.field("key", pa.string()),
        pa.field("step", pa.int32()),
        pa.field("inflected", pa.bool_()),
    ]
)


def keys_of(form: str) -> list[tuple[str, bool]]:
    """The keys to look a normal form up by, in order, and for each whether it is the singular or plural of the form.

    The form itself, what `wikidata.surface.lookup_keys` adds, and all of it again without, or with, a leading article.
    """
    keys = dict.fromkeys([form, *lookup_keys(form)])
    inflected = set(inflections(form))
    if form.startswith(("the ", "a ", "an ")):
        keys.update(dict.fromkeys(lookup_keys(form.partition(" ")[2])))
    else:
        keys[f"the {form}"] = None
    return [(key, key in inflected) for key in keys if key]


def explode_keys(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """KEYS of distinct normal forms (one column, string)."""
    for batch in batches:
        forms = batch.column(0).to_pylist()
        rows = [(form, key, step, inflected) for form in forms for step, (key, inflected) in enumerate(keys_of(form))]
        yield pa.RecordBatch.from_arrays(
            [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(KEYS)], schema=KEYS
        )


def with_candidates(mentions: DataFrame, texts: DataFrame, surfaces: DataFrame, grouped: bool = False) -> DataFrame:
    """One row per unit and text of `mentions`, in the form of LINK_ROWS with the column `unit`.

    mentions   rows of the table mentions with their `unit`; texts without a mention get no row
    texts      unit, text_id, text, and where they are grouped group_id: at least the texts of `mentions`
    surfaces   rows of kb/surfaces
    A form's candidates are those of the first of its keys that the knowledge base holds; of a plural that is a name
    itself ("Bananas" the film) also those of its singular, marked `inflected`.
    """
    from pyspark.sql import functions as F

    found = resolve(mentions.select("normal_form").distinct(), surfaces)
    none = F.array().cast(found.schema["candidates"].dataType)
    by_text = (
        mentions.join(found, on="normal_form", how="left")
        .select(
            "unit",
            "text_id",
            F.struct(
                "start",
                "end",
                "surface",
                "normal_form",
                "label",
                "source",
                F.coalesce("candidates", none).alias("candidates"),
            ).alias("mention"),
        )
        .groupBy("unit", "text_id")
        .agg(F.sort_array(F.collect_list("mention")).alias("mentions"))
    )
    of_unit, columns = ["unit", "text_id"], ["unit", "text_id", "text", "mentions"]
    if not grouped:
        rows = by_text.join(texts.select(*of_unit, "text"), on=of_unit, how="inner")
        return rows.select(*columns, F.array().cast(_GROUP_NAMES).alias("group_names"))
    rows = by_text.join(texts.select(*of_unit, "text", "group_id"), on=of_unit, how="inner")
    names = _group_names(mentions, texts, found)
    rows = rows.join(names, on=["unit", "group_id"], how="left")
    return rows.select(*columns, F.coalesce("group_names", F.array().cast(_GROUP_NAMES)).alias("group_names"))


_GROUP_NAMES = "array<struct<normal_form: string, candidates: array<struct<entity_id: bigint, prior: float>>>>"


def _group_names(mentions: DataFrame, texts: DataFrame, found: DataFrame) -> DataFrame:
    """unit, group_id, group_names: of each group the names of several words that its texts have, with candidates."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    of_group = ["unit", "group_id"]
    grouped = texts.where(F.col("group_id").isNotNull()).select("text_id", *of_group)
    names = mentions.where(F.col("normal_form").contains(" ")).select("unit", "text_id", "normal_form")
    names = names.join(grouped, on=["unit", "text_id"], how="inner").select(*of_group, "normal_form").distinct()
    ranked = Window.partitionBy(*of_group).orderBy(F.md5("normal_form"), "normal_form")
    names = names.join(found, on="normal_form", how="inner").withColumn("rank", F.row_number().over(ranked))
    first = F.slice("candidates", 1, GROUP_CANDIDATES)
    kept = F.transform(first, lambda c: F.struct(c["entity_id"].alias("entity_id"), c["prior"].alias("prior")))
    name = F.struct("normal_form", kept.alias("candidates"))
    listed = names.where(F.col("rank") <= GROUP_NAMES).groupBy(*of_group)
    return listed.agg(F.sort_array(F.collect_list(name)).alias("group_names"))


def resolve(forms: DataFrame, surfaces: DataFrame) -> DataFrame:
    """normal_form, candidates array<struct<entity_id, prior, kind, inflected>> of the distinct `forms` (one column)
    that the knowledge base holds under one of their keys."""
    from pyspark.sql import functions as F

    keys = forms.select("normal_form").mapInArrow(
        explode_keys, "normal_form string, key string, step int, inflected boolean"
    )
    known = surfaces.select(F.col("normal_form").alias("key"), F.col("candidates").alias("of_key"))
    hits = keys.join(known, on="key", how="inner")
    exact, variant = F.col("step") == 0, F.col("step") > 0
    best = hits.groupBy("normal_form").agg(
        F.min_by("of_key", F.when(exact, F.col("step"))).alias("exact"),
        F.min_by("of_key", F.when(variant, F.col("step"))).alias("other"),
        F.min_by("of_key", F.when(variant & F.col("inflected"), F.col("step"))).alias("singular"),
    )

    def marked(column: str, inflected: bool) -> Column:
        return F.transform(
            column,
            lambda c: F.struct(
                c["entity_id"].alias("entity_id"),
                c["prior"].alias("prior"),
                c["kind"].alias("kind"),
                F.lit(inflected).alias("inflected"),
            ),
        )

    both = F.when(F.col("singular").isNull(), marked("exact", False)).otherwise(
        F.concat(marked("exact", False), marked("singular", True))
    )
    return best.select(
        "normal_form", F.when(F.col("exact").isNull(), marked("other", False)).otherwise(both).alias("candidates")
    )


def candidates_of(form: str, known: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """What `resolve` finds for one normal form, without Spark: rows of CANDIDATE.

    known   normal form to its candidates, for all of `keys_of(form)` that kb/surfaces holds
    """
    hits = [(step, key, inflected) for step, (key, inflected) in enumerate(keys_of(form)) if key in known]

    def marked(key: str, inflected: bool) -> list[dict[str, Any]]:
        return [{**c, "inflected": inflected} for c in known[key]]

    if not hits:
        return []
    (step, key, _), *others = hits
    if step > 0:
        return marked(key, False)
    singular = next((key for _, key, inflected in others if inflected), None)
    return marked(key, False) + (marked(singular, True) if singular is not None else [])


def link_rows(
    texts: Mapping[bytes, str],
    mentions: Iterable[Mapping[str, Any]],
    known: Mapping[str, Sequence[Mapping[str, Any]]],
    groups: Mapping[bytes, bytes | None] | None = None,
) -> pa.RecordBatch:
    """LINK_ROWS of some texts, what `with_candidates` gives, without Spark: a row per text in the order of `texts`,
    though it may be without a mention.

    mentions   rows of the table mentions
    known      as in `candidates_of`
    groups     group_id of each text that is in a group; `texts` are all texts of these groups
    """
    by_text: dict[bytes, list[dict[str, Any]]] = {text_id: [] for text_id in texts}
    for m in sorted(mentions, key=lambda m: (m["start"], m["end"])):
        row = {field.name: m.get(field.name) for field in MENTION}
        by_text[m["text_id"]].append({**row, "candidates": candidates_of(m["normal_form"], known)})
    names: dict[bytes, dict[str, list[dict[str, Any]]]] = {}
    for text_id, group in (groups or {}).items():
        if group is not None:
            of_text = {m["normal_form"]: m["candidates"] for m in by_text[text_id] if " " in m["normal_form"]}
            names.setdefault(group, {}).update({form: found for form, found in of_text.items() if found})
    of_group = {group: _first_names(found) for group, found in names.items()}
    group_names = {text_id: of_group.get(group or b"", []) for text_id, group in (groups or {}).items()}
    rows = [
        {"text_id": i, "text": text, "mentions": by_text[i], "group_names": group_names.get(i, [])}
        for i, text in texts.items()
    ]
    return pa.RecordBatch.from_pylist(rows, schema=LINK_ROWS)


def _first_names(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Of the names of a group those that count, as `_group_names` chooses them."""
    kept = sorted(found, key=lambda form: (hashlib.md5(form.encode(), usedforsecurity=False).hexdigest(), form))
    return [
        {
            "normal_form": form,
            "candidates": [{"entity_id": c["entity_id"], "prior": c["prior"]} for c in found[form][:GROUP_CANDIDATES]],
        }
        for form in sorted(kept[:GROUP_NAMES])
    ]
