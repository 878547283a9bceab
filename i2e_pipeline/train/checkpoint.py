"""Checkpoints: everything that a training needs to go on, or to be read by another program.

Writes  <train folder>/checkpoints/step-00001234/
            towers.safetensors                 the encoder's state dict by name, float32
            ema.safetensors                    its running mean, where one is kept
            optimizer.safetensors              AdamW's moments as <parameter>/exp_avg, <parameter>/exp_avg_sq
                                               each of these where it is large as NAME-00000-of-00004.safetensors: some
                                               of the tensors, written by one rank
            head-00000-of-00004.safetensors    rows of the entity head, one file per rank that wrote
            state.json                         step, position, config, dataset, sizes and digests of all these files,
                                               and a digest of itself
        <train folder>/checkpoints/best.json   which step was best on what is held out

No pickle: safetensors cannot run code, and other languages read it. All ranks write into one hidden folder; state.json
comes last, then one rename makes the checkpoint. So a folder under its own name is whole, and a kill at any moment
leaves the checkpoints before it as they were. A store has no renames: there each rank brings its files as they are
written, and a folder is whole once it has a state.json. Who reads it fetches it to the machine first (away.py).

Rows of the head carry entity ids, for class indices are only an order: a dataset that was built again may number its
entities otherwise, and have new ones. Any number of ranks reads any number of parts.

Legend: C classes, D width.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from i2e_pipeline.core import digests, files
from i2e_pipeline.core.config import digest
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.version import __version__
from i2e_pipeline.train import away
from i2e_pipeline.train.parallel import World

Place = Path | str
"""A local folder, or a URI of a folder in a store."""
FORMAT_VERSION = 1
_STATE = "state.json"
_FILE = re.compile(r"\w[\w.-]{0,99}")
"""Names of a checkpoint's files, which may be somebody else's."""
_NUMBERED = re.compile(r"(\w+)(?:-(\d{5})-of-(\d{5}))?\.safetensors")
_CHECKPOINT = re.compile(r"step-\d+")
_BEST = "best.json"
_ROWS_AT_ONCE = 65_536
_ADDED_LATER = ("text_trained", "reinforced")
"""What state.json of older checkpoints does not say."""
_OWN = "digest"
"""Of state.json itself, among what it says; older checkpoints do not have it."""

log = logging.getLogger(__name__)


class CheckpointError(I2EError, ValueError):
    """A checkpoint cannot be written, or cannot be read, or does not fit."""


@dataclass(frozen=True)
class HeadRows:
    """Rows of the entity head."""

    class_C: Tensor
    """int64, class indices"""
    entity_C: Tensor
    """int64, the entity of each"""
    weights_CD: Tensor
    accumulators_C: Tensor


@dataclass(frozen=True)
class Part:
    """Tensors of the towers, their mean or the optimizer that one rank writes."""

    tensors: Mapping[str, Tensor]
    number: int = 0
    of: int = 1

    def file(self, kind: str) -> str:
        return f"{kind}.safetensors" if self.of == 1 else _part(kind, self.number, self.of)


@dataclass(frozen=True)
class _Written:
    bytes: int
    digest: str


@dataclass(frozen=True)
class State:
    """What state.json says of a training."""

    step: int
    """Optimiser steps done."""
    position: int
    """Samples consumed by all ranks together."""
    width: int
    """Of the vectors that towers and head share."""
    recipe: str
    config: dict[str, Any]
    """The config tree that the training runs with."""
    dataset: str
    """Fingerprint of the dataset."""
    best: float | None = None
    """Best figure so far on what is held out."""
    counts: dict[str, int] = field(default_factory=dict)
    """Whatever is counted over the whole training: images skipped, …"""
    text_trained: bool | None = None
    """Whether the text tower has trained weights, of this training or of what it began with. None: not said."""
    reinforced: str | None = None
    """Fingerprint of the teachers, augmentations and captions of the reinforced tables; None: none are read."""


class Save:
    """A checkpoint that is being written below <folder>/checkpoints, by a thread of each rank. All ranks make it, and
    all of them finish it.

    A checkpoint of this step that is there already stays as it is: to begin anew in a used folder, call `drop_beyond`
    first. What an earlier save left unfinished is removed, so a folder is for one training at a time.
    """

    def __init__(
        self,
        folder: str | Path,
        state: State,
        world: World,
        *,
        towers: Part | None,
        ema: Part | None = None,
        optimizer: Part | None = None,
        head: HeadRows | None = None,
        copies: bool = False,
        spool: Path | None = None,
    ) -> None:
        """folder   local, or a URI
        towers, ema, optimizer   whole tensors by name that this rank writes and nobody changes (strategy.py gathers
                                 copies); None where others write them all
        head                     the rows that this rank holds; None where the recipe has no head
        copies                   what is written of the head is what it holds now, though it changes meanwhile
        spool                    local folder where files lie until they are in the store, for a URI
        """
        self.state, self._world = state, world
        self._target = _place(folder, state.step)
        """Of the checkpoint; a URI is a string."""
        root = (spool or _local(folder)) / "checkpoints"
        started = (_is_whole(self._target), uuid.uuid4().hex[:12]) if world.first else None
        self._there, token = world.gather_objects(started)[0]
        self._wrote: dict[str, _Written] = {}
        self._problem: str | None = None
        self._rows = 0 if head is None else len(head.class_C)
        self._writing: threading.Thread | None = None
        self._abandoned, self._uploads = threading.Event(), threading.Event()
        if self._there:
            return
        self._fresh = root / f".{name(state.step)}.tmp-{token}"
        if spool is not None and isinstance(self._target, str):
            for entry in root.glob(".step-*.tmp-*"):  # of this machine; several ranks of it may be at it
                shutil.rmtree(entry, ignore_errors=True)
        if world.first:
            sweep(folder)
            assert towers is not None, "rank 0 brings the first part of the towers"
        world.barrier()  # nobody writes before the sweep is over
        parts: dict[str, Mapping[str, Tensor]] = {}
        if head is not None:
            rows = {name: _copy(x) for name, x in vars(head).items()} if copies else vars(head)
            parts[_part("head", world.rank, world.size)] = rows
        named = {"towers": towers, "ema": ema, "optimizer": optimizer}
        parts |= {part.file(kind): part.tensors for kind, part in named.items() if part is not None}
        # A process that is to end at once does not wait for a store that takes its time, or does not answer.
        self._writing = threading.Thread(target=self._write, args=(parts,), name="checkpoint", daemon=True)
        self._writing.start()

    @property
    def written(self) -> bool:
        """Whether this rank has nothing more to write."""
        return self._writing is None or not self._writing.is_alive()

    def wait(self) -> None:
        """Until this rank has nothing more to write."""
        if self._writing is not None:
            self._writing.join()

    def abandon(self, at_once: bool = False) -> None:
        """Instead of `finish`: until this rank writes no more, which is when the file is whole that it is at.

        at_once   the process ends: what is on its way to a store is not waited for. A store shows no part of a file,
                  and without state.json, which comes last, nothing there is read as a checkpoint
        """
        self._abandoned.set()
        if not at_once:
            self.wait()
        while self._writing is not None and self._writing.is_alive() and not self._uploads.is_set():
            self._writing.join(0.05)

    def finish(self) -> Place:
        """The checkpoint, once it is whole. Raises CheckpointError, on every rank, when one of them could not write."""
        world, target = self._world, self._target
        if self._there:
            return target
        try:
            self.wait()
        except BaseException:  # a second Ctrl-C
            self._abandoned.set()
            raise
        told = world.gather_objects((self._wrote, self._problem, self._rows))
        problems = [p for _, p, _ in told if p]
        if not problems and world.first:
            made = {file: one for part, _, _ in told for file, one in part.items()}
            tree = _tree(self.state, made, classes=sum(rows for *_, rows in told))
            problems = _finish(self._fresh, target, tree)
        problems = world.gather_objects(problems)[0]
        if problems or isinstance(target, str):
            for file in self._wrote:  # each machine has its own
                (self._fresh / file).unlink(missing_ok=True)
            world.barrier()
            shutil.rmtree(self._fresh, ignore_errors=True)
        if problems:
            raise CheckpointError(f"{target} could not be saved: {'; '.join(problems)}")
        return target

    def _write(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        try:
            self._fresh.mkdir(parents=True, exist_ok=True)
            for file, tensors in parts.items():
                if self._abandoned.is_set():
                    return
                whole = _floats(tensors) if file.startswith(("towers", "ema")) else tensors
                _write(self._fresh / file, whole, self._wrote)
                if isinstance(self._target, str) and not self._abandoned.is_set():
                    self._uploads.set()
                    away.bring_one(str(self._fresh), self._target, file)
                    self._uploads.clear()
        except OSError as error:
            self._problem = f"rank {self._world.rank}: {error}"
        except SafetensorError as error:
            self._problem = f"rank {self._world.rank}: writing to {self._fresh}: {error}"
        except Exception as error:  # in a thread nobody else would hear of it
            self._problem = f"rank {self._world.rank}: {error!r}"


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _tree(state: State, made: Mapping[str, _Written], classes: int) -> dict[str, Any]:
    """What state.json says."""
    versions = {"i2e_pipeline": __version__, "torch": torch.__version__}
    sizes = {file: one.bytes for file, one in made.items()}
    tree = {"format_version": FORMAT_VERSION, **asdict(state), "classes": classes, "versions": versions, "files": sizes}
    tree["digests"] = {file: one.digest for file, one in made.items()}
    return {**tree, _OWN: _own_digest(tree)}


def _own_digest(tree: Mapping[str, Any]) -> str:
    """Of all that state.json says but this."""
    return digest({name: value for name, value in tree.items() if name != _OWN})


def _finish(fresh: Path, target: Place, tree: Mapping[str, Any]) -> list[str]:
    """Rank 0's last act: see that all parts lie there, then state.json, then the name."""
    sizes: Mapping[str, int] = tree["files"]
    try:
        if isinstance(target, str):
            there = {info.path: info.size for info in files.list_files(target)}
            if lost := [f for f, size in sizes.items() if there.get(f) != size]:
                return [f"the store does not have {', '.join(lost)} as it was written"]
            files.write_json(files.join(target, _STATE), tree)
            return []
        unseen = [f for f, size in sizes.items() if not (fresh / f).is_file() or (fresh / f).stat().st_size != size]
        if unseen:
            return [
                f"rank 0 does not see {', '.join(unseen)} as another rank wrote it: train.folder must lie on a file "
                "system that all ranks share, or in a store (a URI)"
            ]
        if target.exists():
            return [f"{target.name} is there without its {_STATE}: remove it"]
        files.write_json(str(fresh / _STATE), tree)
        files.put_in_place(fresh, target)
    except OSError as error:
        return [f"rank 0: {error}"]
    return []


