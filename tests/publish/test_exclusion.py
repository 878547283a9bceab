"""Lists of what is left out: how they are read, and what they name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.core.domains import Domains
from i2e_pipeline.core.ids import content_id
from i2e_pipeline.core.schemas import HASH
from i2e_pipeline.images.near_hashes import NEAR_BITS
from i2e_pipeline.inputs.marks import MarkError
from i2e_pipeline.publish.exclusion import ExclusionError, Exclusions, fingerprints, listed_hashes, near

HEX = "0123456789abcdef" * 2


def test_a_text_says_by_the_form_of_each_line_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text(
        f"# asked for on 1 May\nhttps://a.example/x.jpg\n\n*.Example.ORG\n  q42 \n{HEX.upper()}\n{HEX * 2}\n", "utf-8"
    )
    assert Exclusions.read([str(tmp_path / "*.txt")]).items == {
        "url": {"https://a.example/x.jpg"}, "domain": {"example.org"}, "entity_id": {42}, "image_id": {HEX},
        "perceptual_hash": {HEX * 2},
    }  # fmt: skip


def test_tables_name_their_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("note,entity_id,domain\nx,Q5,example.org\ny,7,\n")
    (tmp_path / "b.jsonl").write_text('{"url": "http://b.example/"}\n{"url": null}\n')
    pq.write_table(pa.table({"image_id": pa.array([bytes.fromhex(HEX)], pa.binary(16))}), tmp_path / "c.parquet")
    found = Exclusions.read([f"{tmp_path}/{name}" for name in ("a.csv", "b.jsonl", "c.parquet")])
    assert found.items["entity_id"] == {5, 7}
    assert found.items["domain"] == {"example.org"}
    assert (found.items["url"], found.items["image_id"]) == ({"http://b.example/"}, {HEX})
    assert not Exclusions.read([])


def line(entity: int, mark: str, image: str = HEX, **further: object) -> str:
    return json.dumps({"image_id": image, "entity_id": entity, "mark": mark, **further}) + "\n"


def test_marks_leave_out_single_labels_and_no_image_or_entity(tmp_path: Path) -> None:
    path = tmp_path / "marks.jsonl"
    path.write_text(
        '{"image_id": "01 #torn\n' + line(1, "wrong") + line(2, "other", other=9) + line(3, "right") + line(4, "unsure")
        + line(5, "wrong") + line(5, "cleared") + line(6, "wrong") + line(6, "right")
    )  # fmt: skip
    (tmp_path / "list.jsonl").write_text(json.dumps({"image_id": HEX, "entity_id": 7}) + "\n")
    found = Exclusions.read([str(path)])
    assert found.labels == {(bytes.fromhex(HEX), 1), (bytes.fromhex(HEX), 2)}
    assert found
    assert not any(found.items.values())
    assert not found.name(None, None, [1])
    both = Exclusions.read([str(tmp_path)])
    assert both.labels == found.labels
    assert (both.items["image_id"], both.items["entity_id"]) == ({HEX}, {7})
    path.write_text(line(1, "wrong") + line(2, "bad"))
    with pytest.raises(MarkError, match=r"marks\.jsonl, line 2: mark: 'bad' is none of"):
        Exclusions.read([str(path)])


def test_only_marks_that_leave_something_out_change_what_is_to_do(tmp_path: Path) -> None:
    path = tmp_path / "marks.jsonl"
    steps = [(3, "right"), (1, "wrong"), (3, "unsure"), (1, "other"), (2, "wrong"), (2, "cleared")]
    said = []
    for more in (line(*step) for step in steps):
        with path.open("a") as file:
            file.write(more)
        said.append(fingerprints([str(tmp_path)]))
    assert said[0] == []
    assert said[1] == said[2] == said[3] == said[5] != said[4]
    assert [len(s) for s in said[1:]] == [1] * 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "example.org\nwhat is this?\n", r"a\.txt, line 2: 'what is this\?' is no domain"),
        ("a.csv", "qid\nQ42\n", r"a\.csv has no column url, domain.* it has qid"),
        ("a.csv", "entity_id\nL42\n", "row 1: 'L42' is no entity"),
        ("a.csv", f"image_id\n{HEX[:-1]}\n", "is no image_id: 32 hex digits are"),
        ("a.parquet", "no parquet", "is not what its name says"),
        ("a.xlsx", "", "a list is .txt, .csv"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ExclusionError, match=message):
        Exclusions.read([str(tmp_path / name)])


def test_a_domain_stands_for_all_below_it_and_no_other() -> None:
    inside = [
        "https://example.org/a.jpg", "http://img.cdn.Example.org:8080/b", "//example.org/c", "example.org/d",
        "https://u@example.org/",
    ]  # fmt: skip
    outside = [
        "https://notexample.org/",
        "https://example.org.evil.example/",
        "http://a/?u=example.org",
        "http://[",
        "",
    ]
    urls = pa.array([*inside, *outside, None], pa.string())
    assert Domains({"example.org"}).hold(urls).tolist() == [True] * 5 + [False] * 6
    assert not Domains(()).hold(urls).any()


@given(st.integers(0, 60), st.integers(0, 2**32))
def test_hashes_are_near_by_the_bits_that_differ(bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    listed = [rng.bytes(32) for _ in range(3)]
    flipped = int.from_bytes(listed[1], "big")
    for bit in rng.choice(256, bits, replace=False).tolist():
        flipped ^= 1 << bit
    rows = pa.array([flipped.to_bytes(32, "big"), rng.bytes(32)], HASH)
    assert near(rows, listed_hashes({h.hex() for h in listed})).tolist() == [bits <= NEAR_BITS, False]
    assert near(rows, listed_hashes(set())).tolist() == [False, False]


def test_a_row_is_named_by_its_address_its_image_or_an_entity(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"https://a.example/x.jpg\nexample.org\nQ42\n{content_id(b'stored').hex()}\n")
    lists = Exclusions.read([str(tmp_path / "a.txt")])
    assert lists.name("https://a.example/x.jpg", None)
    assert lists.name("https://img.example.org/", None)
    assert lists.name(None, b"stored")
    assert lists.name(None, None, [1, 42])
    assert not lists.name("https://a.example/y.jpg", b"other", [1])
