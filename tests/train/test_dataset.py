"""Samples and batches: what is trained on, what each batch holds, and what happens to images that cannot be decoded."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from i2e_pipeline.core.config import DataConfig, TrainConfig
from i2e_pipeline.dataset.published import DatasetError, open_published
from i2e_pipeline.train import order as order_module
from i2e_pipeline.train.augment import (
    augmented,
    centred,
    crop_box,
    decoded_side,
    draws,
    scale_by_pillow,
    scale_by_torch,
)
from i2e_pipeline.train.batch import Batch
from i2e_pipeline.train.dataset import Loader, LoaderError, Samples
from i2e_pipeline.train.teacher import open_teacher
from tests.examples import examples
from tests.small_models import picture, stored
from tests.train.small_dataset import entity_row, image_ids, image_row, trained, write_dataset

ALL = {"hold_out_entities": 0.0, "hold_out_images": 0.0}
SIDE = 16


def config(**data: Any) -> TrainConfig:
    other = {k: data.pop(k) for k in ("seed", "accumulate", "text", "recipe") if k in data}
    return TrainConfig(data={"batch_size": 8, "workers": 0, **ALL, **data}, **other)


DRAWN = config(hold_out_entities=None, hold_out_images=None)
"""Held out as the dataset says."""


def samples_of(folder: str, settings: TrainConfig | None = None) -> Samples:
    return Samples.open(open_published(folder), settings or config())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """50 images in two units of four row groups each."""
    return write_dataset(tmp_path_factory.mktemp("dataset") / "i2e", [image_row(i) for i in range(50)])


@pytest.fixture(scope="module")
def samples(folder: str) -> Samples:
    return samples_of(folder)


def ids(numbers: Any) -> set[bytes]:
    return {image_row(i, bytes=b"")["image_id"] for i in numbers}


def tokenizer(texts: list[str]) -> torch.Tensor:
    """A text's letters, so that a test can read tokens back."""
    return torch.tensor([[ord(c) for c in text[:40]] + [0] * (40 - len(text[:40])) for text in texts])


def text_of(tokens_L: torch.Tensor) -> str:
    return "".join(chr(c) for c in tokens_L.tolist() if c)


def batches(samples: Samples, settings: TrainConfig, stop: int, **how: Any) -> list[Batch]:
    return list(Loader(samples, settings, side=SIDE, stop=stop, **how))


def same(a: Batch, b: Batch) -> bool:
    return (
        a.image_ids == b.image_ids and torch.equal(a.pixels_BCHW, b.pixels_BCHW) and torch.equal(a.class_B, b.class_B)
        and (a.tokens_BL is None or torch.equal(a.tokens_BL, b.tokens_BL))
    )  # fmt: skip


# What is trained on


def test_images_of_held_out_entities_are_not_trained_on(tmp_path: Path) -> None:
    """Catches: an image of a held-out entity that stays because its first label is another."""
    entities = [entity_row(c) for c in range(40)]
    rows = [image_row(i, labels=[(i % 40, 0.9), ((i + 1) % 40, 0.8)]) for i in range(200)]
    split = samples_of(write_dataset(tmp_path / "i2e", rows, entities=entities), config(hold_out_entities=0.2))
    held = set(split.held_out_entities.tolist())
    assert 2 <= len(held) <= 16
    assert not held & set(trained(split).class_BK.ravel().tolist())
    assert set(split.held_out.entity_classes.tolist()) <= held
    assert len(split) + len(split.held_out.entity_rows) + split.left_out["shares_held_out"] == 200


def test_a_weak_label_of_a_held_out_entity_keeps_the_image_away_too(tmp_path: Path) -> None:
    entities = [entity_row(c) for c in range(40)]
    rows = [image_row(i, labels=[(i % 40, 0.9), ((i + 1) % 40, 0.1)]) for i in range(200)]
    settings = config(hold_out_entities=0.2, min_label_score=0.5)
    split = samples_of(write_dataset(tmp_path / "i2e", rows, entities=entities), settings)
    shown = {(row["image_id"], label["class_index"]) for row in rows for label in row["labels"]}
    held = set(split.held_out_entities.tolist())
    assert not any((i, c) in shown for i in trained(split).image_ids() for c in held)
    assert split.left_out["shares_held_out"] > 0
    assert split.labels_per_image == 1


