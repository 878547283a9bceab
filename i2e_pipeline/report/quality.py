"""Precision and recall of each stage, where the input says what its images show.

The input files may have further columns: what the image shows (`pairs.truth_column`; inputs/truth.py says how it is
written), the entities that its text names (`pairs.mentioned_column`), and the names of wider things that the image
shows too (`pairs.wider_column`). Only pairs of which something is known are counted. Recall is over those whose text
names the truth: what a text does not name, no stage can find. Which labels are right, label/judged.py says.

Writes   <output>/quality.json: figures by stage and slice · <output>/judged.parquet: which published label is right
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.core.ids import row_ids, rows_in_share
from i2e_pipeline.engine.tables import Tables
from i2e_pipeline.inputs import formats
from i2e_pipeline.inputs import truth as written
from i2e_pipeline.inputs.shard import Shard, of_row, shard_of
from i2e_pipeline.label import judged

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from i2e_pipeline.engine.stage import Run

log = logging.getLogger(__name__)

TRUTH_ROWS = pa.schema(
    [
        ("pair_id", pa.binary()),
        ("shard", pa.int32()),
        ("truth", pa.int64()),
        ("nothing", pa.bool_()),
        ("refuted", pa.list_(pa.int64())),
        ("mentioned", pa.list_(pa.int64())),
        ("wider", pa.list_(pa.string())),
        ("slices", pa.list_(pa.string())),
        ("unread", pa.string()),
    ]
)
"""What `truth_rows` yields."""
_FILE = "quality.json"
_JUDGED_FILE = "judged.parquet"
_MAX_JUDGED = 500_000
JUDGED = pa.schema(
    [
        ("image_id", pa.string()),
        ("pair_id", pa.string()),
        ("entity_id", pa.int64()),
        ("truth", pa.int64()),
        ("nothing", pa.bool_()),
        ("right", pa.bool_()),
        ("probability", pa.float32()),
    ]
)
"""A published label of known truth: image and pair in hex digits, as in `i2e/images`; `truth`, the entity that the
image shows, null where only what it does not show is known, or `nothing` (no entity of the knowledge base); `right`,
null where the label is neither right nor wrong."""
_COUNTED = {
    "extract": "P: mentions that can mean an entity that the text names; R: named entities that a mention can mean",
    "link": "P: top candidates that the text names; R: named entities that are a top candidate",
    "label": "P: labels that are right; R: of pairs whose text names the truth, those that got it as a label",
    "published": "the same for published images, with duplicates merged",
}
_LABEL_COUNTS = ("right", "wrong", "undecided", "none", "none_labelled", "wrong_on_none")
"""Of labels, beside precision and recall: labels by verdict, pairs whose image shows no entity of the knowledge base,
those of them that have a label, and these labels."""


def read(tables: Tables) -> list[dict[str, Any]]:
    """Figures of the last run; none where no truth is known."""
    path = tables.path(_FILE)
    if not files.exists(path):
        return []
    figures = files.record(path, remedy := "remove it, and `i2e run` measures again")
    if not (isinstance(figures, list) and all(isinstance(one, dict) for one in figures)):
        raise files.RecordError(f"{path} holds no figures: {remedy}")
    return figures


def read_judged(tables: Tables) -> pa.Table:
    """The published labels of known truth (JUDGED); no rows where no truth is known."""
    path = tables.path(_JUDGED_FILE)
    if not files.exists(path):
        return JUDGED.empty_table()
    filesystem, inner = files.open_filesystem(path)
    return pq.read_table(inner, filesystem=filesystem)


def lacks_labels(tables: Tables) -> bool:
    """Whether an earlier version measured the run, which kept the figures and not the labels behind them."""
    return files.exists(tables.path(_FILE)) and not files.exists(tables.path(_JUDGED_FILE))


def sentences(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the figures of all pairs say beside precision and recall: a line on each of the labels' steps."""
    said = []
    for figure in figures:
        if figure["slice"] != "all":
            continue
        step = figure["stage"]
        if none := figure.get("none"):
            said.append(
                f"{step}: labels on images of nothing known: {figure['none_labelled']:,} of {none:,} images "
                f"({figure['wrong_on_none']:,} labels)"
            )
        if undecided := figure.get("undecided"):
            said.append(f"{step}: labels that are neither right nor wrong, and not counted: {undecided:,}")
        if (error := figure.get("calibration_error")) is not None:
            said.append(f"{step}: calibration error of labels and best candidates: {error:.3f}")
    return said


