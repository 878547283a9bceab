"""`i2e reranker`: examples for a reranker, from gold links or from what a dataset is sure of, and its training.

gold      pages of Wikipedia -> sentences with links, as gold lines
examples  mentions with their candidates, as linking leaves them, and what they mean -> Parquet (EXAMPLES)
train     files of examples -> a folder that `link.reranker.model` names; needs neither Spark nor an output
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from i2e_pipeline.commands.count_anchors import wikis_of
from i2e_pipeline.commands.gold import followed, gold_lines, in_cleaned
from i2e_pipeline.commands.link import as_unit, check_output, write_lines
from i2e_pipeline.core import files
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.engine.stage import Run
from i2e_pipeline.engine.units import InputError
from i2e_pipeline.extract.text import clean
from i2e_pipeline.rerank.questions import CANDIDATE_TOKENS, CANDIDATE_TOKENS_SEEN, EXAMPLES
from i2e_pipeline.rerank.reranker import ABOUT, IN_TRAINING, SEEN
from wikidata.anchors import SEPARATOR, Site, pages_of, sentences

if TYPE_CHECKING:
    from i2e_pipeline.rerank.seen import Seen
    from i2e_pipeline.rerank.training import Training

UNDER_WAY = ".training"
"""Behind the name of a reranker's folder: that of the training which will write it."""

log = logging.getLogger(__name__)

