"""The suite's own rules: what is collected, what may start Java, which skips CI takes for failures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

COLLECTED = """
import sys
import pytest

class Collected:
    def pytest_pycollect_makemodule(self, module_path, parent):
        print("collected", module_path)
        return Unread.from_parent(parent, path=module_path)

class Unread(pytest.File):
    def collect(self):
        return []

sys.exit(pytest.main(["--collect-only", "-q"], [Collected()]))
"""
"""Which files pytest collects, without reading them: that would take minutes of imports."""

RULES = """
import subprocess, sys
import pytest

def test_fixture(spark):
    pass

def test_java_here():
    subprocess.run(["java", "-version"])

def test_java_in_a_child():
    subprocess.run([sys.executable, "-c", "import subprocess; subprocess.run(['java', '-version'])"])

def test_nothing():
    assert subprocess.run([sys.executable, "-c", "0"]).returncode == 0

def test_missing_package():
    pytest.importorskip("no_such_package")

def test_missing_browser():
    pytest.skip("no chromium on the path")

def test_missing_card():
    pytest.skip("needs a GPU")
"""


def pytest_on(folder: Path, *arguments: str, ci: bool = False) -> dict[str, str]:
    """Outcome by test of RULES, run under this suite's conftest as a plugin."""
    (folder / "test_rules.py").write_text(RULES)
    env = {k: v for k, v in os.environ.items() if k != "CI" and not k.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(folder), "-p", "tests.conftest",
         "-p", "no:cacheprovider", "-o", "markers=spark", "-rA", *arguments, str(folder)],
        cwd=ROOT, env=env | ({"CI": "true"} if ci else {}), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = {}
    for line in done.stdout.splitlines():
        outcome, _, rest = line.partition(" ")
        if outcome in ("PASSED", "FAILED", "ERROR") and "::test_" in rest:
            found[rest.split("::test_")[1].split()[0]] = outcome
    return found


def test_every_test_file_is_collected() -> None:
    """Catches: a folder that pytest passes over by its name (tests/build/, whose 17 tests never ran)."""
    done = subprocess.run([sys.executable, "-c", COLLECTED], cwd=ROOT, capture_output=True, text=True, timeout=120)
    collected = {line.split(" ", 1)[1] for line in done.stdout.splitlines() if line.startswith("collected /")}
    assert {str(p) for p in (ROOT / "tests").rglob("test_*.py")} == collected, done.stderr


@pytest.mark.slow
def test_without_a_jvm_every_start_of_java_fails_its_test(tmp_path: Path) -> None:
    """Catches: a test that starts Java, in itself or in a child, and bears no mark: `make check` would take minutes."""
    found = pytest_on(tmp_path, "--no-jvm", "-k", "fixture or java or nothing")
    assert found.pop("nothing") == "PASSED"
    assert set(found) == {"fixture", "java_here", "java_in_a_child"}
    assert "PASSED" not in (found["fixture"], found["java_here"])
    assert found["java_in_a_child"] == "ERROR"


@pytest.mark.slow
def test_the_fixture_gives_the_mark(tmp_path: Path) -> None:
    assert pytest_on(tmp_path, "-m", "not spark", "-k", "test_fixture or test_nothing") == {"nothing": "PASSED"}


@pytest.mark.slow
def test_in_ci_a_skip_is_a_failure_unless_the_machine_cannot_have_it(tmp_path: Path) -> None:
    """Catches: a green run whose browser tests all were skipped."""
    assert pytest_on(tmp_path, "-k", "missing") == {}
    found = pytest_on(tmp_path, "-k", "missing", ci=True)
    assert found == {"missing_package": "FAILED", "missing_browser": "FAILED"}
