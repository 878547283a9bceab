"""What finding mentions costs and finds: each figure as a ratio to a named baseline.

    python benchmarks/extract.py [--data FOLDER] [--texts 4000] [--repeats 3] [--worker-texts 1000000]

clean       raw alt-texts per CPU-second
              each       extract.text.clean of each text: the baseline
              column     extract.text.clean_column
recognizer  cleaned texts per CPU-second
              one        nlp(text), one at a time: the baseline
              pipe       nlp.pipe in the order of the texts
              batched    extract.recognizer.Recognizer.find: nlp.pipe by rising length, true-cased
gazetteer   cleaned texts per CPU-second, bytes per name on disk and while it is built (in a process of its own)
              daachorse, ahocorasick_rs    an automaton of the same names over lower-cased texts, all matches, no word
                                           borders looked at, no plurals: the baselines, where they are installed
              gazetteer  extract.gazetteer.Gazetteer.find
mentions    extract.mentions.find_mentions whole, against a bare nlp.pipe of its recognizer's model, and against its
            recognizer alone
profile     extract.profile fast against full: texts per CPU-second, and what is lost: mentions that the knowledge base
            knows, and gold spans
case        recall and precision of spans in texts of one case, which the recognizer gets as they are (the baseline)
            or as titles: what true-casing gains
worker      with --worker-texts N: resident memory of a process of its own that finds the mentions of N distinct texts,
            made of the words of real ones and of words that no text has, after a tenth, a half and all of them; the
            baseline is what it holds after a tenth
spans       recall of gold spans by the recognizer alone (the baseline), the gazetteer alone, both; and by both without
            spans that lie within another ("outer")

Figures are medians of interleaved rounds. Ratios of gazetteer, mentions and profile are taken within a round, and the
least and the greatest stand beside the median. On a shared machine compare ratios, not figures.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from knowledge_base import (
    Gold,
    Source,
    against,
    arguments_of,
    conclude,
    first_key,
    made_knowledge_base,
    measure,
    measure_ratios,
    optional,
    source,
    table,
)  # fmt: skip

from i2e_pipeline.extract.gazetteer import Gazetteer, build
from i2e_pipeline.extract.mentions import find_mentions
from i2e_pipeline.extract.recognizer import BLANK, Recognizer, load
from i2e_pipeline.extract.text import clean, clean_column, clean_with_offsets

COLUMNS = ["normal_form", "candidates", "forms", "link_probability", "gazetteer"]
AUTOMATA = ("daachorse", "ahocorasick_rs")
BATCH = 2048


def mentions_of(
    texts: list[str], recognizer: Recognizer, gazetteer: Gazetteer | None, profile: str = "full"
) -> list[list[tuple[int, int, str, str]]]:
    """(start, end, normal form, source) of the mentions of each cleaned text."""
    found: list[list[tuple[int, int, str, str]]] = [[] for _ in texts]
    for kind, batch in find_mentions(_batches(texts), recognizer, gazetteer, profile=profile):
        if kind == "mentions":
            for m in batch.to_pylist():
                place = int.from_bytes(m["text_id"], "big")
                found[place].append((m["start"], m["end"], m["normal_form"], m["source"]))
    return found


def _batches(texts: list[str]) -> Iterator[pa.RecordBatch]:
    """texts (text_id, text); an id is the text's place."""
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        ids = [i.to_bytes(16, "big") for i in range(start, start + len(part))]
        yield pa.record_batch([pa.array(ids, pa.binary(16)), pa.array(part, pa.string())], names=["text_id", "text"])


def measure_clean(texts: list[str], repeats: int) -> dict[str, Any]:
    column = pa.array(texts, pa.string())
    assert clean_column(column).to_pylist() == [clean(text) for text in texts]
    rates = measure(
        {"each": lambda: sum(1 for t in texts if clean(t) is not None), "column": lambda: len(clean_column(column))},
        repeats,
    )
    return {"texts_per_cpu_second": rates, "times_each": against(rates, "each")}


def measure_recognizer(texts: list[str], recognizer: Recognizer, repeats: int) -> dict[str, Any]:
    nlp = recognizer.pipeline
    assert nlp is not None

    def one() -> int:
        with nlp.memory_zone():
            for text in texts:
                nlp(text)
        return len(texts)

    def batched() -> int:
        recognizer.find(texts)
        return len(texts)

    def piped() -> int:
        with nlp.memory_zone():
            for _ in nlp.pipe(texts, batch_size=recognizer.batch_size):
                pass
        return len(texts)

    rates = measure({"one": one, "pipe": piped, "batched": batched}, repeats)
    return {"texts_per_cpu_second": rates, "times_one": against(rates, "one")}


