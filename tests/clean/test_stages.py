"""Both stages in the chain: planted copies go, with the reason, and a grown dataset is the one that is built anew."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from i2e_pipeline import stages
from i2e_pipeline.core.config import Config
from i2e_pipeline.core.files import read_json
from i2e_pipeline.core.ids import content_id
from i2e_pipeline.engine.stage import StageError
from i2e_pipeline.stages import pipeline
from tests.chain import commits, content, run, settings, statistics
from tests.engine.toys import worked

COPIES = 12


def half(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2))


def twice(image: Image.Image) -> Image.Image:
    return image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC)


def mirror(image: Image.Image) -> Image.Image:
    return half(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


EDITS = (half, twice, mirror)


def edited(stored: bytes, edit: Callable[[Image.Image], Image.Image]) -> bytes:
    made = io.BytesIO()
    edit(Image.open(io.BytesIO(stored)).convert("RGB")).save(made, "JPEG", quality=90)
    return made.getvalue()


@pytest.fixture(scope="session")
def copied(world: Path, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The world's shards, and one more of copies of published images, with their texts; copy -> original, by id."""
    folder = tmp_path_factory.mktemp("copied")
    for name in ("dump.json.bz2", "popularity.csv", "anchors.tsv"):
        (folder / name).symlink_to(world / name)
    (folder / "pairs").mkdir()
    tables = {path.name: pq.read_table(path) for path in sorted((world / "pairs").glob("*.parquet"))}
    for name in tables:
        (folder / "pairs" / name).symlink_to(world / "pairs" / name)
    published = content(whole)[0]
    rows, of = [], {}
    for row in pa.concat_tables(tables.values()).to_pylist():
        if row["jpg"] and content_id(row["jpg"]).hex() in published and len(rows) < COPIES:
            edit = EDITS[len(rows) % len(EDITS)]
            copy = edited(row["jpg"], edit)
            of[content_id(copy).hex()] = content_id(row["jpg"]).hex()
            rows.append({**row, "jpg": copy, "url": f"https://copies.example/{len(rows)}.jpg", "key": f"c{len(rows)}"})
    schema = next(iter(tables.values())).schema
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "pairs" / "copies.parquet")
    return folder, of


def rejected(output: str, stage: str) -> list[dict[str, Any]]:
    found = (
        pq.read_table(f"{output}/rejects/stage={stage}") if Path(f"{output}/rejects/stage={stage}").exists() else None
    )
    return [] if found is None else found.to_pylist()


def told(config: Config, stage: str) -> dict[str, int]:
    counts: dict[str, int] = read_json(f"{config.output}/i2e/manifest.json")["told"][stage]["counts"]
    return counts


def test_off_nothing_knows_of_them() -> None:
    """Catches: a section that costs everybody their dataset again."""
    plain = stages.from_tree({}, "test")
    other = stages.from_tree({"clean": {"near_bits": 3, "mirrored": False}}, "test")
    assert [s.name for s in stages.stages(other)] == [s.name for s in stages.built_in()]
    for one, two in zip(stages.stages(plain), stages.stages(other), strict=True):
        if one.name in ("label", "select", "publish", "finish"):
            assert one.settings(plain) == two.settings(other)
    on = stages.from_tree({"clean": {"near_duplicates": True, "evaluation_sets": {"a": "b"}}}, "test")
    names = [s.name for s in stages.stages(on)]
    at = names.index("label")
    assert names[at : at + 4] == ["label", "decontaminate", "near_duplicates", "select"]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["parquet", pytest.param("delta", marks=(pytest.mark.delta, pytest.mark.long))])
