"""Marks: what is appended is read, whatever was killed between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.core.errors import NoSuchFile
from i2e_pipeline.inputs import marks
from i2e_pipeline.inputs.marks import KINDS, MARKS, TORN, Mark, MarkError, append, read

IMAGE = "0123456789abcdef" * 2
RIGHT = Mark(IMAGE, 308, "right", at="2026-05-01T12:00:00Z")

labels = st.tuples(st.sampled_from([IMAGE, "0" * 32]), st.integers(1, 3))
said = st.builds(
    lambda label, mark, other, probability, weight, by: Mark(
        *label, mark, 9 if mark == "other" and other else None, probability, weight, by=by
    ),
    labels,
    st.sampled_from(KINDS),
    st.booleans(),
    st.none() | st.floats(0, 1),
    st.none() | st.floats(1e-3, 1e6),
    st.none() | st.text(max_size=20),
)


def told(table: pa.Table) -> dict[tuple[str, int], str]:
    return {(r["image_id"].hex(), r["entity_id"]): r["mark"] for r in table.to_pylist()}


def latest(given_: list[Mark]) -> dict[tuple[str, int], str]:
    last = {(m.image_id, m.entity_id): m.mark for m in given_}
    return {label: mark for label, mark in last.items() if mark != "cleared"}


@given(st.lists(said, max_size=8), st.data())
def test_what_was_marked_whole_is_read_wherever_a_writer_was_killed(
    tmp_path_factory: pytest.TempPathFactory, marks: list[Mark], data: st.DataObject
) -> None:
    """After some marks the file is cut anywhere in its last line; the marks after it are whole."""
    path = str(tmp_path_factory.mktemp("marks") / "marks.jsonl")
    kept: list[Mark] = []
    for mark in marks:
        append(path, mark)
        lost = data.draw(st.integers(0, 400)) if data.draw(st.booleans()) else 0
        content = Path(path).read_bytes()
        begin = content.rstrip(b"\n").rfind(b"\n") + 1
        cut = max(begin, len(content) - lost)
        Path(path).write_bytes(content[:cut])
        if cut >= len(content) - 1:  # at most its newline is lost
            kept.append(mark)
    if marks:
        assert told(read(path)) == latest(kept)


def test_a_mark_is_read_as_it_was_given(tmp_path: Path) -> None:
    path = str(tmp_path / "new" / "marks.jsonl")
    append(path, Mark(IMAGE, 308, "other", 925, 0.75, 12.5, "2026-05-01T12:00:00Z", 'Ζoë "}'))
    append(path, replace(RIGHT, entity_id=1, at=""))
    first, second = read(path).to_pylist()
    assert first == {
        "image_id": bytes.fromhex(IMAGE), "entity_id": 308, "mark": "other", "other": 925, "probability": 0.75,
        "weight": 12.5, "at": first["at"], "by": 'Ζoë "}',
    }  # fmt: skip
    assert first["at"].isoformat() == "2026-05-01T12:00:00+00:00"
    assert second["at"] is not None
    assert read(path).schema == MARKS


def test_the_last_line_of_a_label_counts_and_cleared_takes_it_back(tmp_path: Path) -> None:
    path = str(tmp_path / "marks.jsonl")
    for mark in ("right", "cleared", "wrong"):
        append(path, replace(RIGHT, mark=mark))
    append(path, replace(RIGHT, entity_id=2))
    append(path, replace(RIGHT, entity_id=2, mark="cleared"))
    assert told(read(path)) == {(IMAGE, 308): "wrong"}


def test_a_drawn_label_stays_drawn_when_it_is_marked_again_by_eye(tmp_path: Path) -> None:
    path = str(tmp_path / "marks.jsonl")
    append(path, replace(RIGHT, weight=3.0))
    append(path, replace(RIGHT, mark="wrong"))
    (row,) = read(path).to_pylist()
    assert (row["mark"], row["weight"]) == ("wrong", 3.0)


@pytest.mark.parametrize("blank", ["", " ", "\t", "\x0b", "\x0c", "\r"])
def test_a_last_line_without_an_end_stays_what_it_says(tmp_path: Path, blank: str) -> None:
    """Catches: a line that reads as a mark, and is closed as one that was not written to its end."""
    path = tmp_path / "marks.jsonl"
    append(str(path), Mark("a" * 32, 7, "right"))
    path.write_bytes(path.read_bytes().rstrip(b"\n") + blank.encode())
    assert read(str(path)).num_rows == 1
    append(str(path), Mark("b" * 32, 7, "right"))
    assert read(str(path)).num_rows == 2


def test_a_torn_line_is_told_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "marks.jsonl"
    append(str(path), RIGHT)
    with path.open("ab") as file:
        file.write(b'{"image_id": "01')
    assert told(read(str(path))) == {(IMAGE, 308): "right"}
    assert "line 2, the last, was not written to its end" in caplog.text
    append(str(path), replace(RIGHT, mark="wrong"))
    assert told(read(str(path))) == {(IMAGE, 308): "wrong"}
    assert path.read_bytes().split(b"\n")[1].endswith(TORN)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image_id": "01', "line 2 is no JSON"),
        ("[]", "line 2: a mark has image_id, entity_id and mark"),
        (json.dumps({"image_id": IMAGE[1:], "entity_id": 1, "mark": "right"}), "is no id of an image"),
        (json.dumps({"image_id": IMAGE, "entity_id": "Q1", "mark": "right"}), "'Q1' is no entity"),
        (json.dumps({"image_id": IMAGE, "entity_id": 1, "mark": "good"}), "'good' is none of right, wrong"),
        (json.dumps({"image_id": IMAGE, "entity_id": 1, "mark": "other", "other": 1}), "is another entity"),
        (json.dumps({"image_id": IMAGE, "entity_id": 1, "mark": "wrong", "other": 2}), "goes with the mark 'other'"),
        (json.dumps({"image_id": IMAGE, "entity_id": 1, "mark": "right", "weight": 0}), "no number above 0"),
        (json.dumps({"image_id": IMAGE, "entity_id": 1, "mark": "right", "probability": 2}), "from 0 to 1"),
        (json.dumps({"image_id": IMAGE, "entity_id": 1, "mark": "right", "at": "noon"}), "'noon' is no time"),
    ],
)
def test_a_line_that_is_no_mark_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "marks.jsonl"
    path.write_text(f"{json.dumps(asdict(RIGHT))}\n{line}\n{json.dumps(asdict(RIGHT))}\n")
    with pytest.raises(MarkError, match=message):
        read(str(path))


def test_a_file_that_is_not_there_and_a_store_are_said(tmp_path: Path) -> None:
    with pytest.raises(NoSuchFile, match="i2e explore"):
        read(str(tmp_path / "none.jsonl"))
    with pytest.raises(MarkError, match="on a disk"):
        append("s3://bucket/marks.jsonl", RIGHT)


WRITER = """
import sys
from i2e_pipeline.inputs.marks import Mark, append
n = 0
while True:
    n += 1
    append(sys.argv[1], Mark(sys.argv[2] * 32, n, "right", by="x" * 200))
    print(n, flush=True)
