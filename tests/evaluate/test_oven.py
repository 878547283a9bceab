"""OVEN from a folder of the authors' layout to predictions and scores."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from i2e_pipeline import cli
from i2e_pipeline.core.config import EvaluateConfig, OvenConfig
from i2e_pipeline.evaluate import entity_texts, oven, oven_scores, suite
from i2e_pipeline.evaluate.datasets import DatasetError, check, open_dataset
from i2e_pipeline.evaluate.embed import Embedded, ImageEncoder
from i2e_pipeline.evaluate.entity_texts import EntitiesError
from i2e_pipeline.evaluate.long_tail import BY
from i2e_pipeline.evaluate.oven_scores import OvenError
from i2e_pipeline.evaluate.protocols import PROTOCOLS, TooSmall
from i2e_pipeline.evaluate.suite import SuiteError
from i2e_pipeline.evaluate.task import Task
from i2e_pipeline.evaluate.top_one import Block
from tests.evaluate.small_sets import settings
from tests.train.small_dataset import entity_row, image_row, write_dataset

WIDTH = 8
ENTITIES = 30
ASKED = 12
"""Entities that images show; the other ones only stand beside them."""


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def vector(*of: str) -> np.ndarray:
    """The unit vector that stands for a text."""
    x_D = np.random.default_rng([zlib.crc32(part.encode()) for part in of]).normal(size=WIDTH)
    return np.asarray(x_D / np.linalg.norm(x_D), dtype=np.float32)


def annotated(root: Path, name: str, split: str = "val", answers: bool = True) -> list[dict[str, Any]]:
    """An annotation file and its images: example n shows entity n + 1; of eight pixels a side, whose red says which."""
    rows = []
    for n in range(ASKED):
        image_id = f"oven_{n:08d}" if name == "entity" else f"oven_{50 + n:08d}"
        place = root / "oven_images" / image_id[5:7]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (n, 0, 0)).save(place / f"{image_id}.png")
        row = {"data_id": f"oven_{name}_{split}_{n:08d}", "image_id": image_id, "question": f"what is it {n % 2}?"}
        answer = {"entity_id": f"Q{n + 1}", "entity_text": f"entity {n}"} if answers else {}
        rows.append(row | answer | {"data_split": f"{split}_{'seen' if n % 3 else 'unseen'}"})
    lines(root / "oven_data" / f"oven_{name}_{split}.jsonl", rows)
    return rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "oven"
    for name in ("entity", "query"):
        annotated(root, name)
    entities = [{"wikidata_id": f"Q{n + 1}", "wikipedia_title": f"entity {n}"} for n in range(ENTITIES)]
    lines(root / "Wiki6M_ver_1_0_title_only.jsonl", entities)
    return root


class Tower:
    """An encoder whose image vectors are those of the names of what they show, and which counts the texts it reads."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def images(self, pixels: np.ndarray) -> np.ndarray:
        return np.stack([vector(f"entity {int(p[0, 0, 0])}") for p in pixels])

    def texts(self, texts: list[str]) -> np.ndarray:
        self.read += texts
        return np.stack([vector(text) for text in texts])

    def encoder(self, label: str = "tower", has_text: bool = True) -> ImageEncoder:
        texts = self.texts if has_text else None
        return ImageEncoder(label, "", "f" * 32, WIDTH, np.asarray, self.images, texts)


def task(root: Path, tower: Tower, out: Path, head: Any = None, has_text: bool = True, **said: Any) -> Task:
    data = open_dataset("oven", str(root))
    pixels = np.stack([np.asarray(data.image(row)) for row in range(len(data))])
    embedded = Embedded(tower.images(pixels), np.arange(len(data)), {}, False)
    config = EvaluateConfig(device="cpu", oven=OvenConfig(**said))
    return Task(tower.encoder(has_text=has_text), data, embedded, config, str(out), head)