def test_copies_are_left_out_and_growth_changes_nothing(
    copied: tuple[Path, dict[str, str]], whole: Path, tmp_path: Path, spark: Any, form: str
) -> None:
    """Without the copies nothing is left out. With them the larger one of each two stands, whichever came first."""
    world, of = copied
    on = ("clean.near_duplicates=true", f"storage.format={form}")
    run(settings(world, tmp_path / "grown", *on, shards="0*"), spark)
    before = commits(tmp_path / "grown", "publish")
    grown = settings(world, tmp_path / "grown", *on)
    run(grown, spark)
    # In other units: of the copies' texts, which others have, each is one again.
    fresh = settings(world, tmp_path / "fresh", *on, "session.shuffle_partitions=3", "pairs.files_per_unit=100")
    run(fresh, spark)
    assert len(commits(tmp_path / "fresh", "publish")) == 1
    told_of = statistics(tmp_path / "fresh")
    assert statistics(tmp_path / "grown") == told_of
    every = told_of["entities"].values()
    assert all(sum(e[name] or 0 for e in every) > 0 for name in ("texts", "mentions", "mentions_first"))
    assert all(any(e[name] for e in every) for name in ("clip_scores", "surfaces", "scripts", "domains", "confusions"))
    assert any(e["texts"] < e["mentions"] for e in every)
    if form == "parquet":
        assert content(tmp_path / "grown") == content(tmp_path / "fresh")
        images = content(tmp_path / "fresh")[0]
        for number, (copy, original) in enumerate(of.items()):
            stands, gone = (copy, original) if EDITS[number % 3] is twice else (original, copy)
            assert stands in images, EDITS[number % 3]
            assert gone not in images, EDITS[number % 3]
        rows = rejected(fresh.output, "near_duplicates")
        assert {row["reason"] for row in rows} == {"near_duplicate"}
        assert len(rows) >= COPIES
        stand = {(number % 3 == 1 and copy) or original for number, (copy, original) in enumerate(of.items())}
        assert {row["detail"] for row in rows} == {f"image {image} stands for it" for image in stand}
    assert told(fresh, "near_duplicates") == {
        "images that look like another": COPIES,
        "groups of images that look the same": COPIES,
        "images in the largest group": 2,
    }
    # Of the units of before those were written again that held the smaller one of two.
    after = commits(tmp_path / "grown", "publish")
    assert len(after) == len(before) + 1
    assert any(after[unit].fingerprint != commit.fingerprint for unit, commit in before.items())

    # Off again, copies are images as any.
    run(settings(world, tmp_path / "grown", f"storage.format={form}"), spark)
    if form == "parquet":
        assert content(tmp_path / "grown")[0].keys() == content(whole)[0].keys() | of.keys()


@pytest.mark.slow
def test_vectors_find_what_hashes_do_not(copied: tuple[Path, dict[str, str]], tmp_path: Path, spark: Any) -> None:
    world, of = copied
    by_vector = ("clean.near_duplicates=true", "clean.near_bits=0", "clean.mirrored=false", "clean.near_cosine=0.985")
    config = settings(world, tmp_path / "out", *by_vector)
    run(config, spark)
    gone = {row["detail"].split()[1] for row in rejected(config.output, "near_duplicates")}
    scaled = [original for number, original in enumerate(of.values()) if EDITS[number % 3] is half]
    assert len(gone & set(scaled)) >= len(scaled) - 1
    with pytest.raises(StageError, match="near_cosine compares"):
        pipeline(settings(world, tmp_path / "out", *by_vector, "score.keep_vectors=false"), lambda: spark).run()


@pytest.mark.slow
def test_images_of_evaluation_sets_are_left_out_and_told_by_set(
    world: Path, whole: Path, tmp_path: Path, spark: Any
) -> None:
    published = content(whole)[0]
    stored = {
        content_id(row["jpg"]).hex(): row["jpg"]
        for path in sorted((world / "pairs").glob("*.parquet"))
        for row in pq.read_table(path, columns=["jpg"]).to_pylist()
        if row["jpg"]
    }
    some = sorted(published)[:9]
    for number, image in enumerate(some[:6]):
        place = tmp_path / "sets" / f"{number}.jpg"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(stored[image] if number < 3 else edited(stored[image], EDITS[number % 3]))
    (tmp_path / "listed.txt").write_text("\n".join(some[6:]))
    sets = f"clean.evaluation_sets={{pictures: {tmp_path}/sets, listed: {tmp_path}/listed.txt}}"
    config = settings(world, tmp_path / "out", sets)
    run(config, spark)
    images = content(config.output)[0]
    assert not set(some) & images.keys()
    assert len(images) == len(published) - len(some)
    counts = told(config, "decontaminate")
    assert counts["pairs with an image of pictures"] >= 6
    assert counts["pairs with an image of listed"] >= 3
    details = Counter(row["detail"] for row in rejected(config.output, "decontaminate"))
    assert set(details) == {"pictures", "pictures: within 31 bits of 256", "listed"}

    # Another set: texts, links, scores and labels stay; a unit without one of its images is not written again.
    (tmp_path / "listed.txt").write_text("\n".join(some[6:8]))
    _, states = pipeline(config, lambda: spark).run()
    done = worked(states)
    assert {stage for stage, units in done.items() if units} == {"decontaminate", "select", "publish", "finish"}
    assert done["publish"] == 1
    assert some[8] in content(config.output)[0]
