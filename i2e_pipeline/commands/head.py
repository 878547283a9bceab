"""`i2e head`: train a head on stored vectors and on what somebody has said of the images, or read one of another's."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from i2e_pipeline.clean import converting, fitting, heads
from i2e_pipeline.clean.heads import HeadError
from i2e_pipeline.core import files
from i2e_pipeline.core.config import ModelConfig, PolicyHead
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.images import models
from i2e_pipeline.images.kept import KeptVectors
from i2e_pipeline.score.stages import stored_vectors_of

_SAID = {"1": True, "0": False, "true": True, "false": False, "yes": True, "no": False}


@dataclass(frozen=True)
class Labels:
    path: str
    found: Mapping[str, bool]
    """By image id, hex digits."""
    group: Mapping[str, str]
    """Of those that belong to one."""


def train(
    vectors: tuple[list[str], npt.NDArray[np.float16]],
    model: ModelConfig,
    labels: Labels,
    finds: str,
    write: str,
    precision: float,
    l2: float,
) -> dict[str, Any]:
    """Fit a head, write it, and return its figures.

    vectors   ids of labelled images in hex digits, and (N, D), of `model`
    Raises HeadError for vectors that are no numbers, and where there are too few images.
    """
    ids, stored_ND = vectors
    if len(bad := np.flatnonzero(~np.isfinite(stored_ND).all(axis=1))):
        raise HeadError(f"the vector of image {ids[bad[0]]} (of {len(bad)} images) has NaN or infinity: leave it out")
    wanted_N = np.array([labels.found[image] for image in ids], dtype=bool)
    part_N = fitting.parts([labels.group.get(image, image) for image in ids])
    head, measured = fitting.trained(
        stored_ND,
        wanted_N,
        part_N,
        finds=finds,
        model=heads.model_name(model),
        vectors_of=heads.vectors_of(model),
        precision=precision,
        l2=l2,
        on=labels.path.rpartition("/")[2],
    )
    heads.write(write, head)
    without = len(labels.found) - len(ids)
    return {
        "head": write,
        "threshold": head.about.threshold,
        "held_out": asdict(measured),
        **({"labels_without_a_vector": without} if without else {}),
    }


def convert(read: str, model: str | None, score: ModelConfig, write: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write the head that a state dict is (clean/converting.py), and return what it is.

    model   whose vectors it reads; None: `score`'s
    about   further fields of heads.About
    Raises HeadError for what is no head, or reads vectors of another width than the model's.
    """
    if about["scale"] is not None and about["output"] != "number":
        raise HeadError("--scale is of a number: probabilities lie between 0 and 1")
    of = PolicyHead(reason="unwanted", head=write, threshold=0, model=model or "").encoder(score)
    vectors = {"model": heads.model_name(of), "vectors_of": heads.vectors_of(of), "width": 0}
    said = {"converted_from": read.rpartition("/")[2]}
    made = converting.converted(read, heads.About(**{**vectors, **about, "measured": said}))
    width = models.width(of.model)
    if width not in (None, made.about.width):
        raise HeadError(
            f"{read} reads vectors {made.about.width} wide, and {vectors['model']} gives {width}: name its --model"
        )
    heads.write(write, made)
    shapes = [list(weight.shape) for weight, _ in made.layers]
    return {"head": write, "reads": vectors["model"], "layers": shapes, "threshold": made.about.threshold}


def read_labels(path: str) -> Labels:
    """CSV or Parquet: image_id, found (1: the head is to find the image; 0: it is not), and if it is there group, by
    which images are parted; an empty one is none. Raises HeadError with the row."""
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
        group = "" if row.get("group") is None else str(row["group"]).strip()
        if group and groups.setdefault(image, group) != group:
            raise HeadError(f"{path}, row {number}: {image} is in two groups, {groups[image]} and {group}")
    return Labels(path, found, groups)


def _hex(image: Any) -> str:
    return image.hex() if isinstance(image, bytes) else str(image).strip().lower()


