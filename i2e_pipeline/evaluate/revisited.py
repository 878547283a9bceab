"""Revisited Oxford and Paris (Radenović et al., CVPR 2018, arXiv 1803.11285): easy, medium and hard.

Reads    the authors' ground truth, gnd_roxford5k.pkl or gnd_rparis6k.pkl (or the same as .json): imlist, qimlist and,
         per query, bbx (the box that the query is cropped to) and the gallery's indices that are easy, hard and junk

    set      relevant       ignored
    easy     easy           junk, hard
    medium   easy, hard     junk
    hard     hard           junk, easy

Ignored images count neither for nor against: the ranks of the relevant are lowered by the ignored before them.
Queries without anything relevant are left out of the means.

The authors' lists name an image once. Where a file does not keep to that, figures still are what the authors' code
gives, so that they compare, and GroundTruth.notes says where.

Shapes: Q queries, G gallery, D width, P items of a query.
"""

from __future__ import annotations

import collections
import io
import json
import math
import pickle
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from i2e_pipeline.evaluate.retrieval import Metric, mean, ranks_by_block
from i2e_pipeline.evaluate.vectors import VectorsError

KAPPAS = (1, 5, 10)
"""Depths of mP@k."""
SETS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
"""Relevant and ignored lists of each set."""

_LISTS = ("easy", "hard", "junk")


class GroundTruthError(VectorsError):
    """A ground truth that cannot be read, or is not what the vectors were made for."""


@dataclass(frozen=True)
class Query:
    """What the gallery holds for one query: indices in the order of the file."""

    easy: np.ndarray
    hard: np.ndarray
    junk: np.ndarray
    box: tuple[float, float, float, float] | None = None
    """left, top, right, bottom in pixels of the query's image"""


_MOST = 256 << 20
"""Bytes: the names of the million distractors take some 20 MB."""


@dataclass(frozen=True)
class GroundTruth:
    gallery_names: tuple[str, ...]
    """Images without `.jpg`, in the gallery's order."""
    query_names: tuple[str, ...]
    queries: tuple[Query, ...]
    notes: tuple[str, ...] = ()
    """What is odd about the file: images that one query names twice."""


