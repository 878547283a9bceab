"""The stages of examples/ as a stranger uses them: installed beside the package, named in a config, run by `i2e`.

docs/extending.md shows parts of their code: what it shows is what is there.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import yaml
from PIL import Image

from i2e_pipeline import stages
from i2e_pipeline.commands import summary
from i2e_pipeline.commands.calibrate import calibrate
from i2e_pipeline.commands.run import run
from i2e_pipeline.core.config import dump
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.engine.stage import StageError
from i2e_pipeline.label.calibration import Calibration
from tests.chain import commits, settings
from tests.small_models import picture, stored, write_shard

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def test_the_page_shows_the_code_that_is_there() -> None:
    """Every line of the page's blocks on the examples stands, but for its comments, in one of the files."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8").split("## As a package")[0]
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 3
    code = (EXAMPLES / "screen.py").read_text(encoding="utf-8")
    known = re.sub(r"\s+", "", ast.unparse(ast.parse(code)))
    for block in blocks:
        tree = ast.parse(textwrap.dedent(block))
        for statement in [n for node in tree.body for n in _leaves(node)]:
            shown = re.sub(r"\s+", "", ast.unparse(statement))
            assert shown in known, f"docs/extending.md shows what examples/screen.py does not have: {shown}"


def _leaves(node: ast.stmt) -> Sequence[ast.stmt]:
    """Statements without a body of their own: signatures are shortened on the page."""
    body = getattr(node, "body", None)
    return [node] if body is None else [n for child in body for n in _leaves(child)]


