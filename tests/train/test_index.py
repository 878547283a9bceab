"""The index: made once by all ranks together, kept beside the dataset, and never taken for that of another state."""

from __future__ import annotations

import logging
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist

from i2e_pipeline.core.config import TrainConfig
from i2e_pipeline.core.splits import held_out_images
from i2e_pipeline.dataset.published import DatasetError, open_published
from i2e_pipeline.train import indexed
from i2e_pipeline.train.groups import Groups
from i2e_pipeline.train.index import from_bytes, to_bytes
from i2e_pipeline.train.index_making import Making
from i2e_pipeline.train.indexed import FOLDER, open_indexed
from i2e_pipeline.train.parallel import World
from i2e_pipeline.train.samples import Samples
from tests.train.small_dataset import entity_row, image_ids, image_row, trained, write_dataset

CONFIG = TrainConfig(
    data={"hold_out_entities": 0.3, "hold_out_images": 0.2, "min_label_score": 0.5}, evaluate_images=20
)
CLASSES = 12


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """200 images in seven files of row groups of five and fewer, some of them with several labels or none."""
    rows = [
        image_row(i, bytes=b"%d" % i, labels=[(i % CLASSES, 0.9), ((i // 3) % CLASSES, i % 10 / 10)][: i % 11])
        for i in range(200)
    ]
    entities = [entity_row(c) for c in range(CLASSES)]
    return write_dataset(tmp_path / "i2e", rows, units=7, group=5, entities=entities)


def kept(folder: str) -> list[Path]:
    return sorted(Path(folder, FOLDER).glob("*.npz"))


def opened(folder: str, tmp_path: Path, config: TrainConfig = CONFIG) -> Samples:
    return Samples.of(*open_indexed(folder, config, World(), str(tmp_path / "run")), config)


def same(a: Samples, b: Samples) -> bool:
    return (
        a.published.files == b.published.files
        and a.published.fingerprint == b.published.fingerprint
        and to_bytes(a.published.files, a.index) == to_bytes(b.published.files, b.index)
    )


def test_it_says_what_the_rows_say(folder: str, tmp_path: Path) -> None:
    """By the definition, a row at a time."""
    samples = opened(folder, tmp_path)
    held = set(samples.held_out_entities.tolist())
    assert held
    counts, sides, seen = [], [0] * 5, set()
    for file in samples.published.files:
        rows = pq.read_table(Path(folder, file.path), partitioning=None).to_pylist()
        start = 0
        for size in file.row_group_rows:
            of_group = 0
            for row in rows[start : start + size]:
                sure = sorted((-x["score"], x["class_index"]) for x in row["labels"] if x["score"] >= 0.5)
                halves = np.frombuffer(bytes.fromhex(row["image_id"]), dtype="<u8")[None]
                if not sure:
                    side = 3
                elif sure[0][1] in held:
                    side = 1
                elif held & {x["class_index"] for x in row["labels"]}:
                    side = 4
                else:
                    side = 2 if held_out_images(halves, 0.2)[0] else 0
                sides[side] += 1
                if side == 0:
                    of_group += 1
                    seen |= {c for _, c in sure}
            counts.append(of_group)
            start += size
    assert samples.sizes_G.tolist() == counts
    assert list(samples.index.sides) == sides
    assert min(sides) > 0
    assert samples.index.trained_classes == len(seen)
    assert len(trained(samples).image_ids()) == sides[0] == len(samples)


@pytest.mark.parametrize("ranks", [2, 3, 9])
def test_ranks_make_together_what_one_makes(folder: str, ranks: int) -> None:
    dataset = open_published(folder)
    making = Making.of(folder, dataset.entities, [f.path for f in dataset.files], CONFIG)
    looks = [making.look(r, ranks) for r in range(ranks)]
    assert sum(len(look.files) for look in looks) == 7
    classes = np.maximum.reduce([look.classes_C for look in looks])
    asked_C = making.asked(looks)
    neighbours = [making.neighbours(asked_C, r, ranks) for r in range(ranks)]
    together = making.whole(looks, int(classes.sum()), asked_C, neighbours)
    alone = indexed.build(dataset, CONFIG)
    assert to_bytes(*together) == to_bytes(dataset.files, alone)
    by_workers = making.made(lambda work: [pickle.loads(pickle.dumps(work))(r, ranks) for r in range(ranks)])
    assert to_bytes(*by_workers) == to_bytes(*together)


def test_it_is_made_once(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: footers and labels of all files read at each start."""
    first = opened(folder, tmp_path)
    assert len(kept(folder)) == 1
    assert not (tmp_path / "run").exists()

    def read(*_: object, **__: object) -> None:
        raise AssertionError("a file of the dataset was read")

    for name in ("open_parquet", "as_image_file"):
        monkeypatch.setattr(indexed.published, name, read)
    monkeypatch.setattr(indexed.published, "entities_of", lambda _, found=first.published.entities: found)
    parsed = []
    monkeypatch.setattr(indexed, "from_bytes", lambda content: (parsed.append(content), from_bytes(content))[1])
    assert same(first, opened(folder, tmp_path))
    assert len(parsed) == 1, "of a large dataset it takes seconds"


def test_other_settings_have_another_one(folder: str, tmp_path: Path) -> None:
    first = opened(folder, tmp_path)
    other = opened(folder, tmp_path, TrainConfig(data={"hold_out_entities": 0.3, "hold_out_images": 0.5}))
    assert len(kept(folder)) == 2
    assert len(other) < len(first)
    assert same(first, opened(folder, tmp_path))


def test_another_state_of_the_dataset_has_another_one_and_the_old_one_goes(folder: str, tmp_path: Path) -> None:
    """Catches: rows that are trained on by the numbers of rows that were there before."""
    before = opened(folder, tmp_path)
    old = kept(folder)
    other = Path(write_dataset(tmp_path / "new", [image_row(i, bytes=b"") for i in range(70)], classes=CLASSES))
    for part in ("images", "entities"):
        os.rename(Path(folder, part), tmp_path / f"old {part}")
        os.rename(other / part, Path(folder, part))
    os.replace(other / "manifest.json", Path(folder, "manifest.json"))
    after = opened(folder, tmp_path)
    assert after.index.images == 70 != before.index.images
    assert len(kept(folder)) == 1
    assert kept(folder) != old


@pytest.mark.parametrize("lost", [0, 6])
def test_a_dataset_that_lost_a_file_keeps_the_index_of_the_whole(folder: str, tmp_path: Path, lost: int) -> None:
    """Catches: an index of what is left, which is refused and has taken the good one's place: all is read again when
    the file is back."""
    before = opened(folder, tmp_path)
    place = Path(folder, before.published.files[lost].path)
    index, content = kept(folder), place.read_bytes()
    place.unlink()
    unit = place.parent.name.removeprefix("unit=")
    with pytest.raises(DatasetError, match=rf"is not whole: .*{unit}: 0 of \d+\. Copy it again"):
        opened(folder, tmp_path)
    with pytest.raises(DatasetError, match=rf"{unit}: 0 of"):
        indexed.keep(folder, CONFIG)
    assert kept(folder) == index
    assert not (tmp_path / "run").exists()
    place.write_bytes(content)
    assert same(before, opened(folder, tmp_path))
    assert kept(folder) == index


def test_a_dataset_that_cannot_be_written_has_it_in_the_folder_of_the_training(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = indexed.files.write_bytes

    def write_bytes(path: str, content: bytes) -> None:
        if path.startswith(folder):
            raise PermissionError(13, "not yours")
        write(path, content)

    monkeypatch.setattr(indexed.files, "write_bytes", write_bytes)
    first = opened(folder, tmp_path)
    assert not kept(folder)
    assert "for this training alone" in caplog.text
    (there,) = (tmp_path / "run" / FOLDER).glob("*.npz")
    written = there.stat().st_mtime_ns
    assert same(first, opened(folder, tmp_path))
    assert there.stat().st_mtime_ns == written


@pytest.mark.parametrize("damage", ["cut", "zeros", "empty"])
def test_a_damaged_one_is_made_again(
    folder: str, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = opened(folder, tmp_path)
    (place,) = kept(folder)
    whole = place.read_bytes()
    zeros = whole[:600] + bytes(400) + whole[1000:]
    place.write_bytes({"cut": whole[: len(whole) // 2], "zeros": zeros, "empty": b""}[damage])
    assert same(first, opened(folder, tmp_path))
    assert f"{place} is damaged" in caplog.text
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        assert same(first, opened(folder, tmp_path))
    assert not caplog.text


def test_a_file_that_was_written_over_since_is_not_trained_on_by_the_old_numbers(folder: str, tmp_path: Path) -> None:
    samples = opened(folder, tmp_path)
    path = Path(folder, samples.published.files[0].path)
    table = pq.read_table(path, partitioning=None)
    place = table.schema.get_field_index("labels")
    none = pa.array([[]] * len(table), table.schema.field(place).type)
    unlabelled = table.set_column(place, table.schema.field(place), none)
    pq.write_table(unlabelled, path, row_group_size=5)
    groups = Groups(samples, [])
    group = int(np.flatnonzero(samples.sizes_G)[0])
    with pytest.raises(DatasetError, match=r"row group \d+ has 0 images to train on, and the index .* says \d+"):
        groups.read(group)


def test_rows_of_what_is_evaluated_are_those_images(folder: str, tmp_path: Path) -> None:
    samples = opened(folder, tmp_path)
    of_row, ids = image_ids(samples), set(trained(samples).image_ids())
    assert {of_row[r] for r in samples.held_out.trained_rows} <= ids
    assert not {of_row[r] for r in samples.held_out.entity_rows} & ids
    assert not {of_row[r] for r in samples.held_out.image_rows} & ids
    assert len(samples.held_out.trained_rows) == CONFIG.evaluate_images


def test_a_class_that_the_entities_have_not_names_the_file(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "i2e", [image_row(i, bytes=b"") for i in range(8)], classes=3)
    with pytest.raises(DatasetError, match=r"part-00000-1\.parquet: labels name class 3.*has classes 0 … 2"):
        opened(folder, tmp_path)


@pytest.mark.parametrize("units", [0, 2])
def test_a_dataset_without_a_file_is_refused_in_words(tmp_path: Path, units: int) -> None:
    """Catches: a folder `images` that was not copied, told as a fault of numpy's."""
    folder = write_dataset(tmp_path / "i2e", [image_row(i, bytes=b"") for i in range(8 * units)], units=units)
    shutil.rmtree(Path(folder, "images"), ignore_errors=True)
    with pytest.raises(DatasetError, match=r"0 of 8|holds no image"):
        opened(folder, tmp_path)


def test_a_file_whose_labels_are_damaged_is_named(folder: str, tmp_path: Path) -> None:
    path = next(Path(folder, "images").glob("*/*.parquet"))
    group = pq.read_metadata(path).row_group(0)
    columns = [group.column(c) for c in range(group.num_columns)]
    score = next(c for c in columns if c.path_in_schema.endswith("element.score"))
    first = score.dictionary_page_offset or score.data_page_offset
    content = bytearray(path.read_bytes())
    content[first : first + score.total_compressed_size] = b"\xff" * score.total_compressed_size
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=re.escape(path.name)):
        opened(folder, tmp_path)


class _OtherFails(World):
    def gather_objects(self, value: Any) -> list[Any]:
        return [value, DatasetError("rank 1 sees no manifest")]


def test_a_rank_that_cannot_read_the_dataset_is_heard_by_all(folder: str) -> None:
    """Catches: ranks that wait for one that is gone, and say that gloo's connection was closed."""
    with pytest.raises(DatasetError, match="rank 1 sees no manifest"):
        open_indexed(folder, CONFIG, _OtherFails(0, 2), "nowhere")


def _on_a_machine(rank: int, place: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=2)
    read = indexed.files.read_bytes

    def read_bytes(path: str, *most: int) -> bytes:
        if rank and path.startswith(f"{place}/i2e/{FOLDER}"):
            raise FileNotFoundError(2, "on the other machine", path)
        return read(path, *most)

    indexed.files.read_bytes = read_bytes  # type: ignore[assignment]
    _, index = open_indexed(f"{place}/i2e", CONFIG, World(rank, 2), f"{place}/run")
    Path(place, f"images-{rank}").write_text(str(index.images))
    dist.destroy_process_group()


@pytest.mark.slow
def test_machines_that_each_have_a_copy_of_the_dataset_start(folder: str, tmp_path: Path) -> None:
    """Catches: ranks that look for the index in a folder of the first one's machine."""
    for _ in ("made", "found"):
        torch.multiprocessing.start_processes(_on_a_machine, (str(tmp_path),), nprocs=2, start_method="forkserver")
        assert [(tmp_path / f"images-{rank}").read_text() for rank in (0, 1)] == ["200", "200"]
        (tmp_path / "meet").unlink(missing_ok=True)


def test_every_image_that_is_asked_for_has_a_neighbour_of_its_class(tmp_path: Path) -> None:
    """Catches: neighbours of the first few classes, with which most images can only be told wrong."""
    classes = 300
    rows = [image_row(i, bytes=b"", labels=[(i % classes, 0.9)]) for i in range(20 * classes)]
    folder = write_dataset(tmp_path / "i2e", rows, classes=classes, units=3, group=500)
    config = TrainConfig(data={"hold_out_entities": 0.0, "hold_out_images": 0.01}, evaluate_images=50)
    held = opened(folder, tmp_path, config).held_out
    assert len(held.image_rows) == len(held.trained_rows) == 50
    assert len(set(held.image_classes.tolist())) > 25
    assert set(held.image_classes.tolist()) <= set(held.trained_classes.tolist())
    assert not set(held.image_rows.tolist()) & set(held.trained_rows.tolist())
