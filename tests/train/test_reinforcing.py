"""What is stored of an image: the trainer's own augmentations, and what teachers make of just these pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.commands.reinforcing import Wanted, reinforce
from i2e_pipeline.core.config import DataConfig, ImageLimits, TrainConfig
from i2e_pipeline.core.draws import hashed, uniform
from i2e_pipeline.core.ids import id_halves
from i2e_pipeline.core.schemas import REINFORCED
from i2e_pipeline.core.splits import keys
from i2e_pipeline.dataset.published import DatasetError, open_published
from i2e_pipeline.images.decode import open_rgb
from i2e_pipeline.images.encoder import Encoder
from i2e_pipeline.train import reinforcing
from i2e_pipeline.train.augment import augmented, draws, view_of, viewed
from i2e_pipeline.train.batch import Batch
from i2e_pipeline.train.dataset import Loader
from i2e_pipeline.train.reinforced import Reinforced, Settings, beside, open_reinforced
from i2e_pipeline.train.reinforcing import Models, TeacherConfig, facts_of
from i2e_pipeline.train.samples import Samples
from tests.small_models import picture, stored
from tests.train.small_dataset import image_row, write_dataset
from tests.train.test_dataset import text_of, tokenizer

ROWS, SIDE, K = 40, 32, 3
BROKEN = 7
TEMPLATE = "{name}, {description}"


@pytest.fixture(scope="module")
def configs(models: Callable[[str], str]) -> tuple[TeacherConfig, ...]:
    return tuple(TeacherConfig(model=models(kind), device="cpu") for kind in ("vit", "resnet"))


@pytest.fixture(scope="module")
def teachers(configs: tuple[TeacherConfig, ...]) -> list[Encoder]:
    return Models(configs).loaded()[0]


@pytest.fixture(scope="module")
def settings(configs: tuple[TeacherConfig, ...], teachers: list[Encoder]) -> Settings:
    facts = tuple(facts_of(config, teacher) for config, teacher in zip(configs, teachers, strict=True))
    return Settings(facts, K, "crop_flip", (0.4, 1.0), TEMPLATE)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, configs: tuple[TeacherConfig, ...]) -> str:
    """A dataset with one broken image and one entity without description, and its tables beside it."""
    from tests.train.small_dataset import entity_row

    rows = [image_row(i, **({"bytes": b"no image"} if i == BROKEN else {})) for i in range(ROWS)]
    entities = [entity_row(c, **({"description": None} if c == 3 else {})) for c in range(4)]
    folder = write_dataset(tmp_path_factory.mktemp("out") / "i2e", rows, entities=entities)
    reinforce(folder, Wanted(Models(configs), K, DataConfig(), TEMPLATE))
    return folder


def config(**settings: Any) -> TrainConfig:
    parts = {"affinity": 0.5, **settings.pop("reinforce", {})}
    data = {"batch_size": 8, "workers": 0, "hold_out_entities": 0, "hold_out_images": 0, **settings}
    return TrainConfig.model_validate({"data": data, "reinforce": parts})


def opened(dataset: str, settings: TrainConfig) -> tuple[Samples, Reinforced]:
    published = open_published(dataset)
    return Samples.open(published, settings), open_reinforced(settings.reinforce, published)


def batches(dataset: str, settings: TrainConfig, stop: int, **how: Any) -> list[Batch]:
    samples, tables = opened(dataset, settings)
    return list(Loader(samples, settings, side=SIDE, stop=stop, tokenizer=tokenizer, reinforced=tables, **how))


def batch_of(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    columns = {name: [row[name] for row in rows] for name in ("image", "alt_text")}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    arrays = [pa.array([row["image_id"].hex() for row in rows]), pa.array(columns["image"], image)]
    return pa.RecordBatch.from_arrays([*arrays, pa.array(columns["alt_text"])], ["image_id", "image", "alt_text"])


def made(rows: list[dict[str, Any]], settings: Settings, teachers: list[Encoder], **how: Any) -> list[dict[str, Any]]:
    found = list(reinforcing.reinforce([batch_of(rows)], teachers, settings, ImageLimits(), **how))
    assert all(batch.schema == REINFORCED for batch in found)
    return pa.Table.from_batches(found).to_pylist()


def view(stored_view: dict[str, Any]) -> np.ndarray:
    return np.array([stored_view[n] for n in ("left", "top", "right", "bottom", "mirrored")], dtype=np.float32)


# Views


@given(
    st.tuples(st.integers(16, 9000), st.integers(16, 9000)),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=5, max_size=5),
    st.floats(0.05, 1),
)
def test_a_stored_view_is_the_box_that_was_drawn(size: tuple[int, int], drawn: list[float], low: float) -> None:
    """Catches: shares in float32 that come back a pixel beside the box, for any image that is scored."""
    from i2e_pipeline.train.augment import crop_box

    drawn_F = np.array(drawn)
    view_V = view_of(size, drawn_F, (low, 1.0))
    back = tuple(round(float(share) * of) for share, of in zip(view_V, size * 2, strict=False))
    assert back == crop_box(size, drawn_F, (low, 1.0))
    assert view_V[4] == (drawn[4] >= 0.5)


def test_a_view_seen_again_has_the_pixels_of_the_trainers_augmentation() -> None:
    image = picture(3, (301, 217))
    for drawn_F in draws(np.arange(50, dtype=np.uint64), DataConfig()):
        seen = viewed(image, SIDE, view_of(image.size, drawn_F, (0.4, 1.0)))
        assert np.array_equal(seen, augmented(image, SIDE, drawn_F, (0.4, 1.0)))


def test_a_view_is_inside_any_smaller_image() -> None:
    """Catches: a box of no pixels, or one beyond the edge, of an image that was decoded at an eighth."""
    edges = [[0, 0, 0.001, 0.001, 0], [0.999, 0.999, 1, 1, 1], [0, 0, 1, 1, 0]]
    for view_V in np.array(edges, dtype=np.float32):
        assert viewed(picture(0, (9, 5)), SIDE, view_V).shape == (SIDE, SIDE, 3)


# The kernel


def test_the_stored_vectors_are_the_teachers_of_the_stored_views(settings: Settings, teachers: list[Encoder]) -> None:
    """Catches: vectors of another view than the one beside them, or teachers' parts in another order."""
    rows = [image_row(i) for i in range(6)]
    for row, told in zip(rows, made(rows, settings, teachers), strict=True):
        assert told["image_id"] == row["image_id"].hex()
        assert told["reason"] is told["captions"] is None
        image = open_rgb(row["image"]["bytes"], ImageLimits())[0]  # type: ignore[index]
        views = [view(one) for one in told["augmentations"]]
        assert len({tuple(one) for one in views}) == K
        vectors_KT = np.frombuffer(told["image_vectors"], "<f2").reshape(K, settings.width)
        pixels = np.stack([viewed(image, SIDE, one) for one in views])
        again = np.concatenate([teacher.images(pixels) for teacher in teachers], axis=1)
        assert np.array_equal(vectors_KT, again.astype("<f2"))
        text = np.concatenate([teacher.texts([row["alt_text"]]) for teacher in teachers], axis=1)
        assert np.array_equal(np.frombuffer(told["text_vectors"], "<f2"), text[0].astype("<f2"))


