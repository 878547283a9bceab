"""OVEN's scores: predictions of Wikidata ids against the authors' annotations (Hu et al., ICCV 2023, arXiv 2302.11154).

Reads    predictions: {"data_id", "pred_entity_id"} a line · annotations as released (oven_entity_val.jsonl,
         oven_query_val.jsonl): {"data_id", "image_id", "question", "entity_id", "entity_text", "data_split"} a line
Writes   the figures under the names of the authors' scorer (edchengg/oven_eval), in per cent

The rules are those of the authors' scorer: of each set (entity, query) and each side (seen, unseen: what `data_split`
says) the per cent of right predictions, rounded to two places; a set's score is the harmonic mean of its two sides, a 0
taken as 1e-12; the final score is the harmonic mean of the two sets' scores as they are before rounding, and all scores
are rounded to two places. One rule differs: an example without a prediction is wrong here, where the authors' scorer
counts only what was predicted, so that a model gains by leaving out what is hard.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from i2e_pipeline.core import files
from i2e_pipeline.core.config import digest
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.inputs.tables import json_lines

FORMAT_VERSION = 1
SETS = ("entity", "query")
"""Whose scores make the final one."""
SIDES = ("seen", "unseen")
ZERO = 1e-12
"""What stands for an accuracy of 0 in a harmonic mean."""
_SET = re.compile(r"(?<![a-z])(entity|query|human)(?![a-z])")
_QID = re.compile(r"Q[0-9]+")
PLACES = ("", "oven", "oven_data")
"""Folders of annotations, below that of the data set."""
_SPLITS = (
    ("oven_entity_val.jsonl", "oven_query_val.jsonl"),
    ("oven_human.jsonl",),
    ("oven_entity_test.jsonl", "oven_query_test.jsonl"),
)


class OvenError(I2EError, ValueError):
    """Annotations or predictions that cannot be scored; the message names the file, the line and the way out."""


@dataclass
class Truth:
    """The examples of one set, in the order of their lines."""

    name: str
    """entity, query, human; "all" where nothing says which."""
    entities: dict[str, str] = field(default_factory=dict)
    """Q-id by data_id."""
    sides: list[str] = field(default_factory=list)
    """seen, unseen or "" (a data_split that says neither), by example."""
    splits: dict[str, str] = field(default_factory=dict)
    """By side the data_split that it was called by."""

    def __len__(self) -> int:
        return len(self.entities)


def files_in(folder: str) -> list[str]:
    """The files that a folder stands for, packed (.gz) or not: those of its first split (val, human, test), in it or in
    oven/ or oven_data/; none where there are none."""
    for names in _SPLITS:
        for place in PLACES:
            either = [[files.join(folder, place, name + end) for end in ("", ".gz")] for name in names]
            there = [next((path for path in paths if files.info(path)), None) for paths in either]
            if found := [path for path in there if path is not None]:
                return found
    return []


def harmonic_mean(first: float, second: float) -> float:
    """Of two figures in per cent, a 0 taken as 1e-12."""
    return 2 / (1 / (first or ZERO) + 1 / (second or ZERO))


def per_cent(right: int, of: int) -> float:
    """Rounded to two places."""
    return round(right / of * 100, 2)


def side_of(data_split: str) -> str:
    """seen or unseen, as the authors' scorer reads a data_split; "" where it says neither."""
    return next((side for side in SIDES if f"_{side}" in data_split), "")


def set_of(data_id: str, *others: str) -> str | None:
    """Which set an example is of: as its data_id says (oven_query_val_00000048), else the first of the others that
    does (data_split, the file's name); None where none does."""
    for text in (data_id, *others):
        if found := _SET.search(text.lower().replace("_", " ")):
            return found[1]
    return None


def read_truth(paths: Sequence[str]) -> dict[str, Truth]:
    """The examples of annotation files, by set. Raises OvenError, or ShardError for a line that is no JSON object."""
    sets: dict[str, Truth] = {}
    for path in paths:
        rows = 0
        for number, row in _rows(path, "an annotation file of OVEN"):
            rows += 1
            where = f"{path}, line {number}"
            data_id, entity = text_of(row, "data_id", where), row.get("entity_id")
            data_split = str(row.get("data_split", ""))
            if entity and not isinstance(entity, str):
                raise OvenError(f'{where}: entity_id {entity!r}: a Wikidata id is wanted, as "Q31"')
            if not entity:
                raise OvenError(
                    f"{where}: {data_id} has no entity_id, so it cannot be scored: name annotations with answers (the "
                    "authors keep those of the test split to themselves; val and human have them)"
                )
            name = set_of(data_id, data_split, path.rpartition("/")[2]) or "all"
            truth = sets.setdefault(name, Truth(name))
            if data_id in truth.entities:
                raise OvenError(f"{where}: {data_id} stands twice in the ground truth: leave one of them out")
            side = side_of(data_split)
            other = truth.splits.setdefault(side, data_split)
            if side and other != data_split:
                raise OvenError(
                    f"{where}: data_split {data_split!r}, and {other!r} before: name the annotations of one split at a "
                    "time"
                )
            truth.entities[data_id] = entity
            truth.sides.append(side)
        if not rows:
            raise OvenError(f"{path} is empty; wanted is an annotation file of OVEN, a JSON object a line")
    for truth in sets.values():
        if not any(truth.sides):
            raise OvenError(
                f"{', '.join(paths)}: no data_split of the {truth.name} set says _seen or _unseen (the first is "
                f"{next(iter(truth.splits.values()))!r}): name the annotations of the val or human split"
            )
    return sets


