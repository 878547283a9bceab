"""What `label.wider` brings, and how many of its labels are right: on photos of known truth, below WordNet's classes.

    python benchmarks/wider.py --data DIR --wordnet DIR [--dump FILE] [--beside DUMP] [--folder DIR] [--json FILE]

DIR of --data holds `pairs` and `pairs_open`, as for labels.py, and models; that of --wordnet data.noun and index.noun
(WordNet 3.0; Debian's wordnet-base has them). Few items of the data's dump extract have a class above them. So each
thing that the photos show gets those of WordNet's nouns as P279, up to the top; classes of pairs_open that the dump
lacks become items. --dump: instead of the data's extract; --beside: one more dump in the knowledge base, a crowd.

Without classes above what the texts name there is nothing wider. What becomes of the same photos then, the line "as it
is" says: of a run over the dump without WordNet's classes.

A wider label is right if it stands above what the photo shows, by the classes that were given, or bears one of the
names of pairs_open's column `wider`. "By the threshold alone" is what would be labelled without the rule that the image
must fit nothing else clearly better (`GAP` of label/wider.py).
"""

from __future__ import annotations

import argparse
import bz2
import json
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from labels import config_of, interval

from i2e_pipeline import stages
from i2e_pipeline.label.calibration import DEFAULT

ANIMAL, PLANT, FOOD, ARTIFACT, BODY = "05", "20", "13", "06", "08"
"""WordNet's files of nouns that photos show."""
ROOTS = {ANIMAL: 729, PLANT: 756, FOOD: 2095, ARTIFACT: 8205328, BODY: 4936952}
"""Wikidata's classes that stand above their tops."""
EATEN = ("Q2095", "Q40050")
OF_NAME = {"vehicle": 42889, "structure": 811979}
ABOVE = {
    "Juice": "fruit juice", "Juice Smooth": "fruit juice", "Golden Grapefruit": "fruit juice",
    "Mandarin Morning": "fruit juice", "Sour Milk": "sour milk", "Milk": "milk", "Oatghurt": "yogurt",
    "Soyghurt": "yogurt", "Yoghurt": "yogurt", "Sour Cream": "sour cream", "mushroom": "mushroom", "onion": "onion",
    "bell pepper": "bell pepper", "sweet potato": "root vegetable", "potato": "potato", "red beet": "beet",
    "tomato": "tomato", "watermelon": "melon", "cantaloupe": "muskmelon", "melon": "melon", "pear": "pear",
    "red grapefruit": "grapefruit", "satsuma": "mandarin", "kiwifruit": "edible fruit", "Golden Delicious": "apple",
    "Granny Smith": "apple", "Pink Lady": "apple", "Red Delicious": "apple", "Royal Gala": "apple",
    "motor car": "motor vehicle", "schooner": "sailing vessel", "hawksbill sea turtle": "sea turtle",
    "inline skate": "roller skate", "ceiling fan": "fan", "lotus flower": "water lily", "stop sign": "signboard",
}  # fmt: skip
"""Ends of names that WordNet has not, or has for something else first, with what stands above them; the first that
fits."""
LINKS_OF_CLASS, LINKS_ABOVE = 25, 60
"""Sitelinks of the items that are made, so that they are no obscure ones."""
FIRST = 9_300_000_000
PARTS = ("pairs", "pairs_open")


@dataclass(frozen=True)
class Synset:
    words: tuple[str, ...]
    gloss: str
    file: str
    above: tuple[str, ...]


def synsets(lines: Iterable[str]) -> dict[str, Synset]:
    """By offset, of the lines of data.noun."""
    found = {}
    for line in lines:
        if line.startswith(" "):  # the licence
            continue
        data, _, gloss = line.partition(" | ")
        fields = data.split()
        count = int(fields[3], 16)
        words = tuple(fields[4 + 2 * n].replace("_", " ") for n in range(count))
        pointers = fields[5 + 2 * count :]
        above = tuple(pointers[n + 1] for n in range(0, len(pointers), 4) if pointers[n] in ("@", "@i"))
        found[fields[0]] = Synset(words, gloss.partition(";")[0].strip(), fields[1], above)
    return found


def senses(lines: Iterable[str]) -> dict[str, list[str]]:
    """Word to offsets, the commonest first, of the lines of index.noun."""
    found = {}
    for line in lines:
        if not line.startswith(" "):
            fields = line.split()
            found[fields[0].replace("_", " ")] = fields[-int(fields[2]) :]
    return found