def test_the_split_does_not_depend_on_the_seed_or_on_what_else_is_there(tmp_path: Path) -> None:
    rows = [image_row(i) for i in range(100)]
    settings = config(hold_out_images=0.3)

    def held(folder: str, settings: TrainConfig) -> set[bytes]:
        split = samples_of(folder, settings)
        of_row = image_ids(split)
        return {of_row[r] for r in split.held_out.image_rows.tolist()}

    small = held(write_dataset(tmp_path / "a", rows[:50]), settings)
    large = held(write_dataset(tmp_path / "b", rows, units=3), config(hold_out_images=0.3, seed=5))
    assert small == large & ids(range(50))
    assert 15 <= len(large) <= 45


def test_a_salt_holds_out_others_in_the_same_shares_and_stays_under_growth(tmp_path: Path) -> None:
    rows = [image_row(i, labels=[(i % 60, 0.9)]) for i in range(900)]
    entities = [entity_row(c) for c in range(60)]
    folder = write_dataset(tmp_path / "all", rows, entities=entities)
    fewer = write_dataset(tmp_path / "fewer", rows[:600], entities=entities, units=3)

    def held(folder: str, settings: TrainConfig) -> tuple[set[int], set[bytes]]:
        split = samples_of(folder, settings)
        of_row = image_ids(split)
        return set(split.held_out_entities.tolist()), {of_row[r] for r in split.held_out.image_rows.tolist()}

    ways = {None: None, "a": "a", "b": "b"}
    drawn = {salt: held(folder, DRAWN.model_copy(update={"data": DataConfig(hold_out_salt=salt)})) for salt in ways}
    for salt in ("a", "b"):
        others = [drawn[other] for other in ways if other != salt]
        assert 1 <= len(drawn[salt][0]) <= 14
        assert 15 <= len(drawn[salt][1]) <= 80
        assert all(drawn[salt][0] != entities and drawn[salt][1] != images for entities, images in others)
        few = held(fewer, DRAWN.model_copy(update={"data": DataConfig(hold_out_salt=salt)}))
        assert few == (drawn[salt][0], drawn[salt][1] & ids(range(600)))
    none = {"hold_out_entities": 0.0, "hold_out_images": 0.0}
    assert held(folder, config(**none, hold_out_salt="a")) == (set(), set()), (
        "shares that are set hold with a salt, too"
    )


def test_labels_below_the_bar_are_not_trained_on(tmp_path: Path) -> None:
    rows = [
        image_row(0, labels=[(0, 0.9), (1, 0.4)]),
        image_row(1, labels=[(2, 0.4)]),
        image_row(2, labels=[]),
        image_row(3, labels=[(3, 0.8)]),
    ]
    split = samples_of(write_dataset(tmp_path / "i2e", rows, units=1), config(min_label_score=0.5))
    assert trained(split).class_BK.tolist() == [[0], [3]]
    assert split.left_out == {"unlabelled": 2, "shares_held_out": 0}
    assert split.classes == 4


def test_datasets_of_format_1_are_read(folder: str, samples: Samples, tmp_path: Path) -> None:
    """Ids as bytes, of any size as a Delta table has them once it was compacted, and no `split`."""
    other = Path(write_dataset(tmp_path / "i2e", [image_row(i) for i in range(50)], format_version=1))
    old = samples_of(str(other))
    assert trained(old).image_ids() == trained(samples).image_ids() == tuple(image_ids(samples))
    drawn, by_column = samples_of(str(other), DRAWN), samples_of(folder, DRAWN)
    assert trained(drawn).image_ids() == trained(by_column).image_ids()
    assert len(by_column.held_out.image_rows) + len(by_column.held_out.entity_rows) > 0
    assert (drawn.held_out.image_rows == by_column.held_out.image_rows).all()
    for file in other.glob("images/*/*.parquet"):
        table = pq.read_table(file, partitioning=None)
        plain = table.set_column(0, "image_id", table.column(0).cast(pa.binary()))
        pq.write_table(plain, file, row_group_size=8)
    assert trained(samples_of(str(other))).image_ids() == trained(samples).image_ids()


