"""`i2e doctor`: is everything here that a run needs? Each failing check says its remedy."""

from __future__ import annotations

import os
import shutil
import tempfile
import textwrap
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from i2e_pipeline.core import files, places, stores
from i2e_pipeline.core.config import Config, paths
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.secrets import hide
from i2e_pipeline.engine import sharing
from i2e_pipeline.knowledge.stages import KnowledgeBase, Surfaces
from wikidata.source_files import ANCHORS, DUMP, IMPORTANCE, POPULARITY, REDIRECTS, SourceError, recognised, unclosed

_LEAST_DISK = 1 << 30
"""Bytes that the output takes beside as much as the pairs do, which is more than a run keeps of them."""
_SHARDS_LOOKED_AT = 32


class Failed(RuntimeError):
    """A check that failed; the message says what is wrong and the remedy."""


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    name: str
    state: Literal["ok", "note", "FAILED"]
    said: str

    def __str__(self) -> str:
        return f"{self.state:<7} {self.name:<14} {self.said}" if self.name else f"{self.state:<7} {self.said}"


def told(finding: Finding, width: int | None) -> str:
    """The finding as it is printed; `width`: of the terminal, None where there is none."""
    lines = str(finding).splitlines()
    if width is None:
        return "\n".join(line.rstrip() for line in lines)
    indent = " " * (23 if finding.name else 8)
    return "\n".join(
        part
        for n, line in enumerate(lines)
        for part in textwrap.wrap(
            line,
            width,
            initial_indent=indent if n else "",
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
        )
    )


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """What `--json` writes."""
    return {"ok": not failed(findings), "checks": [asdict(f) for f in findings]}


def failed(findings: Sequence[Finding]) -> bool:
    return any(f.state == "FAILED" for f in findings)


def examine(config: Config) -> Iterator[Finding]:
    """What each check found, one after the other."""
    for name, check in checks(config):
        try:
            yield Finding(name, "ok", hide(check()))
        except (Failed, I2EError) as error:
            yield Finding(name, "FAILED", hide(str(error)))
        except Exception as error:
            yield Finding(name, "FAILED", hide(f"{type(error).__name__}: {error}"))


def examine_cluster(config: Config) -> Iterator[Finding]:
    """Ask the workers by one tiny job: what each machine said."""
    from i2e_pipeline.engine import cluster
    from i2e_pipeline.engine.master import is_local
    from i2e_pipeline.engine.session import build

    try:
        cluster.refuse_relative(config)
        context = (spark := build(config)).sparkContext
        workers = cluster.survey(spark, config)
    except I2EError as error:
        yield Finding("", "FAILED", hide(str(error)))
        return
    yield Finding("master", "ok", f"{context.master}, {context.defaultParallelism} cores, Spark {spark.version}")
    if is_local(context.master):
        yield Finding("workers", "ok", "processes of this machine; --cluster asks those of spark-submit's --master")
    for seen in workers:
        gpus = f"GPUs {', '.join(seen.gpus)}" if seen.gpus else "no GPU given to tasks"
        about = (
            f"{seen.memory / 1e9:,.0f} GB, {gpus}, clock within {seen.skew:.1f} s",
            f"Python {seen.python} at {seen.executable}",
            ", ".join(f"{name} {version}" for name, version in seen.packages.items()),
        )
        for n, line in enumerate(about):
            yield Finding(seen.host if n == 0 else " ", "ok", line)
    wrong, notes = cluster.faults(workers)
    for note in notes:
        yield Finding("", "note", note)
    for fault in wrong:
        yield Finding("", "FAILED", hide(fault))


def checks(config: Config) -> list[tuple[str, Callable[[], str]]]:
    """Name and check; a check returns what it found or raises, with the remedy."""
    return [
        *_environment(config),
        ("spark", lambda: _spark(config)),
        ("delta", lambda: _delta(config)),
        ("store", lambda: _store(config)),
        ("torch", lambda: _torch(config)),
        ("recognizer", lambda: _recognizer(config)),
        ("score model", lambda: _model(config)),
        ("calibration", lambda: _calibration(config)),
        ("pairs", lambda: _pairs(config)),
        *([("fetch", lambda: _fetch(config))] if _is_fetched(config) else []),
        ("knowledge base", lambda: _dump(config)),
        ("disk", lambda: _disk(config)),
        *((f"data {name}", partial(_data_set, name, path)) for name, path in sorted(config.evaluate.data.items())),
    ]


