"""128-bit ids, named by content: the same thing has the same id in every run, on every machine.

With 64-bit hashes two of 5 x 10^9 rows share an id with a probability of 49 %; with 128 bits practically never.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

from i2e_pipeline.core.draws import GOLDEN, mixed

ID_BYTES = 16


def content_id(content: bytes) -> bytes:
    """16 bytes that name `content` (BLAKE2b)."""
    return hashlib.blake2b(content, digest_size=ID_BYTES).digest()


def row_ids(file_id: bytes, rows: np.ndarray) -> pa.Array:
    """binary(16) ids of rows of a file: both halves of the file's id, each mixed with the row number.

    Two rows of a file never share an id, since the mixing (draws.mixed) is a bijection. Rows of two files share one as
    rarely as 128-bit hashes do. The id does not depend on the file's path or place in a list.
    """
    low, high = np.frombuffer(file_id, dtype="<u8")
    rows = rows.astype(np.uint64)
    halves = np.empty((len(rows), 2), dtype="<u8")
    halves[:, 0] = low ^ mixed(rows)
    halves[:, 1] = high ^ mixed(rows ^ np.uint64(GOLDEN))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(ID_BYTES), len(rows), [None, pa.py_buffer(halves.tobytes())])


def hex_of(ids: pa.Array) -> pa.Array:
    """Binary ids as strings of hex digits; null stays null."""
    return pa.array([None if one is None else one.hex() for one in ids.to_pylist()], pa.string())


def id_halves(ids: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """uint64 halves (N, 2) of ids: binary(16), as tables of a run have them, or 32 hex digits, as datasets have them
    since format 2."""
    chunks = ids.chunks if isinstance(ids, pa.ChunkedArray) else [ids]
    parts = [_halves(chunk) for chunk in chunks if len(chunk)]
    return np.concatenate(parts) if parts else np.empty((0, 2), dtype="<u8")


def _halves(ids: pa.Array) -> np.ndarray:
    if pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type):
        return np.frombuffer(bytes.fromhex("".join(ids.to_pylist())), dtype="<u8").reshape(-1, 2)
    return fixed_bytes(ids, ID_BYTES).view("<u8")


def fixed_bytes(values: pa.Array, width: int) -> np.ndarray:
    """uint8 (N, width) of binary values without nulls that are all so long: ids, hashes. Read only."""
    fixed = values.cast(pa.binary(width))
    if not len(fixed):
        return np.empty((0, width), dtype=np.uint8)
    at = width * fixed.offset
    return np.frombuffer(fixed.buffers()[1], dtype=np.uint8)[at : at + width * len(fixed)].reshape(-1, width)


def fixed_binary(bytes_NW: np.ndarray) -> pa.Array:
    """binary values of uint8 (N, width), as Spark takes them."""
    count, width = bytes_NW.shape
    buffers = [None, pa.py_buffer(np.ascontiguousarray(bytes_NW).tobytes())]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), count, buffers).cast(pa.binary())


def rows_in_share(file_id: bytes, rows: np.ndarray, share: tuple[float, float]) -> np.ndarray:
    """Which of these rows of a file are in a share of all rows, as a mask.

    share   from and to, between 0 and 1: shares that follow each other part the rows among them. Each row's draw is
            the first half of its id, so a larger share holds the rows of a smaller one.
    """
    low = np.frombuffer(file_id, dtype="<u8")[0]
    draws = ((low ^ mixed(rows.astype(np.uint64))) >> np.uint64(11)) * 2.0**-53
    mask: np.ndarray = (draws >= share[0]) & (draws < share[1])
    return mask
