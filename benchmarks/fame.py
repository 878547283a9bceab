"""What makes a namesake the one that is meant? The exponents of wikidata/priors.py, fitted, each with its error.

    python benchmarks/fame.py --data DIR [--dump DUMP.json.bz2 …] [--json FILE]

DIR holds `gold` (texts with gold links), `wikidata` (a dump, popularity), as I2E_REAL_DATA names it; --dump names other
dumps, such as one that knows more sitelinks. A conditional logit over the entities that a gold span's surface names:

    ln w = ln kind + popularity ln(1 + pop/ref) + sitelinks ln(1 + sitelinks) + links ln(1 + links)
           + statements ln(1 + statements) + image [P18]

Anchors are counted on one half of the texts of the train splits, spans of the other half are asked for, and the other
way round. Asked for are those of a surface without anchors, where the prior is w alone. Spans with one candidate, or
without the right one, say nothing. Errors are standard errors of the maximum likelihood (inverse Fisher information).
For each dump:

    fit         exponents with all signs, and without statements and images; nats per span that each sign buys
    told apart  spans among whose candidates a sign differs: without them a fit cannot know anything of it
    described   spans all of whose candidates have statements beside their classes: there alone having few statements,
                or no image, says something of the entity and not of the dump
    dev         accuracy and nats of the priors' own weights, and of the fitted ones, on the dev splits, which no fit
                saw
"""

from __future__ import annotations

import argparse
import bz2
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from knowledge_base import conclude, table

from wikidata.filters import FILTERS, unwanted
from wikidata.items import Item, classes, describe, parse, statements
from wikidata.knowledge_base import KNOWN
from wikidata.priors import KINDS, WEIGHTS
from wikidata.schemas import ENTITIES
from wikidata.surface import normal_form

SIGNS = ("popularity", "sitelinks", "links", "statements", "image")
TRAIN, DEV = ("wikidiverse-train", "wikidata-mel-train"), ("wikidiverse-dev", "wikidata-mel-dev")

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass
class Base:
    """A dump: by normal form its entities with their best kind, and by entity its signs, links left 0."""

    names: dict[str, dict[int, float]]
    signs: dict[int, list[float]]
    described: set[int]
    """Entities that have statements beside their classes."""
    shares: dict[str, float]


def read(dump: Path, popularity: Mapping[int, float]) -> Base:
    names: dict[str, dict[int, float]] = defaultdict(dict)
    signs: dict[int, list[float]] = {}
    described: set[int] = set()
    sitelinked = 0
    with bz2.open(dump) as file:
        for line in file:
            item = parse(line)
            if not isinstance(item, Item) or unwanted(types := classes(item), FILTERS) is not None:
                continue
            row, its_names = describe(item, types)
            entity, number = row[0], statements(line)
            for form, _, _, kind, _ in its_names:
                names[form][entity] = max(names[form].get(entity, 0.0), KINDS[kind])
            claims = item.claims or None
            sitelinked += bool(item.sitelinks)
            if number > len(types) + len(row[ENTITIES.names.index("parents")]):
                described.add(entity)
            image = bool(claims and claims.P18)
            signs[entity] = [np.nan, np.log1p(len(item.sitelinks)), 0.0, np.log1p(number), float(image)]
    known = [popularity[e] for e in signs if popularity.get(e, 0.0) > 0]
    reference = float(np.exp(np.mean(np.log(known)))) if known else 1.0
    for entity, of in signs.items():
        of[0] = float(np.log1p(popularity[entity] / reference if entity in popularity else WEIGHTS.unknown))
    share = {
        "sitelinks": sitelinked / len(signs),
        "statements beside classes": len(described) / len(signs),
        "images": sum(of[4] for of in signs.values()) / len(signs),
    }
    return Base(dict(names), signs, described, {name: round(value, 4) for name, value in share.items()})


Spans = list[tuple[str, int, bool]]
"""Normal form, entity, and in which half the text is."""


