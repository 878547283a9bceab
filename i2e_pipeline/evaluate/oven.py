"""OVEN from a folder of its authors' layout to predictions and scores (Hu et al., ICCV 2023, arXiv 2302.11154).

Reads    oven_entity_val.jsonl, oven_query_val.jsonl …   annotations, here or in oven/ or oven_data/
         IMAGE_ID.jpg, anywhere below                    oven_images/04/oven_04925844.jpg, as their script sorts them
         Wiki6M_ver_1_0_title_only.jsonl …               candidates, by their texts; or the classes of an entity head
Writes   FOLDER/predictions/SET/MODEL/oven_entity_val.jsonl: {"data_id", "pred_entity_id"} a line

An image is answered with the candidate whose vector is nearest to its own. The query set asks with image and question:
a dual encoder has no way to read one in the light of the other, so the unit vectors are mixed
(evaluate.oven.question_weight), as the baseline "image + text" of composed image retrieval does (Pic2Word, arXiv
2302.03084).

Legend: E examples, N images, D width, Q queries.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from i2e_pipeline.core import files
from i2e_pipeline.core.config import OvenConfig
from i2e_pipeline.core.machine import choose_device
from i2e_pipeline.dataset import published
from i2e_pipeline.evaluate import entity_texts, oven_scores
from i2e_pipeline.evaluate.folders import images_below
from i2e_pipeline.evaluate.image_set import DatasetError, Examples, Files, ImageSet
from i2e_pipeline.evaluate.oven_scores import PLACES, OvenError, set_of
from i2e_pipeline.evaluate.task import Task
from i2e_pipeline.evaluate.top_one import Block, Nearest, top_one
from i2e_pipeline.inputs.tables import json_lines

log = logging.getLogger(__name__)

_ENTITIES = ("Wiki6M_ver_1_0_title_only.jsonl", "Wiki6M_ver_1_0.jsonl", "Wiki6M_ver_1_0.jsonl.gz")
NO_FILE = "no image file"


def annotation_files(root: Path) -> list[Path]:
    """The annotation files that a path stands for: itself, or those of a folder's first split; none where there are
    none."""
    if root.is_file():
        return [root] if re.fullmatch(r"oven_\w+\.jsonl(\.gz)?", root.name) else []
    return [Path(path) for path in oven_scores.files_in(str(root))]


def oven(name: str, root: Path) -> ImageSet:
    """The images that annotations ask about, each once, in the order of their ids.

    root   a folder, or an annotation file (_bases)
    Raises DatasetError where none of the images is there; ShardError or DatasetError for a line that is no example.
    """
    paths = annotation_files(root)
    data_ids: list[str] = []
    image_ids: list[str] = []
    question_E: list[int] = []
    questions: dict[str, int] = {}
    ends = []
    entities: list[str] = []
    for path in paths:
        with closing(json_lines(str(path))) as lines:
            for number, _, row in lines:
                data_id, image_id = (oven_scores.text_of(row, key, f"{path}, line {number}") for key in _KEYS)
                data_ids.append(data_id)
                image_ids.append(image_id)
                asks = set_of(data_id, str(row.get("data_split", "")), path.name) in ("query", "human")
                question = str(row.get("question") or "") if asks else ""
                question_E.append(questions.setdefault(question, len(questions)) if question else -1)
                entities.append(str(row.get("entity_id") or ""))
        ends.append(len(data_ids))
    if not data_ids:
        raise DatasetError(f"{name}: {', '.join(map(str, paths))}: no example is there")
    folders = _bases(root)
    found = ((folder, _lying(folder, set(image_ids))) for folder in folders)
    folder, here = next(((folder, here) for folder, here in found if here), (folders[-1], {}))
    if not here:
        raise DatasetError(
            f"{name}: none of the {len(set(image_ids)):,} images that {paths[0].name} asks about is below {folder}, "
            f"first {image_ids[0]}.jpg: unpack the images there"
        )
    wanted = sorted(here)
    row_of = {image_id: row for row, image_id in enumerate(wanted)}
    row_E = np.array([row_of.get(image_id, -1) for image_id in image_ids], dtype=np.int64)
    missing = len(set(image_ids)) - len(here)
    examples = Examples(
        tuple(map(str, paths)), tuple(ends), tuple(data_ids), row_E, tuple(questions),
        np.array(question_E, dtype=np.int64), tuple(entities),
    )  # fmt: skip
    return ImageSet(
        name, "oven", Files(folder, tuple(here[image_id] for image_id in wanted)),
        np.full(len(wanted), -1, dtype=np.int64), examples=examples, split_by=", ".join(path.name for path in paths),
        left_out={NO_FILE: missing} if missing else {},
    )  # fmt: skip


_KEYS = ("data_id", "image_id")


def _bases(root: Path) -> list[Path]:
    """Where images may lie: in the folder of the data set; of an annotation file beside it, else above its folder, if
    that is one for annotations."""
    if root.is_dir():
        return [root]
    return [root.parent, *([root.parent.parent] if root.parent.name in PLACES else [])]


def _lying(folder: Path, wanted: set[str]) -> dict[str, str]:
    """Where each wanted image lies, relative to the folder, by its id; of several files the first in order."""
    found: dict[str, str] = {}
    for path in images_below(folder):
        stem = os.path.splitext(os.path.basename(path))[0]
        if stem in wanted:
            found.setdefault(stem, path)
    return found


def entities_of(data: ImageSet, settings: OvenConfig) -> str:
    """The list of entities: the one that the config names, else the authors', beside the annotations or above them.

    Raises OvenError where there is none."""
    if settings.entities is not None:
        return settings.entities
    names = _ENTITIES[1:] if settings.candidates == "descriptions" else _ENTITIES  # the first has titles alone
    assert data.examples is not None
    beside = Path(data.examples.files[0]).parent
    for place in (beside, beside.parent) if beside.name in PLACES else (beside,):
        for name in names:
            if (place / name).is_file():
                return str(place / name)
    raise OvenError(
        f"{data.name}: none of {', '.join(names)} is in {beside} or above it: download it "
        "(github.com/open-vision-language/oven), name another list (--set evaluate.oven.entities=FILE), or take the "
        "classes of a checkpoint (evaluate.oven.candidates=head, --model train:FOLDER@STEP)"
    )


def predicted(task: Task) -> tuple[np.ndarray, Nearest, list[str]]:
    """(asked_Q, nearest, notes): which examples could be asked, and the nearest candidate of each of them.

    Raises OvenError where the candidates that the config wants cannot be had.
    """
    data, settings = task.data, task.settings
    assert data.examples is not None
    assert task.folder is not None
    rows_N = task.embedded.rows_N
    asked_Q = np.flatnonzero(np.isin(data.examples.row_E, rows_N))
    queries_QD = task.embedded.vectors_ND[np.searchsorted(rows_N, data.examples.row_E[asked_Q])]
    notes = []
    question_Q = data.examples.question_E[asked_Q]
    weight = settings.oven.question_weight
    if weight and (question_Q >= 0).any():
        if task.encoder.texts is None:
            notes.append("the model reads no questions: the query set asks with the image alone")
        else:
            texts_TD = task.encoder.texts(list(data.examples.questions))
            asks_Q = question_Q >= 0
            queries_QD[asks_Q] = mixed(queries_QD[asks_Q], texts_TD[question_Q[asks_Q]], weight)
    if settings.oven.candidates == "head":
        if task.head is None:
            raise OvenError(
                f"evaluate.oven.candidates=head: {task.encoder.label} is no checkpoint with an entity head: name one "
                "(--model train:FOLDER@STEP), or compare with texts (evaluate.oven.candidates=names)"
            )
        candidates = task.head()
    elif task.encoder.texts is None:
        raise OvenError(
            f"{task.encoder.label} has no text tower, so entities have no vectors: take a model that has one, or the "
            "classes of a checkpoint (evaluate.oven.candidates=head)"
        )
    else:
        candidates = entity_texts.blocks(
            task.encoder,
            entities_of(data, settings.oven),
            settings.oven.candidates == "descriptions",
            Path(files.join(task.folder, "vectors")),
        )
    known: set[str] = set()
    device = choose_device(settings.device, "evaluate.device")
    nearest = top_one(queries_QD, _watched(candidates, set(data.examples.entities), known), settings.block_mb, device)
    if unknown := sum(entity != "" and entity not in known for entity in data.examples.entities):
        notes.append(
            f"{unknown:,} of {len(data.examples.entities):,} examples are of entities that are no candidates: they "
            "cannot be right"
        )
    return asked_Q, nearest, notes


def _watched(candidates: Iterator[Block], wanted: set[str], known: set[str]) -> Iterator[Block]:
    """The same blocks; `known` gets those of the wanted Q-ids that are among them."""
    for block in candidates:
        known |= wanted.intersection(f"Q{entity}" for entity in block.ids_C.tolist())
        yield block


def images_of(dataset: str, entities: Sequence[str]) -> np.ndarray:
    """int64: how many images a published dataset has of each of these Q-ids, 0 of those that it does not know."""
    table = published.entities_of(dataset)
    ids, images = table.column("entity_id").to_pylist(), table.column("images").to_pylist()
    count = {f"Q{entity}": many for entity, many in zip(ids, images, strict=True)}
    return np.array([count.get(entity, 0) for entity in entities], dtype=np.int64)


def mixed(images_QD: np.ndarray, questions_QD: np.ndarray, weight: float) -> np.ndarray:
    """float32 (Q, D) of norm 1: the questions' share `weight` of unit vectors, the images' the rest. Where the two
    cancel out, the image alone."""
    sum_QD = (1 - weight) * images_QD.astype(np.float64) + weight * questions_QD
    length_Q1 = np.linalg.norm(sum_QD, axis=1, keepdims=True)
    return np.where(length_Q1 > 1e-6, sum_QD / np.maximum(length_Q1, 1e-6), images_QD).astype(np.float32)


def write_predictions(task: Task, asked_Q: np.ndarray, nearest: Nearest) -> list[str]:
    """A file per annotation file, a line per example that could be asked; returns their paths."""
    data = task.data
    assert data.examples is not None
    assert task.folder is not None
    model = re.sub(r"[^\w.-]", "_", task.encoder.label) + f"-{task.encoder.fingerprint[:8]}"
    made, start = [], 0
    for file, end in zip(data.examples.files, data.examples.ends, strict=True):
        first, last = np.searchsorted(asked_Q, [start, end])
        path = files.join(task.folder, "predictions", data.name, model, Path(file).name.removesuffix(".gz"))
        with files.fresh_stream(path) as stream:
            for example, entity in zip(asked_Q[first:last], nearest.ids_Q[first:last], strict=True):
                line = {"data_id": data.examples.data_ids[example], "pred_entity_id": f"Q{entity}"}
                stream.write(json.dumps(line).encode() + b"\n")
        made.append(path)
        start = end
    return made


def scored(examples: Examples, predictions: Sequence[str]) -> dict[str, Any]:
    """The figures as oven_scores.measure_predictions gives them."""
    return oven_scores.measured(examples.files, predictions)
