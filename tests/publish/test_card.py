"""The dataset card: what Hugging Face reads of it, and what people do."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
import yaml

from i2e_pipeline.core.config import PublishConfig
from i2e_pipeline.core.schemas import IMAGES
from i2e_pipeline.publish.card import card

FACTS: dict[str, Any] = {
    "images": 1234, "labels": 1300, "entities": 7, "storage": "parquet", "dataset": "0123",
    "funnel": [
        {"stage": "pairs", "rows_are": "pairs", "rows_in": 2000, "rows_out": 1990, "rejected": {"null_text": 10}},
        {"stage": "link", "rows_are": "mentions", "rows_in": 10, "rows_out": 10, "rejected": {}},
    ],
}  # fmt: skip
TOP = [{"entity_id": 42, "name": "a|b", "description": None, "images": 1000, "mean_clip_score_labelled": 0.25}]


def parts(settings: PublishConfig | None = None, **how: Any) -> tuple[dict[str, Any], str]:
    columns = how.pop("columns", IMAGES)
    text = card(FACTS | how.pop("facts", {}), TOP, settings or PublishConfig(), columns, **how)
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_front_says_what_the_columns_are() -> None:
    front, _ = parts()
    assert [c["config_name"] for c in front["configs"]] == ["default", "entities"]
    assert {c["description"] for c in front["configs"]} == {"I2E 0123"}
    (images, entities) = ({f["name"]: f for f in info["features"]} for info in front["dataset_info"])
    assert list(images) == IMAGES.names
    assert images["image"]["dtype"] == "image"
    assert {f["name"]: f["dtype"] for f in images["labels"]["list"]} == {
        "entity_id": "int64", "class_index": "int32", "score": "float32", "clip_score": "float32", "mention": "string"
    }  # fmt: skip
    assert (entities["aliases"]["list"], entities["popularity"]["dtype"]) == ("string", "float64")


@pytest.mark.parametrize(
    ("images", "size"),
    [
        (5, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (10**6 - 1, "100K<n<1M"),
        (10**9, "1B<n<10B"),
        (10**14, "100B<n<1T"),
    ],
)
def test_the_size_is_told_as_the_hub_has_it(images: int, size: str) -> None:
    assert parts(facts={"images": images})[0]["size_categories"] == [size]


def test_people_read_counts_rows_and_whom_to_ask() -> None:
    _, body = parts(PublishConfig(title="My I2E", contact="data@example.org", mask=()))
    for said in (
        "# My I2E: images", "1,234 images, 1,300 labels, 7 entities.",
        "| pairs | pairs | 2,000 | 1,990 | null_text 10 |", "| link | mentions | 10 | 10 | none |",
        "| [Q42](https://www.wikidata.org/wiki/Q42) | a\\|b |  | 1,000 | 0.250 |",
        "name it to data@example.org.", "stands as it was found", "load_dataset(",
    ):  # fmt: skip
        assert said in body
    assert "\n\n\n" not in body.replace("```\n\n", "```\n")


def test_kept_columns_are_told() -> None:
    front, body = parts(columns=IMAGES.append(pa.field("similarity", pa.float64())))
    assert "(entity_id, class_index, score, clip_score, mention), similarity |" in body
    assert front["dataset_info"][0]["features"][-1] == {"name": "similarity", "dtype": "float64"}


def test_of_a_delta_table_the_files_that_count_are_named() -> None:
    files = {
        "images": ["images/unit=b/2.parquet", "images/unit=a/1.parquet"],
        "entities": ["entities/unit=all/e.parquet"],
    }
    front, body = parts(facts={"storage": "delta"}, files=files)
    assert front["configs"][0]["data_files"] == ["images/unit=a/1.parquet", "images/unit=b/2.parquet"]
    assert "DeltaTable(" in body
    many = {**files, "images": [f"images/unit=a/{n}.parquet" for n in range(2000)]}
    assert parts(files=many)[0]["configs"][0]["data_files"] == "images/*/*.parquet"
