"""Every job runs as its first lines say, in order. Catches: entry points that fail at HEAD (MetaCLIP, cc2dataset)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from i2e_pipeline.core.config import dump, from_tree
from i2e_pipeline.sample import compose, embedded

pytestmark = pytest.mark.slow

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
ELSEWHERE = {"evaluate": "tests/evaluate/test_evaluate_command.py"}
"""Jobs that need no Spark, and the tests that run them."""


def submit(job: str, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """spark-submit as a user with the environment activated calls it."""
    binaries = Path(sys.executable).parent
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYSPARK", "SPARK"))}
    env["PATH"] = f"{binaries}{os.pathsep}{env['PATH']}"
    command = [str(binaries / "spark-submit"), str(ROOT / "jobs" / f"{job}.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)


def test_there_is_a_test_for_every_job() -> None:
    assert {p.stem for p in (ROOT / "jobs").glob("*.py")} == {*IN_ORDER, *LAST, *ELSEWHERE}
    assert all((ROOT / tests).is_file() for tests in ELSEWHERE.values())


def test_jobs_without_arguments_work_on_the_sample(tmp_path: Path) -> None:
    """The whole sample; its labels are as good as README says they are at least."""
    done = submit("extract_entities", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(p.name for p in (tmp_path / "out" / "sample" / "input" / "pairs").iterdir())[0] == "00000.parquet"
    assert (tmp_path / "out" / "sample" / "input" / "dump.json.bz2").is_file()
    assert list((tmp_path / "out" / "sample" / "mentions").rglob("*.parquet"))
    assert not (tmp_path / "out" / "sample" / "candidates").exists()
    done = submit("report", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "sample" / "report.html").is_file()
    figures = json.loads((tmp_path / "out" / "sample" / "quality.json").read_text())
    published = {f["slice"]: f for f in figures if f["stage"] == "published"}
    for part, precision, recall in (("all", 0.95, 0.80), ("colliding: yes", 0.95, 0.80), ("hand: twemoji", 0.95, 0.80)):
        assert published[part]["precision"] >= precision
        assert published[part]["recall"] >= recall


def test_jobs_in_their_order_on_given_input(tmp_path: Path) -> None:
    compose.compose(tmp_path / "input", rows=40, shards=2)
    tree = embedded.tree([f"output={tmp_path}", "select.min_images_per_entity=1", "label.threshold=0.2"])
    config = tmp_path / "config.yaml"
    config.write_text(dump(from_tree(tree, "test")))
    early = submit("link_entities", tmp_path, "--config", str(config))
    assert early.returncode == 2
    # spark-submit sends a Python driver's errors to its output.
    assert "run jobs/build_knowledge_base.py first" in early.stdout + early.stderr
    early = submit("report", tmp_path, "--config", str(config))
    assert early.returncode == 2
    assert "jobs/build_dataset.py" in early.stdout + early.stderr
    for job in IN_ORDER:
        done = submit(job, tmp_path, "--config", str(config), "--set", "session.shuffle_partitions=2")
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "i2e" / "manifest.json").is_file()
    assert (tmp_path / "report.html").is_file()
    train_on_two_ranks(tmp_path, config)


def train_on_two_ranks(folder: Path, config: Path) -> None:
    """Through TorchDistributor in local mode: both ranks take part, and what stops one is said."""
    settings = (
        "train.ranks=2", "train.steps=3", "train.data.batch_size=8", "train.data.hold_out_entities=0",
        "train.device=cpu", "train.threads=1",
    )  # fmt: skip
    done = submit("train", folder, "--config", str(config), "--set", *settings, f"train.dataset={folder}/nowhere")
    assert done.returncode == 1
    assert "nowhere has no manifest.json" in done.stdout + done.stderr
    done = submit("train", folder, "--config", str(config), "--set", *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    (trained,) = (folder / "train").iterdir()
    assert json.loads((trained / "outcome.json").read_text())["steps"] == 3
    assert json.loads((trained / "journal.jsonl").read_text().split("\n")[0])["ranks"] == 2
    assert len(list((trained / "checkpoints" / "step-00000003").glob("head-*-of-00002.safetensors"))) == 2
