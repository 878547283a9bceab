"""Every job runs as its first lines say, in order. Catches: entry points that fail at HEAD (MetaCLIP, cc2dataset).

One real spark-submit shows that a job finds its package, its Python and its config under it; the mains of the others
run in this process on the session of the tests, since a spark-submit costs half a minute and shows nothing new.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from i2e_pipeline.core.config import dump, from_tree
from i2e_pipeline.sample import compose, embedded

pytestmark = [pytest.mark.slow, pytest.mark.spark]

ROOT = Path(__file__).parent.parent
IN_ORDER = (
    "build_knowledge_base",
    "extract_entities",
    "link_entities",
    "score_images",
    "build_dataset",
    "report",
)

LAST = ("train",)
ELSEWHERE = {
    "evaluate": "tests/commands/test_evaluate.py",
    "doctor": "tests/cluster/test_standalone.py",
    "count_anchors": "tests/commands/test_count_anchors.py",
    "reinforce": "tests/commands/test_reinforce.py",
}
"""Jobs that are no stages, need no Spark, or a cluster, and the tests that run them."""

Main = Callable[..., tuple[int, str]]


def submit(job: str, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """spark-submit as a user with the environment activated calls it."""
    binaries = Path(sys.executable).parent
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYSPARK", "SPARK"))}
    env["PATH"] = f"{binaries}{os.pathsep}{env['PATH']}"
    command = [str(binaries / "spark-submit"), str(ROOT / "jobs" / f"{job}.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)


@pytest.fixture
def main(spark: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Main:
    """Runs a job's file as `__main__` on the tests' session; gives its exit code and all that it said."""

    def run(job: str, cwd: Path, *arguments: str) -> tuple[int, str]:
        path = ROOT / "jobs" / f"{job}.py"
        capfd.readouterr()
        with monkeypatch.context() as patch:
            patch.chdir(cwd)
            patch.setattr(sys, "argv", [str(path), *arguments])
            patch.setattr(sys, "path", sys.path[:])
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(str(path), run_name="__main__")
        said = capfd.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    return run


def test_there_is_a_test_for_every_job() -> None:
    assert {p.stem for p in (ROOT / "jobs").glob("*.py")} == {*IN_ORDER, *LAST, *ELSEWHERE}
    assert all((ROOT / tests).is_file() for tests in ELSEWHERE.values())


@pytest.mark.long
def test_jobs_without_arguments_work_on_the_sample(tmp_path: Path, main: Main) -> None:
    """The whole sample; its labels are as good as README says they are at least."""
    done = submit("extract_entities", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(p.name for p in (tmp_path / "out" / "sample" / "input" / "pairs").iterdir())[0] == "00000.parquet"
    assert (tmp_path / "out" / "sample" / "input" / "dump.json.bz2").is_file()
    assert list((tmp_path / "out" / "sample" / "mentions").rglob("*.parquet"))
    assert not (tmp_path / "out" / "sample" / "candidates").exists()
    # The JVM of the tests stands in another folder: it is told where the output lies.
    code, said = main("report", tmp_path, "--set", f"output={tmp_path}/out/sample")
    assert code == 0, said
    assert (tmp_path / "out" / "sample" / "report.html").is_file()
    figures = json.loads((tmp_path / "out" / "sample" / "quality.json").read_text())
    published = {f["slice"]: f for f in figures if f["stage"] == "published"}
    for part, precision, recall in (("all", 0.95, 0.80), ("colliding: yes", 0.95, 0.80), ("hand: twemoji", 0.95, 0.80)):
        assert published[part]["precision"] >= precision
        assert published[part]["recall"] >= recall


@pytest.mark.long
def test_jobs_in_their_order_on_given_input(tmp_path: Path, main: Main) -> None:
    compose.compose(tmp_path / "input", rows=40, shards=2)
    tree = embedded.tree([f"output={tmp_path}", "select.min_images_per_entity=1", "label.threshold=0.2"])
    config = tmp_path / "config.yaml"
    config.write_text(dump(from_tree(tree, "test")))
    code, said = main("link_entities", tmp_path, "--config", str(config))
    assert code == 2
    assert "run jobs/build_knowledge_base.py first" in said
    code, said = main("report", tmp_path, "--config", str(config))
    assert code == 2
    assert "jobs/build_dataset.py" in said
    for job in IN_ORDER:
        code, said = main(job, tmp_path, "--config", str(config), "--set", "session.shuffle_partitions=2")
        assert code == 0, said
    assert (tmp_path / "i2e" / "manifest.json").is_file()
    assert (tmp_path / "report.html").is_file()
    train_on_two_ranks(tmp_path, config, main)


def train_on_two_ranks(folder: Path, config: Path, main: Main) -> None:
    """Through TorchDistributor in local mode: both ranks take part, and what stops one is said."""
    settings = (
        "train.ranks=2", "train.steps=3", "train.data.batch_size=8", "train.data.hold_out_entities=0",
        "train.device=cpu", "train.threads=1",
    )  # fmt: skip
    code, said = main("train", folder, "--config", str(config), "--set", *settings, f"train.dataset={folder}/nowhere")
    assert code == 1
    assert "nowhere has no manifest.json" in said
    code, said = main("train", folder, "--config", str(config), "--set", *settings)
    assert code == 0, said
    (trained,) = (folder / "train").iterdir()
    assert json.loads((trained / "outcome.json").read_text())["steps"] == 3
    assert json.loads((trained / "journal.jsonl").read_text().split("\n")[0])["ranks"] == 2
    assert len(list((trained / "checkpoints" / "step-00000003").glob("head-*-of-00002.safetensors"))) == 2
