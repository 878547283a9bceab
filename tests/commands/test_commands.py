"""What a user calls beside `run`, on a copy of what the whole chain made of the small world."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from i2e_pipeline import cli, stages
from i2e_pipeline.commands import doctor, entity, summary
from i2e_pipeline.commands.calibrate import _scored_with_truth, calibrate
from i2e_pipeline.commands.export import ExportError, export
from i2e_pipeline.commands.fit_link import fit_link
from i2e_pipeline.commands.link import link_texts
from i2e_pipeline.core.config import dump
from i2e_pipeline.core.rejects import part
from i2e_pipeline.core.schemas import MENTIONS
from i2e_pipeline.engine.arrange import arrange
from i2e_pipeline.engine.catalogue import Passed, Table
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.engine.stage import Plan, Run, Stage, StageError
from i2e_pipeline.engine.tables import Tables
from i2e_pipeline.engine.units import InputError, Units
from i2e_pipeline.label.calibration import Calibration
from i2e_pipeline.label.fit import fit, report
from i2e_pipeline.label.stages import calibration_of
from i2e_pipeline.report import quality
from i2e_pipeline.stages import pipeline
from tests.chain import content, run, settings

pytestmark = pytest.mark.slow


def test_export_twice_is_export_once(copied: Path, tmp_path: Path) -> None:
    """Catches: files of an earlier export read beside the new ones."""
    dataset = f"{copied}/i2e"
    images = export(dataset, str(tmp_path / "to")).images
    for path in (tmp_path / "to" / "i2e" / "images").rglob("*.parquet"):
        shutil.copy(path, path.with_name("older.parquet"))
    assert export(dataset, str(tmp_path / "to")).images == images
    assert content(tmp_path / "to") == content(copied)
    with pytest.raises(ExportError, match="is the output itself"):
        export(dataset, str(copied))
    (tmp_path / "mine" / "i2e").mkdir(parents=True)
    with pytest.raises(ExportError, match="no export wrote it"):
        export(dataset, str(tmp_path / "mine"))


def test_a_bad_setting_of_a_late_stage_is_said_before_the_first(world: Path, tmp_path: Path) -> None:
    config = settings(world, tmp_path / "out", "label.calibration=/nowhere.json")
    with pytest.raises(ValueError, match=r"label\.calibration=/nowhere\.json"):
        pipeline(config, lambda: pytest.fail("Spark was started")).run()


def test_a_forgotten_unit_leaves_the_dataset_and_stays_away(world: Path, copied: Path, spark: Any) -> None:
    config = settings(world, copied)
    unit = Units(config.output).known()[0]
    pipeline(config).forget(unit.name)
    run(config, spark)
    rejects = ds.dataset(copied / "rejects", format="parquet", partitioning="hive").to_table(["stage", "unit"])
    assert unit.name not in set(rejects.column("unit").to_pylist())
    manifest = json.loads((copied / "i2e" / "manifest.json").read_text())
    assert unit.name not in manifest["units"]
    assert manifest["funnel"][0]["rows_in"] == sum(u.rows for u in Units(config.output).known())
    assert len(content(copied)[0]) == manifest["images"]
    assert not any(run(config, spark).values())


def test_a_unit_without_truth_beside_units_with_it(world: Path, copied: Path, tmp_path: Path, spark: Any) -> None:
    """Catches: a second crawl, which says nothing of what it shows, ending a run that measured the first."""
    table = pq.read_table(world / "pairs" / "00000.parquet").slice(0, 5)
    plain = table.drop_columns(["truth_qid", "mentioned_qids", "hand", "colliding"])
    pq.write_table(plain.set_column(0, "key", pa.array(["x"] * 5)), tmp_path / "crawl.parquet")
    config = settings(world, copied, f"pairs.path={tmp_path}/crawl.parquet")
    whole = pipeline(config, lambda: spark)
    done, _ = whole.run()
    quality.measure(done)
    figures = {f["slice"]: f for f in quality.read(whole.tables) if f["stage"] == "published"}
    assert 0 < figures["all"]["precision"] <= 1
    assert {"colliding: yes", "hand: twemoji"} <= figures.keys()
    assert figures["all"]["pairs"] == sum(
        q is not None for q in ds.dataset(world / "pairs").to_table(["truth_qid"]).column(0).to_pylist()
    )


def test_links_are_in_the_offsets_of_the_file(world: Path, copied: Path, tmp_path: Path, spark: Any) -> None:
    texts = [
        {"id": "a", "text": "Flag of Turkey &amp; Georgia"},
        {"id": 7, "text": ""},
        {"id": "b", "text": None},
        {"id": "c", "text": "nothing to see"},
    ]
    source, target = tmp_path / "texts.jsonl", tmp_path / "links.jsonl"
    source.write_text("\n".join(json.dumps(t) for t in texts) + "\n")
    config = settings(world, copied)
    before = content(copied)
    assert link_texts(pipeline(config, lambda: spark), str(source), str(target)) == 4
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a", 7, "b", "c"]
    found = {m["surface"]: m for m in lines[0]["mentions"]}
    assert {"Turkey", "Georgia"} <= found.keys()
    text = str(texts[0]["text"])
    for m in lines[0]["mentions"]:
        assert text[m["start"] : m["end"]] == m["surface"]
        probabilities = [c["probability"] for c in m["candidates"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) <= 1
    assert {43, 848706} & {c["entity_id"] for c in found["Turkey"]["candidates"]}
    assert content(copied) == before
    assert not any(run(config, spark).values())
    source.write_text('{"id": "a", "text": "fine"}\n{"text": 3}\n')
    with pytest.raises(InputError, match=r"texts\.jsonl, line 2: not"):
        link_texts(pipeline(config, lambda: spark), str(source), str(target))


def test_linking_texts_leaves_a_stage_over_all_units_alone(
    world: Path, copied: Path, tmp_path: Path, spark: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: a stage over everything that is run over no unit for `i2e link`, and whose table is then empty."""

    class Common(Stage):
        name, does, rows_are, scope = "common", "drop mentions of rare forms", "mentions", "whole"
        after, reads, narrows = ("extract",), ("mentions",), "mentions"
        key = ("text_id", "start", "end")
        tables = {"commons": Table(pa.schema([MENTIONS.field(c) for c in key]), key=key, holds="frequent ones")}
        passes = Passed("commons", key)
        reasons = {"rare": "Its form stands once."}

        def plan(self, run: Run, units: Sequence[str]) -> Plan:
            rows = run.read("mentions", columns=[*self.key, "normal_form", "unit"])

            def kernel(batches: Any) -> Any:
                for b in batches:
                    why = ["rare" if form.startswith("t") else None for form in b.column("normal_form").to_pylist()]
                    yield from part("commons", b, why, key="text_id", columns=[*Common.key, "unit"])

            in_order = rows.repartition("unit").sortWithinPartitions("unit", *self.key)
            return Plan(in_order, lambda: kernel, run.rows("mentions"))

    config = settings(world, copied)
    whole = Pipeline(config, arrange(stages.built_in(), [Common()]), lambda: spark)
    run, _ = whole.run()
    (made,) = run.committed("common")
    assert made.rejected["rare"] > 0
    source, target = tmp_path / "texts.jsonl", tmp_path / "links.jsonl"
    source.write_text('{"id": 1, "text": "Flag of Turkey and Georgia"}\n')
    assert link_texts(whole, str(source), str(target)) == 1
    assert "common works on all units of the dataset at once, and takes no part here" in caplog.text
    assert {m["surface"] for m in json.loads(target.read_text())["mentions"]} >= {"Turkey", "Georgia"}
    assert whole.tables.commits("common") == {"all": made}
    assert not any(s.to_do for s in whole.run()[1])


