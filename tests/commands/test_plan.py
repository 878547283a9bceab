"""`i2e plan`: what it adds up, what it takes from runs, what it refuses."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from i2e_pipeline.commands import plan, summary
from i2e_pipeline.commands.plan import PlanError, StageCost, TableCost
from i2e_pipeline.core.files import write_json
from i2e_pipeline.engine.tables import Commit, WrittenFile
from i2e_pipeline.stages import built_in

WALK = "--pairs 8.4e9 --image-kb 30 --model ViT-L-14 --gpus 256 --cores 4096 --price core=0.04,gpu=2.0,tb-month=20"


def options(line: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    plan.add_arguments(parser)
    return parser.parse_args(line.split())


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """A finished run's records, made up: `fixed` seconds a stage and `each` a pair, half of the pairs' rows kept."""

    def make(pairs: int, fixed: float = 10.0, each: float = 0.01, name: str = "") -> str:
        output = str(tmp_path / (name or f"run-{pairs}"))
        shard = {"shard": 0, "path": "a", "size": 1, "modified": 0, "digest": "0" * 32, "rows": pairs}
        write_json(f"{output}/units/u-1.json", {"name": "u-1", "files": [shard]})
        costs = plan.load()
        for stage, cost in costs.stages.items():
            rows = pairs if cost.per == "pair" else 700
            seconds = fixed + each * pairs if cost.per == "pair" else 5.0
            files = {f"{stage}_rows": [WrittenFile("unit=u-1/part-0.parquet", rows // 2, 100 * (rows // 2))]}
            commit = Commit(stage, "u-1", "f", {}, files, rows, rows // 2, {"why": rows - rows // 2}, seconds)
            write_json(f"{output}/_commits/{stage}/u-1.json", asdict(commit))
        return output

    return make


def test_the_costs_that_ship_know_every_stage_and_say_where_each_figure_is_from() -> None:
    """Catches: a new stage that costs nothing in a plan, a figure without a source."""
    costs = plan.load()
    assert set(costs.stages) == {stage.name for stage in built_in()}
    costed: list[StageCost | TableCost] = [*costs.stages.values(), *costs.tables.values()]
    for cost in costed:
        assert {cost.source, cost.rows_source} <= costs.sources.keys()
    for source in costs.sources.values():
        assert source["kind"] in ("measured", "published", "assumed", "counted")
        assert source["what"]
    assert all("command" in s and "date" in s for s in costs.sources.values() if s["kind"] == "measured")


def test_the_walk_of_the_paper_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan.plan(options(WALK))
    summary.print_plan(found)
    shown = capsys.readouterr().out
    for name in plan.load().stages:
        assert name in shown
    for word in ("GPU-hours", "storage", "driver", "requests", "money", "measured", "assumed"):
        assert word in shown
    assert found.input_tb == pytest.approx(252)
    assert found.units == 8400


def test_twice_the_pairs_cost_twice_and_twice_the_cores_take_half() -> None:
    costs = plan.load()
    base = plan.request(options(WALK), costs)
    once, twice = plan.estimate(costs, base), plan.estimate(costs, replace(base, pairs=2 * base.pairs))
    by = {s.stage: s for s in once.stages}
    for stage in twice.stages:
        if costs.stages[stage.stage].per == "pair":
            assert stage.core_hours == pytest.approx(2 * by[stage.stage].core_hours)
    assert twice.requests["GET"] == pytest.approx(2 * once.requests["GET"], rel=0.01)
    extract = {s.stage: s for s in plan.estimate(costs, replace(base, cores=2 * base.cores)).stages}["extract"]
    assert extract.hours < by["extract"].hours


def test_few_cores_starve_the_gpus() -> None:
    """Catches: GPU time from the model's speed alone, where decoding is what bounds it."""
    costs = plan.load()
    fed = plan.estimate(costs, plan.request(options(WALK), costs))
    starved = plan.estimate(costs, plan.request(options(WALK.replace("4096", "512")), costs))
    assert fed.images_per_second_per_gpu is not None
    assert starved.images_per_second_per_gpu is not None
    assert starved.images_per_second_per_gpu < fed.images_per_second_per_gpu / 4
    large = plan.estimate(costs, plan.request(options(WALK.replace("image-kb 30", "image-kb 100")), costs))
    assert large.cores_that_feed_a_gpu > fed.cores_that_feed_a_gpu  # type: ignore[operator]


