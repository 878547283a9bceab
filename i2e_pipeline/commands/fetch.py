"""`i2e fetch`: the images of a table of addresses, by img2dataset, into a folder that a run reads."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from i2e_pipeline.commands.fetching import addresses, worker
from i2e_pipeline.commands.fetching.environment import FetchError, FetchFailed, python_for
from i2e_pipeline.commands.link import as_unit
from i2e_pipeline.core import files
from i2e_pipeline.core.config import Config, FetchConfig, PairsConfig, digest
from i2e_pipeline.core.domains import in_ascii
from i2e_pipeline.core.packaged import folder as packaged
from i2e_pipeline.core.version import __version__
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.inputs import img2dataset

log = logging.getLogger(__name__)

_OURS = img2dataset.OURS
_PIXELS = 1 << 27
"""Images with more are not decoded for another size (decompression bombs): 400 MB, once a process."""
_YOUNGER = ("shard_rows", "encode_format", "encode_quality", "min_image_size", "max_aspect_ratio")
"""Settings that records of older folders do not know."""
_LINKING = ("knowledge_base", "extract", "link")


@dataclass(frozen=True)
class Fetched:
    """What came of a table of addresses."""

    folder: str
    counts: Mapping[str, int]
    """Rows of the table by what they were (addresses.write)."""
    results: Mapping[str, int]
    """Rows that were to be fetched, by `success` or why there is no image."""
    settings: Mapping[str, str]
    """By which a run reads the folder: those of `pairs` that are not as they are by default, or in this config."""
    was_whole: bool = False
    """Whether a fetch before had done it all, so that nothing was asked for."""

    @property
    def images(self) -> int:
        return self.results.get("success", 0)


def fetch(pipeline: Pipeline) -> Fetched:
    """Fetch what is not there yet of the images of `pairs.path`. Raises FetchError, or InputError for the table.

    A fetch that was stopped goes on, shard by shard; images that could not be had are not asked for again.
    """
    config = pipeline.config
    limits, sizes = limits_of(config.fetch), sizes_of(config.fetch)
    found = addresses.tables(config.pairs)
    folder = _folder(config)
    python = python_for(config.fetch.python)
    with _alone(folder):
        counts = _prepare(pipeline, folder, found)
        _drop_cut_stats(folder)
        was_whole = img2dataset.unfinished_fetch(str(folder)) is None
        if not was_whole:
            _download(config, folder, python, limits, sizes)
        results = _results(folder)
    return Fetched(str(folder), counts, results, _settings_of_a_run(config, folder, counts), was_whole)


def _settings_of_a_run(config: Config, folder: Path, counts: Mapping[str, int]) -> dict[str, str]:
    resized = config.fetch.resize_mode != "no"
    values: dict[str, str | None] = {
        "url_column": addresses.URL,
        "key_column": addresses.KEY if counts.get("with a key") else "key",
        "image_column": config.fetch.encode_format if resized else "jpg",
        "where": None,  # its columns are not fetched
        "format": None,
    }
    plain = PairsConfig()
    differing = {k: v for k, v in values.items() if not v == getattr(plain, k) == getattr(config.pairs, k)}
    told = {"path": str(folder), "text_column": addresses.CAPTION, **differing}
    return {f"pairs.{key}": "null" if value is None else value for key, value in told.items()}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder against another fetch. Raises FetchError where one fills it already."""
    lock = FileLock(folder / f".{_OURS}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise FetchError(f"{folder} (fetch.folder) is being filled by another `i2e fetch`: wait for it") from None
    except OSError as error:
        raise FetchError(f"fetch.folder: {folder} cannot be written ({error}): name another folder") from None
    try:
        yield
    finally:
        lock.release()


def limits_of(fetch: FetchConfig) -> worker.Limits:
    """The limits of fetching processes. Raises FetchError where no contact is named, or the list of domains cannot be
    read."""
    if not (fetch.contact or "").strip():
        raise FetchError(
            "fetch.contact is not set: name a mail address or page by which the sites that you ask can reach you; "
            "it stands in the User-Agent"
        )
    agent = f"{fetch.user_agent}/{__version__} (+{str(fetch.contact).strip()})"
    if not (agent.isascii() and agent.isprintable()):
        raise FetchError(f"fetch.contact: {fetch.contact!r} does not fit into a header: use ASCII on one line")
    return worker.Limits(
        agent, fetch.timeout, fetch.deadline, fetch.retries, fetch.max_bytes,
        tuple(d.strip().lower() for d in fetch.disallowed_directives), _domains(fetch.blocked_domains),
        fetch.allow_private,
    )  # fmt: skip


def sizes_of(fetch: FetchConfig) -> dict[str, Any]:
    """img2dataset's arguments on the size and form of images. Raises FetchError where settings do not fit together."""
    resized, quality = fetch.resize_mode != "no", fetch.encode_quality
    if not resized and (fetch.encode_format != "jpg" or quality is not None):
        raise FetchError(
            "fetch.encode_format and fetch.encode_quality are for images that get another size: set fetch.resize_mode, "
            "or leave them out"
        )
    if fetch.encode_format == "png" and quality is not None and quality > 9:
        raise FetchError(f"fetch.encode_quality: {quality} is not allowed for PNG (0 to 9)")
    if quality is None:
        quality = 6 if fetch.encode_format == "png" else 95
    return {
        "resize_mode": fetch.resize_mode,
        "disable_all_reencoding": not (resized or fetch.min_image_size or fetch.max_aspect_ratio),
        "resize_only_if_bigger": fetch.resize_mode in ("keep_ratio", "keep_ratio_largest"),
        "skip_reencode": True,
        "image_size": fetch.image_size,
        "encode_format": fetch.encode_format,
        "encode_quality": quality,
        "min_image_size": fetch.min_image_size,
        "max_aspect_ratio": fetch.max_aspect_ratio or float("inf"),
    }


def _domains(path: str | None) -> frozenset[str]:
    """The domains of a list: one a line, in any case and script; `#` begins a comment."""
    if path is None:
        return frozenset()
    if not files.exists(path):
        raise FetchError(f"fetch.blocked_domains: {path} does not exist")
    found = set()
    for number, line in enumerate(files.read_bytes(path).decode("utf-8-sig", "replace").splitlines(), 1):
        domain = line.partition("#")[0].strip().lower().removeprefix("*.").strip(".")
        if not domain:
            continue
        if any(sign in domain for sign in "/: \t,"):
            raise FetchError(
                f"fetch.blocked_domains: {path}, line {number}: {domain!r} is no domain; write example.org"
            )
        try:
            found.add(in_ascii(domain))
        except ValueError:
            raise FetchError(f"fetch.blocked_domains: {path}, line {number}: {domain!r} is no domain") from None
    return frozenset(found)


def _folder(config: Config) -> Path:
    named = config.fetch.folder or files.join(config.output, "fetched")
    if not files.is_local(named):
        raise FetchError(f"fetch.folder: {named} is not on this machine: name a folder here, and copy it there later")
    return Path(named.removeprefix("file://")).absolute()


def _prepare(pipeline: Pipeline, folder: Path, found: Sequence[addresses.Addresses]) -> Counter[str]:
    """Write the rows that are to be fetched, unless a fetch before did; returns how many rows were what.

    img2dataset goes on by the numbers of shards. So a folder is of one table and one choice of rows.
    """
    config, ours = pipeline.config, folder / _OURS
    record = str(ours / img2dataset.RECORD)
    chosen: dict[str, Any] = {
        "tables": [table.digest for table in found],
        "pairs": {k: getattr(config.pairs, k) for k in ("url_column", "text_column", "key_column", "captions")}
        | ({"where": config.pairs.where} if config.pairs.where else {})
        | ({"keep_columns": dict(config.pairs.keep_columns)} if config.pairs.keep_columns else {}),
        "images": {k: getattr(config.fetch, k) for k in ("output_format", "resize_mode", "image_size")}
        | {k: value for k, value in config.fetch if k in _YOUNGER and value != FetchConfig.model_fields[k].default},
    }
    if config.fetch.linked_only:
        chosen["linked_only"] = {name: getattr(config, name).shown() for name in _LINKING}
        chosen["linked_only"]["knowledge_base"].pop("path")  # where it lies says nothing of what is in it
    if files.exists(record):
        before = files.record(record, remedy := "remove the folder, and fetch again")
        counted = before.get("counts") if isinstance(before, dict) else None
        if not (isinstance(counted, dict) and all(isinstance(rows, int) for rows in counted.values())):
            raise files.RecordError(f"{record} is no record of a fetch: {remedy}")
        if before.get("of") != digest(chosen):
            raise FetchError(
                f"{folder} was filled from another table, or with other columns or rows, or other settings of format, "
                "size, shard_rows or linked_only: use another fetch.folder, or remove this one"
            )
        return Counter(counted)
    if folder.is_dir() and (other := next((p.name for p in folder.iterdir() if p.name[0] not in "._"), None)):
        raise FetchError(f"{folder} (fetch.folder) holds other files ({other}): name an empty folder")
    with files.fresh_folder(ours, alone=True) as fresh:
        (fresh / "tables").mkdir()
        linked = (lambda texts: _linked(pipeline, texts)) if config.fetch.linked_only else None
        counts = addresses.write(found, config.pairs, fresh / "tables", linked)
        rows = [pq.read_metadata(path).num_rows for path in sorted((fresh / "tables").glob("*.parquet"))]
        shards = sum(-(-n // config.fetch.shard_rows) for n in rows)
        record_of = {"of": digest(chosen), "counts": dict(counts), "shards": shards}
        files.write_json(str(fresh / img2dataset.RECORD), record_of)
    return counts


def _linked(pipeline: Pipeline, texts: Sequence[str]) -> set[str]:
    """Those of distinct texts that lead to an entity, by the stages up to link."""
    with as_unit(pipeline, [{"id": n, "text": text} for n, text in enumerate(texts)], "candidates") as (run, unit):
        pairs, candidates = run.read("pairs", unit), run.read("candidates", unit)
        linked = pairs.select("row", "text_id").join(candidates.select("text_id"), "text_id", how="leftsemi")
        return {texts[row] for row in linked.select("row").toArrow()["row"].to_pylist()}


def _drop_cut_stats(folder: Path) -> None:
    """img2dataset takes a shard for done that has stats, even such as were cut when it was killed."""
    for path in folder.glob("*_stats.json"):
        try:
            files.read_json(str(path))
        except ValueError:
            path.unlink()


def _download(config: Config, folder: Path, python: str, limits: worker.Limits, sizes: Mapping[str, Any]) -> None:
    """Run img2dataset over the prepared rows; what it says goes to _fetch/log.txt. Raises FetchFailed."""
    fetch, ours = config.fetch, folder / _OURS
    arguments = {
        "url_list": str(ours / "tables"),
        "input_format": "parquet",
        "url_col": addresses.URL,
        "caption_col": addresses.CAPTION,
        "save_additional_columns": [addresses.KEY, *addresses.kept_columns(config.pairs)],
        "output_folder": str(folder),
        "output_format": fetch.output_format,
        **sizes,
        "processes_count": fetch.processes or os.cpu_count() or 1,
        "thread_count": fetch.threads,
        "number_sample_per_shard": fetch.shard_rows,
        "extract_exif": False,
        "max_shard_retry": 1,
    }
    settings = {"limits": worker.as_tree(limits), "as_it_came": fetch.resize_mode == "no", "arguments": arguments}
    (ours / "settings.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    driver = str(packaged("i2e_pipeline.commands.fetching") / "worker.py")
    environment = {
        **os.environ,
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "WANDB_MODE": "disabled",
        "OPENCV_IO_MAX_IMAGE_PIXELS": str(_PIXELS),
    }
    # In UTF-8 whatever the locale: img2dataset writes texts as the locale has it.
    command = [python, "-I", "-X", "utf8", driver, str(ours / "settings.json")]
    with (ours / "log.txt").open("a", encoding="utf-8") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
            errors="replace", env=environment, start_new_session=True,
        )  # fmt: skip
        ended = threading.Thread(target=_end_group, args=(process,), daemon=True)
        ended.start()
        try:
            for line in process.stdout or ():
                said.write(line)
                if line.startswith("total "):
                    log.info("fetch: %s", " ".join(line.split()[2:]))
            code = process.wait()
        finally:
            if process.poll() is None:  # interrupted: with it go the processes that it started
                os.killpg(process.pid, signal.SIGKILL)
            ended.join()
    if code:
        raise FetchFailed(f"img2dataset ended with {code}: {_last_line(ours / 'log.txt')} ({ours / 'log.txt'})")


def _end_group(process: subprocess.Popen[str]) -> None:
    """Wait for img2dataset, and end what it leaves when it was killed; those hold its output open."""
    process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def _results(folder: Path) -> Counter[str]:
    """Rows by what came of them. Raises FetchFailed where shards are not there."""
    results: Counter[str] = Counter()
    for path in sorted(folder.glob("*_stats.json")):
        results.update(files.read_json(str(path))["status_dict"])
    shards = img2dataset.shards_of_fetch(str(folder)) or 0
    if missing := shards - len(img2dataset.done(str(folder))):
        raise FetchFailed(
            f"{missing} of {shards} shards could not be written; the same command tries them again. "
            f"{folder / _OURS / 'log.txt'} says why"
        )
    return results


def told(fetched: Fetched, say: Callable[[str], None]) -> None:
    """What came of it, and the settings by which a run reads it."""
    counts = fetched.counts
    left = [f"{counts[why]:,} {why}" for why in addresses.LEFT_OUT if counts.get(why)]
    say(f"{counts['rows']:,} rows" + (f", left out {', '.join(left)}" if left else ""))
    for why, rows in counts.items():
        if why.startswith("whose ") and rows:
            say(f"{rows:,} {why}: left empty")
    if "asked" in counts:
        say(f"{counts.get('linked', 0):,} of {counts['asked']:,} texts lead to an entity; the others are not fetched")
    say(f"{fetched.images:,} of {counts.get('to fetch', 0):,} images fetched")
    for why, rows in Counter({w: n for w, n in fetched.results.items() if w != "success"}).most_common(20):
        say(f"  {rows:>9,}  {why}")
    if fetched.was_whole and fetched.images < counts.get("to fetch", 0):
        say(f"the others were asked for before, and are not again: remove {fetched.folder} to fetch all anew")
    if not fetched.images:
        say("there is nothing for a run to read")
        return
    told_of = " ".join(f"{key}={value}" for key, value in fetched.settings.items())
    say(f"a run reads them with --set {told_of}")
