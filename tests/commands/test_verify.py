"""`i2e verify` finds damage in every file of an output, and `i2e repair` mends it to the dataset that it was."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.damage import damage, rows
from i2e_pipeline import cli
from i2e_pipeline.commands import run as running
from i2e_pipeline.commands import verify as verifying
from i2e_pipeline.commands.clean import clean
from i2e_pipeline.commands.repair import repair
from i2e_pipeline.commands.verify import NothingToVerify, told, verify, verify_dataset
from i2e_pipeline.commands.verifying.faults import Mend, Verified
from i2e_pipeline.commands.verifying.stored import digests_by_workers
from i2e_pipeline.core import digests, files
from i2e_pipeline.core.config import Config, keep
from i2e_pipeline.core.errors import ExitCode
from i2e_pipeline.core.lock import Held, exclusive
from i2e_pipeline.engine import seal
from i2e_pipeline.stages import pipeline
from i2e_pipeline.train.indexed import FOLDER
from tests.chain import content, run, settings

pytestmark = pytest.mark.slow

NOT_SEALED = ("_seal", "_staging/", "_explore/", "marks.jsonl", "train/", "_lock")
"""What lies in an output and is no table's file, and that `verify` does not compare: unfinished, made again at need, a
reader's own, a training's own."""


@pytest.fixture(scope="module", params=["parquet", pytest.param("delta", marks=[pytest.mark.delta, pytest.mark.long])])
def finished(request: pytest.FixtureRequest, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run with its report."""
    if request.param == "parquet":
        made: Config = request.getfixturevalue("reported")
        return made
    spark = request.getfixturevalue("spark")
    config = settings(world, tmp_path_factory.mktemp("verify") / "out", f"storage.format={request.param}")
    running.run(pipeline(config, lambda: spark))
    return config


@pytest.fixture
def copied(finished: Config, tmp_path: Path) -> Config:
    shutil.copytree(finished.output, tmp_path / "out")
    return finished.model_copy(update={"output": str(tmp_path / "out")})


def look(config: Config, deep: bool = True) -> Verified:
    return verify(pipeline(config), deep)


def files_of(config: Config) -> list[Path]:
    """Without the index of trainings, which is compared when one reads it and made again where it is damaged."""
    return sorted(p for p in Path(config.output).rglob("*") if p.is_file() and p.parent.name != FOLDER)


def published(output: Path) -> dict[str, Any]:
    """Rows of the dataset by its commit records: beside them, a Delta table keeps what they took the place of."""
    found = rows(output)
    return {table: found[table] for table in ("i2e/images", "i2e/entities")}


def test_every_file_of_an_output_is_named_by_a_digest(finished: Config) -> None:
    output = Path(finished.output)
    whole = pipeline(finished)
    made = [
        (f"{table}/{f.path}", f)
        for stage in whole.names
        for commit in whole.tables.commits(stage).values()
        for table, of_table in commit.files.items()
        for f in of_table
    ]
    assert all(digests.of_file(str(output / path)) == f.digest for path, f in made)
    named = {path for path, _ in made} | seal.read(finished.output).keys()
    lying = {p.relative_to(output).as_posix() for p in files_of(finished)}
    assert {p for p in lying - named if not p.startswith(NOT_SEALED)} == set()


def test_nothing_is_wrong_with_what_a_run_left(finished: Config) -> None:
    found = look(finished)
    assert found.faults == []
    assert found.notes == []
    assert {"records", "files", "digests", "footers", "sealed", "labels", "images"} <= found.looked_at.keys()
    assert found.looked_at["labels"] > 20
    assert "WRONG" not in "\n".join(told(found))


def test_damage_in_any_file_is_found_and_named(copied: Config) -> None:
    """Catches: bytes that went bad and left the length as it was, which sizes and footers do not show."""
    output = Path(copied.output)
    lying = files_of(copied)
    kept = {path: path.read_bytes() for path in lying}
    for n, path in enumerate(lying):
        damage(path, lying, random.Random(n))
        found = look(copied)
        below = path.relative_to(output).as_posix()
        named = [f for f in found.faults if below == f.path or below.startswith(f"{f.path}/")]
        assert named, (below, [str(f) for f in found.faults])
        if below.startswith(tuple(t for t in pipeline(copied).tables.catalogue.writers)) and below.endswith(".parquet"):
            assert named[0].stage, below
            assert named[0].unit, below
        path.write_bytes(kept[path])
    assert not look(copied).faults


