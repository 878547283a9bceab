"""Count how often Wikipedia's links have which text and lead where, for knowledge_base.anchors.

spark-submit jobs/count_anchors.py --pages enwiki-latest-pages-articles.xml.bz2 --output anchors.tsv
    --set knowledge_base.dump=latest-all.json.bz2 [--languages en,de] [--redirects FILE …] [--config FILE]
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # behind what --py-files brings

from i2e_pipeline.cli import main

if __name__ == "__main__":
    main(["count-anchors", *sys.argv[1:]])
