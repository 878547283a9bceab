"""Vectors to be measured: what every protocol asks of its arrays, and the .npz files of `i2e evaluate --vectors`.

Reads    V.npz, never with pickle: features (n × d), labels (n) and optionally domains (n); or queries (q × d) and
         gallery (n × d), or the layout that the authors of ROxford publish, Q (d × q) and X (d × n)

Shapes: N vectors, D width, Q queries, G gallery.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from i2e_pipeline.core.errors import I2EError

_ROWS = 1024
"""Vectors looked at in one go, so that a check takes little memory beside them."""


class VectorsError(I2EError, ValueError):
    """Arrays that a protocol cannot measure."""


@dataclass(frozen=True)
class Vectors:
    """Vectors with the class of each."""

    features_ND: np.ndarray
    """float32, or float64 where the file has it"""
    labels_N: np.ndarray
    """int64"""
    domains_N: np.ndarray | None = None
    """str"""
    paths: tuple[str, ...] | None = None
    """Where each vector's image lies."""


def lengths(features_ND: np.ndarray, name: str = "features") -> np.ndarray:
    """Euclidean length of each row, float64 (N,); raises VectorsError unless every row has a direction.

    name    what an error calls the array
    """
    features_ND = np.asarray(features_ND)
    if features_ND.ndim != 2 or 0 in features_ND.shape:
        raise VectorsError(f"{name}: a table of vectors is wanted (n × d, neither 0), not shape {features_ND.shape}")
    if features_ND.dtype.kind not in "fiu":
        raise VectorsError(f"{name}: numbers are wanted (float32), not {features_ND.dtype}")
    lengths_N = np.empty(len(features_ND))
    for start in range(0, len(features_ND), _ROWS):
        block = np.ascontiguousarray(features_ND[start : start + _ROWS], dtype=np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            lengths_N[start : start + _ROWS] = np.sqrt(np.square(block).sum(axis=1))
    bad = np.flatnonzero(~(np.isfinite(lengths_N) & (lengths_N > 0)))
    if len(bad):
        row = int(bad[0])
        values_D = features_ND[row]
        if np.isnan(values_D).any():
            what = f"a NaN in column {int(np.flatnonzero(np.isnan(values_D))[0])}"
        elif np.isinf(values_D).any():
            what = f"an infinite value in column {int(np.flatnonzero(np.isinf(values_D))[0])}"
        elif not values_D.any():
            what = "only zeros, so it has no direction"
        else:
            what = "values too large or too small for a length in float64"
        others = f" ({len(bad)} rows of {len(features_ND)} are unfit)" if len(bad) > 1 else ""
        raise VectorsError(f"{name}: row {row} has {what}{others}; leave such images out, or embed them again")
    return lengths_N


def normalised(features_ND: np.ndarray, name: str = "features") -> np.ndarray:
    """The rows at length 1, float32."""
    lengths_N = lengths(features_ND, name)
    return np.asarray(features_ND / lengths_N[:, None], dtype=np.float32)


def same_width(first_ND: np.ndarray, second_MD: np.ndarray, first: str, second: str) -> None:
    """Raises VectorsError unless both tables are of the same width."""
    if first_ND.ndim == second_MD.ndim == 2 and first_ND.shape[1] != second_MD.shape[1]:
        raise VectorsError(
            f"{first} are {first_ND.shape[1]} wide and {second} {second_MD.shape[1]}: both must come from one encoder"
        )


def class_labels(labels_N: np.ndarray, count: int, name: str = "labels") -> np.ndarray:
    """Labels as int64 (N,), one per vector; raises VectorsError. Texts are numbered in natural order."""
    labels_N = np.asarray(labels_N)
    if labels_N.shape != (count,):
        raise VectorsError(f"{name}: one per vector is wanted, shape ({count},), not {labels_N.shape}")
    if labels_N.dtype.kind in "US":
        names, place_N = np.unique(labels_N, return_inverse=True)
        order = sorted(range(len(names)), key=lambda i: natural(names[i].item()))
        return np.argsort(order).astype(np.int64)[place_N]
    if labels_N.dtype.kind == "f":
        odd = np.flatnonzero(~(np.isfinite(labels_N) & (labels_N == np.round(labels_N))))
        if len(odd):
            raise VectorsError(f"{name}: row {int(odd[0])} is {labels_N[odd[0]]}: whole numbers are wanted")
    elif labels_N.dtype.kind not in "iu":
        raise VectorsError(f"{name}: whole numbers are wanted (int64), not {labels_N.dtype}")
    return labels_N.astype(np.int64)


def natural(key: object) -> tuple[tuple[int, int, str], ...]:
    """Key that sorts as people count: Q9 before Q10, 2 before 10; GPR1200's domains are blocks in this order."""
    text = key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.findall(r"\d+|\D+", text))