@pytest.mark.spark
@pytest.mark.parametrize("seed", range(3))
def test_what_was_damaged_is_mended_to_what_it_was(copied: Config, spark: Any, seed: int) -> None:
    wanted, lying = rows(Path(copied.output)), files_of(copied)
    draw = random.Random(seed)
    chosen = draw.sample(lying, 6)
    for path in chosen:
        damage(path, lying if path is chosen[0] else [p for p in lying if p.exists()], draw)
    done = repair(pipeline(copied, lambda: spark))
    assert not done.left.faults, (chosen, [str(f) for f in done.left.faults])
    assert done.mended
    assert rows(Path(copied.output)) == wanted
    assert not look(copied).faults
    assert not any(run(copied, spark).values())


@pytest.mark.spark
def test_a_damaged_record_costs_no_work_and_a_damaged_file_that_of_its_stage(copied: Config, spark: Any) -> None:
    """Catches: one bad byte of a journal costing the scores of all its units."""
    output = Path(copied.output)
    (journal,) = (output / "_commits" / "score").glob("*.json")
    journal.write_bytes(journal.read_bytes().replace(b'"rows"', b'"rowz"', 1))
    (unit,) = list((output / "units").glob("u-*.json"))[:1]
    unit.unlink()
    before = {p: p.stat().st_mtime_ns for p in files_of(copied) if p.suffix == ".parquet"}
    done = repair(pipeline(copied, lambda: spark))
    assert {f.mend for f in done.mended} == {Mend.RESTORE}
    assert not done.left.faults
    assert {p: p.stat().st_mtime_ns for p in files_of(copied) if p.suffix == ".parquet"} == before

    one = next((output / "labels").rglob("*.parquet"))
    one.write_bytes(one.read_bytes()[:-1] + b"x")
    (fault,) = look(copied).faults
    assert (fault.stage, fault.unit) == ("label", one.parent.name.removeprefix("unit="))
    repair(pipeline(copied, lambda: spark))
    changed = {p for p in before if not p.exists() or p.stat().st_mtime_ns != before[p]}
    assert one in changed
    assert {p.parent.name for p in changed} == {one.parent.name}
    assert {p.parent.parent.name for p in changed} <= {"labels", "stage=label"}


@pytest.mark.long
@pytest.mark.spark
def test_records_that_nobody_holds_twice_cost_what_they_recorded(copied: Config, spark: Any) -> None:
    """Catches: one record that cannot be read, for which all of its folder is thrown away; what says how tables are
    stored, damaged, and no command that begins."""
    output = Path(copied.output)
    wanted = published(output)
    (output / "_seal").unlink()
    (output / "_storage.json").write_bytes(bytes(30))
    (output / "_reported.json").write_text("}")
    record = min((output / "units").glob("u-*.json"))
    record.write_text('{"name": "u-1"}')
    kept = {p: p.read_bytes() for p in (output / "units").glob("u-*.json") if p != record}
    (journal,) = (output / "_commits" / "link").glob("*.json")
    later = journal.with_name("journal-000000007.json")
    later.write_text('{"anew": 1}')
    tables = {p: p.stat().st_mtime_ns for p in output.rglob("unit=u-*/*.parquet")}
    faults = {f.path: f.mend for f in look(copied).faults}
    assert faults == {
        "_seal": Mend.SEAL,
        "_storage.json": Mend.REMOVE,
        f"_commits/link/{later.name}": Mend.REMOVE,
        f"units/{record.name}": Mend.UNIT,
    }
    assert not repair(pipeline(copied, lambda: spark)).left.faults
    assert not look(copied).faults
    assert published(output) == wanted
    assert json.loads((output / "_storage.json").read_text()) == {"format": copied.storage.format}
    assert {p: p.read_bytes() for p in kept} == kept
    by_unit = [t for s in pipeline(copied).stages if s.scope == "unit" and s.name != "publish" for t in s.tables]
    others = {
        p: t for p, t in tables.items() if record.stem not in str(p) and p.relative_to(output).parts[0] in by_unit
    }
    assert others
    assert {p: p.stat().st_mtime_ns for p in others} == others


