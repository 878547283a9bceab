"""What comes from outside gives a terminal no orders: names, texts, file names, what a decoder says.

Catches: an alt-text that clears the screen, hides the line before it, sets the title or has the terminal type an
answer; a file name that turns a message's order around.
"""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.commands import summary
from i2e_pipeline.core import logs
from i2e_pipeline.core.terminal import shown, shown_json

ROOT = Path(__file__).parent.parent.parent
HOSTILE = "a\x1b[2J\x1b]0;taken\x07\x9b31m\r\x08\x7f\u202eb\x00"
OBEYED = {*map(chr, range(32)), *map(chr, range(0x7F, 0xA0)), *"\u2028\u2029\u202a\u202b\u202c\u202d\u202e"} - {*"\n\t"}


@given(st.text() | st.text(sorted(OBEYED)))
def test_no_order_is_left_in_a_text_and_all_else_stays(text: str) -> None:
    said = shown(text)
    assert not OBEYED & set(said)
    assert shown(said) == said
    if not OBEYED & set(text) and not any("\u2066" <= c <= "\u2069" for c in text):
        assert said == text


@given(
    st.recursive(st.text() | st.text(sorted(OBEYED)), lambda below: st.lists(below) | st.dictionaries(st.text(), below))
)
def test_json_stays_json_of_the_same_value(value: Any) -> None:
    for as_ascii in (True, False):
        said = shown_json(json.dumps(value, indent=1, ensure_ascii=as_ascii))
        assert json.loads(said) == value
        assert not OBEYED & set(said)


def test_tables_and_lines_of_a_summary_hold_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for colour in ("dumb", "xterm-256color"):
        monkeypatch.setenv("TERM", colour)
        table = summary._table(HOSTILE)
        table.add_column(HOSTILE)
        table.add_column("other")
        table.add_row(HOSTILE, "1")
        console = summary._console()
        console.print(table)
        console.print(HOSTILE, style="dim")
    said = capsys.readouterr().out
    assert not OBEYED & set(said)
    assert said.count("\\x1b[2J") == 8
    cell, _ = next(line.split() for line in said.splitlines() if line.endswith(" 1"))
    assert cell == shown(HOSTILE)


def test_colours_of_our_own_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    console = summary._Console(file=out, force_terminal=True, markup=False, highlight=False, color_system="standard")
    console.print(HOSTILE, style="bold")
    assert out.getvalue().startswith("\x1b[1m")
    assert out.getvalue().count("\x1b") == 2


def test_log_lines_hold_none(capsys: pytest.CaptureFixture[str]) -> None:
    with logs.to_terminal():
        logging.getLogger("i2e_pipeline.a").warning("%s cannot be read", HOSTILE)
    assert capsys.readouterr().err == f"{shown(HOSTILE)} cannot be read\n"


def printed(path: Path) -> list[str]:
    """What a module prints that is neither written in it nor JSON nor `shown`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            for given in node.args:
                called = ast.unparse(given.func) if isinstance(given, ast.Call) else ""
                values = [ast.unparse(v.value) for v in ast.walk(given) if isinstance(v, ast.FormattedValue)]
                ours = isinstance(given, ast.Constant | ast.JoinedStr) and all(
                    v.rpartition(".")[2].isupper() for v in values
                )
                if not ours and called not in ("shown", "shown_json", "json.dumps"):
                    found.append(ast.unparse(given))
    return found


def test_whatever_the_commands_print_is_looked_at() -> None:
    """Catches: a new `print` of what comes from outside."""
    of_our_own = {
        "f'i2e: standard output cannot be written: {_Output.fault.strerror}'",
        "f'{sum((f.files for f in freed)):,} files, {sum((f.bytes for f in freed)) / 1000000.0:,.1f} MB {verb}'",
    }
    assert set(printed(ROOT / "i2e_pipeline" / "cli.py")) == of_our_own
    for path in (ROOT / "i2e_pipeline" / "commands").rglob("*.py"):
        if path.name not in ("worker.py", "explore.py"):  # one writes to a log file, one says its own address
            assert not printed(path), path


@pytest.mark.parametrize("arguments", [["status", "--config"], ["explore"], ["run", "--set"]])
def test_a_message_that_names_a_hostile_file_is_harmless(tmp_path: Path, arguments: list[str]) -> None:
    name = HOSTILE.replace("\0", "")
    done = subprocess.run(
        [sys.executable, "-m", "i2e_pipeline.cli", *arguments, f"{tmp_path}/{name}"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert not OBEYED & set(done.stdout + done.stderr)
    assert "\\x1b[2J" in done.stderr