def test_the_column_split_says_what_is_held_out(tmp_path: Path) -> None:
    rows = [image_row(i) | {"split": "validation" if i % 5 == 0 else "train"} for i in range(40)]
    entities = [entity_row(c) | {"split": "test" if c == 2 else "train"} for c in range(4)]
    folder = write_dataset(tmp_path / "i2e", rows, entities=entities)
    split = samples_of(folder, DRAWN)
    assert split.held_out_entities.tolist() == [2]
    of_row = image_ids(split)
    assert {of_row[r] for r in split.held_out.image_rows.tolist()} == ids(i for i in range(0, 40, 5) if i % 4 != 2)
    assert {of_row[r] for r in split.held_out.entity_rows.tolist()} == ids(range(2, 40, 4))
    own = samples_of(folder, config(hold_out_entities=0.0, hold_out_images=0.0))
    assert len(own) == 40


def test_an_image_of_the_test_is_not_trained_on_whatever_its_labels_say(tmp_path: Path) -> None:
    """Catches: an image whose label of a held-out entity was not published, among those that are trained on."""
    rows = [image_row(i) | {"split": "test" if i % 10 == 1 else "train"} for i in range(40)]
    entities = [entity_row(c) | {"split": "test" if c == 2 else "train"} for c in range(4)]
    split = samples_of(write_dataset(tmp_path / "i2e", rows, entities=entities), DRAWN)
    assert set(trained(split).image_ids()) == ids(i for i in range(40) if i % 4 != 2 and i % 10 != 1)
    assert split.left_out["shares_held_out"] == 4
    assert not len(split.held_out.image_rows)


@pytest.mark.parametrize("word", ["dev", "Validation"])
def test_a_split_of_other_words_is_refused(tmp_path: Path, word: str) -> None:
    """Catches: what was to be held out, trained on without a word."""
    folder = write_dataset(tmp_path / "i2e", [image_row(i, split=word if i == 7 else "train") for i in range(16)])
    with pytest.raises(
        DatasetError, match=f"the column split holds {word!r}, and train, validation and test are known"
    ):
        samples_of(folder, DRAWN)
    assert len(samples_of(folder)) == 16, "shares of one's own do not look at it"


@pytest.mark.parametrize(
    ("rows", "data", "message"),
    [
        ([image_row(0, labels=[])], {}, "none of its 1 images has a label.*label.threshold"),
        ([image_row(0, labels=[(0, 0.2)])], {"min_label_score": 0.5}, "no label reaches .*min_label_score=0.5"),
        ([image_row(i, labels=[(1, 0.9)]) for i in range(5)], {}, "5 images of 1 entities.*takes two entities"),
        ([image_row(i) for i in range(8)], {"hold_out_entities": 0.9999}, "no image is left to train on"),
        ([image_row(0, labels=[(4, 0.9)])], {}, r"labels name class 4.*has classes 0 … 3"),
    ],
)
def test_datasets_that_cannot_be_trained_on_are_refused(
    rows: list[dict[str, Any]], data: dict[str, float], message: str, tmp_path: Path
) -> None:
    folder = write_dataset(tmp_path / "i2e", rows)
    with pytest.raises(DatasetError, match=message) as error:
        samples_of(folder, config(**data))
    assert folder in str(error.value)


# What a batch holds


def test_an_epoch_has_every_image_once_with_its_own_pixels_class_and_text(samples: Samples) -> None:
    settings = config(augment="none", batch_size=10, text={"alt_text": 1, "name": 0, "name_and_description": 0})
    found: dict[bytes, tuple[torch.Tensor, int, str]] = {}
    for batch in batches(samples, settings, 50, tokenizer=tokenizer):
        assert batch.pixels_BCHW.shape == (10, 3, SIDE, SIDE)
        assert batch.tokens_BL is not None
        for i, image_id in enumerate(batch.image_ids):
            found[image_id] = batch.pixels_BCHW[i], int(batch.class_B[i]), text_of(batch.tokens_BL[i])
    assert len(found) == 50
    for number in range(50):
        pixels_CHW, class_index, text = found[image_row(number, bytes=b"")["image_id"]]
        assert (pixels_CHW.permute(1, 2, 0).numpy() == centred(picture(number), SIDE)).all()
        assert (class_index, text) == (number % 4, f"alt text {number}")


