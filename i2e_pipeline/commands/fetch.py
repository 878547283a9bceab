"""`i2e fetch`: the images of a table of addresses, by img2dataset, into a folder that a run reads."""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from i2e_pipeline.commands.fetching import addresses, worker
from i2e_pipeline.commands.fetching.environment import FetchError, FetchFailed, python_for
from i2e_pipeline.commands.link import as_unit
from i2e_pipeline.core import files
from i2e_pipeline.core.config import Config, FetchConfig, digest
from i2e_pipeline.core.packaged import folder as packaged
from i2e_pipeline.core.version import __version__
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.inputs.shard import Source

log = logging.getLogger(__name__)

_OURS = "_fetch"
"""Folder beside the shards; a run passes over its name."""
_ROWS_OF_A_SHARD = 10_000
_LINKING = ("knowledge_base", "extract", "link")


@dataclass(frozen=True)
class Fetched:
    """What came of a table of addresses."""

    folder: str
    counts: Mapping[str, int]
    """Rows of the table by what they were (addresses.write)."""
    results: Mapping[str, int]
    """Rows that were to be fetched, by `success` or why there is no image."""

    @property
    def images(self) -> int:
        return self.results.get("success", 0)


def fetch(pipeline: Pipeline) -> Fetched:
    """Fetch what is not there yet of the images of `pairs.path`. Raises FetchError, or InputError for the table.

    A fetch that was stopped goes on, shard by shard; images that could not be had are not asked for again.
    """
    config = pipeline.config
    limits = limits_of(config.fetch)
    found = addresses.tables(config.pairs)
    folder = _folder(config)
    python = python_for(config.fetch.python)
    counts = _prepare(pipeline, folder, found)
    if counts["to fetch"]:
        _download(config, folder, python, limits)
    return Fetched(str(folder), counts, _results(folder, counts["to fetch"]))


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
            found.add(domain if domain.isascii() else domain.encode("idna").decode())
        except UnicodeError:
            raise FetchError(f"fetch.blocked_domains: {path}, line {number}: {domain!r} is no domain") from None
    return frozenset(found)


def _folder(config: Config) -> Path:
    named = config.fetch.folder or files.join(config.output, "fetched")
    if not files.is_local(named):
        raise FetchError(f"fetch.folder: {named} is not on this machine: name a folder here, and copy it there later")
    return Path(named.removeprefix("file://")).absolute()


def _prepare(pipeline: Pipeline, folder: Path, found: Sequence[tuple[Source, str]]) -> Counter[str]:
    """Write the rows that are to be fetched, unless a fetch before did; returns how many rows were what.

    img2dataset goes on by the numbers of shards. So a folder is of one table and one choice of rows.
    """
    config, ours = pipeline.config, folder / _OURS
    record = str(ours / "record.json")
    chosen: dict[str, Any] = {
        "tables": [digest_ for _, digest_ in found],
        "pairs": {k: getattr(config.pairs, k) for k in ("url_column", "text_column", "key_column", "captions")},
        "images": {k: getattr(config.fetch, k) for k in ("output_format", "resize_mode", "image_size")},
    }
    if config.fetch.linked_only:
        chosen["linked_only"] = {name: getattr(config, name).shown() for name in _LINKING}
    if files.exists(record):
        before = files.record(record, "remove the folder, and fetch again")
        if before["of"] != digest(chosen):
            raise FetchError(
                f"{folder} was filled from another table, or with other columns, format, size or linked_only: use "
                "another fetch.folder, or remove this one"
            )
        return Counter(before["counts"])
    if folder.is_dir() and (other := next((p.name for p in folder.iterdir() if p.name[0] not in "._"), None)):
        raise FetchError(f"{folder} (fetch.folder) holds other files ({other}): name an empty folder")
    with files.fresh_folder(ours) as fresh:
        (fresh / "tables").mkdir()
        linked = (lambda texts: _linked(pipeline, texts)) if config.fetch.linked_only else None
        counts = addresses.write([source for source, _ in found], config.pairs, fresh / "tables", linked)
        files.write_json(str(fresh / "record.json"), {"of": digest(chosen), "counts": dict(counts)})
    return counts


