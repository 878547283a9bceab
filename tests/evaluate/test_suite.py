from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from i2e_pipeline.core.places import PlaceError
from i2e_pipeline.evaluate import results, suite
from i2e_pipeline.evaluate.datasets import DatasetError
from i2e_pipeline.evaluate.suite import SuiteError
from tests.evaluate.small_sets import CLASSES, EACH, coloured, settings, vectors
from tests.small_models import write_model


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    return coloured(tmp_path / "colours")


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    """`caplog` holds the lines of progress, too."""
    caplog.set_level(logging.INFO, "i2e_pipeline")


def test_every_protocol_that_applies_is_measured_for_every_model(
    tmp_path: Path, colours: Path, caplog: pytest.LogCaptureFixture
) -> None:
    near, far = (vectors(tmp_path / n, "colours", colours, noise) for n, noise in (("near", 0.1), ("far", 3.0)))
    config = settings(tmp_path, models=[f"far={far}", f"near={near}"], data={"colours": str(colours)})
    measured = suite.evaluate(config)
    assert measured.measured() == [("colours", p) for p in ("gpr", "knn_retrieval", "knn", "linear_probe")]
    for data, protocol in measured.measured():
        worse, better = measured.of(data, protocol)
        assert (worse.model, better.model) == ("far", "near")
        figure = next(iter(better.figures))
        assert better.figures[figure] > worse.figures[figure]
        assert better.figures[figure] > 0.95
    assert any("near" in line and "gpr" in line and "mAP" in line and line.endswith(" s") for line in caplog.messages)


def test_files_are_written_and_hold_what_is_returned(tmp_path: Path, colours: Path) -> None:
    spec = vectors(tmp_path / "near", "colours", colours, 0.1)
    config = settings(tmp_path, models=[f"near={spec}"], data={"colours": str(colours)})
    measured = suite.evaluate(config)
    folder = tmp_path / "out" / "evaluation"
    assert results.read(str(folder / "results.json")) == measured
    assert (folder / "table.md").read_text() == results.markdown(measured)
    assert (folder / "table.csv").read_text() == results.table_csv(measured)
    assert "colour 00" in (folder / "index.html").read_text()


@pytest.mark.parametrize("below", ["", "a/b"])
def test_a_file_in_the_place_of_the_folder_is_said_before_a_model_is_loaded(
    below: str, tmp_path: Path, colours: Path
) -> None:
    """Catches: an hour of encoding whose results cannot be written."""
    place = tmp_path / "file"
    place.write_text("x")
    there = {"models": ["none=local-dir:nowhere"], "data": {"colours": str(colours)}}
    with pytest.raises(PlaceError, match=r"evaluate\.folder: .*/file is a file: name a folder"):
        suite.evaluate(settings(tmp_path, folder=str(place / below), **there))
    assert place.read_text() == "x"


def test_figures_are_means_of_what_each_query_gave(tmp_path: Path, colours: Path) -> None:
    """Catches: intervals that are of other queries than the figure."""
    spec = vectors(tmp_path / "far", "colours", colours, 2.0)
    measured, _ = suite.measure(settings(tmp_path, models=[f"far={spec}"], data={"colours": str(colours)}))
    tested = 0
    for result in measured.results:
        for figure, values in result.per_query.items():
            known = [v for v in values if v is not None]
            assert np.mean(known) == pytest.approx(result.figures[figure], abs=1e-9)
            assert len(measured.clusters[f"{result.data}/{result.protocol}"]) == len(values)
            tested += 1
    assert tested >= 4


def test_two_runs_give_the_same_figures(tmp_path: Path, colours: Path) -> None:
    spec = vectors(tmp_path / "far", "colours", colours, 2.0)
    config = settings(tmp_path, models=[f"far={spec}"], data={"colours": str(colours)}, projection="tsne")
    (first, look), (second, again) = (suite.measure(config) for _ in range(2))
    assert [r.figures for r in first.results] == [r.figures for r in second.results]
    assert look[0].neighbours == again[0].neighbours
    assert look[0].scatters["far"].chart == again[0].scatters["far"].chart


def test_suite_picks_protocols_and_data_sets(tmp_path: Path, colours: Path) -> None:
    other = coloured(tmp_path / "other", classes=3)
    spec = vectors(tmp_path / "v", "colours", colours, 0.1)
    vectors(tmp_path / "v", "other", other, 0.1)
    data = {"colours": str(colours), "other": str(other)}
    for picked, expected in (
        (["gpr"], [("colours", "gpr"), ("other", "gpr")]),
        (["other", "gpr"], [("other", "gpr")]),
    ):
        config = settings(tmp_path, models=[f"v={spec}"], data=data, suite=picked)
        assert suite.measure(config)[0].measured() == expected


