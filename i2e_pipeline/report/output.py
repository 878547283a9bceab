"""The tables of an output, to look at in a notebook: with pyarrow in this process, or with a cluster's Spark.

Reads    any table of an output, the files that commit records name and no others, Parquet or Delta; the truth of the
         input, where it says what its images show
Writes   nothing

    output = i2e_pipeline.open_output("out/sample")
    output.table("kb/entities", ["entity_id", "name"], [("coarse_type", "=", "taxon")])

Given a SparkSession, `table` returns Spark's DataFrame, and what is counted and picked is so on the cluster; the other
methods return the same as without one.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.schemas import ID
from i2e_pipeline.dataset.published import NotPublished, manifest_of
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.engine.stage import Run, Stage
from i2e_pipeline.engine.tables import Commit
from i2e_pipeline.images.decode import open_rgb
from i2e_pipeline.images.thumbnails import ANY_SHAPE
from i2e_pipeline.inputs import formats
from i2e_pipeline.label import judged
from i2e_pipeline.label.wider import WIDER_OF
from i2e_pipeline.report import quality

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image
    from pyspark.sql import DataFrame, SparkSession

Filter = Sequence[tuple[str, str, Any]]
"""(column, operator, value), all of which a row must fulfil. Operators: = != < <= > >= in. `= None` is null, `!= None`
is not."""
_COMPARED = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
JUDGED = pa.schema(
    [
        pa.field("pair_id", ID),
        pa.field("entity_id", pa.int64()),
        pa.field("mention", pa.string()),
        pa.field("probability", pa.float32()),
        pa.field("reason", pa.string()),
        pa.field("name", pa.string()),
        pa.field("coarse_type", pa.string()),
        pa.field("right", pa.bool_()),
    ]
)
"""What `Output.judged` returns."""


class OutputError(I2EError, ValueError):
    """A table, column or filter that an output does not have; the message names those that it has."""


class Output:
    """The tables of an output, those of the published dataset where there is one, else of all units that a stage is
    done with."""

    def __init__(self, pipeline: Pipeline, spark: SparkSession | None = None) -> None:
        """`spark`: the session to read with; None: this process reads. The pipeline starts it, where it is given
        one."""
        self.pipeline = pipeline
        self.spark = spark
        self.run: Run = pipeline.as_it_is()
        if not any(self.run.commits.values()):
            raise OutputError(
                f"{pipeline.config.output} holds nothing that a run has made: name the folder of a run's output, or "
                "its config"
            )
        try:
            self.manifest: Mapping[str, Any] = manifest_of(self.run.tables.path("i2e"))
        except NotPublished:
            self.manifest = {}

    @cached_property
    def names(self) -> list[str]:
        """Of all tables that there are."""
        written = [t for t in self.run.tables.catalogue.tables if t in self.run.tables.catalogue.writers]
        return [*(t for t in written if self._commits(t)), *(f"rejects/{s}" for s, c in self.run.commits.items() if c)]

    def table(
        self, name: str, columns: Sequence[str] | None = None, filter: Filter = (), most: int | None = None
    ) -> pa.Table | DataFrame:
        """Rows of a table: an Arrow table or, with a session, Spark's DataFrame.

        name     as docs/data-formats.md has it: "labels", "kb/entities"; "rejects/label": what a stage rejected
        columns  None: all that the table has; `unit` may be one, the unit of work that wrote a row
        filter   row groups whose statistics rule it out are not read
        most     no more rows than that, the first that are found
        Raises OutputError.
        """
        names = self._checked(name, [*(columns or ()), *(column for column, _, _ in filter)])[: len(columns or ())]
        names = names if columns is not None else list(self._schema(name).names)
        table = "rejects" if name.startswith("rejects/") else name
        if self.spark is None:
            found = self.run.tables.where(table, self._commits(name), self._expression(name, filter), names, most=most)
            return found
        asked = list(dict.fromkeys([*names, *(column for column, _, _ in filter)]))
        rows = self.run.tables.read(table, self._commits(name), asked)
        for one in filter:
            rows = rows.where(_spark_condition(one))
        rows = rows.select(*names)
        return rows if most is None else rows.limit(most)

    def arrow(
        self, name: str, columns: Sequence[str] | None = None, filter: Filter = (), most: int | None = None
    ) -> pa.Table:
        """The same as an Arrow table, whoever read it: for what this process can hold."""
        rows = self.table(name, columns, filter, most)
        return rows if isinstance(rows, pa.Table) else _as_declared(rows.toArrow(), self._schema(name))

    def pandas(
        self, name: str, columns: Sequence[str] | None = None, filter: Filter = (), most: int | None = None
    ) -> pd.DataFrame:
        """The same as pandas' DataFrame."""
        return self.arrow(name, columns, filter, most).to_pandas()

    def count(self, name: str, by: Sequence[str], filter: Filter = ()) -> pd.DataFrame:
        """How many rows have each combination of values: the columns `by`, then `rows`, most rows first. A column of
        lists counts by their length. Holds the combinations, not the rows."""
        self._checked(name, [*by, *(column for column, _, _ in filter)])
        lists = {c for c in by if pa.types.is_list(self._schema(name).field(c).type)}
        if self.spark is None:
            found = self._counted(name, by, lists, filter)
        else:
            from pyspark.sql import functions as F

            rows = self.table(name, [*by], filter)
            counted = rows.groupBy(*(F.size(c).alias(c) if c in lists else F.col(c) for c in by))
            found = counted.agg(F.count("*").alias("rows")).toArrow()
        order = [("rows", "descending"), *((c, "ascending") for c in by)]
        return found.select([*by, "rows"]).sort_by(order).to_pandas()

    def quality(self) -> list[dict[str, Any]]:
        """Precision and recall by stage and slice, as the run measured them; none where no truth is known."""
        return quality.read(self.run.tables)

    @cached_property
    def truth(self) -> pa.Table:
        """What the input says its images show: quality.TRUTH_ROWS of the pairs of which it says anything, and `named`,
        whether the text names the truth. No rows where it says nothing, or is not there any more."""
        columns = quality.truth_columns(self.run) if self._has_input() else None
        if columns is None:
            known = quality.TRUTH_ROWS.empty_table()
        elif self.spark is None:
            known = quality.truth_here(self.run, columns)
        else:
            known = _as_declared(quality.truth(self.run, columns).toArrow(), quality.TRUTH_ROWS)
        known = known.filter(pc.is_null(known.column("unread"))).sort_by("pair_id")
        named = judged.holds(known.column("mentioned"), known.column("truth"))
        return known.append_column("named", pa.array(named, pa.bool_()))

    @cached_property
    def judged(self) -> pa.Table:
        """Every candidate that was weighed for a pair of known truth (JUDGED): `reason` is null of those that became
        labels, `right` where it is not known whether it is. By pair, the most probable first. Without what stands above
        a candidate (label.wider)."""
        pairs = pc.cast(self.truth.column("pair_id"), ID).combine_chunks()
        columns = ["pair_id", "entity_id", "mention", "probability", "reason"]
        above = [WIDER_OF] if WIDER_OF in self._schema("labels").names else []
        labels = self._of_pairs("labels", [*columns, *above], pairs)
        if above:
            labels = labels.filter(pc.is_null(labels.column(WIDER_OF))).drop_columns(above)
        ids = pc.unique(labels.column("entity_id")).to_pylist()
        known = self.arrow("kb/entities", ["entity_id", "name", "coarse_type"], [("entity_id", "in", ids)])
        at = pc.index_in(labels.column("entity_id"), known.column("entity_id").combine_chunks())
        for name in ("name", "coarse_type"):
            labels = labels.append_column(name, known.column(name).take(at))
        of_pair = pc.index_in(labels.column("pair_id"), pairs)
        told = {name: self.truth.column(name).take(of_pair) for name in ("truth", "nothing", "refuted", "wider")}
        told["wider"] = judged.bears_wider_name(labels.column("name"), told["wider"])
        labels = labels.append_column(
            "right", judged.right(pa.table({"entity_id": labels.column("entity_id"), **told}))
        )
        order = [("pair_id", "ascending"), ("probability", "descending"), ("entity_id", "ascending")]
        return labels.select(JUDGED.names).cast(JUDGED).sort_by(order)

    def images(self, unit: str, shard: int, rows: Sequence[int]) -> list[Image | None]:
        """Images of the input, published or not, as this process reads them; None where one cannot be had.

        unit, shard, rows   where they lie, as `labels` and `scores` have it
        """
        found: list[Image | None] = []
        opened = self.run.shards([unit])[shard]
        in_order = sorted(set(rows))
        with formats.images(opened) as images:
            stored = dict(zip(in_order, images.read(in_order), strict=True))
        for row in rows:
            content = stored[row]
            opened_rgb = open_rgb(content, ANY_SHAPE) if content is not None else None
            found.append(opened_rgb[0] if isinstance(opened_rgb, tuple) else None)
        return found

    # What is read

    def _stage(self, name: str) -> Stage:
        wanted = name.removeprefix("rejects/") if name.startswith("rejects/") else None
        for stage in self.run.stages:
            if stage.name == wanted or (wanted is None and name in stage.tables):
                return stage
        raise OutputError(f"{self.run.config.output} has no table {name!r}: it has {', '.join(self.names)}")

    def _commits(self, name: str) -> list[Commit]:
        """Of a stage that works unit by unit, only those of the units that were published."""
        stage, units = self._stage(name), self.manifest.get("units")
        made = sorted(self.run.commits[stage.name].items())
        return [c for unit, c in made if stage.scope != "unit" or units is None or unit in units]

    def _schema(self, name: str) -> pa.Schema:
        self._stage(name)
        table = "rejects" if name.startswith("rejects/") else name
        return self.run.tables.as_stored(table, self._commits(name)).append(pa.field("unit", pa.string()))

    def _checked(self, name: str, columns: Sequence[str]) -> list[str]:
        schema = self._schema(name)
        if missing := [c for c in columns if c not in schema.names]:
            raise OutputError(f"{name} has no column {', '.join(missing)}: it has {', '.join(schema.names)}")
        return list(columns)

    def _expression(self, name: str, filter: Filter) -> pc.Expression:
        schema = self._schema(name)
        return reduce(operator.and_, (_condition(one, schema) for one in filter), pc.scalar(True))

    def _counted(self, name: str, by: Sequence[str], lists: Iterable[str], filter: Filter) -> pa.Table:
        schema = self._schema(name)
        kinds = [pa.int32() if c in lists else schema.field(c).type for c in by]
        empty = pa.schema([*zip(by, kinds, strict=True), ("rows", pa.int64())]).empty_table()
        asked = list(dict.fromkeys([schema.names[0], *by, *(column for column, _, _ in filter)]))
        table = "rejects" if name.startswith("rejects/") else name
        wanted, parts = self._expression(name, filter), [empty]
        for commit in self._commits(name):
            for batch in self.run.tables.batches(table, [commit], [c for c in asked if c != "unit"]):
                rows = pa.Table.from_batches([batch]).append_column("unit", pa.array([commit.unit] * len(batch)))
                for column in asked:  # files that are older than a column have none
                    if column not in rows.column_names:
                        rows = rows.append_column(column, pa.nulls(len(rows), schema.field(column).type))
                rows = rows.filter(wanted)
                for column in lists:
                    lengths = pc.list_value_length(rows.column(column))
                    rows = rows.set_column(rows.schema.get_field_index(column), column, lengths)
                counted = rows.group_by(list(by)).aggregate([([], "count_all")])
                parts.append(counted.select([*by, "count_all"]).rename_columns([*by, "rows"]).cast(empty.schema))
        whole = pa.concat_tables(parts).group_by(list(by)).aggregate([("rows", "sum")])
        return whole.select([*by, "rows_sum"]).rename_columns([*by, "rows"])

    def _of_pairs(self, name: str, columns: Sequence[str], pairs: pa.Array) -> pa.Table:
        """Rows of these pairs. With Spark they are picked by a join: a filter that names each pair would be long."""
        if self.spark is None:
            rows = self.arrow(name, columns)
            return rows.filter(pc.is_in(rows.column("pair_id"), pairs))
        wanted = self.spark.createDataFrame(pa.table({"pair_id": pairs.cast(pa.binary())}))
        rows = self.table(name, columns).join(wanted, on="pair_id", how="left_semi").select(*columns)
        return _as_declared(rows.toArrow(), self._schema(name))

    def _has_input(self) -> bool:
        from i2e_pipeline.core import files

        paths = [file.path for unit in self.run.units for file in unit.files]
        return bool(paths) and all(size is not None for size in files.sizes(paths).values())


