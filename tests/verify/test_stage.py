"""The stage in the chain: what is asked, what of it is kept, what labels become of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks.planted import Asked, Planted, Reply, completion, serving
from i2e_pipeline import stages
from i2e_pipeline.commands import summary
from i2e_pipeline.commands.clean import clean
from i2e_pipeline.commands.explain import explain
from i2e_pipeline.commands.verify import verify
from i2e_pipeline.core.config import Config, dump
from i2e_pipeline.engine.pipeline import UnitsFailed
from i2e_pipeline.report.page import write_page
from i2e_pipeline.stages import pipeline
from tests.chain import commits, run

ROOT = Path(__file__).parents[2]
KEY = "sk-of-this-test-91ab44"
Configured = Callable[..., Config]
ALL = ("verify.low=0", "verify.high=1", "verify.budget=1")


def table(output: str, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (
        ds.dataset(f"{output}/{name}", format="parquet", partitioning="hive").to_table().to_pylist()
    )
    return found


def verdicts(config: Config) -> dict[tuple[bytes, int], dict[str, Any]]:
    rows = table(config.output, "verdicts")
    found = {(row["pair_id"], row["entity_id"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def answers_of(config: Config) -> set[tuple[str, bytes]]:
    """The questions whose answers are kept, by unit: each once."""
    found = []
    for path in sorted((Path(config.output) / "_kept" / "verify").rglob("*.parquet")):
        found += [(path.parent.name, key) for key in pq.read_table(path, columns=["key"])["key"].to_pylist()]
    assert len(found) == len(set(found))
    return set(found)


def discard(config: Config, spark: Any) -> None:
    """Take away what the stage has made of all units."""
    made = pipeline(config, lambda: spark)
    with made.exclusive():
        made.tables.discard("verify", list(made.tables.commits("verify")))


def test_off_nothing_knows_of_it() -> None:
    """Catches: a setting of the section that costs everybody their labels again."""
    plain = stages.from_tree({}, "test")
    other = stages.from_tree({"verify": {"low": 0.3, "budget": 0.5, "reliability": 0.9, "reason": True}}, "test")
    assert [s.name for s in stages.stages(other)] == [s.name for s in stages.built_in()]
    label = next(s for s in stages.built_in() if s.name == "label")
    assert label.settings(plain) == label.settings(other)
    on = stages.from_tree({"verify": {"server": "http://x", "served_model": "m"}}, "test")
    names = [s.name for s in stages.stages(on)]
    assert names[names.index("verify") - 1 : names.index("verify") + 2] == ["score", "verify", "label"]
    assert label.settings(on)["features"] == [*label.settings(plain)["features"], "verdict"]
    assert {k for k, v in label.settings(on).items() if v != label.settings(plain).get(k)} == {
        "features", "weights", "without_vocabulary",
    }  # fmt: skip


def test_every_setting_is_in_its_fingerprint_or_left_out_with_a_reason(tmp_path: Path) -> None:
    (stage,) = (s for s in stages.every() if s.name == "verify")

    def made(**settings: object) -> dict[str, Any]:
        return stage.settings(
            stages.from_tree({"verify": {"server": "http://x", "served_model": "m", **settings}}, "t")
        )

    (tmp_path / "p.txt").write_text("{text} {candidates}")
    before = made()
    for changed in ({"low": 0.3}, {"high": 0.9}, {"budget": 0.1}, {"candidates": 2}, {"reason": True}, {"max_side": 99},
                    {"max_tokens": 9}, {"served_model": "n"}, {"prompt": str(tmp_path / "p.txt")}):  # fmt: skip
        assert made(**changed) != before, changed
    for same in ({"server": "http://y"}, {"requests": 3}, {"retries": 0}, {"reliability": 0.9}, {"api_key_env": "A"}):
        assert made(**same) == before, same
    weighs = stages.from_tree({"verify": {"server": "http://x", "served_model": "m"}, "label": {"threshold": 0.3}}, "t")
    assert stage.settings(weighs) == before, "the threshold of labels costs no question"


@pytest.mark.slow
def test_verdicts_labels_and_all_that_tells_of_them(
    configured: Configured, planted: Callable[[float], Planted], spark: Any, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The whole chain; then other settings, of which those that ask the same again ask nobody."""
    caplog.set_level("INFO")
    knowing = planted(0.0)
    listed = Path(configured().output).parent / "list.txt"
    gone = write_list(configured(), listed)
    exclude = ("verify.reason=true", f"select.exclude={listed}")
    with serving(knowing) as told:
        config = configured(*told.settings, *ALL, *exclude)
        run(config, spark)
        found = verdicts(config)
        asked = len(told.asked)
        states = Counter(row["state"] for row in found.values())
        assert {"chosen", "other", "none"} <= states.keys() <= {"chosen", "other", "none", "no_image"}
        assert len(answers_of(config)) == asked, "an equal question of a unit was asked twice"

        # Each pair that was scored was asked about, and all of its candidates have a verdict.
        scores = {(row["pair_id"], row["entity_id"]) for row in table(config.output, "scores")}
        assert found.keys() == scores
        by_pair: dict[bytes, list[dict[str, Any]]] = {}
        for row in found.values():
            by_pair.setdefault(row["pair_id"], []).append(row)
        for rows in by_pair.values():
            values = Counter(row["verdict"] for row in rows)
            assert values[1.0] + values[-1.0] == len(rows)
            assert values[1.0] <= 1
            assert {row["explanation"] for row in rows} == {"as planted"}

        # Labels: every chosen candidate gained by it what Bayes says, and the truth is what is chosen.
        labels = {(row["pair_id"], row["entity_id"]): row for row in table(config.output, "labels")}
        for key, row in found.items():
            odds = [p / (1 - p) for p in (row["probability"], labels[key]["probability"])]
            if 1e-4 < row["probability"] < 0.9999 and 1e-4 < labels[key]["probability"] < 0.9999:
                assert odds[1] / odds[0] == pytest.approx((0.85 / 0.15) ** row["verdict"], rel=0.02)

        # Told: before anybody was asked, in the table, in the manifest, and by explain.
        assert f"of {len(by_pair):,} pairs {len(by_pair):,} are in the band, {len(by_pair):,} of them are asked" in (
            caplog.text
        )
        _, states_ = pipeline(config, lambda: spark).run()
        summary.print_funnel(states_)
        printed = capsys.readouterr().out
        assert "verify (candidates)" in printed
        assert "questions asked" in printed
        manifest = json.loads((Path(config.output) / "i2e" / "manifest.json").read_text())
        counts = manifest["told"]["verify"]["counts"]
        assert counts["pairs asked about"] == len(by_pair)
        assert counts["questions asked"] == asked
        assert counts["questions asked"] + counts["questions answered before"] == len(by_pair)
        assert manifest["told"]["verify"]["settings"]["reason"] is True
        assert "verify" not in {step["stage"] for step in manifest["funnel"]}
        jsonschema.validate(manifest, json.loads((ROOT / "docs" / "manifest.schema.json").read_text()))
        write_page(pipeline(config))
        assert "<th>pairs asked about</th>" in (Path(config.output) / "report.html").read_text()
        pair = next(row["pair_id"] for row in found.values() if row["state"] == "chosen")
        (explained,) = explain(pipeline(config), pair.hex())["pairs"]
        assert {row["told"]["verify"]["explanation"] for row in explained["labels"]} == {"as planted"}
        assert any(row["features"]["verdict"]["value"] == 1 for row in explained["labels"])
        summary.print_explanation(explain(pipeline(config), pair.hex()))
        assert "verify: chosen, as planted" in capsys.readouterr().out

        # Purged: verdicts and kept answers of the pair go, with what was said of its image, and nobody else's.
        kept_before = kept_rows(config)
        assert gone in {row["pair_id"] for row in kept_before}
        clean(pipeline(config), purged=True)
        assert kept_rows(config) == [row for row in kept_before if row["pair_id"] != gone]
        assert verdicts(config).keys() == {key for key in found if key[0] != gone}
        assert not any(run(config, spark).values())
        assert len(told.asked) == asked

        # Made again in another order, in other tasks, with nobody there: from what is kept, and the same.
        before = {key: tuple(row.values()) for key, row in verdicts(config).items()}
    again = configured(f"verify.server={told.url}", "verify.served_model=planted", *ALL, "verify.reason=true",
                       "run.wave_units=1", "run.waves_in_flight=1", "verify.rows_per_task=7")  # fmt: skip
    discard(again, spark)
    run(again, spark, "verify")
    assert {key: tuple(row.values()) for key, row in verdicts(again).items()} == before
    with serving(knowing) as other:
        # Less is asked, and the answers are there.
        less = configured(
            *other.settings, "verify.reason=true", "verify.low=0.1", "verify.high=0.9", "verify.budget=0.2"
        )
        assert run(less, spark, "verify") == {**dict.fromkeys(pipeline(less).upto("verify"), 0), "verify": 3}
        assert not other.asked
        # Another question, another prompt: everything is asked anew.
        run(configured(*other.settings, *ALL), spark, "verify")
        assert len(other.asked) >= asked - 3


