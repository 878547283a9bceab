"""What surrounds the code: workflows, container, hooks, docs, the wheel as a stranger installs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from i2e_pipeline import __version__

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = ("i2e_pipeline", "wikidata")


def make_targets() -> set[str]:
    database = subprocess.run(
        ["make", "-pnq", "help"], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
    ).stdout
    return set(re.findall(r"^([\w-]+):", database, re.MULTILINE))


def made(text: str) -> set[str]:
    """Targets of the `make` calls in a script or page."""
    calls = re.findall(r"(?:^|[\s`;&(])make ((?:[\w-]+(?:=\S*)?[ ]*)+)", text, re.MULTILINE)
    return {word for call in calls for word in call.split() if "=" not in word}


def test_every_workflow_is_one_and_calls_what_exists() -> None:
    """Catches: a workflow that fails at its first push, because a target was renamed."""
    assert {p.name for p in WORKFLOWS} == {"ci.yml", "release.yml"}
    called: set[str] = set()
    for path in WORKFLOWS:
        workflow: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert workflow[True], "YAML reads the key `on` as true"
        assert workflow["permissions"] == {"contents": "read"}
        for job in workflow["jobs"].values():
            if "uses" in job:  # another workflow, whose jobs have their own
                assert (ROOT / job["uses"].removeprefix("./")).is_file()
                continue
            assert job["timeout-minutes"] > 0
            for needed in [job["needs"]] if "needs" in job else []:
                assert needed in workflow["jobs"]
            for step in job["steps"]:
                assert "run" in step or re.fullmatch(r"[\w./-]+@[\w./]+", step["uses"])
                called |= made(step.get("run", ""))
                for script in re.findall(r"bash (\S+)", step.get("run", "")):
                    assert os.access(ROOT / script, os.X_OK)
    called |= made((ROOT / ".ci" / "run").read_text())
    assert {"venv", "check", "lint", "test-all", "docs", "dist"} <= called
    assert called <= make_targets()


def test_every_python_that_setup_promises_is_checked() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    oldest = re.search(r"python_requires = >=(\S+)", (ROOT / "setup.cfg").read_text())
    assert oldest
    assert workflow["jobs"]["check"]["strategy"]["matrix"]["python"] == [oldest[1], "3.11", "3.12", "3.13"]


def test_the_hooks_are_the_tools_of_make_check() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    recipe = (ROOT / "Makefile").read_text()
    for hook in hooks:
        tool = " ".join(word for word in hook["entry"].split() if not word.startswith("--")).replace(
            ".venv/bin", "$(BIN)"
        )
        assert tool in recipe


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == __version__
    assert f"[{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_dockerfile_passes_its_linter() -> None:
    linter = shutil.which("hadolint", path=str(BIN)) or shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([linter, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_dockerfile_copies_is_not_ignored() -> None:
    """Catches: a file that setup.cfg needs and .dockerignore keeps out of the build."""
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(\S+) /|source=(\w[\w.]*),", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert {a or b for a, b in copied} <= sent
    assert {"README.md", "LICENSE", "setup.cfg", "setup.py", *PACKAGES} <= sent
    assert all((ROOT / name).exists() for name in sent)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_named_files_of_a_page_exist(page: Path) -> None:
    """Catches: pages that still name what was moved."""
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", text)
    named = re.findall(
        r"`((?:benchmarks|docs|examples|jobs|notebooks|tests|i2e_pipeline|wikidata)/[\w./-]*\w/?)`", text
    )
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing
    targets = {target for target in made(text) if target not in ("it", "a", "the", "what", "sure")}
    assert targets <= make_targets()


@pytest.mark.slow
def test_the_docs_build_as_one_site(tmp_path: Path) -> None:
    """Strictly: a link that leads nowhere, or a page that is in no menu, is an error."""
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [str(BIN / "mkdocs"), "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    api = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    names = (
        "engine.stage.Stage", "label.calibration.Calibration", "dataset.published.open_published",
        "images.encoder.Encoder", "train.recipes.Recipe", "evaluate.protocols.Protocol",
    )  # fmt: skip
    for name in names:
        assert f'id="i2e_pipeline.{name}"' in api
    for built in (tmp_path / "site").glob("*.html"):
        fetched = re.findall(r"<(?:link|script|img)[^>]+(?:src|href)=\"?(https?://[^\s\"'>]+)", built.read_text())
        assert not [f for f in fetched if "canonical" not in f]


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel and the sources, as `make dist` builds them."""
    folder = tmp_path_factory.mktemp("dist")
    built = subprocess.run(
        [str(BIN / "uv"), "build", "--quiet", "--out-dir", str(folder), str(ROOT)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    return folder


def package_files() -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    return {path for path in listed if (ROOT / path).is_file()}


@pytest.mark.env
def test_the_wheel_holds_every_file_of_the_packages(dist: Path) -> None:
    """Catches: data files that an editable install finds and a wheel lacks."""
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        held = set(wheel.namelist())
    assert package_files() - held == set()
    with tarfile.open(next(dist.glob("*.tar.gz"))) as sources:
        members = {name.partition("/")[2] for name in sources.getnames()}
    assert package_files() | {"constraints.txt", "jobs/train.py", "docs/architecture.md"} <= members


@pytest.mark.env
def test_the_installed_wheel_makes_the_sample(dist: Path, tmp_path: Path) -> None:
    """From an empty folder, with nothing of the repository on the path."""
    wheel = next(dist.glob("*.whl"))
    python = tmp_path / "env" / "bin" / "python"
    uv = str(BIN / "uv")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(tmp_path / "env")], check=True)
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--python", str(python), "--constraint", str(ROOT / "constraints.txt"),
         f"{wheel}[spark,train,evaluate,report,java]"],
        check=True, timeout=400,
    )  # fmt: skip
    empty = tmp_path / "empty"
    empty.mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYSPARK", "SPARK"))}
    done = subprocess.run(
        [str(python.with_name("i2e")), "run"], cwd=empty, env=env, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (empty / "out" / "sample" / "i2e" / "manifest.json").is_file()
    where = subprocess.run(
        [str(python), "-c", "import i2e_pipeline, wikidata; print(i2e_pipeline.__file__, wikidata.__file__)"],
        cwd=empty, env=env, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert str(ROOT) not in where
