"""Work that is not done twice: other links over encoded images, rejected rows tried again, a shard that was mended."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from i2e_pipeline.core import files
from i2e_pipeline.core.config import Config, dump
from i2e_pipeline.engine import merging
from i2e_pipeline.engine.records import Commit
from i2e_pipeline.engine.retrying import Tried, retry
from i2e_pipeline.engine.stage import StageError
from i2e_pipeline.engine.tables import Tables
from i2e_pipeline.engine.units import Units
from i2e_pipeline.inputs.columns import InputError
from i2e_pipeline.score.scoring import IMAGES_ENCODED, VECTORS_THERE
from i2e_pipeline.stages import pipeline
from tests.chain import commits, content, run, settings

pytestmark = pytest.mark.slow


def scored(output: Path) -> dict[str, Commit]:
    return {name.partition("/")[2]: commit for name, commit in commits(output, "score").items()}


def told(output: Path, units: set[str] | None = None) -> Counter[str]:
    """What the records of score say was done, of these units or of all."""
    found: Counter[str] = Counter()
    for unit, commit in scored(output).items():
        if units is None or unit in units:
            found.update(commit.facts["notes"])
    return found


def vectors(output: Path) -> set[tuple[int, int]]:
    """Shard and row of the images that have one."""
    rows = Tables(str(output), catalogue=pipeline(settings("", output)).tables.catalogue).load(
        "image_vectors", scored(output).values(), ["shard", "row"]
    )
    return set(zip(rows["shard"].to_pylist(), rows["row"].to_pylist(), strict=True))


def tried(config: Config, spark: Any, *reasons: str) -> Tried:
    whole = pipeline(config, lambda: spark)
    (one,) = retry(whole, reasons)
    whole.run()
    return one


def rejected(output: Path) -> Counter[str]:
    return sum((Counter(commit.rejected) for commit in scored(output).values()), Counter())


def same_scores(one: Path, other: Path) -> bool:
    """The rows of score and their images' vectors, whatever files they lie in."""
    parts = []
    for output in (one, other):
        tables = pipeline(settings("", output)).tables
        of_score = list(tables.commits("score").values())
        found = tables.load("scores", of_score).sort_by([("pair_id", "ascending"), ("entity_id", "ascending")])
        vectors = tables.load("image_vectors", of_score, ["image_id", "vector"]).sort_by("image_id")
        ids = tables.load("rejects", of_score, ["reason", "id"]).sort_by("id")
        scores = found.select(["pair_id", "entity_id", "image_id", "width", "height", "image_hash"])
        rounded = [[round(c, 4) for c in found["clip_score"].to_pylist()]]
        parts.append((scores, rounded, vectors["image_id"], ids))
    return all(
        a.equals(b) if isinstance(a, pa.Table | pa.ChunkedArray) else a == b for a, b in zip(*parts, strict=True)
    )


@pytest.mark.long
def test_other_links_encode_no_image_again(world: Path, whole: Path, tmp_path: Path, spark: Any) -> None:
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    before = told(output)
    assert before[IMAGES_ENCODED] > 50
    assert before[VECTORS_THERE] == 0
    others = ("extract.profile=fast", "link.context_weight=0.3")
    had = vectors(output)
    assert run(settings(world, output, *others), spark)["score"] == 3
    # Nothing but images that no name had led to an entity.
    assert told(output)[IMAGES_ENCODED] == len(vectors(output)) - len(had) < 5
    assert had <= vectors(output)
    assert told(output)[VECTORS_THERE] > 50
    run(settings(world, tmp_path / "scratch", *others), spark)
    assert content(output) == content(tmp_path / "scratch")

    # And back again: also the images that the other links led to nothing have theirs.
    run(settings(world, output, "score.keep_vectors=false"), spark)
    assert told(output)[IMAGES_ENCODED] == 0
    assert content(output) == content(whole)
    # Turned off, none is kept from then on; turned on, nothing is to do.
    assert not any(f.rows for commit in scored(output).values() for f in commit.files["image_vectors"])
    assert not any(run(settings(world, output), spark).values())