def test_a_protocol_that_the_data_are_too_small_for_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = coloured(tmp_path / "small", each=2)
    spec = vectors(tmp_path / "v", "small", small, 0.1)
    measured = suite.evaluate(settings(tmp_path, models=[f"v={spec}"], data={"small": str(small)}))
    assert "small/linear_probe" in measured.not_measured
    assert any("linear_probe" in line and "left out" in line for line in caplog.messages)
    assert "linear probe: not measured" in (tmp_path / "out" / "evaluation" / "index.html").read_text()


def test_what_a_benchmark_lacks_is_said_with_the_protocol(
    tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = replace(suite.open_dataset("colours", str(colours)), lacks={"knn": "no training images", "revisited": "x"})
    monkeypatch.setattr(suite, "open_dataset", lambda name, path: opened)
    spec = vectors(tmp_path / "v", "colours", colours, 0.1)
    config = settings(tmp_path, models=[f"v={spec}"], data={"colours": str(colours)}, suite=["gpr", "knn"])
    assert suite.measure(config)[0].not_measured == {"colours/knn": "no training images"}


def test_test_images_of_classes_unknown_to_training_and_a_regulariser_at_the_edge_are_said(tmp_path: Path) -> None:
    """Catches: a figure of 0.00 % that looks like a bad encoder."""
    for split, classes in (("train", (0, 1, 2)), ("test", (1, 2, 3))):
        coloured(tmp_path / "made", classes=4)
        for c in classes:
            shutil.copytree(tmp_path / "made" / f"colour {c:02d}", tmp_path / "set" / split / f"colour {c:02d}")
        shutil.rmtree(tmp_path / "made")
    spec = vectors(tmp_path / "v", "set", tmp_path / "set", 0.01)
    config = settings(
        tmp_path, models=[f"v={spec}"], data={"set": str(tmp_path / "set")}, suite=["knn", "linear_probe"], knn_k=(3,)
    )
    knn, probe = suite.measure(config)[0].results
    said = f"{EACH} of {3 * EACH} test images are of classes without a training image"
    assert any(said in note for note in knn.notes)
    assert any(said in note for note in probe.notes)
    assert any("is the end of what was tried" in note for note in probe.notes)
    assert len(probe.curve) == 12
    assert probe.figures["mean per class"] == pytest.approx(2 / 3)
    assert np.mean([v for v in probe.per_query["mean per class"] if v is not None]) == pytest.approx(2 / 3)


def test_all_data_sets_are_checked_before_a_model_is_loaded(
    tmp_path: Path, colours: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: an hour of encoding before a path is found to be wrong."""
    config = settings(
        tmp_path, models=["broken=local-dir:/nowhere"], data={"colours": str(colours), "gpr1200": str(tmp_path / "no")}
    )
    with pytest.raises(DatasetError, match=r"gpr1200.*no is no folder"):
        suite.evaluate(config)
    assert not any(line.startswith("broken") for line in caplog.messages)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"models": []}, "evaluate.models is empty"),
        ({"data": {}}, "evaluate.data is empty"),
        ({"suite": ["gpr", "roxford5k"]}, "--data roxford5k=FOLDER"),
        ({"suite": ["precision"]}, "'precision' is no protocol"),
        ({"suite": ["revisited"]}, "none of revisited applies to colours"),
        ({"models": ["a=vectors:x", "a=vectors:y"]}, "two are called 'a'"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, colours: Path, changed: dict[str, object], said: str
) -> None:
    asked = {"models": ["a=vectors:x"], "data": {"colours": str(colours)}, **changed}
    with pytest.raises(SuiteError, match=said.split("=")[0].replace("(", r"\(")) as error:
        suite.evaluate(settings(tmp_path, **asked))
    assert said in str(error.value)


def test_a_benchmark_that_is_not_there_says_where_it_comes_from(tmp_path: Path, colours: Path) -> None:
    config = settings(tmp_path, models=["a=vectors:x"], data={"colours": str(colours)}, suite=["gpr1200"])
    with pytest.raises(SuiteError, match="12,000"):
        suite.evaluate(config)
    with pytest.raises(SuiteError, match="12,000") as error:
        suite.evaluate(settings(tmp_path, suite=["gpr1200"]))
    assert "is-not-here" not in str(error.value)
    with pytest.raises(SuiteError, match=r"--data roxford5k=FOLDER.*revisitop"):
        suite.evaluate(settings(tmp_path, suite=["roxford"]))


def test_a_data_set_that_is_too_small_costs_the_others_nothing(tmp_path: Path, colours: Path) -> None:
    """Catches: kNN on one image ends the run, and the figures of the set before it are lost."""
    tiny = coloured(tmp_path / "tiny", classes=1, each=1)
    spec = vectors(tmp_path / "v", "colours", colours, 0.1)
    vectors(tmp_path / "v", "tiny", tiny, 0.1)
    data = {"colours": str(colours), "tiny": str(tiny)}
    measured = suite.evaluate(settings(tmp_path, models=[f"v={spec}"], data=data, suite=["knn_retrieval"]))
    assert measured.measured() == [("colours", "knn_retrieval")]
    assert "two images" in measured.not_measured["tiny/knn_retrieval"]
    with pytest.raises(SuiteError, match="tiny/knn_retrieval: kNN retrieval needs two images"):
        suite.evaluate(settings(tmp_path, models=[f"v={spec}"], data={"tiny": str(tiny)}, suite=["knn_retrieval"]))


def test_stored_vectors_of_all_data_sets_are_looked_for_first(
    tmp_path: Path, colours: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = coloured(tmp_path / "other", classes=3)
    spec = vectors(tmp_path / "v", "colours", colours, 0.1)
    config = settings(tmp_path, models=[f"v={spec}"], data={"colours": str(colours), "other": str(other)})
    with pytest.raises(DatasetError, match=r"other\.npz does not exist"):
        suite.evaluate(config)
    assert not any("mAP" in line for line in caplog.messages)


def test_a_k_beyond_the_training_images_is_noted(tmp_path: Path, colours: Path) -> None:
    spec = vectors(tmp_path / "v", "colours", colours, 0.1)
    config = settings(
        tmp_path,
        models=[f"v={spec}"],
        data={"colours": str(colours)},
        suite=["knn"],
        knn_k=[3, 5000],
    )
    measured = suite.evaluate(config)
    (result,) = measured.results
    assert list(result.figures) == ["k=3"]
    assert "k=5000 left out: there are" in result.notes[0]
    assert result.notes[0] in (tmp_path / "out" / "evaluation" / "index.html").read_text()
    assert measured.models[0].width == 16


@pytest.mark.slow
def test_images_that_cannot_be_decoded_are_counted_and_no_figure_has_them(
    tmp_path: Path, colours: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (colours / "colour 03" / "0.png").write_bytes(b"not an image")
    model = write_model(tmp_path / "model", "vit")
    config = settings(tmp_path, models=[f"vit={model}"], data={"colours": str(colours)}, suite=["gpr", "zero_shot"])
    measured, looks = suite.measure(config)
    assert measured.data[0].left_out == {"not decoded": 1}
    ((bad_name, why),) = measured.data[0].not_decoded.items()
    assert bad_name.endswith("0.png")
    assert any(bad_name in line and why in line for line in caplog.messages)
    assert measured.of("colours", "gpr")[0].counts["queries"] == CLASSES * EACH - 1
    assert measured.of("colours", "zero_shot")[0].counts["classes"] == CLASSES
    bad = 3 * EACH
    assert bad not in looks[0].asked_Q
    assert all(i != bad for near in looks[0].neighbours["vit"] for i, _ in near)


@pytest.mark.slow
def test_encoders_of_other_images_are_not_compared(tmp_path: Path, colours: Path) -> None:
    stored = vectors(tmp_path / "v", "colours", colours, 0.1)
    (colours / "colour 03" / "0.png").write_bytes(b"not an image")
    model = write_model(tmp_path / "model", "vit")
    config = settings(tmp_path, models=[f"vit={model}", f"v={stored}"], data={"colours": str(colours)}, suite=["gpr"])
    with pytest.raises(SuiteError, match="v has vectors of 96 images of colours, the encoder before it of 95"):
        suite.evaluate(config)


@pytest.mark.slow
def test_vectors_are_made_once(tmp_path: Path, colours: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = write_model(tmp_path / "model", "vit")
    config = settings(tmp_path, models=[f"vit={model}"], data={"colours": str(colours)}, suite=["gpr"])
    first = suite.evaluate(config)
    second = suite.evaluate(config)
    assert any("made before" in line for line in caplog.messages)
    assert [r.figures for r in first.results] == [r.figures for r in second.results]


@pytest.mark.slow
def test_a_revisited_set_is_measured_with_its_levels(tmp_path: Path, real_data: Path) -> None:
    """On the published ground truth with the golden features; images are stand-ins that nothing decodes."""
    truth = real_data / "eval" / "revisitop"
    root = tmp_path / "roxford5k"
    (root / "jpg").mkdir(parents=True)
    shutil.copy(truth / "gnd_roxford5k.pkl", root)
    named = json.loads((truth / "gnd_roxford5k.json").read_text())
    for name in {*named["imlist"], *named["qimlist"]}:
        (root / "jpg" / f"{name}.jpg").write_bytes(b"")
    with np.load(truth / "features_roxford5k.npz") as features:
        (tmp_path / "v").mkdir()
        np.savez(tmp_path / "v" / "roxford5k.npz", **dict(features.items()))
    config = settings(tmp_path, models=[f"v=vectors:{tmp_path / 'v'}"], data={"roxford5k": str(root)})
    (result,) = suite.evaluate(config).results
    golden = json.loads((truth / "golden.json").read_text())["roxford5k"]
    for level in ("easy", "medium", "hard"):
        assert result.figures[f"{level} mAP"] == pytest.approx(golden[level]["mAP"], abs=1e-6)
    assert len(result.per_query["hard mAP"]) == 70
