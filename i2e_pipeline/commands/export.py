"""`i2e export`: a copy of a published dataset in the form that another tool reads. No Spark.

Reads    the dataset's folder (dataset/published.py)
Writes   <folder>/i2e: shards, what stands beside them, and manifest.json, last

Beside the files lies a mark that says which dataset is exported, and how. An export that finds its own mark goes on
with the shards that are missing; another one begins anew. What counts of a plan stands in its names, so that a killed
export leaves whole shards and nothing else that is read.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from i2e_pipeline.core import digests, files
from i2e_pipeline.core.config import Config
from i2e_pipeline.dataset.published import open_published
from i2e_pipeline.export import hub
from i2e_pipeline.export.form import Form, Job
from i2e_pipeline.export.hugging_face import HuggingFace
from i2e_pipeline.export.open_clip import OpenClipCsv
from i2e_pipeline.export.parquet import Parquet
from i2e_pipeline.export.shards import SPLITS, ExportError, in_order
from i2e_pipeline.export.webdataset import WebDataset

__all__ = ["FORMS", "ExportError", "Exported", "add_arguments", "export", "push", "run"]

log = logging.getLogger(__name__)

FORMS: dict[str, type[Form]] = {form.name: form for form in (Parquet, WebDataset, OpenClipCsv, HuggingFace)}
_MARK, _MANIFEST = "_exported", "manifest.json"
_VERSION = 1
"""Of how shards are laid out: an export that another version began, begins anew."""
_REMOVES = 32
_FAR_THREADS = 16
_TOLD_EVERY = 30.0
"""Seconds."""


@dataclass(frozen=True)
class Exported:
    target: str
    images: int
    shards: int
    there: int
    """Shards that an earlier run of the same export had written."""


def export(
    dataset: str,
    folder: str,
    form: str = Parquet.name,
    splits: Sequence[str] = SPLITS,
    shard_mb: int | None = None,
    threads: int | None = None,
) -> Exported:
    """Write the dataset (<output>/i2e, or an export of it as Parquet) to `folder`/i2e.

    form       a key of FORMS
    splits     which of SPLITS
    shard_mb   size of a shard, in stored bytes; None: the form's own
    threads    shards that are written at once, each with a row group in memory; None: as many as there are cores, and
               more where bytes travel to or from a store

    Raises DatasetError where there is no whole dataset, ExportError where the folder is the dataset's own or holds an
    i2e that no export wrote.
    """
    target = files.join(folder, "i2e")
    if files.open_filesystem(target) == files.open_filesystem(dataset.rstrip("/")):
        raise ExportError(f"--to {folder} is the output itself: name another folder")
    kind = FORMS[form]
    if shard_mb is not None and not kind.shard_mb:
        raise ExportError(f"--shard-mb: {form} has the dataset's own files; leave the option out")
    published = open_published(dataset)
    told = files.read_bytes(files.join(dataset, _MANIFEST))
    job = Job(published, target, in_order(splits), (shard_mb or kind.shard_mb) << 20)
    made = kind(job)
    shards = made.shards
    if not shards:
        raise ExportError(f"{dataset} holds no image of {', '.join(job.splits)}: name other splits")
    there = _begun(target, _identity(job, form))
    foreign = [path for path in there if path not in (_MARK, _MANIFEST) and not made.belongs(path)]
    whole = _MANIFEST in there
    to_do = [shard for shard in shards if not made.is_done(shard, there, whole)]
    manifest = made.manifest(published.manifest)
    content = told if manifest == published.manifest else files.as_json(manifest)
    if whole and (to_do or content != files.read_bytes(job.path(_MANIFEST))):
        files.remove(job.path(_MANIFEST))
    _remove(target, foreign)
    _write(made, to_do, threads or _threads(dataset, target), len(shards))
    made.finish()
    if files.read_bytes(files.join(dataset, _MANIFEST)) != told:
        raise ExportError(f"{dataset} was published again while it was exported: export it again")
    if by_path := made.digests(content):
        files.write_bytes(job.path(digests.LIST), digests.listing(by_path))
    files.write_bytes(job.path(_MANIFEST), content)
    _remove(target, made.left())
    return Exported(target, made.images, len(shards), len(shards) - len(to_do))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", required=True, type=files.at_home, metavar="FOLDER", help="what is there of another "
                        "export is replaced")  # fmt: skip
    parser.add_argument(
        "--format", choices=FORMS, default=Parquet.name, help="default parquet: plain files, for readers without Delta"
    )
    parser.add_argument("--split", nargs="+", choices=SPLITS, default=SPLITS, help="these alone (default: all)")
    defaults = ", ".join(f"{name} {form.shard_mb}" for name, form in FORMS.items() if form.shard_mb)
    parser.add_argument("--shard-mb", type=_positive, metavar="N", help=f"size of a shard (default: {defaults})")
    parser.add_argument(
        "--threads", type=_positive, metavar="N", help="shards written at once, with a row group each in memory"
    )
    parser.add_argument("--push-to-hub", metavar="ORG/NAME", help="then upload it (--format hf)")
    parser.add_argument(
        "--private", action="store_true", help="where the Hub has no such repository: make a private one"
    )


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def run(options: argparse.Namespace, config: Config) -> str:
    """What the command was asked for; returns what was done, in a line."""
    if options.push_to_hub is not None:
        if options.format != HuggingFace.name:
            raise ExportError(f"--push-to-hub goes with --format {HuggingFace.name}, not {options.format}")
        hub.ready(options.push_to_hub, options.to)
    done = export(
        files.join(config.output, "i2e"), options.to, options.format, options.split, options.shard_mb, options.threads
    )
    told = f"{done.images:,} images exported to {done.target}"
    if options.push_to_hub is not None:
        told += f", and to {push(done, options.push_to_hub, options.private)}"
    return told


def push(exported: Exported, repo: str, private: bool = False) -> str:
    """Upload an export in Hugging Face's layout. Returns the address of the repository. Raises HubError."""
    message = f"I2E: {exported.images:,} images"
    return hub.push(hub.ready(repo, exported.target), exported.target, repo, private, message, (_MARK,))


