"""Entity vectors: CLIP's vector of an entity's text, computed once per (entity, model) and shared by all workers.

Reads    kb/entities (entity_id, name, description)
Writes   entity_vectors (entity_id, vector: float32, norm 1)

3 million entities of 512 numbers are 3 GB. Each machine lays the table out once, sorted by id, and its workers map it
into memory, so that they share its pages (637 MB against 1,037 MB for 400 MB of vectors on two workers).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from i2e_pipeline.core import arrays
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.files import open_filesystem
from i2e_pipeline.core.machine import scratch
from i2e_pipeline.core.schemas import ENTITY_VECTORS
from i2e_pipeline.images.encoder import Encoder

_HEADER, _FORMAT = "entity_vectors", 1
KEPT_STORES = 3
"""How many stores a cache folder keeps: those used last. The table grows during a run, and each of its states is a
store."""


class EntityVectorsError(I2EError, ValueError):
    """A table entity_vectors whose vectors do not go together; the message names the file."""


class MissingVectorError(I2EError, KeyError):
    """An entity without a vector; the message names it and the way out."""

    def __str__(self) -> str:
        return str(self.args[0])


def entity_text(template: str, name: str, description: str | None) -> str:
    """What the model is told of an entity. Where there is no description, its place in the template is
    left out, together with the punctuation around it.

    >>> entity_text("a photo of {name} ({description})", "Mars", None)
    'a photo of Mars'
    """
    if not description:
        template = re.sub(r"[\s,;:–—(\[-]*\{description\}[)\]]*", "", template)
    given = {"{name}": name, "{description}": description or ""}
    return re.sub(r"\{name\}|\{description\}", lambda place: given[place.group()], template)


def encode_entities(
    batches: Iterable[pa.RecordBatch], encoder: Encoder, template: str
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Kernel: text vectors of entities.

    batches   entity_id: int64, name: string, description: string or null
    yields    ("entity_vectors", ENTITY_VECTORS), a row per row. A vector of NaN is stored as it is: pairs that name
              its entity are then rejected as nan_score, and the run does not fail because of one text.
    """
    for batch in batches:
        names, descriptions = batch["name"].to_pylist(), batch["description"].to_pylist()
        texts = [entity_text(template, n or "", d) for n, d in zip(names, descriptions, strict=True)]
        distinct = list(dict.fromkeys(texts))
        vectors_ND = encoder.texts(distinct)
        where = {text: i for i, text in enumerate(distinct)}
        rows_ND = vectors_ND[np.fromiter((where[t] for t in texts), dtype=np.int64, count=len(texts))]
        lists = pa.ListArray.from_arrays(
            pa.array(np.arange(len(texts) + 1, dtype=np.int32) * encoder.width), pa.array(rows_ND.ravel())
        )
        columns = {
            "entity_id": batch["entity_id"],
            "vector": lists,
            "described": pa.array([bool(d) for d in descriptions]),
        }
        yield (
            "entity_vectors",
            pa.RecordBatch.from_arrays([columns[c] for c in ENTITY_VECTORS.names], schema=ENTITY_VECTORS),
        )