def measure_gazetteer(texts: list[str], surfaces: pa.Table, folder: Path, repeats: int) -> dict[str, Any]:
    """Rates; bytes per name on disk, and more at the peak of building."""
    gazetteer = Gazetteer(folder)
    kept = surfaces.filter(pc.and_(surfaces["gazetteer"], pc.greater(pc.utf8_length(surfaces["normal_form"]), 2)))
    names: list[str] = kept["normal_form"].to_pylist()
    lower = [text.lower() for text in texts]

    def find() -> int:
        gazetteer.find(texts)
        return len(texts)

    ways: dict[str, Callable[[], int]] = {}
    stored = {"gazetteer": sum(f.stat().st_size for f in folder.glob("*.npy")) / gazetteer.names}
    if (daachorse := optional("daachorse")) is not None:
        array = daachorse.CharwiseDoubleArrayAhoCorasick(names, daachorse.MATCH_KIND_STANDARD)
        stored["daachorse"] = len(array.serialize()) / len(names)
        ways["daachorse"] = lambda: sum(1 for text in lower if array.find_overlapping(text) is not None)
    if (aho := optional("ahocorasick_rs")) is not None:
        automaton = aho.AhoCorasick(names)
        ways["ahocorasick_rs"] = lambda: sum(
            1 for text in lower if automaton.find_matches_as_indexes(text, overlapping=True) is not None
        )
    rates, ratios = measure_ratios({**ways, "gazetteer": find}, "gazetteer", repeats)
    with tempfile.TemporaryDirectory() as work:
        pq.write_table(surfaces, f"{work}/surfaces.parquet")
        building = {way: _peak_of_building(way, f"{work}/surfaces.parquet") for way in [*ways, "gazetteer"]}
    return {
        "names": {"gazetteer": gazetteer.names, "automata": len(names)},
        "texts_per_cpu_second": rates,
        "gazetteer_is_faster_by": {way: [round(1 / max(r, 1e-9), 2) for r in ratios[way][::-1]] for way in ways},
        "bytes_per_name_stored": {way: round(size, 1) for way, size in stored.items()},
        # Below a few MB only the allocator's own steps are visible.
        "bytes_per_name_building": {
            way: round(peak / (gazetteer.names if way == "gazetteer" else len(names))) if peak > 8e6 else None
            for way, peak in building.items()
        },
    }


def _peak_of_building(way: str, surfaces: str) -> int:
    """Peak growth, in bytes, of the resident memory of a fresh process while it builds; its input is in memory
    before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_build, (way, surfaces))


def _build(way: str, path: str) -> int:
    read = pq.read_table(path, columns=COLUMNS)
    batches = read.to_batches(max_chunksize=50_000)
    names = read.filter(read["gazetteer"])["normal_form"].to_pylist() if way != "gazetteer" else []
    with tempfile.TemporaryDirectory() as folder:
        build([batches[0].slice(0, 1)], f"{folder}/one")  # makes tables that every build shares
        before = _memory("VmRSS", reset=True)
        if way == "gazetteer":
            build(batches, f"{folder}/all")
        elif way == "daachorse":
            import daachorse

            daachorse.CharwiseDoubleArrayAhoCorasick([n for n in names if len(n) > 2], daachorse.MATCH_KIND_STANDARD)
        else:
            import ahocorasick_rs

            ahocorasick_rs.AhoCorasick([n for n in names if len(n) > 2])
        return _memory("VmHWM") - before


def _memory(line: str, reset: bool = False) -> int:
    """Bytes of this process by a line of /proc/self/status, 0 where there is none; `reset` starts VmHWM, the peak,
    anew. getrusage's peak is of no use: a child begins with its parent's."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next(1024 * int(row.split()[1]) for row in status.splitlines() if row.startswith(line))


