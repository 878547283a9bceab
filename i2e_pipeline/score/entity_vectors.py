"""Entity vectors: CLIP's vectors of an entity's texts, computed once per (entity, model) and shared by all workers.

Reads    kb/entities (entity_id, name, description, coarse_type, visual, fame)
Writes   entity_vectors: three vectors of each entity (float32, norm 1), and what scoring must know of it besides

An entity has three texts: its name with its description, its name alone, its description alone. Told "iron, chemical
element 26", a model sees a flat iron, because the text holds the word; told the description alone it does not.

3 million entities of 3 x 512 numbers are 9 GB. Each machine lays the table out once, sorted by id, and its workers map
it into memory, so that they share its pages (637 MB against 1,037 MB for 400 MB of vectors on two workers).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from i2e_pipeline.core import arrays
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.files import open_filesystem
from i2e_pipeline.core.machine import scratch
from i2e_pipeline.core.schemas import ENTITY_VECTORS
from i2e_pipeline.images.encoder import Encoder
from wikidata.types import TYPES, UNKNOWN

_HEADER, _FORMAT = "entity_vectors", 2
_BESIDE = ("name_vector", "description_vector")
_NUMBERS: Mapping[str, tuple[type, float]] = {
    "type": (np.int8, UNKNOWN),
    "visual": (np.float32, np.nan),
    "fame": (np.float32, np.nan),
}
"""What is known of an entity besides, with its kind and what stands for unknown."""


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


OF_ENTITIES = ("entity_id", "name", "description", "coarse_type", "visual", "fame")
"""Columns of kb/entities that `encode_entities` reads."""


@dataclass(frozen=True)
class Templates:
    """How an entity is told to the model."""

    whole: str = "{name}, {description}"
    name: str = "{name}"
    description: str = "{description}"


def encode_entities(
    batches: Iterable[pa.RecordBatch], encoder: Encoder, templates: Templates
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Kernel: text vectors of entities.

    batches   OF_ENTITIES
    yields    ("entity_vectors", ENTITY_VECTORS), a row per row. A vector of NaN is stored as it is: pairs that name
              its entity are then rejected as nan_score, and the run does not fail because of one text.
    """
    for batch in batches:
        names, descriptions = batch["name"].to_pylist(), batch["description"].to_pylist()
        told = list(zip(names, descriptions, strict=True))
        described = np.array([bool(d) for d in descriptions], dtype=bool)
        texts = {
            "vector": [entity_text(templates.whole, n or "", d) for n, d in told],
            "name_vector": [entity_text(templates.name, n or "", None) for n, _ in told],
            "description_vector": [entity_text(templates.description, "", d) if d else "" for _, d in told],
        }
        distinct = list(dict.fromkeys(text for column in texts.values() for text in column))
        vectors_ND = encoder.texts(distinct)
        where = {text: i for i, text in enumerate(distinct)}
        columns: dict[str, pa.Array] = {name: batch[name] for name in ("entity_id", "coarse_type", "visual", "fame")}
        columns["described"] = pa.array(described)
        for name, column in texts.items():
            rows_ND = vectors_ND[np.fromiter((where[t] for t in column), dtype=np.int64, count=len(column))]
            columns[name] = pa.ListArray.from_arrays(
                pa.array(np.arange(len(column) + 1, dtype=np.int32) * encoder.width),
                pa.array(rows_ND.ravel()),
                mask=pa.array(~described) if name == "description_vector" else None,
            )
        yield (
            "entity_vectors",
            pa.RecordBatch.from_arrays([columns[c] for c in ENTITY_VECTORS.names], schema=ENTITY_VECTORS),
        )


EXEMPLARS = pa.schema([("coarse_type", pa.string()), ("entity_id", pa.int64()), ("fame", pa.float32())])


