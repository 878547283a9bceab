"""What it costs to read Wikipedia's links: each figure as a ratio to a named baseline.

    python benchmarks/anchors.py [--megabytes 8] [--parsed 1] [--repeats 3]

The pages are made up, in the shape of articles: an infobox, sections with a link in every other sentence, templates and
references, a table, an image with a caption, categories; 20 kB of wikitext on average.

pages   MB of unpacked XML per CPU-second
          bz2     bz2.decompress and nothing else: the baseline
          xml     ElementTree, each page by itself
          kernel  wikidata.anchors.read_pages: XML, links, running text, as Arrow batches
          names   extract.occurrences: the names of all links, looked for in the running text; MB of XML, too
scan    MB of wikitext per CPU-second
          mwparserfromhell   the tree of a page, and its links: the baseline, where it is installed
          scan               wikidata.anchors.scan: links and running text
shares  running text, and what is kept of a page until the end, in bytes of XML

Figures are medians of interleaved rounds. On a shared machine compare their ratios, not the figures.
"""

from __future__ import annotations

import argparse
import bz2
import random
import tempfile
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
from knowledge_base import against, conclude, measure, optional, table

from i2e_pipeline.extract.gazetteer import Gazetteer, build_of
from i2e_pipeline.extract.occurrences import occurrences
from wikidata.anchors import SEPARATOR, read_pages, scan, site_of
from wikidata.surface import inadmissible, normal_forms


def _words(text: str) -> Sequence[str]:
    return tuple(text.split())


SYLLABLES = _words("an ber ca dor el fa gri ham in jo ka lu mar nor os pa quin ro sel tur ul ves wil xan yor zem")
PLAIN = _words("the of and in to was is for on as with by that from at it his an were which are this also be has")


def word(draw: random.Random) -> str:
    return "".join(draw.choice(SYLLABLES) for _ in range(draw.randint(1, 3)))


def title(draw: random.Random) -> str:
    return " ".join(word(draw).capitalize() for _ in range(draw.randint(1, 3)))


def sentence(draw: random.Random, titles: Sequence[str]) -> str:
    words = [draw.choice(PLAIN) if draw.random() < 0.5 else word(draw) for _ in range(draw.randint(10, 25))]
    if draw.random() < 0.6:
        target = draw.choice(titles)
        link = f"[[{target}]]" if draw.random() < 0.6 else f"[[{target}|{word(draw)} {target.split()[0]}]]s"
        words[draw.randrange(len(words))] = link
    if draw.random() < 0.3:
        words[draw.randrange(len(words))] = draw.choice(titles)
    text = " ".join(words).capitalize() + "."
    if draw.random() < 0.4:
        text += (
            f"<ref>{{{{cite web |url=https://www.{word(draw)}.org/{word(draw)}?id={draw.randint(1, 9999)} |title="
            f"{title(draw)} |last={word(draw)} |date=1 May {draw.randint(1990, 2024)} |work=[[{title(draw)}]]}}}}</ref>"
        )
    if draw.random() < 0.1:
        text += f" {{{{convert|{draw.randint(1, 99)}|km|mi}}}} ''{word(draw)}''&nbsp;{word(draw)}<!-- {word(draw)} -->"
    return text


def article(draw: random.Random, name: str, titles: Sequence[str]) -> str:
    rows = "\n".join(f"| {word(draw)} = [[{draw.choice(titles)}]], {word(draw)}" for _ in range(12))
    parts = [f"{{{{short description|{name}}}}}\n{{{{Infobox thing\n{rows}\n}}}}\n'''{name}''' is {word(draw)}."]
    for _ in range(draw.randint(2, 16)):
        parts.append(f"== {title(draw)} ==")
        parts.append(f"[[File:{name}.jpg|thumb|220px|The [[{draw.choice(titles)}]] of {word(draw)}]]")
        parts += [" ".join(sentence(draw, titles) for _ in range(draw.randint(3, 8))) for _ in range(3)]
    cells = "\n".join(f"|-\n| [[{draw.choice(titles)}]] || {draw.randint(1, 999)}" for _ in range(10))
    parts.append(f'{{| class="wikitable"\n! Name !! Size\n{cells}\n|}}')
    parts += [f"[[Category:{title(draw)}]]" for _ in range(5)]
    return "\n\n".join(parts)


def page(name: str, number: int, wikitext: str) -> str:
    return (
        f"  <page>\n    <title>{escape(name)}</title>\n    <ns>0</ns>\n    <id>{number}</id>\n    <revision>\n      "
        f'<id>{number}</id>\n      <model>wikitext</model>\n      <text bytes="{len(wikitext)}" xml:space="preserve">'
        f"{escape(wikitext, quote=False)}</text>\n    </revision>\n  "
    )