def of_output(pipeline: Pipeline, labels: Labels) -> tuple[list[str], npt.NDArray[np.float16]]:
    """Ids and vectors of the labelled images of an output, each once: of all files the ids are read, and vectors of
    those row groups that hold a labelled image. Raises HeadError where it keeps none, or some of another model than the
    config's."""
    tables, config = pipeline.tables, pipeline.config
    commits = list(tables.commits_of("image_vectors").values())
    now = stored_vectors_of(config)
    if other := [commit for commit in commits if commit.facts.get("vectors_of") != now]:
        raise HeadError(
            f"{config.output}: the vectors of {len(other)} of {len(commits)} units are of another model than "
            f"score.model={config.score.model}, or were made otherwise: `i2e run` makes them anew, or name the model "
            "that they are of"
        )
    paths = [tables.path("image_vectors", f.path) for commit in commits for f in commit.files.get("image_vectors", [])]
    return _once(_of_labelled(paths, labels), labels, config.output, sum(c.rows("image_vectors") for c in commits))


def _of_labelled(paths: Sequence[str], labels: Labels) -> Iterator[pa.RecordBatch]:
    """Rows of image_vectors that are labelled, file by file: what is known of one is let go with it."""
    wanted = [bytes.fromhex(image) for image in labels.found]
    for path in paths:
        yield from KeptVectors({0: [path]}).of(0, wanted).select(["image_id", "vector"]).to_batches()


def of_file(path: str, labels: Labels) -> tuple[list[str], npt.NDArray[np.float16]]:
    """The same of a Parquet file with image_id and vector (float16 in bytes, or a list of numbers)."""
    try:
        filesystem, inner = files.open_filesystem(path)
        with filesystem.open_input_file(inner) as stream, pq.ParquetFile(stream) as opened:
            names = opened.schema_arrow.names
            if lacking := [name for name in ("image_id", "vector") if name not in names]:
                raise HeadError(f"{path} has no column {', '.join(lacking)}; it has {', '.join(names)}")
            return _once(opened.iter_batches(65_536, columns=["image_id", "vector"]), labels, path)
    except (pa.ArrowException, OSError) as error:
        raise HeadError(f"--vectors {path} cannot be read as Parquet: {error}") from None


def _once(
    batches: Iterable[pa.RecordBatch], labels: Labels, where: str, rows: int = 0
) -> tuple[list[str], npt.NDArray[np.float16]]:
    """What is labelled of the batches: of an output of 10^9 images no more is held.

    rows   how many there are beside those of the batches, for messages
    """
    wanted_ids = pa.array(list(labels.found), pa.string())
    wanted_bytes = pa.array([bytes.fromhex(image) for image in labels.found], pa.binary())
    by_id: dict[str, npt.NDArray[np.float16]] = {}
    seen = rows
    for batch in batches:
        seen += batch.num_rows
        ids = batch.column("image_id")
        is_text = pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)
        ids = pc.utf8_lower(ids.cast(pa.string())) if is_text else ids.cast(pa.binary())
        batch = batch.filter(pc.is_in(ids, wanted_ids if is_text else wanted_bytes))
        for image, vector in zip(*(batch.column(name).to_pylist() for name in ("image_id", "vector")), strict=True):
            by_id.setdefault(_hex(image), _numbers(vector, f"{where}: the vector of image {_hex(image)}"))
    if not seen:
        raise HeadError(f"{where} keeps no vectors of images: score.keep_vectors=true, and `i2e run --redo score`")
    if not by_id:
        raise HeadError(
            f"{labels.path}: none of its {len(labels.found)} images has a vector in {where}: image_id is that of the "
            "dataset, 32 hex digits, and score.keep_vectors keeps the vectors"
        )
    if len({len(vector) for vector in by_id.values()}) != 1:
        raise HeadError(f"{where}: its vectors are not of one width")
    ids_sorted = sorted(by_id)  # the order of files and rows must not choose the last digits of the weights
    return ids_sorted, np.stack([by_id[image] for image in ids_sorted])


def _numbers(vector: Any, what: str) -> npt.NDArray[np.float16]:
    try:
        if isinstance(vector, bytes):
            return np.frombuffer(vector, "<f2")
        made = np.asarray(vector, np.float64)
        if made.ndim == 1 and len(made):
            with np.errstate(over="ignore"):  # infinity is refused with the image's id
                return made.astype(np.float16)
    except (TypeError, ValueError):
        pass
    raise HeadError(f"{what} is neither float16 in bytes nor a list of numbers")