def read_predictions(paths: Sequence[str], sets: Mapping[str, Truth]) -> dict[str, dict[str, str | None]]:
    """By set, the Q-id that was predicted for each data_id; None where the file has null.

    Raises OvenError for an example that is predicted twice, or that the ground truth does not have, and where no file
    has any; one of two may be empty, as where the images of one set are missing.
    """
    found: dict[str, dict[str, str | None]] = {name: {} for name in sets}
    for path in paths:
        for number, row in _rows(path, "a file of predictions"):
            where = f"{path}, line {number}"
            data_id = text_of(row, "data_id", where)
            if "pred_entity_id" not in row:
                raise OvenError(f'{where}: {data_id} has no pred_entity_id: write {{"data_id", "pred_entity_id"}}')
            entity = row["pred_entity_id"]
            if entity is not None and not isinstance(entity, str):
                raise OvenError(f'{where}: pred_entity_id {entity!r}: a Wikidata id is wanted, as "Q31"')
            named = set_of(data_id, path.rpartition("/")[2])
            inside = [n for n in ([named] if named in sets else sets) if n is not None and data_id in sets[n].entities]
            if not inside:
                raise OvenError(
                    f"{where}: {data_id} is not in the ground truth: name the annotations of its split, too, or leave "
                    "the line out"
                )
            if len(inside) > 1:
                raise OvenError(
                    f"{where}: {data_id} is in the sets {' and '.join(inside)}: let the file's name say which of them "
                    "it predicts (oven_query_val.jsonl)"
                )
            if data_id in found[inside[0]]:
                raise OvenError(f"{where}: {data_id} is predicted twice: leave one of the lines out")
            found[inside[0]][data_id] = entity
    if not any(found.values()):
        raise OvenError(f"{', '.join(paths)}: no prediction is there; wanted is a JSON object a line")
    return found


def score(
    sets: Mapping[str, Truth], predictions: Mapping[str, Mapping[str, str | None]]
) -> tuple[dict[str, Any], list[str]]:
    """The scores under the authors' names, in per cent, and what a reader must know of them.

    `entity_result` … {"seen", "unseen"}, `entity_score` …, `final_score`; None where a side or a set has no example.
    `accuracy`, which the authors do not give: of all examples alike, for what breaks it down.
    `counts` by set and side: examples, right, and missing, those without a prediction. `per_query` by figure ("entity
    seen"): of each example of all sets in order whether it is right, None where the figure does not count it.
    """
    found: dict[str, Any] = {"final_score": None, "accuracy": None}
    exact: dict[str, float] = {}
    counts: dict[str, dict[str, dict[str, int]]] = {}
    correct: dict[str, list[bool]] = {}
    notes = []
    for name, truth in sets.items():
        predicted = predictions.get(name, {})
        correct[name] = [predicted.get(data_id) == entity for data_id, entity in truth.entities.items()]
        counts[name] = {side: {"examples": 0, "right": 0, "missing": 0} for side in SIDES}
        neither = 0
        for data_id, side, right in zip(truth.entities, truth.sides, correct[name], strict=True):
            if not side:
                neither += 1
                continue
            counts[name][side]["examples"] += 1
            counts[name][side]["right"] += right
            counts[name][side]["missing"] += predicted.get(data_id) is None
        sides = {
            side: per_cent(of["right"], of["examples"]) if of["examples"] else None for side, of in counts[name].items()
        }
        seen, unseen = sides["seen"], sides["unseen"]
        if seen is not None and unseen is not None:
            exact[name] = harmonic_mean(seen, unseen)
        found |= {f"{name}_score": round(exact[name], 2) if name in exact else None, f"{name}_result": sides}
        lacking = [side for side, figure in sides.items() if figure is None]
        notes += [f"{name}: no example is {side}, so the set has no score" for side in lacking]
        if neither:
            notes.append(f"{name}: {neither:,} examples are neither seen nor unseen and count in no figure")
        if missing := sum(of["missing"] for of in counts[name].values()):
            notes.append(
                f"{name}: {missing:,} of {len(truth) - neither:,} examples have no prediction and count as wrong (the "
                "authors' scorer leaves them out)"
            )
        wrong = [data_id for data_id, right in zip(truth.entities, correct[name], strict=True) if not right]
        for what, ids in (("predictions", predicted), ("answers of the ground truth", truth.entities)):
            told = ((data_id, ids.get(data_id)) for data_id in wrong)
            if odd := [(of, entity) for of, entity in told if entity is not None and not _QID.fullmatch(entity)]:
                notes.append(
                    f"{name}: {len(odd):,} {what} that count as wrong are no Wikidata ids as Q31 (the first is "
                    f"{odd[0][1]!r}, of {odd[0][0]}): ids are compared as they are written"
                )
    if all(name in exact for name in SETS):
        found["final_score"] = round(harmonic_mean(exact["query"], exact["entity"]), 2)
    elif set(SETS) & set(sets):
        notes.append("final: it takes the scores of the entity set and the query set")
    per_query = _per_query(sets, correct, found)
    counted = [value for value in per_query["accuracy"] if value is not None]
    found["accuracy"] = per_cent(int(sum(counted)), len(counted)) if counted else None
    return found | {"counts": counts, "per_query": per_query}, notes