def test_a_budget_takes_the_least_sure_of_each_unit(
    configured: Configured, planted: Callable[[float], Planted], spark: Any
) -> None:
    with serving(planted(0.0)) as told:
        whole = configured(*told.settings, "verify.low=0.05", "verify.high=0.99", "verify.budget=1")
        run(whole, spark, "verify")
        best: dict[str, dict[bytes, float]] = {}
        for row in table(whole.output, "verdicts"):
            of_unit = best.setdefault(row["unit"], {})
            of_unit[row["pair_id"]] = max(row["probability"], of_unit.get(row["pair_id"], 0))
        asked = len(told.asked)
        some = configured(*told.settings, "verify.low=0.05", "verify.high=0.99", "verify.budget=0.1")
        run(some, spark, "verify")
        assert len(told.asked) == asked
    pairs = Counter(unit for unit, _ in {(row["unit"], row["pair_id"]) for row in table(some.output, "scores")})
    over = 0
    for unit, of_unit in best.items():
        assert all(0.05 <= p <= 0.99 for p in of_unit.values())
        order = sorted(of_unit, key=lambda pair: (abs(of_unit[pair] - 0.5), pair))
        wanted = set(order[: int(0.1 * pairs[unit])])
        got = {
            r["pair_id"] for r in table(some.output, "verdicts") if r["unit"] == unit and r["state"] != "over_budget"
        }
        distances = [sorted(abs(of_unit[p] - 0.5) for p in some_) for some_ in (got, wanted)]
        assert distances[0] == pytest.approx(distances[1], abs=1e-6)
        assert len(got) == min(len(of_unit), int(0.1 * pairs[unit]))
        over += len(of_unit) - len(got)
        facts = commits(Path(some.output), "verify")[f"verify/{unit}"].facts["questions"]
        assert facts == {"pairs": pairs[unit], "in_band": len(of_unit), "asked": len(got)}
    assert over > 0