def test_views_are_the_trainers_augmentation_by_hash_of_image_and_number(
    settings: Settings, teachers: list[Encoder]
) -> None:
    row = image_row(1)
    image = open_rgb(row["image"]["bytes"], ImageLimits())[0]  # type: ignore[index]
    key_1 = keys(id_halves(pa.array([row["image_id"].hex()])))
    for number, told in enumerate(made([row], settings, teachers)[0]["augmentations"]):
        drawn_F = draws(hashed(key_1, "reinforced", number), DataConfig())[0]  # type: ignore[index]
        assert np.array_equal(viewed(image, SIDE, view(told)), augmented(image, SIDE, drawn_F, (0.4, 1.0)))


def test_nothing_depends_on_order_company_or_threads(
    settings: Settings, teachers: list[Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [image_row(i) for i in range(7)]
    together = made(rows, settings, teachers)
    assert [made([row], settings, teachers)[0] for row in rows] == together
    monkeypatch.setattr(reinforcing, "IMAGES_AT_ONCE", 3)
    assert made(rows[::-1], settings, teachers, threads=3)[::-1] == together


@pytest.mark.parametrize(("data", "reason"), [(b"page", "not_an_image"), (None, "null_image"), (b"", "empty_image")])
def test_an_image_that_cannot_be_decoded_has_its_reason_and_its_text(
    settings: Settings, teachers: list[Encoder], data: bytes | None, reason: str
) -> None:
    whole, broken = made([image_row(0), image_row(1, bytes=data)], settings, teachers)
    assert broken["reason"] == reason
    assert broken["augmentations"] is broken["image_vectors"] is None
    assert len(broken["text_vectors"]) == 2 * settings.width
    assert whole["reason"] is None


def test_a_photo_that_is_decoded_at_a_half_gives_nearly_the_same_vector(
    settings: Settings, teachers: list[Encoder]
) -> None:
    """Catches: a box in pixels of the whole image, cut from one that was decoded smaller."""
    photo = picture(5, (1600, 1200))
    row = image_row(0, bytes=stored(photo, "JPEG", quality=95))
    told = made([row], settings, teachers)[0]
    vectors_KT = np.frombuffer(told["image_vectors"], "<f2").reshape(K, settings.width).astype(np.float32)
    pixels = np.stack([viewed(photo, SIDE, view(one)) for one in told["augmentations"]])
    width = settings.teachers[0].width
    assert ((vectors_KT[:, :width] * teachers[0].images(pixels)).sum(axis=1) > 0.99).all()


def test_without_augmentation_the_view_is_that_of_evaluations(settings: Settings, teachers: list[Encoder]) -> None:
    plain = replace(settings, augment="none", augmentations=1)
    row = image_row(2)
    told = made([row], plain, teachers)[0]
    image = open_rgb(row["image"]["bytes"], ImageLimits())[0]  # type: ignore[index]
    width = settings.teachers[0].width
    vector = np.frombuffer(told["image_vectors"], "<f2")[:width].astype(np.float32)
    assert vector @ teachers[0].images(teachers[0].prepare(image)[None])[0] > 0.999
    assert view(told["augmentations"][0]) == pytest.approx([1 / 8, 0, 7 / 8, 1, 0])


class Sayer:
    """A captioner that says the image's size, its seed and a number."""

    def captions(self, images: Any, seeds: Any) -> list[list[str]]:
        return [[f"{image.size} {seed} {n}" for n in range(2)] for image, seed in zip(images, seeds, strict=True)]


def test_captions_have_vectors_and_their_seed_is_the_images(settings: Settings, teachers: list[Encoder]) -> None:
    rows = [image_row(0), image_row(1, bytes=b"x"), image_row(2)]
    found = made(rows, settings, teachers, captioner=Sayer())
    alone = made(rows[2:], settings, teachers, captioner=Sayer())
    assert found[2] == alone[0]
    assert found[1]["captions"] is None
    assert found[0]["captions"] != found[2]["captions"]
    texts = [rows[0]["alt_text"], *found[0]["captions"]]
    again = np.concatenate([teacher.texts(texts) for teacher in teachers], axis=1).astype("<f2")
    assert found[0]["text_vectors"] == again.tobytes()


# The loader


def test_the_loader_sees_the_stored_view_beside_the_teachers_vectors_of_it(
    dataset: str, teachers: list[Encoder], settings: Settings
) -> None:
    """Catches: a vector of another augmentation, image or text than the batch has. The student's input is as large as
    the teachers' here, so what they make of the batch's own pixels and texts is what was stored."""
    seen: dict[bytes, set[bytes]] = {}
    kinds = set()
    for batch in batches(dataset, config(), 5 * (ROWS - 8)):
        pixels_BHWC = batch.pixels_BCHW.permute(0, 2, 3, 1).numpy()
        texts = [text_of(tokens_L) for tokens_L in batch.tokens_BL]  # type: ignore[union-attr]
        kinds |= {text.split()[0] + ("," if "," in text else "") for text in texts}
        for vectors_BT, by in ((batch.teacher_BT, "images"), (batch.teacher_text_BT, "texts")):
            given = pixels_BHWC if by == "images" else texts
            wanted = np.concatenate([getattr(teacher, by)(given) for teacher in teachers], axis=1)
            assert vectors_BT is not None
            assert np.allclose(vectors_BT.numpy(), wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=2e-3)
        assert [t.width for t in batch.teachers] == [t.width for t in settings.teachers]
        for image_id, one in zip(batch.image_ids, pixels_BHWC, strict=True):
            seen.setdefault(image_id, set()).add(one.tobytes())
    assert kinds == {"alt", "entity", "entity,"}
    assert max(map(len, seen.values())) > 1  # other epochs see other augmentations
    assert all(len(views) <= K for views in seen.values())
    assert image_row(BROKEN)["image_id"] not in seen


def test_ranks_and_workers_see_the_same(dataset: str) -> None:
    alone = batches(dataset, config(), 32)
    threads = batches(dataset, config(workers=3), 32)
    parts = [batches(dataset, config(), 32, world_size=2, rank=rank) for rank in range(2)]
    for at, whole in enumerate(alone):
        for vectors in ("teacher_BT", "teacher_text_BT"):
            assert torch.equal(getattr(whole, vectors), getattr(threads[at], vectors))
            assert torch.equal(getattr(whole, vectors), torch.cat([getattr(part[at], vectors) for part in parts]))


def test_without_affinity_no_texts_vectors_are_looked_up(dataset: str) -> None:
    batch = batches(dataset, config(reinforce={"affinity": 0, "vectors": 1.0}), 8)[0]
    assert batch.teacher_text_BT is None
    assert batch.teacher_BT is not None
    assert torch.allclose(batch.teacher_BT.norm(dim=1), torch.ones(8), atol=1e-3)


def test_a_share_of_the_texts_are_stored_captions(
    tmp_path: Path, configs: tuple[TeacherConfig, ...], teachers: list[Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_dataset(tmp_path / "i2e", [image_row(i) for i in range(24)])
    monkeypatch.setattr(reinforcing, "load_captioner", lambda *_: Sayer())
    monkeypatch.setattr("i2e_pipeline.train.captioner.fingerprint", lambda _: "f")
    by = reinforcing.CaptionerConfig("local-dir:nowhere", 2)
    reinforce(folder, Wanted(Models(configs[:1], by), 1, DataConfig(), TEMPLATE))
    captioned = total = 0
    for batch in batches(folder, config(reinforce={"captions": 0.4}), 240):
        texts = [text_of(tokens_L) for tokens_L in batch.tokens_BL]  # type: ignore[union-attr]
        captioned += sum(text.startswith("(64, 48)") for text in texts)
        total += len(texts)
        whole = [n for n, text in enumerate(texts) if len(text) < 40]  # the test's tokenizer cuts at 40
        wanted = teachers[0].texts([texts[n] for n in whole])
        assert np.allclose(batch.teacher_text_BT[whole], wanted, atol=2e-3)  # type: ignore[index]
    assert abs(captioned / total - 0.4) < 0.12


# What does not fit


def test_tables_that_are_not_there_or_of_another_state_are_refused(dataset: str, tmp_path: Path) -> None:
    settings = config()
    other = write_dataset(tmp_path / "i2e", [image_row(i) for i in range(30)])
    with pytest.raises(DatasetError, match=r"holds no reinforced tables .*i2e reinforce .* --teacher MODEL"):
        opened(other, settings)
    there = config(reinforce={"folder": beside(dataset)})
    with pytest.raises(DatasetError, match=r"2 of the 2 files of .* not reinforced .*\(units u-0+, u-0+1\)"):
        opened(other, there)
    with pytest.raises(DatasetError, match=r"train\.reinforce\.captions=0\.5, and .* has no captions"):
        opened(dataset, config(reinforce={"captions": 0.5}))


def test_rows_of_other_images_are_refused_with_their_file(dataset: str) -> None:
    """Catches: vectors of one image taken for another's, by their place alone."""
    samples, tables = opened(dataset, config())
    ids_M2 = id_halves(pa.array([image_row(i)["image_id"].hex() for i in range(8)]))
    with pytest.raises(DatasetError, match=r"unit=u-0+/part-00000-\w{16}\.parquet: row group 0 is of other images"):
        tables.read(0, 0, ids_M2, np.arange(2))
    assert len(samples) == ROWS


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("image_vectors", b"123", "vectors of 3 bytes"),
        ("image_vectors", b"\0" * 4000, "vectors of 4000 bytes"),
        ("augmentations", [{"left": 0, "top": 0, "right": 1, "bottom": 1, "mirrored": False}], "not 3 augmentations"),
        ("image_id", "zz" * 16, "image_id"),
    ],
)
def test_a_damaged_table_is_said_with_its_file(
    dataset: str, tmp_path: Path, column: str, value: Any, said: str
) -> None:
    import shutil

    folder = tmp_path / "reinforced"
    shutil.copytree(beside(dataset), folder)
    place = sorted(folder.glob("unit=*/*.parquet"))[0]
    rows = pq.read_table(place, partitioning=None).to_pylist()
    rows[2][column] = value
    pq.write_table(pa.Table.from_pylist(rows, REINFORCED), place, row_group_size=8)
    samples, tables = opened(dataset, config(reinforce={"folder": str(folder)}))
    ids_M2 = id_halves(pq.read_table(f"{dataset}/{samples.published.files[0].path}", partitioning=None)["image_id"])
    with pytest.raises(DatasetError, match=rf"{place.name}: .*{said}"):
        tables.read(0, 0, ids_M2[:8], np.arange(8))


def test_what_the_settings_say_is_compared_with_what_is_read() -> None:
    assert uniform(hashed(np.arange(3), "captioned")).max() < 1
    with pytest.raises(
        DatasetError, match=r"x/settings\.json is of format 9, and 1 is read: `i2e reinforce --restart`"
    ):
        Settings.of_tree({"format": 9}, "x/settings.json")
    whole = Settings((reinforcing.TeacherFacts("m", "f", 8, 10.0),), 2, "crop", (0.5, 1.0), TEMPLATE)
    assert Settings.of_tree(whole.tree(), "x") == whole
    for broken in (
        {"augment": "mosaic"},
        {"teachers": []},
        {"augmentations": 0},
        {"crop_area": [2, 3]},
        {"captioner": 3},
    ):
        with pytest.raises(DatasetError, match="is not what `i2e reinforce` writes there"):
            Settings.of_tree({**whole.tree(), **broken}, "x")
    with pytest.raises(DatasetError, match="is not what"):
        Settings.of_tree([], "x")
