"""Link: which entities can each mention mean, and how likely?

Reads    mentions · texts · kb/surfaces · kb/entities
Writes   candidates (text_id, start, end, entity_id, prior, probability, rank)
Rejects  no_candidate · below_floor
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core.config import Config
from i2e_pipeline.engine.shipping import ship
from i2e_pipeline.engine.stage import Plan, Run, Stage
from i2e_pipeline.engine.tables import Counting, Kernel
from i2e_pipeline.link import context
from i2e_pipeline.link.candidates import with_candidates
from i2e_pipeline.link.disambiguate import disambiguate


class Link(Stage):
    name, job, does, rows_are = "link", "link_entities", "link mentions to entities", "mentions"
    after = ("surfaces", "extract")
    writes = ("candidates",)

    def settings(self, config: Config) -> dict[str, Any]:
        return config.link.fingerprint_of()

    def prepare(self, run: Run) -> None:
        """Lay out the entities' context, once per knowledge base."""
        if not os.path.exists(os.path.join(context_folder(run), "context.json")):
            # kb/entities is written in the order of entity_id, part after part.
            entities = run.tables.batches(
                "kb/entities", run.committed("knowledge_base"), ["entity_id", "description", "is_human", "visual"]
            )
            context.build(entities, context_folder(run))

    def rows_to_do(self, run: Run, unit: str) -> int:
        return sum(c.rows("mentions") for c in run.committed("extract", unit))

    def plan(self, run: Run, unit: str) -> Plan:
        mentions = run.tables.read("mentions", run.committed("extract", unit))
        texts = run.tables.read("texts", run.committed("pairs", unit), ["text_id", "text"])
        surfaces = run.tables.read("kb/surfaces", run.committed("surfaces"), ["normal_form", "candidates"])
        known = ship(run.spark, context_folder(run))
        settings = run.config.link

        def make_kernel() -> Kernel:
            return partial(disambiguate, context=context.Context(known.local()), settings=settings)

        counting = Counting(rows_of=_mentions, passed_table="candidates", passed_key=("text_id", "start", "end"))
        rows = with_candidates(mentions, texts, surfaces)
        return Plan(rows, make_kernel, ("candidates",), counting, rows_expected=self.rows_to_do(run, unit))


def context_folder(run: Run) -> str:
    name = f"{run.fingerprints['knowledge_base'][:16]}-format{context.FORMAT}"
    return run.tables.local_path("kb", "context", name)


def _mentions(batch: pa.RecordBatch) -> int:
    return int(pc.sum(pc.list_value_length(batch.column("mentions"))).as_py() or 0)