def test_what_cannot_be_read_is_no_verdict_and_counted(configured: Configured, spark: Any) -> None:
    with serving(lambda asked: completion("a bird, I think" if asked.call % 2 else '{"answer": 0}')) as told:
        config = configured(*told.settings, *ALL)
        run(config, spark, "verify")
    rows = verdicts(config).values()
    unreadable = [row for row in rows if row["state"] == "unreadable"]
    assert unreadable
    assert {row["verdict"] for row in unreadable} == {None}
    notes: Counter[str] = Counter()
    for commit in commits(Path(config.output), "verify").values():
        notes.update(commit.facts["notes"])
    assert notes["answers that cannot be read"] == len({row["pair_id"] for row in unreadable})
    assert notes["images of which none was chosen"] == len({row["pair_id"] for row in rows if row["state"] == "none"})


def test_a_server_that_is_gone_fails_the_units_and_what_it_said_is_kept(configured: Configured, spark: Any) -> None:
    """And one that fails now and then does not."""
    with serving(lambda asked: Reply(500) if asked.call >= 40 else completion("0")) as told:
        config = configured(*told.settings, *ALL, "verify.retries=0", "verify.requests=2", "run.waves_in_flight=1")
        with pytest.raises(UnitsFailed, match=r"verify.server=http.* questions have no answer.*HTTP 500.*is kept"):
            run(config, spark, "verify")
        said = answers_of(config)
        assert len(said) == sum(told.answered.values()) > 20
    with serving(lambda asked: Reply(500) if asked.call % 25 == 3 else completion("0")) as other:
        config = configured(*other.settings, *ALL, "verify.retries=0", "verify.requests=2")
        run(config, spark, "verify")
        assert len(answers_of(config)) == len(said) + sum(other.answered.values())
        assert len(other.asked) == sum(other.answered.values()) + len(other.asked[3::25])
    failed = [row for row in verdicts(config).values() if row["state"] == "failed"]
    assert failed
    assert {row["verdict"] for row in failed} == {None}


