"""The floors of the house: imports run downwards, module by module, and never in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = (
    ("jobs",),
    ("cli", "stages", "__init__"),
    ("commands", "sample"),
    ("report", "train", "evaluate", "export", "explore"),
    ("verify",),
    ("knowledge", "extract", "link", "rerank", "score", "label", "clean", "publish"),
    ("dataset",),
    ("engine",),
    ("inputs", "images"),
    ("pages",),
    ("core",),
    ("wikidata",),
)
"""From the roof down. Neighbours on a floor do not know each other; docs/architecture.md has the same table."""
SPARK = ("pyspark", "py4j", "delta")
WITHOUT_SPARK = ("train", "evaluate", "export", "explore", "dataset", "images", "pages", "core", "inputs")


def room(module: str) -> str:
    """Where a module stands: `i2e_pipeline.link.stages` in link, `i2e_pipeline.cli` in cli, `jobs.train` in jobs."""
    parts = module.split(".")
    if parts[0] != "i2e_pipeline":
        return parts[0]
    return parts[1] if len(parts) > 1 else "__init__"


def floor(name: str) -> int:
    return next((n for n, rooms in enumerate(FLOORS) if name in rooms), -1)


def imported(path: Path, root: Path = ROOT) -> set[str]:
    """Full names of the modules that a file imports, inside functions and for type checking, too."""
    names = set()
    package = ".".join(path.relative_to(root).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def faults(files: Mapping[str, set[str]]) -> list[str]:
    """`file imports module: rule` for each import that breaks a rule. Paths are relative to the root, with slashes."""
    found = []
    for file, modules in sorted(files.items()):
        here = room(file.removesuffix(".py").replace("/", "."))
        if floor(here) < 0:
            found.append(f"{file}: no floor has the room {here}: put it into FLOORS and docs/architecture.md")
            continue
        for module in sorted(modules):
            there = room(module)
            top = module.split(".")[0]
            if top in SPARK and here in WITHOUT_SPARK and file not in LAZY_SPARK:
                found.append(f"{file} imports {module}: {here} works without Spark")
            if here in ("train", "evaluate", "export", "explore") and there in ("engine", "wikidata"):
                found.append(f"{file} imports {module}: {here} knows neither Spark nor what runs it")
                continue
            if here == "jobs" and top == "i2e_pipeline" and there not in FLOORS[1]:
                found.append(f"{file} imports {module}: a job calls the roof alone")
                continue
            if top not in ("i2e_pipeline", "wikidata", "jobs") or there == here:
                continue
            if floor(there) < 0:
                found.append(f"{file} imports {module}: no floor has the room {there}")
            elif floor(there) < floor(here):
                found.append(f"{file} imports {module}: an arrow up, {here} stands below {there}")
            elif floor(there) == floor(here) and here not in FLOORS[1]:
                found.append(f"{file} imports {module}: {here} and {there} are neighbours and meet in tables")
    return found


LAZY_SPARK: dict[str, str] = {}
"""Files of those rooms that name pyspark inside a function, and why."""


def modules() -> dict[str, Path]:
    """Every module of the project by its name."""
    parts = ("i2e_pipeline", "wikidata", "jobs")
    paths = [path for part in parts for path in sorted((ROOT / part).rglob("*.py"))]
    return {str(p.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__"): p for p in paths}


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of names that reach each other (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(arrows.get(name, ())):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1 or name in arrows.get(name, ()):
                found.append(sorted(group))

    for name in sorted(arrows):
        if name not in index:
            visit(name)
    return found


def test_imports_run_downwards() -> None:
    files = {str(path.relative_to(ROOT)): imported(path) for path in modules().values()}
    assert len(files) > 100
    assert not faults(files)


def test_there_is_no_circle() -> None:
    known = modules()
    arrows = {name: (imported(path) & known.keys()) - {name, "i2e_pipeline"} for name, path in known.items()}
    # `from i2e_pipeline.evaluate import x` names the package, too: its __init__ is empty, and x is what is imported.
    packages = {name for name, path in known.items() if path.name == "__init__.py"}
    arrows = {name: others - packages for name, others in arrows.items()}
    assert circles(arrows) == []


@pytest.mark.parametrize(
    ("file", "module"),
    [
        ("wikidata/items.py", "i2e_pipeline.core.config"),
        ("i2e_pipeline/link/candidates.py", "i2e_pipeline.extract.text"),
        ("i2e_pipeline/train/trainer.py", "pyspark.sql"),
        ("i2e_pipeline/core/files.py", "py4j.protocol"),
        ("i2e_pipeline/train/trainer.py", "i2e_pipeline.engine.java"),
        ("i2e_pipeline/evaluate/suite.py", "wikidata.knowledge_base"),
        ("jobs/train.py", "i2e_pipeline.sample.compose"),
        ("i2e_pipeline/engine/tables.py", "jobs.extract_entities"),
        ("i2e_pipeline/engine/tables.py", "i2e_pipeline.score.stages"),
        ("i2e_pipeline/core/files.py", "i2e_pipeline.engine.tables"),
        ("i2e_pipeline/commands/doctor.py", "i2e_pipeline.stages"),
        ("i2e_pipeline/commands/doctor.py", "i2e_pipeline.sample.compose"),
        ("i2e_pipeline/tables.py", "i2e_pipeline.core.files"),
        ("i2e_pipeline/attic/old.py", "numpy"),
        ("i2e_pipeline/publish/manifest.py", "i2e_pipeline"),
        ("i2e_pipeline/__init__.py", "jobs.train"),
    ],
)
def test_a_broken_rule_is_found(file: str, module: str) -> None:
    assert len(faults({file: {module}})) == 1


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_the_page_shows_the_same_floors() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = page.split("<!-- floors -->")[1]
    rows = [re.findall(r"`(\w+)(?:\.py|/)`", line.split("|")[1]) for line in drawn.splitlines() if "|" in line]
    assert [set(row) for row in rows if row] == [set(rooms) for rooms in FLOORS]


def test_only_the_session_module_builds_a_session() -> None:
    builders = [
        name
        for name, path in modules().items()
        if "getOrCreate" in path.read_text(encoding="utf-8") and name != "i2e_pipeline.engine.session"
    ]
    assert builders == []