def most_famous(batches: Iterable[pa.RecordBatch], count: int) -> Iterator[pa.RecordBatch]:
    """Of each coarse type the `count` most famous entities, of equals those of the lower ids: one batch of EXEMPLARS.

    batches   EXEMPLARS, without nulls. Holds one batch and the result, so that it may be done part by part and then
              once more on the parts' results.
    """
    best = EXEMPLARS.empty_table()
    for batch in batches:
        both = pa.concat_tables([best, pa.Table.from_batches([batch]).cast(EXEMPLARS)]).combine_chunks()
        both = both.sort_by([("coarse_type", "ascending"), ("fame", "descending"), ("entity_id", "ascending")])
        codes = both.column("coarse_type").combine_chunks().dictionary_encode().indices.to_numpy()
        rank = np.arange(len(codes)) - np.searchsorted(codes, codes)
        best = both.filter(pa.array(rank < count))
    yield from best.combine_chunks().to_batches()


class EntityVectors:
    """The vectors of many entities, sorted by id. Many are looked up at once; processes that open a store share its
    pages."""

    def __init__(
        self,
        ids_N: np.ndarray,
        vectors_ND: np.ndarray,
        described_N: np.ndarray | None = None,
        source: str = "the vectors given",
        *,
        beside: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """`ids_N`: int64, rising. `vectors_ND`: float16 or float32, norm 1. `described_N`: bool; None: all are.

        beside   what else is known, by name, in the order of the ids: name_vector and description_vector (N, D), type
                 (int8, a code of `wikidata.types.TYPES`), visual and fame (float32)
        """
        if len(ids_N) != len(vectors_ND):
            raise ValueError(f"{len(ids_N)} ids for {len(vectors_ND)} vectors")
        self._ids_N, self._vectors_ND, self._source = ids_N, vectors_ND, source
        self._described_N = np.ones(len(ids_N), dtype=bool) if described_N is None else described_N
        self._beside = dict(beside or {})

    @classmethod
    def from_files(cls, files: Sequence[str], cache: str | None = None, key: str | None = None) -> EntityVectors:
        """The committed Parquet files of the table entity_vectors, through this machine's cache.

        cache   folder on a local disk; None: one of this user's under the temporary folder
        key     what the content is named by, such as the table's fingerprint; None: paths, sizes and times of the files
        The first worker lays the store out under a lock, the others wait and map it. Needs as much free disk as the
        vectors in float16; memory for a few thousand of them. An id that stands twice keeps its first vector.
        """
        root = Path(cache) if cache else scratch("entity-vectors")
        names = ("ids", "described", "vector", *_BESIDE, *_NUMBERS)
        stored = arrays.shared(root, key or _state(files), _HEADER, _FORMAT, partial(_lay_out, files), names)
        ids_N, described_N = stored["ids"], stored["described"]
        vectors_ND = stored["vector"] if len(ids_N) else np.empty((0, 0), np.float16)
        beside = {name: stored[name] for name in (*_BESIDE, *_NUMBERS)} if len(ids_N) else {}
        return cls(ids_N, vectors_ND, described_N, f"{len(files)} files of entity_vectors", beside=beside)

    def __len__(self) -> int:
        return len(self._ids_N)

    @property
    def width(self) -> int:
        return int(self._vectors_ND.shape[1])

    def lookup(self, entity_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """vectors_ND (float32, norm 1) of these entities, in their order. Raises MissingVectorError."""
        return _unit(self._vectors_ND[self._places(entity_ids)])

    def has(self, name: str) -> bool:
        """Whether `beside` holds it."""
        return name in self._beside

    def of(self, name: str, entity_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """One of `beside` of these entities, in their order; vectors as float32 of norm 1, or 0 where there is none.
        Raises MissingVectorError, and KeyError where `beside` does not hold it."""
        found = self._beside[name][self._places(entity_ids)]
        return _unit(found) if found.ndim == 2 else np.asarray(found)

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


def _unit(vectors_ND: np.ndarray) -> np.ndarray:
    vectors_ND = np.asarray(vectors_ND, dtype=np.float32)
    norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND / np.where(norms_N1 > 0, norms_N1, 1)  # float16 leaves norms of 1 +- 0.0003


def _state(files: Sequence[str]) -> str:
    infos = []
    for file in sorted(files):
        filesystem, inner = open_filesystem(file)
        info = filesystem.get_file_info(inner)
        infos.append(f"{file}\t{info.size}\t{info.mtime_ns}")
    return "\n".join(infos)


def _lay_out(files: Sequence[str], store: arrays.Writer) -> None:
    """ids (int64, rising), described (bool), vectors (float16) and numbers, each by its name. In two passes: first the
    ids, then each row to its place."""
    found = [np.empty(0, dtype=np.int64)]
    for file in files:
        found += [batch["entity_id"].to_numpy() for batch in _batches(file, ["entity_id"])]
    ids_N = np.unique(np.concatenate(found))
    described_N = np.ones(len(ids_N), dtype=bool)
    numbers: dict[str, np.ndarray] = {
        name: np.full(len(ids_N), empty, dtype=kind) for name, (kind, empty) in _NUMBERS.items()
    }
    laid: dict[str, np.memmap] = {}
    written = np.zeros(len(ids_N), dtype=bool)
    codes = pa.array(TYPES.names)
    for file in files:
        for batch in _batches(file, ["entity_id", "vector", "described", *_BESIDE, "coarse_type", "visual", "fame"]):
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            vectors = {"vector": _matrix(columns["vector"], file)}
            width = vectors["vector"].shape[1]
            for name in _BESIDE:
                vectors[name] = (
                    _matrix(columns[name], file, width) if name in columns else np.zeros((len(batch), width))
                )
            if not laid:
                for name in vectors:
                    laid[name] = store.create(name, (len(ids_N), width), np.float16)
            if width != laid["vector"].shape[1]:
                raise EntityVectorsError(
                    f"{file} holds vectors of {width} numbers, others of {laid['vector'].shape[1]}: two models' "
                    "vectors stand in one table; write entity_vectors afresh (`i2e run --redo score`)"
                )
            at_B, first_B = np.unique(np.searchsorted(ids_N, columns["entity_id"].to_numpy()), return_index=True)
            new = ~written[at_B]
            for name, rows in vectors.items():
                laid[name][at_B[new]] = rows[first_B[new]]
            if "described" in columns:
                described_N[at_B[new]] = columns["described"].to_numpy(zero_copy_only=False)[first_B[new]]
            if "coarse_type" in columns:
                columns["type"] = pc.index_in(columns["coarse_type"], value_set=codes).fill_null(UNKNOWN)
            for name in numbers:
                if name in columns:
                    numbers[name][at_B[new]] = columns[name].to_numpy(zero_copy_only=False)[first_B[new]]
            written[at_B] = True
    for memory in laid.values():
        memory.flush()
    store.save("ids", ids_N)
    store.save("described", described_N)
    for name, values in numbers.items():
        store.save(name, values)
    store.header = {"format": _FORMAT, "entities": len(ids_N)}


def _batches(file: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    filesystem, inner = open_filesystem(file)
    with filesystem.open_input_file(inner) as source:
        parquet = pq.ParquetFile(source)
        there = [c for c in columns if c in parquet.schema_arrow.names]
        yield from (b for b in parquet.iter_batches(4096, columns=there, use_threads=False) if b.num_rows)


def _matrix(vectors: pa.Array, file: str, width: int | None = None) -> np.ndarray:
    """(rows, width); with a width, a row of zeros where there is no vector."""
    flat = vectors.flatten()
    there = vectors.is_valid().to_numpy(zero_copy_only=False)
    widths = np.unique(pc.list_value_length(vectors).drop_null().to_numpy())
    if (width is None and not there.all()) or len(widths) > 1 or flat.null_count:
        raise EntityVectorsError(
            f"{file}: vectors of {widths.tolist()} numbers, {vectors.null_count} nulls; they are all of one width"
        )
    if width is None:
        return flat.to_numpy().reshape(len(vectors), int(widths[0]))
    rows = np.zeros((len(vectors), width), dtype=np.float32)
    rows[there] = flat.to_numpy().reshape(int(there.sum()), width)
    return rows
