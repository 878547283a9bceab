"""What workers need as files comes to every machine, once, whole, and again where it was damaged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from i2e_pipeline.engine import shipping
from i2e_pipeline.engine.shipping import Shipped, ShippingError, ship


def spark(master: str) -> Any:
    return SimpleNamespace(sparkContext=SimpleNamespace(master=master))


CLUSTER = spark("spark://head:7077")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "here" / "model"
    (folder / "inner").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(bytes(range(256)) * 100)
    (folder / "inner" / "config.cfg").write_text("a = 1")
    return folder


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of a machine that has seen nothing yet."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(shipping, "_checked", {})
    return tmp_path / "tmp"


def content(folder: str) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


@pytest.mark.parametrize("master", ["local", "local[2]", "local[*]"])
def test_in_local_mode_it_is_read_where_it_lies(master: str, model: Path, tmp_path: Path) -> None:
    assert ship(spark(master), str(model), str(tmp_path / "out")) == Shipped(str(model))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shared", ["output", "setting"])
def test_what_every_machine_sees_is_read_there(shared: str, model: Path, tmp_path: Path) -> None:
    """Large artefacts are not copied where they need not be."""
    above = str(model.parent)
    output, folders = (above, ()) if shared == "output" else (str(tmp_path / "out"), (above + "/",))
    assert ship(CLUSTER, str(model), output, folders).local() == str(model)
    # A folder that only begins as a shared one does is none.
    assert ship(CLUSTER, str(model), str(tmp_path / "out"), (str(model)[:-1],)).digest is not None


def test_a_folder_is_packed_once_and_laid_out_as_it_was(model: Path, machine: Path, tmp_path: Path) -> None:
    shipped = ship(CLUSTER, str(model), str(tmp_path / "out"))
    (archive,) = (tmp_path / "out" / "_shipped").iterdir()
    packed = archive.stat().st_mtime_ns
    assert ship(CLUSTER, str(model), str(tmp_path / "out")) == shipped
    assert archive.stat().st_mtime_ns == packed
    assert shipped.local().startswith(str(machine))
    assert Path(shipped.local()).name == "model"
    assert content(shipped.local()) == content(str(model))


def test_other_content_under_the_same_name_is_another_folder(model: Path, machine: Path, tmp_path: Path) -> None:
    """Catches: a new model scored with the old one's files (addFile tells files apart by their last name)."""
    before = ship(CLUSTER, str(model), str(tmp_path / "out")).local()
    (model / "weights.bin").write_bytes(b"new")
    after = ship(CLUSTER, str(model), str(tmp_path / "out")).local()
    assert before != after
    assert (Path(after) / "weights.bin").read_bytes() == b"new"


def test_a_single_file_travels_too(machine: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a\nb\n")
    assert Path(ship(CLUSTER, str(tmp_path / "list.txt"), str(tmp_path / "out")).local()).read_text() == "a\nb\n"


@pytest.mark.parametrize("damage", ["truncated", "changed", "gone"])
def test_a_damaged_layout_is_fetched_again(damage: str, model: Path, machine: Path, tmp_path: Path) -> None:
    shipped = ship(CLUSTER, str(model), str(tmp_path / "out"))
    weights = Path(shipped.local()) / "weights.bin"
    if damage == "gone":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[: 100 if damage == "truncated" else -1] + b"!")
    shipping._checked.clear()  # as in a new process
    assert content(shipped.local()) == content(str(model))


def test_an_archive_of_other_content_is_refused(model: Path, machine: Path, tmp_path: Path) -> None:
    shipped = ship(CLUSTER, str(model), str(tmp_path / "out"))
    with pytest.raises(ShippingError, match="remove it"):
        Shipped(shipped.path, shipped.name, "0" * 32).local()
    assert not list(machine.rglob("weights.bin"))


def test_processes_of_a_machine_may_ask_at_once(model: Path, tmp_path: Path) -> None:
    """Catches: one process renaming away the folder that another has just opened."""
    shipped = ship(CLUSTER, str(model), str(tmp_path / "out"))
    script = (
        "import sys; from i2e_pipeline.engine.shipping import Shipped; from pathlib import Path\n"
        "for _ in range(20):\n"
        "    folder = Shipped(*sys.argv[1:]).local(); print(len((Path(folder) / 'weights.bin').read_bytes()))"
    )
    (tmp_path / "fresh").mkdir()
    command = [sys.executable, "-c", script, shipped.path, shipped.name, str(shipped.digest)]
    running = [
        subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path / "fresh")}, stdout=subprocess.PIPE)
        for _ in range(6)
    ]
    assert [p.communicate()[0].split() for p in running] == [[b"25600"] * 20] * 6
    (folder,) = (tmp_path / "fresh").glob("i2e-*/shipped/model-*")
    assert content(str(folder / "model")) == content(str(model))
