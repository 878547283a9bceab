"""benchmarks/faults.py counts what it injects as what it is; docs/reliability.md tells what it counted."""

from __future__ import annotations

import json
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import faults
from tests.faults import deaths, injector, tasks
from tests.faults.injector import Fault, Outcome

ROOT = Path(__file__).parents[2]


def outcome(where: str, storage: str, *kinds: str, lost: int = 0) -> Outcome:
    return Outcome(1, where, storage, [Fault(k, "score", 0.5, seconds=1.5) for k in kinds], rows=100, lost=lost)


def test_every_kind_is_drawn_on_both_storages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Catches: kinds that no seed of the default comes to; fewer kills than were asked for."""
    drawn: dict[tuple[str, str], list[str]] = {}

    def chain(world: Any, output: Path, seed: int, kinds: Sequence[str], storage: str, cluster: Any, _: Any) -> Outcome:
        output.mkdir()
        came = kinds[1:] if seed < 100 else kinds  # the first comes too late, and is drawn again
        drawn.setdefault(("cluster" if cluster else "local", storage), []).extend(came)
        return outcome("cluster" if cluster else "local", storage, *came)

    class Machines:
        processes: Sequence[Any] = ()

        def __init__(self, folder: Path) -> None: ...
        def start_master(self) -> None: ...
        def replenish(self) -> None: ...
        def overrides(self) -> list[str]:
            return []

    monkeypatch.setattr(injector, "chain", chain)
    monkeypatch.setattr(faults, "LightCluster", Machines)
    world = injector.World(tmp_path, {}, {})
    made = [*faults.local(world, 2, False), *faults.on_cluster(world, 2, False)]
    figures = faults.summary(made)
    assert drawn.keys() == {(where, storage) for where in ("local", "cluster") for storage in faults.STORAGES}
    assert {kind for kinds in drawn.values() for kind in kinds} == injector.KINDS.keys()
    assert figures["killed with -9"] >= 30
    assert figures["never injected"] == sorted({deaths.DEATH, *dict(tasks.FAULTS)})


def test_faults_are_counted_as_what_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = [
        outcome("local", "parquet", "driver", "SIGTERM", "driver"),
        outcome("cluster", "delta", "driver", lost=3),
        outcome("local", "delta", deaths.DEATH),
    ]
    monkeypatch.setattr(injector, "undisturbed", lambda place: injector.World(place, {}, {}))
    monkeypatch.setitem(faults.INJECTED, "local", lambda *_: iter(made))
    file = tmp_path / "figures.json"
    assert faults.main(["--only", "local", "--json", str(file)]) == 1
    figures = json.loads(file.read_text())
    told_of = ("fault", "how", "where", "storage", "injected", "survived")
    assert [tuple(of[name] for name in told_of) for of in figures["faults"]] == [
        ("driver", "kill -9", "local", "parquet", 2, 2),
        ("SIGTERM", "asked to end", "local", "parquet", 1, 1),
        ("driver", "kill -9", "cluster", "delta", 1, 0),
        ("death at a commit point", "of itself", "local", "delta", 1, 1),
    ]
    assert (figures["kinds"], figures["injected"], figures["survived"], figures["killed with -9"]) == (3, 5, 4, 3)
    assert figures["rows lost"] == 3
    assert len(figures["outcomes"]) == 3
    told = runpy.run_path(str(ROOT / "docs" / "generate.py"))["faults"](figures)
    assert "| driver | kill -9 | 2 |  |  | 1 | 2 of 3 | 1.5 s |" in told
    assert "3 lost" in told
    assert "Not injected: " in told
    del made[1]
    assert faults.main(["--only", "local"]) == 0


def test_the_page_tells_what_was_counted() -> None:
    """Of which file, and of one that these scripts wrote (tests/commands/test_reference.py compares the pages)."""
    figures = json.loads((ROOT / "benchmarks" / "results" / "faults.json").read_text())
    page = (ROOT / "docs" / "reliability.md").read_text()
    assert runpy.run_path(str(ROOT / "docs" / "generate.py"))["faults"](figures) in page
    assert figures["injected"] == sum(len(o["faults"]) for o in figures["outcomes"])
    assert figures["survived"] == figures["injected"]