_SENTENCES = pa.schema(
    [
        pa.field("text", pa.string(), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("end", pa.int32(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
    ]
)


def wikipedia_gold(pipeline: Pipeline, pages: Sequence[str], write: str, most: int) -> dict[str, int]:
    """Write sentences of Wikipedia whose links lead to entities of the knowledge base, as gold lines.

    pages   pages-articles.xml.bz2 of a Wikipedia in the knowledge base's first language: its titles are known
    most    sentences at most, drawn by a hash of the sentence
    Raises InputError where no link leads to an entity.
    """
    from pyspark.sql import functions as F
    from pyspark.sql.pandas.types import from_arrow_schema

    from wikidata.knowledge_base import read_dump

    check_output(write)
    run, spark = pipeline.as_it_is(), pipeline.tables.spark
    rows = None
    for site, sources in wikis_of(pages, ()):
        records = read_dump(spark, sources, for_spark=files.for_spark, separator=SEPARATOR)
        found = records.mapInArrow(partial(_linked_sentences, site=site), from_arrow_schema(_SENTENCES))
        rows = found if rows is None else rows.unionByName(found)
    assert rows is not None
    titles = run.read("kb/entities", columns=["entity_id", "wikipedia_title"]).where("wikipedia_title is not null")
    # As links spell them: with blanks, and the first letter large.
    blank = F.translate("wikipedia_title", "_", " ")
    spelled = F.concat(F.upper(F.substring(blank, 1, 1)), F.substring(blank, 2, 1000))
    known = (
        titles.groupBy(spelled.alias("title"))
        .agg(F.count("*").alias("entities"), F.min("entity_id").alias("entity_id"))
        .where("entities = 1")  # a title of several leads to none
        .drop("entities")
    )
    # Where equal sentences disagree in what a span means, that says nothing.
    agreed = (
        rows.join(known, "title")
        .groupBy("text", "start", "end")
        .agg(F.min("entity_id").alias("entity_id"), F.max("entity_id").alias("other"))
        .where("entity_id = other")
    )
    by_text = (
        agreed.groupBy("text")
        .agg(F.sort_array(F.collect_set(F.struct("start", "end", "entity_id"))).alias("mentions"))
        .orderBy(F.xxhash64("text"), "text")
        .limit(most)
    )
    lines = [
        {
            "id": n,
            "text": row["text"],
            "mentions": [{"start": m["start"], "end": m["end"], "qid": f"Q{m['entity_id']}"} for m in row["mentions"]],
        }
        for n, row in enumerate(by_text.collect())
    ]
    if not lines:
        raise InputError(
            f"--pages {', '.join(pages)}: no link leads to an entity of the knowledge base: is it made "
            f"(`i2e run --until surfaces`), and are the pages in {pipeline.config.knowledge_base.languages[0]}?"
        )
    write_lines(write, lines)
    return {"sentences": len(lines), "links": sum(len(line["mentions"]) for line in lines)}


def _linked_sentences(batches: Iterable[pa.RecordBatch], site: Site) -> Iterator[pa.RecordBatch]:
    """_SENTENCES of records of a dump of pages."""
    for batch in batches:
        rows = [
            (text, start, end, target)
            for record in batch.column(0)
            for page in pages_of(record.as_py() or b"", site)
            if page.reason is None
            for text, links in sentences(page.text, site, page.title)
            for start, end, target in links
        ]
        columns = zip(*rows, strict=True) if rows else [()] * len(_SENTENCES)
        yield pa.RecordBatch.from_arrays(
            [pa.array(column, f.type) for column, f in zip(columns, _SENTENCES, strict=True)], schema=_SENTENCES
        )


SURE = 0.95
"""A dataset's own links are examples from this probability of the label on."""
_SPAN = ("text_id", "start", "end")


def gold_examples(pipeline: Pipeline, gold: Sequence[str], write: str) -> dict[str, int]:
    """Examples of the mentions of gold texts that linking finds; returns how many.

    gold   files of lines {id, text, mentions: [{start, end, qid}]}. Links from which the priors were counted
           (knowledge_base.anchors) must not be among them: there the priors know the answer
    Raises InputError for lines that are not as said, or where no gold mention is found.
    """
    _refuse_reranked(pipeline)
    lines = [line for path in gold for line in gold_lines(path)]
    wanted = in_cleaned(lines, pipeline.config.extract.max_characters)
    with as_unit(pipeline, [{"id": n, "text": row["text"]} for n, row in enumerate(lines)], "candidates") as (
        run,
        unit,
    ):
        answers = followed(wanted, run)
        text_of = {int(p["key"]): p["text_id"] for p in _rows(run, "pairs", unit, ["text_id", "key"])}
        chosen = {(text_of[n], start, end): e for (n, start, end), e in answers.items() if n in text_of}
        examples = _examples(run, unit, chosen)
    if not len(examples):
        raise InputError(
            f"{', '.join(gold)}: no gold mention is found in the texts: do recognizer and knowledge base fit them?"
        )
    _write(examples, write)
    return {"gold_mentions": len(wanted), "examples": len(examples)}


def own_examples(pipeline: Pipeline, write: str, sure: float = SURE, most: int = 1_000_000) -> dict[str, int]:
    """Examples of a dataset's own labels: mentions of several candidates of which one is a label that text and image
    together are sure of. What the text alone was not sure of, the image has told.

    sure   least probability of the label
    most   examples at most, drawn by a hash of the text
    """
    from pyspark.sql import functions as F

    _refuse_reranked(pipeline)
    run = pipeline.as_it_is()
    labels = run.read("labels", columns=["pair_id", "entity_id", "probability", "reason", "unit"])
    labels = labels.where(F.col("reason").isNull() & (F.col("probability") >= sure)).select(
        "unit", "pair_id", "entity_id"
    )
    texts = run.read("pairs", columns=["pair_id", "text_id", "unit"])
    told = labels.join(texts, ["unit", "pair_id"]).select("unit", "text_id", "entity_id").distinct()
    candidates = run.read("candidates", columns=["text_id", "start", "end", "entity_id", "unit"])
    several = candidates.groupBy("unit", *_SPAN).count().where("count > 1").drop("count")
    hits = candidates.join(told, ["unit", "text_id", "entity_id"]).join(several, ["unit", *_SPAN])
    # Two labels of one mention say that one of them is wrong.
    sole = hits.groupBy(*_SPAN).agg(F.collect_set("entity_id").alias("of"), F.min("unit").alias("unit"))
    sole = sole.where(F.size("of") == 1).withColumn("chosen", F.col("of")[0]).drop("of")
    rows = sole.orderBy(F.xxhash64("text_id"), *_SPAN).limit(most).collect()
    chosen = {(bytes(r["text_id"]), r["start"], r["end"]): r["chosen"] for r in rows}
    examples = _examples(run, sorted({r["unit"] for r in rows}), chosen) if rows else EXAMPLES.empty_table()
    if not len(examples):
        raise InputError(
            f"{pipeline.config.output} has no label of {sure} and more that a name of several candidates proposed: "
            "run it to `label` first, or lower --sure"
        )
    _write(examples, write)
    return {"labels": len(chosen), "examples": len(examples)}


def _refuse_reranked(pipeline: Pipeline) -> None:
    """The next reranker learns beside linking, too, and not beside the one that is there."""
    if pipeline.config.link.reranker.model is not None:
        raise InputError("examples are of what linking leaves: --set link.reranker.model=null")


def _examples(run: Run, units: str | list[str], chosen: dict[tuple[bytes, int, int], int | None]) -> pa.Table:
    """EXAMPLES of these mentions, as far as they have candidates; by text, start, end."""
    keys = pa.table(
        {
            "text_id": pa.array([k[0] for k in chosen], pa.binary()),
            "start": pa.array([k[1] for k in chosen], pa.int32()),
            "end": pa.array([k[2] for k in chosen], pa.int32()),
            "chosen": pa.array(chosen.values(), pa.int64()),
        }
    )
    wanted = run.spark.createDataFrame(keys)
    found = (
        run.read("candidates", units, [*_SPAN, "entity_id", "probability", "rank"])
        .join(wanted, [*_SPAN])
        .join(run.read("kb/entities", columns=["entity_id", "name", "description", "coarse_type"]), "entity_id", "left")
        .join(run.read("texts", units, ["text_id", "text"]), ["unit", "text_id"])
        .drop("unit")
        .distinct()
        .toArrow()
    )
    if not len(found):
        return EXAMPLES.empty_table()
    found = found.sort_by([(name, "ascending") for name in (*_SPAN, "rank")]).combine_chunks()
    spans = np.stack(
        [
            pc.rank(found["text_id"].combine_chunks(), tiebreaker="dense").to_numpy().astype(np.int64),
            found["start"].to_numpy().astype(np.int64),
            found["end"].to_numpy().astype(np.int64),
        ]
    )
    first = np.flatnonzero(np.concatenate([[True], (np.diff(spans, axis=1) != 0).any(axis=0)]))
    offsets = pa.array(np.append(first, len(found)), pa.int32())
    kind = EXAMPLES.field("candidates").type.value_type
    candidates = pa.StructArray.from_arrays([found[f.name].combine_chunks().cast(f.type) for f in kind], fields=[*kind])
    of = found.take(pa.array(first))
    columns = [of["text"], of["start"], of["end"], pa.ListArray.from_arrays(offsets, candidates), of["chosen"]]
    return pa.table([c.cast(f.type) for c, f in zip(columns, EXAMPLES, strict=True)], schema=EXAMPLES)


def _rows(run: Run, table: str, unit: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    return list(run.read(table, unit, columns).toArrow().to_pylist())


def _write(examples: pa.Table, path: str) -> None:
    filesystem, inner = files.open_filesystem(path)
    files.make_folder(files.folder_of(path) or ".")
    pq.write_table(examples, inner, filesystem=filesystem)


def read_examples(paths: Sequence[str]) -> pa.Table:
    """The rows of files of examples. Raises InputError, naming the file, for one that is none."""
    tables = []
    for path in paths:
        try:
            filesystem, inner = files.open_filesystem(path)
            tables.append(pq.read_table(inner, filesystem=filesystem).select(EXAMPLES.names).cast(EXAMPLES))
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise InputError(
                f"--examples {path}: no file of examples ({error}): `i2e reranker examples` writes them"
            ) from None
    return pa.concat_tables(tables)


def train(
    examples: Sequence[str],
    kind: str,
    pretrained: str,
    folder: str,
    settings: Training,
    device: str = "auto",
    threads: int | None = None,
    seen: Sequence[str] = (),
    candidate_tokens: int | None = None,
) -> dict[str, Any]:
    """Train a reranker into a folder, or go on with the training that was stopped; returns its figures.

    seen              files of gold lines: the model is told of a candidate a text in which it was linked
    candidate_tokens  tokens of what the model is told of a candidate; None: 24, with `seen` 44

    What lies in `folder` is whole and of one training; one that is under way stands beside it, in FOLDER.training.
    Ctrl-C ends it with its state kept. Raises InputError, NoReranker and TrainingError.
    """
    import torch

    from i2e_pipeline.core.machine import choose_device
    from i2e_pipeline.rerank import reranker, training

    where = choose_device(device, "--device")
    under_way = folder.rstrip("/") + UNDER_WAY
    _refuse_used(Path(folder), Path(under_way))
    if threads is not None:
        torch.set_num_threads(threads)
    table = read_examples(examples)
    torch.manual_seed(settings.seed)
    tokens = (CANDIDATE_TOKENS_SEEN if seen else CANDIDATE_TOKENS) if candidate_tokens is None else candidate_tokens
    if not 4 <= tokens <= 256:
        raise InputError(f"--candidate-tokens {tokens}: between 4 and 256")
    model = reranker.begin(kind, pretrained, tokens)
    places = _seen(seen, f"{under_way}/{reranker.SEEN}") if seen else None
    with _noticed() as asked_to_end:
        figures = training.train(model, table, under_way, settings, where, asked_to_end, places)
    if figures["finished"]:
        trained = {
            **asdict(settings),
            "pretrained": pretrained.rstrip("/").rpartition("/")[2],
            "examples": [path.rpartition("/")[2] for path in examples],
            "seen": [path.rpartition("/")[2] for path in seen],
        }
        fusing = reranker.Fusing(**figures["fusing"])
        about = reranker.About(kind, fusing, tokens, bool(seen), figures, trained)
        reranker.save(model, folder, about, under_way)
        files.remove(under_way)
        log.info("the reranker is in %s: set link.reranker.model to it", folder)
    else:
        log.info("stopped at step %d of %d; the same command goes on", figures["step"], figures["of"])
    return figures


def _seen(gold: Sequence[str], folder: str) -> Seen:
    """Where entities were seen, by these gold lines. Their texts are cleaned as the pipeline cleans those that ask."""
    from i2e_pipeline.rerank.seen import Seen, build

    lines = [row for path in gold for row in gold_lines(path)]
    links = (
        (entity, clean(lines[n]["text"], _LONGEST), start, end)
        for (n, start, end), entity in in_cleaned(lines, _LONGEST).items()
        if entity is not None
    )
    if not build(links, folder):
        files.remove(folder)
        raise InputError(f"--seen {', '.join(gold)}: no line links an entity")
    return Seen(folder)


_LONGEST = 1000
"""Characters of a text in which an entity was seen that are looked at."""


def _refuse_used(folder: Path, under_way: Path) -> None:
    """Raises InputError where a training would put its folders in the place of something else."""
    if not folder.name or folder.resolve() in (Path.cwd(), Path.home()):
        raise InputError(f"--write {folder}: name a folder of its own for the reranker")
    for path, known in ((folder, {ABOUT}), (under_way, {SEEN, *IN_TRAINING})):
        there = {entry.name for entry in path.iterdir()} if path.is_dir() else {path.name} if path.exists() else set()
        if there and not there & known:
            raise InputError(f"--write {folder}: {path} is no reranker's, and would be removed: name another folder")


@contextmanager
def _noticed() -> Iterator[Callable[[], bool]]:
    """Whether somebody has asked for an end: a step is finished before. A second signal ends it at once."""
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        came.append(number)
        signal.signal(number, before[number])

    before: dict[int, Any] = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    main = threading.current_thread() is threading.main_thread()
    for number in before if main else ():
        signal.signal(number, note)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items() if main else ():
            signal.signal(number, handler)
