"""Link: which entities can each mention mean, and how likely?

Reads    mentions · texts · kb/surfaces · kb/entities
Writes   candidates (text_id, start, end, entity_id, prior, probability, rank) · with `label.wider`, wider
Rejects  no_candidate · below_floor
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core.config import Config, LabelConfig, PairsConfig
from i2e_pipeline.core.schemas import CANDIDATES, WIDER, Reason
from i2e_pipeline.engine.catalogue import Passed, Table
from i2e_pipeline.engine.stage import Plan, Run, Stage
from i2e_pipeline.engine.tables import Kernel
from i2e_pipeline.link import context, wider
from i2e_pipeline.link.candidates import with_candidates
from i2e_pipeline.link.disambiguate import Weights, disambiguate

_MENTIONS_PER_TASK = 50_000


class Link(Stage):
    name, job, does, rows_are = "link", "link_entities", "ask which entities each name can mean", "mentions"
    after = ("surfaces", "extract")
    version = 3
    reads = ("mentions", "texts", "kb/surfaces", "kb/entities")
    tables = {
        "candidates": Table(
            CANDIDATES,
            key=("text_id", "start", "end", "entity_id"),
            holds="what each mention may mean; what its probabilities lack to 1 is none of these",
            narrowable=True,
        ),
        "wider": Table(
            WIDER,
            key=("text_id", "start", "end", "entity_id", "wider_of"),
            holds="with `label.wider`: what stands above a candidate (`wider_of`) by P279, P171 or P31, so many "
            "`steps`, and is no candidate of the text itself",
        ),
    }
    passes = Passed("candidates", ("text_id", "start", "end"))
    lays_out_in = ("kb/context", "kb/above")
    reasons = {
        Reason.NO_CANDIDATE: "The name is in no entity's list of names, in any of the languages that are read.",
        Reason.BELOW_FLOOR: "The name is known, but no entity is a likely enough reading of it here.",
    }
    sections = ("link", "pairs", "label")
    leaves_out = {
        "link.reranker": "the stage `rerank` reads it",
        **{f"pairs.{key}": "other stages read it" for key in PairsConfig.model_fields if key != "group_column"},
        **{f"label.{key}": "the stage `label` reads it" for key in LabelConfig.model_fields if key != "wider"},
    }

    def weighs(self, config: Config) -> dict[str, Any]:
        return {**asdict(Weights()), **(wider.WEIGHS if config.label.wider else {})}

    def check(self, run: Run) -> None:
        Weights.load(run.config.link.weights)

    def prepare(self, run: Run) -> None:
        """Lay out the entities' context, and what stands above them, once per knowledge base."""
        # kb/entities is written in the order of entity_id, part after part.
        read = partial(run.tables.batches, "kb/entities", run.commits_of("kb/entities"))
        wanted = [("context.json", context_folder(run), context)]
        wanted += [("above.json", _above_folder(run), wider)] if run.config.label.wider else []
        for name, folder, layout in wanted:
            whole = os.path.join(folder, name)
            if not os.path.exists(whole):
                with run.laying_out(folder):
                    if not os.path.exists(whole):
                        layout.build(read([*layout.COLUMNS]), folder)

    def lays_out(self, run: Run) -> Mapping[str, str]:
        return {"kb/context": _name(run, context.FORMAT), "kb/above": _name(run, wider.FORMAT)}

    def rows_to_do(self, run: Run, units: Sequence[str]) -> Mapping[str, int]:
        return run.rows_by_unit("mentions", units)

    def plan(self, run: Run, units: Sequence[str]) -> Plan:
        mentions = run.read("mentions", units)
        grouped = run.config.pairs.group_column is not None
        texts = run.read("texts", units, ["text_id", "text", *(["group_id"] if grouped else [])])
        surfaces = run.read("kb/surfaces", columns=["normal_form", "candidates"])
        known = run.ship(context_folder(run))
        settings, weights = run.config.link, Weights.load(run.config.link.weights)
        above = run.ship(_above_folder(run)) if run.config.label.wider else None

        def make_kernel() -> Kernel:
            kernel = partial(disambiguate, context=context.Context(known.local()), settings=settings, weights=weights)
            return kernel if above is None else wider.with_wider(kernel, wider.Above(above.local()))

        expected = run.rows_by_unit("mentions", units)
        linked = with_candidates(mentions, texts, surfaces, grouped)
        rows = run.in_unit_order(linked, expected, ["text_id"], _MENTIONS_PER_TASK)
        return Plan(rows, make_kernel, rows_expected=expected, rows_of=_mentions)


def context_folder(run: Run) -> str:
    return run.tables.local_path("kb", "context", _name(run, context.FORMAT), of="kb/entities")


def _above_folder(run: Run) -> str:
    return run.tables.local_path("kb", "above", _name(run, wider.FORMAT), of="kb/entities")


def _name(run: Run, layout: int) -> str:
    return f"{run.fingerprints[run.writer('kb/entities').name][:16]}-format{layout}"


def _mentions(batch: pa.RecordBatch) -> int:
    return int(pc.sum(pc.list_value_length(batch.column("mentions"))).as_py() or 0)
