"""The files of `i2e link`: what comes in is named where it is wrong, what goes out is what its name says."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from i2e_pipeline.commands.link import _write, link_texts, read_lines
from i2e_pipeline.core import files
from i2e_pipeline.engine.units import InputError

LINES = [{"id": "a", "text": "Flag of Türkiye"}, {"id": 7, "text": "\ud83d!"}]


@pytest.mark.parametrize(("name", "opened"), [("l.jsonl.gz", gzip.open), ("l.jsonl.BZ2", bz2.open), ("l.jsonl", open)])
def test_links_are_compressed_as_their_name_says(tmp_path: Path, name: str, opened: Any) -> None:
    """Catches: plain JSON under a name that ends in .gz, on a disk alone."""
    mention = {"start": 0, "end": 2, "label": "", "candidates": []}
    _write(str(tmp_path / name), LINES, {1: [mention]}, 1000)
    with opened(tmp_path / name, "rt", encoding="utf-8") as stream:
        out = [json.loads(line) for line in stream]
    assert [line["id"] for line in out] == ["a", 7]
    assert out[1]["mentions"][0]["surface"] == "?!"
    assert files.read_bytes(str(tmp_path / name)).count(b"\n") == 2


def test_texts_may_be_compressed(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(json.dumps(LINES[0]).encode()))
    assert list(read_lines(str(tmp_path / "t.jsonl.gz"))) == LINES[:1]


@pytest.mark.parametrize("name", ["l.jsonl.xz", "l.zip"])
def test_what_cannot_be_written_is_said_before_the_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"\.gz, \.bz2, \.zst and \.lz4 are written"):
        link_texts(None, "none.jsonl", str(tmp_path / name))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ['"x\\ud800"', '["\\udfff"]', '{"a": "\\udc00"}'])
def test_an_id_with_a_lone_surrogate_is_named_with_its_line(tmp_path: Path, wrong: str) -> None:
    """Catches: an error at the end of the work, when the links are written, which names no line."""
    path = tmp_path / "t.jsonl"
    path.write_text(f'{{"id": "fine", "text": "a"}}\n\n{{"id": {wrong}, "text": "b"}}\n')
    with pytest.raises(InputError, match=r"t\.jsonl, line 3: the id .* lone surrogate") as error:
        list(read_lines(str(path)))
    str(error.value).encode()


def test_a_file_of_texts_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps(LINES[0]).encode() * 99)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-9])
    (tmp_path / "plain.jsonl.gz").write_text('{"id": 1, "text": "a"}\n')
    (tmp_path / "deep.jsonl").write_text('{"id": 1, "text": "a"}\n' + "[" * 200_000 + "\n")
    for name in ("cut.jsonl.gz", "plain.jsonl.gz", "."):
        with pytest.raises(InputError, match=rf"--input {tmp_path}/{name} cannot be read \("):
            list(read_lines(f"{tmp_path}/{name}"))
    with pytest.raises(InputError, match=r"deep\.jsonl, line 2: not "):
        list(read_lines(str(tmp_path / "deep.jsonl")))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match=r"empty\.jsonl holds no line"):
        link_texts(None, str(tmp_path / "empty.jsonl"), str(tmp_path / "l.jsonl"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"--output .* is a folder: name a file"):
        link_texts(None, str(tmp_path / "empty.jsonl"), str(tmp_path))  # type: ignore[arg-type]