def _place(folder: str | Path, step: int) -> Place:
    """Of a step's checkpoint."""
    place = _below(folder, name(step))
    return Path(place) if files.is_local(place) else place


def _is_whole(place: Place) -> bool:
    return files.exists(files.join(str(place), _STATE))


def name(step: int) -> str:
    return f"step-{step:08d}"


def steps(folder: str | Path) -> list[int]:
    """Steps that have a whole checkpoint, rising."""
    return sorted(step for step, whole in _named(folder) if whole)


def latest(folder: str | Path) -> Place | None:
    """The newest whole checkpoint of a train folder, or None; warns of what it passes over."""
    for entry in _unfinished(folder):
        log.warning(f"{entry}: this save was cut off, so it is not read; the next save removes it")
    for step, whole in sorted(_named(folder), reverse=True):
        if whole:
            return _place(folder, step)
        if files.is_local(str(folder)):
            log.warning(f"{_place(folder, step)}: passed over, it has no {_STATE} and is not whole; it can be removed")
    return None


def find(folder: str | Path, which: str = "latest") -> Place:
    """The whole checkpoint of a step, the best or the latest one. Raises CheckpointError, which names those there are.

    which   a number, "best" or "latest"
    """
    if files.is_local(str(folder)) and not (here := _local(folder)).is_dir():
        what = "is no folder" if os.path.lexists(here) else "does not exist"
        raise CheckpointError(
            f"{folder} {what}: name the folder of a training (train.folder)" + _with_slash(folder, which)
        )
    there = steps(folder)
    marked = best(folder) if which == "best" else None
    step = int(which) if which.isdecimal() else there[-1] if there and which == "latest" else marked and marked[0]
    if step not in there:
        are = f"those of steps {', '.join(f'{s:,}' for s in there)}" if there else "none"
        raise CheckpointError(f"{folder} has no checkpoint {which!r}: it has {are}")
    assert step is not None
    return _place(folder, step)