def test_its_kernel_is_a_function_that_needs_no_spark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import screen

    from i2e_pipeline.inputs import formats
    from i2e_pipeline.inputs.shard import Shard

    skin, sky = (Image.new("RGB", (40, 40), colour) for colour in ((224, 172, 105), (120, 170, 230)))
    images = [stored(skin), stored(sky), b"no image", None, stored(picture(1))]
    shard = write_shard(tmp_path / "a.parquet", images)
    ids = [n.to_bytes(16, "big") for n in range(len(images))]
    rows = pa.RecordBatch.from_pydict(
        {
            "pair_id": pa.array(ids, pa.binary()),
            "shard": pa.array([0] * len(images), pa.int32()),
            "row": pa.array(range(len(images)), pa.int64()),
        }
    )
    model = screen.load(str(EXAMPLES / "screen_model.json"))
    found: dict[str, list[dict[str, object]]] = {"screened": [], "rejects": []}
    for table, batch in screen.judge(iter([rows]), lambda _: formats.images(Shard(shard), "jpg"), model, 0.5):
        found[table] += batch.to_pylist()
    assert [r["pair_id"] for r in found["screened"]] == [ids[1], ids[4]]
    assert [(r["id"], r["reason"]) for r in found["rejects"]] == [
        (ids[0], "unsafe"),
        (ids[2], "not_an_image"),
        (ids[3], "null_image"),
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples are installed: a folder on the path of who uses them."""
    folder, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source") / "examples"
    shutil.copytree(EXAMPLES, source)  # a build leaves things beside what it builds
    done = subprocess.run(
        [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
         "--target", str(folder), str(source)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def i2e(site: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "i2e_pipeline.cli", *arguments], cwd=cwd, env=environment(site), capture_output=True,
        text=True, timeout=600,
    )  # fmt: skip


def environment(site: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "PYSPARK_PYTHON": sys.executable}


@pytest.mark.long
@pytest.mark.slow
def test_stages_from_outside_in_the_whole_chain(
    world: Path, site: Path, tmp_path: Path, spark: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = yaml.safe_load(dump(settings(world, tmp_path / "out")))
    tree |= {
        "stages": ["screen", "one_site"],
        "screen": {"model": str(EXAMPLES / "screen_model.json"), "threshold": 0.6},
        "one_site": {"max_images": 1},
        "session": {"master": "local[2]", "driver_memory": "1g", "shuffle_partitions": 2},
        "run": {"wave_units": 1, "waves_in_flight": 1},
    }
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump(tree))

    explained = i2e(site, tmp_path, "config", "--config", str(config), "--explain", "screen")
    assert "screen.threshold = 0.9   (number, ≥ 0, ≤ 1)" in explained.stdout
    wrong = i2e(site, tmp_path, "run", "--config", str(config), "--set", "screen.threshold=2")
    assert (wrong.returncode, "screen.threshold: 2 is not allowed" in wrong.stderr) == (2, True)

    # Killed while it screens, it goes on where it was.
    driver = subprocess.Popen(
        [sys.executable, "-m", "i2e_pipeline.cli", "run", "--config", str(config)],
        cwd=tmp_path, env=environment(site), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    screened = tmp_path / "out" / "_commits" / "screen"
    deadline = time.monotonic() + 400
    while not (screened.is_dir() and any(screened.glob("*.json"))):
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    scored = commits(tmp_path / "out", "score")
    # The same stages by their files now: what they are called in the config is in no fingerprint.
    by_file = [f"{EXAMPLES}/screen.py:Screen", f"{EXAMPLES}/one_site.py:OneSite"]
    config.write_text(yaml.safe_dump({**tree, "stages": by_file}))

    def pipeline(*overrides: str) -> Pipeline:
        return stages.pipeline(stages.load(str(config), overrides), lambda: spark)

    done = run(pipeline())
    assert commits(tmp_path / "out", "score") == scored

    # Terminal, manifest, card, report, status: each knows the stages, their rows and their reasons.
    manifest = json.loads((tmp_path / "out" / "i2e" / "manifest.json").read_text())
    funnel = {step["stage"]: step for step in manifest["funnel"]}
    assert list(funnel) == ["pairs", "extract", "link", "score", "screen", "label", "one_site", "select"]
    for before, after in (("score", "screen"), ("screen", "label"), ("label", "one_site"), ("one_site", "select")):
        assert funnel[before]["rows_out"] == funnel[after]["rows_in"]
    assert all(s["rows_in"] == s["rows_out"] + sum(s["rejected"].values()) for s in funnel.values())
    assert funnel["screen"]["rejected"]["unsafe"] > 0
    assert funnel["one_site"]["rejected"]["over_site_cap"] > 0
    rejects = ds.dataset(tmp_path / "out" / "rejects", format="parquet", partitioning="hive").to_table().to_pylist()
    assert sum(r["reason"] == "unsafe" for r in rejects) == funnel["screen"]["rejected"]["unsafe"]
    report = (tmp_path / "out" / "report.html").read_text()
    assert "The model calls the image unsafe." in report
    assert "cap the images of an entity from one web site" in report
    assert "unsafe" in (tmp_path / "out" / "i2e" / "README.md").read_text()
    summary.print_funnel(done.states)
    assert "over_site_cap" in capsys.readouterr().out
    assert not any(s.to_do for s in pipeline().status()[1])

    # Another threshold makes it again and what comes behind, and nothing before.
    to_do = {s.stage.name: s.to_do for s in pipeline("screen.threshold=0.9").status()[1] if s.to_do}
    assert list(to_do) == ["screen", "label", "one_site", "select", "publish", "finish"]
    assert {*to_do["screen"].values()} == {"changed: settings.threshold: 0.6, now 0.9"}

    # Calibrating beside it: its feature is weighed, and label reads what it passed on.
    weights = str(tmp_path / "c.json")
    calibrate(pipeline(), None, 0.6, weights)
    assert "unsafe" in Calibration.load(weights).features
    _, states = pipeline(f"label.calibration={weights}").run(pipeline().upto("label"))
    assert len(states[-1].to_do) == 3
    config.write_text(yaml.safe_dump({k: v for k, v in tree.items() if k not in ("stages", "screen", "one_site")}))
    with pytest.raises(StageError, match=r"weighs unsafe, which no stage gives"):
        pipeline(f"label.calibration={weights}").run()


def test_files_modules_and_entry_points_name_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from i2e_pipeline.engine.arrange import from_outside

    (tmp_path / "mine.py").write_text((EXAMPLES / "screen.py").read_text().replace('name = "screen"', 'name = "mine"'))
    (tmp_path / "theirs.py").write_text((tmp_path / "mine.py").read_text().replace('"mine"', '"theirs"'))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    assert [s.name for s in from_outside(["mine.py:Screen", "theirs:Screen"])] == ["mine", "theirs"]
    (tmp_path / "their-1.0.dist-info").mkdir()
    (tmp_path / "their-1.0.dist-info" / "entry_points.txt").write_text("[i2e_pipeline.stages]\nnamed = theirs:Screen\n")
    (tmp_path / "their-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: their\nVersion: 1.0\n")
    assert [s.name for s in from_outside(["named"])] == ["theirs"]
    for name, said in (
        ("none.py:Screen", "no such file as"),
        ("nowhere:Screen", "python finds no module nowhere"),
        ("mine.py:Nothing", "has no Nothing"),
        ("mine.py:judge", "not a subclass of i2e_pipeline.Stage"),
        ("unnamed", r"no installed package brings a stage 'unnamed' \(known: .*named"),
    ):
        with pytest.raises(StageError, match=said):
            from_outside([name])
    for module in ("mine", "theirs"):
        sys.modules.pop(module, None)
