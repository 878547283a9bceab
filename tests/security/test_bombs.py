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

from tests.security.bombs import BOMBS, DOORS, PEAK_MB
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
    "caption_of_100_mb": "read 999",
    "journal_of_3_gb": "holds more than 1,073,741,824 bytes",
    "journal_deep": "maximum recursion depth",
    "unit_of_3_gb": "holds more than 1,073,741,824 bytes",
    "unit_deep": "maximum recursion depth",
    "change_of_files_of_3_gb": "holds more than 1,073,741,824 bytes",
    "manifest_of_3_gb": "holds more than 1,073,741,824 bytes",
    "seal_of_zeros": "it holds more than",
    "lock_of_3_gb": "read as nobody's",
    "marks_of_3_gb": "holds more than 268,435,456 bytes",
    "marks_gz": "holds more than 268,435,456 bytes",
    "ground_truth_of_3_gb": "has more than 268,435,456 bytes",
    "ground_truth_that_says_it_is_large": "no readable pickle",
    "ground_truth_of_many_nothings": "no readable pickle",
    "checkpoint_of_a_header": "is damaged",
    "checkpoint_that_says_it_is_large": "is damaged",
    "checkpoint_state_deep": "is damaged",
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


ELSEWHERE = {
    "images that rows name by path": "tests/inputs/test_faults.py",
    "`i2e fetch`": "tests/commands/test_fetch.py",
    "`i2e explore`": "tests/security/test_servers.py",
    "settings that lie in an output": "tests/security/test_settings_of_outputs.py",
    "pages, cards, terminal": "tests/security/test_pages.py",
    "messages, logs, stored configs": "tests/commands/test_no_secret_is_left.py",
}
"""Doors without a bomb, since nothing is unpacked or read as a whole there, and where their bounds are tried."""


def test_the_page_on_security_has_a_bomb_for_each_door() -> None:
    """Catches: a claim of the page that nobody made true."""
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    table = page.partition("## Doors and their bounds")[2].partition("\n\nBounds that")[0].strip().splitlines()[2:]
    doors = {row.split("|")[1].strip() for row in table}
    assert doors == {*DOORS, *ELSEWHERE}
    assert not {*DOORS} & {*ELSEWHERE}
    for door, begin in DOORS.items():
        for beginning in begin:
            assert any(name.startswith(beginning) for name in BOMBS), (door, beginning)
    assert not [n for n in BOMBS if not n.startswith(tuple(b for begin in DOORS.values() for b in begin))]
    for path in ELSEWHERE.values():
        assert (ROOT / path).is_file(), path


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