def measure_worker(texts: list[str], recognizer: str, gazetteer: Path, count: int) -> dict[str, Any]:
    """Resident bytes of a fresh process after a tenth, a half and all of `count` distinct texts."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        held = pool.apply(_worker, (texts, recognizer, str(gazetteer), count))
    return {"texts": count, "resident_bytes": held, "times_a_tenth": against(held, "a tenth")}


def _worker(texts: list[str], name: str, folder: str, count: int) -> dict[str, float]:
    recognizer, gazetteer = load(name), Gazetteer(folder)
    marks = {count // 10: "a tenth", count // 2: "a half", count: "all"}
    held: dict[str, float] = {}
    done = 0
    for some in _distinct(texts, count):
        for _ in find_mentions(_batches(some), recognizer, gazetteer):
            pass
        before, done = done, done + len(some)
        held |= {name: float(_memory("VmRSS")) for mark, name in marks.items() if before < mark <= done}
    return held


def _distinct(texts: list[str], count: int) -> Iterator[list[str]]:
    """Batches of distinct texts: each the front of one text, the back of another, and a word of its own."""
    fronts, backs = ([" ".join(t.split()[half]) for t in texts] for half in (slice(0, 6), slice(6, 12)))
    for start in range(0, count, BATCH):
        numbers = range(start, min(start + BATCH, count))
        yield [f"{fronts[n % len(fronts)]} {backs[n // len(fronts) % len(backs)]} w{n:x}" for n in numbers]


def measure_mentions(texts: list[str], recognizer: Recognizer, gazetteer: Gazetteer, repeats: int) -> dict[str, Any]:
    nlp = recognizer.pipeline
    assert nlp is not None

    def bare() -> int:
        for _ in nlp.pipe(texts, batch_size=recognizer.batch_size):
            pass
        return len(texts)

    def alone() -> int:
        recognizer.find(texts)
        return len(texts)

    def whole() -> int:
        for _ in find_mentions(_batches(texts), recognizer, gazetteer):
            pass
        return len(texts)

    rates, ratios = measure_ratios({"pipe": bare, "recognizer": alone, "mentions": whole}, "pipe", repeats)
    return {
        "texts_per_cpu_second": rates,
        "times_pipe": ratios,
        "times_recognizer": against(rates, "recognizer"),
    }


def measure_profile(
    texts: list[str],
    gold: dict[str, list[Gold]],
    recognizer: Recognizer,
    gazetteer: Gazetteer,
    held: dict[str, int],
    repeats: int,
) -> dict[str, Any]:
    """How much faster the profile fast is, and what it does not find of what full finds."""

    def found(profile: str) -> int:
        for _ in find_mentions(_batches(texts), recognizer, gazetteer, profile=profile):
            pass
        return len(texts)

    ways = {profile: partial(found, profile) for profile in ("full", "fast")}
    rates, ratios = measure_ratios(ways, "full", repeats)
    result: dict[str, Any] = {
        "texts_per_cpu_second": rates,
        "times_full": ratios,
        "known_mentions": {
            profile: sum(
                first_key(m[2], held) is not None
                for of_text in mentions_of(texts, recognizer, gazetteer, profile)
                for m in of_text
            )
            for profile in ways
        },
        "gold_span_recall": {},
    }
    for name, rows in gold.items():
        cleaned = [clean_with_offsets(row.text) for row in rows]
        plain = [text for text, _ in cleaned]
        ways_of_gold = {
            **{profile: mentions_of(plain, recognizer, gazetteer, profile) for profile in ways},
            "gazetteer": mentions_of(plain, load(BLANK), gazetteer),
        }
        result["gold_span_recall"][name] = {
            way: round(_hits(rows, [at for _, at in cleaned], lists) / max(sum(len(g.mentions) for g in rows), 1), 4)
            for way, lists in ways_of_gold.items()
        }
    return result


def _hits(texts: list[Gold], places: list[Any], found: list[list[tuple[int, int, str, str]]]) -> int:
    """Gold spans that are found as they stand."""
    hits = 0
    for gold, at, mentions in zip(texts, places, found, strict=True):
        here = {(int(at[m[0], 0]), int(at[m[1] - 1, 1])) for m in mentions}
        hits += len(here & {(m[0], m[1]) for m in gold.mentions})
    return hits


def measure_case(rows: list[tuple[str, set[tuple[int, int]]]], recognizer: Recognizer) -> dict[str, Any]:
    """Recall and precision of exact spans. Texts that change their length with their case are left out."""
    nlp = recognizer.pipeline
    assert nlp is not None
    result: dict[str, Any] = {"texts": len(rows)}
    for case, change in (("as written", str), ("lower", str.lower), ("upper", str.upper)):
        kept = [(change(text), spans) for text, spans in rows if len(change(text)) == len(text)]
        texts = [text for text, _ in kept]
        gold = {(i, *span) for i, (_, spans) in enumerate(kept) for span in spans}
        with nlp.memory_zone():
            documents = nlp.pipe(texts, batch_size=256)
            plain = {(i, e.start_char, e.end_char) for i, d in enumerate(documents) for e in d.ents}
        places = recognizer.find(texts)
        titled = set(zip(*(a.tolist() for a in places[:3]), strict=True))
        result[case] = {
            way: {
                "recall": round(len(found & gold) / max(len(gold), 1), 4),
                "precision": round(len(found & gold) / max(len(found), 1), 4),
            }
            for way, found in (("as it is", plain), ("as title", titled))
        }
        before, after = (result[case][way]["recall"] for way in ("as it is", "as title"))
        result[case]["recall_times_as_it_is"] = round(after / max(before, 1e-9), 3)
    return result


def spans_of_gold(data: Source) -> list[tuple[str, set[tuple[int, int]]]]:
    """Texts with spans of names: the folder's NER set, or the texts of the gold links."""
    path = data.folder / "ner" / "dev.jsonl" if data.folder is not None else None
    if path is not None and path.is_file():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [(r["text"], {(s["start"], s["end"]) for s in r["spans"]}) for r in rows]
    return [(g.text, {(m[0], m[1]) for m in g.mentions}) for texts in data.gold.values() for g in texts]


