from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from i2e_pipeline.core.config import SelectConfig
from i2e_pipeline.core.ids import content_id
from i2e_pipeline.core.schemas import ID, IMAGE_LABELS, LABELS
from i2e_pipeline.core.splits import held_out_entities
from i2e_pipeline.publish import selection
from i2e_pipeline.publish.images import splits

COLUMNS = [*LABELS.names, "unit"]


def label(pair: int, image: int, entity: int, **overrides: Any) -> dict[str, Any]:
    return {
        "image_id": image.to_bytes(16, "big"),
        "pair_id": pair.to_bytes(16, "big"),
        "shard": 0,
        "row": pair,
        "width": 5,
        "height": 6,
        "entity_id": entity,
        "clip_score": 0.3,
        "text_probability": 0.5,
        "probability": 0.9,
        "mention": f"name {entity}",
        "reason": None,
        "unit": "u-1",
        **overrides,
    }


def select(spark: Any, rows: list[dict[str, Any]], **build: Any) -> tuple[dict[int, Any], list[dict[str, Any]]]:
    """Published images by number (pair, labels) and rejects."""
    from pyspark.sql.pandas.types import from_arrow_schema
    from pyspark.sql.types import StringType

    max_labels = int(build.pop("max_labels_per_image", 4))
    urls = build.pop("urls", {})
    schema = from_arrow_schema(LABELS).add("unit", StringType())
    chosen = spark.createDataFrame([tuple(r[c] for c in COLUMNS) for r in rows], schema)
    chosen_by = {k: build.pop(k) for k in [*build] if k in SelectConfig.model_fields}
    settings = SelectConfig.model_validate({"min_images_per_entity": 1, **chosen_by})
    labels = selection.image_labels(chosen, max_labels, settings)
    before = build.pop("before", None)
    known = None if before is None else spark.createDataFrame(before, "entity_id long, class_index int")
    units = [(name, place) for place, name in enumerate(build.pop("units", sorted({r["unit"] for r in rows})))]
    places = spark.createDataFrame(units, "unit string, place int")
    classes = selection.class_indices(labels.where("dropped is null"), chosen, places, known)
    pairs = {r["pair_id"]: (r["pair_id"], urls.get(r["row"]), bytes(16), r["unit"]) for r in rows}
    texts = spark.createDataFrame(list(pairs.values()), "pair_id binary, url string, text_id binary, unit string")
    shown = spark.createDataFrame(
        [(r["image_id"], r["entity_id"]) for r in [*rows, *build.pop("left_out", [])]],
        "image_id binary, entity_id long",
    )
    table = selection.pairs_to_publish(chosen, labels, classes, texts, shown).toArrow()
    images, rejects = {}, []
    for name, batch in selection.select_images(iter(table.to_batches())):
        for row in batch.to_pylist():
            if name == "rejects":
                rejects.append(row)
            else:
                images[int.from_bytes(row["image_id"], "big")] = row
    return images, rejects


def test_of_pairs_with_one_image_the_first_by_content_stands(spark: Any) -> None:
    """Catches: another url and text for an image when the same pairs lie in other files, or in another order."""
    rows = [label(pair, 7, 42, unit=f"u-{pair % 2}") for pair in (1, 2, 3)]
    images, rejects = select(spark, rows, urls={1: "http://b", 2: "http://a", 3: "http://c"})
    assert {int.from_bytes(i["pair_id"], "big") for i in images.values()} == {2}
    assert [r["reason"] for r in rejects] == ["duplicate_image"] * 2
    nowhere, _ = select(spark, rows, urls={1: "http://b", 2: "http://a"})  # no url comes first
    assert {int.from_bytes(i["pair_id"], "big") for i in nowhere.values()} == {3}