@pytest.mark.long
def test_rows_beyond_a_limit_are_tried_again_under_a_wider_one(
    world: Path, whole: Path, tmp_path: Path, spark: Any
) -> None:
    output = tmp_path / "out"
    narrow, wide = settings(world, output, "score.max_pixels=30000"), settings(world, output)
    run(narrow, spark)
    before = scored(output)
    some = rejected(output)["too_many_pixels"]
    assert some > 20

    with pytest.raises(StageError, match=r"score\.max_pixels was 30000 and is 50000000 now: add --reason too_many_pix"):
        retry(pipeline(wide, lambda: spark), ["truncated_image"])
    with pytest.raises(StageError, match=r"is not as the settings are now \(.*background"):
        retry(pipeline(settings(world, output, "score.background_entities=99"), lambda: spark), ["too_many_pixels"])
    with pytest.raises(StageError, match=r"min_side was 16 and is 17 now: rows that passed would be rejected"):
        retry(
            pipeline(settings(world, output, "score.max_pixels=30000", "score.min_side=17"), lambda: spark),
            ["too_small"],
        )
    with pytest.raises(StageError, match=r"--reason no_mention: stage extract works on all its rows"):
        retry(pipeline(wide, lambda: spark), ["no_mention"])
    with pytest.raises(StageError, match=r"--reason blurred: no such reason.* were rejected for broken_image"):
        retry(pipeline(wide, lambda: spark), ["blurred"])
    assert scored(output) == before

    one = tried(wide, spark, "too_many_pixels")
    assert one.rows == {"too_many_pixels": some}
    assert one.passed + sum(one.rejected.values()) == some
    assert content(output) == content(whole)
    assert same_scores(output, whole)
    # All other rows lie where they lay, and only those that were asked for were worked on.
    for unit, commit in scored(output).items():
        assert {f.path for f in before[unit].files["scores"]} <= {f.path for f in commit.files["scores"]}
        new = sum(f.rows for f in commit.files["image_vectors"] if f not in before[unit].files["image_vectors"])
        assert new == commit.rows_out - before[unit].rows_out
        assert commit.facts["tried_again"] == before[unit].rejected.get("too_many_pixels", 0)
        assert commit.rows_in == commit.rows_out + sum(commit.rejected.values())
    assert not any(run(wide, spark).values())

    # What fails again changes nothing, and nothing behind it is done again.
    one = tried(wide, spark, "truncated_image")
    assert one.passed == 0
    assert one.rejected == one.rows
    assert not any(run(wide, spark).values())
    assert content(output) == content(whole)


def by_path(world: Path, folder: Path) -> tuple[Path, list[Path]]:
    """The pairs of a shard as rows that name image files; and the files."""
    rows = pq.read_table(next((world / "pairs").glob("*.parquet"))).select(["key", "url", "caption", "jpg"]).to_pylist()
    (folder / "images").mkdir(parents=True)
    (folder / "pairs").mkdir()
    named = []
    for n, row in enumerate(rows):
        if row["jpg"]:
            named.append(folder / "images" / f"{n}.jpg")
            named[-1].write_bytes(row["jpg"])
            row["jpg"] = f"{n}.jpg"
        else:
            row["jpg"] = None
    pq.write_table(pa.Table.from_pylist(rows), folder / "pairs" / "0.parquet")
    return folder, named


@pytest.mark.parametrize("storage", ["parquet", pytest.param("delta", marks=[pytest.mark.delta, pytest.mark.long])])
def test_files_that_came_back(world: Path, tmp_path: Path, spark: Any, storage: str) -> None:
    here, images = by_path(world, tmp_path / "by_path")
    options = (f"pairs.path={here}/pairs/*.parquet", f"pairs.image_root={here}/images", f"storage.format={storage}")
    away = tmp_path / "away"
    away.mkdir()
    for image in images[::3]:
        image.rename(away / image.name)
    output = tmp_path / "out"
    run(settings(world, output, *options), spark)
    missing = rejected(output)["missing_image"]
    assert missing > 10
    for image in images[::3]:
        (away / image.name).rename(image)
    assert not any(run(settings(world, output, *options), spark).values())

    one = tried(settings(world, output, *options), spark, "missing_image", "broken_image")
    assert one.rows["missing_image"] == missing
    assert "missing_image" not in one.rejected
    run(settings(world, tmp_path / "scratch", *options), spark)
    if storage == "parquet":
        assert content(output) == content(tmp_path / "scratch")
    else:
        from deltalake import DeltaTable

        read = [
            DeltaTable(f"{o}/i2e/images").to_pyarrow_table().sort_by("image_id") for o in (output, tmp_path / "scratch")
        ]
        columns = ["image_id", "alt_text", "split"]
        assert read[0].select(columns).equals(read[1].select(columns))
        assert DeltaTable(f"{output}/scores").to_pyarrow_table().num_rows == sum(
            f.rows for c in scored(output).values() for f in c.files["scores"]
        )


