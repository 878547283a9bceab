"""What the report's search costs where entities are many: seconds, bytes and memory (i2e_pipeline/report/search.py).

    python benchmarks/search.py [--entities 2000000]

The entities are made up: names of one to three words of very unequal frequency, so that many begin alike, and one and a
half aliases each.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from i2e_pipeline.report import search

WORDS = 60_000


def entities(count: int) -> pa.Table:
    """The columns of `i2e/entities` that the search reads."""
    rng = np.random.default_rng(0)
    sounds = np.array(["ma", "ri", "ton", "ber", "lin", "os", "ka", "wa", "shi", "den", "el", "ar", "gu", "sta", "san"])
    words = np.array(["".join(rng.choice(sounds, rng.integers(1, 4))) for _ in range(WORDS)])
    drawn = words[np.minimum(rng.pareto(0.8, (count, 3)) * 3, WORDS - 1).astype(int)]
    names = [" ".join(row[:length]).title() for row, length in zip(drawn, rng.integers(1, 4, count), strict=True)]
    aliases = [" ".join(words[pair]) for pair in rng.integers(0, WORDS, (count * 3 // 2, 2))]
    of_each = rng.multinomial(len(aliases), np.full(count, 1 / count))
    offsets = np.concatenate([[0], np.cumsum(of_each)])
    return pa.table(
        {
            "entity_id": rng.permutation(count * 20)[:count] + 1,
            "name": names,
            "description": ["what an entity is, in the sixty letters that it usually takes"] * count,
            "aliases": pa.LargeListArray.from_arrays(offsets, pa.array(aliases)).cast(pa.list_(pa.string())),
            "images": (rng.pareto(1, count) * 3 + 1).astype(np.int64),
            "mean_probability": rng.random(count, np.float32),
            "mean_clip_score": rng.random(count, np.float32),
            "coarse_type": ["taxon"] * count,
        }
    )


def main(arguments: Sequence[str] | None = None) -> search.Search:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entities", type=int, default=search.MAX_ENTITIES)
    table = entities(parser.parse_args(arguments).entities)
    before = _peak_gb()
    start = time.perf_counter()
    made = search.search(table)
    built = time.perf_counter()
    with tempfile.TemporaryDirectory() as output:
        search.write(output, made)
        written = time.perf_counter()
        sizes = [entry.stat().st_size for entry in os.scandir(os.path.join(output, made.folder))] if made.folder else []
    print(
        f"{made.entities:,} entities: {built - start:.0f} s to sort, {written - built:.0f} s to write, {len(sizes):,} "
        f"files of {sum(sizes) / 1e6:,.0f} MB ({max(sizes, default=0) / 1e3:.0f} KB the largest), "
        f"{len(made.embedded) / 1e3:,.0f} KB inside the page, {_peak_gb() - before:.1f} GB of memory"
    )
    return made


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
