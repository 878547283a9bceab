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

from i2e_pipeline.commands import calibrate, entity, summary
from i2e_pipeline.commands.gold import followed as followed_gold
from i2e_pipeline.core.config import ConfigError, PriorsConfig, from_tree
from i2e_pipeline.engine.records import Records
from i2e_pipeline.engine.stage import StageError
from i2e_pipeline.engine.tables import Commit, Tables
from i2e_pipeline.knowledge.stages import KnowledgeBase, Surfaces, weights_of
from i2e_pipeline.publish import exclusion, manifest
from i2e_pipeline.report import quality
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
        whole = pipeline(from_tree(tree, "test"), lambda: spark)
        run, states = whole.run(stages)
        made.last = whole, run, states  # type: ignore[attr-defined]
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
        ("anchors", gzip.compress(b"a\tQ1\t3\n" * 99, mtime=0)[:-9], "is damaged or cut short"),
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


OLDER = [
    line(1, "Mercury", descriptions={"en": {"value": "a planet"}}),
    line(2, "Venus"),
    line(3, "Vulcan"),
    line(4, "Hermes"),
    line(6, "Terra"),
]
NEWER = [
    line(1, "Mercury", descriptions={"en": {"value": "innermost planet"}}),
    line(2, "Venus", sitelinks={"enwiki": {"title": "Venus"}}),
    b'{"entity":"Q4","redirect":"Q1"},',
    line(5, "Ceres"),
]
WANTED = [(1, "changed", None), (3, "removed", None), (4, "merged", 1), (5, "added", None), (6, "merged", 2)]


def changes(output: Path) -> list[tuple[Any, ...]]:
    return sorted((r["entity_id"], r["change"], r["into"]) for r in table(output / "kb" / "changes"))


@pytest.fixture
def older(make: Make, tmp_path: Path) -> dict[str, str]:
    """A knowledge base of the older dump; the settings of files that name merged items."""
    files_of = {
        "popularity": "Q4,100\nQ2,1\nQ6,50\n",
        "anchors": "Hermes\tQ4\t3\nHermes\tQ1\t2\nEarth\tQ6\t5\n",
        "redirects": "from\tinto\nQ6\tQ7\nQ7\tQ2\nQ5\tQ2\nQ4\tQ2\n",
        "importance": "en\tr\tThe_Messenger\t0.5\tQ4\n",
    }
    for name, content in files_of.items():
        (tmp_path / name).write_text(content)
    first = make("d.json", b"\n".join(OLDER), "knowledge_base", "surfaces")
    assert "changes" not in first.facts
    assert changes(tmp_path / OUT) == table(tmp_path / OUT / "kb" / "redirects") == []
    return {name: str(tmp_path / name) for name in files_of}


OUT = "out {1} [a], #%20"