def test_calibration_is_fitted_on_some_shards_and_reported_on_the_others(
    world: Path, copied: Path, tmp_path: Path, spark: Any
) -> None:
    config = settings(world, copied)
    figures = calibrate(pipeline(config, lambda: spark), {0, 1}, 0.6, str(tmp_path / "c.json"))
    made = Calibration.load(tmp_path / "c.json")
    assert 0 < made.threshold < 1
    assert figures["held_out_shards"]["labels"] > 0
    with pytest.raises(InputError, match="nothing to calibrate on"):
        calibrate(pipeline(config, lambda: spark), {99}, 0.6, str(tmp_path / "c.json"))


TRUTHS = ("truth_qid", "mentioned_qids", "wider")


@pytest.fixture
def told(world: Path, copied: Path, tmp_path: Path, spark: Any) -> Callable[[Callable[[dict[str, Any]], Any]], Run]:
    """A finished run over the small world whose input says something else of its truth: `say` gets each row, with its
    shard and number, and returns the columns of TRUTHS."""

    def run_told(say: Callable[[dict[str, Any]], dict[str, Any]]) -> Run:
        made, _ = pipeline(settings(world, copied), lambda: spark).run()
        units = []
        for unit in made.units:
            moved = []
            for file in unit.files:
                rows = pq.read_table(file.path)
                said = [say({"shard": file.shard, "row": n, **r}) for n, r in enumerate(rows.to_pylist())]
                others = rows.drop_columns([c for c in TRUTHS if c in rows.column_names])
                types = (pa.string(), pa.list_(pa.string()), pa.list_(pa.string()))
                for name, kind in zip(TRUTHS, types, strict=True):
                    others = others.append_column(name, pa.array([s.get(name) for s in said], kind))
                path = tmp_path / Path(file.path).name
                pq.write_table(others, path)
                moved.append(replace(file, path=str(path)))
            units.append(replace(unit, files=tuple(moved)))
        return replace(made, units=units)

    return run_told


