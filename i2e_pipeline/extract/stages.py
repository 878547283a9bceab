"""Extract: from input rows to distinct texts, and from texts to mentions.

pairs    Reads   the input shards' key, url and text columns   Writes  pairs · texts   Rejects  null_text · empty_text ·
                                                                                                no_letters
extract  Reads   texts · kb/surfaces                           Writes  mentions        Rejects  no_mention

A unit's tables are self-contained: each distinct text of a unit is worked on once, and no stage looks at another
unit's texts to spare work. That would cost a scan of up to 10^10 text ids per unit. What it could save is very little
beside the scoring of images (docs/architecture.md).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core import files
from i2e_pipeline.core.config import Config
from i2e_pipeline.core.ids import row_ids, rows_in_share
from i2e_pipeline.core.rejects import reject
from i2e_pipeline.core.schemas import MENTIONS, PAIRS, TEXTS, Reason
from i2e_pipeline.engine.catalogue import Passed, Table
from i2e_pipeline.engine.dealing import by_unit
from i2e_pipeline.engine.stage import Made, Plan, Run, Stage
from i2e_pipeline.engine.tables import Counting, Failed, Kernel, Written, notes, pass_on
from i2e_pipeline.engine.units import ALL_ROWS
from i2e_pipeline.extract import gazetteer, recognizer
from i2e_pipeline.extract.mentions import find_mentions
from i2e_pipeline.extract.text import read_texts
from i2e_pipeline.inputs import formats
from i2e_pipeline.inputs.columns import or_null
from i2e_pipeline.inputs.shard import Shard, of_row, shard_of
from i2e_pipeline.inputs.where import columns as looked_at
from i2e_pipeline.inputs.where import mask

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_INPUT_ROWS_PER_TASK = 200_000
_TEXTS_PER_TASK = 20_000

_PURGED = {
    Reason.EXCLUDED_URL: "Its address is on a list of what is left out, and it was purged: no id and no place is left.",
    Reason.EXCLUDED_DOMAIN: "Its domain is on a list of what is left out, and it was purged.",
    Reason.EXCLUDED_IMAGE: "Its image is on a list of what is left out, and it was purged.",
    Reason.EXCLUDED_HASH: "Its image looks like one on a list of what is left out, and it was purged.",
}
"""Counted here once `i2e clean --purge` has taken them out of all tables."""


class Pairs(Stage):
    name, job, does, rows_are = "pairs", "extract_entities", "read the input, clean the alt-texts", "pairs"
    tables = {
        "pairs": Table(
            PAIRS, key=("pair_id",), holds="where a pair lies (shard, row) and which text it has", narrowable=True
        ),
        "texts": Table(
            TEXTS,
            key=("text_id",),
            holds="each distinct cleaned text, its script, and how many pairs of the unit have it",
            narrowable=True,
        ),
    }
    passes = Passed("pairs", ("pair_id",))
    reasons = {
        Reason.FILTERED_OUT: "The settings say that rows like it are not taken (pairs.where).",
        Reason.NULL_TEXT: "The row has no alt-text at all, so nothing proposes an entity.",
        Reason.EMPTY_TEXT: (
            "Nothing is left of the alt-text once markup, white space and control characters are gone."
        ),
        Reason.NO_LETTERS: "The alt-text has no letter in any script: only digits, prices or punctuation.",
        **_PURGED,
    }
    asked_for = (Reason.FILTERED_OUT, *_PURGED)
    sections = ("pairs", "extract")
    leaves_out = {
        "pairs.path": "units are named by the content of their files",
        "pairs.files_per_unit": "units are named by the content of their files",
        "pairs.allow_partial": "units are named by the content of their files",
        "pairs.sample": "units are named by the share of their files' rows",
        "pairs.image_column": "stages that see images read it",
        "pairs.keep_columns": "what is published reads them",
        "pairs.truth_column": "it is for precision and recall alone",
        "pairs.mentioned_column": "it is for precision and recall alone",
        "pairs.wider_column": "it is for precision and recall alone",
        "pairs.slice_columns": "they are for precision and recall alone",
        **{
            f"extract.{key}": "the stage `extract` applies it"
            for key in (
                "recognizer",
                "gazetteer",
                "profile",
                "batch_size",
                "min_link_probability",
                "max_mentions",
            )
        },
    }

    def carry_out(self, run: Run, units: Sequence[str]) -> Generator[Sequence[Made | Failed], None, None]:
        tables, config = run.tables, run.config
        expected: dict[str, int | None] = {unit: run.unit(unit).rows for unit in units}
        pairs = config.pairs
        columns = pairs.key_column, pairs.url_column, pairs.text_column
        group_column = pairs.group_column
        settings, where = shard_of("", "parquet", None, config.pairs), config.pairs.where
        max_characters = config.extract.max_characters

        def make_kernel() -> Kernel:
            def kernel(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, pa.RecordBatch]]:
                mended: Counter[str] = Counter()
                read = read_shards(batches, settings, *columns, where=where, mended=mended, group_column=group_column)
                gone: list[pa.RecordBatch] = []
                yield from read_texts(_taken(read, gone), max_characters)
                for batch in gone:
                    yield "rejects", batch
                yield from notes(mended)

            return kernel

        with tables.staging(self.name) as first, tables.staging(self.name) as second:
            counting = Counting(_rows_of_files, self.passes)
            rows = _files_of(run, units)
            read: dict[str, Written] = {}
            jobs = tables.write_units(rows, make_kernel, self.name, expected, ("pairs", "texts"), first, counting)
            with closing(jobs):
                for group in jobs:
                    read |= {one[0]: one[1] for one in group if not isinstance(one, Failed)}
                    if failed := [one for one in group if isinstance(one, Failed)]:
                        yield failed
            # Each distinct text says of how many pairs it is, so that these must add up to what was passed on.
            passed: dict[str, int | None] = {unit: made.rows_out for unit, made in read.items()}
            jobs = tables.write_units(
                _distinct(run, read),
                lambda: partial(pass_on, "texts"),
                self.name,
                passed,
                ("texts",),
                second,
                Counting(_pairs_of_texts),
            )
            with closing(jobs):
                for group in jobs:
                    yield self.conclude_units(
                        run,
                        [one if isinstance(one, Failed) else (one[0], one[1].only("texts")) for one in group],
                        expected,
                        beside=lambda unit: [read[unit].only("pairs", "rejects")],
                    )


def _files_of(run: Run, units: Sequence[str]) -> DataFrame:
    """The units' input files, dealt to tasks by their rows."""
    of_units = [(unit, f) for unit in units for f in run.unit(unit).files]
    columns = {
        "unit": pa.array([unit for unit, _ in of_units], pa.string()),
        "shard": pa.array([f.shard for _, f in of_units], pa.int32()),
        **run.shard_columns(f for _, f in of_units),
        "digest": pa.array([bytes.fromhex(f.digest) for _, f in of_units], pa.binary()),
        "rows": pa.array([f.taken for _, f in of_units], pa.int64()),
        "share_from": pa.array([run.unit(unit).share[0] for unit, _ in of_units], pa.float64()),
        "share_to": pa.array([run.unit(unit).share[1] for unit, _ in of_units], pa.float64()),
    }
    sizes = {unit: run.unit(unit).rows for unit in units}
    return by_unit(run.spark, sizes, _INPUT_ROWS_PER_TASK).by_hash(
        run.spark.createDataFrame(pa.table(columns)), ["shard"]
    )