class EntityVectors:
    """The vectors of many entities, sorted by id. Many are looked up at once; processes that open a store share its
    pages."""

    def __init__(
        self,
        ids_N: np.ndarray,
        vectors_ND: np.ndarray,
        described_N: np.ndarray | None = None,
        source: str = "the vectors given",
    ) -> None:
        """`ids_N`: int64, rising. `vectors_ND`: float16 or float32, norm 1. `described_N`: bool; None: all are."""
        if len(ids_N) != len(vectors_ND):
            raise ValueError(f"{len(ids_N)} ids for {len(vectors_ND)} vectors")
        self._ids_N, self._vectors_ND, self._source = ids_N, vectors_ND, source
        self._described_N = np.ones(len(ids_N), dtype=bool) if described_N is None else described_N

    @classmethod
    def from_files(cls, files: Sequence[str], cache: str | None = None, key: str | None = None) -> EntityVectors:
        """The committed Parquet files of the table entity_vectors, through this machine's cache.

        cache   folder on a local disk; None: one of this user's under the temporary folder
        key     what the content is named by, such as the table's fingerprint; None: paths, sizes and times of the files
        The first worker lays the store out under a lock, the others wait and map it. Needs as much free disk as the
        vectors in float16; memory for a few thousand of them. An id that stands twice keeps its first vector.
        """
        root = Path(cache) if cache else scratch("entity-vectors")
        root.mkdir(parents=True, exist_ok=True)
        place = root / hashlib.blake2b(f"{_FORMAT} {key or _state(files)}".encode(), digest_size=16).hexdigest()
        with FileLock(f"{root}/.lock"):
            if not place.is_dir():
                with arrays.new(place, _HEADER, alone=True) as store:
                    _lay_out(files, store)
                _drop_old(root, keep=place)
            os.utime(place)
            stored = arrays.Arrays(place, _HEADER, _FORMAT)
            ids_N, described_N = stored["ids"], stored["described"]
            vectors_ND = stored["vectors"] if len(ids_N) else np.empty((0, 0), np.float16)
        return cls(ids_N, vectors_ND, described_N, f"{len(files)} files of entity_vectors")

    def __len__(self) -> int:
        return len(self._ids_N)

    @property
    def width(self) -> int:
        return int(self._vectors_ND.shape[1])

    def lookup(self, entity_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """vectors_ND (float32, norm 1) of these entities, in their order. Raises MissingVectorError."""
        vectors_ND = np.asarray(self._vectors_ND[self._places(entity_ids)], dtype=np.float32)
        norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        return vectors_ND / np.where(norms_N1 > 0, norms_N1, 1)  # float16 leaves norms of 1 +- 0.0003

    def described(self, entity_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """bool (N): whether the model was told a description with the name. Raises MissingVectorError."""
        return np.asarray(self._described_N[self._places(entity_ids)])

    def _places(self, entity_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        wanted = np.asarray(entity_ids, dtype=np.int64)
        at = np.searchsorted(self._ids_N, wanted)
        found = at < len(self._ids_N)
        found[found] = np.asarray(self._ids_N[at[found]]) == wanted[found]
        if not found.all():
            missing = np.unique(wanted[~found])
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise MissingVectorError(
                f"Q{missing[0]}{more} has no vector in {self._source}: encode the entities of these candidates first "
                "(`i2e run` does, jobs/score_images.py too)"
            )
        return at


def _state(files: Sequence[str]) -> str:
    infos = []
    for file in sorted(files):
        filesystem, inner = open_filesystem(file)
        info = filesystem.get_file_info(inner)
        infos.append(f"{file}\t{info.size}\t{info.mtime_ns}")
    return "\n".join(infos)


def _lay_out(files: Sequence[str], store: arrays.Writer) -> None:
    """ids (int64, rising), vectors (float16) and described (bool). In two passes: first the ids, then each vector to
    its place."""
    found = [np.empty(0, dtype=np.int64)]
    for file in files:
        found += [batch["entity_id"].to_numpy() for batch in _batches(file, ["entity_id"])]
    ids_M = np.concatenate(found)
    ids_N = np.unique(ids_M)
    described_N = np.ones(len(ids_N), dtype=bool)
    laid_ND: np.memmap | None = None
    written = np.zeros(len(ids_N), dtype=bool)
    for file in files:
        for batch in _batches(file, ["entity_id", "vector", "described"]):
            vectors_BD = _matrix(batch["vector"], file)
            if laid_ND is None:
                laid_ND = store.create("vectors", (len(ids_N), vectors_BD.shape[1]), np.float16)
            if vectors_BD.shape[1] != laid_ND.shape[1]:
                raise EntityVectorsError(
                    f"{file} holds vectors of {vectors_BD.shape[1]} numbers, others of {laid_ND.shape[1]}: two models' "
                    "vectors stand in one table; write entity_vectors afresh (`i2e run --redo score`)"
                )
            at_B, first_B = np.unique(np.searchsorted(ids_N, batch["entity_id"].to_numpy()), return_index=True)
            new = ~written[at_B]
            laid_ND[at_B[new]] = vectors_BD[first_B[new]]
            if "described" in batch.schema.names:
                described_N[at_B[new]] = batch["described"].to_numpy(zero_copy_only=False)[first_B[new]]
            written[at_B] = True
    if laid_ND is not None:
        laid_ND.flush()
    store.save("ids", ids_N)
    store.save("described", described_N)
    store.header = {"format": _FORMAT, "entities": len(ids_N)}


def _batches(file: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    filesystem, inner = open_filesystem(file)
    with filesystem.open_input_file(inner) as source:
        parquet = pq.ParquetFile(source)
        there = [c for c in columns if c in parquet.schema_arrow.names]
        yield from (b for b in parquet.iter_batches(4096, columns=there, use_threads=False) if b.num_rows)


def _matrix(vectors: pa.Array, file: str) -> np.ndarray:
    flat = vectors.flatten()
    widths = np.unique(np.diff(vectors.offsets.to_numpy()))
    if len(widths) != 1 or vectors.null_count or flat.null_count:
        raise EntityVectorsError(
            f"{file}: vectors of {widths.tolist()} numbers, {vectors.null_count} nulls; they are all of one width"
        )
    return flat.to_numpy().reshape(len(vectors), int(widths[0]))


def _drop_old(root: Path, keep: Path) -> None:
    stores = sorted((p for p in root.iterdir() if p.is_dir() and p != keep), key=lambda p: p.stat().st_mtime)
    for old in stores[: max(0, len(stores) - KEPT_STORES + 1)]:
        shutil.rmtree(old, ignore_errors=True)  # whoever has it mapped keeps its pages
