"""What the engine promises, on stages of a few lines: resume, kill at any point, growth, change, no row lost."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from i2e_pipeline.core import files
from i2e_pipeline.core import lock as locks
from i2e_pipeline.core.lock import LostLock
from i2e_pipeline.engine.arrange import arrange
from i2e_pipeline.engine.catalogue import Passed, Table
from i2e_pipeline.engine.pipeline import Pipeline, UnitsFailed, exclusive
from i2e_pipeline.engine.records import Commit, Records
from i2e_pipeline.engine.stage import Plan, RowsLost, Run, Stage, StageError
from i2e_pipeline.engine.units import InputError, Units
from tests.engine.toys import NUMBERS, Read, Small, Total, config, content, toys, worked, write_shard

BOTH = pytest.mark.parametrize("storage", ["parquet", pytest.param("delta", marks=pytest.mark.delta)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of numbers."""
    write_shard(tmp_path / "in" / "a.parquet", *range(20))
    write_shard(tmp_path / "in" / "b.parquet", *range(100, 130))
    return tmp_path


@BOTH
def test_rows_are_conserved_and_done_work_is_not_done_again(folder: Path, spark: Any, storage: str) -> None:
    pipeline = toys(config(folder, storage=storage), spark)
    run, states = pipeline.run()
    assert worked(states) == {"read": 2, "total": 1}
    assert sorted((c.rows_in, c.rows_out, c.rejected["odd"]) for c in run.committed("read")) == [
        (20, 10, 10),
        (30, 15, 15),
    ]
    rows = content(pipeline)
    assert [dict(r)["total"] for r in rows["totals"]] == [sum(range(0, 130, 4)) - sum(range(20, 100, 4))] + [
        sum(n for n in (*range(20), *range(100, 130)) if n % 4 == 2)
    ]
    assert {(dict(r)["stage"], dict(r)["reason"], dict(r)["detail"]) for r in rows["rejects"]} == {
        ("read", "odd", "a detail")
    }
    again = Pipeline(pipeline.config, pipeline.stages, lambda: pytest.fail("Spark was started"))
    assert worked(again.run()[1]) == {"read": 0, "total": 0}


@BOTH
def test_growth_makes_the_new_unit_and_what_depends_on_all(folder: Path, spark: Any, storage: str) -> None:
    settings = config(folder, storage=storage)
    toys(settings, spark).run()
    before = toys(settings, spark).tables.commits("read")
    write_shard(folder / "in" / "c.parquet", 200, 201, 202)
    grown = toys(settings, spark)
    assert worked(grown.run()[1]) == {"read": 1, "total": 1}
    after = grown.tables.commits("read")
    assert {name: after[name] for name in before} == before
    once = toys(config(folder, storage=storage, output=f"{folder}/once"), spark)
    once.run()
    assert content(grown) == content(once)


@BOTH
def test_a_forgotten_unit_is_gone_and_stays_away(folder: Path, spark: Any, storage: str) -> None:
    pipeline = toys(config(folder, storage=storage), spark)
    pipeline.run()
    unit = Units(pipeline.config.output).known()[0]
    pipeline.forget(unit.name)
    assert worked(pipeline.run()[1]) == {"read": 0, "total": 1}
    assert unit.name not in {dict(r)["unit"] for r in content(pipeline)["numbers"]}
    kept = content(pipeline)
    pipeline.forget(unit.name)  # as the command does that was killed, and is called again
    assert worked(pipeline.run()[1]) == {"read": 0, "total": 0}
    assert content(pipeline) == kept
    with pytest.raises(InputError, match="no unit u-none"):
        pipeline.forget("u-none")


