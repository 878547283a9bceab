"""The seal of an output: what it names, what it holds twice, and whose changes it does not take for its own."""

from __future__ import annotations

import json
import os
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.core import digests
from i2e_pipeline.engine import seal


def output(folder: Path) -> str:
    for path in (
        "_commits/a/journal-000000001.json",
        "units/u-1.json",
        "units/index/ab.parquet",
        "report.html",
        "x/_delta_log/0.json",
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f'{{"of": "{path}"}}')
    (folder / "mine.txt").write_text("nobody's")
    return str(folder)


def write(path: Path, text: str, ago: float = 0.0) -> None:
    path.write_text(text)
    now = time.time() - ago
    os.utime(path, (now, now))


def test_it_names_what_is_not_a_table_and_holds_records_twice(tmp_path: Path) -> None:
    root = output(tmp_path)
    seal.seal(root, ["x/_delta_log/"])
    known = seal.read(root)
    assert {path: one.text is not None for path, one in known.items()} == {
        "_commits/a/journal-000000001.json": True,
        "units/u-1.json": True,
        "units/index/ab.parquet": False,
        "report.html": False,
        "x/_delta_log/0.json": False,
    }
    assert all(digests.of_file(f"{root}/{path}") == one.digest for path, one in known.items())
    (tmp_path / "units" / "u-1.json").write_text("gone")
    seal.restore(root, ["units/u-1.json"])
    assert (tmp_path / "units" / "u-1.json").read_text() == known["units/u-1.json"].text


def test_what_a_command_writes_is_sealed_and_what_was_changed_before_is_not(tmp_path: Path) -> None:
    """Catches: a run after the damage that seals the damaged file as its own work."""
    root = output(tmp_path)
    seal.seal(root, [])
    before = seal.read(root)
    write(tmp_path / "report.html", "damaged", ago=5)
    with seal.unsealed(root, []):
        assert seal.opened(root) is not None
        write(tmp_path / "units" / "u-1.json", "a run's", ago=-5)
        write(tmp_path / "units" / "u-2.json", "new")
        (tmp_path / "_commits" / "a" / "journal-000000001.json").unlink()
    assert seal.opened(root) is None
    after = seal.read(root)
    assert after["report.html"] == before["report.html"]
    assert after["units/u-1.json"].text == "a run's"
    assert after["units/u-2.json"].text == "new"
    assert "_commits/a/journal-000000001.json" not in after


def test_it_is_sealed_however_a_command_ends_and_not_after_a_kill(tmp_path: Path) -> None:
    root = output(tmp_path)
    with pytest.raises(ValueError, match="said"), seal.unsealed(root, []):
        raise ValueError("said")
    assert seal.opened(root) is None
    assert seal.read(root)
    write(tmp_path / "report.html", "damaged", ago=5)
    begun = seal.unsealed(root, [])
    begun.__enter__()  # and is killed
    left = seal.opened(root)
    assert left is not None
    assert left.keys() == {"report.html"}
    write(tmp_path / "units" / "u-1.json", "a run's")
    with seal.unsealed(root, []):
        assert seal.opened(root) == left  # what a killed one left counts from when it began
    assert seal.read(root)["units/u-1.json"].text == "a run's"
    assert seal.read(root)["report.html"].digest != digests.of_bytes(b"damaged")


@pytest.mark.parametrize("ago", [-7200, 0, 7200])
def test_no_clock_decides_what_a_command_has_written(tmp_path: Path, ago: float) -> None:
    """Catches: a clock that was set back under a command, whose own work is taken for damage then."""
    root = output(tmp_path)
    seal.seal(root, [])
    with seal.unsealed(root, []):
        os.utime(tmp_path / "_unsealed", (2e9, 2e9))
        write(tmp_path / "report.html", "new", ago=ago)
        write(tmp_path / "units" / "u-9.json", "new", ago=ago)
    known = seal.read(root)
    assert known["report.html"].digest == known["units/u-9.json"].digest == digests.of_bytes(b"new")


def test_logs_of_a_table_that_no_stage_writes_any_more_are_not_missed(tmp_path: Path) -> None:
    """Catches: a stage that the config no longer asks for, and a verify that misses its Delta log for ever."""
    root = output(tmp_path)
    seal.seal(root, ["x/_delta_log/"])
    with seal.unsealed(root, []):
        pass
    assert "x/_delta_log/0.json" not in seal.read(root)
    assert "report.html" in seal.read(root)


def test_a_record_that_no_command_wrote_is_not_sealed(tmp_path: Path) -> None:
    root = output(tmp_path)
    seal.seal(root, [])
    write(tmp_path / "units" / "u-7.json", "somebody's")
    write(tmp_path / "x" / "_delta_log" / "1.json", "older than what is sealed")
    for _ in range(2):
        with seal.unsealed(root, ["x/_delta_log/"]):
            pass
    assert "units/u-7.json" not in seal.read(root)
    assert "x/_delta_log/1.json" in seal.read(root)


def test_a_copy_of_an_output_is_as_it_was_sealed(tmp_path: Path) -> None:
    """Catches: times of files that a copy does not keep, taken for changes of their content."""
    root = output(tmp_path)
    seal.seal(root, [])
    before = {path: one.digest for path, one in seal.read(root).items()}
    for path in before:
        os.utime(tmp_path / path)
    with seal.unsealed(root, []):
        pass
    assert {path: one.digest for path, one in seal.read(root).items()} == before


def test_a_page_that_is_written_again_is_sealed_again(tmp_path: Path) -> None:
    root = output(tmp_path)
    seal.renew(root, "report.html")  # nothing is sealed yet
    assert not (tmp_path / "_seal").exists()
    seal.seal(root, [])
    write(tmp_path / "report.html", "again", ago=9)
    write(tmp_path / "units" / "u-1.json", "damaged")
    seal.renew(root, *seal.REPORT)
    known = seal.read(root)
    assert known["report.html"].digest == digests.of_bytes(b"again")
    assert known["units/u-1.json"].text != "damaged"


def test_a_config_of_the_users_own_is_not_sealed(tmp_path: Path) -> None:
    root = output(tmp_path)
    (tmp_path / "config.yaml").write_text("output: mine\n")
    seal.seal(root, [])
    assert "config.yaml" not in seal.read(root)
    with pytest.raises(seal.SealError, match="no settings of a run"):
        seal.settings_of(root)


def packed(tree: Any) -> bytes:
    content = zlib.compress(json.dumps(tree).encode())
    return digests.of_bytes(content).encode() + b"\n" + content


ENTRY = {"size": 1, "modified": 1, "digest": "x", "text": "y"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        packed([1]),
        packed({"a": 1}),
        packed({"a": {"size": 1}}),
        packed({"../a": ENTRY}),
        packed({"/etc/passwd": ENTRY}),
        packed({"a": ENTRY})[:-1],
        digests.of_bytes(b"no zlib").encode() + b"\nno zlib",
    ],
)
def test_a_seal_that_is_none_is_named_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "_seal").write_bytes(content)
    with pytest.raises(seal.SealError, match=r"_seal is not what was written.*i2e repair"):
        seal.read(str(tmp_path))


@given(st.binary(max_size=200))
def test_whatever_stands_there_is_a_seal_or_named(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("seal")
    (folder / "_seal").write_bytes(content)
    with pytest.raises(seal.SealError):
        seal.read(str(folder))


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal, "_MOST", 1000)
    (tmp_path / "_seal").write_bytes(packed({"a": {**ENTRY, "text": "0" * 5000}}))
    with pytest.raises(seal.SealError, match="holds more than"):
        seal.read(str(tmp_path))
