"""A folder laid out like real data, a few lines each; the scripts import one another as scripts do."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

RECOGNIZER = ROOT / "i2e_pipeline" / "sample" / "models" / "recognizer"
GOLD = [
    ("Flag of Chad over the river", [("Chad", 657)]),
    ("a red apple on a table, Turkey", [("apple", 89), ("Turkey", 43)]),
    ("nothing to see", []),
]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from i2e_pipeline.sample import dump
    from i2e_pipeline.sample.world import load_world

    folder = tmp_path_factory.mktemp("tiny")
    for name in ("wikidata", "gold", "ner", "pairs", "alt_text"):
        (folder / name).mkdir()
    world = load_world()
    dump.write_dump(world, folder / "wikidata" / "sample-dump.json.bz2")
    dump.write_popularity(world, folder / "wikidata" / "popularity.csv")
    dump.write_anchors(world, folder / "wikidata" / "mention_counts.tsv")
    (folder / "ner" / "model").symlink_to(RECOGNIZER)
    links, names, captions = [], [], []
    for text, mentions in GOLD:
        spans = [{"start": text.find(s), "end": text.find(s) + len(s), "qid": f"Q{q}"} for s, q in mentions]
        links.append({"id": text, "text": text, "mentions": spans})
        names.append({"text": text, "spans": spans})
        ids = [s["qid"] for s in spans]
        captions.append({"caption": text, "truth_qid": ids[0] if ids else None, "mentioned_qids": ids})
    for path, rows in ((folder / "gold" / "tiny-dev.jsonl", links), (folder / "ner" / "dev.jsonl", names)):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    turkeys = [(f"a turkey on plate {n}", "turkey", 848706) for n in range(60)]
    turkeys += [(f"a street in Turkey {n}", "Turkey", 43) for n in range(60)]
    (folder / "gold" / "tiny-train.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "id": text,
                    "text": text,
                    "mentions": [{"start": text.find(s), "end": text.find(s) + len(s), "qid": f"Q{q}"}],
                }
            )
            + "\n"
            for text, s, q in turkeys
        )
    )
    pq.write_table(pa.Table.from_pylist(captions), folder / "pairs" / "00000.parquet")
    pq.write_table(
        pa.table({"TEXT": [text for text, _ in GOLD] + ["R&amp;D  café", None]}), folder / "alt_text" / "a.parquet"
    )
    return folder