def pages(megabytes: float) -> list[str]:
    """Wikitext of so many MB of articles, always the same."""
    draw = random.Random(17)
    titles = [title(draw) for _ in range(20_000)]
    made: list[str] = []
    while megabytes > 0:
        made.append(article(draw, draw.choice(titles), titles))
        megabytes -= len(made[-1]) / 1e6
    return made


def batches(records: Sequence[bytes]) -> list[pa.RecordBatch]:
    return [
        pa.record_batch([pa.array(records[i : i + 256], pa.binary())], ["value"]) for i in range(0, len(records), 256)
    ]


def spent(work: Iterable[Any], amount: float) -> float:
    for _ in work:
        pass
    return amount


def measure_pages(texts: Sequence[str], repeats: int) -> dict[str, Any]:
    site = site_of("<dbname>enwiki</dbname>", "")
    assert site is not None
    records = [page(f"Page {n}", n, text).encode() for n, text in enumerate(texts)]
    whole = SEPARATOR.encode().join(records)
    packed, megabytes = bz2.compress(whole), len(whole) / 1e6
    read = list(read_pages(batches(records), site))
    surfaces = pa.chunked_array([b.column("links").flatten().field("surface") for b in read]).unique()
    forms = [form for form in normal_forms(surfaces).unique().to_pylist() if inadmissible(form) is None]
    running = [pa.record_batch([b.column("text")], ["text"]) for b in read]
    with tempfile.TemporaryDirectory() as folder:
        build_of([forms], f"{folder}/names")
        gazetteer = Gazetteer(f"{folder}/names")
        rates = measure(
            {
                "bz2": lambda: spent([bz2.decompress(packed)], megabytes),
                "xml": lambda: spent((ElementTree.fromstring(r + SEPARATOR.encode()) for r in records), megabytes),
                "kernel": lambda: spent(read_pages(batches(records), site), megabytes),
                "names": lambda: spent(occurrences(running, gazetteer), megabytes),
            },
            repeats,
        )
        path = Path(folder) / "kept.parquet"
        pq.write_table(pa.Table.from_batches(read), path, compression="snappy")
        kept = path.stat().st_size
    characters = sum(len(t.encode()) for b in running for t in b.column(0).to_pylist())
    return {
        "pages": len(records),
        "xml_mb": round(megabytes, 2),
        "links": sum(len(b.column("links").flatten()) for b in read),
        "names": len(forms),
        "mb_per_cpu_second": rates,
        "times_bz2": against(rates, "bz2"),
        "share_running_text": round(characters / len(whole), 3),
        "share_kept": round(kept / len(whole), 3),
    }


def measure_scan(texts: Sequence[str], repeats: int) -> dict[str, Any]:
    site = site_of("<dbname>enwiki</dbname>", "")
    assert site is not None
    megabytes = sum(map(len, texts)) / 1e6
    ways = {"scan": lambda: spent((scan(text, site) for text in texts), megabytes)}
    if (parser := optional("mwparserfromhell")) is not None:
        ways["mwparserfromhell"] = lambda: spent(
            (len(parser.parse(text).filter_wikilinks()) for text in texts), megabytes
        )
    rates = measure(ways, repeats)
    figures: dict[str, Any] = {"mb_per_cpu_second": rates}
    if parser is not None:
        figures["times_mwparserfromhell"] = against(rates, "mwparserfromhell")
    return figures


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=8, help="wikitext of the pages")
    parser.add_argument("--parsed", type=float, default=1, help="of these, what mwparserfromhell parses")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved rounds")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    texts = pages(options.megabytes)
    few = texts[: max(1, round(len(texts) * options.parsed / options.megabytes))]
    figures = {"pages": measure_pages(texts, options.repeats), "scan": measure_scan(few, options.repeats)}
    told = figures["pages"]
    table(
        f"{told['pages']:,} pages, {told['xml_mb']} MB of XML, {told['links']:,} links, {told['names']:,} names",
        [("way", "MB/s", "times bz2"), *((n, r, told["times_bz2"][n]) for n, r in told["mb_per_cpu_second"].items())],
    )
    ratios = figures["scan"].get("times_mwparserfromhell", {})
    rates = figures["scan"]["mb_per_cpu_second"]
    table(
        "wikitext", [("way", "MB/s", "times mwparserfromhell"), *((n, r, ratios.get(n, "")) for n, r in rates.items())]
    )
    print(f"\nrunning text {told['share_running_text']}, kept until the end {told['share_kept']} of the XML's bytes")
    return conclude(figures, options.json)


if __name__ == "__main__":
    main()