def spans(paths: Iterable[Path]) -> Spans:
    found: Spans = []
    for path in paths:
        for row in map(json.loads, path.read_text("utf-8").splitlines()):
            half = bool(hashlib.blake2b(row["text"].encode()).digest()[0] & 1)
            found += [(normal_form(m["surface"]), int(m["qid"][1:]), half) for m in row["mentions"] if m["qid"]]
    return found


@dataclass
class Choices:
    """Candidates of spans, flat: each span's stand together."""

    signs: Floats
    offset: Floats
    span: Ints
    right: Ints
    """For each span the place of the right candidate."""
    described: int
    """Spans all of whose candidates have statements beside their classes."""

    @property
    def spans(self) -> int:
        return len(self.right)

    def add(self, other: Choices) -> Choices:
        return Choices(
            np.concatenate([self.signs, other.signs]),
            np.concatenate([self.offset, other.offset]),
            np.concatenate([self.span, other.span + self.spans]),
            np.concatenate([self.right, other.right + len(self.offset)]),
            self.described + other.described,
        )

    def told_apart(self, sign: int) -> int:
        """Spans among whose candidates the sign differs."""
        start = np.flatnonzero(np.diff(self.span, prepend=-1))
        value = self.signs[:, sign]
        return int((np.maximum.reduceat(value, start) > np.minimum.reduceat(value, start)).sum())


def choices(base: Base, asked: Spans, counted: Spans) -> Choices:
    links, linked = Counter(entity for _, entity, _ in counted), {form for form, _, _ in counted}
    described = 0
    signs: list[list[float]] = []
    offset: list[float] = []
    span: list[int] = []
    right: list[int] = []
    for form, entity, _ in asked:
        candidates = base.names.get(form, {})
        if len(candidates) < 2 or entity not in candidates or form in linked:
            continue
        described += base.described.issuperset(candidates)
        for candidate, kind in candidates.items():
            if candidate == entity:
                right.append(len(offset))
            of = list(base.signs[candidate])
            of[2] = float(np.log1p(links[candidate]))
            signs.append(of)
            offset.append(float(np.log(kind)))
        span += [len(right) - 1] * len(candidates)
    return Choices(np.array(signs), np.array(offset), np.array(span), np.array(right), described)


@dataclass
class Fit:
    weights: Floats
    errors: Floats
    nats: float
    """Log-likelihood of a span."""


def shares(data: Choices, weights: Floats) -> Floats:
    score = data.signs @ weights + data.offset
    start = np.flatnonzero(np.diff(data.span, prepend=-1))
    score = np.exp(score - np.maximum.reduceat(score, start)[data.span])
    return np.asarray(score / np.add.reduceat(score, start)[data.span])


def fit(data: Choices, free: Sequence[int]) -> Fit:
    """Newton's method: the likelihood is concave. Signs that are not free weigh 0."""
    weights, errors, places = np.zeros(len(SIGNS)), np.zeros(len(SIGNS)), list(free)
    x = data.signs[:, places]
    for _ in range(100):
        p = shares(data, weights)
        mean = np.zeros((data.spans, len(places)))
        np.add.at(mean, data.span, x * p[:, None])
        information = (x * p[:, None]).T @ x - mean.T @ mean
        step = np.linalg.solve(information + 1e-9 * np.eye(len(places)), (x[data.right] - mean).sum(axis=0))
        weights[places] += step * min(1.0, 1.0 / max(np.abs(step).max(), 1e-9))
        if np.abs(step).max() < 1e-8:
            break
    errors[places] = np.sqrt(np.diag(np.linalg.inv(information + 1e-9 * np.eye(len(places)))))
    return Fit(weights, errors, float(np.log(shares(data, weights)[data.right]).mean()))


def judged(data: Choices, weights: Floats) -> dict[str, float]:
    p = shares(data, weights)
    best = np.maximum.reduceat(p, np.flatnonzero(np.diff(data.span, prepend=-1)))
    ties = np.bincount(data.span, np.isclose(p, best[data.span]))
    right = np.isclose(p[data.right], best)
    return {
        "accuracy": round(float((right / ties).mean()), 4),
        "nats": round(float(np.log(p[data.right]).mean()), 4),
        "spans": data.spans,
    }