"""


def test_two_processes_mark_side_by_side_and_are_killed(tmp_path: Path) -> None:
    """Catches: lines of two writers mixed, or one that was said to be kept and is not."""
    path = str(tmp_path / "marks.jsonl")
    writers: list[Any] = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, who], stdout=subprocess.PIPE, text=True) for who in "ab"
    ]
    kept = {}
    for who, writer in zip("ab", writers, strict=True):
        for _ in range(40):
            kept[who] = int(writer.stdout.readline())
    for who, writer in zip("ab", writers, strict=True):
        os.kill(writer.pid, signal.SIGKILL)
        rest = [int(n) for n in writer.communicate()[0].split("\n")[:-1] if n]
        kept[who] = max(rest, default=kept[who])
    found = told(read(path))
    for who, last in kept.items():
        mine = {entity for image, entity in found if image == who * 32}
        assert mine >= set(range(1, last + 1))


def test_marks_of_an_image_that_must_leave_go_whatever_line_names_it(tmp_path: Path) -> None:
    path = str(tmp_path / "marks.jsonl")
    gone, stays = "ab" * 16, "cd" * 16
    for image_id in (gone, stays, gone):
        marks.append(path, marks.Mark(image_id, 308, "right"))
    with open(path, "ab") as torn:
        torn.write(b'{"image_id": "' + gone.upper().encode() + b'", "ent')
    assert marks.forget(path, {gone}) == 3
    assert gone.encode() not in Path(path).read_bytes().lower()
    assert [row["image_id"].hex() for row in marks.read(path).to_pylist()] == [stays]
    assert marks.forget(path, {gone}) == 0


def test_a_line_that_is_nested_without_end_is_named(tmp_path: Path) -> None:
    path = tmp_path / "marks.jsonl"
    path.write_text("[" * 100_000 + "\n" + "{}\n")
    with pytest.raises(MarkError, match=r"marks\.jsonl, line 1 is no JSON"):
        read(str(path))
