"""The stages of the knowledge base: sources that yield nothing, or a part, are errors."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from i2e_pipeline.core.config import ConfigError, PriorsConfig, from_tree
from i2e_pipeline.engine.stage import StageError
from i2e_pipeline.engine.tables import Commit
from i2e_pipeline.knowledge.stages import weights_of
from i2e_pipeline.stages import pipeline
from tests.chain import commits
from tests.wikidata.lines import instance_of, line
from wikidata.priors import WEIGHTS

ITEMS = [line(n, f"Thing {n}").removesuffix(b",") for n in range(1, 41)]
ARRAY = b"[\n" + b",\n".join(ITEMS) + b"\n]\n"
INDENTED = json.dumps([json.loads(item) for item in ITEMS], indent=1).encode()
DISAMBIGUATIONS = b"\n".join(line(n, f"x {n}", claims=instance_of(4167410)) for n in range(1, 9))

Make = Callable[..., Commit]


@pytest.fixture
def make(spark: Any, tmp_path: Path, world: Path) -> Make:
    """Runs stages over a dump of these bytes, and gives the commit of the first."""

    def made(name: str, content: bytes, *stages: str, **settings: Any) -> Commit:
        folder = tmp_path / "in {1} [a], #%20"
        folder.mkdir(exist_ok=True)
        dump = folder / name
        dump.write_bytes(content)
        output = tmp_path / "out {1} [a], #%20"
        tree = {
            "output": str(output),
            "pairs": {"path": str(world / "pairs" / "*.parquet")},
            "knowledge_base": {"dump": str(dump), **settings},
        }
        stages = stages or ("knowledge_base",)
        pipeline(from_tree(tree, "test"), lambda: spark).run(stages)
        (commit,) = (c for name, c in commits(output, *stages).items() if name.startswith(stages[0]))
        return commit

    return made


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("latest-all.json.bz2", b"<html>404", "is an HTML page: download the file again"),
        ("d.json", b"", "is empty"),
        ("d.json", b"[\n]\n", "none of its 0 lines is an item"),
        ("d.json", b"Q1\tUniverse\n" * 9, r"is no JSON, it begins with 'Q1\\tUniverse"),
        ("d.json", b'{"error": "not found"}\n', "none of its 1 lines is an item .*1 bad_shape.* begins with '{\"error"),
        ("d.json", INDENTED, "none of its .* lines is an item"),
        ("d.json", DISAMBIGUATIONS, "none of its 8 lines is an item that is kept .8 disambiguation"),
    ],
)
def test_a_source_that_yields_nothing_is_an_error(make: Make, name: str, content: bytes, said: str) -> None:
    """A part of it is nothing, too. Catches: a knowledge base without entities, and a whole run with it."""
    for allowed in (False, True):
        with pytest.raises(StageError, match=rf"(?s)knowledge_base\.dump: .*{said}"):
            make(name, content, allow_partial=allowed)


CUT = {
    "plain": ("d.json", ARRAY[: len(ARRAY) // 2]),
    "no end": ("d.json", ARRAY.removesuffix(b"]\n")),
    "no beginning": ("d.json", ARRAY.removeprefix(b"[\n")),
    "bz2": ("d.json.bz2", bz2.compress(ARRAY) + bz2.compress(ARRAY)[:-40]),
    "bz2 by another name": ("d.json", bz2.compress(ARRAY) + bz2.compress(ARRAY)[:-40]),
    "gz": ("d.json.gz", gzip.compress(ARRAY) + gzip.compress(ARRAY)[:-40]),
    "mostly rejects": ("d.jsonl", b"\n".join([*ITEMS[:4], *[b"junk"] * 9])),
    "damaged lines": ("d.json.bz2", bz2.compress(b"\n".join(i[:50] if n % 3 == 1 else i for n, i in enumerate(ITEMS)))),
}


@pytest.mark.parametrize("cut", CUT)
def test_a_part_of_a_dump_is_an_error_unless_it_is_meant(make: Make, cut: str) -> None:
    with pytest.raises(StageError, match=r"(?s)knowledge_base\.dump: .*or set knowledge_base\.allow_partial=true"):
        make(*CUT[cut])
    assert make(*CUT[cut], allow_partial=True).rows_out > 3


def test_a_plain_dump_that_does_not_close_is_an_error_before_anything_is_read(make: Make, tmp_path: Path) -> None:
    (tmp_path / "popularity").write_text("Q1,Infinity\n")
    with pytest.raises(StageError, match=r"the end is missing\. Download it again"):
        make("d.json", ARRAY.removesuffix(b"]\n"), popularity=str(tmp_path / "popularity"))


def test_a_few_damaged_lines_are_said(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    assert make("d.jsonl", b"\n".join([*ITEMS, b"{junk"])).rejected == {"not_json": 1}
    assert "1 of its 41 lines are no entities (1 not_json); they are in the table `rejects`" in caplog.text


@pytest.mark.parametrize(
    ("setting", "content", "said"),
    [
        ("popularity", b"Q1,Infinity\n", "line 1: 'Q1,Infinity' is no row"),
        ("popularity", b"<html>", "is an HTML page"),
        ("importance", b"en\ta\tX\t0.5\tQ1\nen\ta\tX\thigh\tQ1\n", "line 2: .* is no row .* importance is not a"),
        ("importance", b"<html>", "is an HTML page"),
        ("anchors", b"a\tQ1\t3.5\n", "line 1: .* is no row"),
        ("anchors", gzip.compress(b"a\tQ1\t3\n" * 99)[:-9], "is damaged or cut short"),
    ],
)
def test_sources_are_looked_at_before_the_dump(
    make: Make, tmp_path: Path, setting: str, content: bytes, said: str
) -> None:
    (tmp_path / "source").write_bytes(content)
    with pytest.raises(StageError, match=rf"knowledge_base\.{setting}: .*{said}"):
        make("d.json", ARRAY, **{setting: str(tmp_path / "source")})


def test_anchors_in_another_encoding_are_said(make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "anchors.tsv"
    path.write_bytes("Café\tQ1\t3\nThing\tQ1\t2\n".encode("latin-1"))
    with caplog.at_level(logging.WARNING):
        make("d.json", ARRAY, "knowledge_base", "surfaces", anchors=str(path))
    said = [r.message for r in caplog.records if "UTF-8" in r.message]
    assert len(said) == 1
    assert f"knowledge_base.anchors: {path}: 1 of 2 rows are not UTF-8, the first in line 1" in said[0]


@pytest.mark.parametrize(
    ("setting", "row"),
    [("popularity", "Q{},5\n"), ("anchors", "thing\tQ{}\t5\n"), ("importance", "en\ta\tThing\t.5\tQ{}\n")],
)
def test_a_source_that_knows_none_of_the_entities_is_refused(
    setting: str, row: str, make: Make, tmp_path: Path
) -> None:
    """Catches: priors of a file of another dump, which bends every one of them silently."""
    strangers = "".join(row.format(n) for n in range(9000, 11_500))
    source = tmp_path / "source.txt"
    source.write_text(strangers)
    said = rf"knowledge_base\.{setting}: .*source\.txt knows none of the dump's entities, such as Q9000"
    with pytest.raises(StageError, match=said):
        make("d.json", ARRAY, "knowledge_base", "surfaces", **{setting: str(source)})
    source.write_text(strangers + row.format(7))  # the last row alone is known
    make("d.json", ARRAY, "knowledge_base", "surfaces", **{setting: str(source)})


def test_importance_gives_popularity_and_names(make: Make, tmp_path: Path, spark: Any) -> None:
    """A redirect is found as a name; rows without an id and pages of other languages name nothing."""
    path = tmp_path / "wikimedia-importance.csv.gz"
    rows = [
        "language\ttype\ttitle\timportance\twikidata_id",
        "en\ta\tThing_3_(object)\t0.8\tQ3",
        "en\tr\tThe_Third_Thing\t0.8\tQ3",
        "de\ta\tDrittes_Ding\t0.9\tQ3",
        "en\tr\tNobody's\t0.2\t",
        "en\ta\tStranger\t0.2\tQ9000",
        "en\ta\tThing_4\t0.1\tQ4",
    ]
    path.write_bytes(gzip.compress("\n".join(rows).encode()))
    make("d.json", ARRAY, "knowledge_base", "surfaces", importance=str(path))
    output = tmp_path / "out {1} [a], #%20" / "kb"
    known = table(output / "entities")
    assert {r["entity_id"]: r["popularity"] for r in known if r["popularity"] is not None} == {3: 0.9, 4: 0.1}
    forms = {r["normal_form"]: r for r in table(output / "surfaces")}
    assert [(c["entity_id"], c["kind"]) for c in forms["the third thing"]["candidates"]] == [(3, "redirect")]
    assert [(c["entity_id"], c["kind"]) for c in forms["thing 3"]["candidates"]] == [(3, "label")]
    assert not {"drittes ding", "nobody's", "stranger"} & forms.keys()
    names = table(output / "names")
    assert len({(r["entity_id"], r["surface"]) for r in names}) == len(names) == 41
    # Other content under the same name is another fingerprint.
    path.write_bytes(gzip.compress("\n".join([*rows, "en\tr\tBit_Four\t0.1\tQ4"]).encode()))
    make("d.json", ARRAY, "knowledge_base", "surfaces", importance=str(path), languages=["en", "de"])
    assert {"drittes ding", "bit four"} <= {r["normal_form"] for r in table(output / "surfaces")}


def table(folder: Path) -> list[dict[str, Any]]:
    parts = [pq.read_table(part, partitioning=None) for part in sorted(folder.rglob("*.parquet"))]
    found: list[dict[str, Any]] = pa.concat_tables(parts).to_pylist()
    return found


def test_a_setting_of_later_leaves_older_outputs_valid() -> None:
    assert "importance" not in from_tree({}, "test").knowledge_base.fingerprint()


def test_the_weights_of_priors_are_settings() -> None:
    kb = from_tree({"knowledge_base": {"priors": {"image": 0.5, "sitelinks": 0}}}, "test").knowledge_base
    assert weights_of(kb) == replace(WEIGHTS, image=0.5, sitelinks=0.0)
    assert weights_of(from_tree({}, "test").knowledge_base) == WEIGHTS
    assert set(PriorsConfig.model_fields) | {"kinds"} == {f.name for f in fields(WEIGHTS)}
    assert "priors" not in from_tree({}, "test").knowledge_base.fingerprint()
    with pytest.raises(ConfigError, match=r"knowledge_base\.priors\.image: -1"):
        from_tree({"knowledge_base": {"priors": {"image": -1}}}, "test")