def _with_slash(folder: str | Path, which: str) -> str:
    """How a folder FOLDER@WHICH is named, where there is one."""
    whole = f"{folder}@{which}"
    return f". The folder {whole} is named with a / behind it: {whole}/" if steps(whole) else ""


def sweep(folder: str | Path) -> None:
    """Removes what killed saves left behind. Not while another process saves here."""
    for entry in _unfinished(folder):
        log.warning(f"{entry}: left over from a save that was cut off; removed")
        files.remove(entry)


def drop_beyond(folder: str | Path, step: int) -> list[int]:
    """Removes the checkpoints beyond a step, and the mark of the best one if it is among them; returns their steps. For
    a training that goes on from that step (−1: that begins anew). Rank 0 alone calls it."""
    marked = best(folder)
    if marked is not None and marked[0] > step:
        files.remove(_below(folder, _BEST))
    gone = [s for s in steps(folder) if s > step]
    _remove(folder, gone)
    return gone


def mark_best(folder: str | Path, step: int, figure: float) -> None:
    """Names the checkpoint that `prune` never removes."""
    files.write_json(_below(folder, _BEST), {"step": step, "figure": figure})


def best(folder: str | Path) -> tuple[int, float] | None:
    """Step and figure of the best checkpoint; None where none was marked."""
    path = _below(folder, _BEST)
    if not files.exists(path):
        return None
    try:
        tree = json.loads(files.read_bytes(path))
        return int(tree["step"]), float(tree["figure"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r}): remove it; the next best one writes it") from None


