"""Are the labels right, in a quiet world and in a crowd? The figures of docs/quality.md, each with a 95 % interval.

    python benchmarks/labels.py --data DIR [--world NAME=DUMP …] [--fit] [--write FILE.json] [--ablate] [--json FILE]
                                [--unseen NAME=DUMP …] [--set section.key=value …] [--verdicts [NOISE]]

DIR holds `pairs` and `pairs_open` (photos of known truth), `wikidata` (a dump, popularity, anchors), `gold` (texts with
gold links) and models, as I2E_REAL_DATA names it. A world is a knowledge base: --world names its dump, a file or a
folder; without it, the one of DIR; --unseen one that no fit sees. For each world the chain is run, and its labels are
held against the truth:

    pairs       photos of shards that the calibration did not see; precision and recall of labels
    pairs_open  photos whose captions name what few knowledge bases have: right labels, and wrong ones where nothing is
                known ("none"), by models that did not see the photo (10 folds, fitted on all worlds)
    reliability calibration error of the probability of labels and best candidates
    links       of gold texts: accuracy of exact spans, recall at 10, spans a text

The calibration in use is the default's, or with --fit one that is fitted here on all worlds together, on shards 0 to 3
of pairs and on pairs_open; --write writes it. --ablate fits without each group of features in turn.

--verdicts measures instead what a verifier brings: precision, recall and calibration error of labels by text and image
alone, and with its verdicts, and how many questions that took. It is the one that --set names (verify.model=…, or
verify.server=… and verify.served_model=…, with verify.reliability as you know it); with a NOISE, a planted one, which
knows the truth and errs in that share of its answers (benchmarks/planted.py).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import verdicts

from i2e_pipeline import stages
from i2e_pipeline.commands.calibrate import named_images, options_of, scored
from i2e_pipeline.commands.link import link_texts
from i2e_pipeline.core.config import Config, merge
from i2e_pipeline.label import judged
from i2e_pipeline.label.calibration import DEFAULT, FITTED, Calibration, select
from i2e_pipeline.label.fit import FOLDS, fit, report, rounded

SEEN = (0, 1, 2, 3)
"""Shards of pairs that a fit may see."""
PRECISION = 0.968
"""That a fit's threshold keeps with 99 % confidence, over all worlds."""
GROUPS: Mapping[str, tuple[str, ...]] = {
    "fame": ("fame",),
    "visual share of the type": ("visual",),
    "what the image shows by type": ("type",),
    "what else the image might be": ("vocabulary",),
    "name alone": ("name_z", "least_of"),
    "description alone": ("description_z", "least_of"),
}
"""Features by what they are made of: the beginnings of their names."""


@dataclass
class World:
    """What one knowledge base makes of the pairs."""

    name: str
    table: pa.Table
    """A row per candidate of a pair, or one without a candidate; `open` (bool): of pairs_open."""
    links: dict[str, dict[str, float]]

    def part(self, is_open: bool, shards: tuple[int, ...] | None = None) -> pa.Table:
        mask = pc.equal(self.table["open"], is_open)
        if shards is not None:
            mask = pc.and_(mask, pc.is_in(self.table["shard"], pa.array(shards, self.table["shard"].type)))
        return self.table.filter(mask)


def config_of(data: Path, dump: str, folder: Path, settings: Sequence[str] = ()) -> Config:
    tree = {
        "output": str(folder),
        "pairs": {"path": f"{data}/pairs*/0*.parquet"},
        "knowledge_base": {
            "dump": dump,
            "popularity": f"{data}/wikidata/popularity.csv",
            "anchors": f"{data}/wikidata/mention_counts.tsv",
        },
        "extract": {"recognizer": f"{data}/ner/model"},
        "score": {"model": f"local-dir:{data}/models/scorer"},
        "select": {"min_images_per_entity": 1},
    }
    return stages.from_tree(merge(tree, settings), "benchmarks/labels.py", settings)


def measure(name: str, data: Path, dump: str, folder: Path, settings: Sequence[str] = ()) -> World:
    pipeline = stages.pipeline(config_of(data, dump, folder / name, settings))
    run, table = scored(pipeline)
    files = {f.shard: f.path for u in run.units for f in u.files}
    of_open = pa.array([s for s, path in files.items() if "pairs_open" in path], table["shard"].type)
    table = table.append_column("open", pc.is_in(table["shard"], of_open))
    links = {}
    for gold in ("wikidiverse-dev", "wikidata-mel-dev"):
        texts = data / "gold" / f"{gold}.jsonl"
        if texts.exists():
            found = folder / f"{name}-{gold}.jsonl"
            link_texts(pipeline, str(texts), str(found))
            links[gold] = against_gold(found, texts)
    pipeline.tables.spark.stop()
    return World(name, table, links)