def _environment(config: Config) -> list[tuple[str, Callable[[], str]]]:
    """What every start of Spark asks of this machine."""
    from i2e_pipeline.engine import environment

    return [(name, partial(check, config)) for name, check in environment.CHECKS]


def _spark(config: Config) -> str:
    from i2e_pipeline.engine.environment import EnvironmentFault
    from i2e_pipeline.engine.session import build

    try:
        spark = build(config)
    except EnvironmentFault:
        raise Failed("not started before what stands above is mended") from None
    rows = spark.range(1000).mapInArrow(lambda batches: batches, "id long").count()
    if rows != 1000:
        raise Failed(f"1,000 rows went through a worker and {rows} came back")
    return f"{spark.version}, {spark.sparkContext.master}, {spark.sparkContext.defaultParallelism} cores"


def _delta(config: Config) -> str:
    if config.storage.format != "delta":
        return "not asked for (storage.format=parquet)"
    from i2e_pipeline.engine.session import build

    with tempfile.TemporaryDirectory() as folder:
        build(config).range(3).write.format("delta").save(f"{folder}/table")
    return f"a table was written; jars from {config.session.jars or 'Maven'}"


_SMALL = b"a small file"


def _store(config: Config) -> str:
    """Write, read and delete below the output with each client that a run opens it by."""
    from i2e_pipeline.engine.causes import cause

    if not stores.scheme_of(config.output) or files.is_local(config.output):
        return "the output is on this machine"
    place = files.join(config.output, f"_doctor-{uuid.uuid4().hex}")
    clients: list[tuple[str, Callable[[str], bytes]]] = [
        ("pyarrow", _by_pyarrow),
        ("Hadoop", partial(_by_hadoop, config)),
    ]
    if config.storage.format == "delta":
        clients.append(("delta-rs", _by_delta))
    stores.use(config.storage.options, paths(config))
    places.refuse_closed(config.output, "output")
    for client, tried in clients:
        try:
            read = tried(place)
        except Exception as error:
            why = stores.explained(cause(error), config.output, "output")
            raise Failed(f"{client} cannot write, read and delete in {config.output}: {why}") from None
        if read != _SMALL:
            raise Failed(f"{client} reads other bytes than it has written to {place}: is something between it and it?")
    return f"{config.output} is written, read and deleted by {', '.join(name for name, _ in clients)}"


def _by_pyarrow(place: str) -> bytes:
    files.write_bytes(place, _SMALL)
    try:
        return files.read_bytes(place)
    finally:
        files.remove(place)


def _by_hadoop(config: Config, place: str) -> bytes:
    from i2e_pipeline.engine.session import build

    context = build(config).sparkContext
    jvm: Any = context._jvm
    path = jvm.org.apache.hadoop.fs.Path(place)
    filesystem = path.getFileSystem(context._jsc.hadoopConfiguration())
    written = filesystem.create(path, True)
    written.write(bytearray(_SMALL))
    written.close()
    try:
        read = filesystem.open(path)
        found = bytes(read.readAllBytes())
        read.close()
        return found
    finally:
        filesystem.delete(path, False)


def _by_delta(place: str) -> bytes:
    import pyarrow as pa
    from deltalake import DeltaTable, write_deltalake

    table = pa.table({"content": pa.array([_SMALL], pa.binary())})
    try:
        write_deltalake(place, table, storage_options=stores.delta(place))
        read = DeltaTable(place, storage_options=stores.delta(place)).to_pyarrow_table()
        return bytes(read.column("content")[0].as_py())
    finally:
        files.remove(place)


def _torch(config: Config) -> str:
    import torch

    if config.score.device.startswith("cuda") and not torch.cuda.is_available():
        raise Failed("score.device asks for cuda and torch sees none: score.device=auto, or install a CUDA driver")
    cards = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return f"{torch.__version__}, {cards or 'cpu'}"


def _recognizer(config: Config) -> str:
    from i2e_pipeline.extract import recognizer

    recognizer.check(config.extract.recognizer)
    return config.extract.recognizer


def _model(config: Config) -> str:
    from i2e_pipeline.images import encoder

    try:
        model = encoder.load(config.score)
    except I2EError as error:
        raise Failed(str(error)) from None
    return f"{config.score.model}, vectors of {model.width} numbers, on {model.device}"


def _calibration(config: Config) -> str:
    from i2e_pipeline.label.calibration import Calibration

    if config.label.calibration is None:
        return "the default: `i2e calibrate` fits one to your model"
    try:
        return f"{config.label.calibration}, threshold {Calibration.load(config.label.calibration).threshold}"
    except I2EError as error:
        raise Failed(str(error)) from None


