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