def test_a_folder_is_read_as_its_authors_lay_it_out(folder: Path) -> None:
    data = open_dataset("oven", str(folder))
    assert data.kind == "oven"
    assert data.examples is not None
    assert len(data) == 2 * ASKED
    assert [data.images.name(row) for row in (0, ASKED)] == [
        "oven_images/00/oven_00000000.png",
        "oven_images/00/oven_00000050.png",
    ]
    assert [Path(file).name for file in data.examples.files] == ["oven_entity_val.jsonl", "oven_query_val.jsonl"]
    assert data.examples.ends == (ASKED, 2 * ASKED)
    # The entity set's questions are of one kind for all its images, and are not asked.
    assert data.examples.question_E.tolist() == [-1] * ASKED + [0, 1] * (ASKED // 2)
    assert data.examples.questions == ("what is it 0?", "what is it 1?")
    assert check("oven", str(folder)) == f"{2 * ASKED} images for {2 * ASKED} examples"


def test_annotations_may_lie_beside_the_images_whatever_the_folder_is_called(folder: Path) -> None:
    """Catches: a data set in a folder `oven`, which is taken for the folder of annotations alone: all that lies above
    it would be looked through."""
    for path in (folder / "oven_data").iterdir():
        path.rename(folder / path.name)
    for place in (folder, folder / "oven_query_val.jsonl"):
        data = open_dataset("oven", str(place))
        assert data.images.name(0).startswith("oven_images/00/")
        assert oven.entities_of(data, OvenConfig()) == str(folder / "Wiki6M_ver_1_0_title_only.jsonl")


def test_images_may_lie_behind_links_on_another_disk(folder: Path, tmp_path: Path) -> None:
    """Catches: a link to a large collection that is not looked into; one that leads back, which has no end."""
    (folder / "oven_images").rename(tmp_path / "disk")
    (folder / "oven_images").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(folder)
    data = open_dataset("oven", str(folder))
    assert len(data) == 2 * ASKED
    assert data.left_out == {}
    assert data.images.name(0) == "oven_images/00/oven_00000000.png"


def test_an_annotation_file_alone_is_measured(folder: Path) -> None:
    data = open_dataset("oven", str(folder / "oven_data" / "oven_query_val.jsonl"))
    assert data.examples is not None
    assert len(data) == ASKED
    assert data.examples.data_ids[0] == "oven_query_val_00000000"
    assert oven.entities_of(data, OvenConfig()) == str(folder / "Wiki6M_ver_1_0_title_only.jsonl")


def test_predictions_are_written_and_scored(folder: Path, tmp_path: Path) -> None:
    asked = task(folder, Tower(), tmp_path / "out", question_weight=0.0)
    found = PROTOCOLS["oven"].measure(asked)
    assert found.figures["final"] == 1
    assert found.counts == {"examples": 2 * ASKED, "predicted": 2 * ASKED, "candidates": ENTITIES}
    place = tmp_path / "out" / "predictions" / "oven" / "tower-ffffffff"
    written = [json.loads(line) for line in (place / "oven_entity_val.jsonl").read_text().splitlines()]
    assert written == [{"data_id": f"oven_entity_val_{n:08d}", "pred_entity_id": f"Q{n + 1}"} for n in range(ASKED)]
    again = oven_scores.measure_predictions([str(place)], [str(folder / "oven_data")])
    assert again["results"]["oven"]["final_score"] == 100.0
    assert len({*(found.clusters if found.clusters is not None else ())}) == ASKED


def test_the_questions_share_is_mixed_into_the_query_set_alone(folder: Path, tmp_path: Path) -> None:
    """Catches: the entity set asked with its questions; a mixture of vectors that are not of length 1."""
    whole = PROTOCOLS["oven"].measure(task(folder, Tower(), tmp_path / "out", question_weight=1.0))
    assert whole.figures["entity"] == 1
    assert whole.figures["query"] is not None
    assert whole.figures["query"] < 0.3
    images, questions = np.stack([vector("a"), vector("b")]), np.stack([vector("q"), -vector("b")])
    mixed = oven.mixed(images, questions, 0.5)
    assert mixed[0] == pytest.approx((images[0] + questions[0]) / np.linalg.norm(images[0] + questions[0]), abs=1e-6)
    assert np.array_equal(mixed[1], images[1])  # they cancel out
    assert oven.mixed(images, questions, 0.25)[0] @ images[0] > mixed[0] @ images[0]


def test_texts_are_encoded_once_and_a_stopped_evaluation_goes_on(folder: Path, tmp_path: Path) -> None:
    """Catches: six million texts that are read again because the last part was cut."""
    tower, path = Tower(), str(folder / "Wiki6M_ver_1_0_title_only.jsonl")
    made = list(entity_texts.blocks(tower.encoder(), path, False, tmp_path, block_lines=8))
    assert [len(block.ids_C) for block in made] == [8, 8, 8, 6]
    assert len(tower.read) == ENTITIES
    parts = sorted(tmp_path.glob("entities-*/*.npz"))
    assert len(parts) == 4
    parts[1].write_bytes(parts[1].read_bytes()[:300])
    parts[3].unlink()
    again = list(entity_texts.blocks(tower.encoder(), path, False, tmp_path, block_lines=8))
    assert tower.read[ENTITIES:] == [f"entity {n}" for n in (*range(8, 16), *range(24, 30))]
    for first, second in zip(made, again, strict=True):
        assert np.array_equal(first.ids_C, second.ids_C)
        assert np.array_equal(first.vectors_CD, second.vectors_CD)
    with open(path, "a") as file:
        file.write('{"wikidata_id": "Q99", "wikipedia_title": "new"}\n')
    assert sum(len(b.ids_C) for b in entity_texts.blocks(tower.encoder(), path, False, tmp_path, 8)) == ENTITIES + 1


def test_descriptions_stand_behind_names(folder: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"wikidata_id": "Q1", "wikipedia_title": "Orange", "wikipedia_summary": "A fruit.", "wikipedia_content": "x"},
        {
            "wikidata_id": "Q2",
            "wikipedia_title": "Orange",
            "wikipedia_summary": "",
            "wikipedia_content": "A city." * 99,
        },
        {"id": "Q3", "content": "Lone\ud83d"},
    ]
    path, tower = lines(folder / "Wiki6M_ver_1_0.jsonl", rows), Tower()
    list(entity_texts.blocks(tower.encoder(), str(path), True, tmp_path))
    assert tower.read[0] == "Orange, A fruit."
    assert tower.read[1].startswith("Orange, A city.A city")
    assert len(tower.read[1]) == len("Orange, ") + 300
    assert tower.read[2] == "Lone?"  # half a character, which no tokenizer takes
    data = open_dataset("oven", str(folder))
    assert oven.entities_of(data, OvenConfig(candidates="descriptions")) == str(path)
    assert oven.entities_of(data, OvenConfig()).endswith("_title_only.jsonl")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"wikidata_id": "P31", "wikipedia_title": "x"}, r"line 31: 'P31' is no Wikidata id"),
        ({"wikidata_id": "Q31"}, r"line 31: Q31 has no name"),
        ({"wikipedia_title": "x"}, r"line 31: '' is no Wikidata id"),
    ],
)
def test_a_bad_entity_is_named(row: dict[str, Any], said: str, folder: Path, tmp_path: Path) -> None:
    path = folder / "Wiki6M_ver_1_0_title_only.jsonl"
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(EntitiesError, match=said):
        list(entity_texts.blocks(Tower().encoder(), str(path), False, tmp_path))
    with pytest.raises(EntitiesError, match=r"none\.jsonl: no such file"):
        list(entity_texts.blocks(Tower().encoder(), str(tmp_path / "none.jsonl"), False, tmp_path))