def read_ground_truth(path: str) -> GroundTruth:
    """The ground truth of a .pkl or .json; raises GroundTruthError. Nothing in a pickle is executed."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST + 1)
    except OSError as error:
        raise GroundTruthError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(data) > _MOST:
        raise GroundTruthError(f"{path} has more than {_MOST:,} bytes, and is no ground truth of these sets")
    if data[:1] in (b"{", b"["):
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise GroundTruthError(f"{path} is no JSON: {error}") from None
    else:
        content = read_pickle(data, path)
    return _ground_truth(content, path)


def revisited(
    queries_QD: np.ndarray,
    gallery_GD: np.ndarray,
    truth: GroundTruth,
    block_mb: float = 256,
    metric: Metric = "cosine",
) -> dict[str, Any]:
    """Per set mAP, mP@k, ap and `precision at` k (per query; None where nothing is relevant), and
    queries_without_positives.

    metric    `dot` ranks by the inner product of the vectors as they are, as the authors' example does; the same as
              cosine for vectors of length 1
    """
    for what, wanted, vectors in (
        ("queries", len(truth.query_names), queries_QD),
        ("gallery", len(truth.gallery_names), gallery_GD),
    ):
        if len(vectors) != wanted:
            turned = ", which looks transposed" if np.ndim(vectors) == 2 and vectors.shape[1] == wanted else ""
            raise GroundTruthError(
                f"{what}: {len(vectors)} vectors (shape {vectors.shape}{turned}), but the ground truth has {wanted}"
            )
    named = [{part: getattr(query, part) for part in _LISTS} for query in truth.queries]
    listed = [np.unique(np.concatenate(list(parts.values()))) for parts in named]
    ap: dict[str, list[float | None]] = {name: [] for name in SETS}
    precision: dict[str, list[list[float | None]]] = {name: [] for name in SETS}
    for start, ranks in ranks_by_block(queries_QD, gallery_GD, listed, block_mb, metric):
        for q, ranks_P in enumerate(ranks, start):
            for name, (relevant, ignored) in SETS.items():
                items, ignored_items = (np.concatenate([named[q][part] for part in of]) for of in (relevant, ignored))
                positive_P = ranks_P[np.searchsorted(listed[q], np.unique(items))]
                ignored_P = ranks_P[np.searchsorted(listed[q], np.unique(ignored_items))]
                positive_P = lowered(positive_P, ignored_P)
                ap[name].append(trapezoid_average_precision(positive_P, len(items)))
                precision[name].append([precision_at(positive_P, k) if len(positive_P) else None for k in KAPPAS])
    return {
        name: {
            "mAP": mean(ap[name]),
            "mP@k": {str(k): mean([row[i] for row in precision[name]]) for i, k in enumerate(KAPPAS)},
            "ap": ap[name],
            "precision at": {str(k): [row[i] for row in precision[name]] for i, k in enumerate(KAPPAS)},
            "queries_without_positives": sum(value is None for value in ap[name]),
        }
        for name in SETS
    }


def lowered(positive_P: np.ndarray, ignored_P: np.ndarray) -> np.ndarray:
    """Ranks of the relevant, ascending, as if the ignored before each were not in the gallery."""
    positive_P = np.sort(positive_P)
    return positive_P - np.searchsorted(np.sort(ignored_P), positive_P, "left")


def trapezoid_average_precision(positive_P: np.ndarray, relevant: int | None = None) -> float | None:
    """Area under precision over recall by the trapezoid rule, as the Oxford and Paris sets define it; None for none.

    Before the first rank precision is 1.

    positive_P    ranks of all relevant from 0, ascending, the ignored taken out
    relevant      their number where it is another: the authors' code counts an image that is listed twice as two
    """
    if not len(positive_P):
        return None
    hits_P = np.arange(len(positive_P))
    before_P = np.where(positive_P == 0, 1.0, hits_P / np.maximum(positive_P, 1))
    after_P = (hits_P + 1) / (positive_P + 1)
    return float(((before_P + after_P) / 2).sum() / (len(positive_P) if relevant is None else relevant))


def precision_at(positive_P: np.ndarray, k: int) -> float:
    """Precision among the first k, or up to the last relevant where that comes before."""
    depth = min(int(positive_P.max()) + 1, k)
    return float((positive_P < depth).sum() / depth)


def read_pickle(data: bytes, path: str) -> Any:
    """Containers, numbers, texts and numpy arrays of a pickle; raises GroundTruthError, naming what else it asks for.

    A pickle may name any function of any module and call it. Here only the names in `_stand_ins` are found, nothing
    is imported, and what is called is this file's own.
    """
    try:
        return _Unpickler(data, path).load()
    except GroundTruthError:
        raise
    except Exception as error:  # whatever a damaged pickle makes the reader stumble on
        raise GroundTruthError(f"{path} is no readable pickle ({type(error).__name__}: {error})") from None


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, path: str) -> None:
        # latin1: what numpy arrays and texts that Python 2 wrote need.
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._path = path
        self._known = _stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._known[module, name]
        except KeyError:
            raise GroundTruthError(
                f"{self._path} asks for {module}.{name}: a ground truth needs only lists, dicts, numbers, texts and "
                "numpy arrays, so this file was not read further and nothing of it was run; get it from the authors "
                "(http://cmp.felk.cvut.cz/revisitop)"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise GroundTruthError(f"{self._path} refers to an object outside of it ({pid!r}): it is no ground truth")


class _Code:
    """numpy's dtype as a pickle builds it: a letter and a size, then the byte order."""

    def __init__(self, code: str, *_: Any) -> None:
        self.dtype = np.dtype(code) if isinstance(code, str) and len(code) < 9 else np.dtype("O")
        if self.dtype.kind not in "biufSU" or not self.dtype.itemsize:  # of nothing there may be 10⁹
            raise ValueError(f"arrays of {code!r} are not read, only of numbers and texts")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """numpy's array as a pickle builds it: empty, then shape, dtype, order and bytes."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, code, by_columns, data = state
        super().__setstate__((version, shape, code.dtype, by_columns, _bytes(data)))
        _readable(self)


def _bytes(data: Any) -> bytes:
    return data.encode("latin1") if isinstance(data, str) else bytes(data)


def _readable(array: np.ndarray) -> np.ndarray:
    """The array; raises where its bytes are no texts."""
    if array.dtype.kind == "U":
        array.tolist()
    return array


def _stand_ins() -> dict[tuple[str, str], Any]:
    """What a pickle may name; functions are made anew for each, for a pickle can set attributes of what it is given."""

    def scalar(code: _Code, data: Any) -> Any:
        return np.frombuffer(_bytes(data), code.dtype, count=1)[0].item()

    def from_buffer(data: Any, code: _Code, shape: tuple[int, ...], order: Literal["C", "F"]) -> np.ndarray:
        return _readable(np.frombuffer(data, code.dtype).reshape(shape, order=order))

    known: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
        ("numpy", "ndarray"): "numpy.ndarray",
        ("numpy", "dtype"): lambda *arguments: _Code(*arguments),
    }
    for module in ("builtins", "__builtin__"):
        known |= {(module, "set"): set, (module, "frozenset"): frozenset, (module, "bytes"): lambda: b""}
    for core in ("numpy.core", "numpy._core"):
        known[f"{core}.multiarray", "_reconstruct"] = lambda kind, shape, code: _Array((0,), np.int8)
        known[f"{core}.multiarray", "scalar"] = scalar
        known[f"{core}.numeric", "_frombuffer"] = from_buffer
    return known


def _ground_truth(content: Any, path: str) -> GroundTruth:
    wanted = "a dict of gnd, imlist and qimlist is wanted, as gnd_roxford5k.pkl has"
    if not isinstance(content, dict):
        raise GroundTruthError(f"{path} holds a {type(content).__name__}: {wanted}")
    missing = [name for name in ("gnd", "imlist", "qimlist") if name not in content]
    if missing:
        raise GroundTruthError(f"{path} has no {' and no '.join(missing)}: {wanted}")
    gallery, query_names = (_names(content[name], f"{path}, {name}") for name in ("imlist", "qimlist"))
    rows = content["gnd"]
    if not isinstance(rows, (list, tuple)) or len(rows) != len(query_names):
        count = len(rows) if isinstance(rows, (list, tuple)) else f"a {type(rows).__name__}"
        raise GroundTruthError(f"{path}, gnd: one dict per query is wanted, {len(query_names)}, not {count}")
    if not gallery or not query_names:
        raise GroundTruthError(f"{path}: the gallery ({len(gallery)}) or the queries ({len(query_names)}) are empty")
    queries = tuple(_query(row, len(gallery), f"{path}, gnd[{i}]") for i, row in enumerate(rows))
    notes = tuple(f"gnd[{i}]: {note}" for i, query in enumerate(queries) for note in _named_twice(query))
    return GroundTruth(gallery, query_names, queries, notes)


def _named_twice(query: Query) -> list[str]:
    """The first image that two lists share, or that one list repeats."""
    lists = [(name, getattr(query, name)) for name in _LISTS]
    notes = []
    for i, (name, items) in enumerate(lists):
        unique, counts = np.unique(items, return_counts=True)
        notes += [f"{name} lists image {image} more than once" for image in unique[counts > 1][:1].tolist()]
        for other, others in lists[i + 1 :]:
            shared = np.intersect1d(items, others)
            notes += [f"image {image} is both {name} and {other}" for image in shared[:1].tolist()]
    return notes


def _names(names: Any, place: str) -> tuple[str, ...]:
    names = _plain(names)
    if not isinstance(names, (list, tuple)):
        raise GroundTruthError(f"{place}: a list of image names is wanted, not a {type(names).__name__}")
    for i, name in enumerate(names):
        if not isinstance(name, str):
            raise GroundTruthError(f"{place}[{i}]: the name of an image is wanted, not a {type(name).__name__}")
    return tuple(names)


def _query(row: Any, gallery: int, place: str) -> Query:
    if not isinstance(row, dict) or any(name not in row for name in _LISTS):
        keys = ", ".join(map(str, row)) if isinstance(row, dict) else f"a {type(row).__name__}"
        classic = " (ok and junk are of the classic protocol)" if isinstance(row, dict) and "ok" in row else ""
        raise GroundTruthError(f"{place}: easy, hard and junk are wanted, not {keys}{classic}")
    lists = {name: _indices(row[name], gallery, f"{place}, {name}") for name in _LISTS}
    return Query(**lists, box=_box(row.get("bbx"), place))


def _plain(values: Any) -> Any:
    """Arrays as flat lists; MATLAB's vectors are n × 1."""
    return values.ravel().tolist() if isinstance(values, np.ndarray) else values


def _indices(values: Any, gallery: int, place: str) -> np.ndarray:
    values = _plain(values)
    if not isinstance(values, (list, tuple)):
        raise GroundTruthError(f"{place}: a list of indices into imlist is wanted, not a {type(values).__name__}")
    for i, value in enumerate(values):
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole or (isinstance(value, float) and float(value).is_integer())):
            raise GroundTruthError(f"{place}[{i}]: an index into imlist is wanted, not a {type(value).__name__}")
        if not 0 <= value < gallery:
            raise GroundTruthError(f"{place}[{i}] is {value}: imlist has images 0 to {gallery - 1}")
    return np.array(values, dtype=np.int64)


def _box(values: Any, place: str) -> tuple[float, float, float, float] | None:
    values = _plain(values)
    if values is None or values == []:
        return None
    numbers = isinstance(values, (list, tuple)) and all(isinstance(value, (int, float)) for value in values)
    if not (numbers and len(values) == 4 and all(math.isfinite(value) for value in values)):
        raise GroundTruthError(f"{place}, bbx: left, top, right and bottom in pixels are wanted, not {values!r}"[:300])
    left, top, right, bottom = (float(value) for value in values)
    return left, top, right, bottom