def measure(run: Run) -> None:
    """Measure a published dataset and keep the figures, where the input is there and has the columns."""
    sizes = files.sizes([file.path for unit in run.units for file in unit.files])
    if gone := [path for path, size in sizes.items() if size is None]:
        log.warning("precision and recall are not measured: %d input files are gone, %s first", len(gone), gone[0])
    columns = None if gone else truth_columns(run)
    if columns is None:
        for name in (_FILE, _JUDGED_FILE):
            files.remove(run.tables.path(name))
        return
    figures, judged_labels = _measure(run, columns)
    files.write_table(run.tables.path(_JUDGED_FILE), judged_labels)
    files.write_json(run.tables.path(_FILE), figures)


@dataclass(frozen=True)
class TruthColumns:
    """Which columns beside the truth the input has, all its files together."""

    slices: tuple[str, ...]
    wider: bool
    """Whether there is one of wider names."""


def truth_columns(run: Run) -> TruthColumns | None:
    """What the input says beside the truth; None where it has no truth."""
    pairs = run.config.pairs
    names: set[str] = set()
    shards = run.shards([unit.name for unit in run.units])
    # A unit's files come from one source, so one file of each unit is looked at.
    for unit in run.units:
        here = formats.names(shards[unit.files[0].shard])
        if pairs.truth_column in here:
            names |= here
    slices = tuple(c for c in pairs.slice_columns if c in names)
    return TruthColumns(slices, pairs.wider_column in names) if names else None


def truth_rows(
    batches: Iterator[pa.RecordBatch],
    settings: Shard,
    truth_column: str,
    mentioned_column: str,
    wider_column: str,
    slice_columns: Sequence[str],
) -> Iterator[pa.RecordBatch]:
    """What the input says of each pair of whose truth it says anything.

    batches   shard: int32, SHARD_COLUMNS, digest: binary, share_from, share_to: float64
    yields    pair_id: binary, shard: int32, truth: int64, nothing: bool, refuted: list<int64>, mentioned: list<int64>
              (null: not known), wider: list<string>, slices: list<string>: "all" and "column: value" for each slice
              column; unread: string, file, row and value where the truth cannot be read, else null
    """
    import numpy as np

    for batch in batches:
        for file in batch.to_pylist():
            here = formats.names(shard := of_row(file, settings))
            if truth_column not in here:
                continue
            slices_here = [c for c in slice_columns if c in here]
            names = list(dict.fromkeys([truth_column, mentioned_column, wider_column, *slices_here]))
            for start, rows in formats.columns(shard, names):
                numbers = np.arange(start, start + rows.num_rows)
                taken = rows_in_share(file["digest"], numbers, (file["share_from"], file["share_to"]))
                truths = written.truths(rows.column(truth_column))
                is_unread = pc.is_valid(truths["unread"])
                wanted = pc.and_(pc.or_(judged.told(truths), is_unread), pa.array(taken))
                ids = row_ids(file["digest"], numbers).cast(pa.binary())
                rows, truths, numbers = rows.filter(wanted), truths.filter(wanted), numbers[np.asarray(wanted)]
                slices = (
                    [
                        ["all", *(f"{c}: {_plain(v)}" for c, v in row.items() if v is not None)]
                        for row in rows.select(slices_here).to_pylist()
                    ]
                    if slices_here
                    else [["all"]] * rows.num_rows
                )
                unread = [
                    None if value is None else f"{shard.path}, row {number}: {value}"
                    for number, value in zip(numbers.tolist(), truths["unread"].to_pylist(), strict=True)
                ]
                yield pa.RecordBatch.from_pydict(
                    {
                        "pair_id": ids.filter(wanted),
                        "shard": pa.array([file["shard"]] * rows.num_rows, pa.int32()),
                        "truth": truths["truth"],
                        "nothing": truths["nothing"],
                        "refuted": truths["refuted"],
                        "mentioned": written.ids(rows.column(mentioned_column)),
                        "wider": written.names(rows.column(wider_column)),
                        "slices": pa.array(slices, pa.list_(pa.string())),
                        "unread": pa.array(unread, pa.string()),
                    }
                )