def test_images_that_are_missing_or_broken_count_as_wrong(folder: Path, tmp_path: Path) -> None:
    """Catches: an accuracy over what was downloaded, which nobody can compare."""
    gone = folder / "oven_images" / "00"
    for n in range(3):
        (gone / f"oven_{n:08d}.png").unlink()
    data = open_dataset("oven", str(folder))
    assert data.left_out == {"no image file": 3}
    found = PROTOCOLS["oven"].measure(task(folder, Tower(), tmp_path / "out", question_weight=0.0))
    assert found.counts["predicted"] == 2 * ASKED - 3
    assert found.figures["entity seen"] == pytest.approx(6 / 8)
    assert found.figures["entity unseen"] == pytest.approx(3 / 4)
    assert any("3 of 12 examples have no prediction" in note for note in found.notes)
    for path in gone.glob("*.png"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"none of the 24 images .* is below .*oven, first oven_00000000\.jpg"):
        open_dataset("oven", str(folder))


def test_entities_that_are_no_candidates_are_counted(folder: Path, tmp_path: Path) -> None:
    short = lines(tmp_path / "short.jsonl", [{"id": f"Q{n + 1}", "name": f"entity {n}"} for n in range(1, ENTITIES)])
    found = PROTOCOLS["oven"].measure(task(folder, Tower(), tmp_path / "out", entities=str(short), question_weight=0.0))
    assert any("2 of 24 examples are of entities that are no candidates" in note for note in found.notes)
    assert found.counts["candidates"] == ENTITIES - 1


