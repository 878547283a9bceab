"""The benchmark of labels: which worlds a fit sees. What it measures takes a quarter of an hour, and is in docs."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import labels


@pytest.mark.parametrize(
    ("worlds", "said"),
    [
        (("--world", "a=x", "--unseen", "a=y"), "--unseen a=y: a is the name of a world that the fit sees, too"),
        (("--unseen", "plain=y"), "--unseen plain=y: plain is the name of a world that the fit sees, too"),
        (("--world", "a=x", "--world", "a=y"), "--world a=y: a is twice"),
        (("--unseen", "y"), "--unseen y: write it as NAME=DUMP"),
    ],
)
def test_a_world_that_no_fit_may_see_has_a_name_of_its_own(
    worlds: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a world that is held out enters the fit, by its name."""
    monkeypatch.setattr(labels, "measure", lambda *_: pytest.fail("a world is measured"))
    main = labels.main
    with pytest.raises(SystemExit) as stopped:
        main(["--data", str(tmp_path), "--folder", str(tmp_path / "out"), *worlds])
    assert said in str(stopped.value)


def test_verdicts_of_nobody_are_refused(tmp_path: Path) -> None:
    main = labels.main
    with pytest.raises(SystemExit, match=r"--verdicts asks nobody: --set verify\.model=… or verify\.server=…"):
        main(["--data", str(tmp_path), "--folder", str(tmp_path / "out"), "--verdicts"])
