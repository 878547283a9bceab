"""Pre-train image encoders on a published dataset, on ranks that Spark starts.

spark-submit jobs/train.py [--config FILE] [--set train.ranks=8 section.key=value …] [--restart]
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # behind what --py-files brings

from i2e_pipeline.cli import run_training

if __name__ == "__main__":
    run_training()
