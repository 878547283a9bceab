"""What linking costs and how often it is right: each figure as a ratio to, or a difference from, a named baseline.

    python benchmarks/linking.py [--data FOLDER] [--mentions 300000] [--exponent 1.0] [--repeats 3]
                                 [--dump DUMP] [--reranker FOLDER …] [--margin 0.6] [--budget 0.25]

join      candidates brought to mentions on Spark, CPU seconds of the whole process tree. The mentions are drawn from
          the knowledge base's own surfaces with Zipf's law
            exact      every mention joined with kb/surfaces under its form alone: the baseline, which finds no plural
                       and no article
            keys       every mention joined under all its keys (link.candidates.keys_of), in one round: the answers of
                       link, except for singulars
            distinct   link.candidates.resolve on the distinct forms, its answer joined back: what link does
pairs     captions of pairs whose truth is known: how often it is among the candidates of a caption that names it, and
          how many candidates a pair has; against the gazetteer without the recognizer
gold      gold links: the prior alone (the baseline) and disambiguation, each end to end from the text
            span_recall   gold spans found exactly
            accuracy      first candidate right, of gold spans found exactly
            recall@1,10   right entity among the first, of all gold spans; a span that overlaps by half of both counts
            f1            exact span and entity; precision counts every linked span, also where gold is not complete
            ece           expected calibration error of the first candidate's probability in 10 bins, exact spans
            inkb_f1       micro-F1 over gold spans found exactly, as ZELDA counts (inKB): a span without a candidate is
                          no answer
reranked  with --reranker, the same links after a second look by each of these rerankers, at the least sure mentions:
          those of a smaller margin than --margin, --budget of all mentions at most (baseline: disambiguation)
            tokens        of text and candidates that the model reads for a mention that is asked
            times_link    seconds of a mention that is asked, in those that disambiguation takes for one (one pass)

Figures are medians of interleaved rounds. On a shared machine compare their ratios, not the figures.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from knowledge_base import (
    Gold,
    Source,
    arguments_of,
    conclude,
    made_knowledge_base,
    processes,
    source,
    table,
)

from i2e_pipeline.core.config import LinkConfig
from i2e_pipeline.core.schemas import MENTIONS
from i2e_pipeline.extract.gazetteer import Gazetteer
from i2e_pipeline.extract.gazetteer import build as build_gazetteer
from i2e_pipeline.extract.mentions import find_mentions
from i2e_pipeline.extract.recognizer import BLANK, Recognizer, load
from i2e_pipeline.extract.text import clean_with_offsets
from i2e_pipeline.link.candidates import LINK_ROWS, keys_of, resolve, with_candidates
from i2e_pipeline.link.context import COLUMNS, Context
from i2e_pipeline.link.context import build as build_context
from i2e_pipeline.link.disambiguate import FEATURES, Weights, disambiguate
from i2e_pipeline.rerank import reranker as rerankers
from i2e_pipeline.rerank.questions import QUESTIONS, laid_flat

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

BATCH = 2048
PRIOR_ALONE = Weights(**{name: 1.0 if name == "prior" else 0.0 for name in FEATURES})


# --- join -----------------------------------------------------------------------------------------------------------


def write_mentions(forms: list[str], count: int, exponent: float, folder: Path) -> dict[str, Any]:
    """Parquet files of `count` mentions; the k-th most frequent form has a share proportional to k^-exponent."""
    rng = np.random.default_rng(0)
    shares = np.arange(1, len(forms) + 1, dtype=np.float64) ** -exponent
    shares /= shares.sum()
    # The order of kb/surfaces says nothing of how frequent a form is, so any form may be the most frequent.
    drawn = rng.permutation(len(forms))[rng.choice(len(forms), size=count, p=shares)]
    words = pa.array(forms, pa.string())
    folder.mkdir()
    step = -(-count // 4)
    for part, start in enumerate(range(0, count, step)):
        places = pa.array(drawn[start : start + step])
        rows = pa.table({"mention": np.arange(start, start + len(places)), "normal_form": words.take(places)})
        pq.write_table(rows, folder / f"{part}.parquet")
    return {"mentions": count, "distinct": len(np.unique(drawn)), "share_of_the_most_frequent": round(shares[0], 3)}


def exact(mentions: DataFrame, surfaces: DataFrame) -> DataFrame:
    return mentions.join(surfaces.select("normal_form", "candidates"), on="normal_form", how="left")


def keys(mentions: DataFrame, surfaces: DataFrame) -> DataFrame:
    """Looks each mention up under all its keys and takes the first that is found."""
    from pyspark.sql import functions as F

    def explode(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            rows = [
                (mention, key, step)
                for mention, form in zip(*(column.to_pylist() for column in batch.columns), strict=True)
                for step, (key, _) in enumerate(keys_of(form))
            ]
            columns = [pa.array(column) for column in zip(*rows, strict=True)]
            if rows:
                yield pa.RecordBatch.from_arrays(columns, names=["mention", "key", "step"])

    exploded = mentions.select("mention", "normal_form").mapInArrow(explode, "mention long, key string, step long")
    known = surfaces.select(F.col("normal_form").alias("key"), "candidates")
    hits = exploded.join(known, on="key", how="inner")
    return hits.groupBy("mention").agg(F.min_by("candidates", "step").alias("candidates"))


def distinct(mentions: DataFrame, surfaces: DataFrame) -> DataFrame:
    """What link does: the knowledge base is asked once per form."""
    found = resolve(mentions.select("normal_form").distinct(), surfaces)
    return mentions.join(found, on="normal_form", how="left")


def measure_join(
    spark: SparkSession, surfaces: DataFrame, forms: list[str], count: int, exponent: float, repeats: int, slow: bool
) -> dict[str, Any]:
    """CPU seconds of all processes, and wall seconds; medians of interleaved rounds after one that warms up."""
    ways = {"exact": exact, **({"keys": keys} if slow else {}), "distinct": distinct}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        about = write_mentions(forms, count, exponent, Path(folder) / "mentions")
        mentions = spark.read.parquet(f"{folder}/mentions")
        for turn in range(repeats + 1):
            for name, way in ways.items():
                if name == "keys" and turn != 1:
                    continue
                cpu, wall = sum(p[2] for p in processes()), time.perf_counter()
                way(mentions, surfaces).write.format("noop").mode("overwrite").save()
                wall = time.perf_counter() - wall
                if turn:
                    spent[name].append((sum(p[2] for p in processes()) - cpu, wall))
    cpu_seconds, wall_seconds = (
        {name: round(statistics.median(s[i] for s in rounds), 2) for name, rounds in spent.items()} for i in (0, 1)
    )
    return {
        **about,
        "surfaces": len(forms),
        "cpu_seconds": cpu_seconds,
        "wall_seconds": wall_seconds,
        "times_distinct": {name: round(s / max(cpu_seconds["distinct"], 1e-9), 2) for name, s in cpu_seconds.items()},
    }


# --- links ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mention:
    """A span of the text as it was given, and its candidates, the most probable first."""

    start: int
    end: int
    candidates: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Linker:
    """The kernels of extract and link, and Spark between them."""

    spark: SparkSession
    surfaces: DataFrame
    gazetteer: Gazetteer
    context: Context

    def rows(self, texts: list[str], recognizer: Recognizer) -> list[pa.RecordBatch]:
        """LINK_ROWS of cleaned texts; text_id is a text's place."""
        ids = [i.to_bytes(16, "big") for i in range(len(texts))]
        plain = pa.table({"text_id": pa.array(ids, pa.binary(16)), "text": pa.array(texts, pa.string())})
        unit = pa.field("unit", pa.string())
        found = [
            batch
            for kind, batch in find_mentions(plain.to_batches(max_chunksize=BATCH), recognizer, self.gazetteer)
            if kind == "mentions"
        ]
        # Spark has no fixed-size binary.
        mentions, given = (
            self.spark.createDataFrame(
                t.set_column(0, "text_id", t["text_id"].cast(pa.binary())).append_column(
                    unit, pa.array(["u-1"] * t.num_rows, pa.string())
                )
            )
            for t in (pa.Table.from_batches(found, MENTIONS), plain)
        )
        rows = with_candidates(mentions, given, self.surfaces).drop("unit").toArrow()
        return rows.cast(LINK_ROWS).to_batches(max_chunksize=BATCH)

    def link(
        self, rows: list[pa.RecordBatch], places: list[Any], weights: Weights, settings: LinkConfig
    ) -> list[list[Mention]]:
        """The mentions of each text, with or without candidates, in offsets of the text as it was given."""
        found: list[dict[tuple[int, int], list[tuple[int, float]]]] = [{} for _ in places]
        for batch in rows:
            for row in batch.select(["text_id", "mentions"]).to_pylist():
                here = found[int.from_bytes(row["text_id"], "big")]
                here.update({(m["start"], m["end"]): [] for m in row["mentions"]})
        for kind, batch in disambiguate(rows, self.context, settings, weights):
            for c in batch.to_pylist() if kind == "candidates" else ():  # by rising rank
                candidates = found[int.from_bytes(c["text_id"], "big")][c["start"], c["end"]]
                candidates.append((c["entity_id"], c["probability"]))
        return [
            [Mention(int(at[start, 0]), int(at[end - 1, 1]), c) for (start, end), c in sorted(mentions.items())]
            for at, mentions in zip(places, found, strict=True)
        ]


