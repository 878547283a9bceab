"""Text-image retrieval against the formula of CLIP_benchmark's zeroshot_retrieval, and as a protocol of the suite.

The formula: scores = texts · imagesᵀ of unit vectors; for each query the k highest; a query is right when any of these
is a positive; the figure is the mean over queries. CLIP_benchmark's function itself was run beside this one on 60
made-up sets of 12 to 90 images with 1 to 6 captions each: the 360 figures differ by 3e-8 at most (its means are
float32).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from i2e_pipeline.evaluate import compare, results, suite
from i2e_pipeline.evaluate.text_image import text_image_retrieval
from i2e_pipeline.evaluate.vectors import VectorsError
from tests.evaluate.small_sets import settings
from tests.small_models import write_model

AT = (1, 5, 10)


def unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), dtype=np.float32)


def world(images: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(image vectors, caption vectors, image of each caption): one to six captions an image, near it, shuffled."""
    rng = np.random.default_rng(seed)
    image_of_T = rng.permutation(np.repeat(np.arange(images), rng.integers(1, 7, images)))
    images_ND = rng.normal(size=(images, 16))
    texts_TD = images_ND[image_of_T] + noise * rng.normal(size=(len(image_of_T), 16))
    return unit(images_ND), unit(texts_TD), image_of_T


def by_formula(images_ND: np.ndarray, texts_TD: np.ndarray, image_of_T: np.ndarray, k: int) -> tuple[float, float]:
    """(text retrieval, image retrieval) by full matrices."""
    scores_TN = texts_TD.astype(np.float64) @ images_ND.T.astype(np.float64)
    positive_TN = image_of_T[:, None] == np.arange(len(images_ND))
    figures = []
    for scores, positive in ((scores_TN.T, positive_TN.T), (scores_TN, positive_TN)):
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        figures.append(float((np.take_along_axis(positive, best, axis=1).sum(axis=1) > 0).mean()))
    return figures[0], figures[1]


@pytest.mark.parametrize("block_mb", [0.001, 0.05, 256])
@pytest.mark.parametrize(("images", "noise"), [(11, 3.0), (60, 1.0), (60, 3.0), (200, 2.0)])
def test_recalls_are_those_of_the_formula_whatever_the_block(images: int, noise: float, block_mb: float) -> None:
    images_ND, texts_TD, image_of_T = world(images, noise)
    found = text_image_retrieval(images_ND, texts_TD, image_of_T, block_mb=block_mb)
    for k in AT:
        texts, pictures = by_formula(images_ND, texts_TD, image_of_T, k)
        assert found[f"text_retrieval_recall@{k}"] == pytest.approx(texts, abs=1e-9)
        assert found[f"image_retrieval_recall@{k}"] == pytest.approx(pictures, abs=1e-9)
    assert 0 < found["text_retrieval_recall@1"] < 1
    assert (found["images"], found["captions"]) == (images, len(image_of_T))


def test_any_caption_of_an_image_counts_and_a_caption_has_one_image() -> None:
    """Catches: recall as the share of an image's captions that are found, which papers on CLIP do not mean."""
    images_ND = unit(np.eye(3, 4))
    texts_TD = unit(np.array([[1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0], [1, 0, 0.9, 0]]))
    found = text_image_retrieval(images_ND, texts_TD, np.array([0, 0, 1, 2]), at=(1,))
    assert found["correct"]["text_retrieval_recall@1"] == [True, True, True]
    assert found["correct"]["image_retrieval_recall@1"] == [True, True, True, False]
    # The second caption is equally far from all images, of which the first counts as the nearest.
    assert found["image_retrieval_recall@1"] == 0.75


def test_of_equal_images_the_first_is_nearer() -> None:
    """Catches: figures that change with the library, where pictures stand twice in a set."""
    images_ND = unit(np.ones((4, 3)))
    found = text_image_retrieval(images_ND, unit(np.ones((4, 3))), np.arange(4), at=(1, 2))
    for which in ("text", "image"):
        assert found["correct"][f"{which}_retrieval_recall@1"] == [True, False, False, False]
        assert found["correct"][f"{which}_retrieval_recall@2"] == [True, True, False, False]


def test_a_k_beyond_what_there_is_has_no_figure() -> None:
    images_ND, texts_TD, image_of_T = world(6, 1.0)
    found = text_image_retrieval(images_ND, texts_TD, image_of_T)
    assert found["image_retrieval_recall@10"] is None
    assert found["text_retrieval_recall@10"] is not None
    assert len(image_of_T) >= 10


def test_captions_without_an_image_and_images_without_a_caption_are_refused() -> None:
    images_ND, texts_TD, _ = world(3, 1.0)
    one = texts_TD[:3]
    with pytest.raises(VectorsError, match="image 1 has no caption"):
        text_image_retrieval(images_ND, one, np.array([0, 0, 2]))
    for away in (3, -1):
        with pytest.raises(VectorsError, match=f"a caption is of image {away}, and there are 3 images"):
            text_image_retrieval(images_ND, one, np.array([0, 1, away]))
    with pytest.raises(VectorsError, match="3 captions, and images of 2"):
        text_image_retrieval(images_ND, one, np.array([0, 1]))


def coloured(folder: Path, images: int = 14) -> Path:
    """A folder as Flickr8k's: pictures and captions.txt, the last picture broken."""
    rng = np.random.default_rng(0)
    (folder / "Images").mkdir(parents=True)
    lines = ["image,caption"]
    for n in range(images):
        name = f"{n:04d}_ab.jpg"
        if n == images - 1:
            (folder / "Images" / name).write_bytes(b"\xff\xd8 cut")
        else:
            pixels = np.broadcast_to(rng.integers(0, 256, 3), (40, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "Images" / name)
        lines += [f"{name},number {n}, seen from side {side}" for side in range(1 + n % 3)]
    (folder / "captions.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
def test_a_folder_goes_through_the_suite_to_the_page(tmp_path: Path) -> None:
    """Catches: captions of an image that cannot be decoded, counted against another image; intervals of single
    captions, which are not independent where they are of one image."""
    folder = coloured(tmp_path / "flickr")
    models = [f"one={write_model(tmp_path / 'm1', 'vit')}", f"two={write_model(tmp_path / 'm2', 'vit', seed=1)}"]
    measured = suite.evaluate(settings(tmp_path, models=models, data={"flickr": str(folder)}))
    assert measured.measured() == [("flickr", "text_image_retrieval")]
    first = measured.of("flickr", "text_image_retrieval")[0]
    captions = sum(1 + n % 3 for n in range(13))
    assert first.counts == {"images": 13, "captions": captions}
    assert list(first.figures) == [f"{w}_retrieval_recall@{k}" for w in ("text", "image") for k in AT]
    for figure, values in first.per_query.items():
        known = [v for v in values if v is not None]
        assert len(known) == (13 if figure.startswith("text") else captions)
        assert np.mean(known) == pytest.approx(first.figures[figure])
    clusters = measured.clusters["flickr/text_image_retrieval"]
    assert len(clusters) == 13 + captions
    assert len(set(clusters)) == 13
    assert measured.data[0].left_out == {"not decoded": 1}
    interval = next(d.interval for d in compare.between(measured) if d.figure == "image_retrieval_recall@1")
    assert interval is not None
    assert interval.clusters == 13
    out = tmp_path / "out" / "evaluation"
    assert results.read(str(out / "results.json")) == measured
    assert "text_retrieval_recall@5" in (out / "index.html").read_text()
    assert json.loads((out / "results.json").read_text())["data"][0]["kind"] == "captions"