def test_an_image_of_several_pairs_is_published_once_with_the_labels_of_all(spark: Any) -> None:
    images, rejects = select(
        spark,
        [
            label(1, 7, 42, probability=0.8),
            label(2, 7, 42, probability=0.9, unit="u-2"),
            label(2, 7, 43, unit="u-2"),
        ],
    )
    assert list(images) == [7]
    assert images[7]["row"] == 1
    assert images[7]["unit"] == "u-1"
    assert [(x["entity_id"], x["class_index"], round(x["score"], 3)) for x in images[7]["labels"]] == [
        (42, 0, 0.9),
        (43, 1, 0.9),
    ]
    (reject,) = rejects
    assert reject["reason"] == "duplicate_image"
    assert reject["detail"] == f"published from pair {(1).to_bytes(16, 'big').hex()}"


def test_rare_entities_go_and_with_them_images_without_another_label(spark: Any) -> None:
    rows = [
        label(1, 1, 42),
        label(2, 2, 42),
        label(3, 3, 43),
        label(4, 2, 43, pair_id=(2).to_bytes(16, "big")),
        label(5, 5, 44),
    ]
    images, rejects = select(spark, rows, min_images_per_entity=2)
    assert {n: [x["entity_id"] for x in r["labels"]] for n, r in images.items()} == {1: [42], 2: [42, 43], 3: [43]}
    assert [(r["reason"], r["row"]) for r in rejects] == [("rare_entity", 5)]


def test_a_cap_keeps_the_same_images_whatever_their_order(spark: Any) -> None:
    """Catches: caps by random state or arrival (MetaCLIP and cc2dataset draw unseeded)."""
    rows = [label(n, n, 42) for n in range(400)]
    images, rejects = select(spark, rows, max_images_per_entity=100)
    assert 60 < len(images) < 140
    assert len(images) + len(rejects) == 400
    assert {r["reason"] for r in rejects} == {"over_cap"}
    assert select(spark, rows[::-1], max_images_per_entity=100)[0].keys() == images.keys()


def balanced(spark: Any, shown: dict[int, tuple[int, ...]], **settings: int) -> set[int]:
    """Which images are kept, all their labels with them. shown: image to its entities."""
    rows = [label(image, image, entity) for image, entities in shown.items() for entity in entities]
    images, rejects = select(spark, rows, **settings)
    assert all({x["entity_id"] for x in images[image]["labels"]} == set(shown[image]) for image in images)
    assert {r["reason"] for r in rejects} <= {"unbalanced"}
    assert len(images) + len({r["row"] for r in rejects}) == len(shown)
    return set(images)


FREQUENT, HALF, RARE = 1, 2, 3


def crowd(images: int) -> dict[int, tuple[int, ...]]:
    """Images of a frequent entity, every fourth with another of a fourth as many, every 40th with a rare one."""
    return {n: (FREQUENT, *((HALF,) if n % 4 == 0 else ()), *((RARE,) if n % 40 == 1 else ())) for n in range(images)}


def within_noise(kept: int, of: int, share: float) -> bool:
    """Four standard deviations of a binomial draw: once in 16,000."""
    return abs(kept - of * share) <= 4 * (of * share * (1 - share)) ** 0.5


def test_balancing_keeps_an_image_if_a_draw_for_any_entity_does(spark: Any) -> None:
    """MetaCLIP's Algorithm 1: shares of 1-(1-p1)(1-p2), heads near t, tails whole."""
    shown, t = crowd(4000), 400
    kept = balanced(spark, shown, balance_at=t)
    p1, p2 = t / 4000, t / 1000
    alone = {n for n, entities in shown.items() if entities == (FREQUENT,)}
    both = {n for n, entities in shown.items() if HALF in entities}
    rare = {n for n, entities in shown.items() if RARE in entities}
    assert len(rare) <= t
    assert rare <= kept
    assert within_noise(len(kept & alone), len(alone), p1)
    assert within_noise(len(kept & both), len(both), 1 - (1 - p1) * (1 - p2))
    assert balanced(spark, dict(reversed(shown.items())), balance_at=t) == kept
    assert balanced(spark, shown, balance_at=4000) == set(shown)


def test_what_a_grown_dataset_keeps_of_its_images_it_kept_before(spark: Any) -> None:
    """n grows and t / n falls, while an image's hash stays. Catches: draws over places, or with a seed of the run."""
    small, large = crowd(1200), crowd(4000)
    before, after = (balanced(spark, shown, balance_at=150) for shown in (small, large))
    assert after & set(small) < before


