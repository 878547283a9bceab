"""Files beside the code are paths wherever it is imported from."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from i2e_pipeline.core.packaged import folder

ROOT = Path(__file__).parents[2]


def test_a_package_on_disk_is_read_where_it_lies() -> None:
    assert folder("i2e_pipeline.sample") == ROOT / "i2e_pipeline" / "sample"


def test_from_a_zip_everything_that_ships_is_found(tmp_path: Path) -> None:
    """As spark-submit --py-files puts it in front of the path. Catches: Path(__file__) in a zip."""
    with zipfile.ZipFile(tmp_path / "project.zip", "w") as archive:
        for package in ("i2e_pipeline", "wikidata"):
            for path in (ROOT / package).rglob("*"):
                if path.is_file() and "__pycache__" not in path.parts:
                    archive.write(path, path.relative_to(ROOT))
    script = (
        "import i2e_pipeline; assert '.zip' in i2e_pipeline.__file__\n"
        "from pathlib import Path\n"
        "from i2e_pipeline.sample import art, embedded, world\n"
        "from i2e_pipeline.evaluate import class_prompts, results\n"
        "from i2e_pipeline.pages import html\n"
        "from i2e_pipeline.engine import cluster\n"
        "tree = embedded.tree()\n"
        "assert Path(tree['score']['model'].removeprefix('local-dir:'), 'open_clip_config.json').is_file()\n"
        "assert Path(tree['extract']['recognizer'], 'config.cfg').is_file()\n"
        "assert world.load_world().depicted and art.load_art().sprite('noto', world.load_world().depicted[0].id)\n"
        "assert results.published_figures() and class_prompts.prompts('svhn')\n"
        "for package, name in (('i2e_pipeline.report', 'report.html'), ('i2e_pipeline.evaluate', 'evaluation.html')):\n"
        "    (made := html.environment(package)).loader.get_source(made, name)\n"
        "print(cluster.code())"
    )
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "project.zip"), "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    from i2e_pipeline.engine import cluster

    assert done.stdout.strip() == cluster.code()
