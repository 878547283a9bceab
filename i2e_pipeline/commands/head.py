"""`i2e head`: train a head on stored vectors and on what somebody has said of the images."""

from __future__ import annotations

import io
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from i2e_pipeline.clean import fitting, heads
from i2e_pipeline.clean.heads import HeadError
from i2e_pipeline.core import files
from i2e_pipeline.core.config import ModelConfig
from i2e_pipeline.engine.pipeline import Pipeline

_SAID = {"1": True, "0": False, "true": True, "false": False, "yes": True, "no": False}


def train(
    vectors: tuple[list[str], npt.NDArray[np.float16]],
    model: ModelConfig,
    labels: str,
    finds: str,
    write: str,
    precision: float,
    l2: float,
) -> dict[str, Any]:
    """Fit a head, write it, and return its figures.

    vectors   ids of images in hex digits, and (N, D)
    labels    CSV or Parquet: image_id, found (1: the head is to find the image; 0: it is not), and if it is there
              group, by which images are parted
    Raises HeadError for labels that cannot be read, for a model that is not told, and where there are too few images.
    """
    found, group = read_labels(labels)
    ids, stored_ND = vectors
    at = [i for i, image in enumerate(ids) if image in found]
    if not at:
        raise HeadError(
            f"{labels}: none of its {len(found)} images has a vector: image_id is that of the dataset, 32 hex digits, "
            "and score.keep_vectors keeps the vectors"
        )
    wanted_N = np.array([found[ids[i]] for i in at], dtype=bool)
    part_N = fitting.parts([group.get(ids[i], ids[i]) for i in at])
    head, measured = fitting.trained(
        stored_ND[at],
        wanted_N,
        part_N,
        finds=finds,
        model=heads.model_name(model),
        vectors_of=heads.vectors_of(model),
        precision=precision,
        l2=l2,
        on=labels.rpartition("/")[2],
    )
    heads.write(write, head)
    without = len(found) - len(at)
    return {
        "head": write,
        "threshold": head.about.threshold,
        "held_out": asdict(measured),
        **({"labels_without_a_vector": without} if without else {}),
    }


def read_labels(path: str) -> tuple[dict[str, bool], dict[str, str]]:
    """image_id (hex digits) to whether it is to be found, and to its group where a column says one. Raises HeadError
    with the row."""
    stored = files.read_bytes(path)
    try:
        if path.lower().endswith(".parquet"):
            table = pq.read_table(io.BytesIO(stored))
        else:
            text = pacsv.ConvertOptions(column_types=dict.fromkeys(("image_id", "found", "group"), pa.string()))
            table = pacsv.read_csv(io.BytesIO(stored), convert_options=text)
    except pa.ArrowInvalid as error:
        raise HeadError(f"{path} is neither CSV nor Parquet: {error}") from None
    if lacking := [name for name in ("image_id", "found") if name not in table.column_names]:
        raise HeadError(
            f"{path} has no column {', '.join(lacking)}: it has {', '.join(table.column_names)}, and image_id, found "
            "(1 or 0) are wanted"
        )
    found: dict[str, bool] = {}
    groups: dict[str, str] = {}
    for number, row in enumerate(table.to_pylist(), 1):
        image = _hex(row["image_id"])
        said = _SAID.get(str(row["found"]).strip().lower())
        if said is None or len(image) != 32:
            raise HeadError(f"{path}, row {number}: {row['image_id']!r} {row['found']!r}: 32 hex digits and 1 or 0")
        if found.setdefault(image, said) != said:
            raise HeadError(f"{path}, row {number}: {image} is said to be both, 1 and 0: leave one out")
        if row.get("group") is not None:
            groups[image] = str(row["group"])
    return found, groups


def _hex(image: Any) -> str:
    return image.hex() if isinstance(image, bytes) else str(image).strip().lower()


def of_output(pipeline: Pipeline) -> tuple[list[str], npt.NDArray[np.float16]]:
    """Ids and vectors of the images of an output, each once. Raises HeadError where it keeps none."""
    tables = pipeline.tables
    commits = list(tables.commits_of("image_vectors").values())
    batches = list(tables.batches("image_vectors", commits, ["image_id", "vector"])) if commits else []
    return _once(pa.Table.from_batches(batches) if batches else None, pipeline.config.output)


def of_file(path: str) -> tuple[list[str], npt.NDArray[np.float16]]:
    """The same of a Parquet file with image_id and vector (float16 in bytes, or a list of numbers)."""
    table = pq.read_table(io.BytesIO(files.read_bytes(path)))
    if lacking := [name for name in ("image_id", "vector") if name not in table.column_names]:
        raise HeadError(f"{path} has no column {', '.join(lacking)}; it has {', '.join(table.column_names)}")
    return _once(table.select(["image_id", "vector"]), path)


def _once(table: pa.Table | None, where: str) -> tuple[list[str], npt.NDArray[np.float16]]:
    if table is None or not table.num_rows:
        raise HeadError(f"{where} keeps no vectors of images: score.keep_vectors=true, and `i2e run --redo score`")
    by_id: dict[str, Any] = {}
    for batch in table.to_batches():
        stored = batch.column("vector")
        if not (pa.types.is_binary(stored.type) or pa.types.is_large_binary(stored.type)):
            stored = pc.cast(stored, pa.list_(pa.float32()))
        for image, vector in zip(batch.column("image_id").to_pylist(), stored.to_pylist(), strict=True):
            made = np.frombuffer(vector, "<f2") if isinstance(vector, bytes) else np.asarray(vector, np.float16)
            by_id.setdefault(_hex(image), made)
    if len({len(vector) for vector in by_id.values()}) != 1:
        raise HeadError(f"{where}: its vectors are not of one width")
    ids = sorted(by_id)  # the order of files and rows must not choose the last digits of the weights
    return ids, np.stack([by_id[image] for image in ids])