def test_money_counts_what_has_a_price() -> None:
    found = plan.plan(options(WALK))
    assert set(found.money) == {"core", "gpu", "tb-month"}
    assert found.money["core"] == pytest.approx(0.04 * 4096 * found.hours)
    scoring = next(s.hours for s in found.stages if s.gpu_hours)
    assert found.money["gpu"] == pytest.approx(2.0 * 256 * scoring)
    assert not plan.plan(options(WALK.partition(" --price")[0])).money


def test_two_runs_tell_fixed_cost_from_cost_of_a_row(run: Any) -> None:
    line = f"--pairs 16000 --cores 2 --from-cores 2 --entities 700 --from {run(1000)} --from {run(4000)}"
    found = {s.stage: s for s in plan.plan(options(line)).stages}
    assert 3600 * found["extract"].hours == pytest.approx(10 + 0.01 * 16000, rel=0.01)
    assert 3600 * found["knowledge_base"].hours == pytest.approx(5)
    dump = plan.plan(options(line.replace("--entities 700", "--entities 110e6")))
    assert {s.stage: s for s in dump.stages}["knowledge_base"].hours > 1


def test_no_stage_is_free(run: Any) -> None:
    """Catches: two pilots between which a stage became faster by chance, and costs nothing at any size."""
    line = (
        f"--pairs 1e9 --cores 64 --from-cores 2 --from {run(1000, each=0.02)} --from {run(4000, fixed=1, each=0.001)}"
    )
    for stage in plan.plan(options(line)).stages:
        assert stage.core_hours > 0, stage


def test_files_on_an_object_store_cost_the_driver_a_copy_each() -> None:
    store, disk = (plan.plan(options(f"{WALK} --store {where}")) for where in ("object", "disk"))
    assert store.driver_hours > disk.driver_hours + 1
    small = plan.plan(options(f"{WALK} --rows-per-unit 1e5"))
    assert small.requests["PUT"] > store.requests["PUT"]


def test_one_run_is_taken_to_have_no_fixed_cost(run: Any) -> None:
    found = {s.stage: s for s in plan.plan(options(f"--pairs 4000 --cores 2 --from-cores 2 --from {run(1000)}")).stages}
    assert 3600 * found["extract"].hours == pytest.approx(4 * 20, rel=0.01)


def test_a_run_on_eight_cores_takes_a_quarter_on_thirty_two(run: Any) -> None:
    line = f"--pairs 1000 --from-cores 8 --from {run(1000, fixed=0)} --cores "
    line = line.replace("--cores", "--store disk --cores")
    few, many = (next(s for s in plan.plan(options(line + n)).stages if s.stage == "link") for n in ("8", "32"))
    assert many.hours == pytest.approx(few.hours / 4, rel=0.01)
    assert many.core_hours == pytest.approx(few.core_hours)


def test_tables_of_a_run_are_foretold_by_their_own_rows_and_bytes(run: Any) -> None:
    found = plan.plan(options(f"--pairs 16000 --from {run(1000)} --from {run(4000)}"))
    assert found.storage_tb["link_rows"] == pytest.approx(16000 / 2 * 100 / 1e12)