def measure_pairs(data: Source, linker: Linker, recognizer: Recognizer, settings: LinkConfig) -> dict[str, Any]:
    """Candidates of captions that name what the picture shows."""
    columns = ["caption", "truth_qid", "mentioned_qids"]
    read = [row for path in data.pairs for row in pq.read_table(path, columns=columns).to_pylist()]
    known = [row for row in read if row["truth_qid"] and row["caption"]]
    cleaned = [clean_with_offsets(row["caption"]) for row in known]
    result: dict[str, Any] = {"pairs": len(known)}
    for way, used in (("gazetteer", load(BLANK)), ("both", recognizer)):
        rows = linker.rows([text for text, _ in cleaned], used)
        links = linker.link(rows, [places for _, places in cleaned], Weights(), settings)
        named = among = first = candidates = 0
        for row, mentions in zip(known, links, strict=True):
            entities = {entity for m in mentions for entity, _ in m.candidates}
            candidates += len(entities)
            if row["truth_qid"] in row["mentioned_qids"]:
                truth = int(row["truth_qid"][1:])
                named += 1
                among += truth in entities
                first += any(m.candidates[0][0] == truth for m in mentions if m.candidates)
        result["pairs_that_name_the_truth"] = named
        result[way] = {
            "candidate_recall": round(among / max(named, 1), 4),
            "first_of_a_mention": round(first / max(named, 1), 4),
            "candidates_per_pair": round(candidates / max(len(known), 1), 2),
        }
    return result