def _plain(value: Any) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def truth(run: Run, columns: TruthColumns) -> DataFrame:
    """`truth_rows` of all input files; ids of merged items are those of their targets."""
    files_of = run.spark.createDataFrame(_truth_files(run)).repartition(run.spark.sparkContext.defaultParallelism)
    settings, names = _truth_settings(run, columns)
    rows = files_of.mapInArrow(
        lambda batches: truth_rows(iter(batches), settings, *names),
        "pair_id binary, shard int, truth long, nothing boolean, refuted array<long>, mentioned array<long>, "
        "wider array<string>, slices array<string>, unread string",
    )
    return _followed(rows, run)


def truth_here(run: Run, columns: TruthColumns) -> pa.Table:
    """The same in this process, without Spark, for an input that one machine can read."""
    settings, names = _truth_settings(run, columns)
    rows = pa.Table.from_batches(truth_rows(iter(_truth_files(run).to_batches()), settings, *names), TRUTH_ROWS)
    redirects = run.tables.load("kb/redirects", run.tables.commits_of("kb/redirects").values()).sort_by("entity_id")
    if not redirects.num_rows:
        return rows
    from wikidata import merges

    old, into = (redirects.column(name).to_numpy() for name in ("entity_id", "into"))
    for name in _OF_IDS:
        led = merges.followed_in(rows.column(name).combine_chunks(), old, into)
        rows = rows.set_column(rows.schema.get_field_index(name), name, led)
    return rows


def _truth_files(run: Run) -> pa.Table:
    """What `truth_rows` reads: a row per input file."""
    of_units = [(unit.share, f) for unit in run.units for f in unit.files]
    return pa.table(
        {
            "shard": pa.array([f.shard for _, f in of_units], pa.int32()),
            **run.shard_columns(f for _, f in of_units),
            "digest": pa.array([bytes.fromhex(f.digest) for _, f in of_units], pa.binary()),
            "share_from": pa.array([share[0] for share, _ in of_units], pa.float64()),
            "share_to": pa.array([share[1] for share, _ in of_units], pa.float64()),
        }
    )


def _truth_settings(run: Run, columns: TruthColumns) -> tuple[Shard, tuple[str, str, str, Sequence[str]]]:
    pairs = run.config.pairs
    names = (pairs.truth_column, pairs.mentioned_column, pairs.wider_column, columns.slices)
    return shard_of("", "parquet", None, pairs), names


_OF_IDS = ("truth", "refuted", "mentioned")