def test_labels_that_are_left_out_anyway_keep_no_image(spark: Any) -> None:
    """A rare entity's label is not published, and an entity of few images would keep each of them with certainty."""
    shown = crowd(1000)
    rows = [label(n, n, entity) for n, entities in shown.items() for entity in entities]
    images, _ = select(spark, rows, balance_at=100, min_images_per_entity=30)
    rare = {n for n, entities in shown.items() if RARE in entities}
    assert 0 < len(rare & set(images)) < len(rare) == 25
    assert {x["entity_id"] for row in images.values() for x in row["labels"]} == {FREQUENT, HALF}


def test_classes_are_numbered_in_the_order_of_entities(spark: Any) -> None:
    images, _ = select(spark, [label(n, n, entity) for n, entity in enumerate([900, 5, 77])])
    assert {x["entity_id"]: x["class_index"] for r in images.values() for x in r["labels"]} == {5: 0, 77: 1, 900: 2}


def test_an_index_once_given_stays_and_new_entities_go_behind(spark: Any) -> None:
    """Catches: every class index shifted when a crawl was added (img2dataset's users number classes anew)."""
    rows = [label(n, n, entity) for n, entity in enumerate([900, 5, 77])]
    images, _ = select(spark, rows, before=[(77, 0), (12, 1), (900, 2)])
    assert {x["entity_id"]: x["class_index"] for r in images.values() for x in r["labels"]} == {77: 0, 900: 2, 5: 3}


def test_new_entities_are_numbered_by_their_first_unit(spark: Any) -> None:
    rows = [
        label(1, 1, 9, unit="u-b"),
        label(2, 2, 5, unit="u-a"),
        label(3, 3, 4, unit="u-b"),
        label(4, 4, 9, unit="u-a"),
    ]
    for places, numbered in ((["u-b", "u-a"], {4: 0, 9: 1, 5: 2}), (["u-a", "u-b"], {5: 0, 9: 1, 4: 2})):
        images, _ = select(spark, rows, units=places)
        assert {x["entity_id"]: x["class_index"] for r in images.values() for x in r["labels"]} == numbered


def test_a_label_says_what_its_most_probable_pair_says(spark: Any) -> None:
    images, _ = select(
        spark, [label(1, 7, 42, probability=0.7, mention="Q"), label(2, 7, 42, probability=0.8, clip_score=0.1)]
    )
    (only,) = images[7]["labels"]
    assert (only["mention"], round(only["clip_score"], 3), round(only["score"], 3)) == ("name 42", 0.1, 0.8)