def _distinct(run: Run, read: Mapping[str, Written]) -> DataFrame:
    """Each text of a unit once, from what the tasks that read it found."""
    from pyspark.sql import functions as F

    names = ["text_id", "text", "script", "pairs", "group_id", "unit"]
    staged = {w.staging for w in read.values()}
    paths = [f.path for w in read.values() for f in w.files["texts"] if f.rows]
    root = files.join(staged.pop(), "texts") if staged else ""
    texts = run.tables.read_files("texts", root, paths, names)
    distinct = texts.groupBy("unit", "text_id").agg(
        F.first("text").alias("text"),
        F.first("script").alias("script"),
        F.sum("pairs").alias("pairs"),
        F.first("group_id").alias("group_id"),
    )
    sizes = {unit: sum(f.rows for f in w.files["texts"]) for unit, w in read.items()}
    return by_unit(run.spark, sizes, _INPUT_ROWS_PER_TASK).by_hash(distinct, ["text_id"])


def _pairs_of_texts(batch: pa.RecordBatch) -> int:
    return int(pc.sum(batch.column("pairs")).as_py() or 0)


def _rows_of_files(batch: pa.RecordBatch) -> int:
    return int(pc.sum(batch.column("rows")).as_py() or 0)


def read_shards(
    batches: Iterator[pa.RecordBatch],
    settings: Shard,
    key_column: str | None,
    url_column: str | None,
    text_column: str,
    mended: Counter[str],
    where: str | None = None,
    group_column: str | None = None,
) -> Iterator[pa.RecordBatch]:
    """Every row of the files that is in their share, without its image.

    batches   shard: int32, SHARD_COLUMNS, digest: binary, share_from, share_to: float64
    mended    gets how many values of each column were no UTF-8
    where     an expression over the input's columns (inputs/where.py)
    yields    shard: int32, row: int64, pair_id: binary(16), key, url, caption, group: string or null, key, url and
              group never empty; where there is a `where`
              also taken: bool
    """
    import numpy as np

    for batch in batches:
        for file in batch.to_pylist():
            roles = {"key": key_column, "url": url_column, "caption": text_column, "group": group_column}
            names = list(dict.fromkeys([*(c for c in roles.values() if c), *(looked_at(where) if where else [])]))
            shard, share = of_row(file, settings), (file["share_from"], file["share_to"])
            for start, columns in formats.columns(shard, names):
                rows = np.arange(start, start + columns.num_rows)
                if share != ALL_ROWS:
                    taken = rows_in_share(file["digest"], rows, share)
                    rows, columns = rows[taken], columns.filter(pa.array(taken))
                taken_by = {"taken": mask(where, columns)} if where else {}
                columns, wrong = formats.texts(
                    shard, columns.select(list(dict.fromkeys(c for c in roles.values() if c)))
                )
                mended.update({f"{name} is no UTF-8, mended": count for name, count in wrong.items()})
                none = pa.nulls(len(rows), pa.string())
                read = {role: columns.column(column) if column else none for role, column in roles.items()}
                read |= {role: or_null(read[role]) for role in ("key", "url", "group")}
                yield pa.RecordBatch.from_pydict(
                    {
                        "shard": pa.array(np.full(len(rows), file["shard"], dtype=np.int32)),
                        "row": pa.array(rows),
                        "pair_id": row_ids(file["digest"], rows),
                        **read,
                        **taken_by,
                    }
                )