def measure_spans(
    texts: list[Gold], recognizer: Recognizer, gazetteer: Gazetteer, held: dict[str, int]
) -> dict[str, Any]:
    """Recall of exact gold spans, spans per text, and candidates per text, by what finds the spans."""
    cleaned = [clean_with_offsets(gold.text) for gold in texts]
    plain = [text for text, _ in cleaned]
    found = {
        "recognizer": mentions_of(plain, recognizer, None),
        "gazetteer": mentions_of(plain, load(BLANK), gazetteer),
        "both": mentions_of(plain, recognizer, gazetteer),
    }
    found["outer"] = [_outer(mentions) for mentions in found["both"]]
    gold_spans = sum(len(gold.mentions) for gold in texts)
    result: dict[str, Any] = {"texts": len(texts), "gold_spans": gold_spans}
    for way, lists in found.items():
        hits = _hits(texts, [places for _, places in cleaned], lists)
        keys = [first_key(m[2], held) for mentions in lists for m in mentions]
        result[way] = {
            "span_recall": round(hits / max(gold_spans, 1), 4),
            "spans_per_text": round(sum(map(len, lists)) / len(texts), 2),
            "candidates_per_text": round(sum(held[key] for key in keys if key is not None) / len(texts), 2),
        }
    baseline = max(result["recognizer"]["span_recall"], 1e-9)
    for way in found:
        result[way]["recall_times_recognizer"] = round(result[way]["span_recall"] / baseline, 3)
    return result


def _outer(mentions: list[tuple[int, int, str, str]]) -> list[tuple[int, int, str, str]]:
    """The spans that do not lie within another."""
    return [m for m in mentions if not any(o[0] <= m[0] and m[1] <= o[1] and o[:2] != m[:2] for o in mentions)]


def _ratio(ratio: float | list[float]) -> str:
    """A ratio, or the median of some and between which they lie."""
    return f"{ratio:.4g}" if isinstance(ratio, float) else f"{ratio[1]:.4g} ({ratio[0]:.4g} to {ratio[2]:.4g})"