def test_an_image_lies_on_the_same_side_in_every_dataset() -> None:
    ids = pa.array([content_id(bytes([n % 256, n // 256])) for n in range(2000)], ID)
    labels = pa.array([[{"entity_id": 1 + n % 50}, {"entity_id": 1 + n % 7}] for n in range(2000)], IMAGE_LABELS)
    found = splits(ids, labels).to_pylist()
    held = {e for e in range(1, 51) if held_out_entities(np.array([e]))[0]}
    assert 0 < len(held) < 15
    shows = [bool({1 + n % 50, 1 + n % 7} & held) for n in range(2000)]
    assert [s == "test" for s in found] == shows
    assert 0.03 < found.count("validation") / shows.count(False) < 0.07
    some = splits(ids.slice(300, 50), labels.slice(300, 50)).to_pylist()
    assert some == found[300:350]
    hides = np.arange(2000) % 2 == 0
    with_hidden = splits(ids, labels, hides).to_pylist()
    assert [now for now, h in zip(with_hidden, hides, strict=True) if h] == ["test"] * 1000
    assert with_hidden[1::2] == found[1::2]


def test_an_image_hides_what_its_labels_that_are_gone_say(spark: Any) -> None:
    """Catches: an image whose label of a held-out entity a floor, a bound, a list or a stage took away, in training."""
    test, *_ = [int(e) for e in np.arange(1, 200) if held_out_entities(np.array([e]))[0]]
    train = [int(e) for e in np.arange(1, 200) if not held_out_entities(np.array([e]))[0]][:3]
    rows = [
        *(label(n, n, train[0]) for n in range(1, 7)),  # not rare
        label(1, 1, test),  # rare: it is image 1's alone
        label(2, 2, train[1]),  # rare, and of no test
        label(11, 11, train[0], probability=0.9), label(11, 11, train[2], probability=0.8),
        label(12, 12, train[0], probability=0.9), label(12, 12, train[2], probability=0.8),
        label(11, 11, test, probability=0.3),  # beyond the most that an image has
    ]  # fmt: skip
    images, _ = select(
        spark,
        rows,
        min_images_per_entity=2,
        max_labels_per_image=2,
        left_out=[label(3, 3, test), label(4, 4, train[1])],
    )
    assert all(test not in [x["entity_id"] for x in image["labels"]] for image in images.values())
    assert sorted(n for n, image in images.items() if image["hides_held_out"]) == [1, 3, 11]
    published, _ = select(spark, rows)
    assert {n for n, image in published.items() if image["hides_held_out"]} == set(), "its labels say it"


def test_a_units_digest_follows_its_rows_not_their_order(spark: Any) -> None:
    def digests(rows: list[tuple[int, str, float]], *hide: int) -> dict[str, str]:
        frame = spark.createDataFrame(
            [(bytes([n]) * 16, bytes([n]) * 16, 0, n, unit, [(42, 0, score)], n in hide) for n, unit, score in rows],
            "image_id binary, pair_id binary, shard int, row long, unit string, "
            "labels array<struct<entity_id: long, class_index: int, score: float>>, hides_held_out boolean",
        )
        return selection.unit_digests(frame)

    rows = [(1, "u-1", 0.5), (2, "u-1", 0.6), (3, "u-2", 0.7)]
    assert digests(rows) == digests(rows[::-1])
    changed = digests([(1, "u-1", 0.5), (2, "u-1", 0.61), (3, "u-2", 0.7)])
    assert changed["u-1"] != digests(rows)["u-1"]
    assert changed["u-2"] == digests(rows)["u-2"]
    moved = digests(rows, 2)
    assert (moved["u-1"] == digests(rows)["u-1"], moved["u-2"] == digests(rows)["u-2"]) == (False, True)


@pytest.mark.parametrize("labels", [[], None])
def test_an_image_that_lost_all_labels_is_a_reject(labels: Any) -> None:
    kind = IMAGE_LABELS
    batch = pa.RecordBatch.from_pydict(
        {
            "image_id": pa.array([bytes(16)], pa.binary(16)),
            "pair_id": pa.array([bytes(16)], pa.binary(16)),
            "unit": ["u"],
            "shard": pa.array([0], pa.int32()),
            "row": pa.array([0], pa.int64()),
            "width": pa.array([1], pa.int32()),
            "height": pa.array([1], pa.int32()),
            "stands": [True],
            "standing_pair": pa.array([bytes(16)], pa.binary(16)),
            "labels": pa.array([labels], kind),
            "dropped": ["rare_entity"],
            "unpublished": pa.array([[42]], pa.list_(pa.int64())),
        }
    )
    made = list(selection.select_images(iter([batch])))
    assert [(t, b.num_rows) for t, b in made if b.num_rows] == [("rejects", 1)]


def test_a_wider_label_stands_where_no_pair_of_the_image_has_one_by_name(spark: Any) -> None:
    """Catches: a husky that is a dog, too, because another text of the same image names it otherwise."""
    rows = [(1, 7, None), (1, 8, 7), (2, 8, 7), (3, 9, None), (3, 7, None)]
    chosen = spark.createDataFrame(
        [(bytes([image]) * 16, entity, of) for image, entity, of in rows],
        "image_id binary, entity_id long, wider_of long",
    )
    kept = selection.without_wider(chosen).collect()
    assert sorted((r["image_id"][0], r["entity_id"]) for r in kept) == [(1, 7), (2, 8), (3, 7), (3, 9)]