def _identity(job: Job, form: str) -> dict[str, Any]:
    """What decides the content of every shard."""
    return {
        "version": _VERSION,
        "dataset": job.published.fingerprint,
        "format": form,
        "splits": list(job.splits),
        "shard_bytes": job.shard_bytes,
    }


def _begun(target: str, identity: dict[str, Any]) -> dict[str, int]:
    """Sizes by path of what this same export has left in the folder. What another one left is removed.

    Raises ExportError for a folder that no export wrote.
    """
    mark = files.join(target, _MARK)
    if files.exists(target) and not files.exists(mark):
        raise ExportError(f"{target} is there and no export wrote it: remove it, or name another folder")
    there = {info.path: info.size for info in files.list_files(target)}
    if _MARK in there and files.read_bytes(mark) == files.as_json(identity):
        return there
    # The mark comes first and goes last: a kill in between leaves a folder that the next export knows as its own.
    files.write_bytes(mark, b"")
    files.remove(files.join(target, _MANIFEST))
    for name in sorted({path.partition("/")[0] for path in there} - {_MARK}):
        files.remove(files.join(target, name))
    files.write_bytes(mark, files.as_json(identity))
    return {}


def _remove(target: str, paths: Sequence[str]) -> None:
    with ThreadPoolExecutor(_REMOVES) as pool:
        list(pool.map(lambda path: files.remove(files.join(target, path)), paths))


def _threads(*places: str) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if all(map(files.is_local, places)) else max(cores, _FAR_THREADS)


def _write(form: Form, shards: Sequence[Any], threads: int, of: int) -> None:
    """Write these shards. After an error no other is begun."""
    if len(shards) < of:
        log.info(f"{of - len(shards):,} of {of:,} shards are there")
    with ThreadPoolExecutor(threads, thread_name_prefix="shard") as pool:
        waiting = {pool.submit(form.write, shard) for shard in shards}
        told = time.monotonic()
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=_TOLD_EVERY, return_when=FIRST_EXCEPTION)
                for one in done:
                    one.result()
                if time.monotonic() - told >= _TOLD_EVERY:
                    told = time.monotonic()
                    log.info(f"{of - len(waiting):,} of {of:,} shards")
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