@pytest.mark.parametrize("how", [{"workers": 1}, {"workers": 3, "prefetch": 1}, {"workers": 2, "prefetch": 7}])
def test_batches_do_not_depend_on_workers(samples: Samples, how: dict[str, int]) -> None:
    in_line = batches(samples, config(batch_size=20), 200, tokenizer=tokenizer)
    threaded = batches(samples, config(batch_size=20, **how), 200, tokenizer=tokenizer)
    assert len(in_line) == 10
    assert all(same(a, b) for a, b in zip(in_line, threaded, strict=True))


@settings(max_examples=examples(20))
@given(st.data())
def test_a_resumed_training_gets_what_was_left_on_any_number_of_ranks(samples: Samples, data: Any) -> None:
    """Catches: samples that are lost or come twice when a training goes on from a checkpoint (HF datasets)."""
    window, lanes = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 6))
    ranks, accumulate = data.draw(st.sampled_from([(1, 1), (2, 1), (3, 1), (2, 3), (6, 2)]))
    done = data.draw(st.integers(0, 6))
    how = {"batch_size": 12, "window": window, "lanes": lanes, "seed": data.draw(st.integers(0, 3))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "WHOLE", 1)
        whole = batches(samples, config(**how), 120)
        parts = [
            batches(samples, config(accumulate=accumulate, **how), 120, rank=r, world_size=ranks, start=12 * done)
            for r in range(ranks)
        ]
    for step, alone in enumerate(whole[done:]):
        mine = [b for part in parts for b in part[step * accumulate : (step + 1) * accumulate]]
        pixels = dict(zip(alone.image_ids, alone.pixels_BCHW, strict=True))
        assert Counter(i for b in mine for i in b.image_ids) == Counter(alone.image_ids)
        if max(Counter(alone.image_ids).values()) == 1:  # an image may come again where two epochs meet, cropped anew
            assert all(torch.equal(pixels[i], x) for b in mine for i, x in zip(b.image_ids, b.pixels_BCHW, strict=True))


def test_the_position_is_where_a_training_goes_on(samples: Samples) -> None:
    settings = config(batch_size=16, accumulate=2, workers=2)
    loader = Loader(samples, settings, side=SIDE)
    first = [batch for _, batch in zip(range(5), loader, strict=False)]
    assert loader.position == 5 * 8
    rest = batches(samples, settings, 80, start=loader.position)
    whole = batches(samples, settings, 80)
    assert all(same(a, b) for a, b in zip(whole, [*first, *rest], strict=True))


