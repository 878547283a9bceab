"""`i2e explain` and `i2e link --explain`: what they tell is what a run made, and they start no Spark.

Most of it is asked of the stored output of an earlier version, which needs neither Spark nor a run.
"""

from __future__ import annotations

import gzip
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from i2e_pipeline import cli, stages
from i2e_pipeline.commands.explain import NotFound, _Explanation, explain
from i2e_pipeline.commands.link import explain_texts, link_texts, plain
from i2e_pipeline.commands.linking import NoKnowledgeBase, names_of_group
from i2e_pipeline.core.config import Config
from i2e_pipeline.core.rejects import part
from i2e_pipeline.core.schemas import MENTIONS
from i2e_pipeline.engine.arrange import arrange
from i2e_pipeline.engine.catalogue import Passed, Table
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.engine.stage import Plan, Run, Stage
from i2e_pipeline.label.calibration import DEFAULT, Calibration
from i2e_pipeline.link.candidates import GROUP_NAMES, in_order
from i2e_pipeline.publish.selection import image_labels
from i2e_pipeline.stages import pipeline
from tests.chain import explained_as_stored, rows, settings
from tests.test_stored_output import STORED

WEIGHING = DEFAULT.without_vocabulary or DEFAULT
"""What weighs the stored output: it is older than the vocabulary."""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    with tarfile.open(STORED) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def stored(unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """The stored output, to be changed; it starts no Spark."""
    shutil.copytree(unpacked, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    return pipeline(stages.load("config.yaml"), lambda: pytest.fail("Spark was started"))


def rejected(whole: Pipeline, stage: str, reason: str) -> dict[str, Any]:
    found = whole.tables.where("rejects", whole.tables.commits(stage).values(), pc.field("reason") == reason)
    row: dict[str, Any] = found.to_pylist()[0]
    return row


def test_an_image_is_found_by_id_prefix_pair_url_and_key(stored: Pipeline) -> None:
    image = rows(stored, "i2e/images")[0]
    pair_id = rows(stored, "selection", image_id=pa.scalar(image["image_id"], pa.binary(16)))[0]["pair_id"]
    pair = rows(stored, "pairs", pair_id=pa.scalar(pair_id, pa.binary(16)))[0]
    digits = image["image_id"].hex()
    whole = explain(stored, digits)
    assert whole["image"]["published"]
    assert whole["image"]["labels"][0]["class_index"] is not None
    assert whole["pairs"][0]["ended"] == "published"
    assert whole["pairs"][0]["labels"][0]["features"].keys() == set(WEIGHING.features)
    for asked in (digits[:12].upper(), pair_id.hex(), pair["url"], pair["key"]):
        told = explain(stored, asked)
        assert (told["image"], told["pairs"]) == (whole["image"], whole["pairs"])


def test_a_row_that_ended_says_where_and_why(stored: Pipeline) -> None:
    truncated = rejected(stored, "score", "truncated_image")
    (pair,) = explain(stored, truncated["id"].hex())["pairs"]
    assert pair["ended"] == "score: truncated_image"
    assert pair["steps"][-1]["sentence"].startswith("The image ends before")
    assert pair["mentions"]
    assert not pair["labels"]

    twin = rejected(stored, "select", "duplicate_image")
    told = explain(stored, twin["id"].hex())
    assert told["pairs"][0]["ended"] == "select: duplicate_image"
    assert told["image"]["from_pair"] in told["pairs"][0]["steps"][-1]["detail"]
    of_image = explain(stored, told["image"]["image_id"])
    assert [p["pair_id"] for p in of_image["pairs"]] == [told["image"]["from_pair"], twin["id"].hex()]

    silent = rejected(stored, "extract", "no_mention")
    (row,) = rows(stored, "pairs", text_id=pa.scalar(silent["id"], pa.binary(16)))
    (pair,) = explain(stored, row["key"])["pairs"]
    assert [(s["stage"], s["reason"], s["whole_pair"]) for s in pair["steps"]] == [
        ("extract", "no_mention", False),
        ("score", "no_linked_mention", True),
    ]


def test_a_row_that_became_no_pair_is_found_by_its_pair_id(stored: Pipeline) -> None:
    row = rejected(stored, "pairs", "null_text")
    (pair,) = explain(stored, row["id"].hex())["pairs"]
    assert pair["ended"] == "pairs: null_text"
    assert (pair["shard"], pair["row"]) == (row["shard"], row["row"])
    assert pair["file"].endswith(".parquet")


@pytest.mark.parametrize("column", ["key", "url"])
def test_a_row_that_became_no_pair_is_found_in_the_input(stored: Pipeline, column: str) -> None:
    """Catches: "not found" of a url whose row was rejected before any table named it."""
    row = rejected(stored, "pairs", "empty_text")
    files = [f for unit in Path("out/units").glob("*.json") for f in json.loads(unit.read_text())["files"]]
    file = next(f for f in files if f["shard"] == row["shard"])
    asked = pq.read_table(file["path"]).to_pylist()[row["row"]][column]
    (pair,) = explain(stored, asked)["pairs"]
    assert (pair["pair_id"], pair["ended"]) == (row["id"].hex(), "pairs: empty_text")


def test_what_is_nowhere_is_said_with_where_was_looked(stored: Pipeline) -> None:
    with pytest.raises(NotFound, match=r"'?https://nowhere'? is no image id.*looked in pairs \(url, key, pair_id\)"):
        explain(stored, "https://nowhere")
    with pytest.raises(NotFound, match=r"looked in i2e/images \(image_id\), selection \(image_id\), scores"):
        explain(stored, "f" * 31)
    with pytest.raises(NotFound, match="4 digits at least"):
        explain(stored, "abc")
    shutil.rmtree("in")
    with pytest.raises(NotFound, match=r"and not in the input of u-.*in/0000"):
        explain(stored, "nowhere")
    empty = pipeline(stages.load("config.yaml", ["output=none"]))
    with pytest.raises(NotFound, match="none holds nothing that a run has made"):
        explain(empty, "nowhere")
    with pytest.raises(NoKnowledgeBase, match="none/kb holds no knowledge base: `i2e run --until surfaces`"):
        explain_texts(empty, [{"id": 0, "text": "Apple"}])


def test_of_a_group_of_any_size_the_same_names_are_looked_up(stored: Pipeline) -> None:
    """Catches: a page of a million texts, all of whose names are linked to explain one of them."""
    known = [r["normal_form"] for r in rows(stored, "kb/surfaces") if " " in r["normal_form"]]
    assert len(known) > GROUP_NAMES
    forms = [*known, *(f"nobody {n} at all" for n in range(3000))]
    run = stored.as_it_is()
    assert names_of_group(run, forms) == names_of_group(run, reversed(forms)) == in_order(known)[:GROUP_NAMES]
    assert names_of_group(run, forms[-40:]) == names_of_group(run, []) == []


def test_a_prefix_of_several_images_asks_for_more_digits(stored: Pipeline) -> None:
    """Catches: the first of several images told as if it were the one that was meant."""
    path = min(Path("out/i2e/images").rglob("*.parquet"))
    table = pq.read_table(path, partitioning=None)
    ids = [bytes.fromhex("abcdef") + i[3:] for i in table.column("image_id").to_pylist()]
    at = table.schema.names.index("image_id")
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(ids, pa.binary(16))), path)
    with pytest.raises(NotFound, match=r"abcdef begins the ids of several images \(abcdef[0-9a-f]{4}….*give more"):
        explain(stored, "abcdef")