def _taken(batches: Iterator[pa.RecordBatch], gone: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The rows that are taken; the others go to `gone`, as rejects."""
    for batch in batches:
        if "taken" not in batch.schema.names:
            yield batch
            continue
        taken = batch.column("taken")
        if not pc.all(taken).as_py():
            gone.append(reject(batch, pc.invert(taken), str(Reason.FILTERED_OUT), key="pair_id"))
        yield batch.filter(taken).drop_columns(["taken"])


class Extract(Stage):
    name, job, does, rows_are = "extract", "extract_entities", "find what the texts name", "texts"
    version = 5
    after = ("surfaces", "pairs")
    reads = ("texts", "kb/surfaces")
    tables = {
        "mentions": Table(
            MENTIONS,
            key=("text_id", "start", "end"),
            holds="spans that may name an entity, and who found them: ner, gazetteer or both",
            narrowable=True,
        )
    }
    passes = Passed("mentions", ("text_id",))
    same_by = "texts"
    lays_out_in = ("kb/gazetteer",)
    reasons = {Reason.NO_MENTION: "Neither the recogniser nor the gazetteer finds a name in the text."}
    sections = ("extract",)
    leaves_out = {
        "extract.max_characters": "the stage `pairs` cuts the texts",
        "extract.batch_size": "a text's mentions do not depend on its neighbours",
    }

    def settings(self, config: Config) -> dict[str, Any]:
        return {**super().settings(config), "recognizer": recognizer.fingerprint(config.extract.recognizer)}

    def check(self, run: Run) -> None:
        # It is loaded before the dump has taken hours; what it has made before needs no further look.
        model = run.config.extract.recognizer
        made = {c.components["settings"].get("recognizer") for c in run.tables.commits(self.name).values()}
        if recognizer.fingerprint(model) not in made:
            recognizer.check(model)

    def prepare(self, run: Run) -> None:
        """Compile the gazetteer, once per knowledge base and gate."""
        folder = self._gazetteer(run)
        if not run.config.extract.gazetteer or os.path.exists(folder):
            return
        columns = ["normal_form", "candidates", "forms", "link_probability", "gazetteer"]
        with run.laying_out(folder):
            if not os.path.exists(folder):
                surfaces = run.tables.batches("kb/surfaces", run.commits_of("kb/surfaces"), columns)
                gazetteer.build(surfaces, folder, run.config.extract.min_link_probability)

    def lays_out(self, run: Run) -> Mapping[str, str]:
        return {"kb/gazetteer": self._name(run)}

    def _name(self, run: Run) -> str:
        gate = f"{run.config.extract.min_link_probability:g}"
        return f"{run.fingerprints[run.writer('kb/surfaces').name][:16]}-{gate}-format{gazetteer.FORMAT}"

    def _gazetteer(self, run: Run) -> str:
        return run.tables.local_path("kb", "gazetteer", self._name(run), of="kb/surfaces")

    def rows_to_do(self, run: Run, units: Sequence[str]) -> Mapping[str, int]:
        return run.rows_by_unit("texts", units)

    def plan(self, run: Run, units: Sequence[str]) -> Plan:
        config = run.config.extract
        expected = run.rows_by_unit("texts", units)
        texts = run.read("texts", units, ["text_id", "text"])
        model = None
        if config.recognizer != recognizer.BLANK:
            model = run.ship(str(recognizer.model_folder(config.recognizer)))
        names = run.ship(self._gazetteer(run)) if config.gazetteer else None

        def make_kernel() -> Kernel:
            return partial(
                find_mentions,
                recognizer=recognizer.load(model.local() if model else recognizer.BLANK, config.batch_size),
                gazetteer=gazetteer.Gazetteer(names.local()) if names else None,
                max_mentions=config.max_mentions,
                profile=config.profile,
            )

        rows = run.in_unit_order(texts, expected, ["text_id"], _TEXTS_PER_TASK)
        return Plan(rows, make_kernel, rows_expected=expected)