def quality(texts: list[Gold], links: list[list[Mention]]) -> dict[str, float]:
    """The figures of `gold` in the module's text."""
    gold = exact = right = near_1 = near_10 = linked = 0
    bins = np.zeros((10, 3))  # answers, sum of probabilities, right answers
    for text, mentions in zip(texts, links, strict=True):
        linked += sum(bool(m.candidates) for m in mentions)
        at = {(m.start, m.end): m for m in mentions}
        for start, end, truth in text.mentions:
            gold += 1
            mine = at.get((start, end))
            if mine is not None:
                exact += 1
                if mine.candidates:
                    entity, probability = mine.candidates[0]
                    right += entity == truth
                    bins[min(9, int(probability * 10))] += 1, probability, entity == truth
            near = [mine] if mine is not None else [m for m in mentions if _overlap(m.start, m.end, start, end)]
            ids = [[entity for entity, _ in m.candidates] for m in near]
            near_1 += any(i[:1] == [truth] for i in ids)
            near_10 += any(truth in i[:10] for i in ids)
    precision, recall = right / max(linked, 1), right / max(gold, 1)
    answered = bins[:, 0].sum()
    figures = {
        "span_recall": exact / max(gold, 1),
        "accuracy": right / max(exact, 1),
        "recall@1": near_1 / max(gold, 1),
        "recall@10": near_10 / max(gold, 1),
        "precision": precision,
        "f1": 2 * precision * recall / max(precision + recall, 1e-9),
        "inkb_f1": float(2 * right / max(exact + answered, 1)),
        "ece": float(np.abs(bins[:, 1] - bins[:, 2]).sum() / max(bins[:, 0].sum(), 1)),
    }
    return {name: round(value, 4) for name, value in figures.items()}


