"""Names in other languages: are they found in alt-text, and is the right entity first? The figures of docs/quality.md.

    python benchmarks/languages.py [--data DIR] [--folder DIR] [--json FILE]

DIR holds `world/texts.jsonl` ({id, lang, text, mentions: [{start, end, surface, qid, class}]}, class "variant" where
the surface is not a name of the item as it is written), `world/plain.jsonl` (captions that name none of the items) and
what benchmarks/labels.py reads. Printed over all languages, and as JSON by language.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from labels import config_of

from i2e_pipeline import stages
from i2e_pipeline.commands.link import link_texts

LANGUAGES = [
    "en", "mul", "de", "fr", "es", "pt", "it", "nl", "pl", "ru", "uk", "tr", "ar", "fa", "he", "hi", "bn", "th", "vi",
    "id", "zh", "zh-hans", "zh-hant", "ja", "ko", "el", "fi", "hu", "cs", "sv",
]  # fmt: skip


def main(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("I2E_REAL_DATA"), help="default: I2E_REAL_DATA")
    parser.add_argument("--folder", type=Path, default=Path("out/benchmarks/languages"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if not options.data:
        print("languages.py needs texts with gold links: --data DIR, or I2E_REAL_DATA; left out")
        return {}
    data, folder = Path(options.data).resolve(), options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(data, f"{data}/wikidata/sample-dump.json.bz2", folder / "output")
    config = config.model_copy(
        update={"knowledge_base": config.knowledge_base.model_copy(update={"languages": LANGUAGES})}
    )
    pipeline = stages.pipeline(config)
    linked: dict[str, list[dict[str, Any]]] = {}
    for name in ("texts", "plain"):
        found = folder / f"{name}.links.jsonl"
        link_texts(pipeline, str(data / "world" / f"{name}.jsonl"), str(found))
        linked |= {r["id"]: r["mentions"] for r in map(json.loads, found.read_text("utf-8").splitlines())}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for text in map(json.loads, (data / "world" / "texts.jsonl").read_text("utf-8").splitlines()):
        for m in text["mentions"]:
            here = [x for x in linked[text["id"]] if (x["start"], x["end"]) == (m["start"], m["end"])]
            first = any(x["candidates"] and x["candidates"][0]["entity_id"] == int(m["qid"][1:]) for x in here)
            kind = "variant" if m["class"] == "variant" else "as written"
            for language in (text["lang"], "all"):
                counts[language].update({"names": 1, "first": first, kind: 1, f"{kind}, first": first})
    for plain in map(json.loads, (data / "world" / "plain.jsonl").read_text("utf-8").splitlines()):
        hits = sum(bool(m["candidates"]) for m in linked[plain["id"]])
        for language in (plain["id"].removeprefix("plain-").rpartition("-")[0], "all"):
            counts[language].update({"captions": 1, "linked": hits})
    c = counts["all"]
    print("| | |\n|---|---:|")
    for said, part, of in (
        ("names found and the right entity first", "first", "names"),
        ("names written as in the dump", "as written, first", "as written"),
        ("inflected or variant spellings", "variant, first", "variant"),
        ("linked mentions per plain caption", "linked", "captions"),
    ):
        print(f"| {said} | {c[part] / c[of]:.3f} |")
    result = {language: dict(counted) for language, counted in counts.items()}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    main(sys.argv[1:])