@dataclass
class Classes:
    """What stands above what the photos show."""

    synsets: Mapping[str, Synset]
    senses: Mapping[str, Sequence[str]]
    items: dict[str, int]
    """Synsets that are items of the dump."""
    parents: dict[int, list[int]]
    """Of items of the dump that the photos show."""
    made: dict[str, int]
    """Synsets that become items."""

    def item(self, synset: str) -> int:
        if synset in self.items:
            return self.items[synset]
        if synset not in self.made:
            self.made[synset] = FIRST + int(synset)
            for above in self.synsets[synset].above:
                self.item(above)
        return self.made[synset]

    def put_above(self, item: int, name: str, eaten: bool = False) -> None:
        """Of an item that the photos show, food or not; of a name that WordNet has not, nothing."""
        end = next((end for end in ABOVE if name.endswith(end)), None)
        word, files = (ABOVE[end] if end else name.lower()), ((FOOD, *ROOTS) if end or eaten else (*ROOTS,))
        offsets = self.senses.get(word, ())
        found = next((o for file in files for o in offsets if self.synsets[o].file == file), None)
        if found is None:
            self.parents.setdefault(item, [])
        elif end:
            self.parents[item] = [self.item(found)]
        else:
            self.items.setdefault(found, item)
            self.parents[item] = [self.item(above) for above in self.synsets[found].above]

    def all_above(self) -> dict[int, set[int]]:
        """Of every item all that stands above it."""
        up = {**self.parents, **{q: [self.item(a) for a in self.synsets[o].above] for o, q in self.made.items()}}
        found = {}
        for item in up:
            seen, left = set[int](), list(up[item])
            while left:
                if (one := left.pop()) not in seen:
                    seen.add(one)
                    left += up.get(one, [])
            found[item] = seen
        return found

    def lines(self, named_by_photos: Collection[str]) -> Iterator[dict[str, Any]]:
        """The items that are made, as those of a dump."""
        for offset, item in self.made.items():
            one = self.synsets[offset]
            parents = [self.item(above) for above in one.above]
            if one.words[0] in OF_NAME:
                parents.append(OF_NAME[one.words[0]])
            elif one.file in ROOTS and all(self.synsets[above].file != one.file for above in one.above):
                parents.append(ROOTS[one.file])
            links = LINKS_OF_CLASS if offset in named_by_photos else LINKS_ABOVE
            yield {
                "type": "item",
                "id": f"Q{item}",
                "labels": {"en": {"language": "en", "value": one.words[0]}},
                "descriptions": {"en": {"language": "en", "value": one.gloss[:240]}},
                "aliases": {"en": [{"language": "en", "value": word} for word in one.words[1:]]},
                "claims": {"P279": [_claim(parent) for parent in parents]},
                "sitelinks": {f"w{n}wiki": {"site": f"w{n}wiki", "title": one.words[0]} for n in range(links)},
            }


def _claim(item: int) -> dict[str, Any]:
    value = {"value": {"entity-type": "item", "numeric-id": item, "id": f"Q{item}"}, "type": "wikibase-entityid"}
    snak = {"snaktype": "value", "property": "P279", "datatype": "wikibase-item", "datavalue": value}
    return {"mainsnak": snak, "type": "statement", "rank": "normal", "id": f"x{item}"}


def photos(data: Path, part: str) -> list[dict[str, Any]]:
    """Of photos of known truth what is known of them, in the order of files and rows."""
    rows = []
    for shard in sorted((data / part).glob("0*.parquet")):
        names = pq.read_schema(shard).names
        columns = [c for c in ("key", "url", "truth_qid", "wider", "wnid") if c in names]
        rows += pq.read_table(shard, columns=columns).to_pylist()
    return [row for row in rows if row["truth_qid"] is not None]


def read_items(dump: Path) -> Iterator[tuple[str, int]]:
    """Each line of a dump that holds an item, and the item's number."""
    with bz2.open(dump, "rt", encoding="utf-8") if dump.suffix == ".bz2" else dump.open(encoding="utf-8") as lines:
        for line in lines:
            body = line.strip().rstrip(",")
            at = body.find('"id":"Q' if '"id":"Q' in body[:200] else '"id": "Q')
            if body.startswith("{") and at >= 0:
                digits = body[at + 7 : at + 24].lstrip('Q"').partition('"')[0]
                yield body, int(digits)


def write_world(dump: Path, known: Mapping[str, Sequence[Any]], wordnet: Path, folder: Path) -> Classes:
    """A dump with WordNet's classes in `folder`; what was put above what."""
    with (wordnet / "data.noun").open() as data, (wordnet / "index.noun").open() as index:
        classes = Classes(synsets(data), senses(index), {}, {}, {})
    of_open = {row["wnid"][1:]: row["truth_qid"] for row in known["pairs_open"]}
    shown = {int(row["truth_qid"][1:]) for part in PARTS for row in known[part] if row["truth_qid"] != "none"}
    kept = {number: json.loads(body) for body, number in read_items(dump) if number in shown}
    classes.items.update({o: int(q[1:]) for o, q in of_open.items() if q != "none"})
    for offset, item in list(classes.items.items()):
        classes.parents[item] = [classes.item(above) for above in classes.synsets[offset].above]
    for number, line in kept.items():
        if number not in classes.parents:
            labels, claims = line["labels"], line["claims"]
            of = {c["mainsnak"]["datavalue"]["value"]["id"] for c in claims.get("P31", ())} if claims else set()
            classes.put_above(number, (labels.get("en") or labels.get("mul"))["value"], not of.isdisjoint(EATEN))
    for offset in of_open:
        classes.item(offset)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "dump.json").open("w", encoding="utf-8") as out:
        out.write("[\n")
        for body, number in read_items(dump):
            if classes.parents.get(number):
                line = kept[number]
                claims = {**(line.get("claims") or {}), "P279": [_claim(p) for p in classes.parents[number]]}
                body = json.dumps({**line, "claims": claims}, ensure_ascii=False)
            out.write(body + ",\n")
        out.writelines(json.dumps(line, ensure_ascii=False) + ",\n" for line in classes.lines(of_open))
        out.write("]\n")
    return classes