def prune(folder: str | Path, keep: int) -> list[int]:
    """Removes all checkpoints but the `keep` newest and the best; returns their steps. Rank 0 alone calls it."""
    marked = best(folder)
    gone = [step for step in steps(folder)[:-keep] if marked is None or step != marked[0]]
    _remove(folder, gone)
    return gone


def _remove(folder: str | Path, gone: list[int]) -> None:
    """First what makes it whole, so that a kill in the middle does not leave half a checkpoint that looks whole."""
    for step in gone:
        place = _place(folder, step)
        if isinstance(place, str):
            files.remove(files.join(place, _STATE))
            files.remove(place)
            continue
        doomed = place.parent / f".{place.name}.tmp-{uuid.uuid4().hex[:12]}"
        os.rename(place, doomed)
        shutil.rmtree(doomed)


@dataclass(frozen=True)
class ClassChange:
    """How the entities of a dataset differ from those that a checkpoint was trained on."""

    kept: int
    renumbered: int
    """Of the kept ones."""
    new: int
    """Their rows start as they would in a fresh head."""
    gone: int
    """Their rows are not loaded."""

    def __bool__(self) -> bool:
        return bool(self.renumbered or self.new or self.gone)

    def __str__(self) -> str:
        return (
            f"entity head: {self.kept:,} classes from the checkpoint ({self.renumbered:,} under another index), "
            f"{self.new:,} new ones start fresh, {self.gone:,} are not in this dataset and were left out"
        )


