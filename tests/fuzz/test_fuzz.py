"""Damaged and hostile inputs at every door (benchmarks/fuzzing), a minute of them; `benchmarks/fuzz.py` tries more.

Catches: an error that no user can read, a process that dies, an input that hangs, rows that nobody counts.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("duckdb", reason="i2e explore is not installed: the extra [explore]")
pytest.importorskip("torch")

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from fuzzing import corpus, mutate, run  # noqa: E402
from fuzzing.contained import Say, contained  # noqa: E402
from fuzzing.targets import TARGETS, RowsLost, read_pairs  # noqa: E402

from i2e_pipeline.core.config import PairsConfig  # noqa: E402
from i2e_pipeline.core.errors import I2EError  # noqa: E402
from i2e_pipeline.images.decode import Decoded, decode  # noqa: E402
from tests.images.test_decode import pixels  # noqa: E402

INPUTS = 150
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits of a process' memory are Linux's /proc here")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of so many inputs of each target, the same in every run."""
    out = tmp_path_factory.mktemp("fuzz") / "fuzz.json"
    command = [
        sys.executable,
        "benchmarks/fuzz.py",
        "--inputs",
        str(INPUTS),
        "--seed",
        "7",
        "--minutes",
        "6",
        "--json",
        str(out),
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=560, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert out.exists(), done.stdout + done.stderr
    told = json.loads(out.read_text())
    assert done.returncode == (1 if told["failures"] else 0)
    return {"targets": {t["name"]: t for t in told["targets"]}, "failures": told["failures"]}


@linux
@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_nothing_crashes_hangs_or_loses_rows(name: str, outcomes: dict[str, Any]) -> None:
    failures = [f for f in outcomes["failures"] if f["target"] == name]
    assert not failures, "\n".join(f"input {f['at']}: {f['said']}\n{f['trace']}" for f in failures)
    told = outcomes["targets"][name]
    assert told["inputs"] == told["read"] + told["refused"] == INPUTS
    # A door that takes all, or nothing, was not tried.
    assert min(told["read"], told["refused"]) > 0


# --- the harness finds what it looks for ------------------------------------------------------------------------------


def _crashes(rng: random.Random) -> str:
    os.kill(os.getpid(), 11)
    return run.READ


def _hangs(rng: random.Random) -> str:
    while True: pass  # fmt: skip  # noqa: E701 - one line, so that each hang is found at the same place


def _eats(rng: random.Random) -> str:
    held = bytearray(8 << 30)
    return str(len(held))


def _loses(rng: random.Random) -> str:
    raise RowsLost("1 in, 0 out")


def _raises(rng: random.Random) -> str:
    return str({}["nothing"])


@linux
@pytest.mark.parametrize(
    ("once", "crashes", "hangs", "lost"),
    [(_crashes, 3, 0, 0), (_hangs, 0, 3, 0), (_eats, 3, 0, 0), (_loses, 0, 0, 3), (_raises, 3, 0, 0)],
)
def test_a_target_that_fails_is_found(
    monkeypatch: pytest.MonkeyPatch, once: Any, crashes: int, hangs: int, lost: int
) -> None:
    """Every input is tried, whatever became of the one before."""
    monkeypatch.setitem(run.TARGETS, "toy", lambda folder: once)
    monkeypatch.setattr(run, "HANG", 1.0)
    told = run.tried("toy", 1, 3)
    assert (told.crashes, told.hangs, told.lost) == (crashes, hangs, lost)
    assert len(told.failures) == 1
    assert once.__name__ in told.failures[0]["trace"]
    assert not told.whole


@linux
def test_what_was_said_before_a_crash_is_known() -> None:
    def work(say: Say) -> None:
        say(1)
        os.kill(os.getpid(), 6)

    ended = contained(work, 10, 500)
    assert (ended.said, ended.how) == ([1], "killed by SIGABRT")
    assert "work" in ended.trace


def test_equal_seeds_make_equal_inputs_and_others_others() -> None:
    stored = corpus.parquet()[0]
    made = [mutate.mutated(stored, random.Random(seed)) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_what_is_damaged_was_whole(tmp_path: Path) -> None:
    """Catches: a corpus of which nothing can be read, so that nothing is tried."""
    for stored in [s for forms in corpus.images().values() for s in forms]:
        assert isinstance(decode(stored, run_limits(), pixels, 0), Decoded)
    for n, stored in enumerate(corpus.parquet()):
        path = tmp_path / f"{n}.parquet"
        path.write_bytes(stored)
        assert read_pairs(path, tmp_path, PairsConfig(path=(str(path),))) == "read"
    for n in range(20):
        path = tmp_path / f"{n}.tar"
        path.write_bytes(corpus.tar(random.Random(n)))
        try:
            read_pairs(path, tmp_path, PairsConfig(path=(str(path),)))
        except I2EError as error:  # of six samples none may have drawn an image or a text
            assert "column" in str(error)  # noqa: PT017


def run_limits() -> Any:
    from fuzzing.targets import _LIMITS

    return _LIMITS


def test_formats_that_are_read_are_damaged() -> None:
    from i2e_pipeline.images.formats import by_pillow

    Image.init()
    assert set(by_pillow()) <= set(corpus.images())
