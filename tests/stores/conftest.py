"""An S3 server of its own (moto's) on this machine, and a bucket with the small world in it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from pyarrow import fs as pafs

from i2e_pipeline.core.config import Config
from tests.chain import settings

SECRET = "secret-of-this-store-7f3a"


@dataclass(frozen=True)
class Store:
    """A server, and how its bucket is reached."""

    port: int
    bucket: str = "bucket"

    @property
    def options(self) -> tuple[str, ...]:
        told = {
            "endpoint": f"http://127.0.0.1:{self.port}",
            "access_key_id": "AKIAOFTHISSTORE",
            "secret_access_key": SECRET,
        }
        return tuple(f"storage.options.s3.{name}={value}" for name, value in told.items())

    @property
    def filesystem(self) -> pafs.S3FileSystem:
        return pafs.S3FileSystem(
            access_key="of-the-test",
            secret_key="of-the-test",
            region="us-east-1",
            scheme="http",
            endpoint_override=f"127.0.0.1:{self.port}",
            allow_bucket_creation=True,
        )

    def fetched(self, name: str, into: Path) -> Path:
        pafs.copy_files(f"{self.bucket}/{name}", str(into), source_filesystem=self.filesystem)
        return into


@pytest.fixture(scope="session")
def store(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    pytest.importorskip("moto", reason="moto[server] is not installed: it is in the extra [dev]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("wb") as said:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=said, stderr=said)
    found = Store(port)
    try:
        for _ in range(300):
            assert server.poll() is None, log.read_text()
            with socket.socket() as asked:
                if asked.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        found.filesystem.create_dir(found.bucket)
        # As README's example has them.
        named = {"pairs": "laion", "dump.json.bz2": "latest-all.json.bz2", "popularity.csv": "qrank.csv"}
        for here, there in (named | {"anchors.tsv": "anchors.tsv"}).items():
            to = f"{found.bucket}/{there}"
            if (world / here).is_dir():
                pafs.copy_files(str(world / here), to, destination_filesystem=found.filesystem)
            else:
                with found.filesystem.open_output_stream(to, compression=None) as stream:
                    stream.write((world / here).read_bytes())
        yield found
    finally:
        server.terminate()
        server.wait(30)


def run(config: Config, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """`i2e …` in a process of its own, which has no credentials and finds none on this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(json.loads(config.model_dump_json())))
    theirs = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "I2E_STORAGE"))}
    theirs |= {
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    return subprocess.run(
        [sys.executable, "-m", "i2e_pipeline.cli", *command, "--config", str(file)],
        cwd=folder, env=theirs, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def on_the_store(store: Store, world: Path, output: str, *overrides: str) -> Config:
    """The chain's settings, with the paths that README's example has."""
    at = f"s3://{store.bucket}"
    return settings(
        world,
        f"{at}/{output}",
        f"pairs.path={at}/laion/*.parquet",
        f"knowledge_base.dump={at}/latest-all.json.bz2",
        f"knowledge_base.popularity={at}/qrank.csv",
        f"knowledge_base.anchors={at}/anchors.tsv",
        "session.driver_memory=1g",
        "session.shuffle_partitions=2",
        *store.options,
        *overrides,
    )
