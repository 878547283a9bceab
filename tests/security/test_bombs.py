"""What unpacks to gigabytes is read in bounded memory, or refused; the bombs are in bombs.py.

Catches: a few kilobytes of a crawl, a dump or a config that end a worker, and with it everything beside it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.security.bombs import BOMBS, PEAK_MB
from wikidata import source_files

ROOT = Path(__file__).parent.parent.parent
SAYS = {
    "dump_bz2": "a line of more than 256 MB",
    "dump_xz": "a line of more than 256 MB",
    "dump_gz": "a line of more than 256 MB",
    "dump_zst": "a line of more than 256 MB",
    "dump_plain": "a line of more than 256 MB",
    "parquet_dictionary": "read 5",
    "parquet_shared_beginnings": "read ",
    "parquet_page_that_says_it_is_2_gb": "cannot be read",
    "jsonl_gz": "longer than 16 MiB",
    "csv_gz": "not closed for 16 MiB",
    "json_deep": "nested too deep",
    "tar_gz": "It is compressed: unpack it",
    "tar_of_long_names_of_long_names": "no whole tar",
    "tar_that_goes_back": "negative size",
    "png_of_more_pixels_than_it_says": "read (64, 64)",
    "png_that_says_so": "too_many_pixels",
    "png_text": "read (64, 64)",
    "png_profile": "read (64, 64)",
    "webp_sides": "too_many_pixels",
    "gif_frames": "read (64, 64)",
    "gif_screen": "too_many_pixels",
    "tiff_strips": "too_many_pixels",
    "bmp_sides": "too_many_pixels",
    "jpeg_sides": "too_many_pixels",
    "yaml_billion_laughs": "anchors",
    "yaml_merges": "anchors",
    "yaml_merges_of_merges": "anchors",
    "yaml_depth": "too deep",
    "npz_of_zeros": "does not fit into the memory",
}
"""What is said of each."""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    """Of all of them, one after the other in a process that forks for each."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.security.bombs"], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    return {one["name"]: one for one in told}


def test_every_bomb_is_looked_at() -> None:
    assert set(SAYS) == set(BOMBS)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process' memory are Linux's /proc here")
@pytest.mark.slow
@pytest.mark.parametrize("name", SAYS)
def test_a_bomb_is_read_in_bounded_memory_or_refused(name: str, outcomes: dict[str, Any]) -> None:
    told = outcomes[name]
    assert told["how"] == "returned", told["trace"]
    assert SAYS[name] in told["said"][0]
    assert told["peak_mb"] < PEAK_MB


@pytest.mark.parametrize("packed", ["bz2", "gz", "xz"])
def test_a_compressed_file_is_unpacked_in_bounded_pieces(tmp_path: Path, packed: str) -> None:
    """Catches: 256 KB of bzip2 that unpack to gigabytes in one call, before anybody can count."""
    import importlib

    module = importlib.import_module({"gz": "gzip", "xz": "lzma"}.get(packed, packed))
    content = b'{"type": "item"},\n' * 800_000
    (tmp_path / f"dump.{packed}").write_bytes(module.compress(content))
    (source,) = source_files.recognised([str(tmp_path / f"dump.{packed}")], source_files.DUMP)
    pieces = list(source_files._unpacked(source, 1 << 20))
    assert b"".join(pieces) == content
    assert max(map(len, pieces)) <= 4 << 20