def _condition(one: tuple[str, str, Any], schema: pa.Schema) -> pc.Expression:
    column, name, value = one
    field, kind = pc.field(column), schema.field(column).type
    if name == "in":
        return field.isin(pa.array(list(value), kind))
    if value is None and name in ("=", "!="):
        return field.is_null() if name == "=" else field.is_valid()
    return _compared(one)(field, pa.scalar(value, kind))


def _spark_condition(one: tuple[str, str, Any]) -> Any:
    from pyspark.sql import functions as F

    def literal(value: Any) -> Any:
        return F.lit(bytearray(value) if isinstance(value, bytes) else value)

    column, name, value = one
    if name == "in":
        return F.col(column).isin([literal(v) for v in value]) if len(value) else F.lit(False)
    if value is None and name in ("=", "!="):
        return F.col(column).isNull() if name == "=" else F.col(column).isNotNull()
    return _compared(one)(F.col(column), literal(value))


def _compared(one: tuple[str, str, Any]) -> Any:
    column, name, value = one
    if name not in _COMPARED or value is None:
        raise OutputError(
            f"filter ({column!r}, {name!r}, {value!r}): operators are {' '.join(_COMPARED)} in, and None goes with = "
            "and != alone"
        )
    return _COMPARED[name]


def _as_declared(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """What Spark brings, with the types that the files have."""
    fields = [schema.field(name) for name in rows.column_names]
    return pa.table({f.name: rows.column(f.name).cast(f.type) for f in fields}, schema=pa.schema(fields))