def _linked(pipeline: Pipeline, texts: Sequence[str]) -> set[str]:
    """Those of distinct texts that lead to an entity, by the stages up to link."""
    with as_unit(pipeline, list(enumerate(texts)), "candidates") as (run, unit):
        pairs, candidates = run.read("pairs", unit), run.read("candidates", unit)
        linked = pairs.select("row", "text_id").join(candidates.select("text_id"), "text_id", how="leftsemi")
        return {texts[row] for row in linked.select("row").toArrow()["row"].to_pylist()}


def _download(config: Config, folder: Path, python: str, limits: worker.Limits) -> None:
    """Run img2dataset over the prepared rows; what it says goes to _fetch/log.txt. Raises FetchFailed."""
    fetch, ours = config.fetch, folder / _OURS
    arguments = {
        "url_list": str(ours / "tables"),
        "input_format": "parquet",
        "url_col": addresses.URL,
        "caption_col": addresses.CAPTION,
        "save_additional_columns": [addresses.KEY],
        "output_folder": str(folder),
        "output_format": fetch.output_format,
        "resize_mode": fetch.resize_mode,
        "disable_all_reencoding": fetch.resize_mode == "no",
        "resize_only_if_bigger": fetch.resize_mode in ("keep_ratio", "keep_ratio_largest"),
        "image_size": fetch.image_size,
        "processes_count": fetch.processes or os.cpu_count() or 1,
        "thread_count": fetch.threads,
        "number_sample_per_shard": _ROWS_OF_A_SHARD,
        "extract_exif": False,
        "max_shard_retry": 1,
    }
    files.write_json(str(ours / "settings.json"), {"limits": worker.as_tree(limits), "arguments": arguments})
    driver = str(packaged("i2e_pipeline.commands.fetching") / "worker.py")
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}
    command = [python, "-I", driver, str(ours / "settings.json")]
    with (ours / "log.txt").open("a", encoding="utf-8") as said:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            for line in process.stdout or ():
                said.write(line)
                if line.startswith("total "):
                    log.info("fetch: %s", " ".join(line.split()[2:]))
            code = process.wait()
        finally:
            if process.poll() is None:  # interrupted: with it go the processes that it started
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code:
        raise FetchFailed(f"img2dataset ended with {code}: {_last_line(ours / 'log.txt')} ({ours / 'log.txt'})")


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def _results(folder: Path, wanted: int) -> Counter[str]:
    """Rows by what came of them. Raises FetchFailed where shards are not there."""
    results: Counter[str] = Counter()
    rows = 0
    for path in sorted(folder.glob("*_stats.json")):
        stats = files.read_json(str(path))
        rows += stats["count"]
        results.update(stats["status_dict"])
    if rows < wanted:
        missing = math.ceil((wanted - rows) / _ROWS_OF_A_SHARD)
        raise FetchFailed(
            f"{missing} shards ({wanted - rows:,} rows) could not be written; the same command tries them again. "
            f"{folder / _OURS / 'log.txt'} says why"
        )
    return results


def told(fetched: Fetched, say: Callable[[str], None]) -> None:
    """What came of it, and the settings by which a run reads it."""
    counts = fetched.counts
    left = [f"{counts[why]:,} {why}" for why in ("without an address", "without a text") if counts.get(why)]
    say(f"{counts['rows']:,} rows" + (f", left out {', '.join(left)}" if left else ""))
    if "asked" in counts:
        say(f"{counts.get('linked', 0):,} of {counts['asked']:,} texts lead to an entity; the others are not fetched")
    say(f"{fetched.images:,} of {counts.get('to fetch', 0):,} images fetched")
    for why, rows in Counter({w: n for w, n in fetched.results.items() if w != "success"}).most_common(20):
        say(f"  {rows:>9,}  {why}")
    key = f" pairs.key_column={addresses.KEY}" if counts.get("with a key") else ""
    say(f"a run reads them with --set pairs.path={fetched.folder} pairs.text_column={addresses.CAPTION}{key}")
