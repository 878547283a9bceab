"""Signatures of 256 bits of image vectors: the more alike two vectors are, the fewer bits differ.

Each bit says on which side of a plane through the origin the vector lies. Of two vectors at an angle θ a random plane
parts them with probability θ / π (Charikar, "Similarity Estimation Techniques from Rounding Algorithms", STOC 2002), so
256 planes tell the angle up to some two degrees. Pairs that are found so are then measured.

Legend: N images, D dimensions of the vectors, M pairs.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

BITS = 256
_SCALE = 1 << 11
"""Components in whole 1/2048ths, as fine as float16 near 1: sums of whole numbers below 2^53 are the same on every
machine, in whichever order they are added."""


def of_vectors(vectors_ND: npt.NDArray[np.float16]) -> npt.NDArray[np.uint8]:
    """uint8 (N, 32)."""
    whole_ND = np.rint(vectors_ND.astype(np.float64) * _SCALE)
    planes_DB = np.random.Generator(np.random.PCG64(vectors_ND.shape[1])).integers(-128, 128, (whole_ND.shape[1], BITS))
    return np.packbits(whole_ND @ planes_DB.astype(np.float64) > 0, axis=1)


def bits_apart(cosine: float) -> int:
    """In so many bits or fewer differ the signatures of all but one in a thousand pairs of this cosine."""
    share = math.acos(cosine) / math.pi
    return math.ceil(BITS * share + 3.1 * math.sqrt(BITS * share * (1 - share)))


def cosines(one_MD: npt.NDArray[np.float16], other_MD: npt.NDArray[np.float16]) -> npt.NDArray[np.float64]:
    """float64 (M,)."""
    one, other = (np.rint(vectors.astype(np.float64) * _SCALE) for vectors in (one_MD, other_MD))
    norms = np.sqrt((one * one).sum(axis=1) * (other * other).sum(axis=1))
    return np.asarray((one * other).sum(axis=1) / np.maximum(norms, 1.0))


def vectors_of(stored: list[bytes]) -> npt.NDArray[np.float16]:
    """float16 (N, D) of the column `vector` of image_vectors."""
    return np.frombuffer(b"".join(stored), dtype="<f2").reshape(len(stored), -1)