def show(figures: dict[str, Any]) -> None:
    print(f"input: {figures['input']}, {figures['texts']:,} texts")
    for part, ratio, baseline in (
        ("clean", "times_each", "clean of each text"),
        ("recognizer", "times_one", "nlp(text), one at a time"),
        ("mentions", "times_pipe", "a bare nlp.pipe"),
        ("profile", "times_full", "extract.profile: full"),
    ):
        f = figures[part]
        rows = [(way, rate, _ratio(f[ratio][way])) for way, rate in f["texts_per_cpu_second"].items()]
        table(f"{part} (baseline: {baseline})", [("way", "texts/CPU-s", "ratio"), *rows])
    p = figures["profile"]
    known = p["known_mentions"]
    table(
        "profile: what fast does not find (baseline: full)",
        [
            ("of", "full", "fast", "gazetteer alone"),
            ("mentions that the knowledge base knows", known["full"], known["fast"], "-"),
            *((f"gold spans of {n}, recall", r["full"], r["fast"], r["gazetteer"])
              for n, r in p["gold_span_recall"].items()),
        ],
    )  # fmt: skip
    g = figures["gazetteer"]
    table(
        f"gazetteer of {g['names']['gazetteer']:,} names (baselines: automata of {g['names']['automata']:,} names)",
        [
            ("way", "texts/CPU-s", "gazetteer's ratio", "bytes/name stored", "building"),
            *(
                (
                    way, rate, _ratio(g["gazetteer_is_faster_by"].get(way, 1.0)),
                    g["bytes_per_name_stored"].get(way, "-"), g["bytes_per_name_building"][way] or "-",
                )
                for way, rate in g["texts_per_cpu_second"].items()
            ),
        ],
    )  # fmt: skip
    c = figures["case"]
    table(
        f"case, {c['texts']:,} texts (baseline: given to the recognizer as they are)",
        [
            ("texts", "recall", "as title", "ratio", "precision", "as title"),
            *(
                (
                    case, f["as it is"]["recall"], f["as title"]["recall"], f["recall_times_as_it_is"],
                    f["as it is"]["precision"], f["as title"]["precision"],
                )
                for case, f in c.items() if case != "texts"
            ),
        ],
    )  # fmt: skip
    for name, s in figures["spans"].items():
        columns = ("span_recall", "recall_times_recognizer", "spans_per_text", "candidates_per_text")
        rows = [(way, *(s[way][c] for c in columns)) for way in ("recognizer", "gazetteer", "both", "outer")]
        title = f"spans, {s['gold_spans']:,} in {s['texts']:,} texts of {name} (baseline: the recognizer alone)"
        table(title, [("found by", "recall", "ratio", "spans/text", "candidates/text"), *rows])

    if (w := figures.get("worker")) is not None:
        rows = [(when, f"{size / 1e6:,.0f} MB", w["times_a_tenth"][when]) for when, size in w["resident_bytes"].items()]
        table(f"worker, {w['texts']:,} texts (baseline: after a tenth)", [("after", "resident", "ratio"), *rows])


def main(arguments: list[str]) -> dict[str, Any]:
    parser = arguments_of(__doc__ or "")
    parser.add_argument("--texts", type=int, default=4000, help="alt-texts for what is timed")
    parser.add_argument("--worker-texts", type=int, default=0, help="distinct texts for worker; 0 leaves it out")
    options = parser.parse_args(arguments)
    data = source(options.data, options.gold_texts)
    raw = data.texts(options.texts)
    texts = [text for text in clean_column(pa.array(raw, pa.string())).to_pylist() if text]
    run, tables = made_knowledge_base(data, options.work)
    surfaces = tables.load("kb/surfaces", run.committed("surfaces"), COLUMNS)
    sizes = pc.list_value_length(surfaces["candidates"]).to_pylist()
    held = dict(zip(surfaces["normal_form"].to_pylist(), sizes, strict=True))
    recognizer = load(data.recognizer)
    with tempfile.TemporaryDirectory() as folder:
        build(surfaces.to_batches(max_chunksize=50_000), f"{folder}/gazetteer")
        gazetteer = Gazetteer(f"{folder}/gazetteer")
        figures: dict[str, Any] = {
            "input": data.name,
            "texts": len(texts),
            "clean": measure_clean(raw, options.repeats),
            "recognizer": measure_recognizer(texts[:1000], recognizer, options.repeats),
            "gazetteer": measure_gazetteer(texts, surfaces, Path(folder) / "gazetteer", options.repeats),
            "mentions": measure_mentions(texts[:1000], recognizer, gazetteer, options.repeats),
            "profile": measure_profile(texts, data.gold, recognizer, gazetteer, held, options.repeats),
            "case": measure_case(spans_of_gold(data), recognizer),
            "spans": {name: measure_spans(gold, recognizer, gazetteer, held) for name, gold in data.gold.items()},
        }
        if options.worker_texts:
            figures["worker"] = measure_worker(
                texts, data.recognizer, Path(folder) / "gazetteer", max(10, options.worker_texts)
            )
    show(figures)
    return conclude(figures, options.json)


if __name__ == "__main__":
    main(sys.argv[1:])