def measure(
    data: Path, dump: Path, folder: Path, known: Mapping[str, Sequence[Any]], classes: Classes | None
) -> dict[str, dict[str, int]]:
    """By part: right and wrong labels, those by name, wider ones, and wider ones by the threshold alone."""
    pipeline = stages.pipeline(config_of(data, str(dump), folder, ["label.wider=true"]))
    run, _ = pipeline.run()
    run.reader = None
    names = ["pair_id", "entity_id", "probability", "reason", "wider_of"]
    labels = run.read("labels", columns=names).toPandas()
    entities = {r["entity_id"]: r for r in run.read("kb/entities", columns=["entity_id", "name", "types"]).collect()}
    keys = {
        bytes(r["pair_id"]): (r["url"], r["key"]) for r in run.read("pairs").select("pair_id", "url", "key").collect()
    }
    pipeline.tables.spark.stop()
    above = classes.all_above() if classes is not None else {}
    of = {(row["url"], row["key"]): (part, row) for part in PARTS for row in known[part]}
    threshold = DEFAULT.threshold
    counts: dict[str, dict[str, int]] = {part: {} for part in PARTS}
    best = labels.sort_values(["probability", "entity_id"], ascending=[False, True])
    alone = set[bytes]()
    for row in best.itertuples():
        found = of.get(keys[bytes(row.pair_id)])
        if found is None:
            continue
        part, photo = found
        kinds = []
        if row.reason is None:
            kinds.append("by name" if row.wider_of != row.wider_of else "wider")
        if row.wider_of == row.wider_of and row.probability >= threshold and row.pair_id not in alone:
            alone.add(row.pair_id)
            kinds.append("wider by the threshold alone")
        truth = photo["truth_qid"]
        item = int(truth[1:]) if truth != "none" else classes.item(photo["wnid"][1:]) if classes is not None else None
        also = {name.casefold() for name in photo.get("wider") or ()}
        types = set(entities[item]["types"]) if item in entities else set()
        right = row.entity_id == item or row.entity_id in above.get(item, types) | types
        right |= entities[row.entity_id]["name"].casefold() in also
        for kind in kinds:
            key = f"{kind}, {'right' if right else 'wrong'}"
            counts[part][key] = counts[part].get(key, 0) + 1
    return counts


def show(name: str, counts: Mapping[str, Mapping[str, int]]) -> None:
    for part, of_part in counts.items():
        cells = []
        for kind in ("by name", "wider", "wider by the threshold alone"):
            right, wrong = (of_part.get(f"{kind}, {verdict}", 0) for verdict in ("right", "wrong"))
            cells.append(f"{right} / {wrong}: {interval(right, right + wrong)}")
        print(f"| {name} | {part} | " + " | ".join(cells) + " |", flush=True)


def main(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("I2E_REAL_DATA"), help="default: I2E_REAL_DATA")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--dump", type=Path)
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("out/benchmarks/wider"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if not options.data or not (options.wordnet / "data.noun").exists():
        print("wider.py needs photos of known truth (--data) and WordNet's nouns (--wordnet); left out")
        return {}
    data, folder = Path(options.data).resolve(), options.folder.resolve()
    dump = options.dump or data / "wikidata" / "sample-dump.json.bz2"
    known = {part: photos(data, part) for part in PARTS}
    classes = write_world(dump, known, options.wordnet, folder / "dump")
    (folder / "as-it-is").mkdir(exist_ok=True)
    for name, source in (("dump", options.beside), ("as-it-is", dump), ("as-it-is", options.beside)):
        if source is not None and not (link := folder / name / f"beside-{source.name}").exists():
            link.symlink_to(source.resolve())
    print("| classes | photos | labels by name: right / wrong | wider | wider by the threshold alone |")
    print("|---|---|---|---|---|")
    found = {}
    for name, of_dump, known_classes in (("WordNet's", "dump", classes), ("as it is", "as-it-is", None)):
        found[name] = measure(data, folder / of_dump, folder / f"out-{of_dump}", known, known_classes)
        show(name, found[name])
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
