"""The benchmarks run, and measure what they say.

Catches: published entry points that no test ever ran (MetaCLIP, cc2dataset), and baselines that do other work than
what they are compared with.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import extract, fuzz, knowledge_base, linking, rerankers
from i2e_pipeline.rerank.fusing import Fusing
from i2e_pipeline.rerank.reranker import About, begin, save
from tests.rerank.small import encoder
from tests.wikidata.lines import instance_of, line, statement
from wikidata.priors import surfaces

FIVE_RUNS = {"costs", "labels", "languages", "plan", "wider"}
"""Whole runs of several sizes, minutes at their smallest: `make bench` runs them. What they compute with is tested in
tests/commands/test_plan.py and tests/engine/test_eventlog.py."""


def test_every_benchmark_is_run_by_a_test() -> None:
    folder = Path(__file__).parent
    tests = "".join(path.read_text(encoding="utf-8") for path in folder.glob("test_*.py"))
    written = (folder.parent.parent / "benchmarks").glob("*.py")
    scripts = {path.stem for path in written if "__main__" in path.read_text(encoding="utf-8")}
    assert {s for s in scripts if not re.search(rf"\b{s}\.(main\(|py)", tests)} == FIVE_RUNS


@pytest.fixture(scope="session")
def arguments(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One knowledge base for all of them."""
    return ["--data", str(tiny), "--work", str(tmp_path_factory.mktemp("work")), "--repeats", "1"]