def test_json_holds_what_is_printed() -> None:
    found = plan.plan(options(WALK))
    written = json.loads(json.dumps(found.as_json()))
    assert written["hours"] == pytest.approx(found.hours)
    assert len(written["stages"]) == len(found.stages)
    assert written["request"]["pairs"] == 8_400_000_000


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--pairs many --gpus 1", "--pairs many: a number of at least 1"),
        ("--pairs nan --gpus 1", "--pairs nan: a number"),
        ("--pairs 1e9 --gpus 1 --cores 0", "--cores 0: a number of at least 1"),
        ("--pairs 1e9 --gpus -1", "--gpus -1: a number of at least 0"),
        ("--pairs 1e9 --gpus 1 --image-kb 0", "--image-kb 0: a number of at least 0.1"),
        ("--pairs 1e9 --gpus 1 --model ViT-Z", "--model ViT-Z: its speed on a H200 was not measured; known are "),
        ("--pairs 1e9 --gpus 1 --card H1", "--card H1: no such card was measured; known are H200"),
        ("--pairs 1e9 --gpus 1 --price cores=1", "--price cores=1: write NAME=NUMBER with one of core="),
        ("--pairs 1e9 --gpus 1 --price core=x", "--price core x: a number of at least 0"),
        ("--pairs 1e9", "--gpus 0: how fast cores run your model, only a run of yours says"),
        ("--pairs 1e9 --from /nowhere", "--from /nowhere: no run has read pairs into it"),
    ],
)
def test_an_argument_that_means_nothing_is_named(line: str, says: str) -> None:
    with pytest.raises(PlanError) as raised:
        plan.plan(options(line))
    assert str(raised.value).startswith(says)


def test_a_run_that_lacks_units_is_refused(run: Any) -> None:
    """Catches: rows of a part of the pairs, taken for those of all."""
    output = run(1000)
    record = json.loads((Path(output) / "units" / "u-1.json").read_text())
    write_json(f"{output}/units/u-2.json", record | {"name": "u-2"})
    with pytest.raises(PlanError, match=r"1 of 2 units of the stage \w+ are not made"):
        plan.plan(options(f"--pairs 1e9 --gpus 1 --from {output}"))


def test_a_run_that_is_not_finished_is_refused(run: Any) -> None:
    output = run(1000)
    (Path(output) / "_commits" / "publish" / "u-1.json").unlink()
    with pytest.raises(PlanError, match="the stage publish has not been run there"):
        plan.plan(options(f"--pairs 1e9 --from {output}"))


def ran_besides(output: str, stage: str, pairs: int, seconds: float, units: tuple[str, ...] = ("u-1",)) -> str:
    for unit in units:
        files = {f"{stage}_rows": [WrittenFile(f"unit={unit}/part-0.parquet", pairs, 10 * pairs)]}
        commit = Commit(stage, unit, "f", {}, files, pairs, pairs, {}, seconds)
        write_json(f"{output}/_commits/{stage}/{unit}.json", asdict(commit))
    return output


def test_a_stage_that_only_some_configs_have_is_counted_as_a_run_had_it(run: Any) -> None:
    """Catches: a reranker, a verifier or a stage from outside that takes a day of a pilot and nothing of a plan."""
    small = ran_besides(run(1000), "rerank", 1000, 30)
    large = ran_besides(run(4000), "rerank", 4000, 90)
    line = f"--pairs 16000 --cores 2 --from-cores 2 --store disk --from {small} --from {large}"
    found = plan.plan(options(line))
    rerank = next(s for s in found.stages if s.stage == "rerank")
    assert rerank.rows == pytest.approx(16000)
    assert 3600 * rerank.hours == pytest.approx(10 + 0.02 * 16000, rel=0.01)
    assert found.storage_tb["rerank_rows"] == pytest.approx(16000 * 10 / 1e12)


def test_runs_of_two_configs_are_refused(run: Any) -> None:
    line = f"--pairs 1e9 --from {ran_besides(run(1000), 'rerank', 1000, 30)} --from {run(4000)}"
    with pytest.raises(PlanError, match="the stage rerank has been run in some of the outputs"):
        plan.plan(options(line))


def test_a_stage_that_was_left_half_way_is_named_and_not_counted(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Catches: a stage that the config once named, whose units are some of the pairs, taken for all of them."""
    output = run(1000)
    record = json.loads((Path(output) / "units" / "u-1.json").read_text())
    write_json(f"{output}/units/u-2.json", record | {"name": "u-2"})
    for stage in plan.load().stages:
        known = json.loads((Path(output) / "_commits" / stage / "u-1.json").read_text())
        write_json(f"{output}/_commits/{stage}/u-2.json", known | {"unit": "u-2"})
    ran_besides(output, "verify", 1000, 30)
    with caplog.at_level("WARNING"):
        found = plan.plan(options(f"--pairs 1e9 --from {output}"))
    assert "verify" not in {s.stage for s in found.stages}
    assert "the stage verify is in 1 of 2 units" in caplog.text
