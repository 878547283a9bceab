"""What is one thing stands in one place: its signs are found in no other module."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "i2e_pipeline"

PLACES = {
    # sign of it: where it may stand
    r"0x(9E3779B97F4A7C15|BF58476D1CE4E5B9|94D049BB133111EB)": {"core/draws.py"},
    r"\b(gettempdir|mkdtemp)\(": {"core/machine.py"},
    # checkpoint.py takes a checkpoint's name away before it removes the folder.
    r"\bos\.(rename|replace)\(": {"core/files.py", "train/checkpoint.py"},
    # Beside the code: core/packaged.py finds it in a zip, too. A stage of somebody else's is a file, notebooks are the
    # checkout's.
    r"__file__": {"engine/arrange.py", "report/notebooks.py"},
    r"\b(open_memmap|np\.memmap)\(|mmap_mode": {"core/arrays.py"},
    # The sample's drawings and its scenes have colours of their own.
    r"#[0-9a-f]{6}\b": {"pages/palette.py", "sample/planets.py", "sample/render_art.py"},
}
"""Generator · a machine's folder · put in place · files beside code · mapped arrays · palette."""


def texts() -> dict[str, str]:
    kinds = ("*.py", "*.css", "*.html", "*.js")
    return {
        path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8")
        for kind in kinds
        for path in sorted(PACKAGE.rglob(kind))
    }


@pytest.mark.parametrize(("sign", "places"), PLACES.items())
def test_one_thing_has_one_place(sign: str, places: set[str]) -> None:
    """Catches: a second copy, which is then mended by half."""
    assert {name for name, text in texts().items() if re.search(sign, text, re.IGNORECASE)} == places


NOT_SAID = {
    "core/errors.py": {"I2EError"},
    "clean/heads.py": {"HeadFailed"},  # with what it raised, in a worker: Spark tries the task again
    # Caught and told by `i2e doctor` itself.
    "commands/doctor.py": {"Failed"},
    "train/trainer.py": {"_BrokenOff"},  # ends an evaluation, and is caught there
}


def test_every_error_of_the_package_is_said_to_users() -> None:
    """Catches: an error class that commands do not know, whose message comes with a traceback."""
    builtins = ("Exception", "ValueError", "RuntimeError", "KeyError", "TypeError", "OSError", "FileNotFoundError")
    found: dict[str, set[str]] = {}
    for name, text in texts().items():
        for node in ast.walk(ast.parse(text)) if name.endswith(".py") else ():
            if isinstance(node, ast.ClassDef) and node.bases and ast.unparse(node.bases[0]) in builtins:
                found.setdefault(name, set()).add(node.name)
    assert found == NOT_SAID
