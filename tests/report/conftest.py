"""A small published dataset, written by hand: files and commit records as Tables lays them out."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from i2e_pipeline.core.config import Config, from_tree
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.engine.tables import Commit, WrittenFile
from i2e_pipeline.report.quality import JUDGED
from i2e_pipeline.stages import pipeline

UNIT = "u-000000000001"


def png(colour: str = "teal", size: tuple[int, int] = (40, 30)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGBA", size, colour).save(stream, "PNG")
    return stream.getvalue()


def key(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def image(name: str, *labels: tuple[int, int, float], **fields: Any) -> dict[str, Any]:
    """A published image; labels are (entity_id, class_index, score)."""
    row = {
        "image_id": key(name).hex(),
        "image": {"bytes": png(), "path": None},
        "url": f"https://example.org/{name}.png",
        "alt_text": name,
        "width": 40,
        "height": 30,
        "key": name,
        "pair_id": key(name).hex(),
        "perceptual_hash": "00" * 32,
        "split": "train",
        "labels": [
            {"entity_id": e, "class_index": c, "score": s, "clip_score": 0.3, "mention": name} for e, c, s in labels
        ],
    }
    return {**row, **fields}


def entity(entity_id: int, name: str, images: int, **fields: Any) -> dict[str, Any]:
    """A row of the statistics of entities."""
    depicted = images > 0
    row = {
        "entity_id": entity_id,
        "class_index": entity_id if depicted else None,
        "name": name,
        "description": None,
        "aliases": [],
        "images": images,
        "pairs_proposed": images + 3,
        "pairs_labelled": images,
        "mean_clip_score": 0.2,
        "mean_clip_score_labelled": 0.3 if depicted else None,
        "mean_probability": 0.9 if depicted else None,
        "types": [],
        "coarse_type": None,
        "sitelinks": None,
        "popularity": None,
        "is_human": None,
        "wikipedia_title": None,
        "retired": False,
    }
    return {**row, **fields}


def judgement(name: str, entity_id: int, truth: int | None, right: bool | None, **fields: Any) -> dict[str, Any]:
    """A row of judged.parquet on the image of that name."""
    row = {
        "image_id": key(name).hex(),
        "pair_id": key(name).hex(),
        "entity_id": entity_id,
        "truth": truth,
        "nothing": False,
        "right": right,
        "probability": 0.9,
    }
    return {**row, **fields}


class Output:
    """Writes a dataset's tables, records and manifest below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config: Config = from_tree({"output": str(root)}, "a test")
        self.pipeline: Pipeline = pipeline(self.config)

    def table(self, name: str, rows: Sequence[dict[str, Any]], folder: str) -> WrittenFile:
        path = self.root / name / folder / "part-0.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            pa.Table.from_pylist(list(rows), schema=self.pipeline.tables.catalogue.schema(name)), path, row_group_size=3
        )
        return WrittenFile(f"{folder}/part-0.parquet", len(rows), path.stat().st_size)

    def commit(
        self,
        stage: str,
        unit: str,
        tables: dict[str, Sequence[dict[str, Any]]],
        rejects: Sequence[dict[str, Any]] = (),
        rows_out: int = 0,
    ) -> None:
        files = {name: [self.table(name, rows, f"unit={unit}")] for name, rows in tables.items()}
        files["rejects"] = [self.table("rejects", rejects, f"stage={stage}/unit={unit}")]
        rejected = {r["reason"]: sum(x["reason"] == r["reason"] for x in rejects) for r in rejects}
        record = Commit(stage, unit, "f", {}, files, rows_out + len(rejects), rows_out, rejected, seconds=1.5)
        path = self.root / "_commits" / stage / f"{unit}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(record)))

    def publish(
        self,
        images: Sequence[dict[str, Any]],
        entities: Sequence[dict[str, Any]],
        rejects: Sequence[dict[str, Any]] = (),
        quality: Sequence[dict[str, Any]] = (),
        judged: Sequence[dict[str, Any]] = (),
    ) -> None:
        """A whole output; `rejects` are the label stage's, `judged` rows of judged.parquet."""
        depicted = [e for e in entities if e["images"]]
        classes = [{**e, "mean_clip_score": e["mean_clip_score_labelled"], "split": "train"} for e in depicted]
        classes = [{n: e[n] for n in self.pipeline.tables.catalogue.schema("i2e/entities").names} for e in classes]
        labels = [
            {
                "image_id": bytes.fromhex(i["image_id"]),
                "pair_id": bytes.fromhex(i["pair_id"]),
                "shard": 0,
                "row": n,
                "width": 40,
                "height": 30,
                "entity_id": label["entity_id"],
                "clip_score": 0.3,
                "text_probability": 0.5,
                "probability": label["score"],
                "mention": label["mention"],
                "reason": None,
            }
            for n, i in enumerate(images)
            for label in i["labels"]
        ]
        by_images = sorted({e["images"] for e in entities if e["images"]})
        buckets = [
            {
                "images_from": n,
                "images_to": n,
                "entities": sum(e["images"] == n for e in entities),
                "images": n * sum(e["images"] == n for e in entities),
            }
            for n in by_images
        ]
        pairs = len(images) + len(rejects)
        reasons = {r["reason"]: sum(x["reason"] == r["reason"] for x in rejects) for r in rejects}
        funnel = [
            {"stage": "pairs", "rows_are": "pairs", "rows_in": pairs, "rows_out": pairs, "rejected": {}},
            {"stage": "label", "rows_are": "pairs", "rows_in": pairs, "rows_out": len(images), "rejected": reasons},
        ]
        self.commit("pairs", UNIT, {"pairs": [], "texts": []}, rows_out=pairs)
        self.commit("label", UNIT, {"labels": labels}, rejects, rows_out=len(images))
        self.commit("publish", UNIT, {"i2e/images": images}, rows_out=len(images))
        self.commit(
            "finish",
            "all",
            {
                "i2e/entities": classes,
                "i2e/statistics/entities": entities,
                "i2e/statistics/buckets": buckets,
                "i2e/statistics/funnel": [],
            },
        )
        manifest = {
            "format_version": 1,
            "images": len(images),
            "labels": len(labels),
            "entities": len(classes),
            "units": {UNIT: len(images)},
            "storage": "parquet",
            "model": {"model": "scorer@1"},
            "labels_chosen_by": {"bar": 0.8},
            "thresholds": {"link": {}, "build": {}},
            "fingerprints": {},
            "dataset": "d",
            "software": {},
            "funnel": funnel,
            "knowledge_base": {
                "stage": "knowledge_base",
                "rows_are": "dump lines",
                "rows_in": 2,
                "rows_out": 1,
                "rejected": {"bracket": 1},
            },
        }
        (self.root / "i2e" / "manifest.json").write_text(json.dumps(manifest))
        if quality:
            (self.root / "quality.json").write_text(json.dumps(quality))
        if judged:
            pq.write_table(pa.Table.from_pylist(list(judged), schema=JUDGED), self.root / "judged.parquet")


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(tmp_path / "run")


@pytest.fixture
def published(output: Output) -> Callable[..., Output]:
    """Publishes three images of two entities, with any part replaced."""

    def publish(**parts: Any) -> Output:
        whole: dict[str, Any] = {
            "images": [
                image("apple one", (89, 0, 0.95)),
                image("apple two", (89, 0, 0.81)),
                image("pear", (434, 1, 0.9)),
            ],
            "entities": [entity(89, "apple", 2), entity(434, "pear", 1), entity(23387, "week", 0, pairs_proposed=40)],
        }
        output.publish(**{**whole, **parts})
        return output

    return publish