def _pairs(config: Config) -> str:
    if not config.pairs.path:
        raise Failed("pairs.path is not set: name the files of pairs (docs/inputs.md)")
    from i2e_pipeline.inputs import look
    from i2e_pipeline.inputs.listing import listed

    try:
        found = listed(config.pairs)
        looked = found[:: max(1, len(found) // _SHARDS_LOOKED_AT)]
        rows = [look.look(source, config.pairs, images=True).rows for source in looked]
    except I2EError as error:
        raise Failed(str(error)) from None
    if not any(rows):
        raise Failed(f"no row in {len(looked)} files, the first of which is {looked[0].path}")
    kinds = ", ".join(sorted({source.format for source in found}))
    size = sum(source.info.size for source in found)
    some = "" if len(looked) == len(found) else f"; {len(looked)} of them were looked at"
    return f"{len(found)} shards ({kinds}), {size / 1e6:,.1f} MB{some}"


def _is_fetched(config: Config) -> bool:
    """Whether `i2e fetch` is of use here: a folder for it is named, or the pairs are addresses."""
    from i2e_pipeline.commands.fetching import addresses

    try:
        return config.fetch.folder is not None or addresses.without_images(config.pairs)
    except (I2EError, OSError):
        return False  # `pairs` says what is wrong


def _fetch(config: Config) -> str:
    from i2e_pipeline.commands.fetching import environment

    return environment.said_of(config.fetch.python)


def _dump(config: Config) -> str:
    kb = config.knowledge_base
    if kb.dump is None and kb.path is not None:
        return _shared_base(config, kb.path)
    if kb.dump is None:
        raise Failed(
            "knowledge_base.dump is not set: https://dumps.wikimedia.org/wikidatawiki/entities/latest-all.json.bz2"
        )
    sizes = []
    for setting, wanted in {
        "dump": DUMP, "popularity": POPULARITY, "importance": IMPORTANCE, "anchors": ANCHORS, "redirects": REDIRECTS,
    }.items():  # fmt: skip
        path = getattr(kb, setting)
        if path is not None:
            try:
                found = files.find((path,), "")
                sources = recognised([f.path for f in found], wanted, files.open_filesystem)
            except I2EError as error:
                raise Failed(f"knowledge_base.{setting}: {error}: mend the path, or put the file there") from None
            except SourceError as error:
                raise Failed(f"knowledge_base.{setting}: {error}") from None
            if setting == "dump" and not kb.allow_partial and (doubt := unclosed(sources)):
                raise Failed(f"knowledge_base.dump: {path}: {doubt}: download it again")
            sizes.append(f"{setting} {sum(f.size for f in found) / 1e6:,.1f} MB")
    return ", ".join(sizes)


def _shared_base(config: Config, path: str) -> str:
    """The knowledge base that a run takes which names no dump."""
    places.refuse_closed(path, "knowledge_base.path")
    try:
        found = sharing.base(path, [(KnowledgeBase(), config), (Surfaces(), config)])
    except sharing.NoBase as error:
        raise Failed(f"knowledge_base.path: {error}") from None
    return f"{found.folder}, made by another output"


def _data_set(name: str, path: str) -> str:
    from i2e_pipeline.evaluate import datasets

    try:
        return datasets.check(name, path)
    except datasets.DatasetError as error:
        raise Failed(str(error)) from None


def _bytes_of_pairs(config: Config) -> int:
    """0 where they cannot be listed, which another check says."""
    from i2e_pipeline.inputs.listing import listed

    try:
        return sum(source.info.size for source in listed(config.pairs)) if config.pairs.path else 0
    except I2EError:
        return 0


def _disk(config: Config) -> str:
    if not files.is_local(config.output):
        return f"{config.output} is remote: not checked"
    places.refuse_closed(config.output, "output")
    folder = Path(config.output.removeprefix("file://")).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    needed = _LEAST_DISK + _bytes_of_pairs(config)
    if free < needed:
        raise Failed(
            f"{free / 1e9:.1f} GB free at {folder}, and a run over these pairs may take {needed / 1e9:.1f}: free some, "
            "or set output= to a larger disk"
        )
    if not os.access(folder, os.W_OK):
        raise Failed(f"{folder} cannot be written: set output= to a folder of yours")
    return f"{free / 1e9:,.0f} GB free at {folder}"
