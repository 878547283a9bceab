"""Protocols: what is measured, on which kind of data, and what each figure means in a line.

Reads    an encoder's vectors of a data set, its labels and splits
Writes   figures, and what each query gave

Legend: N images, Q queries, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.evaluate.image_set import UNSEEN, DatasetError, ImageSet
from i2e_pipeline.evaluate.long_tail import BY, long_tail
from i2e_pipeline.evaluate.results import CHANCE, LEVELS, oven_figures, revisited_figures, revisited_queries
from i2e_pipeline.evaluate.task import Task

PER_CLASS = "mean per class"
"""Accuracy in the mean over classes: what CLIP's authors give for Caltech-101, Pets and Flowers102."""


class TooSmall(I2EError, ValueError):
    """The data set has too little for a protocol that fits its kind: the suite says so and goes on."""


@dataclass(frozen=True)
class Measured:
    """What a protocol found; the fields are those of results.Result."""

    figures: Mapping[str, float | None]
    per_query: Mapping[str, Sequence[float | bool | None]] = field(default_factory=dict)
    clusters: np.ndarray | None = None
    """Class of each query; None: queries are independent draws."""
    parts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    chosen: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By what `parts` break down: the part of each query."""
    notes: Sequence[str] = ()
    curve: Sequence[tuple[float, float]] = ()


def _gpr(task: Task) -> Measured:
    from i2e_pipeline.evaluate.gpr1200 import gpr

    rows = task.retrieved
    vectors_ND, labels_N = task.of(rows)
    domains_N = None if task.data.domains_N is None else task.data.domains_N[rows]
    found = gpr(vectors_ND, labels_N, domains_N, block_mb=task.settings.block_mb)
    parts, groups = {}, {}
    if domains_N is not None:
        parts, groups = {"domain": found["per_domain"]}, {"domain": [str(name) for name in domains_N]}
    counts = {"queries": len(rows), "classes": len(np.unique(labels_N))}
    figures = {"mAP": found["mAP"], CHANCE: found["mAP_of_random_vectors"]}
    return Measured(figures, {"mAP": found["ap"]}, labels_N, parts, counts, groups=groups)


def _knn_retrieval(task: Task) -> Measured:
    from i2e_pipeline.evaluate.knn import knn_retrieval

    rows = task.retrieved
    vectors_ND, labels_N = task.of(rows)
    found = knn_retrieval(vectors_ND, labels_N, block_mb=task.settings.block_mb)
    return Measured(_figures(found), _per_query(found), labels_N, counts={"queries": len(rows)})


def _revisited(task: Task) -> Measured:
    from i2e_pipeline.evaluate.revisited import read_ground_truth, revisited

    data, embedded = task.data, task.embedded
    if data.truth is None or len(embedded.rows_N) != len(data):
        raise DatasetError(f"{data.name}: the protocol needs the ground truth and every image, and some are missing")
    queries, gallery = data.splits["query"], data.splits["gallery"]
    found = revisited(
        embedded.vectors_ND[queries],
        embedded.vectors_ND[gallery],
        read_ground_truth(str(data.truth)),
        block_mb=task.settings.block_mb,
    )
    figures = {f"{level} {name}": v for level in LEVELS for name, v in revisited_figures(found[level]).items()}
    per_query = {name: v for level in LEVELS for name, v in revisited_queries(level, found[level]).items()}
    return Measured(figures, per_query, counts={"queries": len(queries), "gallery": len(gallery)})


def _knn(task: Task) -> Measured:
    from i2e_pipeline.evaluate.knn import knn_classify

    (train_ND, train_N), (test_ND, test_N) = task.of(task.data.rows("train")), task.of(task.data.rows("test"))
    found = knn_classify(
        train_ND,
        train_N,
        test_ND,
        test_N,
        ks=task.settings.knn_k,
        temperature=task.settings.knn_temperature,
        block_mb=task.settings.block_mb,
    )
    counts = {"train": len(train_N), "queries": len(test_N)}
    beyond = [str(k) for k in task.settings.knn_k if k > len(train_N)]
    notes = [f"k={', '.join(beyond)} left out: there are {len(train_N):,} training images"] if beyond else []
    notes += _unknown(int((~np.isin(test_N, train_N)).sum()), len(test_N))
    return Measured(_figures(found), _per_query(found), test_N, counts=counts, notes=notes)


def _linear_probe(task: Task) -> Measured:
    from i2e_pipeline.evaluate.linear_probe import linear_probe

    fit, choose, test = task.data.probe_rows()
    (fit_ND, fit_N), (choose_ND, choose_N), (test_ND, test_N) = task.of(fit), task.of(choose), task.of(test)
    if not len(choose_N):
        raise TooSmall("classes of so few training images leave none to choose the regulariser on")
    found = linear_probe(
        fit_ND,
        fit_N,
        choose_ND,
        choose_N,
        test_ND,
        test_N,
        device=task.settings.device,
        block_mb=task.settings.block_mb,
    )
    counts = {"train": len(fit_N), "validation": len(choose_N), "queries": len(test_N)}
    notes = _unknown(found["unknown"], len(test_N))
    if found["at_edge"]:
        notes.append(f"the best C, {found['regulariser']:.3g}, is the end of what was tried: another may be better")
    return Measured(
        {"acc@1": found["accuracy"], PER_CLASS: found["mean per class"]},
        {"acc@1": found["correct"], PER_CLASS: by_class(found["correct"], test_N)},
        test_N,
        counts=counts,
        chosen={"regulariser": found["regulariser"]},
        notes=notes,
        curve=found["curve"],
    )


def _unknown(images: int, of: int) -> list[str]:
    """A note where some test images cannot be right."""
    if not images:
        return []
    return [f"{images:,} of {of:,} test images are of classes without a training image: they count as wrong"]


def _zero_shot(task: Task) -> Measured:
    from i2e_pipeline.evaluate.zero_shot import templates_for, zero_shot

    data = task.data
    test_ND, test_N = task.of(data.splits["test"] if "test" in data.splits else np.arange(len(data)))
    assert task.encoder.texts is not None
    found = zero_shot(
        task.encoder.texts,
        test_ND,
        test_N,
        data.class_names,
        templates_for(data.known),
        block_mb=task.settings.block_mb,
    )
    counts = {"queries": len(test_N), "classes": len(data.class_names)}
    per_query = {**_per_query(found), PER_CLASS: by_class(found["correct"]["acc@1"], test_N)}
    return Measured(_figures(found), per_query, test_N, counts=counts)


def _image_to_entity(task: Task) -> Measured:
    from i2e_pipeline.evaluate.image_to_entity import image_to_entity

    data = task.data
    rows = task.kept(data.splits["test"]) if UNSEEN in data.splits else task.retrieved
    vectors_ND, labels_N = task.of(rows)
    assert task.encoder.texts is not None
    assert data.descriptions is not None
    found = image_to_entity(
        task.encoder.texts,
        vectors_ND,
        labels_N,
        data.class_names,
        data.descriptions,
        data.class_images_C,
        block_mb=task.settings.block_mb,
    )
    parts, groups = {}, {}
    if "buckets" in found:
        parts = {BY: {b["name"]: b["acc@1"] for b in found["buckets"]}}
        groups = {BY: found["bucket"]}
    counts = {"queries": len(rows), "classes": len(data.class_names)}
    per_query = {**_per_query(found), "acc@1 by entity": by_class(found["correct"]["acc@1"], labels_N)}
    return Measured(_figures(found), per_query, labels_N, parts, counts, groups=groups)


def _text_image_retrieval(task: Task) -> Measured:
    from i2e_pipeline.evaluate.text_image import TEXTS, text_image_retrieval

    data, rows_N = task.data, task.embedded.rows_N
    assert task.encoder.texts is not None
    assert data.image_of_T is not None
    asked_T = np.isin(data.image_of_T, rows_N)  # captions of images that cannot be decoded are left out with them
    image_of_T = np.searchsorted(rows_N, data.image_of_T[asked_T])
    texts_TD = task.encoder.texts([data.captions[t] for t in np.flatnonzero(asked_T)])
    found = text_image_retrieval(task.embedded.vectors_ND, texts_TD, image_of_T, block_mb=task.settings.block_mb)
    # Images ask first, then captions: a query of one kind does not count in the figures of the other.
    per_query = {
        figure: [*right, *[None] * len(image_of_T)] if figure.startswith(TEXTS) else [*[None] * len(rows_N), *right]
        for figure, right in found["correct"].items()
    }
    figures = _figures(found)
    beyond = [figure for figure, value in figures.items() if value is None]
    notes = [f"{', '.join(beyond)} left out: there is no more to choose from"] if beyond else []
    counts = {"images": len(rows_N), "captions": len(image_of_T)}
    image_of_query = np.concatenate([np.arange(len(rows_N)), image_of_T])
    return Measured(figures, per_query, image_of_query, counts=counts, notes=notes)


def _oven(task: Task) -> Measured:
    from i2e_pipeline.evaluate import oven

    examples = task.data.examples
    assert examples is not None
    if task.folder is None:
        raise TooSmall("OVEN's predictions and entities need a folder: `i2e evaluate` measures it, a training does not")
    asked_Q, nearest, notes = oven.predicted(task)
    written = oven.write_predictions(task, asked_Q, nearest)
    notes.append(f"predictions: {', '.join(written)}")
    counts = {"examples": len(examples.data_ids), "predicted": len(asked_Q), "candidates": nearest.candidates}
    share = {"predicted": len(asked_Q) / len(examples.data_ids)}
    if not examples.answered:
        notes.append("the annotations have no answers, so nothing is scored")
        return Measured(share, counts=counts, notes=notes)
    found = oven.scored(examples, written)
    figures = found["results"]["oven"]
    clusters = np.array(found["clusters"]["oven/oven"])
    notes += found["notes"]
    parts, groups = {}, {}
    if (dataset := task.settings.oven.trained_on) is not None:
        means, buckets = long_tail(figures["per_query"]["accuracy"], oven.images_of(dataset, found["entities"]))
        parts, groups = {BY: means}, {BY: buckets}
    named = {**oven_figures(figures), **share}
    return Measured(named, figures["per_query"], clusters, parts, counts, notes=notes, groups=groups)


def with_long_tail(task: Task, found: Measured) -> Measured:
    """With the first figure's mean in each bucket of images per entity, where the data say how many there were to learn
    from, and each query's value and class are known."""
    data, cited = task.data, next(iter(found.figures), "")
    values = found.per_query.get(cited)
    if not data.of_training or BY in found.parts or values is None or found.clusters is None:
        return found
    assert data.class_images_C is not None
    means, buckets = long_tail(values, data.class_images_C[found.clusters])
    return replace(found, parts={**found.parts, BY: means}, groups={**found.groups, BY: buckets})


