"""What is missing is named with its extra, and the extras of setup.cfg hold what they promise."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from pathlib import Path

import pytest

from i2e_pipeline.core import extras

ROOT = Path(__file__).parent.parent.parent
DISTRIBUTIONS = {
    "PIL": "pillow", "delta": "delta-spark", "open_clip": "open_clip_torch", "sklearn": "scikit-learn",
    "umap": "umap-learn", "yaml": "pyyaml",
}  # fmt: skip
"""Of modules that are not called as what one installs."""
BROUGHT_ALONG = {
    "huggingface_hub": "transformers", "markupsafe": "jinja2", "py4j": "pyspark", "timm": "open_clip_torch",
}  # fmt: skip
"""Packages that another one brings and that setup.cfg does not name."""
ASKED_FOR = {"wandb": "wandb"}
"""Packages that a setting asks for, off by default, with the extra of their own."""
READERS = ("core", "dataset", "images", "pages")
"""Rooms that both training and evaluation stand on."""


def setup() -> tuple[set[str], dict[str, set[str]]]:
    """Packages of the base, and of each extra."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")

    def names(text: str) -> set[str]:
        return {re.split(r"[<>=~!\[; ]", line, maxsplit=1)[0].lower() for line in text.split("\n") if line.strip()}

    wanted = {extra: names(parser["options.extras_require"][extra]) for extra in parser["options.extras_require"]}
    return names(parser["options"]["install_requires"]), wanted


def distribution(module: str) -> str:
    return BROUGHT_ALONG.get(module) or DISTRIBUTIONS.get(module) or module


@pytest.mark.parametrize("module", sorted(extras.BROUGHT_BY))
def test_a_module_is_of_the_extras_that_setup_cfg_says(module: str) -> None:
    """Catches: a remedy that installs what is there already, or something else."""
    base, wanted = setup()
    called = module if module in {name for names in wanted.values() for name in names} else distribution(module)
    assert called not in base
    having = {
        extra
        for extra in ("spark", "train", "evaluate", "second-look", "export", "explore", "wandb")
        if called in wanted[extra]
    }
    assert set(extras.BROUGHT_BY[module]) == having


def test_what_is_missing_is_named_with_its_extra() -> None:
    said = extras.remedy(ModuleNotFoundError("No module named 'pyspark'", name="pyspark.sql"))
    assert said == "pyspark is not installed: pip install 'i2e-pipeline[spark]' (the pipeline, on Spark)"
    assert extras.remedy(ModuleNotFoundError("No module named 'i2e_pipeline.no'", name="i2e_pipeline.no")) is None
    assert extras.remedy(ModuleNotFoundError("somewhere")) is None


@pytest.mark.parametrize(("room", "extra"), [("train", "train"), ("evaluate", "evaluate")])
def test_everything_that_training_and_evaluation_import_is_in_their_extra(room: str, extra: str) -> None:
    """Catches: an import that works only where everything is installed."""
    base, wanted = setup()
    files = [path for part in (*READERS, room) for path in sorted((ROOT / "i2e_pipeline" / part).rglob("*.py"))]
    missing = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in files
        for module in imported(path)
        if distribution(module) not in base | wanted[extra] | wanted.get(ASKED_FOR.get(module, ""), set())
    }
    assert not missing


def imported(path: Path) -> set[str]:
    """Modules of others that a file imports, inside functions too; none of Python's own and none of ours."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"i2e_pipeline", "wikidata"}
