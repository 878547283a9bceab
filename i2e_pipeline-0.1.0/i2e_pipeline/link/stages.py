"""Link: which entities can each mention mean, and how likely?

Reads    mentions · texts · kb/surfaces · kb/entities
Writes   candidates (text_id, start, end, entity_id, prior, probability, rank)
Rejects  no_candidate · below_floor
"""

from __future__ import annotations

import os
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core.schemas import CANDIDATES, Reason
from i2e_pipeline.engine.catalogue import Passed, Table
from i2e_pipeline.engine.stage import Plan, Run, Stage
from i2e_pipeline.engine.tables import Kernel
from i2e_pipeline.link import context
from i2e_pipeline.link.candidates import with_candidates
from i2e_pipeline.link.disambiguate import Weights, disambiguate


class Link(Stage):
    name, job, does, rows_are = "link", "link_entities", "ask which entities each name can mean", "mentions"
    after = ("surfaces", "extract")
    reads = ("mentions", "texts", "kb/surfaces", "kb/entities")
    tables = {
        "candidates": Table(
            CANDIDATES,
            key=("text_id", "start", "end", "entity_id"),
            holds="what each mention may mean; what its probabilities lack to 1 is none of these",
            narrowable=True,
        )
    }
    passes = Passed("candidates", ("text_id", "start", "end"))
    reasons = {
        Reason.NO_CANDIDATE: "The name is in no entity's list of names, in any of the languages that are read.",
        Reason.BELOW_FLOOR: "The name is known, but no entity is a likely enough reading of it here.",
    }
    sections = ("link",)

    def check(self, run: Run) -> None:
        Weights.load(run.config.link.weights)

    def prepare(self, run: Run) -> None:
        """Lay out the entities' context, once per knowledge base."""
        if not os.path.exists(os.path.join(context_folder(run), "context.json")):
            # kb/entities is written in the order of entity_id, part after part.
            entities = run.tables.batches(
                "kb/entities", run.commits_of("kb/entities"), ["entity_id", "description", "is_human", "visual"]
            )
            context.build(entities, context_folder(run))

    def rows_to_do(self, run: Run, unit: str) -> int:
        return run.rows("mentions", unit)

    def plan(self, run: Run, unit: str) -> Plan:
        mentions = run.read("mentions", unit)
        texts = run.read("texts", unit, ["text_id", "text"])
        surfaces = run.read("kb/surfaces", columns=["normal_form", "candidates"])
        known = run.ship(context_folder(run))
        settings, weights = run.config.link, Weights.load(run.config.link.weights)

        def make_kernel() -> Kernel:
            return partial(disambiguate, context=context.Context(known.local()), settings=settings, weights=weights)

        rows = with_candidates(mentions, texts, surfaces)
        return Plan(rows, make_kernel, rows_expected=self.rows_to_do(run, unit), rows_of=_mentions)


def context_folder(run: Run) -> str:
    name = f"{run.fingerprints[run.writer('kb/entities').name][:16]}-format{context.FORMAT}"
    return run.tables.local_path("kb", "context", name)


def _mentions(batch: pa.RecordBatch) -> int:
    return int(pc.sum(pc.list_value_length(batch.column("mentions"))).as_py() or 0)