def test_a_newer_dump_says_what_has_changed_and_merged_ids_are_followed(
    make: Make, older: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture, spark: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Of the file's redirects, Q5's is passed over, since the dump has an item for it, and Q4's, since the dump's own
    line leads elsewhere."""
    output = tmp_path / OUT
    with caplog.at_level(logging.INFO):
        second = make("d.json", b"\n".join(NEWER), "knowledge_base", "surfaces", **older)
    assert changes(output) == WANTED
    assert second.facts["changes"] == {"added": 1, "changed": 1, "removed": 1, "merged": 2}
    assert "against the one before: 1 added, 1 changed, 1 removed, 2 merged" in caplog.text
    summary.print_changes(make.last[2])  # type: ignore[attr-defined]
    said = " ".join(capsys.readouterr().out.split())  # lines are as wide as the terminal
    assert "entities since the knowledge base before: 1 added, 1 changed, 1 removed, 2 merged" in said
    led = {r["entity_id"]: r["into"] for r in table(output / "kb" / "redirects")}
    assert led == {4: 1, 6: 2, 7: 2}
    known = {r["entity_id"]: r["popularity"] for r in table(output / "kb" / "entities")}
    assert known[2] is not None
    assert known[1] > known[2] > 0
    assert known[5] is None
    forms = {r["normal_form"]: [c["entity_id"] for c in r["candidates"]] for r in table(output / "kb" / "surfaces")}
    assert forms["hermes"] == forms["the messenger"] == [1]
    assert forms["earth"] == [2]
    assert not (output / "_refresh").exists()
    _ids_of_merged_items_are_those_of_their_targets(*make.last, spark)  # type: ignore[attr-defined]
    # Made again of the same: nothing has changed, and what was merged before is no news.
    third = make("d.json", b"\n".join(NEWER), "knowledge_base", "surfaces", **{**older, "max_candidates": 9})
    assert third.facts["changes"] == second.facts["changes"]
    make("d.json", b"\n".join([*NEWER, b""]), "knowledge_base", "surfaces", **older)
    assert changes(output) == []


def _ids_of_merged_items_are_those_of_their_targets(whole: Any, run: Any, states: Any, spark: Any) -> None:
    """Of truths of the pairs, of gold links, of marks, and of ids that somebody asks for."""
    schema = "pair_id int, truth long, refuted array<long>, mentioned array<long>"
    rows = [(0, 4, None, [4, 6]), (1, 5, [6, 9], None), (2, None, [], [])]
    told = quality._followed(spark.createDataFrame(rows, schema), run)
    assert sorted(tuple(r) for r in told.collect()) == [(0, 1, None, [1, 2]), (1, 5, [2, 9], None), (2, None, [], [])]
    others = spark.createDataFrame([(0, 5, None, None)], schema)
    assert quality._followed(others, run) is others
    gold = {(0, 0, 4): 4, (0, 5, 9): None, (1, 0, 3): 2, (2, 0, 1): 7}
    assert followed_gold(gold, run) == {(0, 0, 4): 1, (0, 5, 9): None, (1, 0, 3): 2, (2, 0, 1): 2}
    images = [bytes([n]) * 16 for n in range(3)]
    labels = [(images[0], 1, None), (images[0], 2, None), (images[1], 2, "less_sure"), (images[2], 2, None)]
    wrong = exclusion.Exclusions(labels={(images[0], 4), (images[1], 6), (images[2], 6), (images[2], 2)})
    struck = exclusion.struck(
        run, spark.createDataFrame(labels, "image_id binary, entity_id long, reason string"), wrong
    )
    reasons = {(bytes(r["image_id"])[0], r["entity_id"]): r["reason"] for r in struck.collect()}
    assert reasons == {(0, 1): "excluded_label", (0, 2): None, (1, 2): "less_sure", (2, 2): "excluded_label"}
    assert struck.count() == len(labels)
    pairs = [("u", image, image, entity_id, reason) for image, entity_id, reason in labels if reason is None]
    kinds = "unit string, pair_id binary, image_id binary, entity_id long, reason string"
    (gone,) = exclusion.excluded_pairs(run, spark.createDataFrame(pairs, kinds), wrong).collect()
    assert (gone["unit"], bytes(gone["pair_id"]), gone["reason"]) == ("u", images[2], "excluded_label")
    ids = pa.array(images, pa.binary(16))
    marks = pa.table(
        {"image_id": ids, "entity_id": [4, 5, 6], "mark": ["other"] * 3, "other": [7, None, None], "weight": [1.0] * 3}
    )
    followed = calibrate._followed(calibrate.Marks("", marks), run).labels
    assert (followed["entity_id"].to_pylist(), followed["other"].to_pylist()) == ([1, 5, 2], [2, None, None])
    assert entity.describe(whole, "Q4").startswith("Q4 was merged into Q1\nQ1 Mercury: innermost planet")
    assert manifest._knowledge_base(run)["changes"] == {"added": 1, "changed": 1, "removed": 1, "merged": 2}


@pytest.mark.parametrize("step", ["drop", "_publish", "add"])
def test_a_kill_leaves_the_older_or_the_newer_and_what_has_changed(
    step: str, make: Make, older: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: the older one is gone, the newer does not count yet, and nothing is left to compare with."""
    where = Tables if step == "_publish" else Records
    real = getattr(where, step)

    def killed(self: Any, first: Any, *rest: Any) -> Any:
        if first in ("knowledge_base", "kb/names"):
            raise KeyboardInterrupt
        return real(self, first, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(where, step, killed)
        with pytest.raises(KeyboardInterrupt):
            make("d.json", b"\n".join(NEWER), "knowledge_base", "surfaces", **older)
    commit = Tables(str(tmp_path / OUT)).commits("knowledge_base").get("all")
    assert commit is None or (step == "drop" and commit.rows("kb/entities") == 5)
    second = make("d.json", b"\n".join(NEWER), "knowledge_base", "surfaces", **older)
    assert changes(tmp_path / OUT) == WANTED
    assert second.facts["changes"] == {"added": 1, "changed": 1, "removed": 1, "merged": 2}
    assert not (tmp_path / OUT / "_refresh").exists()


def test_redirects_that_lead_in_a_circle_are_an_error(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "redirects.tsv"
    path.write_text("Q50\tQ51\nQ51\tQ50\n")
    with pytest.raises(StageError, match=r"knowledge_base\.redirects: Q50 is merged into itself"):
        make("d.json", ARRAY, redirects=str(path))
    path.write_text("Q50\tX\n")
    with pytest.raises(StageError, match=r"knowledge_base\.redirects: .*redirects\.tsv, line 1: .* into is not Q"):
        make("d.json", ARRAY, redirects=str(path))


def test_redirects_that_contradict_each_other_are_found_where_they_stand(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: hours for a dump, and then a fault that its small companion had from the beginning; and a remedy for
    rows of a file that are lines of the dump."""
    path = tmp_path / "redirects.tsv"
    own = {"circle": [(50, 51), (51, 50)], "two": [(50, 51), (50, 52)], "half": [(50, 51)]}
    dumps = {
        name: b"\n".join([line(1, "Mercury"), *(b'{"entity":"Q%d","redirect":"Q%d"},' % pair for pair in pairs)])
        for name, pairs in own.items()
    }
    for name, said in (("circle", "Q50 is merged into itself"), ("two", "Q50 is merged into Q51 and into Q52")):
        with pytest.raises(
            StageError, match=rf"knowledge_base\.dump: {said}.* the dump's own lines .* dump of one day"
        ):
            make(f"{name}.json", dumps[name])
    path.write_text("Q51\tQ50\n")
    with pytest.raises(
        StageError, match=r"knowledge_base\.redirects: Q50 .* lines of the dump .*redirects\.tsv the rest"
    ):
        make("half.json", dumps["half"], redirects=str(path))
    with pytest.raises(StageError, match=r"knowledge_base\.dump: Q50 .* the dump's own lines"):
        make("circle.json", dumps["circle"], redirects=str(path))
    monkeypatch.setattr("wikidata.knowledge_base.read_dump", lambda *_, **__: pytest.fail("the dump is read"))
    for rows in ("Q50\tQ51\nQ51\tQ50\n", "Q50\tQ51\nQ50\tQ52\n"):
        path.write_text(rows)
        with pytest.raises(StageError, match=r"knowledge_base\.redirects: Q50 .*take out a row of .*redirects\.tsv"):
            make("half.json", dumps["half"], redirects=str(path))


def test_a_setting_of_later_leaves_older_outputs_valid() -> None:
    assert "importance" not in from_tree({}, "test").knowledge_base.fingerprint()


def test_the_weights_of_priors_are_settings() -> None:
    kb = from_tree({"knowledge_base": {"priors": {"image": 0.5, "sitelinks": 0}}}, "test").knowledge_base
    assert weights_of(kb) == replace(WEIGHTS, image=0.5, sitelinks=0.0)
    assert weights_of(from_tree({}, "test").knowledge_base) == WEIGHTS
    assert set(PriorsConfig.model_fields) | {"kinds"} == {f.name for f in fields(WEIGHTS)}
    assert "priors" not in from_tree({}, "test").knowledge_base.fingerprint()
    made = {}
    for name, priors in {
        "default": {}, "fitted": {"links": WEIGHTS.links, "image": 0}, "links": {"links": 0.5},
        "smoothing": {"smoothing": 2}, "image": {"image": 0.5},
    }.items():  # fmt: skip
        config = from_tree({"knowledge_base": {"dump": __file__, "priors": priors}}, "test")
        made[name] = [stage.settings(config) for stage in (KnowledgeBase(), Surfaces())]
    assert made["default"] == made["fitted"], "a default that is written out is none other"
    for name in ("links", "smoothing"):
        assert made[name][0] == made["default"][0], "what names alone have asks for no dump"
        assert made[name][1] != made["default"][1]
    assert all(changed != default for changed, default in zip(made["image"], made["default"], strict=True))
    with pytest.raises(ConfigError, match=r"knowledge_base\.priors\.image: -1"):
        from_tree({"knowledge_base": {"priors": {"image": -1}}}, "test")
