"""`i2e evaluate` as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from i2e_pipeline import cli
from tests.evaluate.small_sets import coloured, vectors

ROOT = Path(__file__).parent.parent.parent
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Calls `i2e evaluate …` in an empty folder; exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def called(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as done:
            cli.main(["evaluate", *arguments])
        said = capsys.readouterr()
        return int(done.value.code or 0), said.out, said.err

    return called


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """60 classes of ten stored vectors."""
    labels = np.arange(60).repeat(10)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 8))[labels] + rng.normal(size=(600, 8))
    np.savez(tmp_path / "v.npz", features=features.astype(np.float32), labels=labels)
    return tmp_path / "v.npz"


def test_stored_vectors_are_measured_and_compared(call: Call, labelled: Path, tmp_path: Path) -> None:
    code, out, _ = call("--vectors", "v.npz", "--protocol", "gpr", "--json", "a.json")
    assert code == 0
    assert "mAP" in out
    assert "mAP, landmarks (100)" in out
    written = json.loads((tmp_path / "a.json").read_text())
    assert len(written["results"]["gpr"]["ap"]) == 600
    assert set(written["results"]["gpr"]["per_domain"]) == {
        "landmarks",
        "nature",
        "sketches",
        "objects",
        "products",
        "faces",
    }
    with np.load(labelled) as stored:
        better = stored["features"] + 3 * np.random.default_rng(1).normal(size=(60, 8))[stored["labels"]]
        np.savez(tmp_path / "w.npz", features=better, labels=stored["labels"])
    assert call("--vectors", "w.npz", "--protocol", "gpr", "--json", "b.json")[0] == 0
    code, out, _ = call("--compare", "a.json", "b.json", "--json", "c.json")
    assert code == 0
    assert "b is better" in out
    assert "60 classes" in out
    compared, *of_domains = json.loads((tmp_path / "c.json").read_text())["compared"]
    assert of_domains[0]["figure"] == "mAP, landmarks"
    assert all(d["interval"]["clusters"] == 10 for d in of_domains)
    assert compared["verdict"] == "b is better"
    assert compared["interval"]["low"] > 0


def test_figures_equal_the_golden_ones(call: Call, real_data: Path, tmp_path: Path) -> None:
    mini = real_data / "eval" / "gpr1200"
    assert call("--vectors", str(mini / "mini_features.npz"), "--protocol", "gpr", "--json", "r.json")[0] == 0
    ours = json.loads((tmp_path / "r.json").read_text())["results"]["gpr"]
    golden = json.loads((mini / "mini_golden.json").read_text())
    assert ours["ap"] == pytest.approx(golden["ap"], abs=1e-6)
    oxford = real_data / "eval" / "revisitop"
    code, out, _ = call(
        "--vectors",
        str(oxford / "features_roxford5k.npz"),
        "--protocol",
        "revisited",
        "--ground-truth",
        str(oxford / "gnd_roxford5k.pkl"),
        "--json",
        "r.json",
    )
    assert code == 0
    golden = json.loads((oxford / "golden.json").read_text())["roxford5k"]
    assert f"{100 * golden['medium']['mAP']:.2f}" in out


def test_two_encoders_on_a_folder(call: Call, tmp_path: Path) -> None:
    colours = coloured(tmp_path / "colours")
    far, near = (vectors(tmp_path / n, "colours", colours, noise) for n, noise in (("far", 3.0), ("near", 0.1)))
    code, out, err = call(
        "--model",
        f"far={far}",
        "--model",
        f"near={near}",
        "--data",
        f"colours={colours}",
        "--suite",
        "gpr",
        "--suite",
        "knn",
        "--json",
        "r.json",
        "--set",
        "evaluate.projection=none",
        "evaluate.knn_k=[3]",
        "output=here",
    )
    assert code == 0
    assert "near is better" in out
    assert "mAP" in out
    assert "k=3" in out
    assert "vectors" in err
    assert (tmp_path / "here" / "evaluation" / "index.html").is_file()
    assert (tmp_path / "r.json").read_bytes() == (tmp_path / "here" / "evaluation" / "results.json").read_bytes()
    code, out, _ = call("--compare", "r.json")
    assert code == 0
    assert "near is better" in out


def test_what_a_config_file_says_is_measured(call: Call, tmp_path: Path) -> None:
    colours = coloured(tmp_path / "colours")
    spec = vectors(tmp_path / "v", "colours", colours, 0.1)
    evaluate = {"models": [spec], "data": {"colours": str(colours)}, "projection": "none", "suite": "gpr"}
    (tmp_path / "c.yaml").write_text(json.dumps({"output": "mine", "evaluate": evaluate}))
    code, out, _ = call("--config", "c.yaml")
    assert code == 0
    assert "mine/evaluation/index.html" in out


def test_predictions_of_oven_are_scored(call: Call, tmp_path: Path) -> None:
    """Catches: a protocol that works in Python and not at the terminal."""
    truth, made = [], []
    for name, right in (("entity", (1, 3)), ("query", (2, 2))):
        for n, side in enumerate(["seen"] * 4 + ["unseen"] * 4):
            data_id = f"oven_{name}_val_{n:08d}"
            truth.append({"data_id": data_id, "entity_id": "Q1", "data_split": f"val_{side}"})
            made.append({"data_id": data_id, "pred_entity_id": "Q1" if n % 4 < right[n // 4] else "Q2"})
    for file, rows in (("p.jsonl", made), ("r.jsonl", truth)):
        (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["--protocol", "oven", "--predictions", "p.jsonl", "--ground-truth", "r.jsonl", "--json", "o.json"]
    code, out, _ = call(*asked)
    assert code == 0
    found = json.loads((tmp_path / "o.json").read_text())["results"]["oven"]
    assert (found["entity_score"], found["query_score"], found["final_score"]) == (37.5, 50.0, 42.86)
    assert "42.86" in out
    code, out, _ = call("--compare", "o.json", "o.json")
    assert code == 0
    assert "entity unseen" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--predictions", "p.jsonl"], "say --protocol oven --ground-truth"),
        (["--predictions", "p.jsonl", "--protocol", "gpr", "--ground-truth", "r"], "say --protocol oven"),
        (["--protocol", "oven"], "--data oven=FOLDER"),
        (["--protocol", "oven", "--predictions", "p", "--ground-truth", "r", "--model", "a"], "one of them at a time"),
        (["--protocol", "oven", "--predictions", "no.jsonl", "--ground-truth", "no.jsonl"], "no.jsonl: no such file"),
        (["--vectors", "v.npz"], "say --protocol gpr"),
        (["--vectors", "v.npz", "--protocol", "revisited"], "needs --ground-truth"),
        (["--protocol", "gpr", "--model", "a"], "belong to --vectors"),
        (["--vectors", "v.npz", "--protocol", "gpr", "--model", "a"], "--vectors and --model: one of them at a time"),
        (["--compare", "no.json", "no.json"], "no.json: no such file"),
        (["--compare", "a", "b", "c"], "one file or two, not 3"),
        (["--model", "a", "--data", "folder"], "--data folder: write it as NAME=PATH"),
        (["--model", "a", "--data", "x/y=folder"], "'x/y' is to name files"),
        (["--model", "a", "--data", "x=1", "--data", "x=2"], "one name twice"),
        (["--model", "a"], "evaluate.data is empty"),
        (["--data", "x=."], "evaluate.models is empty"),
        (["--vectors", "nowhere.npz", "--protocol", "gpr"], "nowhere.npz"),
    ],
)
def test_bad_arguments_get_an_error_that_names_them(
    call: Call, labelled: Path, arguments: list[str], said: str
) -> None:
    code, _, err = call(*arguments)
    assert code == 2
    assert said in err
    assert "Traceback" not in err


def test_vectors_and_labels_of_other_lengths_are_refused(call: Call, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", features=np.ones((5, 3), np.float32), labels=np.arange(4))
    code, _, err = call("--vectors", "bad.npz", "--protocol", "gpr")
    assert code == 2
    assert "bad.npz" in err
    np.savez(tmp_path / "nan.npz", features=np.full((4, 3), np.nan, np.float32), labels=np.arange(4))
    code, _, err = call("--vectors", "nan.npz", "--protocol", "gpr")
    assert code == 2
    assert "NaN" in err


def submit(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs" / "evaluate.py"), *arguments]
    env: dict[str, Any] = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_the_job_without_arguments_measures_the_sample(tmp_path: Path) -> None:
    """Trained above untrained on the small GPR1200."""
    done = submit(tmp_path, "--set", "evaluate.projection=none")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "out" / "sample" / "evaluation"
    by_protocol: dict[str, dict[str, float]] = {}
    for result in json.loads((folder / "results.json").read_text())["results"]:
        by_protocol.setdefault(result["protocol"], {})[result["model"]] = next(iter(result["figures"].values()))
    assert {"gpr", "knn_retrieval", "knn", "linear_probe", "zero_shot", "image_to_entity"} <= set(by_protocol)
    assert all(figures["trained"] > 2 * figures["untrained"] for figures in by_protocol.values())
    assert by_protocol["gpr"]["trained"] > 0.5
    assert (folder / "index.html").is_file()


@pytest.mark.slow
def test_the_job_without_spark(tmp_path: Path) -> None:
    """Catches: a machine that only evaluates needing Java."""
    script = (
        "import sys; sys.path.insert(0, '.'); import i2e_pipeline.evaluate.suite, i2e_pipeline.evaluate.in_training; "
        "assert not any(m.split('.')[0] == 'pyspark' for m in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=300)