def measure_predictions(predictions: Sequence[str], ground_truth: Sequence[str]) -> dict[str, Any]:
    """What `i2e evaluate --protocol oven --predictions P --ground-truth R` finds, in the form of from_vectors.py:
    {"format_version", "predictions", "ground_truth", "notes", "results": {"oven": figures}, "queries", "clusters",
    "entities"}.

    A folder stands for the files of its first split (files_in). Raises OvenError or ShardError.
    """
    return measured(_files(ground_truth, "--ground-truth"), _files(predictions, "--predictions"))


def measured(truths: Sequence[str], predicted: Sequence[str]) -> dict[str, Any]:
    """As measure_predictions, of files alone."""
    sets = read_truth(truths)
    figures, notes = score(sets, read_predictions(predicted, sets))
    return {
        "format_version": FORMAT_VERSION,
        "predictions": list(predicted),
        "ground_truth": list(truths),
        "notes": notes,
        "results": {"oven": figures},
        **_asked(sets),
    }


def _asked(sets: Mapping[str, Truth]) -> dict[str, Any]:
    """`queries`, a fingerprint of what was asked, `clusters`, the entity of each example, by number, and `entities`,
    its Q-id."""
    entities = [entity for truth in sets.values() for entity in truth.entities.values()]
    numbers = {entity: n for n, entity in enumerate(dict.fromkeys(entities))}
    named = [(truth.name, list(truth.entities.items())) for truth in sets.values()]
    clusters = {"oven/oven": [numbers[entity] for entity in entities]}
    return {"queries": digest(named), "clusters": clusters, "entities": entities}


def _per_query(
    sets: Mapping[str, Truth], correct: Mapping[str, Sequence[bool]], found: Mapping[str, Any]
) -> dict[str, list[float | None]]:
    """Of each accuracy whether each example was right, None for those of other sets and sides."""
    examples = [
        (name, side, right)
        for name, truth in sets.items()
        for side, right in zip(truth.sides, correct[name], strict=True)
    ]
    made: dict[str, list[float | None]] = {
        f"{name} {side}": [float(right) if (of, on) == (name, side) else None for of, on, right in examples]
        for name in sets
        for side in SIDES
        if found[f"{name}_result"][side] is not None
    }
    return {"accuracy": [float(right) if side else None for _, side, right in examples], **made}


def _rows(path: str, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    if files.info(path) is None:
        raise OvenError(f"{path}: no such file; wanted is {what}, a JSON object a line")
    with closing(json_lines(path)) as lines:
        for number, _, row in lines:
            yield number, row


def text_of(row: Mapping[str, Any], key: str, where: str) -> str:
    """A text that a line must have; raises OvenError with where it stands."""
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise OvenError(f"{where}: {key} is missing, or no text: each line names its example by {key}")
    return value


def _files(paths: Sequence[str], option: str) -> list[str]:
    """The files that the paths name; a folder stands for those in it."""
    found: list[str] = []
    for path in paths:
        inside = files_in(path) if files.is_folder(path) else [path]
        if not inside:
            names = ", ".join(name for names in _SPLITS for name in names)
            raise OvenError(f"{option} {path}: the folder holds none of {names}: name the files")
        found += inside
    return found
