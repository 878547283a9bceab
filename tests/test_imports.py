"""Imports run one way: jobs -> i2e_pipeline -> wikidata; stage folders meet in tables, not in code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("knowledge", "extract", "link", "score", "build", "report", "train", "evaluate", "sample")
PARTS = ("i2e_pipeline", "wikidata", "jobs")


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, inside functions too."""
    names = set()
    package = ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1])
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


def faults(files: dict[str, set[str]]) -> list[str]:
    """`file imports module: rule` for each import that breaks a rule. Paths are relative to the root, with slashes."""
    found = []
    for file, modules in sorted(files.items()):
        parts = file.split("/")
        for module in sorted(modules):
            top = module.split(".")[0]
            if parts[0] == "wikidata" and top in ("i2e_pipeline", "jobs"):
                found.append(f"{file} imports {module}: wikidata imports nothing of the pipeline")
            if parts[0] == "i2e_pipeline" and top == "jobs":
                found.append(f"{file} imports {module}: the pipeline imports no job")
            folder = parts[1] if parts[0] == "i2e_pipeline" and len(parts) > 2 else None
            other = module.split(".")[1] if top == "i2e_pipeline" and module.count(".") else None
            if folder and other in FOLDERS and other != folder:
                found.append(f"{file} imports {module}: a stage folder imports no other stage's folder")
            if folder in ("train", "evaluate") and top == "pyspark":
                found.append(f"{file} imports {module}: {folder} works without Spark")
    return found


def test_imports_run_one_way() -> None:
    files = {
        str(path.relative_to(ROOT)): imported(path) for part in PARTS for path in sorted((ROOT / part).rglob("*.py"))
    }
    assert files
    assert not faults(files)


@pytest.mark.parametrize(
    ("file", "module"),
    [
        ("wikidata/items.py", "i2e_pipeline.core.config"),
        ("i2e_pipeline/link/candidates.py", "i2e_pipeline.extract.text"),
        ("i2e_pipeline/train/trainer.py", "pyspark.sql"),
        ("i2e_pipeline/tables.py", "jobs.extract_entities"),
    ],
)
def test_a_broken_rule_is_found(file: str, module: str) -> None:
    assert len(faults({file: {module}})) == 1


def test_only_the_session_module_builds_a_session() -> None:
    builders = [
        str(path.relative_to(ROOT))
        for part in PARTS
        for path in sorted((ROOT / part).rglob("*.py"))
        if "getOrCreate" in path.read_text(encoding="utf-8") and path.name != "session.py"
    ]
    assert builders == []
