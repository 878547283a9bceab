"""Fits the sample's calibration: `python -m i2e_pipeline.sample.calibrate`.

On draws of the training split that no model was trained on and no run scores. The held-out art style is not among
them: how precise its labels are is what the run shows.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from i2e_pipeline.sample import embedded
from i2e_pipeline.sample.compose import SCHEMA, compose
from i2e_pipeline.sample.draws import draw, picture
from i2e_pipeline.sample.world import HERE

SEED = 77
ROWS = 1600
PRECISION = 0.968
"""Wanted on the art styles of training. Higher than what is wanted of photos, since an unseen style does worse."""


def write_pairs(path: Path, rows: int, seed: int = SEED) -> None:
    """A shard of training draws, in the columns of the sample's."""
    made = []
    for number in range(rows):
        row = draw(seed, "training", number)
        data, _, width, height = picture(row, training=True)
        made.append(
            {
                "key": f"{number:09d}",
                "url": f"https://example.org/{number}",
                "caption": row.caption.text,
                "jpg": data,
                "width": width,
                "height": height,
                "sha256": hashlib.sha256(data).hexdigest(),
                "truth_qid": row.truth.id,
                "mentioned_qids": list(row.caption.mentioned),
                "hand": row.style,
                "colliding": row.caption.colliding,
            }
        )
    pq.write_table(pa.Table.from_pylist(made, SCHEMA), path, row_group_size=64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE / "models" / "calibration.json")
    parser.add_argument("--rows", type=int, default=ROWS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        compose(work / "input", rows=64, shards=1)  # for its dump and sources
        for part in range(2):
            write_pairs(work / f"{part}.parquet", options.rows // 2, SEED + part)
        tree = embedded.tree([f"output={work}", f"pairs.path={work}/*.parquet"])
        tree["label"].pop("calibration")
        config = work / "config.yaml"
        config.write_text(yaml.safe_dump(tree), encoding="utf-8")
        command = ["calibrate", "--config", config, "--precision", PRECISION, "--write", options.output]
        subprocess.run([sys.executable, "-m", "i2e_pipeline.cli", *map(str, command)], check=True)


if __name__ == "__main__":
    main()
