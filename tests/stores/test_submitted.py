"""The jobs under spark-submit with everything in an S3 store, called as docs/cluster.md and docs/stores.md say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from i2e_pipeline.engine import java
from tests.cluster.tables import tables
from tests.stores.conftest import SECRET, Store, on_the_store

pytestmark = [pytest.mark.s3, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


def submit(config: Path, job: str, *line: str) -> subprocess.CompletedProcess[str]:
    """`spark-submit … jobs/JOB.py`, by somebody who has no credentials but the config's."""
    theirs = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "I2E_STORAGE", "PYSPARK", "SPARK"))}
    theirs |= {
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
        "JAVA_HOME": java.home(),
        "PYSPARK_PYTHON": sys.executable,
    }
    command = [str(Path(sys.prefix) / "bin" / "spark-submit"), "--master", "local[2]", *line, f"jobs/{job}.py"]
    return subprocess.run(
        [*command, "--config", str(config)], cwd=ROOT, env=theirs, capture_output=True, text=True, timeout=500
    )


@pytest.mark.long
def test_jobs_on_s3_make_the_rows_of_a_run_on_a_disk(store: Store, world: Path, whole: Path, tmp_path: Path) -> None:
    """Catches: options that are set when the JVM has begun, and do not reach Hadoop's client or a worker."""
    written = on_the_store(store, world, "submitted")
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump(json.loads(written.model_dump_json())))
    refused = submit(config, "build_knowledge_base")
    assert refused.returncode, refused.stdout
    said = refused.stdout + refused.stderr
    packages = re.search(r"--packages (org\.apache\.hadoop:hadoop-aws:[\d.]+)", said)
    assert packages, said[-2000:]
    for job in ("build_knowledge_base", "extract_entities"):
        done = submit(config, job, "--packages", packages[1])
        said = done.stdout + done.stderr
        assert done.returncode == 0, said[-4000:]
        assert SECRET not in said
    here, there = tables(store.fetched("submitted", tmp_path / "fetched")), tables(whole)
    made = [name for name in there if name in here and name != "rejects"]  # those of later jobs are not there
    assert {"kb/entities", "kb/surfaces", "pairs", "texts", "mentions"} <= {*made}
    assert [name for name in made if not name.startswith("kb/gazetteer") and here[name] != there[name]] == []