def test_a_changed_setting_or_version_makes_the_stage_again_and_says_which(
    folder: Path, spark: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings = config(folder)
    toys(settings, spark).run()
    changed = Read()
    changed.modulus = 4
    with caplog.at_level("INFO", logger="i2e_pipeline"):
        assert worked(toys(settings, spark, read=changed).run()[1]) == {"read": 2, "total": 1}
    assert "read            2 units again, changed: settings.modulus: 2, now 4" in caplog.text
    newer = Read()
    newer.modulus, newer.version = 4, 2
    _, states = toys(settings, spark, read=newer).status()
    assert {*states[0].to_do.values()} == {"changed: version: 1, now 2"}
    _, states = toys(config(folder, run={"waves_in_flight": 1}, session={"driver_memory": "1g"}), spark).status()
    assert worked(states) == {"read": 2, "total": 1}  # as modulus 4 made them
    _, states = toys(config(folder, run={"waves_in_flight": 1}), spark, read=changed).status()
    assert worked(states) == {"read": 0, "total": 0}  # how a run is carried out is in no fingerprint


def test_a_lost_row_stops_the_stage_and_commits_nothing(folder: Path, spark: Any) -> None:
    """Catches: rows that vanish silently (data-juicer, clip-retrieval)."""
    careless = Read()
    careless.loses = True
    pipeline = toys(config(folder), spark, read=careless)
    with pytest.raises(RowsLost, match=r"\d+ rows in, \d+ out"):
        pipeline.run()
    assert pipeline.tables.commits("read") == {}


def test_a_reason_that_is_not_declared_stops_the_stage(folder: Path, spark: Any) -> None:
    """Catches: a reason that manifest, report and docs would not know."""
    silent = Read()
    silent.reasons = {}
    with pytest.raises(Exception, match=r"stage read rejects rows as 'odd', which it does not declare"):
        toys(config(folder), spark, read=silent).run()


def test_two_writers_do_not_meet(folder: Path, spark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_LISTENED", 0.01)
    pipeline = toys(config(folder), spark)
    with exclusive(pipeline.config.output):
        lock = files.read_json(pipeline.tables.path("_lock"))
        with pytest.raises(StageError, match="is being written by this process"):
            pipeline.run()
    files.write_json(pipeline.tables.path("_lock"), {**lock, "host": "elsewhere"})
    with pytest.raises(StageError, match="is being written by process"):
        pipeline.run()
    assert not (folder / "out" / "numbers").exists()
    # A driver that died on another machine beats no more.
    files.write_json(pipeline.tables.path("_lock"), {**lock, "host": "elsewhere", "beat": lock["beat"] - 1000})
    pipeline.run()
    assert (folder / "out" / "numbers").exists()


def test_a_run_whose_lock_was_taken_stops(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: two writers, after a machine that slept for long enough to count as gone."""
    monkeypatch.setattr(locks, "_BEAT", 0.05)
    path = f"{folder}/out/_lock"

    def held() -> None:
        with exclusive(f"{folder}/out"):
            time.sleep(0.3)
            assert files.read_json(path)["beat"] > began  # it beats
            files.write_json(path, {**files.read_json(path), "host": "elsewhere"})
            time.sleep(5)

    began = time.time() + 0.1
    with pytest.raises(LostLock, match="_lock is somebody else's now"):
        held()
    assert files.read_json(path)["host"] == "elsewhere"  # whose it is now


def test_a_table_of_no_unit_is_read_whole_for_each(folder: Path, spark: Any) -> None:
    """Catches: no row at all, without a word, for a stage by unit that reads what was made of all units at once."""
    run, _ = toys(config(folder), spark).run()
    unit = run.units[0].name
    assert run.read("totals", unit).count() == run.read("totals").count() == 2
    assert run.read("numbers", unit).count() < run.read("numbers").count()


def test_another_storage_format_is_refused_before_anything_is_touched(folder: Path, spark: Any) -> None:
    pipeline = toys(config(folder), spark)
    pipeline.run()
    whole = content(pipeline)
    with pytest.raises(StageError, match=r"holds parquet tables, and storage\.format is delta"):
        toys(config(folder, storage="delta"), spark).run()
    assert content(pipeline) == whole


def test_a_result_does_not_depend_on_units_partitions_or_order(folder: Path, spark: Any) -> None:
    """Catches: samples or sums that follow the partitioning (MetaCLIP, cc2dataset: unseeded)."""
    apart = toys(config(folder, output=f"{folder}/apart"), spark)
    apart.run()
    together = config(folder, pairs={"path": [f"{folder}/in/b.parquet", f"{folder}/in/a.parquet"], "files_per_unit": 2})
    before = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", "7")
    try:
        one = toys(together, spark)
        one.run()
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", before)

    def rows(pipeline: Pipeline) -> dict[str, list[Any]]:
        found = content(pipeline)
        return {t: sorted([kv for kv in r if kv[0] != "unit"] for r in found[t]) for t in ("numbers", "totals")}

    assert rows(one) == rows(apart)


def test_files_that_are_gone_or_cut_are_made_again(folder: Path, spark: Any) -> None:
    pipeline = toys(config(folder), spark)
    run, _ = pipeline.run()
    whole = content(pipeline)
    (commit, _) = run.committed("read")
    path = Path(pipeline.tables.path("numbers", commit.files["numbers"][0].path))
    path.write_bytes(path.read_bytes()[:-1])
    assert worked(pipeline.run()[1]) == {"read": 1, "total": 0}
    assert content(pipeline) == whole


# Input that goes away


def test_an_input_file_that_is_gone_is_said_before_any_work_with_unit_and_remedy(folder: Path, spark: Any) -> None:
    """Catches: stages that run for hours, and one behind them that dies without a word of unit or remedy."""
    pipeline = toys(config(folder), spark)
    pipeline.run()
    whole = content(pipeline)
    (unit,) = (u.name for u in Units(pipeline.config.output).known() if u.files[0].path.endswith("a.parquet"))
    gone = folder / "in" / "a.parquet"
    gone.rename(folder / "a.parquet")
    changed = Read()
    changed.modulus = 4
    asked = toys(pipeline.config, spark, read=changed)
    said = (
        rf"stage read needs input files again \(read: changed: settings\.modulus: 2, now 4\), and they are not there\. "
        rf"unit {unit}: {gone} is gone\. Put each back as it was, or leave its unit out: `i2e run --forget {unit}`"
    )
    with pytest.raises(StageError, match=said):
        asked.run()
    assert content(pipeline) == whole

    # Put back, or left out, the run goes on.
    (folder / "a.parquet").rename(gone)
    assert worked(asked.run()[1]) == {"read": 2, "total": 1}
    gone.unlink()
    asked.forget(unit)
    assert worked(toys(pipeline.config, spark).run()[1]) == {"read": 1, "total": 1}


def test_a_run_that_needs_no_input_bytes_goes_on_without_the_files(folder: Path, spark: Any) -> None:
    settings = config(folder)
    toys(settings, spark).run()
    (folder / "in" / "a.parquet").unlink()
    idle = Pipeline(settings, toys(settings, spark).stages, lambda: pytest.fail("Spark was started"))
    assert worked(idle.run()[1]) == {"read": 0, "total": 0}
    assert worked(toys(settings, spark).run(redo=["total"])[1]) == {"read": 0, "total": 1}
    small = config(folder, stages=["small"], small={"limit": 10})
    assert worked(toys(small, spark, Small()).run()[1]) == {"read": 0, "small": 2, "total": 1}
    write_shard(folder / "in" / "c.parquet", 200, 201)  # and units that are new are made
    assert worked(toys(settings, spark).run()[1]) == {"read": 1, "total": 1}


@pytest.mark.parametrize("left", [["b.parquet"], []])
def test_a_path_at_which_nothing_is_left_is_said_only_where_it_is_needed(
    folder: Path, spark: Any, left: list[str]
) -> None:
    """Catches: a folder of files that was cleared, and a run over tables alone that does not begin."""
    paths = [f"{folder}/in/a.parquet", f"{folder}/in/b.par*"]
    settings = config(folder, pairs={"path": paths})
    toys(settings, spark).run()
    for file in ("a.parquet", "b.parquet"):
        if file not in left:
            (folder / "in" / file).unlink()
    assert worked(toys(settings, spark).run()[1]) == {"read": 0, "total": 0}
    assert worked(toys(settings, spark).run(redo=["total"])[1]) == {"read": 0, "total": 1}
    with pytest.raises(StageError, match=r"unit u-\w+: .*a\.parquet is gone.*--forget u-"):
        toys(settings, spark).run(redo=["read"])
    # A path that never led anywhere is an error, as long as what was read is there.
    if left:
        write_shard(folder / "in" / "a.parquet", *range(20))
        with pytest.raises(InputError, match=r"none\.parquet: no file matches"):
            toys(config(folder, pairs={"path": [*paths, f"{folder}/none.parquet"]}), spark).run()


def test_a_stage_that_may_need_a_file_behind_one_that_is_to_run_is_named_with_the_cause(
    folder: Path, spark: Any
) -> None:
    class Again(Small):
        """Reads a table, and input files again."""

        name, narrows, features, after, Settings = "again", None, (), ("small",), None
        tables = {"others": Small.tables["smalls"]}
        passes = Passed("others", ("id",))
        reads_input = True

        def plan(self, run: Run, units: Sequence[str]) -> Plan:
            expected = run.rows_by_unit("numbers", units)
            return Plan(run.read("numbers", units), lambda: partial(copied, "others"), expected)

    def both(limit: int) -> Pipeline:
        return toys(config(folder, stages=["small", "again"], small={"limit": limit}), spark, Small(), Again())

    both(10).run()
    before = both(10).tables.commits("small")
    (folder / "in" / "b.parquet").unlink()
    with pytest.raises(
        StageError, match=r"stage again needs input files again \(small: changed: settings.limit: 10, now 9"
    ):
        both(9).run()
    assert both(10).tables.commits("small") == before
    assert worked(both(9).run(["small"])[1]) == {"read": 0, "small": 2}


def test_an_input_file_that_goes_while_the_run_goes_on_is_named_too(folder: Path, spark: Any) -> None:
    class Late(Small):
        name, narrows, features, after, Settings = "late", None, (), ("small",), None
        tables = {"others": Small.tables["smalls"]}
        passes = Passed("others", ("id",))
        sees_images = True

    class Removes(Small):
        def prepare(self, run: Run) -> None:
            (folder / "in" / "b.parquet").unlink()

    pipeline = toys(config(folder, stages=["small", "late"], small={"limit": 10}), spark, Removes(), Late())
    with pytest.raises(StageError, match=r"stage late needs input files again .*b\.parquet is gone.*--forget u-"):
        pipeline.run()
    assert len(pipeline.tables.commits("small")) == 2


class Killed(BaseException):
    """What a signal would do: no handler of errors runs."""


def changes(kill_at: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Let the n-th change of the file system be the last thing that happens; returns how many were made."""
    count = itertools.count()
    made = [0]

    def killing(real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any, **named: Any) -> Any:
            made[0] = next(count)
            if made[0] >= kill_at:
                raise Killed
            return real(*arguments, **named)

        return change

    for name in ("write_json", "write_bytes", "create_json", "make_folder", "remove", "move", "move_file"):
        monkeypatch.setattr(files, name, killing(getattr(files, name)))
    return lambda: made[0]


@BOTH
def test_a_kill_at_any_change_of_the_files_loses_and_doubles_nothing(
    tmp_path: Path, spark: Any, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: data files in place before the unit is marked done (NeMo Curator), rows lost by a kill (Daft #7373)."""
    write_shard(tmp_path / "in" / "a.parquet", *range(8))
    settings = config(tmp_path, storage=storage)
    whole = toys(config(tmp_path, storage=storage, output=f"{tmp_path}/whole"), spark)
    whole.run()
    wanted = content(whole)
    for kill_at in itertools.count(0 if storage == "parquet" else 3, 1 if storage == "parquet" else 5):
        with monkeypatch.context() as patched:
            changes(kill_at, patched)
            try:
                toys(settings, spark).run()
                survived = True
            except Killed:
                survived = False
        os.remove(tmp_path / "out" / "_lock") if (tmp_path / "out" / "_lock").exists() else None
        after = toys(settings, spark)
        after.run()
        assert content(after) == wanted, f"killed at change {kill_at}"
        assert not [p for p in (tmp_path / "out" / "_staging").rglob("*") if p.is_file()]
        if survived:
            break
        assert kill_at < 200
        # The next kill meets a stage that is to do again over what is there.
        for record in (tmp_path / "out" / "_commits").rglob("*.json"):
            text = record.read_text()
            for fingerprint in json.loads(text)["components"]:
                text = text.replace(fingerprint, f"x{fingerprint}")
            record.write_text(text)


# Waves


class Faulty(Read):
    """Reads, and comes to grief over one number."""

    number = -1
    how = "raises"

    def plan(self, run: Run, units: Sequence[str]) -> Plan:
        plan = super().plan(run, units)
        kernel = partial(faulty, make=plan.make_kernel, number=self.number, how=self.how)
        return replace(plan, make_kernel=lambda: kernel)


def faulty(
    batches: Iterator[pa.RecordBatch], make: Callable[[], Any], number: int, how: str
) -> Iterator[tuple[str, pa.RecordBatch]]:
    for table, batch in make()(batches):
        if "number" in batch.schema.names and number in batch.column("number").to_pylist():
            if how == "kills its worker":
                os._exit(1)
            raise ValueError(f"cannot work on {number}")
        yield table, batch


def many(folder: Path, count: int = 8) -> Path:
    for n in range(count):
        write_shard(folder / "in" / f"{n:03}.parquet", *range(10 * n, 10 * n + 10))
    return folder


def test_a_job_that_was_cancelled_is_no_fault_of_its_units(
    tmp_path: Path, spark: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: units named as failed, by who pressed Ctrl-C."""

    class Cancelled(Read):
        def plan(self, run: Run, units: Sequence[str]) -> Plan:
            plan = super().plan(run, units)
            return replace(plan, make_kernel=lambda: sleeping)

    pipeline = toys(config(many(tmp_path, 2)), spark, read=Cancelled())
    context = spark.sparkContext

    def cancel() -> None:
        until = time.monotonic() + 60
        while not context.statusTracker().getActiveStageIds() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(1)
        context.cancelAllJobs()

    cancelling = threading.Thread(target=cancel)
    cancelling.start()
    with pytest.raises(Exception, match="SPARK_JOB_CANCELLED"):
        pipeline.run()
    cancelling.join()
    assert "failed" not in caplog.text
    assert pipeline.tables.commits("read") == {}


def sleeping(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, pa.RecordBatch]]:
    time.sleep(30)
    yield from ()


@pytest.mark.parametrize("how", ["raises", "kills its worker"])
def test_a_unit_that_fails_is_named_and_the_others_are_made(
    tmp_path: Path, spark: Any, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: one broken file of ten thousand that stops a run, or that takes others with it."""
    faulty = Faulty()
    faulty.number, faulty.how = 52, how
    pipeline = toys(config(many(tmp_path)), spark, read=faulty)
    bad = Units(pipeline.config.output).plan(pipeline.config.pairs)[5].name
    with pytest.raises(UnitsFailed, match=rf"stage read: 1 unit failed, 7 made\. {bad}: .*--forget UNIT") as raised:
        pipeline.run()
    assert "Traceback" not in str(raised.value)
    if how == "raises":
        assert f"{bad}: ValueError: cannot work on 52." in str(raised.value)
    assert set(pipeline.tables.commits("read")) == {u.name for u in Units(pipeline.config.output).known()} - {bad}
    if how == "kills its worker":
        assert f"{bad}: a Python worker died" in str(raised.value)

    # Mended, only that unit is made; what comes of it is what one run makes.
    mended = toys(pipeline.config, spark)
    assert worked(mended.run()[1]) == {"read": 1, "total": 1}
    once = toys(config(tmp_path, output=f"{tmp_path}/once"), spark)
    once.run()
    assert content(mended) == content(once)
    assert not [p for p in (tmp_path / "out" / "_staging").rglob("*") if p.is_file()]


def test_where_every_unit_fails_the_run_ends_soon(tmp_path: Path, spark: Any) -> None:
    class Hopeless(Read):
        def plan(self, run: Run, units: Sequence[str]) -> Plan:
            plan = super().plan(run, units)

            def make_kernel() -> Any:
                with open(tried, "a") as file:
                    file.write("x")
                raise OSError("no model there")

            return replace(plan, make_kernel=make_kernel)

    tried = str(tmp_path / "tried")
    pipeline = toys(config(many(tmp_path, 64), run={"waves_in_flight": 1, "wave_units": 64}), spark, read=Hopeless())
    with pytest.raises(Exception, match="no model there"):
        pipeline.run()
    assert len(Path(tried).read_text()) < 48  # tasks, of which a job has two


def test_a_unit_counts_before_its_wave_ends(tmp_path: Path, spark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: hours of a wave lost by a kill. A unit of it waits here until others of its wave are committed."""
    flag = tmp_path / "others-are-committed"

    class Waits(Read):
        def plan(self, run: Run, units: Sequence[str]) -> Plan:
            plan = super().plan(run, units)
            kernel = partial(waits, make=plan.make_kernel, flag=str(flag))
            return replace(plan, make_kernel=lambda: kernel)

    real = Records.add

    def add(self: Records, stage: str, commits: Sequence[Commit]) -> None:
        real(self, stage, commits)
        flag.touch()

    monkeypatch.setattr(Records, "add", add)
    pipeline = toys(config(many(tmp_path), run={"waves_in_flight": 1}), spark, read=Waits())
    assert worked(pipeline.run()[1]) == {"read": 8, "total": 1}
    assert len(list((tmp_path / "out" / "_commits" / "read").iterdir())) > 1


def waits(
    batches: Iterator[pa.RecordBatch], make: Callable[[], Any], flag: str
) -> Iterator[tuple[str, pa.RecordBatch]]:
    for table, batch in make()(batches):
        if "number" in batch.schema.names and 70 in batch.column("number").to_pylist():
            deadline = time.monotonic() + 60
            while not os.path.exists(flag):
                assert time.monotonic() < deadline, "no unit was committed while the wave went on"
                time.sleep(0.01)
        yield table, batch


@BOTH
def test_a_kill_within_a_wave_loses_no_unit_that_counted(tmp_path: Path, spark: Any, storage: str) -> None:
    class Dies(Records):
        def add(self, stage: str, commits: Sequence[Commit]) -> None:
            if stage == "read" and self.known(stage):
                raise Killed
            super().add(stage, commits)

    settings = config(many(tmp_path), storage=storage, run={"waves_in_flight": 1, "wave_units": 3})
    killed = toys(settings, spark)
    killed.tables.records = Dies(killed.tables.records.folder)
    with pytest.raises(Killed):
        killed.run()
    before = killed.tables.commits("read")
    assert 0 < len(before) < 8
    os.remove(tmp_path / "out" / "_lock") if (tmp_path / "out" / "_lock").exists() else None
    after = toys(settings, spark)
    assert worked(after.run()[1]) == {"read": 8 - len(before), "total": 1}
    assert {u: c for u, c in after.tables.commits("read").items() if u in before} == before
    once = toys(config(tmp_path, storage=storage, output=f"{tmp_path}/once"), spark)
    once.run()
    assert content(after) == content(once)


def test_rows_are_the_same_however_units_are_dealt_to_waves(tmp_path: Path, spark: Any) -> None:
    def made(name: str, **run: Any) -> dict[str, list[Any]]:
        settings = config(many(tmp_path), output=f"{tmp_path}/{name}", run=run, stages=["small"], small={"limit": 60})
        pipeline = toys(settings, spark, Small())
        pipeline.run()
        return content(pipeline)

    together = made("together")
    assert made("one by one", wave_units=1, waves_in_flight=1) == together
    assert made("by rows", wave_rows=25, waves_in_flight=3) == together


def test_nothing_is_left_behind_by_waves(tmp_path: Path, spark: Any) -> None:
    """Catches: a JVM, or a driver, that fills: plans compiled for each unit until the code cache is full (after 400
    units), threads, accumulators, listeners."""
    from pyspark.accumulators import _accumulatorRegistry

    beans = spark.sparkContext._jvm.java.lang.management.ManagementFactory
    # Spark's pools of up to a hundred threads, each of which ends after an idle minute.
    bounded = ("block-manager-", "broadcast-exchange-", "shuffle-exchange-", "QueryStageCreator-", "ResultQueryStage")

    def state() -> dict[str, int]:
        spark.sparkContext._jvm.java.lang.System.gc()
        pools = {p.getName(): p.getUsage().getUsed() for p in beans.getMemoryPoolMXBeans()}
        threads = beans.getThreadMXBean()
        names = [info.getThreadName() for info in threads.getThreadInfo(threads.getAllThreadIds()) if info]
        return {
            "metaspace": pools["Metaspace"] >> 20,
            "classes": beans.getClassLoadingMXBean().getLoadedClassCount(),
            "threads of Java": sum(not name.startswith(bounded) for name in names),
            "threads": threading.active_count(),
            "accumulators": len(_accumulatorRegistry),
        }

    def run(name: str, units: int) -> dict[str, int]:
        settings = config(
            many(tmp_path, units), output=f"{tmp_path}/{name}", run={"wave_units": 4}, stages=["small"],
            small={"limit": 2000},
        )  # fmt: skip
        toys(settings, spark, Small()).run()
        return state()

    before = run("few", 20)
    after = run("many", 120)
    assert after["accumulators"] == before["accumulators"]
    assert after["threads"] <= before["threads"]
    # Of 25 more waves each would leave one; those of pools and connections come and go by a handful.
    assert after["threads of Java"] <= before["threads of Java"] + 12
    assert after["classes"] <= before["classes"] + 150
    assert after["metaspace"] <= before["metaspace"] + 4


# Stages from outside


def test_a_stage_from_outside_narrows_a_table_for_those_behind_it(folder: Path, spark: Any) -> None:
    settings = config(folder, stages=["small"], small={"limit": 110})
    pipeline = toys(settings, spark, Small())
    run, states = pipeline.run()
    assert pipeline.names == ["read", "small", "total"]
    assert worked(states) == {"read": 2, "small": 2, "total": 1}
    left = [n for n in (*range(0, 20, 2), *range(100, 130, 2)) if n <= 110]
    assert sum(dict(r)["total"] for r in content(pipeline)["totals"]) == sum(left)
    assert sum(c.rejected.get("large", 0) for c in run.committed("small")) == 9
    assert run.rows("numbers") == len(left)
    frame = run.with_features(run.read("numbers", columns=["unit", "id", "number"]))
    assert {r["number"]: r["weight"] for r in frame.collect()} == {n: n / 2 for n in left}
    assert run.feature_names() == ["weight"]
    assert worked(pipeline.run()[1]) == {"read": 0, "small": 0, "total": 0}

    # Its setting makes it and what sees it again; without it, what did not see it stays.
    looser = config(folder, stages=["small"], small={"limit": 1000})
    assert worked(toys(looser, spark, Small()).run()[1]) == {"read": 0, "small": 2, "total": 1}
    without = toys(config(folder), spark)
    assert worked(without.run()[1]) == {"read": 0, "total": 1}
    assert sum(dict(r)["total"] for r in content(without)["totals"]) == sum((*range(0, 20, 2), *range(100, 130, 2)))


def negated(batches: Iterator[pa.RecordBatch], table: str) -> Iterator[tuple[str, pa.RecordBatch]]:
    for batch in batches:
        yield table, batch.set_column(1, NUMBERS.field("number"), pc.negate(batch.column("number")))


class Negate(Small):
    """Writes all numbers again, with the other sign."""

    name, narrows, replaces, features, Settings = "negate", None, "numbers", (), None
    tables = {"negated": Table(pa.schema([*NUMBERS]), key=("id",))}
    passes = Passed("negated", ("id",))
    reasons = {}

    def plan(self, run: Run, units: Sequence[str]) -> Plan:
        return Plan(run.read("numbers", units), lambda: partial(negated, table="negated"), self.rows_to_do(run, units))


@pytest.mark.parametrize("narrows", ["before", "behind", "not"])
def test_a_stage_from_outside_replaces_a_table_for_those_behind_it(folder: Path, spark: Any, narrows: str) -> None:
    """What narrows before has been seen to by who replaces; what narrows behind sees what replaced."""
    all_numbers = [*range(0, 20, 2), *range(100, 130, 2)]
    settings = config(folder, stages=["small"], small={"limit": 110 if narrows == "before" else -110})
    outside = {"before": [Small(), Negate()], "behind": [Negate(), Small()], "not": [Negate()]}[narrows]
    pipeline = toys(settings, spark, *outside)
    run, _ = pipeline.run()
    kept = [n for n in all_numbers if narrows == "not" or (n <= 110 if narrows == "before" else n >= 110)]
    assert sum(dict(r)["total"] for r in content(pipeline)["totals"]) == -sum(kept)
    assert run.rows("numbers") == len(kept)
    assert sum(run.rows_by_unit("numbers", [u.name for u in run.units]).values()) == len(kept)
    assert sorted(r["number"] for r in run.read("numbers").collect()) == sorted(-n for n in kept)
    assert sorted(dict(r)["number"] for r in content(pipeline)["numbers"]) == all_numbers  # which stays as it was
    assert worked(pipeline.run()[1])["total"] == 0

    # Without it, what is behind it is made again of what was there before.
    without = toys(config(folder), spark)
    assert worked(without.run()[1]) == {"read": 0, "total": 1}
    assert sum(dict(r)["total"] for r in content(without)["totals"]) == sum(all_numbers)


def test_a_table_narrowed_by_other_columns_is_counted_by_a_job(folder: Path, spark: Any) -> None:
    class ByRest(Small):
        """Two numbers stand for their rests: whole groups stay or go."""

        passes = Small.passes

        def rows_to_do(self, run: Run, units: Sequence[str]) -> Mapping[str, int]:
            return run.rows_by_unit("numbers", units, by=("number",))

    pipeline = toys(config(folder, stages=["small"], small={"limit": 10}), spark, ByRest())
    run, _ = pipeline.run()
    assert run.rows("numbers", by=("number",)) == 6


class Odd(Small):
    """A declaration with one thing changed stands for a stranger's mistake."""


ANY = Table(NUMBERS, key=("id",))
OTHER = Table(pa.schema([NUMBERS.field("id"), pa.field("weight", pa.float32())]), key=("id",))
REPLACES = {"narrows": None, "replaces": "numbers"}
OTHER_KEY = {
    **REPLACES,
    "tables": {"smalls": Table(Small.tables["smalls"].schema, key=("number",))},
    "passes": Passed("smalls", ("number",)),
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "to tal"}, "name = 'to tal': letters, digits and _ alone"),
        ({"name": "_hidden"}, "name = '_hidden': letters, digits and _ alone, _ not first"),
        ({"name": "total"}, "there is a stage or table 'total' already"),
        ({"name": "totals"}, "there is a stage or table 'totals' already"),
        ({"does": ""}, "set `does`"),
        ({"after": ("elsewhere",)}, "name at least one stage or table of read, total"),
        ({"after": ()}, "name at least one stage or table of read, total"),
        ({"after": ("total",)}, "total ends the dataset"),
        ({"after": "read"}, r"after = 'read': write a tuple, \('read',\)"),
        ({"reads": "numbers"}, r"reads = 'numbers': write a tuple"),
        ({"reads": ("totals",)}, "reads 'totals', and no stage before it writes that"),
        ({"narrows": "totals"}, "narrows 'totals', and no stage before it writes that"),
        ({**REPLACES, "replaces": "totals"}, "replaces 'totals', and no stage before it writes that"),
        ({**REPLACES, "tables": {"smalls": OTHER}}, "replaces 'numbers', and its 'smalls' has not the same number"),
        ({**OTHER_KEY, "features": ()}, r"replaces 'numbers', whose key is \('id',\), not \('number',\)"),
        ({"scope": "units"}, "scope = 'units': one of unit, whole"),
        ({"sections": ("scroe",)}, "sections: the config has no scroe; it has storage, session"),
        ({"reasons": ("large",)}, "reasons: write each reason with its sentence"),
        ({"tables": {"smalls": NUMBERS}}, "tables: write {name: Table"),
        ({"tables": {"../evil": ANY}}, "there can be no table '../evil'"),
        ({"tables": {"i2e": ANY}}, "there can be no table 'i2e'"),
        ({"tables": {"_staging": ANY}}, "there can be no table '_staging'"),
        ({"tables": {"smalls": Table(NUMBERS, key=("nothing",))}}, r"key = \('nothing',\): name columns of id, number"),
        ({"passes": None}, "set `passes`"),
        ({"passes": Passed("smalls", ("nothing",))}, "its tables have no nothing in 'smalls'"),
        ({"passes": Passed("elsewhere", ("id",))}, "its tables have no id, weight in 'elsewhere'"),
        ({"features": ("colour",)}, "its tables have no colour in 'smalls'"),
        ({"features": ("number",)}, "there is a column 'number' already"),
        ({"features": ("id",)}, r"features: id is fixed_size_binary\[16\], and not a number"),
        ({"Settings": dict}, "Settings: let it derive from i2e_pipeline.Section"),
        ({"plan": Stage.plan}, "define `plan`"),
    ],
)
def test_a_declaration_that_does_not_fit_is_refused_before_any_work(change: dict[str, Any], said: str) -> None:
    with pytest.raises(StageError, match=said):
        arrange([Read(), Total()], [type("Changed", (Odd,), change)()])


def test_narrowing_behind_a_reader_is_refused() -> None:
    """Catches: stages that would count different rows of one table."""

    class Reader(Small):
        name, narrows, features = "reader", None, ()
        tables = {"other": Small.tables["smalls"]}
        passes = Passed("other", ("id",))

    late = type("Late", (Small,), {"after": ("reader",)})()
    with pytest.raises(StageError, match=r"narrows 'numbers' behind reader, which reads it"):
        arrange([Read(), Total()], [Reader(), late])


def test_a_stage_gets_the_settings_and_tables_that_it_declares_and_no_others(folder: Path, spark: Any) -> None:
    """Catches: a setting that changes the output and is in no fingerprint."""
    run = toys(config(folder), spark).open([]).handed_to(Total())
    assert run.config.output
    with pytest.raises(StageError, match=r"total reads the settings score and does not declare them"):
        _ = run.config.score
    with pytest.raises(StageError, match=r"total reads totals and does not declare it"):
        run.read("totals")
    with pytest.raises(StageError, match=r"total opens images and does not declare it"):
        run.open_shards("u")
    with pytest.raises(StageError, match=r"total reads its own settings and declares none: give it `Settings`"):
        _ = run.settings
    with pytest.raises(StageError, match=r"numbers has no column nmuber; it has id, number"):
        run.read("numbers", columns=["nmuber"])


def test_a_plan_that_is_none_is_said(folder: Path, spark: Any) -> None:
    careless = type("Careless", (Small,), {"plan": lambda self, run, units: run.read("numbers", units)})()
    with pytest.raises(StageError, match="stage small: plan returned DataFrame, and not a Plan"):
        toys(config(folder, stages=["small"]), spark, careless).run()


def test_a_key_that_is_passed_on_twice_is_found_where_it_is_missed(folder: Path, spark: Any) -> None:
    """Catches: one row lost and another doubled, so that the counts agree; the message names who may have done it."""

    class Reader(Small):
        """Behind the stage that narrows, it counts what arrives."""

        name, narrows, features, after = "reader", None, (), ("doubles",)
        tables = {"read_on": Small.tables["smalls"]}
        passes = Passed("read_on", ("id",))
        Settings = None

        def plan(self, run: Run, units: Sequence[str]) -> Plan:
            return Plan(run.read("numbers", units), lambda: partial(copied, "read_on"), self.rows_to_do(run, units))

    class Doubles(Reader):
        name, narrows, after = "doubles", "numbers", ("read",)
        tables = {"doubled": Small.tables["smalls"]}
        passes = Passed("doubled", ("id",))

        def plan(self, run: Run, units: Sequence[str]) -> Plan:
            return Plan(run.read("numbers", units), lambda: partial(copied, "doubled", once=False), None)

    with pytest.raises(RowsLost, match=r"reader, unit .* and .* arrived: do doubles pass each key on once"):
        toys(config(folder), spark, Doubles(), Reader()).run()


def copied(table: str, batches: Iterator[pa.RecordBatch], once: bool = True) -> Iterator[tuple[str, pa.RecordBatch]]:
    for batch in batches:
        rows = batch.append_column("weight", pa.nulls(batch.num_rows, pa.float32()))
        if not once and rows.num_rows > 1:
            rows = rows.take(pa.array([0, *range(2, rows.num_rows), 0]))
        yield table, rows


@BOTH
def test_a_forgotten_unit_is_gone_from_a_stage_that_is_no_longer_named(
    folder: Path, spark: Any, storage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: rows of somebody who opted out, in a table that nobody looks at any more."""
    toys(config(folder, storage=storage, stages=["small"], small={"limit": 110}), spark, Small()).run()
    without = toys(config(folder, storage=storage), spark)
    with caplog.at_level("INFO", logger="i2e_pipeline"):
        without.run()
    assert "small: no stage of this config" in caplog.text
    unit = Units(without.config.output).known()[0].name
    without.forget(unit)
    assert unit not in without.tables.commits("small") != {}
    again = toys(config(folder, storage=storage, stages=["small"], small={"limit": 110}), spark, Small())
    again.run()
    left = content(again)
    assert unit not in {dict(r)["unit"] for table in ("numbers", "smalls", "rejects") for r in left[table]}


def test_a_stage_over_all_units_waits_for_them_even_when_it_alone_is_asked_for(folder: Path, spark: Any) -> None:
    """Catches: a whole stage committed over no unit, because none of the stages asked for works by unit."""
    pipeline = toys(config(folder), spark)
    with pytest.raises(StageError, match="total needs the table `numbers`"):
        pipeline.run(["total"])
    pipeline.run()
    whole = content(pipeline)
    assert worked(pipeline.run(["total"])[1]) == {"read": 0, "total": 0}
    assert content(pipeline) == whole


def test_a_stage_that_passes_on_nothing_stops_the_run(tmp_path: Path, spark: Any) -> None:
    """Catches: an empty dataset that ends well."""
    write_shard(tmp_path / "in" / "a.parquet", *range(1, 20, 2))
    odd = Read()
    odd.modulus = 2
    with pytest.raises(
        StageError, match=r"stage read: of 10 numbers 0 were passed on, and 10 rejected as odd \(It does"
    ):
        toys(config(tmp_path), spark, read=odd).run()
    # It does so again where nothing is to do any more.
    with pytest.raises(StageError, match=r"run\.allow_empty=true goes on"):
        toys(config(tmp_path), spark, read=odd).run()
    _, states = toys(config(tmp_path, run={"allow_empty": True}), spark, read=odd).run()
    assert worked(states) == {"read": 0, "total": 1}


def test_what_the_user_wants_left_out_stops_no_run_unless_it_is_everything(tmp_path: Path, spark: Any) -> None:
    """Catches: an expression that takes 8 of 2,000 rows as asked, and ends the run."""
    rare = Read()
    rare.modulus, rare.asked_for = 500, ("odd",)
    write_shard(tmp_path / "in" / "a.parquet", *range(1_100))
    _, states = toys(config(tmp_path), spark, read=rare).run()
    assert worked(states) == {"read": 1, "total": 1}
    write_shard(tmp_path / "none" / "a.parquet", *range(1, 1_100, 2))
    rare.modulus = 2
    with pytest.raises(StageError, match=r"of 550 numbers 0 were passed on, and 550 rejected as odd"):
        toys(config(tmp_path, output=f"{tmp_path}/other", pairs={"path": f"{tmp_path}/none"}), spark, read=rare).run()


def test_nearly_everything_rejected_for_one_reason_stops_the_run(tmp_path: Path, spark: Any) -> None:
    rare = Read()
    rare.modulus = 500
    write_shard(tmp_path / "in" / "a.parquet", *range(900))
    toys(config(tmp_path), spark, read=rare).run()  # a thousand rows are not too few to tell
    write_shard(tmp_path / "in" / "b.parquet", *range(1001, 1200))
    with pytest.raises(StageError, match=r"of 1,099 numbers 2 were passed on, and 1,097 rejected as odd"):
        toys(config(tmp_path), spark, read=rare).run()
