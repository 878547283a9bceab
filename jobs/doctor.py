"""Ask the workers of a cluster whether they have what a run needs.

spark-submit jobs/doctor.py [--config FILE] [--set section.key=value …]
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # behind what --py-files brings

from i2e_pipeline.cli import main

if __name__ == "__main__":
    main(["doctor", "--cluster", *sys.argv[1:]])