def written(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_knowledge_base_without_spark(arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    figures = knowledge_base.main([*arguments, "--no-spark", "--megabytes", "1", "--json", str(out)])
    assert written(out) == figures
    short = figures["parse"]["short"]
    assert set(short["mb_per_cpu_second"]) >= {"json", "parse", "kernel"}
    assert short["times_json"]["json"] == short["times_msgspec"]["msgspec"] == 1
    assert figures["surfaces"]["times_rows"]["rows"] == 1
    assert "stages" not in figures


@pytest.mark.long
@pytest.mark.slow
def test_knowledge_base(spark: Any, arguments: list[str], tmp_path: Path) -> None:
    plain = tmp_path / "dump.json"
    claims = {**instance_of(5), "P18": [statement("a.jpg")], "P1448": [statement({"text": "A", "language": "en"})]}
    plain.write_bytes(b"\n".join(line(n, f"Thing {n}", claims=claims) for n in range(1, 200)))
    figures = knowledge_base.main([*arguments, "--megabytes", "1", "--dump", str(plain)])
    assert figures["parse"]["short"]["lines"] == 199
    assert set(figures["readers"]["cpu_seconds"]) == {"json", "kernel"}
    (read,) = spark.read.schema(knowledge_base.spark_schema()).json(str(plain)).where("id = 'Q7'").collect()
    assert read.claims.P31[0].mainsnak.datavalue.value["numeric-id"] == 5
    assert read.claims.P1448[0].mainsnak.datavalue.value.text == "A"
    stages, prior = figures["stages"], figures["prior"]["tiny-dev"]
    assert stages["entities"] > 500
    assert stages["surfaces"] > 1000
    assert stages["peak_mb"]["all"] >= stages["peak_mb"]["jvm"] > 0
    assert prior["mentions"] == 3
    assert set(prior["top1"]) == {"lowest id", "sitelinks", "prior"}
    assert max(prior["top1"].values()) <= prior["among_20"] <= 1


@pytest.mark.long
@pytest.mark.slow
def test_extract(spark: Any, arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    figures = extract.main([*arguments, "--texts", "4", "--worker-texts", "30", "--json", str(out)])
    assert written(out) == figures
    assert figures["texts"] == 4
    assert min(figures["worker"]["resident_bytes"][when] for when in ("a tenth", "a half", "all")) > 0
    assert set(figures["clean"]["texts_per_cpu_second"]) == {"each", "column"}
    assert set(figures["recognizer"]["texts_per_cpu_second"]) == {"one", "pipe", "batched"}
    assert figures["gazetteer"]["bytes_per_name_stored"]["gazetteer"] > 0
    assert set(figures["mentions"]["times_pipe"]) == {"pipe", "recognizer", "mentions"}
    profile = figures["profile"]
    assert profile["times_full"]["full"] == [1, 1, 1]
    assert 0 < profile["known_mentions"]["fast"] <= profile["known_mentions"]["full"]
    recall = profile["gold_span_recall"]["tiny-dev"]
    assert recall["gazetteer"] <= recall["fast"] <= recall["full"]
    assert set(figures["case"]) == {"texts", "as written", "lower", "upper"}
    spans = figures["spans"]["tiny-dev"]
    assert spans["both"]["span_recall"] >= max(spans[w]["span_recall"] for w in ("recognizer", "gazetteer", "outer"))


@pytest.mark.slow
def test_linking(spark: Any, arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    save(begin("bi", encoder(tmp_path / "bert")), str(tmp_path / "second"), About("bi", Fusing(1.0, 0.0)))
    reranked = ["--reranker", str(tmp_path / "second"), "--margin", "1", "--budget", "1"]
    figures = linking.main([*arguments, "--mentions", "2000", *reranked, "--json", str(out)])
    assert written(out) == figures
    assert set(figures["join"]["cpu_seconds"]) == {"exact", "keys", "distinct"}
    assert figures["pairs"]["pairs_that_name_the_truth"] == 2
    assert figures["pairs"]["both"]["candidate_recall"] == 1
    gold = figures["gold"]["tiny-dev"]
    assert gold["mentions"] == 3
    assert set(gold["difference"]) == {
        "span_recall", "accuracy", "recall@1", "recall@10", "precision", "f1", "ece", "inkb_f1",
    }  # fmt: skip
    again = gold["reranked"]
    told = again[str(tmp_path / "second")]
    assert {k: v for k, v in told.items() if k not in ("tokens", "times_link")} == gold["disambiguated"]
    assert told["tokens"] > 20
    assert told["times_link"] > 0
    assert 0 < again["share"] <= 1


@pytest.mark.slow
def test_rerankers(spark: Any, arguments: list[str], tmp_path: Path) -> None:
    out, made = tmp_path / "figures.json", tmp_path / "made"
    pretrained = ["--pretrained", encoder(tmp_path / "bert"), "--kinds", "bi", "--epochs", "0.3", "--batch", "8"]
    sizes = ["--parts", "2", "--frozen", "0", "--write", str(made), "--json", str(out)]
    figures = rerankers.main([*arguments, *pretrained, *sizes])
    assert written(out) == figures
    assert figures["examples"]["examples"] == 120
    assert figures["examples"]["within"] == 1
    assert figures["trained"]["bi"][-1]["step"] == figures["trained"]["bi"][-1]["of"]
    assert set(figures["linking"]["gold"]["tiny-dev"]["reranked"]) == {"share", str(made / "bi")}
    for part, other in ((0, 1), (1, 0)):  # priors of a part know none of its links
        texts = {json.loads(row)["text"] for row in (made / f"{part}.jsonl").read_text().splitlines()}
        assert texts.isdisjoint(json.loads(r)["text"] for r in (made / f"{other}.jsonl").read_text().splitlines())
        counted = sum(int(row.rsplit("\t", 1)[1]) for row in (made / f"{part}.tsv").read_text().splitlines()[1:])
        assert counted == 120 - len(texts)


def test_the_baseline_of_surfaces_gives_the_same_surfaces(tiny: Path) -> None:
    rows = knowledge_base.name_rows(knowledge_base.read_lines(tiny / "wikidata" / "sample-dump.json.bz2", 1))
    fast = [row for batch in surfaces(rows.to_batches(max_chunksize=500)) for row in batch.to_pylist()]
    plain = list(knowledge_base.surfaces_row_by_row(rows.to_pylist()))
    assert [row["normal_form"] for row in fast] == [form for form, _, _ in plain]
    for row, (_, candidates, link) in zip(fast, plain, strict=True):
        assert [c["entity_id"] for c in row["candidates"]] == [entity for entity, _ in candidates]
        assert [c["prior"] for c in row["candidates"]] == pytest.approx([p for _, p in candidates], abs=1e-3)
        assert row["link_probability"] == pytest.approx(link, abs=1e-6)


@pytest.mark.slow
def test_joins_by_key_agree(spark: Any) -> None:
    mentions = spark.createDataFrame(
        [(1, "cat"), (2, "cats"), (3, "the cat"), (4, "cat"), (5, "dodo")], "mention long, normal_form string"
    )
    candidates = "candidates array<struct<entity_id: long, prior: float, kind: string>>"
    known = spark.createDataFrame([("cat", [(146, 1.0, "label")])], f"normal_form string, {candidates}")

    def found(rows: Any) -> dict[int, list[int]]:
        return {r["mention"]: [c["entity_id"] for c in r["candidates"]] for r in rows.collect() if r["candidates"]}

    assert found(linking.distinct(mentions, known)) == found(linking.keys(mentions, known))
    assert set(found(linking.distinct(mentions, known))) == {1, 2, 3, 4}
    assert set(found(linking.exact(mentions, known))) == {1, 4}


def test_quality_of_links() -> None:
    """The third is found by a wider span, the fourth is not; one span too many is linked."""
    text = knowledge_base.Gold("x" * 60, ((0, 4, 1), (10, 14, 2), (20, 24, 3), (30, 34, 4)))
    links = [
        linking.Mention(0, 4, [(1, 0.9), (7, 0.1)]),
        linking.Mention(10, 14, [(8, 0.6), (2, 0.3)]),
        linking.Mention(20, 26, [(3, 0.5)]),
        linking.Mention(40, 44, [(9, 0.5)]),
    ]
    figures = linking.quality([text], [links])
    assert figures["span_recall"] == 0.5
    assert figures["accuracy"] == 0.5
    assert figures["recall@1"] == 0.5
    assert figures["recall@10"] == 0.75
    assert figures["f1"] == 0.25
    assert figures["ece"] == pytest.approx((0.1 + 0.6) / 2)


def test_drawn_mentions_follow_zipf(tmp_path: Path) -> None:
    about = linking.write_mentions([f"form {i}" for i in range(1000)], 20_000, 1.0, tmp_path / "mentions")
    assert about["mentions"] == 20_000
    assert about["distinct"] <= 1000
    assert about["share_of_the_most_frequent"] == pytest.approx(1 / np.sum(1 / np.arange(1, 1001)), abs=1e-3)


def test_outer_spans_lie_within_no_other() -> None:
    mentions = [(0, 5, "a", "ner"), (1, 5, "b", "gazetteer"), (3, 8, "c", "gazetteer"), (10, 12, "d", "both")]
    assert [m[2] for m in extract._outer(mentions)] == ["a", "c", "d"]


def test_planted_names_stand_where_gold_says() -> None:
    for gold in knowledge_base._held_out(50):
        for start, end, entity in gold.mentions:
            assert 0 <= start < end <= len(gold.text)
            assert entity > 0


def test_a_library_that_is_not_installed_is_said_to_be_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    assert knowledge_base.optional("no_such_library") is None
    assert "skipped the baseline no_such_library" in capsys.readouterr().out


def test_processes_are_counted_without_psutil_too() -> None:
    driver = next(p for p in knowledge_base._from_proc() if p[0] == "driver")
    assert driver[1] > 10_000_000
    assert driver[2] > 0


def test_fuzz_tells_what_it_tried(tmp_path: Path) -> None:
    """In a process of its own, which forks."""
    out = tmp_path / "fuzz.json"
    script = Path(__file__).parent.parent.parent / "benchmarks" / "fuzz.py"
    arguments = ["--inputs", "20", "--minutes", "1", "--only", "marks", "images: PNG", "--json", str(out)]
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    told = written(out)
    assert [(t["name"], t["inputs"]) for t in told["targets"]] == [("marks", 20), ("images: PNG", 20)]
    assert told["all"]["inputs"] == 40
    assert told["failures"] == []
    assert done.stdout.splitlines()[-1].split()[:2] == ["all", "40"]


def test_the_page_on_security_has_the_figures_of_the_last_long_run() -> None:
    """Catches: a table that was written by hand, or of a run that found something."""
    root = Path(__file__).parent.parent.parent
    told = written(root / "benchmarks" / "results" / "fuzz.json")
    page = (root / "docs" / "security.md").read_text(encoding="utf-8")
    rows = page.partition("<!-- fuzz -->")[2].partition("<!-- end -->")[0].strip().splitlines()[2:]
    assert rows == fuzz.table(told)
    assert told["failures"] == []