def test_crops_differ_between_epochs_and_seeds(samples: Samples) -> None:
    def pixels(epoch: int, seed: int) -> torch.Tensor:
        found = batches(samples, config(batch_size=50, seed=seed), 50 * (epoch + 1), start=50 * epoch)[0]
        order = sorted(range(50), key=lambda i: found.image_ids[i])
        return found.pixels_BCHW[order]

    drawn = [pixels(0, 0), pixels(1, 0), pixels(0, 1)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (drawn[a] != drawn[b]).flatten(1).any(dim=1).sum() >= 48


def test_a_label_is_drawn_in_proportion_to_its_probability(tmp_path: Path) -> None:
    rows = [image_row(i, labels=[(1, 0.25), (3, 0.75)], bytes=stored(picture(0, (16, 16)))) for i in range(600)]
    samples = samples_of(write_dataset(tmp_path / "i2e", rows, group=600))
    drawn = torch.cat([b.class_B for b in batches(samples, config(batch_size=100), 600)])
    assert set(drawn.tolist()) == {1, 3}
    assert abs((drawn == 3).float().mean() - 0.75) < 0.06
    best = batches(samples, config(batch_size=100, label="best"), 100)[0]
    assert set(best.class_B.tolist()) == {3}
    assert best.classes_BK.tolist() == [[3, 1]] * 100


def test_every_batch_has_room_for_the_most_labels(tmp_path: Path) -> None:
    """Catches: ranks whose batches differ in shape, so that gathering them fails or hangs."""
    rows = [image_row(i, labels=[(0, 0.9), (1, 0.8), (2, 0.7)] if i == 7 else [(i % 4, 0.9)]) for i in range(16)]
    samples = samples_of(write_dataset(tmp_path / "i2e", rows))
    found = batches(samples, config(batch_size=4), 16)
    assert {tuple(b.classes_BK.shape) for b in found} == {(4, 3)}
    assert sum((b.classes_BK >= 0).sum().item() for b in found) == 18


def test_texts_are_drawn_as_often_as_configured(tmp_path: Path) -> None:
    rows = [image_row(i, bytes=stored(picture(0, (16, 16)))) for i in range(600)]
    entities = [*(entity_row(c) for c in range(3)), entity_row(3, description=None)]
    samples = samples_of(write_dataset(tmp_path / "i2e", rows, entities=entities, group=600))
    found = batches(samples, config(batch_size=100), 600, tokenizer=tokenizer, text_probabilities=(0.5, 0.2, 0.3))
    kinds = Counter[str]()
    for batch in found:
        assert batch.tokens_BL is not None
        rows_of_batch = zip(batch.image_ids, batch.class_B.tolist(), batch.tokens_BL, strict=True)
        for image_id, class_index, tokens_L in rows_of_batch:
            text = text_of(tokens_L)
            name = f"entity {class_index}"
            told = f"{name}, thing of kind {class_index}"
            kinds["alt" if text.startswith("alt text") else "name" if text == name else "described"] += 1
            assert text in (name, told) or image_row(int(text.removeprefix("alt text ")))["image_id"] == image_id
            assert text != told or class_index != 3
    assert abs(kinds["alt"] / 600 - 0.5) < 0.07
    assert abs(kinds["described"] / 600 - 0.3 * 0.75) < 0.06


def test_without_tokenizer_and_teacher_there_are_none(samples: Samples) -> None:
    batch = batches(samples, config(), 8)[0]
    assert batch.tokens_BL is None
    assert batch.teacher_BT is None


def test_teacher_vectors_go_with_their_images(samples: Samples, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = {image_row(i, bytes=b"")["image_id"]: rng.normal(size=6).astype("<f2") for i in range(0, 50, 2)}
    vectors[b"x" * 16] = np.zeros(6, "<f2")
    for part, some in enumerate((list(vectors)[:20], list(vectors)[10:])):
        table = pa.table(
            {
                "image_id": pa.array([*some, image_row(1)["image_id"]], pa.binary(16)),
                "vector": pa.array([*(vectors[i].tobytes() for i in some), None], pa.binary()),
            }
        )
        (tmp_path / f"unit={part}").mkdir()
        pq.write_table(table, tmp_path / f"unit={part}" / "part.parquet")
    teacher = open_teacher(str(tmp_path), samples)
    assert (teacher.images, teacher.width) == (25, 6)
    for batch in batches(samples, config(batch_size=10), 50, teacher=teacher):
        assert batch.teacher_BT is not None
        for image_id, vector_T in zip(batch.image_ids, batch.teacher_BT, strict=True):
            raw = vectors.get(image_id, np.zeros(6)).astype(np.float32)
            assert np.allclose(vector_T.numpy(), raw / max(float(np.linalg.norm(raw)), 1e-9), atol=1e-6)


def test_a_teacher_of_other_images_is_refused(samples: Samples, tmp_path: Path) -> None:
    table = pa.table({"image_id": pa.array([b"x" * 16], pa.binary(16)), "vector": pa.array([b"12"], pa.binary())})
    pq.write_table(table, tmp_path / "part.parquet")
    with pytest.raises(DatasetError, match=r"no vector of an image of the dataset.*keep_vectors"):
        open_teacher(str(tmp_path), samples)
    with pytest.raises(DatasetError, match="no such folder"):
        open_teacher(str(tmp_path / "nowhere"), samples)


# Images that cannot be decoded


def broken(tmp_path: Path, bad: dict[int, bytes | None], rows: int = 16) -> Samples:
    some = [image_row(i, **({"bytes": bad[i]} if i in bad else {})) for i in range(rows)]
    return samples_of(write_dataset(tmp_path / "i2e", some))


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_counted_and_their_slots_filled(tmp_path: Path, workers: int) -> None:
    bad = {2: stored(picture(2))[:200], 5: b"<html>", 9: None}
    samples = broken(tmp_path, bad)
    loader = Loader(samples, config(workers=workers, batch_size=8), side=SIDE, stop=32, tokenizer=tokenizer)
    found = list(loader)
    assert [len(b) for b in found] == [8] * 4
    assert loader.skipped == {"truncated_image": 2, "not_an_image": 2, "null_image": 2}
    assert not {i for b in found for i in b.image_ids} & ids(bad)
    assert ids(range(16)) - ids(bad) == {i for b in found for i in b.image_ids}
    assert {e.image_id for e in loader.examples} == ids(bad)
    assert all(".parquet row " in e.place for e in loader.examples)
    for batch in found:
        for i, j in enumerate(batch.image_ids):  # a filled slot is the same image in every part
            twin = batch.image_ids.index(j)
            assert torch.equal(batch.pixels_BCHW[i], batch.pixels_BCHW[twin])
            assert batch.class_B[i] == batch.class_B[twin]
            assert batch.tokens_BL is not None
            assert torch.equal(batch.tokens_BL[i], batch.tokens_BL[twin])


def test_the_place_of_a_broken_image_is_its_file_and_row(tmp_path: Path) -> None:
    samples = broken(tmp_path, {13: b""})
    loader = Loader(samples, config(), side=SIDE, stop=16)
    list(loader)
    path, row = loader.examples[0].place.split(" row ")
    table = pq.read_table(Path(samples.published.folder) / path, partitioning=None)
    assert table.column("alt_text")[int(row)].as_py() == "alt text 13"


def test_a_dataset_of_broken_images_only_is_an_error(tmp_path: Path) -> None:
    samples = broken(tmp_path, dict.fromkeys(range(16), b"<html>"))
    with pytest.raises(LoaderError, match=r"parquet row \d+ cannot be decoded: not_an_image.*nor can 15 images"):
        batches(samples, config(workers=2), 16)


@pytest.mark.parametrize("group", [1, 7, 96])
@pytest.mark.parametrize("lanes", [1, 4])
def test_what_stands_in_for_broken_images_does_not_depend_on_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int, lanes: int
) -> None:
    """Catches: a stand-in from the rank's own part of the batch, so that ranks change what is trained on, and a rank
    that stops because its few images are all broken."""
    monkeypatch.setattr(order_module, "WHOLE", 1)
    bad: dict[int, bytes | None] = dict.fromkeys(range(0, 96, 3), b"<html>")
    rows = [image_row(i, **({"bytes": bad[i]} if i in bad else {})) for i in range(96)]
    samples = samples_of(write_dataset(tmp_path / "i2e", rows, group=group))
    settings = config(batch_size=16, lanes=lanes, window=20)
    skipped = []

    def steps(world_size: int, workers: int) -> list[list[bytes]]:
        loaders = [
            Loader(samples, settings.model_copy(update={"data": settings.data.model_copy(update={"workers": workers})}),
                   side=SIDE, stop=192, world_size=world_size, rank=rank, tokenizer=tokenizer)
            for rank in range(world_size)
        ]  # fmt: skip
        parts = [list(loader) for loader in loaders]
        skipped.append(sum((loader.skipped for loader in loaders), Counter()))
        return [[i for batch in step for i in batch.image_ids] for step in zip(*parts, strict=True)]

    alone = steps(1, 0)
    assert not {i for step in alone for i in step} & ids(bad)
    assert steps(2, 0) == steps(8, 1) == steps(1, 2) == alone
    assert skipped == [{"not_an_image": 2 * len(bad)}] * 4


def test_a_row_group_of_broken_images_is_filled_from_few_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a row group read anew for each of many broken images."""
    bad: dict[int, bytes | None] = dict.fromkeys(range(16), b"<html>")
    rows = [image_row(i, **({"bytes": bad[i]} if i in bad else {})) for i in range(160)]
    samples = samples_of(write_dataset(tmp_path / "i2e", rows, units=1, group=16))
    loader = Loader(samples, config(batch_size=16), side=SIDE, stop=160)
    found = list(loader)
    assert loader.skipped == {"not_an_image": 16}
    assert not {i for b in found for i in b.image_ids} & ids(bad)
    assert loader._groups.reads <= 10 + 2


# Threads


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fault_in_a_worker_names_file_and_row(
    samples: Samples, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(image: Image.Image, *_: object) -> np.ndarray:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr("i2e_pipeline.train.dataset.augmented", fails)
    with pytest.raises(LoaderError, match=r"part-.*parquet row \d+ \(image [0-9a-f]{32}\): Zero.*: on purpose"):
        batches(samples, config(workers=workers), 8)
    assert not running()


def test_a_fault_in_reading_reaches_the_caller(tmp_path: Path) -> None:
    folder = Path(write_dataset(tmp_path / "i2e", [image_row(i) for i in range(50)]))
    samples = samples_of(str(folder))
    next(folder.glob("images/*1/*.parquet")).unlink()
    with pytest.raises(DatasetError, match="belongs to the dataset and is not there"):
        batches(samples, config(workers=2), 50)
    assert not running()


def running() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(("decode", "read"))]


def test_leaving_an_iteration_early_stops_its_threads(samples: Samples) -> None:
    loader = Loader(samples, config(workers=2), side=SIDE)
    for _ in loader:
        assert running()
        break
    assert not running()
    kept = iter(loader)
    next(kept)
    loader.close()
    assert not running()


@pytest.mark.slow
@pytest.mark.parametrize("end", ["", "raise SystemExit(0)", "os.kill(os.getpid(), 15)"])
def test_a_process_ends_while_batches_are_made(folder: str, end: str) -> None:
    """Catches: a training that fails and then hangs on its loader's threads."""
    script = f"""
import os
from i2e_pipeline.core.config import TrainConfig
from i2e_pipeline.dataset.published import open_published
from i2e_pipeline.train.dataset import Loader, Samples
config = TrainConfig(data={{"workers": 2, "batch_size": 8}})
batches = iter(Loader(Samples.open(open_published({folder!r}), config), config, side=64))
next(batches)
{end}
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=60, capture_output=True, text=True)
    assert done.returncode == (-15 if "kill" in end else 0), done.stderr
    assert "Error" not in done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: its driver locks the pages")
def test_a_pinned_batch_is_pinned_as_a_whole(tmp_path: Path) -> None:
    """Catches: copies of labels and tokens that wait for the GPU, while those of the pixels do not."""
    samples = broken(tmp_path, {2: b"<html>"})
    for batch in batches(samples, config(workers=2), 16, tokenizer=tokenizer, pin=True):
        assert batch.tokens_BL is not None
        assert all(x.is_pinned() for x in (batch.pixels_BCHW, batch.class_B, batch.classes_BK, batch.tokens_BL))


def test_waiting_is_measured(samples: Samples) -> None:
    loader = Loader(samples, config(), side=SIDE, stop=48)
    list(loader)
    assert loader.wait_seconds > 0


# Augmentation


def gradient(width: int, height: int) -> Image.Image:
    """Red tells how far right, green how far down, so that a crop can be read back from its pixels."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, np.zeros_like(across)], axis=2).astype(np.uint8))


@settings(max_examples=examples(60))
@given(st.integers(64, 300), st.integers(64, 300), st.lists(st.floats(0, 0.999), min_size=5, max_size=5))
def test_a_crop_lies_within_the_image_and_has_the_drawn_area(width: int, height: int, drawn: list[float]) -> None:
    pixels_HWC = augmented(gradient(width, height), 32, np.array(drawn), (0.4, 1.0)).astype(float)
    assert pixels_HWC.shape == (32, 32, 3)
    left, right = sorted((pixels_HWC[:, 0, 0].mean(), pixels_HWC[:, -1, 0].mean()))
    top, bottom = pixels_HWC[0, :, 1].mean(), pixels_HWC[-1, :, 1].mean()
    area = (right - left) * (bottom - top) / 255**2
    assert area <= 0.4 + 0.6 * drawn[0] + 0.03
    mirrored = pixels_HWC[:, 0, 0].mean() > pixels_HWC[:, -1, 0].mean()
    assert mirrored == (drawn[4] >= 0.5)


@pytest.mark.parametrize("size", [(1, 7), (7, 1), (20, 33), (224, 224), (500, 375), (3000, 2000)])
def test_both_ways_to_scale_give_the_same_pixels_but_for_roundings(size: tuple[int, int]) -> None:
    """Catches: another filter, no antialiasing, channels that change places, values that wrap around beyond 255."""
    image = picture(3, (40, 30)).resize(size)
    noise = np.random.default_rng(0).integers(0, 2, (size[1], size[0], 1), dtype=np.uint8) * 255
    hard = Image.fromarray(np.where(noise > 0, np.asarray(image), 255 - np.asarray(image)).astype(np.uint8))
    for given_image in (image, hard):
        by_torch, by_pillow = scale_by_torch(given_image, 48), scale_by_pillow(given_image, 48)
        assert by_torch.dtype == by_pillow.dtype == np.uint8
        assert by_torch.flags.c_contiguous
        # Pillow's filter as it is: with reducing_gap it first averages whole pixels, beyond four times the side.
        exact = np.asarray(given_image.resize((48, 48), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(by_torch - exact).max() <= 1
        assert np.abs(by_torch.astype(int) - by_pillow).mean() < 3
        assert np.array_equal(by_torch, scale_by_torch(given_image, 48))


@settings(max_examples=examples(100))
@given(st.integers(1, 400), st.integers(1, 400), st.lists(st.floats(0, 0.999999), min_size=5, max_size=5))
def test_a_crop_box_has_a_pixel_at_least_and_lies_within(width: int, height: int, drawn: list[float]) -> None:
    left, top, right, bottom = crop_box((width, height), np.array(drawn), (0.01, 1.0))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_crops_cover_the_image() -> None:
    drawn_NF = draws(np.arange(2000, dtype=np.uint64), DataConfig())
    assert drawn_NF is not None
    lefts = [augmented(gradient(64, 64), 8, d, (0.4, 1.0))[:, [0, -1], 0].min() for d in drawn_NF]
    rights = [augmented(gradient(64, 64), 8, d, (0.4, 1.0))[:, [0, -1], 0].max() for d in drawn_NF]
    assert min(lefts) < 25
    assert max(rights) > 230
    assert abs(np.mean(lefts) - (255 - np.mean(rights))) < 6


def test_augmentation_as_configured() -> None:
    keys = np.arange(1000, dtype=np.uint64)
    crop, flip = draws(keys, DataConfig(augment="crop")), draws(keys, DataConfig(augment="crop_flip"))
    assert draws(keys, DataConfig(augment="none")) is None
    assert crop is not None
    assert flip is not None
    assert (crop[:, 4] < 0.5).all()
    assert abs((flip[:, 4] >= 0.5).mean() - 0.5) < 0.06
    assert (crop[:, :4] == flip[:, :4]).all()


def test_large_jpegs_keep_enough_pixels_for_the_smallest_crop() -> None:
    from i2e_pipeline.core.config import ImageLimits
    from i2e_pipeline.images.decode import open_rgb

    data = stored(picture(1, (3000, 2000)), "JPEG")
    opened = open_rgb(data, ImageLimits(), decoded_side(224, DataConfig()))
    assert isinstance(opened, tuple)
    assert opened[0].size == (750, 500)
    assert min(opened[0].size) * (0.4 * 3 / 4) ** 0.5 >= 224