def test_a_split_without_answers_is_predicted_and_not_scored(tmp_path: Path) -> None:
    root = tmp_path / "oven"
    annotated(root, "entity", "test", answers=False)
    lines(root / "Wiki6M_ver_1_0_title_only.jsonl", [{"id": f"Q{n + 1}", "name": f"entity {n}"} for n in range(20)])
    found = PROTOCOLS["oven"].measure(task(root, Tower(), tmp_path / "out"))
    assert found.figures == {"predicted": 1.0}
    (written,) = (tmp_path / "out").rglob("oven_entity_test.jsonl")
    assert len(written.read_text().splitlines()) == ASKED
    assert any("no answers" in note for note in found.notes)


def test_the_classes_of_a_head_are_candidates(folder: Path, tmp_path: Path) -> None:
    def head() -> Iterator[Block]:
        ids = np.arange(1, ASKED + 1)
        yield Block(ids, np.stack([vector(f"entity {n - 1}") for n in ids]))

    tower = Tower()
    found = PROTOCOLS["oven"].measure(task(folder, tower, tmp_path / "out", head, has_text=False, candidates="head"))
    assert found.figures["final"] == 1
    assert found.counts["candidates"] == ASKED
    assert tower.read == []
    assert any("reads no questions" in note for note in found.notes)


def test_accuracy_is_given_by_images_that_the_training_had_of_an_entity(folder: Path, tmp_path: Path) -> None:
    """Catches: a long tail counted by class index; entities that the training never saw left out of it."""
    known = [entity_row(c, entity_id=c + 1, images=60 if c < 4 else 2) for c in range(8)]
    dataset = write_dataset(tmp_path / "i2e", [image_row(0)], entities=known)
    (folder / "oven_images" / "00" / "oven_00000000.png").unlink()
    found = PROTOCOLS["oven"].measure(task(folder, Tower(), tmp_path / "out", trained_on=dataset, question_weight=0.0))
    assert found.parts == {BY: {"0": 1.0, "1–4": 1.0, "50+": pytest.approx(7 / 8)}}
    assert list(found.groups[BY])[:ASKED] == ["50+"] * 4 + ["1–4"] * 4 + ["0"] * 4
    assert found.figures["accuracy"] == pytest.approx(round(100 * 23 / 24, 2) / 100)


