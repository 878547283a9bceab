"""What a user calls beside `run`, on a copy of what the whole chain made of the small world."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from i2e_pipeline import cli, stages
from i2e_pipeline.commands import doctor, entity, summary
from i2e_pipeline.commands.calibrate import calibrate
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
from i2e_pipeline.report import quality
from i2e_pipeline.stages import pipeline
from tests.chain import content, run, settings

pytestmark = pytest.mark.slow


def test_export_twice_is_export_once(world: Path, copied: Path, tmp_path: Path) -> None:
    """Catches: files of an earlier export read beside the new ones."""
    config = settings(world, copied)
    images = export(pipeline(config).tables, str(tmp_path / "to"))
    for path in (tmp_path / "to" / "i2e" / "images").rglob("*.parquet"):
        shutil.copy(path, path.with_name("older.parquet"))
    assert export(pipeline(config).tables, str(tmp_path / "to")) == images
    assert content(tmp_path / "to") == content(copied)
    with pytest.raises(ExportError, match="is the output itself"):
        export(pipeline(config).tables, str(copied))
    (tmp_path / "mine" / "i2e").mkdir(parents=True)
    with pytest.raises(ExportError, match="no export wrote it"):
        export(pipeline(config).tables, str(tmp_path / "mine"))


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