@pytest.mark.spark
@pytest.mark.parametrize("repaired", [True, False])
def test_a_unit_whose_record_is_lost_is_made_anew(copied: Config, spark: Any, repaired: bool) -> None:
    """Catches: input files under new numbers, and rows of before that bear the old ones: images of others."""
    output = Path(copied.output)
    wanted = published(output)
    record = min((output / "units").glob("u-*.json"), key=lambda p: json.loads(p.read_text())["files"][0]["shard"])
    record.unlink()
    (output / "_seal").unlink()
    (fault,) = [f for f in look(copied).faults if f.path != "_seal"]
    assert (fault.path, fault.unit, fault.mend) == (f"units/{record.name}", record.stem, Mend.UNIT)
    if repaired:
        assert not repair(pipeline(copied, lambda: spark)).left.faults
    else:
        run(copied, spark)
    assert published(output) == wanted
    assert json.loads(record.read_text())["files"][0]["shard"] == 3

    text = record.read_text()
    record.write_text(text.replace('"shard": 3', '"shard": 5'))
    (output / "_seal").unlink()
    (fault,) = [f for f in look(copied).faults if f.path != "_seal"]
    assert (fault.path, fault.unit, fault.mend) == (f"units/{record.name}", record.stem, Mend.UNIT)
    assert "other numbers" in fault.what


@pytest.mark.spark
def test_a_unit_that_was_left_out_does_not_come_back(copied: Config, spark: Any) -> None:
    output = Path(copied.output)
    unit = min((output / "units").glob("u-*.json")).stem
    whole = pipeline(copied, lambda: spark)
    kept = {p: p.read_bytes() for p in (output / "_commits" / "label").iterdir()}
    whole.forget(unit)
    assert not look(copied).faults
    for path in (output / "_commits" / "label").iterdir():
        path.unlink()
    for path, written in kept.items():  # as a kill leaves it: forgotten, and not yet by all
        path.write_bytes(written)
    (output / "_seal").unlink()
    assert {f.mend for f in look(copied).faults if f.check == "records"} == {Mend.UNIT}
    assert not repair(pipeline(copied, lambda: spark)).left.faults
    without = published(output)
    record = output / "forgotten_units" / f"{unit}.json"
    record.write_text("{")
    (output / "_seal").unlink()
    (fault,) = repair(pipeline(copied, lambda: spark)).left.faults
    assert (fault.path, fault.mend) == (f"forgotten_units/{unit}.json", Mend.NOTHING)
    assert published(output) == without


@pytest.mark.spark
def test_records_that_are_gone_or_somebody_elses_are_named(copied: Config, spark: Any) -> None:
    """Catches: a unit that a stage has lost, for which nobody asks; scores that `i2e clean` takes for left over."""
    output = Path(copied.output)
    wanted = rows(output)
    unit = min((output / "units").glob("u-*.json")).stem
    (journal,) = (output / "_commits" / "score").glob("*.json")
    stray = journal.with_name("journal-000000009.json")
    stray.write_text(json.dumps({"anew": False, "gone": [unit], "components": {}, "commits": []}))
    (output / "units" / "u-0.json").write_text(next((output / "units").glob("u-*.json")).read_text())
    found = {(f.path, f.mend) for f in look(copied, deep=False).faults}
    assert found >= {
        ("_commits/score", Mend.REDO),
        (f"_commits/score/{stray.name}", Mend.REMOVE),
        ("units/u-0.json", Mend.REMOVE),
    }
    before = {p: p.stat().st_mtime_ns for p in (output / "scores").rglob("*.parquet")}
    done = repair(pipeline(copied, lambda: spark))
    assert not done.left.faults
    assert rows(output) == wanted
    assert {p: p.stat().st_mtime_ns for p in before} == before  # what was whole is not made again

    journal.write_text(journal.read_text().replace(f'"unit":"{unit}"', '"unit":"u-000000000000"'))
    (output / "_seal").unlink()
    found = {(f.path, f.unit) for f in look(copied, deep=False).faults}
    assert ("_commits/score", unit) in found
    assert ("_commits/score", "u-000000000000") in found
    assert not repair(pipeline(copied, lambda: spark)).left.faults
    assert rows(output) == wanted