def measure(dump: Path, data: Path, popularity: Mapping[int, float]) -> dict[str, Any]:
    base = read(dump, popularity)
    train = spans(data / "gold" / f"{name}.jsonl" for name in TRAIN)
    halves = [[s for s in train if s[2] is half] for half in (False, True)]
    seen = choices(base, halves[0], halves[1]).add(choices(base, halves[1], halves[0]))
    if not seen.spans:
        raise SystemExit(f"{dump}: no span of {', '.join(TRAIN)} names several of its items, the right one among them")
    everything = range(len(SIGNS))
    whole, plain = fit(seen, everything), fit(seen, [0, 1, 2])
    bought = {s: round(whole.nats - fit(seen, [k for k in everything if k != n]).nats, 5) for n, s in enumerate(SIGNS)}
    own = np.array([getattr(WEIGHTS, sign) for sign in SIGNS])
    dev = {name: choices(base, spans([data / "gold" / f"{name}.jsonl"]), train) for name in DEV}
    figures: dict[str, Any] = {
        "share of items with": base.shares,
        "spans": seen.spans,
        "described": seen.described,
        "told apart": {sign: seen.told_apart(n) for n, sign in enumerate(SIGNS)},
        "fit": {s: [round(float(whole.weights[n]), 3), round(float(whole.errors[n]), 3)] for n, s in enumerate(SIGNS)},
        "plain": {
            s: [round(float(plain.weights[n]), 3), round(float(plain.errors[n]), 3)] for n, s in enumerate(SIGNS)
        },
        "nats": {"fit": round(whole.nats, 5), "plain": round(plain.nats, 5), "bought": bought},
        "dev": {
            name: {"own": judged(of, own), "fit": judged(of, whole.weights), "plain": judged(of, plain.weights)}
            for name, of in dev.items()
            if of.spans
        },
    }
    shown(dump.name, figures)
    return figures


def shown(name: str, figures: Mapping[str, Any]) -> None:
    told = ", ".join(f"{share:.2%} {of}" for of, share in figures["share of items with"].items())
    table(
        f"{name}: {figures['spans']:,} spans with namesakes, {figures['described']:,} of them described; "
        f"items with {told} (from {KNOWN:.0%} on they are known)",
        [
            ("sign", "own", "fitted", "±", "without the last two", "±", "told apart", "nats bought"),
            *(
                (
                    sign, getattr(WEIGHTS, sign), *figures["fit"][sign], *figures["plain"][sign],
                    figures["told apart"][sign], figures["nats"]["bought"][sign],
                )
                for sign in SIGNS
            ),
        ],
    )  # fmt: skip
    rows = [
        (gold, ways["own"]["spans"], *(ways[way][what] for what in ("accuracy", "nats") for way in ways))
        for gold, ways in figures["dev"].items()
    ]
    head = [f"{what}, {way}" for what in ("accuracy", "nats") for way in ("own", "fitted", "without")]
    table("dev splits", [("gold", "spans", *head), *rows])


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("I2E_REAL_DATA"), metavar="DIR")
    parser.add_argument("--dump", type=Path, nargs="*", metavar="DUMP.json.bz2", help="default: that of DIR")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    if options.data is None:
        parser.error("name --data, or set I2E_REAL_DATA")
    data = Path(options.data)
    rows = (line.split(",") for line in (data / "wikidata" / "popularity.csv").read_text().splitlines()[1:])
    popularity = {int(qid[1:]): float(number) for qid, number, *_ in rows}
    dumps = options.dump or [data / "wikidata" / "sample-dump.json.bz2"]
    return conclude({str(dump.name): measure(dump, data, popularity) for dump in dumps}, options.json)


if __name__ == "__main__":
    main()