def test_a_run_that_is_not_done_says_what_is_to_come(stored: Pipeline) -> None:
    key = rows(stored, "pairs", pair_id=pa.scalar(rows(stored, "selection")[0]["pair_id"], pa.binary(16)))[0]["key"]
    for stage, gone in (("publish", "i2e/images"), ("select", "selection"), ("label", "labels"), ("score", "scores")):
        shutil.rmtree(f"out/_commits/{stage}")
        shutil.rmtree(f"out/{gone}")
        (pair,) = explain(stored, key)["pairs"]
        assert pair["ended"] == f"on its way: {stage} has not come to unit {pair['unit']} yet (`i2e run`)"
        assert pair["mentions"][0]["candidates"][0]["stored"]
        assert bool(pair["labels"]) == (stage != "score")


def test_what_was_made_otherwise_is_said(stored: Pipeline) -> None:
    """Catches: figures of today's settings told as if the run had them."""
    changed = pipeline(stages.load("config.yaml", ["link.nil_weight=0.5", "label.threshold=0.9"]))
    told = explain(changed, rows(stored, "i2e/images")[0]["image_id"].hex())
    notes = "\n".join(told["notes"])
    assert "nil_weight: 0.04, now 0.5" in notes
    assert "label.threshold: 0.001, now 0.9" in notes or "threshold: 0.001, now 0.9" in notes
    assert "candidates of u-" in notes
    assert "what is computed now differs from what the run stored" in notes


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*arguments])
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def test_the_command_prints_a_table_or_json(stored: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    image = rows(stored, "i2e/images")[0]
    digits = image["image_id"].hex()
    code, out, err = call(capsys, "explain", digits[:10], "--config", "config.yaml")
    assert code == 0, err
    assert f"image {digits}" in out
    assert image["alt_text"] in out
    assert f"bias {WEIGHING.bias:.2f}" in out
    assert "none of these" in out
    code, out, _ = call(capsys, "explain", digits[:10], "--config", "config.yaml", "--json")
    assert (code, json.loads(out)["image"]["image_id"]) == (0, digits)
    code, out, err = call(capsys, "explain", "nowhere", "--config", "config.yaml")
    assert (code, out) == (2, "")
    assert "nowhere is no image id" in err


def test_texts_of_the_command_line_are_linked_without_spark(
    stored: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ("--text", "Apple &amp; panda, Sun", "--text", "")
    code, out, err = call(capsys, "link", *texts, "--config", "config.yaml")
    assert code == 0, err
    first, second = map(json.loads, out.splitlines())
    assert [m["surface"] for m in first["mentions"]] == ["Apple", "panda"]
    assert first["mentions"][1]["start"] == 12
    assert first["mentions"][0]["candidates"][0]["entity_id"] == 89
    assert second == {"id": 1, "mentions": []}
    code, printed, err = call(capsys, "link", *texts, "--output", "links.jsonl.gz", "--config", "config.yaml")
    assert (code, printed) == (0, ""), err
    assert list(map(json.loads, gzip.decompress(Path("links.jsonl.gz").read_bytes()).splitlines())) == [first, second]
    code, _, err = call(capsys, "link", *texts, "--output", ".", "--config", "config.yaml")
    assert (code, "--output . is a folder: name a file" in err) == (2, True)

    code, out, _ = call(capsys, "link", *texts, "--explain", "--json", "--config", "config.yaml")
    apple, nothing = json.loads(out)["texts"]
    assert apple["mentions"][0]["candidates"][0]["features"]["prior"]["weight"] > 0
    assert [w["surface"] for w in apple["overlooked"]] == ["Sun"]
    assert (nothing["rejected"], nothing["mentions"]) == ("empty_text", [])
    code, out, _ = call(capsys, "link", *texts, "--explain", "--config", "config.yaml")
    assert "“Sun” is no mention: a common word" in out

    code, out, err = call(capsys, "link", "--text", "a nice day with my friends", "--config", "config.yaml")
    assert (code, json.loads(out)["mentions"], err) == (0, [], err)

    Path("t.jsonl").write_text('{"id": "a", "text": "Apple"}\n')
    code, out, _ = call(capsys, "link", "--input", "t.jsonl", "--explain", "--config", "config.yaml")
    assert (code, "text a: “Apple”" in out) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--input", "t.jsonl"), "--input needs --output"),
        (("--text", "a", "--json"), "--json goes with --explain"),
        (("--text", "a", "--explain", "--output", "l.jsonl"), "--output holds plain links"),
    ],
)
def test_options_of_link_that_do_not_fit_are_refused(
    stored: Pipeline, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    code, _, err = call(capsys, "link", *arguments, "--config", "config.yaml")
    assert (code, said in err) == (2, True)


# --- on a run of today's code --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_computed_again_is_what_the_run_stored(world: Path, whole: Path) -> None:
    """Catches: a feature, a weight, a narrowing or an order that is told otherwise than the stages apply it."""
    made = pipeline(settings(world, whole), lambda: pytest.fail("Spark was started"))
    assert explained_as_stored(made) > 50
    ended = {p["ended"] for row in rows(made, "pairs")[::7] for p in explain(made, row["pair_id"].hex())["pairs"]}
    assert "published" in ended
    assert not any(e.startswith(("on its way", "left out")) for e in ended)


@pytest.mark.slow
@pytest.mark.parametrize(
    "select", [{"max_images_per_entity": 1, "balance_at": 1}, {"max_images_per_entity": 1}, {"balance_at": 1}]
)
def test_what_cap_and_balance_drop_is_told_apart(
    world: Path, whole: Path, tmp_path: Path, spark: Any, select: dict[str, int]
) -> None:
    """Catches: `unbalanced` of a label that the cap dropped."""
    shutil.copytree(whole, tmp_path / "out")
    config = settings(world, tmp_path / "out", *(f"select.{name}={value}" for name, value in select.items()))
    made = pipeline(config, lambda: spark)
    made.run()
    labels = spark.read.parquet(f"{config.output}/labels").where("reason IS NULL")
    dropped: dict[str, dict[int, str]] = {}
    for row in image_labels(labels, config.label.max_labels_per_image, config.select).collect():
        dropped.setdefault(row["image_id"].hex(), {})[row["entity_id"]] = row["dropped"]
    seen = Counter[str]()
    for image, by_entity in dropped.items():
        if any(by_entity.values()):
            told = explain(made, image)["image"]
            for label in told["labels"]:
                reason = by_entity[label["entity_id"]]
                assert reason == label["reason"] or (
                    len(by_entity) > 1 and select.keys() > {"balance_at"} and reason in label["reason"].split(" or ")
                ), (by_entity, told["labels"])
                assert reason is None or label["sentence"]
                seen[str(reason)] += 1
    # One draw decides both: what a cap of 1 has kept, a balance of 1 keeps.
    assert seen.keys() - {"None"} == {"over_cap" if "max_images_per_entity" in select else "unbalanced"}


@pytest.mark.parametrize(
    ("rejected", "images", "published", "told"),
    [
        ({"over_cap"}, {1: 5}, False, {1: "over_cap"}),
        ({"unbalanced"}, {1: 5}, False, {1: "unbalanced"}),
        ({"over_cap"}, {1: 5, 2: 5}, False, {1: "over_cap", 2: "over_cap"}),
        ({"unbalanced"}, {1: 5, 2: 0}, False, {1: "unbalanced", 2: "rare_entity"}),
        ({"rare_entity"}, {1: 5, 2: 0}, False, {1: "over_cap", 2: "rare_entity"}),
        ({"unbalanced"}, {1: 5, 2: 5}, False, {1: "over_cap or unbalanced", 2: "over_cap or unbalanced"}),
        (set(), {1: 5}, True, {1: "over_cap"}),
        ({"excluded_domain"}, {1: 5}, False, {1: "excluded_domain"}),
    ],
)
def test_of_an_image_s_reject_follows_what_dropped_its_labels(
    rejected: set[str], images: dict[int, int], published: bool, told: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Explanation, "_selection_rejects", lambda self, chosen: rejected)
    config = stages.from_tree({"select": {"max_images_per_entity": 5, "balance_at": 3}}, "test")
    told_by = _Explanation.__new__(_Explanation)
    told_by.run = SimpleNamespace(config=config)  # type: ignore[assignment]
    statistics = {entity: {"images": count} for entity, count in images.items()}
    assert told_by._why_dropped([] if published else [{"pair_id": b"p"}], statistics, published) == told


@pytest.mark.slow
def test_texts_are_linked_as_spark_links_them(world: Path, copied: Path, tmp_path: Path, spark: Any) -> None:
    """Catches: `i2e link --text` with other links than `i2e link --input`."""
    lines = [
        {"id": 0, "text": "Flag of Turkey &amp; Georgia"},
        {"id": 1, "text": None},
        {"id": 2, "text": "MERCURY over the Sun, 2019"},
        {"id": 3, "text": "turkeys and red apples"},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    config = settings(world, copied)
    link_texts(pipeline(config, lambda: spark), str(tmp_path / "t.jsonl"), str(tmp_path / "l.jsonl"))
    by_spark = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    assert sum(len(line["mentions"]) for line in by_spark) > 3
    here = explain_texts(pipeline(config, lambda: pytest.fail("Spark was started")), lines)
    assert [plain(text) for text in here] == by_spark


class Size(Stage):
    """Leaves wide images out, and gives a feature."""

    name, does, rows_are, narrows = "size", "look at sizes", "pairs", "scores"
    after, reads, features = ("score",), ("scores",), ("height_share",)
    tables = {
        "sizes": Table(
            pa.schema([pa.field("pair_id", pa.binary(16)), pa.field("height_share", pa.float32())]),
            key=("pair_id",),
            holds="how high an image is",
        )
    }
    passes = Passed("sizes", ("pair_id",))
    reasons = {"wide": "The image is wide."}

    def rows_to_do(self, run: Run, units: Sequence[str]) -> dict[str, int]:
        return run.rows_by_unit("scores", list(units), by=("pair_id",))

    def plan(self, run: Run, units: Sequence[str]) -> Plan:
        sizes = run.read("scores", units, ["pair_id", "width", "height"]).distinct()

        def kernel(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, pa.RecordBatch]]:
            for b in batches:
                share = pc.divide(b.column("height").cast(pa.float32()), b.column("width").cast(pa.float32()))
                sized = pa.RecordBatch.from_pydict({"pair_id": b.column("pair_id"), "height_share": share})
                why = ["wide" if s < 0.8 else None for s in share.to_pylist()]
                yield from part("sizes", sized, why, key="pair_id")

        return Plan(sizes, lambda: kernel, self.rows_to_do(run, units))


class Long(Stage):
    """Leaves out mentions of short words, before they are linked."""

    name, does, rows_are, narrows = "long", "drop short mentions", "mentions", "mentions"
    after, reads, key = ("extract",), ("mentions",), ("text_id", "start", "end")
    tables = {"longs": Table(pa.schema([MENTIONS.field(c) for c in key]), key=key, holds="mentions of long words")}
    passes = Passed("longs", key)
    reasons = {"short": "The word is short."}

    def rows_to_do(self, run: Run, units: Sequence[str]) -> dict[str, int]:
        return run.rows_by_unit("mentions", list(units))

    def plan(self, run: Run, units: Sequence[str]) -> Plan:
        def kernel(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, pa.RecordBatch]]:
            for b in batches:
                short = pc.less(pc.subtract(b.column("end"), b.column("start")), 6)
                why = ["short" if is_short else None for is_short in short.to_pylist()]
                yield from part("longs", b, why, key="text_id")

        return Plan(run.read("mentions", units, [*self.key]), lambda: kernel, self.rows_to_do(run, units))