def _overlap(start: int, end: int, other_start: int, other_end: int) -> bool:
    shared = 2 * (min(end, other_end) - max(start, other_start))
    return shared > 0 and shared >= end - start and shared >= other_end - other_start


@dataclass(frozen=True)
class SecondLook:
    """Rerankers, and whom they are asked about."""

    rerankers: dict[str, rerankers.Reranker]
    entities: Callable[[list[int]], dict[int, dict[str, Any]]]
    """Name, description and coarse type of entities."""
    margin: float
    budget: float

    def measure(self, texts: list[Gold], links: list[list[Mention]], seconds_of_one: float) -> dict[str, Any]:
        """The figures of `quality` of each reranker, the share of mentions that it was asked about, and what it costs.

        seconds_of_one   what disambiguation takes for a mention
        """
        places = sorted(
            (m.candidates[0][1] - m.candidates[1][1], text, number)
            for text, mentions in enumerate(links)
            for number, m in enumerate(mentions)
            if len(m.candidates) > 1
        )
        count = sum(bool(m.candidates) for mentions in links for m in mentions)
        asked = [(text, number) for margin, text, number in places if margin < self.margin][: int(self.budget * count)]
        told = self.entities(sorted({e for t, n in asked for e, _ in links[t][n].candidates}))
        rows = [
            {
                "text": texts[t].text,
                "start": links[t][n].start,
                "end": links[t][n].end,
                "candidates": [{"entity_id": e, "probability": p, **told[e]} for e, p in links[t][n].candidates],
            }
            for t, n in asked
        ]
        questions = pa.Table.from_pylist(rows, QUESTIONS)
        found: dict[str, Any] = {"share": round(len(asked) / max(count, 1), 4)}
        for name, model in self.rerankers.items():
            model.probabilities(questions.slice(0, model.batch))  # warms up
            started = time.perf_counter()
            probability = iter(model.probabilities(questions)[0].tolist())
            seconds = time.perf_counter() - started
            again = [list(mentions) for mentions in links]
            for t, n in asked:
                m = links[t][n]
                candidates = [(entity, next(probability)) for entity, _ in m.candidates]
                again[t][n] = Mention(m.start, m.end, sorted(candidates, key=lambda c: -c[1]))
            of_questions = laid_flat(questions, model.seen)
            tokens = model.scorer.tokens(of_questions, np.arange(len(of_questions)))
            found[name] = {
                **quality(texts, again),
                "tokens": round(tokens / max(len(asked), 1), 1),
                "times_link": round(seconds / max(len(asked), 1) / max(seconds_of_one, 1e-9), 1),
            }
        return found


def measure_gold(
    texts: list[Gold],
    linker: Linker,
    recognizer: Recognizer,
    settings: LinkConfig,
    second_look: SecondLook | None = None,
) -> dict[str, Any]:
    """The prior alone and disambiguation on the same mentions and candidates, and what a second look makes of them."""
    cleaned = [clean_with_offsets(gold.text) for gold in texts]
    places = [at for _, at in cleaned]
    rows = linker.rows([text for text, _ in cleaned], recognizer)
    by_prior = linker.link(rows, places, PRIOR_ALONE, settings)
    started = time.perf_counter()
    links = linker.link(rows, places, Weights(), settings)
    seconds_of_one = (time.perf_counter() - started) / max(sum(len(mentions) for mentions in links), 1)
    prior, context = quality(texts, by_prior), quality(texts, links)
    return {
        "texts": len(texts),
        "mentions": sum(len(gold.mentions) for gold in texts),
        "prior": prior,
        "disambiguated": context,
        "difference": {name: round(context[name] - prior[name], 4) for name in prior},
        "errors_times_prior": round((1 - context["accuracy"]) / max(1 - prior["accuracy"], 1e-9), 3),
        **({"reranked": second_look.measure(texts, links, seconds_of_one)} if second_look is not None else {}),
    }


