"""The check of a card runs without one, and a check that fails is told apart from one that cannot run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import Check, LeftOut, Place


@pytest.mark.slow
def test_what_a_processor_can_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checks = ["device", "losses", "resume", "waits", "compile", "ranks", "training", "scoring"]
    assert list(gpu_check.CHECKS) == checks
    out = tmp_path / "found.json"
    asked = [name for name in checks if name not in ("compile", "ranks")]  # a minute, and tested elsewhere
    assert gpu_check.main(["--steps", "4", "--checks", *asked, "--json", str(out)]) == 0
    found = {check["name"]: check for check in json.loads(out.read_text())}
    assert [found[name]["verdict"] for name in asked] == ["left out", "right", "right", "left out", "right", "left out"]
    assert 0 < found["losses"]["figures"]["differ"] < gpu_check.LOSS_DIFFERS
    assert found["training"]["figures"]["rows"][0]["images_per_second"] > 0
    assert "losses    right" in capsys.readouterr().out


def test_a_check_that_fails_is_wrong_and_the_others_still_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dies(_: Place) -> Check:
        raise ValueError("no such kernel")

    def cannot(_: Place) -> Check:
        raise LeftOut("no card")

    def fine(_: Place) -> Check:
        return Check("fine", "right", "as it should be")

    monkeypatch.setattr(gpu_check, "CHECKS", {"dies": dies, "cannot": cannot, "fine": fine})
    monkeypatch.setattr(gpu_check, "write_dataset", lambda *_: "nowhere")
    assert gpu_check.main([]) == 1
    said = [line.split(maxsplit=4) for line in capsys.readouterr().out.splitlines()]
    assert [(line[0], line[1]) for line in said] == [("dies", "wrong"), ("cannot", "left"), ("fine", "right")]


def test_losses_that_differ_are_wrong() -> None:
    same = {1: 2.0, 2: 1.0}
    assert gpu_check._compared("x", {1: 2.01, 2: 1.0}, same, 0.01, "x").verdict == "right"
    assert gpu_check._compared("x", {1: 2.0, 2: 1.02}, same, 0.01, "x").verdict == "wrong"
    assert gpu_check._compared("x", {1: 2.0}, same, 0.01, "x").verdict == "wrong"
