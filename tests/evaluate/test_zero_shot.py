"""Zero-shot: the mean of normalised prompt vectors, and the nearest class."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from i2e_pipeline.evaluate.zero_shot import PLAIN_TEMPLATES, class_vectors, templates_for, zero_shot

WIDTH = 8


def texts(texts: list[str]) -> np.ndarray:
    """A text tower: a unit vector by the text's hash."""
    seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") for text in texts]
    rows = np.stack([np.random.default_rng(seed).normal(size=WIDTH) for seed in seeds])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_a_class_is_the_mean_of_its_prompts_made_unit_length() -> None:
    found = class_vectors(texts, ["fox", "red {c}"], ["a {c}.", "the {c}, {c}"])
    mean = texts(["a fox.", "the fox, fox"]).mean(axis=0)
    assert np.allclose(found[0], mean / np.linalg.norm(mean), atol=1e-6)
    other = texts(["a red {c}.", "the red {c}, red {c}"]).mean(axis=0)
    assert np.allclose(found[1], other / np.linalg.norm(other), atol=1e-6)


@given(st.integers(2, 9), st.integers(1, 30), st.integers(0, 100))
def test_accuracies_are_those_of_a_full_ranking(classes: int, images: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(images, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = rng.integers(0, classes, images)
    names = [f"class {i}" for i in range(classes)]
    found = zero_shot(texts, vectors, labels, names)
    order = np.argsort(-(vectors @ class_vectors(texts, names, PLAIN_TEMPLATES).T), axis=1, kind="stable")
    assert found["correct"]["acc@1"] == (order[:, 0] == labels).tolist()
    assert found["acc@1"] == pytest.approx((order[:, 0] == labels).mean())
    if classes > 5:
        assert found["correct"]["acc@5"] == (order[:, :5] == labels[:, None]).any(axis=1).tolist()
        assert found["acc@5"] == pytest.approx((order[:, :5] == labels[:, None]).any(axis=1).mean())
    else:
        assert found["acc@5"] is None  # all classes are among the first five


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_the_papers_definition_step_by_step(seed: int) -> None:
    """As CLIP (arXiv 2103.00020, section 3.1.4) defines it and CLIP_benchmark reports it (acc1, acc5, mean per class
    recall): torch and scikit-learn here, nothing of the code under test. Catches: a mean over templates of vectors
    that are not unit ones, classes and templates that change places, recall over classes that have no image."""
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    names, templates = [f"thing {n}" for n in range(11)], ("a photo of a {c}.", "a {c}", "{c}, drawn")
    labels = rng.choice(len(names) - 1, 300, p=rng.dirichlet(np.ones(len(names) - 1)))  # the last class has no image
    classifier_DC = []
    for name in names:
        prompts_TD = torch.from_numpy(texts([template.format(c=name) for template in templates]))
        mean_D = functional.normalize(prompts_TD, dim=-1).mean(dim=0)
        classifier_DC.append(mean_D / mean_D.norm())
    vectors = torch.stack(classifier_DC)[labels] + 0.4 * torch.from_numpy(rng.normal(size=(300, WIDTH))).float()
    vectors_ND = functional.normalize(vectors, dim=-1)
    logits_NC = 100.0 * vectors_ND @ torch.stack(classifier_DC, dim=1)
    best_NK = logits_NC.topk(5, dim=1).indices
    target_N = torch.from_numpy(labels)
    hits_NK = best_NK == target_N[:, None]
    found = zero_shot(texts, vectors_ND.numpy(), labels, names, templates)
    assert found["acc@1"] == pytest.approx(float(hits_NK[:, :1].float().sum()) / 300)
    assert found["acc@5"] == pytest.approx(float(hits_NK.float().sum()) / 300)
    recall = metrics.balanced_accuracy_score(labels, logits_NC.argmax(dim=1).numpy())
    assert found["mean per class"] == pytest.approx(recall)
    assert 0.2 < found["acc@1"] < 0.99
    assert found["mean per class"] != pytest.approx(found["acc@1"], abs=1e-4)


def test_classes_count_the_same_in_the_mean_per_class() -> None:
    vectors = np.eye(3, dtype=np.float32)[[0, 0, 0, 1]]
    found = zero_shot(lambda said: np.eye(3, dtype=np.float32), vectors, np.array([0, 0, 0, 2]), ["a", "b", "c"])
    assert (found["acc@1"], found["mean per class"]) == (0.75, 0.5)


def test_names_that_two_classes_bear_are_told() -> None:
    assert zero_shot(texts, texts(["x"]), np.array([0]), ["crane", "maillot", "crane"])["double_names"] == ["crane"]


def test_a_template_without_a_place_for_the_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"template 'a photo.' has no \{c\}"):
        class_vectors(texts, ["fox"], ["a {c}.", "a photo."])


def test_prompts_that_cancel_out_are_refused() -> None:
    def opposite(texts: list[str]) -> np.ndarray:
        return np.array([[1.0, 0.0] if i % 2 else [-1.0, 0.0] for i in range(len(texts))], np.float32)

    with pytest.raises(ValueError, match="the prompts of 'fox' cancel out"):
        class_vectors(opposite, ["fox"], ["a {c}.", "no {c}."])


def test_templates_are_the_published_ones_of_known_sets_only() -> None:
    assert len(templates_for("imagenet")) == 80
    assert templates_for("eurosat")[0] == "a centered satellite photo of {c}."
    assert templates_for(None) == PLAIN_TEMPLATES