def _followed(rows: DataFrame, run: Run) -> DataFrame:
    """The rows of `truth_rows` with merged items' ids followed (kb/redirects)."""
    from pyspark.sql import functions as F

    from wikidata import merges

    none = F.array().cast("array<long>")
    named = F.concat(F.array("truth"), F.coalesce("refuted", none), F.coalesce("mentioned", none))
    old, into = redirects_of(run, rows.select(F.explode(named).alias("entity_id")))
    if not len(old):
        return rows

    def follow(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            columns = {name: batch.column(name) for name in batch.schema.names}
            columns |= {name: merges.followed_in(columns[name], old, into) for name in _OF_IDS}
            yield pa.RecordBatch.from_arrays(list(columns.values()), list(columns))

    return rows.mapInArrow(follow, rows.schema)


def redirects_of(run: Run, named: DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Those of the named entities (entity_id) that were merged, rising, and into which."""
    run = replace(run, reader=None)
    if not run.rows("kb/redirects"):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    # Few of millions of redirects are of ids that anybody names.
    led = run.read("kb/redirects").join(named.distinct(), on="entity_id", how="left_semi").toArrow()
    led = led.sort_by("entity_id")
    return led.column("entity_id").to_numpy(), led.column("into").to_numpy()


def unread_truths(count: int, first: str, column: str) -> str:
    """What is said of values of the truth column that are none."""
    return f"pairs.truth_column: {count:,} values of {column!r} are no truth, such as {first}: {written.REMEDY}"


def with_wider(rows: DataFrame, run: Run, columns: TruthColumns) -> DataFrame:
    """The rows, of `entity_id` and `wider` (names), with `wider` as a bool: whether the entity bears such a name."""
    from pyspark.sql import functions as F
    from pyspark.sql.types import BooleanType, StructField, StructType

    others = [c for c in rows.columns if c != "wider"]
    if not columns.wider:
        return rows.select(*others, F.lit(False).alias("wider"))
    # Names are asked for beside the run's stages: no stage depends on them for this.
    entities = replace(run, reader=None).read("kb/entities", columns=["entity_id", "name"])
    schema = StructType([*rows.select(*others).schema.fields, StructField("wider", BooleanType())])
    return rows.join(entities, "entity_id", how="left").select(*others, "wider", "name").mapInArrow(_wider_rows, schema)


def _wider_rows(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        wider = judged.bears_wider_name(batch["name"], batch["wider"])
        yield batch.drop_columns(["name", "wider"]).append_column("wider", wider)


def _judged_rows(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        kept = batch.select(["image_id", "pair_id", "of", "chosen", "probability", "entity_id", "truth", "nothing"])
        yield kept.append_column("right", judged.right(batch))


def _reliability_rows(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """judged.reliability of each coarse type; without one: null."""
    for batch in batches:
        probability = batch["probability"].to_numpy()
        is_right = batch["right"].to_numpy(zero_copy_only=False)
        types = np.array(batch["coarse_type"].to_pylist(), dtype=object)
        for of_type in dict.fromkeys(types):
            at = types == of_type
            bins = judged.reliability(probability[at], is_right[at])
            yield pa.RecordBatch.from_pylist([{"coarse_type": of_type, **b} for b in bins], _TYPE_BINS)


_TYPE_BINS = pa.schema(
    [
        ("coarse_type", pa.string()),
        ("bin", pa.int64()),
        ("labels", pa.int64()),
        ("expected", pa.float64()),
        ("right", pa.float64()),
    ]
)


def _measure(run: Run, columns: TruthColumns) -> tuple[list[dict[str, Any]], pa.Table]:
    """The figures, and the published labels that were judged (JUDGED)."""
    from pyspark import StorageLevel
    from pyspark.sql import functions as F

    known = truth(run, columns).persist(StorageLevel.MEMORY_AND_DISK)
    unread = known.where(F.col("unread").isNotNull()).agg(F.count("*"), F.min("unread")).collect()[0]
    if unread[0]:
        log.warning("%s. They are left out", unread_truths(unread[0], unread[1], run.config.pairs.truth_column))
    pairs = known.where(F.col("unread").isNull()).drop("unread")
    labels = _judged_labels(run, pairs, columns).persist(StorageLevel.MEMORY_AND_DISK)
    try:
        figures = _steps(_sums(run, pairs, labels))
        by_type = _reliability(run, labels)
        published = _published(labels)
    finally:
        labels.unpersist()
        known.unpersist()
    for figure in figures:
        if (figure["stage"], figure["slice"]) == ("label", "all"):
            bins = judged.summed([b for of_type in by_type.values() for b in of_type])
            figure |= {
                "calibration_error": judged.calibration_error(bins),
                "reliability": bins,
                "reliability_by_type": _by_type(by_type),
            }
    return figures, published


def _published(labels: DataFrame) -> pa.Table:
    """The published labels of `_judged_labels` as a table of JUDGED, in the order of pair and entity: all, or as many
    as the file holds. A pair's id is a hash, so the first pairs are a draw."""
    from pyspark.sql import functions as F

    rows = (
        labels.where(F.col("of") == "published")
        .orderBy("pair_id", "entity_id")
        .limit(_MAX_JUDGED)
        .select(
            *(F.lower(F.hex(name)).alias(name) for name in ("image_id", "pair_id")),
            "entity_id",
            "truth",
            "nothing",
            "right",
            F.col("probability").cast("float").alias("probability"),
        )
    )
    return rows.toArrow().cast(JUDGED)


def _judged_labels(run: Run, pairs: DataFrame, columns: TruthColumns) -> DataFrame:
    """image_id, pair_id, of ("label", "published"), chosen, probability, entity_id, truth, nothing and whether it is
    right: every candidate that the label stage weighed for a pair of known truth, and the labels of its image where the
    pair stands for it."""
    from pyspark.sql import functions as F

    weighed = run.read("labels").select(
        "image_id",
        "pair_id",
        F.lit("label").alias("of"),
        F.col("reason").isNull().alias("chosen"),
        F.col("probability").cast("double").alias("probability"),
        "entity_id",
    )
    published = (
        run.read("selection")
        .select("image_id", "pair_id", F.explode("labels").alias("label"))
        .select(
            "image_id",
            "pair_id",
            F.lit("published").alias("of"),
            F.lit(True).alias("chosen"),
            F.col("label.score").cast("double").alias("probability"),
            F.col("label.entity_id").alias("entity_id"),
        )
    )
    of_pairs = weighed.unionByName(published).join(
        pairs.select("pair_id", "truth", "nothing", "refuted", "wider"), "pair_id", how="inner"
    )
    return with_wider(of_pairs, run, columns).mapInArrow(
        _judged_rows,
        "image_id binary, pair_id binary, of string, chosen boolean, probability double, entity_id long, truth long, "
        "nothing boolean, right boolean",
    )


def _reliability(run: Run, labels: DataFrame) -> dict[str | None, list[dict[str, float]]]:
    """judged.reliability of labels, and of the best candidate of each pair, by the entity's coarse type."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    best = Window.partitionBy("pair_id").orderBy(F.desc("probability"), F.desc("chosen"), "entity_id")
    types = replace(run, reader=None).read("kb/entities", columns=["entity_id", "coarse_type"])
    parts = (
        labels.where(F.col("of") == "label")
        .withColumn("rank", F.row_number().over(best))
        .where((F.col("chosen") | (F.col("rank") == 1)) & F.col("right").isNotNull())
        .select("entity_id", "probability", "right")
        .join(types, "entity_id", how="left")
        .select("coarse_type", "probability", "right")
        .mapInArrow(_reliability_rows, "coarse_type string, bin long, labels long, expected double, right double")
        .groupBy("coarse_type", "bin")
        .agg(F.sum("labels"), F.sort_array(F.collect_list("expected")), F.sum("right"))
        .collect()
    )
    found: dict[str | None, list[dict[str, float]]] = {}
    for of_type, bin_, labelled, expected, is_right in sorted(parts, key=lambda part: (part[0] or "", part[1])):
        bins = found.setdefault(of_type, [])
        # In one order: the sum of floats depends on it.
        bins.append({"bin": bin_, "labels": labelled, "expected": sum(expected), "right": is_right})
    return found


def _by_type(by_type: Mapping[str | None, Sequence[Mapping[str, float]]]) -> list[dict[str, Any]]:
    """A row per coarse type that has labels, most labels first; without a type: null."""
    rows = [
        {
            "coarse_type": of_type,
            "labels": int(sum(b["labels"] for b in bins)),
            "expected": round(sum(b["expected"] for b in bins), 6),
            "right": round(sum(b["right"] for b in bins), 6),
            "calibration_error": judged.calibration_error(bins),
        }
        for of_type, bins in by_type.items()
    ]
    return sorted((r for r in rows if r["labels"]), key=lambda r: (-r["labels"], r["coarse_type"] or ""))


def _sums(run: Run, pairs: DataFrame, judged_labels: DataFrame) -> list[dict[str, Any]]:
    """What is counted, a dictionary for each slice, that of all pairs first."""
    from pyspark.sql import functions as F

    empty = F.array().cast("array<bigint>")
    texts = run.read("pairs", columns=["pair_id", "text_id", "unit"])
    candidates = run.read("candidates", columns=["text_id", "start", "end", "entity_id", "rank", "unit"])
    linked = (
        candidates.groupBy("unit", "text_id", "start", "end")
        .agg(
            F.collect_set("entity_id").alias("candidates"),
            F.min_by("entity_id", "rank").alias("top"),
        )
        .groupBy("unit", "text_id")
        .agg(F.collect_list("candidates").alias("mentions"), F.collect_set("top").alias("top"))
        .join(texts, ["unit", "text_id"], how="inner")
        .select("pair_id", "mentions", F.array_distinct(F.flatten("mentions")).alias("candidates"), "top")
    )

    def count(condition: Any) -> Any:
        return F.sum(F.coalesce(condition.cast("long"), F.lit(0)))

    def size(column: Any) -> Any:
        return F.sum(F.size(column))

    verdicts = {"right": F.col("right"), "wrong": ~F.col("right"), "undecided": F.col("right").isNull()}
    of_pair = [f"{of}_{verdict}" for of in ("label", "published") for verdict in verdicts]
    counts = judged_labels.groupBy("pair_id").agg(
        *(
            count((F.col("of") == of) & F.col("chosen") & condition).alias(f"{of}_{verdict}")
            for of in ("label", "published")
            for verdict, condition in verdicts.items()
        )
    )
    images = run.read("labels").groupBy("pair_id").agg(F.first("image_id").alias("image_id"))
    standing = run.read("selection").select("image_id", F.col("pair_id").alias("standing"))
    knows_mentioned = F.col("mentioned").isNotNull()
    rows = (
        pairs.join(linked, "pair_id", how="left")
        .join(images, "pair_id", how="left")
        .join(standing, "image_id", how="left")
        .join(counts, "pair_id", how="left")
        .select(
            "truth",
            "nothing",
            "slices",
            F.coalesce("mentioned", empty).alias("mentioned"),
            # Where it is not known what the text names, mentions and links are neither right nor wrong.
            F.when(knows_mentioned, F.col("mentions")).otherwise(F.array(empty)).alias("mentions"),
            *(F.when(knows_mentioned, F.col(c)).otherwise(empty).alias(c) for c in ("candidates", "top")),
            *(F.coalesce(c, F.lit(0)).alias(c) for c in of_pair),
            (F.col("standing").isNull() | (F.col("standing") == F.col("pair_id"))).alias("stands"),
        )
        .withColumn("mentions", F.coalesce("mentions", F.array(empty)))
        .withColumns({c: F.coalesce(c, empty) for c in ("candidates", "top")})
        .withColumn("named", F.array_contains("mentioned", F.col("truth")))
    )
    everything = F.lit(True)
    sums = (
        rows.withColumn("slice", F.explode("slices"))
        .groupBy("slice")
        .agg(
            F.count("*").alias("pairs"),
            size(F.filter("mentions", lambda m: F.arrays_overlap(m, F.col("mentioned")))).alias("mentions_right"),
            size(F.filter("mentions", lambda m: F.size(m) > 0)).alias("mentions_all"),
            size(F.array_intersect("top", "mentioned")).alias("top_right"),
            size("top").alias("top_all"),
            size(F.array_intersect("candidates", "mentioned")).alias("mentioned_found"),
            size("mentioned").alias("mentioned_all"),
            *(
                what.alias(f"{of}_{key}")
                for of, here in (("label", everything), ("published", F.col("stands")))
                for key, what in {
                    "right": F.sum(F.when(here, F.col(f"{of}_right")).otherwise(0)),
                    "wrong": F.sum(F.when(here, F.col(f"{of}_wrong")).otherwise(0)),
                    "undecided": F.sum(F.when(here, F.col(f"{of}_undecided")).otherwise(0)),
                    "wrong_on_none": F.sum(F.when(here & F.col("nothing"), F.col(f"{of}_wrong")).otherwise(0)),
                    "none": count(here & F.col("nothing")),
                    "none_labelled": count(here & F.col("nothing") & (F.col(f"{of}_wrong") > 0)),
                    "named": count(here & F.col("named")),
                    "found": count(here & F.col("named") & (F.col(f"{of}_right") > 0)),
                }.items()
            ),
        )
    )
    return sorted((r.asDict() for r in sums.collect()), key=lambda r: (r["slice"] != "all", r["slice"]))


def _steps(sums: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Figures of each stage and slice, of sums by slice."""
    mentions = {
        "extract": ("mentions_right", "mentions_all", "mentioned_found", "mentioned_all"),
        "link": ("top_right", "top_all", "top_right", "mentioned_all"),
    }
    figures = []
    for step, counted in _COUNTED.items():
        for row in sums:
            figure = {"stage": step, "slice": row["slice"], "pairs": row["pairs"]}
            if step in mentions:
                right, total, found, wanted = (row[key] for key in mentions[step])
                figure |= _shares(right, total, found, wanted)
            else:
                right, wrong = row[f"{step}_right"], row[f"{step}_wrong"]
                figure |= _shares(right, right + wrong, row[f"{step}_found"], row[f"{step}_named"])
                figure |= {k: row[f"{step}_{k}"] for k in _LABEL_COUNTS}
            figures.append(figure | {"counted": counted})
    return figures


def _shares(right: int, said: int, found: int, wanted: int) -> dict[str, Any]:
    """Precision and recall, and of how many each is a share."""
    return {
        "precision": _ratio(right, said),
        "recall": _ratio(found, wanted),
        "precision_of": said,
        "recall_of": wanted,
    }


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
