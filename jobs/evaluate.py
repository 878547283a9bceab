"""Measure image encoders the way MOFI's tables do; without arguments, the sample's.

python jobs/evaluate.py [--model MODEL …] [--data NAME=PATH …] [--suite A,B] [--config FILE] [--set key=value …]
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # behind what --py-files brings

from i2e_pipeline.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