def domain_names(domains_N: np.ndarray, count: int, name: str = "domains") -> np.ndarray:
    """Domains as texts (N,), one per vector; raises VectorsError."""
    domains_N = np.asarray(domains_N)
    if domains_N.shape != (count,):
        raise VectorsError(f"{name}: one per vector is wanted, shape ({count},), not {domains_N.shape}")
    if domains_N.dtype.kind == "S":
        return np.char.decode(domains_N, "utf-8")
    if domains_N.dtype.kind == "f" and np.isfinite(domains_N).all() and (domains_N == np.round(domains_N)).all():
        domains_N = domains_N.astype(np.int64)  # as class_labels takes them
    if domains_N.dtype.kind not in "UiuO":
        raise VectorsError(f"{name}: names are wanted (texts), not {domains_N.dtype}")
    return domains_N.astype(str)


def read_npz(path: str) -> Vectors:
    """Labelled vectors of a .npz: features (n × d), labels (n), optionally domains (n) and paths (n)."""
    arrays = _arrays(path)
    for name in ("features", "labels"):
        if name not in arrays:
            raise VectorsError(
                f"{path} has no array `{name}`, only {_listed(arrays)}: features (n × d) and labels (n) are wanted, "
                "and optionally domains (n)" + _other_protocol(arrays)
            )
    features_ND, labels_N = _numbers(arrays["features"]), arrays["labels"]
    place = f"{path}, features"
    if features_ND.ndim == 2 and labels_N.ndim == 1 and len(labels_N) == features_ND.shape[1] != len(features_ND):
        raise VectorsError(
            f"{place}: shape {features_ND.shape} for {len(labels_N)} labels, which looks transposed: n × d is wanted"
        )
    lengths(features_ND, place)
    labels_N = class_labels(labels_N, len(features_ND), f"{path}, labels")
    domains_N = arrays.get("domains")
    if domains_N is not None:
        domains_N = domain_names(domains_N, len(features_ND), f"{path}, domains")
    paths = arrays.get("paths")
    if paths is not None and paths.shape != (len(features_ND),):
        raise VectorsError(f"{path}, paths: one per vector is wanted, shape ({len(features_ND)},), not {paths.shape}")
    return Vectors(features_ND, labels_N, domains_N, None if paths is None else tuple(map(str, paths)))


def read_queries_npz(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Queries (Q × D) and gallery (G × D) of a .npz, from arrays of these names or from Q (d × q) and X (d × n)."""
    arrays = _arrays(path)
    pairs = [(a, b) for a, b in (("queries", "gallery"), ("Q", "X")) if a in arrays and b in arrays]
    if len(pairs) != 1:
        which = "both layouts" if pairs else f"only {_listed(arrays)}"
        labelled = ". features and labels are for --protocol gpr" if "features" in arrays else ""
        raise VectorsError(
            f"{path} has {which}: queries (q × d) and gallery (n × d) are wanted, or Q (d × q) and X (d × n){labelled}"
        )
    first, second = pairs[0]
    tables = []
    for name in pairs[0]:
        table = _numbers(arrays[name])
        tables.append(np.ascontiguousarray(table.T) if first == "Q" and table.ndim == 2 else table)
    queries_QD, gallery_GD = tables
    same_width(queries_QD, gallery_GD, f"{path}: {first}", second)
    lengths(queries_QD, f"{path}, {first}")
    lengths(gallery_GD, f"{path}, {second}")
    return queries_QD, gallery_GD


def _arrays(path: str) -> dict[str, np.ndarray]:
    """All arrays of the file; objects, which would need pickle, are refused."""
    arrays: dict[str, np.ndarray] = {}
    name = ""
    try:
        stored = np.load(path, allow_pickle=False)
        if not isinstance(stored, np.ndarray):
            with stored:
                for name in stored.files:
                    arrays[name] = stored[name]
    except FileNotFoundError:
        raise VectorsError(f"{path}: no such file") from None
    except MemoryError as error:
        raise VectorsError(f"{path} does not fit into the memory: {error}") from None
    except Exception as error:  # whatever zipfile and numpy stumble on: it is encrypted, of a later version, cut …
        if "allow_pickle" in str(error) and name:
            raise VectorsError(
                f"{path}, {name}: objects are stored, and reading them could run code; save plain numbers or texts "
                "(dtype float32, int64, str)"
            ) from None
        why = "it is none" if "pickle" in str(error) else error  # numpy takes any other file for a pickle
        raise VectorsError(f"{path} cannot be read as .npz: {why}") from None
    if isinstance(stored, np.ndarray):
        raise VectorsError(f"{path} holds a single array: an .npz of named arrays is wanted (numpy.savez)")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy hands on what is no array as its bytes
            raise VectorsError(f"{path}, {name} is no array of numpy's: save it by numpy.savez")
    return arrays


def _numbers(table: np.ndarray) -> np.ndarray:
    """float64 stays, so that nothing is lost; other numbers become float32."""
    if table.dtype.kind in "fiu" and table.dtype != np.float64:
        return table.astype(np.float32, copy=False)
    return table


def _listed(arrays: dict[str, Any]) -> str:
    return ", ".join(f"{name} {table.shape}" for name, table in arrays.items()) or "nothing"


def _other_protocol(arrays: dict[str, Any]) -> str:
    pairs = (("queries", "gallery"), ("Q", "X"))
    return ". queries and gallery are for --protocol revisited" if any(set(p) <= set(arrays) for p in pairs) else ""