def test_candidates_that_cannot_be_had_are_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OvenError, match="tower is no checkpoint with an entity head"):
        PROTOCOLS["oven"].measure(task(folder, Tower(), tmp_path / "out", candidates="head"))
    with pytest.raises(OvenError, match="tower has no text tower"):
        PROTOCOLS["oven"].measure(task(folder, Tower(), tmp_path / "out", has_text=False))
    within = task(folder, Tower(), tmp_path / "out")
    with pytest.raises(TooSmall, match="`i2e evaluate` measures it"):
        PROTOCOLS["oven"].measure(Task(within.encoder, within.data, within.embedded, within.settings))
    (folder / "Wiki6M_ver_1_0_title_only.jsonl").unlink()
    config = settings(tmp_path, models=["none=local-dir:nowhere"], data={"oven": str(folder)})
    with pytest.raises(OvenError, match=r"none of Wiki6M_ver_1_0_title_only\.jsonl, .* is in .*oven_data or above it"):
        suite.evaluate(config)  # before the model is looked for
    with pytest.raises(SuiteError, match="none of gpr applies to oven; there are oven"):
        suite.evaluate(settings(tmp_path, models=["a=local-dir:b"], data={"oven": str(folder)}, suite=["gpr"]))


@pytest.mark.slow
def test_photos_go_to_scores_by_one_command(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way with a real model: photos of Caltech-101 and Grocery Store in the authors' layout, against the
    names of the entities that they show and of others that they do not."""
    root = tmp_path / "oven"
    table = pq.read_table(real_data / "pairs" / "00000.parquet", columns=["jpg", "truth_qid"])
    shown = {}
    for row in (real_data / "pairs" / "entities.jsonl").read_text().splitlines():
        entity = json.loads(row)
        shown[entity["qid"]] = entity["label"]
    sets: dict[str, list[dict[str, Any]]] = {"entity": [], "query": []}
    for n, (image, entity) in enumerate(zip(*(column.to_pylist() for column in table.columns), strict=True)):
        if entity not in shown or n >= 60:
            continue
        name = "query" if n % 3 == 0 else "entity"
        image_id = f"oven_{n:08d}"
        place = root / "oven_images" / image_id[5:7]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{image_id}.jpg").write_bytes(image)
        sets[name].append({
            "data_id": f"oven_{name}_val_{n:08d}", "image_id": image_id, "question": "what is shown in this picture?",
            "entity_id": entity, "entity_text": shown[entity],
            "data_split": f"val_{'seen' if zlib.crc32(entity.encode()) % 2 else 'unseen'}",
        })  # fmt: skip
    for name, rows in sets.items():
        lines(root / "oven_data" / f"oven_{name}_val.jsonl", rows)
    others = [f"thing {n} of no photo" for n in range(400)]
    names = [*shown.items(), *((f"Q{8_000_000 + n}", name) for n, name in enumerate(others))]
    wiki = [{"wikidata_id": entity, "wikipedia_title": name} for entity, name in names]
    lines(root / "Wiki6M_ver_1_0_title_only.jsonl", wiki)
    command = [
        "evaluate", f"--model=scorer=local-dir:{real_data / 'models' / 'scorer'}", f"--data=oven={root}",
        f"--json={tmp_path / 'r.json'}", "--set", f"output={tmp_path / 'out'}", "evaluate.oven.question_weight=0.1",
    ]  # fmt: skip
    for _ in range(2):
        with pytest.raises(SystemExit) as done:
            cli.main(command)
        assert not done.value.code
    said = capsys.readouterr()
    assert "entity unseen" in said.out
    assert said.err.count("texts a second") == 1  # the second time no text is read again
    (result,) = json.loads((tmp_path / "r.json").read_text())["results"]
    chance = 1 / len(names)
    assert result["figures"]["final"] > 20 * chance
    assert result["counts"]["candidates"] == len(names)
    (place,) = (tmp_path / "out" / "evaluation" / "predictions" / "oven").iterdir()
    scores = tmp_path / "scores.json"
    asked = ["--protocol=oven", f"--predictions={place}", f"--ground-truth={root / 'oven_data'}", f"--json={scores}"]
    with pytest.raises(SystemExit):
        cli.main(["evaluate", *asked])
    again = json.loads(scores.read_text())["results"]["oven"]
    assert again["final_score"] / 100 == result["figures"]["final"]
