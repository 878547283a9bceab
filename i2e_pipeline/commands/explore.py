"""`i2e explore`: a published dataset in a browser, with the whole story of each image where its run lies beside it.

Reads    a dataset, and the tables of the run in whose output it lies
Writes   the index (explore/index.py), and the marks that a reader makes
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import webbrowser
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.commands import explain
from i2e_pipeline.core import files
from i2e_pipeline.core.config import Config
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.schemas import ID
from i2e_pipeline.core.secrets import hide
from i2e_pipeline.core.stored_image import NoImage
from i2e_pipeline.dataset.place import Place
from i2e_pipeline.dataset.published import manifest_of
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.engine.stage import Run
from i2e_pipeline.engine.tables import Commit
from i2e_pipeline.explore.app import Explored, app
from i2e_pipeline.explore.index import FOLDER, Limits, Weighed, name_of, open_index, threshold_of
from i2e_pipeline.explore.marking import Marking
from i2e_pipeline.explore.pictures import Pictures
from i2e_pipeline.explore.queries import Queries
from i2e_pipeline.explore.similar import Similar, vectors_of
from i2e_pipeline.explore.story import Stories, Told
from i2e_pipeline.images import encoder
from i2e_pipeline.inputs import formats, marks
from i2e_pipeline.report import quality

log = logging.getLogger(__name__)

_WEIGHED = ["image_id", "pair_id", "entity_id", "probability", "mention", "reason", "shard", "row"]


def explored(
    place: Place,
    pipeline: Pipeline | None,
    marked: str | None = None,
    index: str | None = None,
    limits: Limits | None = None,
) -> Explored:
    """What the app shows. Builds the index where there is none.

    pipeline   of the run beside the dataset; None: there is none
    marked     the file that marks go to; None: beside the run's tables, or in the working folder
    index      the folder of the index; None: in the output, or in the reader's cache
    """
    manifest = manifest_of(place.dataset)
    run = explain.opened(pipeline) if pipeline is not None else None
    folder = Path(index) if index else _index_folder(place)
    limits = limits or Limits()
    weighed = _weighed(run, manifest) if run is not None else None
    made = open_index(place.dataset, manifest, folder, limits, weighed, own=index is None)
    queries = Queries(made)
    path = marked or files.join(place.output if place.output and files.is_local(place.output) else ".", marks.FILE)
    stories = Stories(manifest)
    if run is not None:
        stories = Stories(manifest, _told(run, manifest), quality.read_judged(run.tables))
    similar = Similar()
    if run is not None:
        similar = _similar(run, queries, folder / f"{name_of(place.dataset, manifest, True)}.similar")
    return Explored(
        name=hide(place.dataset),
        manifest=manifest,
        queries=queries,
        pictures=Pictures(place.dataset),
        stories=stories,
        similar=similar,
        marking=Marking(queries, path, threshold_of(manifest), os.environ.get("USER")),
    )


def serve(of: Explored, port: int, open_page: bool) -> None:
    """Answer on this machine until somebody ends the process."""
    import socket

    import uvicorn

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(("127.0.0.1", port))
        except OSError as error:
            raise I2EError(f"port {port} cannot be had ({error}): --port 0 takes a free one") from None
        bound.listen(128)  # who reads the address below may ask at once
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/"
        print(f"{url}  ({of.queries.facts['images']:,} images; Ctrl-C ends)", flush=True)
        if open_page:
            threading.Timer(0.5, webbrowser.open, [url]).start()
        server = uvicorn.Server(uvicorn.Config(app(of), log_level="warning", access_log=False, lifespan="off"))
        with suppress(KeyboardInterrupt):  # that is how it is ended
            server.run(sockets=[bound])


def _index_folder(place: Place) -> Path:
    """In the output, where it can be written: there `i2e clean` finds it. Else in the reader's cache."""
    if place.output is not None and files.is_local(place.output):
        inside = Path(place.output.removeprefix("file://")) / FOLDER
        if os.access(inside if inside.exists() else inside.parent, os.W_OK):
            return inside
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "i2e" / "explore"
    # A folder by itself for each place: building removes what lies there of earlier datasets.
    return cache / hashlib.blake2b(place.dataset.encode(), digest_size=8).hexdigest()


# --- what a run knows -------------------------------------------------------------------------------------------------


def _of_units(run: Run, table: str, manifest: Mapping[str, Any]) -> Iterator[tuple[str, Commit]]:
    """Commits of the published units."""
    made = run.commits[run.writer(table).name]
    yield from ((unit, commit) for unit, commit in sorted(made.items()) if unit in manifest["units"])


def _weighed(run: Run, manifest: Mapping[str, Any]) -> Weighed:
    return [
        (unit, partial(run.tables.batches, "labels", [commit], _WEIGHED))
        for unit, commit in _of_units(run, "labels", manifest)
    ]