@pytest.mark.slow
def test_a_kill_costs_no_answer(
    configured: Configured, planted: Callable[[float], Planted], spark: Any, tmp_path: Path
) -> None:
    """kill -9 in the midst of asking; then the server counts. Nor does it leave the server's key anywhere."""
    knowing = planted(0.0)

    def answer(asked: Asked) -> Reply:
        time.sleep(0.05 if asked.call < 60 else 0.4)
        return knowing(asked)

    with serving(answer) as told:
        config = configured(*told.settings, *ALL, "verify.requests=2", "session.master=local[2]", "run.wave_units=1",
                            "verify.api_key_env=VLM_OF_TEST")  # fmt: skip
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(yaml.safe_load(dump(config))))
        driver = subprocess.Popen(
            [sys.executable, "-m", "i2e_pipeline.cli", "run", "--config", f"{tmp_path}/c.yaml", "--until", "verify"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable,
                 "VLM_OF_TEST": KEY},
        )  # fmt: skip
        deadline = time.monotonic() + 240
        while len(told.asked) < 64:
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        time.sleep(1)
        kept, before = answers_of(config), len(told.asked)
        assert {asked.headers["Authorization"] for asked in told.asked} == {f"Bearer {KEY}"}
    left = [path for path in Path(config.output).rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert not left
    # Two tasks with two requests each: of what was under way at the kill nobody had the answer.
    assert before - 4 <= len(kept) <= before
    with serving(knowing) as other:
        config = configured(*other.settings, *ALL)
        run(config, spark, "verify")
        whole = answers_of(config)
        assert len(other.asked) == len(whole) - len(kept), "an answer that was had was asked for again"
        assert kept < whole
        assert not verify(pipeline(config), deep=True).faults


def test_kept_answers_go_with_their_units_and_damaged_ones_are_asked_again(
    configured: Configured, spark: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(lambda asked: completion("0")) as told:
        config = configured(*told.settings, *ALL)
        run(config, spark, "verify")
        first = len(told.asked)
        kept = sorted((Path(config.output) / "_kept" / "verify").rglob("*.parquet"))
        units = {path.parent.name for path in kept}
        assert len(units) == 3
        kept[0].write_bytes(kept[0].read_bytes()[:-3] + b"abc")
        discard(config, spark)
        run(config, spark, "verify")
        second = len(told.asked) - first
        assert 0 < second < first
        assert "files of kept answers that were damaged: 1 values" in caplog.text
        run(config, spark, "verify", redo=("verify",))
        assert len(told.asked) == 2 * first + second, "--redo asks again"
        assert not [f for f in clean(pipeline(config), dry_run=True) if f.kind == "kept"]
        gone = sorted(units)[0]
        pipeline(config).forget(gone)
        assert {p.name for p in (Path(config.output) / "_kept" / "verify").iterdir()} == units - {gone}
        off = configured()
        assert {f.kind for f in clean(pipeline(off), removed_stages=True)} >= {"kept", "removed"}
        assert not list((Path(config.output) / "_kept").rglob("*.parquet"))


def write_list(config: Config, path: Path) -> bytes:
    """List the address of a scored pair that no other pair has; returns the pair."""
    urls = {row["pair_id"]: row["url"] for row in table(config.output, "pairs")}
    of_url = Counter(urls.values())
    gone: bytes = min(row["pair_id"] for row in table(config.output, "scores") if of_url[urls[row["pair_id"]]] == 1)
    path.write_text(f"{urls[gone]}\n")
    return gone


def kept_rows(config: Config) -> list[dict[str, Any]]:
    paths = sorted((Path(config.output) / "_kept").rglob("*.parquet"))
    return sorted((r for path in paths for r in pq.read_table(path).to_pylist()), key=lambda r: r["key"])
