"""Score each image against its candidate entities.

spark-submit jobs/score_images.py [--config FILE] [--set section.key=value …]
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # behind what --py-files brings

from i2e_pipeline.cli import run_stage

if __name__ == "__main__":
    run_stage("score_images")