def show(figures: dict[str, Any]) -> None:
    print(f"input: {figures['input']}")
    if j := figures.get("join"):
        rows = [(way, s, j["times_distinct"][way], j["wall_seconds"][way]) for way, s in j["cpu_seconds"].items()]
        table(
            f"join, {j['mentions']:,} mentions of {j['distinct']:,} forms, the first {j['share_of_the_most_frequent']} "
            f"of all, with {j['surfaces']:,} surfaces (baseline: exact)",
            [("way", "CPU-s", "times distinct", "wall s"), *rows],
        )
    p = figures["pairs"]
    table(
        f"pairs, {p['pairs']:,}; {p['pairs_that_name_the_truth']:,} name the truth (baseline: the gazetteer alone)",
        [("found by", "candidate recall", "first of a mention", "candidates/pair")]
        + [(way, *p[way].values()) for way in ("gazetteer", "both")],
    )
    for name, g in figures["gold"].items():
        table(
            f"gold, {g['mentions']:,} mentions in {g['texts']:,} texts of {name} (baseline: the prior alone; of its "
            f"errors {g['errors_times_prior']} remain)",
            [("", *g["prior"]), *((way, *g[way].values()) for way in ("prior", "disambiguated", "difference"))],
        )
        for model, r in g.get("reranked", {}).items():
            if model == "share":
                continue
            more = {what: round(r[what] - g["disambiguated"][what], 4) for what in g["disambiguated"]}
            table(
                f"{name} after a second look by {model} at {g['reranked']['share']:.1%} of the mentions, "
                f"{r['tokens']:,} tokens and {r['times_link']:,} times the seconds each (baseline: disambiguation)",
                [("", *more), ("reranked", *(r[what] for what in more)), ("difference", *more.values())],
            )


def main(arguments: list[str]) -> dict[str, Any]:
    parser = arguments_of(__doc__ or "")
    parser.add_argument("--mentions", type=int, default=300_000, help="for join; 0 leaves it out")
    parser.add_argument("--exponent", type=float, default=1.0, help="of Zipf's law")
    parser.add_argument("--without-keys", action="store_true", help="leave out join's slow way")
    parser.add_argument("--dump", type=Path, metavar="DUMP", help="another dump than that of the data: file or folder")
    parser.add_argument("--reranker", nargs="+", default=[], metavar="FOLDER", help="that `i2e reranker train` wrote")
    parser.add_argument("--margin", type=float, default=0.6, help="link.reranker.margin")
    parser.add_argument("--budget", type=float, default=0.25, help="link.reranker.budget")
    options = parser.parse_args(arguments)
    data = source(options.data, options.gold_texts)
    if options.dump is not None:
        data = replace(data, name=f"{data.name}-{options.dump.name}", dump=options.dump)
    run, tables = made_knowledge_base(data, options.work)
    columns = ["normal_form", "candidates", "forms", "link_probability", "gazetteer"]
    loaded = tables.load("kb/surfaces", run.committed("surfaces"), columns)
    surfaces = tables.read("kb/surfaces", run.committed("surfaces"), ["normal_form", "candidates"])
    recognizer, settings = load(data.recognizer), LinkConfig()
    figures: dict[str, Any] = {"input": data.name}
    if options.mentions:
        forms = loaded["normal_form"].to_pylist()
        figures["join"] = measure_join(
            tables.spark, surfaces, forms, options.mentions, options.exponent, options.repeats,
            slow=not options.without_keys,
        )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        build_gazetteer(loaded.to_batches(max_chunksize=50_000), f"{folder}/gazetteer")
        known = tables.batches("kb/entities", run.committed("knowledge_base"), [*COLUMNS])
        build_context(known, f"{folder}/context")
        linker = Linker(tables.spark, surfaces, Gazetteer(f"{folder}/gazetteer"), Context(f"{folder}/context"))
        figures["pairs"] = measure_pairs(data, linker, recognizer, settings)
        second_look = None
        if options.reranker:

            def entities(ids: list[int]) -> dict[int, dict[str, Any]]:
                wanted = pc.field("entity_id").isin(pa.array(ids, pa.int64()))
                columns = ["entity_id", "name", "description", "coarse_type"]
                rows = tables.where("kb/entities", run.committed("knowledge_base"), wanted, columns)
                return {row.pop("entity_id"): row for row in rows.to_pylist()}

            loaded_models = {folder: rerankers.load(folder) for folder in options.reranker}
            second_look = SecondLook(loaded_models, entities, options.margin, options.budget)
        figures["gold"] = {
            name: measure_gold(texts, linker, recognizer, settings, second_look) for name, texts in data.gold.items()
        }
    show(figures)
    return conclude(figures, options.json)


if __name__ == "__main__":
    main(sys.argv[1:])