@pytest.mark.slow
def test_stages_from_outside_are_part_of_the_explanation(world: Path, copied: Path, tmp_path: Path, spark: Any) -> None:
    """Catches: a feature of somebody else's stage that is not told, and a row that it left out told as if it were
    labelled."""
    weighed = Calibration((*DEFAULT.features, "height_share"), (*DEFAULT.weights, 0.7), DEFAULT.bias, 0.2)
    weighed.save(tmp_path / "c.json")
    config: Config = settings(world, copied, f"label.calibration={tmp_path}/c.json")
    made = Pipeline(config, arrange(stages.built_in(), [Size(), Long()]), lambda: spark)
    made.run()
    here = Pipeline(config, arrange(stages.built_in(), [Size(), Long()]), lambda: pytest.fail("Spark was started"))
    assert explained_as_stored(here) > 20
    wide = rejected(here, "size", "wide")
    (pair,) = explain(here, wide["id"].hex())["pairs"]
    assert (pair["ended"], pair["labels"]) == ("size: wide", [])
    short = rejected(here, "long", "short")
    told = explain(here, rows(here, "pairs", text_id=pa.scalar(short["id"], pa.binary(16)))[0]["pair_id"].hex())
    assert (short["start"], "short") in {(s["start"], s["reason"]) for s in told["pairs"][0]["steps"]}
    assert short["start"] not in {m["start"] for m in told["pairs"][0]["mentions"]}
    high = explain(here, rows(here, "i2e/images")[0]["image_id"])["pairs"][0]["labels"][0]
    assert high["features"]["height_share"]["contribution"] >= 0.8 * 0.7
