"""What rerankers learn of gold links, and what they bring: each kind is trained, and measured by benchmarks/linking.py.

    python benchmarks/rerankers.py --pretrained FOLDER [--data FOLDER] [--kinds cross bi] [--epochs 1] [--frozen 2]
                                   [--dump DUMP] [--train-dump DUMP …] [--parts 3] [--no-seen] [--write FOLDER]

The gold train splits (gold/*-train.jsonl) are cut into parts by their texts. For each part the priors are counted from
the links of the others alone, and its texts give examples: a reranker that learned beside priors which know the answer
would find whatever else speaks worthless. With --train-dump the examples come of other knowledge bases than the one
that is measured with, such as one with other namesakes.

examples   how many, and how often the first candidate is right
trained    for each kind its curve on held-out texts of the train splits, and minutes
then       the figures of benchmarks/linking.py on gold/*-dev.jsonl (baseline: disambiguation)
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import linking
import pyarrow.parquet as pq
from knowledge_base import STAGES, Source, arguments_of, conclude, source, table

from i2e_pipeline.commands import reranker
from i2e_pipeline.commands.gold import gold_lines
from i2e_pipeline.rerank.reranker import CURVE, KINDS
from i2e_pipeline.rerank.training import Training
from i2e_pipeline.stages import pipeline

Line = dict[str, Any]
COLUMNS = ("step", "minutes", "loss", "held_out_loss", "loss_before", "right", "right_before", "ece", "ece_before")


def part_of(text: str, parts: int) -> int:
    """The part that a text is in, whatever file it is in."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=4).digest(), "big") % parts


def cut(gold: Sequence[str], parts: int, folder: Path) -> list[tuple[Path, Path]]:
    """For each part a file of its gold lines, and one of the links of the others, for knowledge_base.anchors."""
    lines: list[Line] = [line for path in gold for line in gold_lines(path)]
    made = []
    for part in range(parts):
        counts: Counter[tuple[str, int]] = Counter()
        texts, anchors = folder / f"{part}.jsonl", folder / f"{part}.tsv"
        with texts.open("w", encoding="utf-8") as out:
            for line in lines:
                if part_of(line["text"], parts) == part:
                    mentions = [{"start": s, "end": e, "qid": q and f"Q{q}"} for s, e, q in line["mentions"]]
                    out.write(json.dumps({"text": line["text"], "mentions": mentions}) + "\n")
                else:
                    counts.update((line["text"][s:e], q) for s, e, q in line["mentions"] if q is not None)
        rows = [f"{' '.join(surface.split())}\tQ{q}\t{n}\n" for (surface, q), n in sorted(counts.items())]
        anchors.write_text("surface\tqid\tcount\n" + "".join(rows), encoding="utf-8")
        made.append((texts, anchors))
    return made


def write_examples(data: Source, parts: list[tuple[Path, Path]], name: str, folder: Path, work: str) -> list[str]:
    """Files of examples of each part, linked with a knowledge base whose priors do not know it."""
    written = []
    for number, (texts, anchors) in enumerate(parts):
        whole = pipeline(replace(data, anchors=anchors).config(f"{work}/{name}"))
        whole.run(STAGES)
        written.append(str(folder / f"{name}-{number}.parquet"))
        reranker.gold_examples(whole, [str(texts)], written[-1])
    return written


def about_examples(paths: list[str]) -> dict[str, Any]:
    rows = [row for path in paths for row in pq.read_table(path, columns=["candidates", "chosen"]).to_pylist()]
    first = sum(row["candidates"][0]["entity_id"] == row["chosen"] for row in rows)
    within = sum(row["chosen"] in {c["entity_id"] for c in row["candidates"]} for row in rows)
    count = max(len(rows), 1)
    return {"examples": len(rows), "first_right": round(first / count, 4), "within": round(within / count, 4)}


def show(figures: dict[str, Any]) -> None:
    e = figures["examples"]
    print(f"{e['examples']:,} examples: first candidate right {e['first_right']:.1%}, any right {e['within']:.1%}")
    for kind, curve in figures["trained"].items():
        rows = [tuple(line[name] for name in COLUMNS) for line in curve]
        table(f"{kind} on held-out texts (baseline: the fast path, _before)", [COLUMNS, *rows])


def main(arguments: list[str]) -> dict[str, Any]:
    parser = arguments_of(__doc__ or "")
    parser.add_argument("--pretrained", required=True, metavar="FOLDER", help="an encoder of Hugging Face's form")
    parser.add_argument("--dump", type=Path, metavar="DUMP", help="to measure with (default: the data's)")
    parser.add_argument(
        "--train-dump", nargs="+", type=Path, default=[], metavar="DUMP", help="default: that of --dump"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--parts", type=int, default=3)
    parser.add_argument("--no-seen", action="store_true", help="do not tell where entities were seen")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--frozen", type=int, default=2)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--write", type=Path, default=Path("out/rerankers"), help="gets a folder of each kind")
    parser.add_argument("--margin", type=float, default=0.97, help="link.reranker.margin")
    parser.add_argument("--budget", type=float, default=0.25, help="link.reranker.budget")
    options = parser.parse_args(arguments)
    data = source(options.data, options.gold_texts)
    if data.folder is None:
        parser.error("--data: a folder with gold/*-train.jsonl is needed")
    gold = [str(path) for path in sorted((data.folder / "gold").glob("*-train.jsonl"))]
    options.write.mkdir(parents=True, exist_ok=True)
    parts = cut(gold, options.parts, options.write)
    examples: list[str] = []
    for number, dump in enumerate(options.train_dump or [options.dump or data.dump]):
        name = f"train-{number}-{dump.name.partition('.')[0]}"
        examples += write_examples(replace(data, dump=dump), parts, name, options.write, options.work)
    figures: dict[str, Any] = {"examples": about_examples(examples), "trained": {}}
    settings = Training(
        epochs=options.epochs, batch=options.batch, frozen=options.frozen, head_rate=1e-3, measure_steps=100
    )
    for kind in options.kinds:
        folder = options.write / kind
        seen = [] if options.no_seen else gold
        reranker.train(examples, kind, options.pretrained, str(folder), settings, threads=options.threads, seen=seen)
        figures["trained"][kind] = [json.loads(line) for line in (folder / CURVE).read_text("utf-8").splitlines()]
    show(figures)
    measured = ["--data", str(data.folder), "--gold-texts", str(options.gold_texts), "--work", options.work]
    measured += ["--dump", str(options.dump)] if options.dump else []
    measured += ["--mentions", "0", "--margin", str(options.margin), "--budget", str(options.budget)]
    measured += ["--reranker", *(str(options.write / kind) for kind in options.kinds)]
    figures["linking"] = linking.main(measured)
    return conclude(figures, options.json)


if __name__ == "__main__":
    main(sys.argv[1:])