def by_class(correct_N: Sequence[bool], labels_N: np.ndarray) -> list[float | None]:
    """The share of right images of each class, at the class's first image: their mean is the mean over classes.

    One value a class, so that a bootstrap that draws classes draws these.
    """
    _, first_C, class_N = np.unique(labels_N, return_index=True, return_inverse=True)
    share_C = np.bincount(class_N, weights=np.asarray(correct_N, np.float64)) / np.bincount(class_N)
    values: list[float | None] = [None] * len(labels_N)
    for row, share in zip(first_C.tolist(), share_C.tolist(), strict=True):
        values[row] = share
    return values


def _per_query(found: Mapping[str, Any]) -> Mapping[str, Sequence[float | bool | None]]:
    """Whether each query was right, by figure, where the protocol tells."""
    correct = found.get("correct")
    return correct if isinstance(correct, dict) else {}


def _figures(found: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers among what a protocol returned, None for those that the data are too small for."""
    return {k: v for k, v in found.items() if (v is None or isinstance(v, float)) and k != "per_domain"}


@dataclass(frozen=True)
class Protocol:
    about: str
    """One line for the page."""
    measure: Callable[[Task], Measured]
    applies: Callable[[ImageSet], bool]
    needs_text: bool = False


def _has_split(data: ImageSet) -> bool:
    return data.kind == "classes" and "train" in data.splits and "test" in data.splits


PROTOCOLS: dict[str, Protocol] = {
    "gpr": Protocol(
        "Every image queries all images by cosine, itself included. Average precision over all images of its class, "
        "as GPR1200's authors define it; the mean over all queries, by domain too.",
        _gpr,
        lambda data: data.kind in ("gpr", "classes"),
    ),
    "knn_retrieval": Protocol(
        "Share of images with one of their class among the nearest 1 or 5 others; the image itself is left out.",
        _knn_retrieval,
        lambda data: data.kind in ("gpr", "classes"),
    ),
    "revisited": Protocol(
        "Cropped queries against a gallery with distractors (Radenović et al., CVPR 2018). Junk is taken out of each "
        "ranking, average precision is the area by trapezoids, mP@k the precision among the first k.",
        _revisited,
        lambda data: data.kind == "revisited",
    ),
    "knn": Protocol(
        "Class by vote of the k nearest training images, each with weight exp(cosine / temperature).",
        _knn,
        _has_split,
    ),
    "linear_probe": Protocol(
        "Logistic regression on the frozen vectors, its regulariser chosen on validation images.",
        _linear_probe,
        _has_split,
    ),
    "zero_shot": Protocol(
        "Class whose name, in the mean of its prompts, is nearest to the image.",
        _zero_shot,
        lambda data: data.kind == "classes" and bool(data.class_names),
        needs_text=True,
    ),
    "image_to_entity": Protocol(
        "The entity's name and description among those of all entities, nearest to the image first; also by the number "
        "of images that the entity has.",
        _image_to_entity,
        lambda data: data.kind == "classes" and data.descriptions is not None,
        needs_text=True,
    ),
    "text_image_retrieval": Protocol(
        "text_retrieval_recall@k: share of images with one of their captions among the k nearest of all captions; "
        "image_retrieval_recall@k: share of captions with their image among the k nearest images.",
        _text_image_retrieval,
        lambda data: data.kind == "captions",
        needs_text=True,
    ),
    "oven": Protocol(
        "The nearest of all candidate entities to the image, with the query set's questions to both (Hu et al., ICCV "
        "2023): accuracy on entities that OVEN's training has seen and on unseen ones, in harmonic means.",
        _oven,
        lambda data: data.kind == "oven",
    ),
}
