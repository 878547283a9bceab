"""The comparison of recipes: its measures against plain formulas, its intervals, and a whole one of few steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from i2e_pipeline.core.ids import content_id
from i2e_pipeline.dataset.published import open_published
from tests.train.small_dataset import image_row, write_dataset


def of(entities: list[int], values: list[float]) -> Any:
    from comparing.measures import PerImage

    return PerImage(np.array(entities), np.array(values))


def test_retrieval_is_the_mean_of_precisions_at_the_other_images_of_the_entity() -> None:
    from comparing.measures import retrieval

    rng = np.random.default_rng(3)
    image_ND, entity_N = rng.normal(size=(40, 5)), rng.integers(0, 9, 40)
    entity_N[0] = 99  # alone: nobody asks for it
    found = retrieval(image_ND, entity_N)
    unit = image_ND / np.linalg.norm(image_ND, axis=1, keepdims=True)
    wanted = []
    for n in np.flatnonzero(entity_N != 99):
        others = [m for m in sorted(range(40), key=lambda m: (-(unit[n] @ unit[m]), m)) if m != n]
        hits = [place for place, m in enumerate(others, 1) if entity_N[m] == entity_N[n]]
        if hits:
            wanted.append(np.mean([(k + 1) / place for k, place in enumerate(hits)]))
    assert np.allclose(found.value_Q, wanted)
    assert 99 not in found.entity_Q


def test_entities_that_settings_were_chosen_by_are_neither_asked_nor_ranked() -> None:
    from comparing.measures import Measured, per_image

    rng = np.random.default_rng(0)
    measured = Measured(
        image_ND=rng.normal(size=(30, 4)), entity_N=np.arange(30) % 6, image_id_N=np.arange(30).astype(str),
        new_N=np.arange(30) % 6 < 4, train_MD=rng.normal(size=(20, 4)), train_entity_M=np.arange(20) % 2 + 4,
        text_CD=np.eye(6, 4) + 0.1, text_entity_C=np.arange(6),
    )  # fmt: skip
    all_of_them, some = per_image(measured), per_image(measured, frozenset({0, 1}))
    assert set(all_of_them) == {"retrieval", "knn", "zero_shot"}
    assert set(some["retrieval"].entity_Q.tolist()) == set(some["zero_shot"].entity_Q.tolist()) == {2, 3}
    kept = np.isin(measured.entity_N, (2, 3))
    alone = Measured(
        image_ND=measured.image_ND[kept], entity_N=measured.entity_N[kept], image_id_N=measured.image_id_N[kept],
        new_N=measured.new_N[kept], train_MD=measured.train_MD[:0], train_entity_M=measured.train_entity_M[:0],
        text_CD=measured.text_CD[:0], text_entity_C=measured.text_entity_C[:0],
    )  # fmt: skip
    assert (per_image(alone)["retrieval"].value_Q == some["retrieval"].value_Q).all()
    assert (all_of_them["knn"].value_Q == some["knn"].value_Q).all()


def test_an_interval_holds_what_draws_and_entities_make_uncertain() -> None:
    from comparing.measures import interval

    rng = np.random.default_rng(5)
    entities = np.repeat(np.arange(30), 4)
    easy = rng.normal(size=30)[entities]  # how easy an entity is, is common to both
    runs = [(f"draw {d}", s) for d in range(5) for s in range(2)]
    one = {run: of(entities.tolist(), (easy + rng.normal(0, 0.1, 120) + 0.5).tolist()) for run in runs}
    other = {run: of(entities.tolist(), (easy + rng.normal(0, 0.1, 120)).tolist()) for run in runs}
    point, low, high = interval(one, other, replicates=300)
    assert low < 0.5 < high
    assert abs(point - 0.5) < 0.02
    alone = interval(one, replicates=300)
    assert alone[2] - alone[1] > 10 * (high - low), "paired: what is common does not count"
    assert interval(one, other, replicates=300) == (point, low, high)
    assert interval(one, {run: other[run] for run in runs[:3]}, replicates=50)[0] == pytest.approx(0.5, abs=0.05)
    with pytest.raises(ValueError, match="other images"):
        interval(one, {runs[0]: of(entities[:100].tolist(), [0.0] * 100)}, replicates=2)


def test_each_recipe_has_as_many_settings_to_choose_from_the_defaults_first() -> None:
    from comparing import arms

    for recipe in arms.RECIPES:
        found = arms.candidates(recipe, 6)
        assert len(set(found)) == 6
        assert found == arms.candidates(recipe, 6)
        assert "train.optimizer.learning_rate=0.002" in found[0]
    with pytest.raises(ValueError, match="has 7 settings"):
        arms.candidates("clip_alt_text", 8)


def test_true_labels_take_the_place_of_those_that_are_known_to_be_wrong(tmp_path: Path) -> None:
    from comparing import worlds

    rows = [image_row(i, labels=[(i % 4, 0.9)]) for i in range(12)]
    dataset = Path(write_dataset(tmp_path / "i2e", rows, classes=4))
    by_id = {row["image_id"].hex(): n for n, row in enumerate(rows)}
    truth = {row["image_id"].hex(): 100 + n % 4 for n, row in enumerate(rows) if n < 8}
    truth |= {rows[0]["image_id"].hex(): 103, rows[1]["image_id"].hex(): -1}
    worlds.correct(dataset, tmp_path / "true", truth)
    found = {}
    for file in open_published(str(tmp_path / "true")).files:
        import pyarrow.parquet as pq

        for row in pq.read_table(tmp_path / "true" / file.path).to_pylist():
            found[by_id[row["image_id"]]] = [label["entity_id"] for label in row["labels"]]
    assert found == {0: [103], 1: [], **{n: [100 + n % 4] for n in range(2, 12)}}
    images = worlds.Images("test", dataset, tmp_path / "true", truth)
    assert worlds.wrong_labels(images) == (2, 8)


@pytest.mark.slow
def test_a_comparison_of_few_steps_goes_on_where_it_was_stopped(
    tmp_path: Path, models: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import recipes
    from comparing import worlds

    rows = [image_row(i, labels=[(i % 12, 0.9)], alt_text=f"picture {i % 12}") for i in range(96)]
    dataset = Path(write_dataset(tmp_path / "i2e", rows, classes=12))
    truth = {row["image_id"].hex(): 100 + n % 12 for n, row in enumerate(rows)}
    # Images that are held out are known by their content.
    truth |= {content_id(row["image"]["bytes"]).hex(): 100 + n % 12 for n, row in enumerate(rows)}
    worlds.correct(dataset, tmp_path / "true", truth)
    images = worlds.Images("sample", dataset, tmp_path / "true", truth)
    monkeypatch.setattr(worlds, "wanted", lambda names, folder: [images])
    arguments = [
        "--folder", str(tmp_path / "trained"), "--draws", "1", "--seeds", "1", "--budget", "1", "--recipes",
        "supervised", "clip_alt_text", "--set", f"train.encoder.model={models('vit')}", "train.data.batch_size=8",
        "train.data.hold_out_images=0.2",
    ]  # fmt: skip
    recipes.main([*arguments, "train.steps=2", "--only", "choose"])
    chosen = json.loads((tmp_path / "trained" / "sample" / "chosen.json").read_text())
    assert set(chosen) == {"supervised", "clip_alt_text"}
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "trained").rglob("vectors.npz")}
    assert len(before) == 2
    told = recipes.main([*arguments, "train.steps=2"])
    assert {p: p.stat().st_mtime_ns for p in before} == before, "what is there is not trained again"
    for line in (
        "| untrained |",
        "| supervised |",
        "| supervised − clip_alt_text |",
        "| supervised, true labels − supervised |",
    ):
        assert line in told
    assert (tmp_path / "trained" / "table.md").read_text() == told
    with pytest.raises(SystemExit, match="was trained with other settings"):
        recipes.main([*arguments, "train.steps=3"])
