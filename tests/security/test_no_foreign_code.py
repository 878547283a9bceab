"""Bytes from outside never become code: what could do that is not called, and files that ask for it are refused."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from i2e_pipeline.core.config import ScoreConfig
from i2e_pipeline.core.errors import I2EError

ROOT = Path(__file__).parent.parent.parent
SOURCES = sorted(p for folder in ("i2e_pipeline", "wikidata", "jobs") for p in (ROOT / folder).rglob("*.py"))
JUSTIFIED = {
    ("i2e_pipeline/engine/workers.py", "pickle"): "a driver's own words to its own workers, through Spark's channel",
    ("i2e_pipeline/evaluate/revisited.py", "pickle"): "an Unpickler that finds six names of its own and nothing else",
    ("i2e_pipeline/core/settings.py", "yaml.load"): "with a loader that derives from SafeLoader",
    ("i2e_pipeline/engine/arrange.py", "cloudpickle"): "Spark's own closures, to Spark's own workers",
}
"""What calls or imports such a thing, and why it may."""
RUN_CODE = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle", "imp"}


def faults(tree: ast.AST) -> Iterator[str]:
    """What of a module could run code that bytes hold."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in RUN_CODE)
        if isinstance(node, ast.ImportFrom):
            names = {(node.module or "").split(".")[0], *(alias.name for alias in node.names)}
            yield from sorted(names & RUN_CODE)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called in ("eval", "exec", "compile", "builtins.eval", "builtins.exec"):
            yield called
        if called in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"):
            yield called
        if given.get("allow_pickle", "False") != "False":
            yield "allow_pickle"
        if called.endswith("torch.load") and given.get("weights_only") != "True":
            yield "torch.load"
        if given.get("trust_remote_code", "False") != "False":
            yield "trust_remote_code"
        if called.endswith((".read_pickle", "pd.read_hdf")):
            yield called
        if called.endswith((".extractall", ".extract")) and given.get("filter") != "'data'" and "zip" not in called:
            yield called
        if given.get("shell", "False") != "False" or called in ("os.system", "os.popen"):
            yield "a shell"


def test_nothing_that_runs_what_bytes_say_is_called() -> None:
    found = {}
    for path in SOURCES:
        for fault in faults(ast.parse(path.read_text(encoding="utf-8"))):
            found[path.relative_to(ROOT).as_posix(), fault] = True
    assert set(found) == set(JUSTIFIED) | {("i2e_pipeline/core/packaged.py", "packed.extractall")}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import joblib", "eval(x)", "exec(x)",
        "np.load(f, allow_pickle=True)",
        "torch.load(f)", "torch.load(f, weights_only=False)", "yaml.load(f, yaml.Loader)", "pd.read_pickle(f)",
        "tar.extractall(folder)", "subprocess.run(c, shell=True)", "os.system(c)",
        "from_pretrained(n, trust_remote_code=x)",
    ],
)  # fmt: skip
def test_each_of_them_is_found(source: str) -> None:
    assert list(faults(ast.parse(source)))


@pytest.mark.parametrize(
    "source", ["np.load(f)", "torch.load(f, weights_only=True)", "tar.extractall(f, filter='data')"]
)
def test_what_runs_nothing_is_left_alone(source: str) -> None:
    assert not list(faults(ast.parse(source)))


# --- files that ask for it ------------------------------------------------------------------------------------------


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.trace,)


@pytest.fixture
def evil(tmp_path: Path) -> Iterator[Evil]:
    """It leaves a trace where it is run."""
    made = Evil(tmp_path / "executed")
    pickle.loads(pickle.dumps(made))
    os.rmdir(made.trace)  # it does what it says
    yield made
    assert not os.path.exists(made.trace)


def test_a_pickle_among_a_models_weights_is_not_run(tmp_path: Path, evil: Evil) -> None:
    torch = pytest.importorskip("torch")
    from i2e_pipeline.images import encoder

    model = tmp_path / "model"
    model.mkdir()
    sample = ROOT / "i2e_pipeline/sample/models/scorer/open_clip_config.json"
    shutil.copy(sample, model)
    for content in (pickle.dumps(evil), _torch(torch, evil)):
        (model / "open_clip_pytorch_model.bin").write_bytes(content)
        with pytest.raises(I2EError, match="local-dir"):
            encoder.load(ScoreConfig(model=f"local-dir:{model}"))


def _torch(torch: Any, evil: Evil) -> bytes:
    stream = io.BytesIO()
    torch.save({"visual.proj": evil}, stream)
    return stream.getvalue()


def test_a_pickle_as_a_checkpoint_is_not_run(tmp_path: Path, evil: Evil) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    from i2e_pipeline.train import checkpoint

    folder = tmp_path / "step-00000001"
    folder.mkdir()
    content = pickle.dumps(evil)
    (folder / "towers.safetensors").write_bytes(content)
    state = {
        "format_version": 1, "step": 1, "position": 1, "width": 8, "recipe": "a", "config": {}, "dataset": "",
        "best": None, "counts": {}, "classes": 0, "files": {"towers.safetensors": len(content)}, "versions": {},
    }  # fmt: skip
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(checkpoint.CheckpointError, match=r"towers\.safetensors"):
        dict(checkpoint.load(folder).towers)


def test_a_pickle_as_vectors_is_not_run(tmp_path: Path, evil: Evil) -> None:
    from i2e_pipeline.evaluate import vectors

    def objects(path: Path) -> None:
        np.savez(path, features=np.array([evil, evil], dtype=object), labels=np.arange(2))

    def alone(path: Path) -> None:
        path.write_bytes(pickle.dumps(evil))

    def in_a_zip(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr("features.npy", pickle.dumps(evil))

    made: list[Callable[[Path], None]] = [objects, alone, in_a_zip]
    for number, write in enumerate(made):
        path = tmp_path / f"v{number}.npz"
        write(path)
        with pytest.raises(I2EError, match=rf"v{number}\.npz"):
            vectors.read_npz(str(path))


def test_a_pickle_as_ground_truth_is_not_run(tmp_path: Path, evil: Evil) -> None:
    from i2e_pipeline.evaluate.revisited import GroundTruthError, read_ground_truth

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "gnd.pkl").write_bytes(pickle.dumps({"imlist": [evil], "qimlist": [], "gnd": []}, protocol))
        with pytest.raises(GroundTruthError, match=r"mkdir"):
            read_ground_truth(str(tmp_path / "gnd.pkl"))


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir", "!!python/name:os.mkdir", "!!python/object/new:os.mkdir"]
)
def test_a_config_runs_nothing(tmp_path: Path, evil: Evil, tag: str) -> None:
    from i2e_pipeline.core import config

    (tmp_path / "a.yaml").write_text(f"output: {tag} ['{evil.trace}']\n")
    with pytest.raises(I2EError, match=r"a\.yaml"):
        config.load(str(tmp_path / "a.yaml"), [])
    with pytest.raises(I2EError, match="wave_units"):
        config.load(None, [f"run.wave_units={tag} [{evil.trace!r}]"])
