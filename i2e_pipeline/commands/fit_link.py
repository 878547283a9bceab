"""`i2e fit-link`: fit how much each kind of evidence counts in linking, on gold links."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from i2e_pipeline.commands.gold import Gold, followed, gold_lines, in_cleaned
from i2e_pipeline.commands.link import as_unit
from i2e_pipeline.core import files
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.engine.stage import Run
from i2e_pipeline.engine.units import InputError
from i2e_pipeline.link.candidates import with_candidates
from i2e_pipeline.link.context import Context
from i2e_pipeline.link.disambiguate import Flat, Weights, features, probabilities
from i2e_pipeline.link.fit import fit
from i2e_pipeline.link.stages import Link, context_folder

log = logging.getLogger(__name__)


def fit_link(pipeline: Pipeline, gold: str, test: str | None, write: str) -> dict[str, Any]:
    """Fit weights on a file of gold links, write them, and measure them against those in use; returns the figures.

    gold    lines {id, text, mentions: [{start, end, qid}]}, qid "Q42" or null for "none of these". Links from which
            the priors were counted (knowledge_base.anchors) must not be among them: there the priors know the answer.
            Merged items count as their targets
    test    lines of the same form to measure on; None: `gold` itself
    Raises InputError for lines that are not as said, or where no gold mention is found by the recognizer.
    """
    mentions, chosen, flat = _examples(pipeline, gold)
    weights, nil_weight = fit(flat, mentions, chosen)
    figures: dict[str, Any] = {"fitted_on": {"file": gold.rpartition("/")[2], "mentions": mentions}}
    measured = (mentions, chosen, flat) if test is None else _examples(pipeline, test)
    settings = pipeline.config.link
    before = Weights.load(settings.weights)
    figures["measured_on"] = {"file": (test or gold).rpartition("/")[2], "mentions": measured[0]}
    figures["right_before"] = _right(*measured, probabilities(measured[2], measured[0], settings, before))
    fitted = settings.model_copy(update={"nil_weight": nil_weight})
    figures["right_fitted"] = _right(*measured, probabilities(measured[2], measured[0], fitted, weights))
    found = {"weights": {k: round(v, 4) for k, v in asdict(weights).items()}, "nil_weight": round(nil_weight, 5)}
    files.write_bytes(write, (json.dumps({**found, "figures": figures}, indent=1) + "\n").encode())
    log.info("weights written to %s: set link.weights to it, and link.nil_weight to %s", write, found["nil_weight"])
    return {**found, **figures}


def _right(mentions: int, chosen: npt.NDArray[np.int64], flat: Flat, probability: npt.NDArray[np.float64]) -> float:
    """Share of mentions whose most probable choice, "none of these" among them, is the gold one."""
    order = np.lexsort((flat.entity, -probability, flat.mention))
    firsts = np.unique(flat.mention[order], return_index=True)
    best = np.full(mentions, -1)
    best[firsts[0]] = order[firsts[1]]
    none = 1 - np.bincount(flat.mention, probability, mentions)
    top = np.where(best >= 0, probability[best] if len(probability) else 0.0, 0.0)
    best[none > top] = -1
    return round(float((best == chosen).mean()), 4)


def _examples(pipeline: Pipeline, path: str) -> tuple[int, npt.NDArray[np.int64], Flat]:
    """Number of gold mentions that were found, for each the place of its entity in `Flat` or -1, and `Flat`."""
    lines = list(gold_lines(path))
    gold = in_cleaned(lines, pipeline.config.extract.max_characters)
    with as_unit(pipeline, [{"id": n, "text": row["text"]} for n, row in enumerate(lines)], "mentions") as (run, unit):
        return _flat(pipeline, run, unit, followed(gold, run))


def _flat(pipeline: Pipeline, run: Run, unit: str, gold: Gold) -> tuple[int, npt.NDArray[np.int64], Flat]:
    link = next(s for s in pipeline.stages if isinstance(s, Link))
    link.prepare(run)
    surfaces = run.read("kb/surfaces", columns=["normal_form", "candidates"])
    rows = with_candidates(run.read("mentions", unit), run.read("texts", unit, ["text_id", "text"]), surfaces).toArrow()
    lines: dict[bytes, list[int]] = {}
    for pair in run.read("pairs", unit, ["text_id", "key"]).toArrow().to_pylist():
        lines.setdefault(pair["text_id"], []).append(int(pair["key"]))
    table = rows.sort_by("text_id").combine_chunks()
    lists = table.column("mentions").combine_chunks()
    mentions = lists.flatten()
    parents = np.repeat(np.arange(len(lists)), np.diff(lists.offsets.to_numpy()))
    context = Context(context_folder(run))
    flat = features(table.column("text").combine_chunks(), mentions, parents, context)
    ids = table.column("text_id").to_pylist()
    starts, ends = mentions.field("start").to_pylist(), mentions.field("end").to_pylist()
    wanted: dict[int, int | None] = {}
    for number, (parent, start, end) in enumerate(zip(parents.tolist(), starts, ends, strict=True)):
        for line in lines.get(ids[parent], []):
            if (line, start, end) in gold:
                wanted[number] = gold[line, start, end]
    if not wanted:
        raise InputError("no gold mention is found in the texts: do recognizer, gazetteer, knowledge base fit them?")
    return _only(flat, wanted)


def _only(flat: Flat, wanted: dict[int, int | None]) -> tuple[int, npt.NDArray[np.int64], Flat]:
    """The candidates of the wanted mentions, with new numbers, and the place of each mention's entity among them."""
    numbers = np.array(sorted(wanted))
    keep = np.isin(flat.mention, numbers)
    mention = np.searchsorted(numbers, flat.mention[keep])
    renumbered = Flat(mention, flat.entity[keep], flat.prior[keep], flat.features[keep])
    chosen = np.full(len(numbers), -1)
    for at, (mention, entity) in enumerate(zip(renumbered.mention.tolist(), renumbered.entity.tolist(), strict=True)):
        if wanted[int(numbers[mention])] == entity:
            chosen[mention] = at
    return len(numbers), chosen, renumbered