def _told(run: Run, manifest: Mapping[str, Any]) -> Told:
    asked = _Asked(run)

    def rejects(stage: str, reason: str) -> Iterator[tuple[str, int, Callable[[int, int], list[dict[str, Any]]]]]:
        for unit, commit in sorted(run.commits.get(stage, {}).items()):
            if count := commit.rejected.get(reason, 0):
                yield unit, count, partial(asked.rejected, commit, unit, reason)

    return Told(
        explain=partial(explain.explained_in, run),
        rejects=rejects,
        sentences=run.tables.catalogue.explain,
        does={stage.name: stage.does for stage in run.stages},
        text=asked.text,
        stored=asked.stored,
    )


class _Asked:
    """Rows of a run's tables, a few at a time."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def rejected(self, commit: Commit, unit: str, reason: str, offset: int, most: int) -> list[dict[str, Any]]:
        """Rejected rows of a unit with what the run knows of them: id, detail, shard, row, text, pair_id, url and,
        of a mention, surface_at (start, end)."""
        found = self._run.tables.where("rejects", [commit], pc.field("reason") == reason, most=offset + most)
        rows = found.slice(offset, most).to_pylist()
        ids = [row["id"] for row in rows if row["id"] is not None]
        pairs = self._by("pairs", "pair_id", ids, unit, ["pair_id", "text_id", "url"])
        texts = self._by("texts", "text_id", [*ids, *(p["text_id"] for p in pairs.values())], unit, ["text_id", "text"])
        told = []
        for row in rows:
            pair = pairs.get(row["id"])
            text = texts.get(pair["text_id"] if pair else row["id"])
            spans = row["start"] is not None and row["end"] is not None
            told.append(
                {
                    **{name: row[name] for name in ("detail", "shard", "row")},
                    "id": row["id"] and row["id"].hex(),
                    "pair_id": row["id"].hex() if pair or (row["id"] and row["row"] is not None) else None,
                    "url": pair and pair["url"] and hide(pair["url"]),
                    "text": text and text["text"],
                    "surface_at": {"start": row["start"], "end": row["end"]} if text and spans else None,
                }
            )
        return told

    def text(self, row: Mapping[str, Any]) -> str | None:
        pairs = self._by("pairs", "pair_id", [bytes.fromhex(row["pair_id"])], row["unit"], ["pair_id", "text_id"])
        ids = [p["text_id"] for p in pairs.values()]
        texts = self._by("texts", "text_id", ids, row["unit"], ["text_id", "text"])
        return next((t["text"] for t in texts.values()), None)

    def stored(self, row: Mapping[str, Any]) -> bytes | None:
        """The image of a row of the input, where it still lies there."""
        try:
            shard = self._run.shards([row["unit"]])[row["shard"]]
            with formats.images(shard) as images:
                found = next(iter(images.read([row["row"]])), None)
        except (KeyError, OSError, I2EError, pa.ArrowException) as error:
            log.warning("the image of row %s of %s cannot be read: %s", row["row"], row["unit"], hide(str(error)))
            return None
        return None if found is None or isinstance(found, NoImage) else bytes(found)

    def _by(self, table: str, key: str, ids: list[bytes], unit: str, columns: list[str]) -> dict[bytes, dict[str, Any]]:
        commit = self._run.commits[self._run.writer(table).name].get(unit)
        if commit is None or not ids:
            return {}
        wanted = pc.field(key).isin(pa.array(ids, ID))
        return {row[key]: row for row in self._run.tables.where(table, [commit], wanted, columns).to_pylist()}


# --- vectors ----------------------------------------------------------------------------------------------------------


def _similar(run: Run, queries: Queries, place: Path) -> Similar:
    commits = [c for c in run.commits[run.writer("image_vectors").name].values() if c.rows("image_vectors")]
    if not commits:
        return Similar()

    def batches() -> Iterator[tuple[list[str], np.ndarray]]:
        for commit in commits:
            published = np.sort(np.array(queries.ids_of_unit(commit.unit), dtype="S32"))
            for batch in run.tables.batches("image_vectors", [commit], ["image_id", "vector"]):
                table = pa.Table.from_batches([batch])
                ids = np.array([i.hex() for i in table["image_id"].to_pylist()], dtype="S32")
                here = np.isin(ids, published)
                if here.any():
                    yield [i.decode() for i in ids[here]], vectors_of(table.filter(pa.array(here)))

    return Similar(batches, queries.facts["images"], partial(_vector_of_text, run.config), place)


def _vector_of_text(config: Config, text: str) -> np.ndarray:
    """The vector of a text by the run's scoring model, which is loaded when it is first asked for."""
    vector: np.ndarray = encoder.load_once(config.score, device="cpu").texts([text])[0]
    return vector