class Checkpoint:
    """A checkpoint that was found whole. Tensors are views of its files: what is copied of one is read, and no more."""

    def __init__(self, folder: Path, state: State, classes: int, sizes: dict[str, int]) -> None:
        self.folder, self.state, self.classes = folder, state, classes
        self._open = {file: _Tensors(folder / file) for file in sizes if file.endswith(".safetensors")}

    @property
    def towers(self) -> Mapping[str, Tensor]:
        return _Whole(self._of("towers"))

    @property
    def ema(self) -> Mapping[str, Tensor] | None:
        found = self._of("ema")
        return _Whole(found) if found else None

    @property
    def weights(self) -> dict[str, Tensor]:
        """What evaluation and export use: the mean where one was kept, else the towers as they are."""
        return {**self.towers, **(self.ema or {})}

    @property
    def optimizer(self) -> Mapping[str, Tensor] | None:
        found = self._of("optimizer")
        return _Whole(found) if found else None

    def class_change(self, entity_C: Tensor) -> ClassChange:
        """What becomes of the head's rows on a dataset whose entities, by class index, are these."""
        kept = renumbered = 0
        find = _finder(entity_C)
        for part in self._parts():
            found = find(part["entity_C"])
            kept += int((found >= 0).sum())
            renumbered += int(((found >= 0) & (found != part["class_C"])).sum())
        return ClassChange(kept, renumbered, len(entity_C) - kept, self.classes - kept)

    def head_rows(
        self, entity_C: Tensor, width: int, wanted: Callable[[Tensor], Tensor] | None = None
    ) -> Iterator[HeadRows]:
        """Rows of the head under the class indices of a dataset, some ten thousand at a time.

        entity_C  entity id of each class index of the dataset
        width     of the towers; a checkpoint of another width is refused
        wanted    class indices → which of them this rank holds (bool); None: all
        """
        self.check_width(width)
        find = _finder(entity_C)
        for part in self._parts():
            class_C, old_entity_C = find(part["entity_C"]), part["entity_C"]
            for start in range(0, len(class_C), _ROWS_AT_ONCE):
                rows = slice(start, start + _ROWS_AT_ONCE)
                take = class_C[rows] >= 0
                if wanted is not None:
                    take = take & wanted(class_C[rows])
                if take.any():
                    yield HeadRows(
                        class_C[rows][take],
                        old_entity_C[rows][take],
                        part.rows("weights_CD", rows)[take],
                        part.rows("accumulators_C", rows)[take],
                    )

    def classes_by_entity(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(entity ids, class vectors) of the head, some ten thousand at a time, in the order of its files. Raises
        CheckpointError where it has none."""
        if not self._parts():
            raise CheckpointError(
                f"{self.folder} has no entity head: it is of a recipe without one (train.recipe=contrastive, alt_text)"
            )
        for part in self._parts():
            entity_C = part["entity_C"]
            for start in range(0, len(entity_C), _ROWS_AT_ONCE):
                rows = slice(start, start + _ROWS_AT_ONCE)
                yield entity_C[rows], part.rows("weights_CD", rows)

    def check_width(self, width: int) -> None:
        if width != self.state.width:
            raise CheckpointError(
                f"{self.folder} has vectors of {self.state.width} numbers and the towers make {width}: use the encoder "
                "that it was trained with (train.encoder), or another train.folder"
            )

    def _of(self, kind: str) -> list[_Tensors]:
        """The files of a kind, whole or in parts."""
        return [tensors for file, tensors in sorted(self._open.items()) if re.match(rf"{kind}[.-]", file)]

    def _parts(self) -> list[_Tensors]:
        found = self._of("head")
        for part in found:
            if lacking := [name for name in ("entity_C", "weights_CD", "accumulators_C") if name not in part]:
                raise _damaged(part.path, f"it lacks {', '.join(lacking)}")
        return found


def load(path: Place, world: World | None = None) -> Checkpoint:
    """The checkpoint in a folder; CheckpointError where it is not whole, of a newer format, or damaged. One in a store
    is fetched to this machine first.

    world   ranks that all call it: those who see the same copy share its files out to compare their content, and an
            error of one is raised on all. None: this process reads all

    Sizes and contents of the files are compared with state.json, and that with its own digest (one that was written
    before there were digests has sizes alone); tensors are read later.
    """
    world = world or World()
    here, ranks = _local(path), list(range(world.size))
    if not files.is_local(str(path)):
        here, ranks = away.fetched(str(path), _STATE, world)
    found: Checkpoint = world.on_each(lambda: _load(here, ranks.index(world.rank), len(ranks)))
    return found


def _load(folder: Path, reader: int, readers: int) -> Checkpoint:
    if not (folder / _STATE).is_file():
        raise CheckpointError(f"{folder} is no whole checkpoint: it has no {_STATE}")
    try:
        tree = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        version = tree["format_version"]
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{folder} has format {version}, and this version of i2e_pipeline reads {FORMAT_VERSION}: "
                f"it was written by i2e_pipeline {tree.get('versions', {}).get('i2e_pipeline', '?')}"
            )
        sizes, classes = dict(tree["files"]), int(tree["classes"])
        if odd := [name for name, size in sizes.items() if not _FILE.fullmatch(name) or type(size) is not int]:
            raise ValueError(f"files: {odd[0]}: {sizes[odd[0]]!r}")
        written = dict(tree.get("digests", {}))
        _check_parts(sizes)
        known = {**dict.fromkeys(_ADDED_LATER), **tree}
        state = State(**{f.name: known[f.name] for f in fields(State)})
        if _CHECKPOINT.fullmatch(folder.name) and folder.name != name(state.step):
            raise _damaged(folder / _STATE, f"it is of step {state.step}")
        if tree.get(_OWN) not in (None, _own_digest(tree)):
            raise _damaged(folder / _STATE, "its content is not what was written")
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(folder / _STATE, repr(error)) from None
    for file, size in sizes.items():
        found = (folder / file).stat().st_size if (folder / file).is_file() else None
        if found != size:
            is_now = "is missing" if found is None else f"has {found:,} bytes"
            raise _damaged(folder / file, f"{is_now}, {size:,} were written")
    for file in sorted(sizes.keys() & written.keys())[reader::readers]:
        if digests.of_readable(str(folder / file)) != written[file]:
            raise _damaged(folder / file, "its content is not what was written")
    return Checkpoint(folder, state, classes, sizes)


def _check_parts(names: Iterable[str]) -> None:
    """Raises KeyError where a part of the towers, their mean or the optimizer is missing."""
    seen: dict[str, set[tuple[int, int]]] = {"towers": set(), "ema": set(), "optimizer": set()}
    for file in names:
        if (found := _NUMBERED.fullmatch(file)) and found[1] in seen:
            seen[found[1]].add((int(found[2] or 0), int(found[3] or 1)))
    for kind, parts in seen.items():
        of = {count for _, count in parts}
        if len(of) > 1 or parts != {(number, count) for count in of for number in range(count)}:
            raise KeyError(f"parts of {kind}: {', '.join(f'{number} of {count}' for number, count in sorted(parts))}")
    if not seen["towers"]:
        raise KeyError("towers.safetensors")


class _Whole(Mapping[str, Tensor]):
    """Tensors of several files."""

    def __init__(self, parts: Sequence[_Tensors]) -> None:
        self._of = {name: part for part in parts for name in part}

    def __getitem__(self, key: str) -> Tensor:
        return self._of[key][key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)


class _Tensors(Mapping[str, Tensor]):
    """Tensors of a safetensors file, which is mapped: bytes of a tensor that nobody looks at are not read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(str(path), framework="pt")
        except SafetensorError as error:
            raise _damaged(path, str(error)) from None
        self._names = list(self._file.keys())

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._names:
            raise KeyError(key)
        return self._file.get_tensor(key)

    def rows(self, key: str, which: slice) -> Tensor:
        return self._file.get_slice(key)[which.start : which.stop]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _finder(entity_C: Tensor) -> Callable[[Tensor], Tensor]:
    """entity ids → their class indices in a dataset, −1 where it has no such entity."""
    known_C, class_C = torch.sort(entity_C)

    def find(wanted_N: Tensor) -> Tensor:
        if not len(known_C):
            return torch.full_like(wanted_N, -1)
        place_N = torch.searchsorted(known_C, wanted_N).clamp_(max=len(known_C) - 1)
        return torch.where(known_C[place_N] == wanted_N, class_C[place_N], -1)

    return find


def _write(path: Path, tensors: Mapping[str, Tensor], wrote: dict[str, _Written]) -> None:
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        # safetensors refuses two names of one storage (tied weights), and would write all of a slice's storage.
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        apart[key] = tensor
    save_file(apart, str(path), metadata={"format": "pt"})
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    wrote[path.name] = _Written(path.stat().st_size, digests.of_file(str(path)))


def _floats(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: t.detach().float() if t.is_floating_point() else t for n, t in tensors.items()}


def _part(kind: str, number: int, of: int) -> str:
    return f"{kind}-{number:05d}-of-{of:05d}.safetensors"


def _named(folder: str | Path) -> list[tuple[int, bool]]:
    """(step, is it whole) of all folders that are named as checkpoints are."""
    found = []
    for entry in files.list_folders(_below(folder)):
        number = entry.removeprefix("step-")
        if entry.startswith("step-") and number.isdecimal():
            found.append((int(number), _is_whole(_place(folder, int(number)))))
    return found


def _unfinished(folder: str | Path) -> list[str]:
    """What saves have begun; in a store those under way, too."""
    if not files.is_local(str(folder)):
        return [str(_place(folder, step)) for step, whole in _named(folder) if not whole]
    return sorted(map(str, (_local(folder) / "checkpoints").glob(".step-*.tmp-*")))


def _below(folder: str | Path, *parts: str) -> str:
    return files.join(str(folder).removeprefix("file://"), "checkpoints", *parts)


def _local(folder: str | Path) -> Path:
    return Path(str(folder).removeprefix("file://"))


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged ({what}): remove the folder {path.parent}, and the training goes on from the checkpoint "
        "before it"
    )
