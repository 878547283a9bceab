"""Read alt-texts and find the mentions in each distinct one.

spark-submit jobs/extract_entities.py [--config FILE] [--set section.key=value …]
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # behind what --py-files brings

from i2e_pipeline.cli import run_stage

if __name__ == "__main__":
    run_stage("extract_entities")
