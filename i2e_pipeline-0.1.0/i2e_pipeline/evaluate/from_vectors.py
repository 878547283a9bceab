"""Protocols on stored vectors, without any model: what `i2e evaluate --vectors` does.

Reads    an .npz (vectors.py says which arrays), and for `revisited` the authors' ground truth
"""

from __future__ import annotations

from typing import Any

from i2e_pipeline.core import files
from i2e_pipeline.core.config import digest
from i2e_pipeline.evaluate.gpr1200 import domains_of, gpr
from i2e_pipeline.evaluate.revisited import read_ground_truth, revisited
from i2e_pipeline.evaluate.vectors import VectorsError, read_npz, read_queries_npz

PROTOCOLS = ("gpr", "revisited")

FORMAT_VERSION = 1


def measure_vectors(
    vectors: str, protocol: str, ground_truth: str | None = None, block_mb: float = 256
) -> dict[str, Any]:
    """{"format_version", "vectors", "ground_truth", "notes", "results": {protocol: figures}}; raises VectorsError.

    With it what was asked: `queries`, a fingerprint, and for gpr `clusters` and `groups` as in results.Results.

    `gpr` ranks by cosine. `revisited` ranks by the inner product of the vectors as they are stored, as its authors'
    example does: the same for vectors of length 1.
    """
    notes: list[str] = []
    asked: dict[str, Any] = {}
    if protocol == "gpr":
        if ground_truth is not None:
            raise VectorsError(f"--ground-truth {ground_truth}: only --protocol revisited has one; gpr reads labels")
        labelled = read_npz(vectors)
        domains_N = domains_of(labelled.labels_N) if labelled.domains_N is None else labelled.domains_N
        figures = gpr(labelled.features_ND, labelled.labels_N, domains_N, block_mb)
        labels = [int(label) for label in labelled.labels_N]
        asked = {"queries": digest(labels), "clusters": {"vectors/gpr": labels}}
        if domains_N is not None:
            asked["groups"] = {"vectors/gpr": {"domain": [str(name) for name in domains_N]}}
    elif protocol == "revisited":
        if ground_truth is None:
            raise VectorsError("--protocol revisited needs --ground-truth, the gnd_*.pkl of the benchmark's authors")
        truth = read_ground_truth(ground_truth)
        notes += truth.notes
        queries_QD, gallery_GD = read_queries_npz(vectors)
        figures = revisited(queries_QD, gallery_GD, truth, block_mb, metric="dot")
        asked = {"queries": files.fingerprint(ground_truth)}
    else:
        raise VectorsError(f"--protocol {protocol}: known are {', '.join(PROTOCOLS)}")
    return {
        "format_version": FORMAT_VERSION,
        "vectors": vectors,
        "ground_truth": ground_truth,
        "notes": notes,
        "results": {protocol: figures},
        **asked,
    }