def chosen_labels(copied: Path) -> dict[str, dict[tuple[int, int], set[int]]]:
    """Labels of each row of the input, by shard and row: as chosen, and as published where the row stands for its
    image."""
    rows = ds.dataset(copied / "labels", format="parquet").to_table(["shard", "row", "entity_id", "reason"])
    label: dict[tuple[int, int], set[int]] = {}
    for r in rows.to_pylist():
        label.setdefault((r["shard"], r["row"]), set()).update({r["entity_id"]} if r["reason"] is None else ())
    selection = ds.dataset(copied / "selection", format="parquet").to_table(["shard", "row", "labels"]).to_pylist()
    published = {(r["shard"], r["row"]): {lab["entity_id"] for lab in r["labels"]} for r in selection}
    return {"label": label, "published": published}


def test_labels_are_counted_by_what_is_known_of_their_images(
    copied: Path, told: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    """Against a count of every row by hand: none, with and without wider names, one refuted, an unknown mention list,
    and a value that is no truth."""
    labels = chosen_labels(copied)
    kb = ds.dataset(copied / "kb" / "entities", format="parquet").to_table(["entity_id", "name"]).to_pylist()
    names = {e["entity_id"]: e["name"] for e in kb}
    sayings: dict[tuple[int, int], dict[str, Any]] = {}

    def say(row: dict[str, Any]) -> dict[str, Any]:
        place = row["shard"], row["row"]
        mine = sorted(labels["label"].get(place, ()))
        said: dict[str, Any] = {c: row.get(c) for c in TRUTHS}
        if row["row"] % 5 == 0:
            said = {"truth_qid": "None", "mentioned_qids": []}
        elif row["row"] % 5 == 1 and mine:
            said = {"truth_qid": "none", "mentioned_qids": [], "wider": ["x", names[mine[0]].upper()]}
        elif row["row"] % 5 == 2 and mine:
            said = {"truth_qid": f"not Q1, q{mine[0]}"}
        elif row["row"] % 5 == 3 and mine:
            said = {"truth_qid": "not Q1"}
        elif place == (1, 4):
            said = {"truth_qid": "a cat"}
        sayings[place] = said
        return said

    run_ = told(say)
    quality.measure(run_)
    figures = {f["stage"]: f for f in quality.read(run_.tables) if f["slice"] == "all"}
    for stage in ("label", "published"):
        counts = dict.fromkeys(("right", "wrong", "undecided", "none_labelled", "wrong_on_none"), 0)
        for place, chosen in labels[stage].items():
            truth = (sayings[place]["truth_qid"] or "").lower()
            wider = {n.casefold() for n in sayings[place].get("wider") or ()}
            wrong = 0
            for entity_id in chosen if truth and truth != "a cat" else ():
                if truth == f"q{entity_id}":
                    counts["right"] += 1
                elif truth.startswith("not"):
                    refuted = f"q{entity_id}" in truth.replace(",", " ").split()
                    counts["wrong" if refuted else "undecided"] += 1
                elif names[entity_id].casefold() in wider:
                    counts["undecided"] += 1
                else:
                    wrong += 1
            counts["wrong"] += wrong
            counts["wrong_on_none"] += wrong * (truth == "none")
            counts["none_labelled"] += bool(wrong) and truth == "none"
        assert min(counts.values()) > 0
        assert {key: figures[stage][key] for key in counts} == counts, stage
        assert figures[stage]["precision"] == round(counts["right"] / (counts["right"] + counts["wrong"]), 4)
        assert figures[stage]["precision_of"] == counts["right"] + counts["wrong"]
    # `counts` are now those of what is published.
    rows = quality.read_judged(run_.tables)
    assert rows.schema == quality.JUDGED
    assert Counter(rows["right"].to_pylist()) == {
        True: counts["right"], False: counts["wrong"], None: counts["undecided"],
    }  # fmt: skip
    of_nothing = [r for r in rows.to_pylist() if r["nothing"]]
    assert sum(r["right"] is False for r in of_nothing) == counts["wrong_on_none"]
    assert all(r["truth"] is None for r in of_nothing)
    assert all(r["right"] == (r["truth"] == r["entity_id"]) for r in rows.to_pylist() if r["truth"] is not None)
    shown = {
        (i["image_id"], i["pair_id"], label["entity_id"], label["score"])
        for i in ds.dataset(copied / "i2e" / "images").to_table(["image_id", "pair_id", "labels"]).to_pylist()
        for label in i["labels"]
    }
    assert {tuple(r[c] for c in ("image_id", "pair_id", "entity_id", "probability")) for r in rows.to_pylist()} <= shown
    assert figures["label"]["none"] == sum((s["truth_qid"] or "").lower() == "none" for s in sayings.values())
    assert figures["label"]["pairs"] == sum(s["truth_qid"] not in (None, "a cat") for s in sayings.values())
    bins = figures["label"]["reliability"]
    assert sum(b["right"] for b in bins) >= figures["label"]["right"]
    assert sum(b["labels"] for b in bins) >= figures["label"]["right"] + figures["label"]["wrong"]
    off = sum(abs(b["expected"] - b["right"]) for b in bins) / sum(b["labels"] for b in bins)
    assert figures["label"]["calibration_error"] == pytest.approx(off, abs=1e-3)
    by_type = figures["label"]["reliability_by_type"]
    assert len({r["coarse_type"] for r in by_type}) == len(by_type) > 2
    for key in ("labels", "expected", "right"):
        assert sum(r[key] for r in by_type) == pytest.approx(sum(b[key] for b in bins), abs=1e-3)
    assert "1 values of 'truth_qid' are no truth, such as " in caplog.text
    assert ", row 4: 'a cat': write Q42" in caplog.text


def test_calibration_reads_what_is_known_of_images_and_refuses_what_is_none(
    copied: Path, told: Callable[..., Run]
) -> None:
    labels = chosen_labels(copied)["label"]

    def say(row: dict[str, Any]) -> dict[str, Any]:
        mine = labels.get((row["shard"], row["row"]), set())
        if row["row"] % 4 == 0:
            return {"truth_qid": "none"}
        if row["row"] % 4 == 1:
            return {"truth_qid": f"not Q{min(mine)}" if mine else None}
        return {c: row.get(c) for c in TRUTHS}

    run_ = told(say)
    table = _scored_with_truth(replace(run_, reader=run_.writer("labels")))
    scored = table.filter(table["entity_id"].is_valid())
    # Images that one pair has: an image of several counts once, whatever pairs say of it.
    pairs_of = scored.group_by("image_id").aggregate([("pair_id", "count_distinct")])
    alone = pairs_of.filter(pc.equal(pairs_of["pair_id_count_distinct"], 1))["image_id"]
    scored = scored.filter(pc.is_in(scored["image_id"], alone))
    rows = ds.dataset(copied / "labels", format="parquet").to_table(["shard", "row", "image_id"])
    here = {(r["shard"], r["row"]) for r in rows.filter(pc.is_in(rows["image_id"], alone)).to_pylist()}
    said = report(scored, calibration_of(run_.config), 0, threshold=0.2)
    chosen = {place: len(mine) for place, mine in labels.items() if place in here}
    assert said["wrong_on_none"] == sum(n for (_, row), n in chosen.items() if row % 4 == 0) > 0
    assert said["undecided"] == sum(max(0, n - 1) for (_, row), n in chosen.items() if row % 4 == 1)
    assert said["wrong"] - said["wrong_on_none"] >= sum(n > 0 for (_, row), n in chosen.items() if row % 4 == 1) > 0
    measured = fit(scored, 0.2).measured
    assert measured["wrong_on_none"] > 0
    assert measured["labels"] == measured["right"] + measured["wrong"] + measured["undecided"]
    wrong = told(lambda row: {"truth_qid": "Q1 Q2" if (row["shard"], row["row"]) == (0, 3) else None})
    with pytest.raises(InputError, match=r"1 values of 'truth_qid' .*\.parquet, row 3: 'Q1 Q2': write Q42"):
        _scored_with_truth(replace(wrong, reader=wrong.writer("labels")))


def test_doctor_status_and_errors(
    world: Path, copied: Path, tmp_path: Path, spark: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(dump(settings(world, copied)))

    def call(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main([*arguments])
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out + captured.err

    code, said = call("doctor", "--config", str(config))
    assert code == 0, said
    code, said = call("doctor", "--config", str(config), "--set", "score.model=local-dir:/none", "pairs.path=/none/*")
    assert code == 1
    assert said.count("FAILED") == 2
    before = sorted(p.name for p in (copied / "units").iterdir())
    code, said = call("status", "--config", str(config), "--set", f"pairs.path={world}/pairs/00000.parquet")
    assert code == 0
    assert sorted(p.name for p in (copied / "units").iterdir()) == before
    code, said = call("run", "--config", str(config), "--redo", "scoring")
    assert (code, "no stage 'scoring'; stages are knowledge_base" in said) == (2, True)
    code, said = call("run", "--config", str(config))
    assert code == 0
    assert "What was kept" in said
    assert "Against the known truth" in said


def test_an_entity_and_a_name_are_looked_up_without_spark(world: Path, copied: Path) -> None:
    whole = pipeline(settings(world, copied), lambda: pytest.fail("Spark was started"))
    told = entity.describe(whole, "q43")
    assert told.startswith("Q43 Turkey")
    assert "Turkey (label, " in told
    named = entity.describe(whole, "TURKEY")
    assert {"Q43", "Q848706"} <= {word for line in named.splitlines()[1:] for word in line.split()}
    priors = [float(line.split()[0]) for line in named.splitlines()[1:]]
    assert priors == sorted(priors, reverse=True)
    with pytest.raises(entity.UnknownEntity, match=r"no entity of .* is called 'xyzzy'"):
        entity.describe(whole, "xyzzy")
    with pytest.raises(entity.UnknownEntity, match=r"Q999999999 is not in"):
        entity.describe(whole, "Q999999999")
    with pytest.raises(entity.UnknownEntity, match="holds no knowledge base"):
        entity.describe(pipeline(settings(world, copied / "none")), "Turkey")


def test_weights_of_linking_are_fitted_on_gold_links(world: Path, copied: Path, tmp_path: Path, spark: Any) -> None:
    """Most gold links contradict the priors: the fitted weights follow them, and `link` uses the file."""
    texts = [
        f"{before} of Turkey{after}" for before in ("Flag", "Map", "Coast") for after in ("", " today", ", big", ".")
    ]
    gold = [
        {
            "text": text,
            "mentions": [
                {
                    "start": text.index("Turkey"),
                    "end": text.index("Turkey") + 6,
                    "qid": "Q43" if n % 4 == 3 else "Q848706",
                }
            ],
        }
        for n, text in enumerate(texts)
    ]
    gold.append({"text": "Turkey and gold", "mentions": [{"start": 0, "end": 6, "qid": None}]})
    path = tmp_path / "gold.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in gold))
    config = settings(world, copied)
    before = content(copied)
    figures = fit_link(pipeline(config, lambda: spark), str(path), None, str(tmp_path / "weights.json"))
    assert figures["measured_on"]["mentions"] == len(gold)
    assert figures["right_fitted"] > 0.6 > figures["right_before"]
    assert content(copied) == before
    changed = settings(world, copied, f"link.weights={tmp_path}/weights.json")
    _, states = pipeline(changed).status()
    assert "link" in {s.stage.name for s in states if s.to_do}
    assert "label" in {s.stage.name for s in states if s.to_do}
    path.write_text('{"text": "x", "mentions": [{"start": 0}]}\n')
    with pytest.raises(InputError, match=r"gold\.jsonl, line 1: not"):
        fit_link(pipeline(config, lambda: spark), str(path), None, str(tmp_path / "w.json"))


def test_the_python_api_does_what_the_command_does(world: Path, copied: Path, tmp_path: Path, spark: Any) -> None:
    import i2e_pipeline

    config = tmp_path / "c.yaml"
    config.write_text(dump(settings(world, copied)))
    done = i2e_pipeline.run(str(config), until="label", spark=spark)
    assert [s.stage.name for s in done.states][-1] == "label"
    assert not any(s.to_do for s in done.states)
    done = i2e_pipeline.run(str(config), set=["label.threshold=0.6"], spark=spark)
    assert {s.stage.name for s in done.states if s.to_do} == {"label", "select", "publish", "finish"}
    assert Path(done.report).is_file()
    assert {f["stage"] for f in done.quality} >= {"link", "label", "published"}
    with pytest.raises(StageError, match="no stage 'labels'; stages are knowledge_base"):
        i2e_pipeline.run(str(config), until="labels", spark=spark)


def test_a_path_in_brackets_is_printed_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: what is printed is taken for markup, and `[a]` is gone."""
    output = tmp_path / "out [a] [b]"
    (output / "kb").mkdir(parents=True)
    summary.print_places(Tables(str(output)), [])
    assert f"knowledge base  {output}/kb" in capsys.readouterr().out.replace("\n", "")


def test_doctor_says_that_a_dump_is_none(tmp_path: Path) -> None:
    (tmp_path / "dump.json.bz2").write_bytes(b"<html>404")
    config = stages.from_tree({"knowledge_base": {"dump": str(tmp_path / "dump.json.bz2")}}, "test")
    with pytest.raises(doctor.Failed, match=r"knowledge_base\.dump: .* is an HTML page: download the file again"):
        doctor._dump(config)
