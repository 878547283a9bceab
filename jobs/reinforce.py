"""Store what teachers make of each image of a published dataset, by Spark's workers.

spark-submit jobs/reinforce.py FOLDER --teacher MODEL [--augmentations K] [--config FILE] [--set key=value …]
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # behind what --py-files brings

from i2e_pipeline.cli import run_reinforcement

if __name__ == "__main__":
    run_reinforcement()