def against_gold(found: Path, gold: Path) -> dict[str, float]:
    """As linking is usually measured: over gold mentions that have an id."""
    linked = {str(r["id"]): r["mentions"] for r in map(json.loads, found.read_text("utf-8").splitlines())}
    wanted = exact = right = near = spans = texts = 0
    for row in map(json.loads, gold.read_text("utf-8").splitlines()):
        mine = linked[str(row["id"])]
        texts, spans = texts + 1, spans + len(mine)
        for m in row["mentions"]:
            if not m["qid"]:
                continue
            wanted += 1
            entity = int(m["qid"][1:])
            same = [x for x in mine if (x["start"], x["end"]) == (m["start"], m["end"])]
            ids = [[int(c["entity_id"]) for c in x["candidates"]] for x in same or [x for x in mine if _overlap(x, m)]]
            exact += bool(same)
            right += bool(same) and ids[0][:1] == [entity]
            near += any(entity in of[:10] for of in ids)
    return {
        "accuracy": right / exact,
        "exact": exact,
        "recall@10": near / wanted,
        "gold": wanted,
        "spans": spans / texts,
    }


def _overlap(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    both = min(a["end"], b["end"]) - max(a["start"], b["start"])
    return both > 0 and 2 * both >= a["end"] - a["start"] and 2 * both >= b["end"] - b["start"]


def together(tables: Mapping[str, pa.Table]) -> pa.Table:
    """Tables of several worlds as one: an image of each world is one of its own, in the fold that it is in anyway."""
    parts = []
    for name, table in tables.items():
        for column in ("pair_id", "image_id"):
            ids = [None if i is None else _renamed(name, i) for i in table[column].to_pylist()]
            table = table.set_column(table.schema.get_field_index(column), column, pa.array(ids, pa.binary(16)))
        parts.append(table)
    return pa.concat_tables(parts)


def _renamed(world: str, id_: bytes) -> bytes:
    return id_[:1] + hashlib.blake2b(world.encode() + id_, digest_size=15).digest()


def fitted(table: pa.Table, names: tuple[str, ...] = FITTED, without_fold: int | None = None) -> Calibration:
    """One calibration on what a fit may see of all worlds."""
    if without_fold is not None:
        table = table.filter(
            pa.array([i is None or i[0] % FOLDS != without_fold for i in table["image_id"].to_pylist()])
        )
    return fit(options_of(table), PRECISION, names, named_images=named_images(table))


def of_pairs(world: World, calibration: Calibration) -> dict[str, float]:
    held_out = world.table.filter(
        pc.and_not(
            pc.invert(world.table["open"]), pc.is_in(world.table["shard"], pa.array(SEEN, world.table["shard"].type))
        )
    )
    return {**report(options_of(held_out), calibration, named_images(held_out)), "named": named_images(held_out)}


def of_open(world: World, by_fold: Mapping[int, Calibration]) -> dict[str, float]:
    """Labels of pairs_open, each image by a calibration, and its threshold, that did not see it."""
    table = options_of(world.part(True))
    fold = np.array([i[0] % FOLDS for i in table["image_id"].to_pylist()])
    chosen = pa.concat_tables(select(table.filter(pa.array(fold == f)), by_fold[int(f)]) for f in np.unique(fold))
    chosen = chosen.filter(pc.is_null(chosen["reason"]))
    right = judged.right(chosen)
    wrong = pc.and_(pc.invert(right), judged.told_nothing(chosen))
    return {
        "right": pc.sum(right).as_py() or 0,
        "known": len(pc.unique(world.part(True).filter(pc.is_valid(world.part(True)["truth"]))["pair_id"])),
        "wrong_on_none": pc.sum(pc.fill_null(wrong, False)).as_py() or 0,
    }


def interval(part: float, whole: float) -> str:
    """Wilson's 95 % interval of a share."""
    if not whole:
        return "–"
    low, high = judged.wilson(part, whole)
    return f"{part / whole:.3f} [{low:.3f}, {high:.3f}]"


def show(worlds: list[World], calibration: Calibration, by_fold: Mapping[int, Calibration]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    print(f"threshold {calibration.threshold:.3f}\n")
    print("| world | precision, unseen shards | recall | calibration error | pairs_open right | wrong on none |")
    print("|---|---|---|---:|---:|---:|")
    for w in worlds:
        p, o = of_pairs(w, calibration), of_open(w, by_fold)
        found[w.name] = {"pairs": p, "pairs_open": o, "links": w.links}
        print(
            f"| {w.name} | {interval(p['right'], p['right'] + p['wrong'])} | "
            f"{interval(round(p['recall'] * p['named']), p['named'])} | {p['calibration_error']:.3f} | "
            f"{o['right']} of {o['known']} | {o['wrong_on_none']} |"
        )
    print("\n| world | gold | accuracy of exact spans | recall@10 | spans a text |\n|---|---|---|---|---:|")
    for w in worlds:
        for gold, g in w.links.items():
            accuracy = interval(round(g["accuracy"] * g["exact"]), g["exact"])
            recall = interval(round(g["recall@10"] * g["gold"]), g["gold"])
            print(f"| {w.name} | {gold} | {accuracy} | {recall} | {g['spans']:.2f} |")
    return found


def ablate(worlds: list[World], seen: pa.Table) -> dict[str, Any]:
    """What a fit without each group of features gives, at the threshold that it chooses; a column per world."""
    found: dict[str, Any] = {}
    print("\n| without | " + " | ".join(f"{w.name}: precision at recall, wrong on none" for w in worlds) + " |")
    print("|---|" + "---|" * len(worlds))
    for group, beginnings in {"nothing": (), **GROUPS}.items():
        names = tuple(n for n in FITTED if not n.startswith(beginnings or ("-",)))
        by_fold = {f: fitted(seen, names, f) for f in range(FOLDS)}
        fit_ = fitted(seen, names)
        cells = []
        for w in worlds:
            p, o = of_pairs(w, fit_), of_open(w, by_fold)
            cells.append(f"{p['precision']:.3f} at {p['recall']:.3f}, {o['wrong_on_none']}")
        found[group] = cells
        print(f"| {group} | " + " | ".join(cells) + " |", flush=True)
    return found


def measure_verdicts(
    name: str, data: Path, dump: str, folder: Path, settings: Sequence[str], noise: float | None
) -> dict[str, Any]:
    """What verdicts change in one world, on all of its photos of known truth; prints a row for each way."""
    config = config_of(data, dump, folder / name, settings)
    if noise is None and not config.verify.on:
        sys.exit("labels.py: --verdicts asks nobody: --set verify.model=… or verify.server=…, or give it a NOISE")
    table, calibration, told = verdicts.with_verdicts(config, noise, settings)
    found = verdicts.labels_by(table, calibration)
    verdicts.show_labels(name, found)
    print("  " + ", ".join(f"{count:,} {what}" for what, count in told.items()), flush=True)
    return {**found, "told": told, "questions": verdicts.questions(table, calibration)}


def _named(option: str, worlds: Sequence[str], taken: Collection[str] = ()) -> dict[str, str]:
    """Dumps by name. Exits where a name is missing, stands twice, or is one of `taken`: a fit goes by names."""
    found: dict[str, str] = {}
    for world in worlds:
        name, equals, dump = world.partition("=")
        if not (name and equals and dump):
            sys.exit(f"labels.py: {option} {world}: write it as NAME=DUMP")
        if name in found or name in taken:
            where = "twice" if name in found else "the name of a world that the fit sees, too"
            sys.exit(f"labels.py: {option} {world}: {name} is {where}: give each world a name of its own")
        found[name] = dump
    return found


def main(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("I2E_REAL_DATA"), help="default: I2E_REAL_DATA")
    parser.add_argument("--world", action="append", default=[], metavar="NAME=DUMP")
    parser.add_argument("--unseen", action="append", default=[], metavar="NAME=DUMP", help="measured, not fitted on")
    parser.add_argument("--folder", type=Path, default=Path("out/benchmarks/labels"))
    parser.add_argument("--set", nargs="+", default=[], metavar="section.key=value", help="other settings of the chain")
    parser.add_argument("--fit", action="store_true", help="fit on all worlds instead of taking the default")
    parser.add_argument("--ablate", action="store_true", help="what each group of features buys")
    parser.add_argument("--write", type=Path, metavar="FILE.json", help="where the fitted calibration goes")
    parser.add_argument("--verdicts", nargs="?", type=float, const=-1.0, metavar="NOISE", help="what a verifier brings")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if not options.data:
        print("labels.py needs photos of known truth: --data DIR, or I2E_REAL_DATA; left out")
        return {}
    data = Path(options.data).resolve()
    seen_dumps = _named("--world", options.world) or {"plain": f"{data}/wikidata/sample-dump.json.bz2"}
    unseen = _named("--unseen", options.unseen, taken=seen_dumps)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.verdicts is not None:
        noise = None if options.verdicts < 0 else options.verdicts
        print(verdicts.LABELS_HEAD)
        told = {
            name: measure_verdicts(name, data, dump, options.folder.resolve(), options.set, noise)
            for name, dump in {**seen_dumps, **unseen}.items()
        }
        for name, of_world in told.items():
            print(f"\n{name}: questions per million labels\n")
            verdicts.show_questions(of_world["questions"])
        if options.json:
            options.json.write_text(json.dumps(told, indent=1))
        return told
    worlds = [
        measure(name, data, dump, options.folder.resolve(), options.set)
        for name, dump in {**seen_dumps, **unseen}.items()
    ]
    of_fit = [w for w in worlds if w.name in seen_dumps]
    seen = together({w.name: pa.concat_tables([w.part(False, SEEN), w.part(True)]) for w in of_fit})
    by_fold = {f: fitted(seen, without_fold=f) for f in range(FOLDS)}
    calibration = rounded(fitted(seen)) if options.fit else DEFAULT
    if options.fit and options.write:
        calibration.save(options.write)
    found = show(worlds, calibration, by_fold)
    if options.ablate:
        found["ablation"] = ablate(worlds, seen)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