def test_a_seal_that_is_gone_is_a_fault(copied: Config) -> None:
    (Path(copied.output) / "_seal").unlink()
    (fault,) = look(copied, deep=False).faults
    assert (fault.path, fault.mend) == ("_seal", Mend.SEAL)
    assert not repair(pipeline(copied)).left.faults
    assert not look(copied).faults


@pytest.mark.spark
def test_what_only_the_input_can_make_again_stays_where_that_is_another(
    copied: Config, world: Path, tmp_path: Path, spark: Any
) -> None:
    """Catches: a repair that takes away what it then cannot make, or makes of other images than were read."""
    shutil.copytree(world, tmp_path / "world")
    shards = sorted((tmp_path / "world" / "pairs").glob("*.parquet"))
    config = settings(tmp_path / "world", tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    run(settings(tmp_path / "world", tmp_path / "out"), spark)
    output = tmp_path / "out"
    wanted = rows(output)
    whole = shards[0].read_bytes()
    assert look(config).changed["input"] == 0
    unit = next(
        p.stem
        for p in (output / "units").glob("u-*.json")
        if shards[0].name in json.loads(p.read_text())["files"][0]["path"]
    )
    (scores,) = (output / "scores" / f"unit={unit}").glob("*.parquet")
    scores.write_bytes(scores.read_bytes()[:-1] + b"x")
    lying = {p: p.read_bytes() for p in output.rglob("unit=*/*.parquet")}
    for other in (whole[:-1], b""):
        shards[0].write_bytes(other) if other else shards[0].unlink()
        said = look(config)
        assert said.changed["input"] == 1
        assert "1 CHANGED" in "\n".join(told(said))
        left = repair(pipeline(config, lambda: spark)).left
        assert [(f.stage, f.unit) for f in left.faults] == [("score", unit)]
        assert [n for n in left.notes if f"unit {unit} is left as it is" in n]
        assert {p: p.read_bytes() for p in lying} == lying

    # Images of the same length and names, in a table that bears its old digest.
    table = pq.read_table(tmp_path / "world" / "pairs" / shards[1].name)
    pq.write_table(table, shards[0])
    record = output / "units" / f"{unit}.json"
    tree = json.loads(record.read_text())
    tree["files"][0] |= {"size": shards[0].stat().st_size, "modified": shards[0].stat().st_mtime_ns}
    tree["files"][0] |= {"digest": files.fingerprint(str(shards[0]))}
    record.write_text(json.dumps(tree))
    (output / "_seal").unlink()
    left = repair(pipeline(config, lambda: spark)).left
    assert [f for f in left.faults if "holds other rows" in f.what and f.unit == unit], left.faults

    record.write_text(
        json.dumps({**tree, "files": [{**tree["files"][0], "digest": files.fingerprint(str(shards[0]))}]})
    )
    del wanted


@pytest.mark.long
@pytest.mark.spark
def test_what_was_purged_is_purged_again_after_a_repair_that_was_killed(
    copied: Config, tmp_path: Path, spark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: rows of somebody who asked to be forgotten, back for good."""
    output = Path(copied.output)
    images = pq.read_table(next((output / "i2e" / "images").rglob("*.parquet")), columns=["url"], partitioning=None)
    address = images["url"][0].as_py()
    (tmp_path / "gone.txt").write_text(f"{address}\n")
    config = copied.model_copy(
        update={"select": copied.select.model_copy(update={"exclude": (str(tmp_path / "gone.txt"),)})}
    )
    running.run(pipeline(config, lambda: spark))
    clean(pipeline(config, lambda: spark), purged=True)
    assert not look(config).faults
    wanted = rows(output)
    assert address not in repr(wanted["pairs"])
    unit = next(u for u, c in pipeline(config).tables.commits("pairs").items() if c.facts.get("purged"))
    for path in pipeline(config).tables.commits("pairs")[unit].files["pairs"]:
        (output / "pairs" / path.path).write_bytes(b"")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(running, "purge_noted", killed)
        with pytest.raises(KeyboardInterrupt):
            repair(pipeline(config, lambda: spark))
    assert address in repr(rows(output)["pairs"])
    running.run(pipeline(config, lambda: spark))
    assert rows(output)["pairs"] == wanted["pairs"]
    assert not look(config).faults


def test_settings_and_records_are_read_when_nobody_else_writes(copied: Config) -> None:
    """Catches: a repair by what it knew before another command was done."""
    other = copied.model_copy(update={"label": copied.label.model_copy(update={"max_labels_per_image": 3})})
    asked = []

    def now() -> Config:
        assert (Path(copied.output) / "_lock").exists()
        asked.append(other)
        return other

    repair(pipeline(copied), settings=now)
    assert asked == [other]


def test_what_is_written_while_it_is_looked_at_is_of_no_one_state(
    copied: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(*_: Any) -> Verified:
        (Path(copied.output) / "_commits" / "score" / "journal-000000005.json").write_text("{}")
        return Verified()

    monkeypatch.setattr(verifying, "look_through", meanwhile)
    with pytest.raises(verifying.WrittenMeanwhile, match="verify it again"):
        look(copied)


@pytest.mark.long
@pytest.mark.spark
def test_class_indices_stay_where_the_table_that_knew_them_is_lost(world: Path, tmp_path: Path, spark: Any) -> None:
    """Catches: a history of class indices that one table alone holds."""
    first = settings(world, tmp_path / "out", shards="0000[12]")
    run(first, spark)
    grown = settings(world, tmp_path / "out")
    run(grown, spark)
    wanted = content(grown.output)
    whole = pipeline(grown, lambda: spark)
    whole.forget(min((tmp_path / "out" / "units").glob("u-*.json")).stem)
    run(grown, spark)
    wanted = content(grown.output)
    indices = pq.read_table(tmp_path / "out" / "i2e" / "entities").select(["entity_id", "class_index"]).to_pylist()
    assert any(e["retired"] for e in pq.read_table(tmp_path / "out" / "i2e" / "entities").to_pylist())
    anew = settings(world, tmp_path / "anew")
    run(anew, spark)
    others = pq.read_table(tmp_path / "anew" / "i2e" / "entities").select(["entity_id", "class_index"]).to_pylist()
    assert {e["entity_id"]: e["class_index"] for e in indices} != {e["entity_id"]: e["class_index"] for e in others}
    for damaged in (("i2e/statistics/entities", "selection"), ("i2e/entities",), ("i2e/statistics/buckets",)):
        for table in ("entity_statistics", *damaged):
            for file in (tmp_path / "out" / table).rglob("*.parquet"):
                content_now = file.read_bytes()
                # Of the same length, so that no run finds it by itself.
                file.write_bytes(content_now[:-9] if table == "entity_statistics" else bytes(len(content_now)))
        assert not repair(pipeline(grown, lambda: spark)).left.faults
        now = pq.read_table(tmp_path / "out" / "i2e" / "entities").select(["entity_id", "class_index"]).to_pylist()
        assert now == indices
        assert content(grown.output) == wanted


def test_a_dataset_by_itself_is_read_whatever_its_bytes_are(copied: Config, tmp_path: Path) -> None:
    """Catches: damage that ends the command that looks for it."""
    folder = tmp_path / "alone" / "i2e"
    shutil.copytree(Path(copied.output) / "i2e", folder)
    (folder / digests.LIST).unlink()  # as earlier versions left it
    assert not verify_dataset(str(folder), deep=True).faults
    lying = sorted(p for p in folder.rglob("*") if p.is_file())
    found = 0
    for n in range(60):
        draw = random.Random(n)
        path = draw.choice([p for p in lying if p.suffix == ".parquet" and p.parts[-3] in ("images", "entities")])
        before = path.read_bytes()
        damage(path, lying, draw)
        faults = verify_dataset(str(folder.parent), deep=True, sample=1000).faults
        assert all(f.mend is Mend.COPY for f in faults)
        found += bool(faults)
        path.write_bytes(before)
    assert found > 40  # bytes of texts bear no digest
    urls = 0
    for path in sorted((folder / "images").rglob("*.parquet")):
        column = pq.read_metadata(path).row_group(0).column(pq.read_schema(path).names.index("url"))
        before = path.read_bytes()
        at = column.data_page_offset + column.total_compressed_size // 2
        path.write_bytes(before[:at] + bytes(64) + before[at + 64 :])
        urls += any("its pages" in f.what for f in verify_dataset(str(folder.parent), deep=True).faults)
        path.write_bytes(before)
    assert urls
    for path in (folder / "entities").rglob("*.parquet"):
        pq.write_table(pq.read_table(path, partitioning=None).slice(0, 0), path)
    assert verify_dataset(str(folder)).faults


def test_a_dataset_by_itself_has_a_list_of_digests(copied: Config, tmp_path: Path) -> None:
    """Catches: a copy of which a wrong byte of a text is not seen, or a file too many or too few."""
    folder = tmp_path / "alone" / "i2e"
    shutil.copytree(Path(copied.output) / "i2e", folder)
    named = digests.listed((folder / digests.LIST).read_bytes())
    whole = verify_dataset(str(folder), deep=True)
    assert not whole.faults
    assert whole.looked_at["digests"] == len(named)
    counted = {
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_file() and not {"_delta_log", FOLDER} & set(p.parts)
    }
    assert named.keys() == counted - {digests.LIST}
    if shutil.which("b2sum"):
        done = subprocess.run(["b2sum", "-l", "128", "-c", digests.LIST], cwd=folder, capture_output=True, text=True)
        assert (done.returncode, done.stdout.count(": OK")) == (0, len(named)), done.stderr
    lying = sorted(folder / path for path in named)
    for n in range(60):
        draw = random.Random(n)
        path = draw.choice(lying)
        before = path.read_bytes()
        damage(path, lying, draw)
        faults = verify_dataset(str(folder), deep=True).faults
        assert path.relative_to(folder).as_posix() in {f.path for f in faults}, path
        assert {f.mend for f in faults} == {Mend.COPY}
        path.write_bytes(before)
    stray = next(p for p in lying if "entities" in p.parts)
    if copied.storage.format == "parquet":
        shutil.copy(stray, stray.with_name("part-9.parquet"))
        assert any("does not name it" in f.what for f in verify_dataset(str(folder)).faults)
        stray.with_name("part-9.parquet").unlink()
    listed = (folder / digests.LIST).read_text()
    for wrong in ("x", listed + listed, listed.replace("  ", " "), listed.replace("  README.md", "  ../README.md")):
        (folder / digests.LIST).write_text(wrong)
        assert [f.path for f in verify_dataset(str(folder)).faults] == [digests.LIST]


def test_the_list_of_digests_is_what_the_records_say(copied: Config) -> None:
    """Catches: a list of the dataset before, which calls the one that lies there damaged."""
    path = Path(copied.output) / "i2e" / digests.LIST
    written = path.read_bytes()
    path.write_bytes(written.replace(b"a", b"b"))
    (fault,) = look(copied, deep=False).faults
    assert (fault.path, fault.mend) == (f"i2e/{digests.LIST}", Mend.LIST)
    assert not repair(pipeline(copied)).left.faults
    assert path.read_bytes() == written
    path.unlink()  # by a command that was killed before it was written
    with pipeline(copied).exclusive():
        pass
    assert path.read_bytes() == written
    assert not look(copied).faults


def rewritten(config: Config, table: str, change: Callable[[pa.Table], pa.Table]) -> Path:
    """Change rows of a table's first file, and let its commit record say that this was written."""
    output = Path(config.output)
    path = next(p for p in sorted((output / table).rglob("*.parquet")) if pq.read_metadata(p).num_rows > 1)
    old = (path.stat().st_size, digests.of_file(str(path)))
    pq.write_table(change(pq.read_table(path, partitioning=None)), path)
    new = (path.stat().st_size, digests.of_file(str(path)))
    for journal in (output / "_commits").rglob("journal-*.json"):
        text = journal.read_text()
        for was, now in zip(old, new, strict=True):
            text = text.replace(str(was), str(now)) if path.name in text else text
        journal.write_text(text)
    (output / "_seal").unlink()
    return path


def _swapped_labels(table: pa.Table) -> pa.Table:
    found = table.to_pylist()
    found[0]["labels"][0]["class_index"] += 1
    return pa.Table.from_pylist(found, table.schema)


def _other_image(table: pa.Table) -> pa.Table:
    found = table.to_pylist()
    found[0]["image"], found[1]["image"] = found[1]["image"], found[0]["image"]
    return pa.Table.from_pylist(found, table.schema)


def _no_image(table: pa.Table) -> pa.Table:
    found = table.to_pylist()
    found[0]["image"]["bytes"] = b"\xff\xd8\xff"
    found[0]["image_id"] = digests.of_bytes(b"\xff\xd8\xff")
    return pa.Table.from_pylist(found, table.schema)


def _twice(table: pa.Table) -> pa.Table:
    found = table.to_pylist()
    return pa.Table.from_pylist([found[0], *found[:-1]], table.schema)


def _two_classes(table: pa.Table) -> pa.Table:
    found = table.to_pylist()
    found[1]["entity_id"] = found[0]["entity_id"]
    return pa.Table.from_pylist(found, table.schema)


def _numbered_from_one(table: pa.Table) -> pa.Table:
    return table.set_column(0, table.schema.field(0), pa.array(range(1, len(table) + 1), pa.int32()))


@pytest.mark.parametrize(
    ("table", "change", "check", "says"),
    [
        ("i2e/images", _swapped_labels, "labels", "disagree with the class index"),
        ("i2e/images", _other_image, "images", "is not the one that its id names"),
        ("i2e/images", _no_image, "images", "cannot be decoded"),
        ("i2e/images", _twice, "labels", "stand twice"),
        ("i2e/entities", _two_classes, "dataset", "two classes"),
        ("i2e/entities", _numbered_from_one, "dataset", "class ind"),
        ("labels", lambda t: t.slice(1), "footers", "rows"),
        ("labels", lambda t: t.append_column("x", pa.nulls(len(t), pa.int8())), "footers", "that its table has not: x"),
    ],
)
def test_rows_that_are_wrong_in_whole_files_are_found(
    copied: Config, table: str, change: Callable[[pa.Table], pa.Table], check: str, says: str
) -> None:
    path = rewritten(copied, table, change)
    if copied.storage.format == "delta":
        shutil.rmtree(Path(copied.output) / table / "_delta_log")
    faults = [f for f in verify(pipeline(copied), deep=True, sample=1000).faults if f.check == check]
    assert faults, path
    assert says in faults[0].what
    alone = Path(copied.output).parent / "alone"
    if table == "i2e/images" and copied.storage.format == "parquet":
        shutil.copytree(Path(copied.output) / "i2e", alone)
        (alone / digests.LIST).unlink()  # which would say that the file is another
        assert [f.check for f in verify_dataset(str(alone), deep=True, sample=1000).faults][:1] == [check]


def test_counts_of_the_manifest_are_compared(copied: Config) -> None:
    path = Path(copied.output) / "i2e" / "manifest.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "labels": tree["labels"] + 1, "entities": 3}))
    (Path(copied.output) / "_seal").unlink()
    said = [f.what for f in look(copied).faults]
    assert [s for s in said if "entities" in s and "says 3" in s]


def test_who_asked_to_be_left_out_is_looked_for(copied: Config, tmp_path: Path) -> None:
    images = pq.read_table(
        Path(copied.output) / "i2e" / "images", columns=["image_id", "url", "perceptual_hash", "labels"]
    )
    row = images.to_pylist()[0]
    for name, item, says in (
        ("a.txt", row["url"], "by address"),
        ("b.txt", row["image_id"], "by image"),
        ("c.txt", row["perceptual_hash"], "by perceptual hash"),
        ("d.txt", f"Q{row['labels'][0]['entity_id']}", "by entity"),
        ("e.txt", "nothing.example", None),
    ):
        (tmp_path / name).write_text(f"{item}\n")
        config = copied.model_copy(
            update={"select": copied.select.model_copy(update={"exclude": (str(tmp_path / name),)})}
        )
        faults = look(config, deep=False).faults
        assert [f.mend for f in faults] == ([Mend.RUN] if says else [])
        assert says is None or says in faults[0].what
    missing = copied.model_copy(
        update={"select": copied.select.model_copy(update={"exclude": (str(tmp_path / "no"),)})}
    )
    assert [n for n in look(missing, deep=False).notes if "select.exclude cannot be read" in n]


def test_a_file_of_nobody_among_published_ones_is_a_fault(copied: Config) -> None:
    one = next((Path(copied.output) / "i2e" / "images").rglob("*.parquet"))
    places = [one.parent, one.parent.parent, one.parent.parent.parent / "old"]
    for place in places:
        place.mkdir(exist_ok=True)
        shutil.copy(one, place / "part-99999-0-feedbeef.parquet")
    faults = [f for f in look(copied).faults if f.check == "files"]
    # Delta's readers take no file that the log does not name.
    assert [f.mend for f in faults] == [Mend.REMOVE] * (2 if copied.storage.format == "delta" else 3)
    assert all(f.path.endswith("feedbeef.parquet") for f in faults)


def test_what_a_command_that_was_killed_left_is_no_damage(copied: Config) -> None:
    """Catches: false alarms for what the next run puts right."""
    output = Path(copied.output)
    (output / "_unsealed").write_text("{}\n")
    (output / "report.html").write_text("half")
    (output / "_commits" / "label" / "journal-000000009.json").write_text(
        '{"anew":false,"gone":[],"components":{},"commits":[]}'
    )
    found = look(copied)
    assert not found.faults
    assert [n for n in found.notes if "was cut off" in n]


@pytest.mark.spark
def test_a_run_after_the_damage_does_not_take_it_for_its_own_work(copied: Config, spark: Any) -> None:
    page = Path(copied.output) / "report.html"
    page.write_bytes(page.read_bytes().replace(b"e", b"a", 1))
    pipeline(copied, lambda: spark).run()
    assert [f.path for f in look(copied).faults] == ["report.html"]
    repair(pipeline(copied, lambda: spark))
    assert not look(copied).faults


def test_an_output_that_is_written_is_not_looked_at_and_nothing_is_said_so(
    copied: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with exclusive(copied.output), monkeypatch.context() as patched:
        patched.setattr("i2e_pipeline.core.lock._alive", lambda process: True)
        with pytest.raises(Held, match="is being written by process"):
            look(copied)
    with pytest.raises(NothingToVerify, match="holds nothing"):
        verify(pipeline(copied.model_copy(update={"output": str(tmp_path / "none")})))
    with pytest.raises(NothingToVerify, match="neither a run's output nor a dataset"):
        verify_dataset(str(tmp_path / "none"))


def test_outputs_of_before_are_looked_at_as_far_as_they_say(copied: Config) -> None:
    output = Path(copied.output)
    (output / "_seal").unlink()
    for journal in (output / "_commits").rglob("journal-*.json"):
        tree = json.loads(journal.read_text())
        for commit in tree["commits"]:
            for made in commit["files"].values():
                for file in made:
                    del file["digest"]
        journal.write_text(json.dumps(tree))
    found = look(copied)
    assert not found.faults
    assert [n for n in found.notes if "bear no digest" in n]
    assert [n for n in found.notes if "is not sealed" in n]
    one = max((output / "scores").rglob("*.parquet"), key=lambda p: p.stat().st_size)
    content_ = bytearray(one.read_bytes())
    content_[4:40] = bytes(36)
    one.write_bytes(content_)
    assert [f.check for f in look(copied).faults] == ["digests"]


@pytest.mark.spark
def test_workers_name_the_same_content(copied: Config, spark: Any, tmp_path: Path) -> None:
    paths = [str(p) for p in files_of(copied)[:20]]
    assert digests_by_workers(spark, [*paths, str(tmp_path / "none")]) == [*map(digests.of_file, paths), None]


def test_an_output_of_another_checkout_is_looked_at(copied: Config, capsys: Any) -> None:
    """Catches: a folder that cannot be verified because the recognizer of the run that made it lies elsewhere; nothing
    of it is loaded."""
    keep(
        copied.model_copy(update={"extract": copied.extract.model_copy(update={"recognizer": "/other/checkout/r"})}),
        copied.output,
    )
    (Path(copied.output) / "_seal").unlink()
    for command, code in (("verify", ExitCode.FAULT), ("repair", ExitCode.MISTAKE)):
        with pytest.raises(SystemExit) as ended:
            cli.main([command, copied.output])
        assert ended.value.code == code
    told_ = capsys.readouterr()
    assert "_seal: is not there" in told_.out
    assert "sets extract.recognizer" in told_.err
