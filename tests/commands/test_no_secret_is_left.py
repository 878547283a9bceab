"""What a run prints and leaves holds no secret, wherever that was given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

OPTION, PROPERTY, AZURE = "wJalrOPTION7MDENGbPxRf", "wJalrPROPERTY7MDENGbPx", "wJalrAZURE7MDENGbPxRfi"
PROXY, VARIABLE, TOKEN = "wJalrPROXY7MDENGbPxRfi", "wJalrVARIABLE7MDENGbPx", "hf_wJalrTOKEN7MDENGbPx"
SECRETS = (OPTION, PROPERTY, AZURE, PROXY, VARIABLE, TOKEN)


@pytest.mark.spark
@pytest.mark.slow
def test_a_run_leaves_no_secret_in_its_output_its_logs_or_what_it_says(tmp_path: Path, world: Path) -> None:
    """Options of a store, Spark properties and variables; the output, Spark's event log and the scratch are read."""
    for folder in ("events", "scratch"):
        (tmp_path / folder).mkdir()
    settings = {
        "output": "out",
        "pairs": {"path": f"{world}/pairs/*.parquet", "files_per_unit": 2},
        "knowledge_base": {"dump": f"{world}/dump.json.bz2"},
        "score": {"model": "ViT-B-32@x"},
        "storage": {"options": {"s3.access_key_id": "AKIA0OPTION", "s3.secret_access_key": OPTION}},
        "session": {
            "master": "local[2]",
            "driver_memory": "1g",
            "conf": {
                "spark.hadoop.fs.s3a.secret.key": PROPERTY,
                "spark.hadoop.fs.azure.account.key.me.dfs.core.windows.net": AZURE,
                "spark.executorEnv.HTTPS_PROXY": f"http://me:{PROXY}@proxy:3128",
                "spark.eventLog.enabled": "true",
                "spark.eventLog.dir": f"file://{tmp_path}/events",
            },
        },
    }
    (tmp_path / "given").write_text(json.dumps(settings))
    environ = {**os.environ, "AWS_SECRET_ACCESS_KEY": VARIABLE, "HF_TOKEN": TOKEN, "TMPDIR": f"{tmp_path}/scratch"}
    for command in (["run", "--until", "pairs"], ["status"], ["config"], ["clean", "--dry-run"]):
        done = subprocess.run(
            [sys.executable, "-m", "i2e_pipeline.cli", *command, "--config", "given"],
            capture_output=True, text=True, cwd=tmp_path, env=environ, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert not [secret for secret in SECRETS if secret in done.stdout + done.stderr]
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "given"]
    assert {"config.yaml", "spark.log"} <= {path.name for path in left}
    assert list((tmp_path / "events").iterdir())
    assert list((tmp_path / "out" / "units").glob("*.json"))
    found = {path: secret for path in left for secret in SECRETS if secret.encode() in path.read_bytes()}
    assert not found
