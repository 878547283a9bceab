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

from wikidata.surface import inflections, lookup_keys, shorter

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
"""A row per text: its mentions by start and end, each with its candidates, [] where the knowledge base has none, and of
the names of several words in the texts of its group those that one of its mentions is a shorter form of, [] without a
group. A group's names are so prepared once, and not for each of its texts."""
GROUP_NAMES = 64
"""Distinct names of a group that count for its texts: of more, those whose MD5 is lowest, so that the choice depends on
nothing but the names."""
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
    rows = by_text.join(texts.select(*of_unit, "text"), on=of_unit, how="inner")
    if not grouped:
        return rows.select(*columns, F.array().cast(_GROUP_NAMES).alias("group_names"))
    # By text, and not by group: neither the texts without a group nor those of a large one come together in a task.
    rows = rows.join(_group_names(mentions, texts, found), on=of_unit, how="left")
    return rows.select(*columns, F.coalesce("group_names", F.array().cast(_GROUP_NAMES)).alias("group_names"))


_NAME = "struct<normal_form: string, candidates: array<struct<entity_id: bigint, prior: float>>>"
_GROUP_NAMES = f"array<{_NAME}>"


def _group_names(mentions: DataFrame, texts: DataFrame, found: DataFrame) -> DataFrame:
    """unit, text_id, group_names: of each text that has any, the names of its group that its mentions may stand for."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    of_group = ["unit", "group_id"]
    grouped = texts.where(F.col("group_id").isNotNull()).select("text_id", *of_group)
    said = mentions.select("unit", "text_id", "normal_form").join(grouped, on=["unit", "text_id"], how="inner")
    names = said.where(F.col("normal_form").contains(" ")).select(*of_group, "normal_form").distinct()
    ranked = Window.partitionBy(*of_group).orderBy(F.md5("normal_form"), "normal_form")
    names = names.join(found, on="normal_form", how="inner").withColumn("rank", F.row_number().over(ranked))
    first = F.slice("candidates", 1, GROUP_CANDIDATES)
    kept = F.transform(first, lambda c: F.struct(c["entity_id"].alias("entity_id"), c["prior"].alias("prior")))
    names = names.where(F.col("rank") <= GROUP_NAMES).select(
        *of_group, F.struct("normal_form", kept.alias("candidates")).cast(_NAME).alias("name")
    )
    short = names.mapInArrow(explode_shorter, f"unit string, group_id binary, name {_NAME}, normal_form string")
    of_text = said.join(short, on=[*of_group, "normal_form"], how="inner").groupBy("unit", "text_id")
    return of_text.agg(F.sort_array(F.collect_set("name")).alias("group_names"))


def explode_shorter(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """unit, group_id, name: GROUP_NAME, of names of groups: a row for each shorter form, as the column normal_form."""
    for batch in batches:
        forms = batch.column("name").field("normal_form").to_pylist()
        rows = [(n, short) for n, form in enumerate(forms) for short, _ in shorter_forms(form)]
        of_name = batch.take(pa.array([n for n, _ in rows], pa.int64()))
        yield of_name.append_column("normal_form", pa.array([short for _, short in rows], pa.string()))


def shorter_forms(form: str) -> tuple[tuple[str, bool], ...]:
    """By what a name goes on to be called in its text and its group, and whether these are its initials: `shorter`, of
    names without a comma, since behind that stands where a thing is."""
    return () if "," in form else shorter(form)


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
    elsewhere: Mapping[bytes, Iterable[str]] | None = None,
) -> pa.RecordBatch:
    """LINK_ROWS of some texts, what `with_candidates` gives, without Spark: a row per text in the order of `texts`,
    though it may be without a mention.

    mentions   rows of the table mentions
    known      as in `candidates_of`
    groups     group_id of each text that is in a group
    elsewhere  of a group the names in texts that are not given, as normal forms: all, or the first of `in_order` that
               the knowledge base holds, GROUP_NAMES of them
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
    for group, forms in (elsewhere or {}).items():
        names.setdefault(group, {}).update({f: found for f in forms if " " in f and (found := candidates_of(f, known))})
    of_group = {group: _first_names(found) for group, found in names.items()}
    rows = []
    for text_id, text in texts.items():
        said = {m["normal_form"] for m in by_text[text_id]}
        in_group = of_group.get((groups or {}).get(text_id) or b"", [])
        meant = [name for name, short in in_group if not said.isdisjoint(short)]
        rows.append({"text_id": text_id, "text": text, "mentions": by_text[text_id], "group_names": meant})
    return pa.RecordBatch.from_pylist(rows, schema=LINK_ROWS)


def in_order(forms: Iterable[str]) -> list[str]:
    """The names of a group, as normal forms, in the order in which they count: by MD5, which favours none."""
    return sorted(forms, key=lambda form: (hashlib.md5(form.encode(), usedforsecurity=False).hexdigest(), form))


def _first_names(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[dict[str, Any], set[str]]]:
    """Of the names of a group those that count, as `_group_names` chooses them, each with its shorter forms."""
    return [
        (
            {
                "normal_form": form,
                "candidates": [
                    {"entity_id": c["entity_id"], "prior": c["prior"]} for c in found[form][:GROUP_CANDIDATES]
                ],
            },
            {short for short, _ in shorter_forms(form)},
        )
        for form in sorted(in_order(found)[:GROUP_NAMES])
    ]