@pytest.mark.long
def test_images_that_a_plugin_reads(world: Path, tmp_path: Path, spark: Any) -> None:
    """Installed after the run. Python starts anew for each command, as a user's does."""
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    table = pq.read_table(next((world / "pairs").glob("*.parquet")))
    images = table["jpg"].to_pylist()
    for n in range(0, len(images), 2):
        with contextlib.suppress(TypeError, OSError):  # the world holds null and broken images
            made = io.BytesIO()
            pillow_heif.from_pillow(Image.open(io.BytesIO(images[n])).convert("RGB")).save(made, quality=90)
            images[n] = made.getvalue()
    place = table.schema.get_field_index("jpg")
    table = table.set_column(place, table.schema.field("jpg"), pa.array(images, table.schema.field("jpg").type))
    pq.write_table(table, tmp_path / "pairs.parquet")
    without = tmp_path / "without"
    (without / "pillow_heif").mkdir(parents=True)
    (without / "pillow_heif" / "__init__.py").write_text("raise ImportError")
    output = tmp_path / "out"
    config = settings(world, output, f"pairs.path={tmp_path}/pairs.parquet")
    file = tmp_path / "mine.yaml"
    file.write_text(dump(config))
    path = os.pathsep.join(filter(None, (str(without), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "i2e_pipeline.cli", "run", "--config", str(file)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    some = rejected(output)["unsupported_format"]
    assert some > 10
    one = tried(config, spark, "unsupported_format")
    assert (one.rows, one.passed, one.rejected) == ({"unsupported_format": some}, some, {})
    run(settings(world, tmp_path / "scratch", f"pairs.path={tmp_path}/pairs.parquet"), spark)
    assert content(output) == content(tmp_path / "scratch")
    assert same_scores(output, tmp_path / "scratch")


@pytest.mark.long
def test_a_kill_while_rows_are_put_beside_leaves_the_old_or_the_new(
    world: Path, tmp_path: Path, spark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: rows twice, or a unit without its record, after a kill between any two changes of files."""
    output = tmp_path / "first"
    narrow, others = "score.max_pixels=30000", {"shards": "0000[0]"}
    run(settings(world, output, narrow, **others), spark)
    ends: set[int] = set()
    for last in range(1, 40):
        copy = tmp_path / f"out-{last}"
        shutil.copytree(output, copy)
        config = settings(world, copy, **others)
        changes = 0

        def killed(call: Any, at: int = last) -> Any:
            def change(*arguments: Any, **named: Any) -> Any:
                nonlocal changes
                changes += 1
                if changes == at:
                    raise KeyboardInterrupt
                return call(*arguments, **named)

            return change

        with monkeypatch.context() as patch:
            for name in ("move_file", "write_json", "write_bytes", "remove"):
                patch.setattr(files, name, killed(getattr(files, name)))
            patch.setattr(merging.files, "remove", files.remove)
            try:
                retry(pipeline(config, lambda: spark), ["too_many_pixels"])
            except KeyboardInterrupt:
                ends.add(last)
        if last not in ends:
            break
        (copy / "_lock").unlink(missing_ok=True)
        retry(pipeline(config, lambda: spark), ["too_many_pixels"])
        (commit,) = scored(copy).values()
        assert commit.rows_in == commit.rows_out + sum(commit.rejected.values())
        tables = Tables(str(copy))
        assert not tables.missing_files([commit])
        lying = {p.relative_to(copy / "scores").as_posix() for p in (copy / "scores").rglob("*.parquet")}
        assert lying == {f.path for f in commit.files["scores"]}
        assert "too_many_pixels" not in commit.rejected
        shutil.rmtree(copy)
    assert len(ends) > 4


@pytest.mark.long
def test_a_mended_shard_takes_its_old_place(world: Path, whole: Path, tmp_path: Path, spark: Any) -> None:
    mended = tmp_path / "world"
    shutil.copytree(world, mended)
    shards = sorted((mended / "pairs").iterdir())
    bad = pq.read_table(shards[1])
    images = bad["jpg"].to_pylist()
    spoilt = [image[: len(image) // 3] if image and n % 4 == 0 else image for n, image in enumerate(images)]
    texts = [f"Mars and {text}" if text and n % 7 == 0 else text for n, text in enumerate(bad["caption"].to_pylist())]
    worse = bad
    for name, values in (("jpg", pa.array(spoilt, pa.binary())), ("caption", pa.array(texts))):
        worse = worse.set_column(bad.schema.get_field_index(name), name, values.cast(bad.schema.field(name).type))
    pq.write_table(worse, shards[1])
    output = tmp_path / "out"
    config = settings(mended, output)
    run(config, spark)
    before, old = scored(output), {u.name for u in Units(str(output)).known()}

    pq.write_table(bad, shards[1])
    with pytest.raises(InputError, match=r"has changed since unit .* was read from it: `i2e run --replace` takes it"):
        run(config, spark)
    _, states = pipeline(config, lambda: spark).run(replace_changed=True)
    worked = {state.stage.name: len(state.to_do) for state in states}
    (unit,) = {u.name for u in Units(str(output)).known()} - old
    (gone,) = old - {u.name for u in Units(str(output)).known()}
    assert worked["score"] == worked["extract"] == 1
    assert content(output) == content(whole)
    # Only images whose bytes are other ones were encoded; of the old unit nothing is left; the others are as they were.
    now = told(output, {unit})
    assert 0 < now[IMAGES_ENCODED] <= sum(a != b for a, b in zip(images, spoilt, strict=True))
    assert now[VECTORS_THERE] > now[IMAGES_ENCODED]
    extracted = commits(output, "extract")[f"extract/{unit}"]
    assert extracted.rows_in * 0.7 < extracted.facts["taken_over"] < extracted.rows_in
    assert {u: c for u, c in scored(output).items() if u != unit} == {u: c for u, c in before.items() if u != gone}
    assert not [p for p in output.rglob("*") if gone in p.name]
    assert not any(run(config, spark).values())

    # Spoilt again, and mended before a run has ended: it is the unit that it was.
    pq.write_table(worse, shards[1])
    pipeline(config, lambda: spark).run(["pairs"], replace_changed=True)
    pq.write_table(bad, shards[1])
    _, states = pipeline(config, lambda: spark).run(replace_changed=True)
    assert not any(state.to_do for state in states)
    assert content(output) == content(whole)
