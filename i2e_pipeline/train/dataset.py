"""Batches: from the published dataset to the tensors of a step, for one rank.

Reads    row groups of the dataset (image, alt_text), those that the order asks of this rank
Writes   Batch: pixels_BCHW uint8, class, labels, tokens, teacher vectors, ids

    read threads      row groups of the dataset -> memory, those that are wanted next among them
    reader thread     places of the next micro-batch -> their row groups, labels, texts and their tokens
    decode threads    stored bytes -> decoded, cropped, scaled, mirrored pixels, straight into the batch's array
    caller            the finished batches, in order

Threads, not processes: Pillow decodes and scales without the interpreter's lock, nothing is copied between processes,
and a rank starts at once. benchmarks/loader.py compares it with a bare loop and with webdataset.

What is drawn for an image (crop and mirror or the stored augmentation, label, text) is a hash of (seed, epoch, image
id). By such a hash another image stands in for one that cannot be decoded: first one of the same row group, which is in
memory; where those that are drawn there cannot be decoded either, one of another row group. All this is the same for
any number of ranks, workers and micro-batches.

Legend: B images of this rank's micro-batch, H W C sides and channels of the pixels.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
import weakref
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from i2e_pipeline.core.config import TrainConfig
from i2e_pipeline.core.draws import hashed, uniform
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.schemas import Reason
from i2e_pipeline.images.decode import Rejected, open_rgb
from i2e_pipeline.train.augment import augmented, centred, decoded_side, draws, viewed
from i2e_pipeline.train.batch import Batch
from i2e_pipeline.train.groups import Facts, Group, Groups
from i2e_pipeline.train.order import Order, micro_batch_size
from i2e_pipeline.train.reinforced import Reinforced, Reinforcements
from i2e_pipeline.train.samples import Samples
from i2e_pipeline.train.teacher import Teacher
from i2e_pipeline.train.texts import Texts, Tokenizer
from i2e_pipeline.train.windows import LastGroups, Windows

__all__ = ["Loader", "LoaderError", "Samples", "share_of_cores"]

IMAGES_PER_TASK = 8
"""Images that a decode thread takes at a time: few enough that a small micro-batch is shared by all threads."""
_EXAMPLES = 20
STAND_INS = 40
"""So many images are tried in the place of a broken one before the training stops. Where half of all images are broken,
that happens to 1 image in 10¹²."""
STAND_INS_PER_GROUP = 8
"""So many of them are drawn from one row group before another row group is read."""
_GROUPS_HELD = 2


class LoaderError(I2EError, RuntimeError):
    """A batch that cannot be made; the message names file and row."""


@dataclass(frozen=True)
class _Slot:
    """Of a micro-batch: the sample that the order has there."""

    sample: int
    epoch: int
    group: Group


@dataclass(frozen=True)
class _StandIn:
    """What stands in a slot whose own image cannot be decoded."""

    sample: int
    group: Group
    alt_text: str | None
    why: Rejected


@dataclass(frozen=True)
class Skipped:
    """An image that could not be decoded."""

    reason: Reason
    detail: str | None
    place: str
    image_id: bytes


@dataclass
class _Pending:
    """A micro-batch that is being decoded."""

    slots: list[_Slot]
    facts: Facts
    epoch_B: np.ndarray
    views: np.ndarray | None
    """Crop and mirror of each image: draws_BF, or stored views_BV."""
    pixels_BHWC: torch.Tensor
    described: _Described
    tasks: list[Future[dict[int, _StandIn]]] = field(default_factory=list)
    stand_ins: dict[int, _StandIn] = field(default_factory=dict)
    """By slot."""


@dataclass(frozen=True)
class _Described:
    """What a batch says of images beside their pixels."""

    class_B: torch.Tensor
    classes_BK: torch.Tensor
    tokens_BL: torch.Tensor | None
    teacher_BT: torch.Tensor | None
    teacher_text_BT: torch.Tensor | None


class Loader:
    """Micro-batches of one rank, without end (or up to `stop`), from any position of the order.

    The stream of positions is that of order.Order: the samples of a step, and of a global micro-batch, are the same for
    any number of ranks and workers. A rank's micro-batch has batch_size / world_size / accumulate rows.

    An image that cannot be decoded is counted in `skipped` and another one, drawn by hash, stands in its slot, so that
    shapes stay; `Batch.image_ids` are those of the images really there.
    """

    def __init__(
        self,
        samples: Samples,
        config: TrainConfig,
        *,
        side: int,
        world_size: int = 1,
        rank: int = 0,
        start: int = 0,
        stop: int | None = None,
        tokenizer: Tokenizer | None = None,
        text_probabilities: Sequence[float] | None = None,
        teacher: Teacher | None = None,
        reinforced: Reinforced | None = None,
        pin: bool = False,
    ) -> None:
        """side                 of the model's input, in pixels
        start, stop          positions: samples that the training has consumed over all ranks, and where it ends
        tokenizer            None: batches without texts
        text_probabilities   of alt-text, name, name and description; None: config.text
        teacher              vectors of whole images
        reinforced           stored augmentations in the place of drawn ones, with their vectors and captions
        pin                  tensors in page-locked memory, for copies to a GPU that do not wait

        Raises OrderError where ranks and micro-batches do not divide the batch.
        """
        data = config.data
        self.micro_batch = micro_batch_size(data.batch_size, world_size, config.accumulate)
        """Images of a micro-batch over all ranks."""
        self.order = Order(
            samples.sizes_G,
            batch_size=data.batch_size,
            lanes=data.lanes,
            window=data.window,
            seed=config.seed,
            shuffle=data.shuffle,
        )
        self.workers = share_of_cores(world_size) if data.workers is None else data.workers
        self.position = start
        """Samples consumed by the batches handed out so far, over all ranks."""
        self.skipped: Counter[str] = Counter()
        """Images that could not be decoded, by reason, each time that one was met."""
        self.examples: list[Skipped] = []
        """The first of them."""
        self.wait_seconds = 0.0
        """How long the caller has waited for batches, in all."""
        self._samples, self._config, self._side, self._pin = samples, config, side, pin
        self._world_size, self._rank, self._stop = world_size, rank, stop
        self._teacher, self._reinforced = teacher, reinforced
        self._texts: Texts | None = None
        if tokenizer is not None:
            text = config.text
            probabilities = text_probabilities or (text.alt_text, text.name, text.name_and_description)
            self._texts = Texts(samples.published.entities, probabilities, text.template, tokenizer)
        self._tokenizing = threading.Lock()
        self._columns = ["image.bytes"] if self._texts is None else ["image.bytes", "alt_text"]
        self._groups = Groups(samples, self._columns, reinforced)
        self._elsewhere = LastGroups(self._groups, _GROUPS_HELD)
        self._running: weakref.ref[Generator[Batch, None, None]] | None = None
        self._limits = samples.limits
        self._decoded_side = decoded_side(side, data if reinforced is None else reinforced.settings.data)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from `position` on. One iteration at a time; leaving it early stops the threads."""
        self.close()
        batches = self._batches()
        # Weak: an iteration that nobody holds any more ends, and its threads with it.
        self._running = weakref.ref(batches)
        return batches

    def close(self) -> None:
        """Ends the iteration that runs, if one does."""
        running = self._running() if self._running else None
        if running is not None:
            running.close()

    def _batches(self) -> Generator[Batch, None, None]:
        pending = self._in_line() if self.workers == 0 else self._in_background()
        try:
            while True:
                started = time.perf_counter()
                try:
                    batch = self._finished(next(pending))
                except StopIteration:
                    return
                finally:
                    self.wait_seconds += time.perf_counter() - started
                self.position += self.micro_batch
                yield batch
        finally:
            pending.close()

    # -- what is in a micro-batch ---------------------------------------------------------------------------------

    def _micro_batches(self) -> Iterator[_Pending]:
        """Each micro-batch with everything but its pixels."""
        data = self._config.data
        windows = Windows(
            self.order,
            self._groups,
            readers=data.readers if self.workers else 0,
            ahead_bytes=data.read_ahead_mb << 20,
            stop=self._stop,
        )
        start = self.position
        with contextlib.closing(windows):
            while self._stop is None or start + self.micro_batch <= self._stop:
                places = self.order.share(start, self.micro_batch, self._rank, self._world_size)
                slots = [
                    _Slot(sample, epoch, group)
                    for sample, epoch, group in zip(
                        places.sample.tolist(), places.epoch.tolist(), windows.read(places), strict=True
                    )
                ]
                alt_texts = None if self._texts is None else [slot.group.value(1, slot.sample) for slot in slots]
                facts = _facts(slots)
                yield _Pending(
                    slots,
                    facts,
                    places.epoch,
                    self._views(slots, facts, places.epoch),
                    pixels_BHWC=_empty((len(slots), self._side, self._side, 3), self._pin),
                    described=self._described(slots, facts, places.epoch, alt_texts),
                )
                start += self.micro_batch

    def _keys(self, facts: Facts, epoch_B: np.ndarray) -> np.ndarray:
        """uint64, of (seed, epoch, image id)."""
        return hashed(facts.keys_B() ^ hashed(epoch_B, "epoch"), self._config.seed)

    def _views(self, places: Sequence[_Slot | _StandIn], facts: Facts, epoch_B: np.ndarray) -> np.ndarray | None:
        """The crop and mirror of each image, as _Pending has them; None where nothing is varied."""
        keys_B = self._keys(facts, epoch_B)
        if self._reinforced is None:
            return draws(keys_B, self._config.data)
        if self._reinforced.centred:
            return None
        chosen_B = self._augmentation(keys_B, self._reinforced)
        return np.stack([_stored(p).view_NKV[_within(p), k] for p, k in zip(places, chosen_B, strict=True)])

    def _augmentation(self, keys_B: np.ndarray, reinforced: Reinforced) -> np.ndarray:
        """The number of the stored augmentation that each image is seen in."""
        return (hashed(keys_B, "augmentation") % np.uint64(reinforced.settings.augmentations)).astype(np.int64)

    def _described(
        self,
        places: Sequence[_Slot | _StandIn],
        facts: Facts,
        epoch_B: np.ndarray,
        alt_texts: list[Any] | None,
    ) -> _Described:
        keys_B = self._keys(facts, epoch_B)
        sampled = self._config.data.label == "sampled"
        class_B = facts.drawn_class(uniform(hashed(keys_B, "label")) if sampled else None)
        tokens_BL = text_BT = None
        if self._texts is not None:
            drawn_B = uniform(hashed(keys_B, "text"))
            caption_B = self._captions(keys_B)
            with self._tokenizing:  # the reader's and, for what stands in, the caller's
                texts = self._texts.drawn(drawn_B, alt_texts or [], class_B)
                for at in np.flatnonzero(caption_B >= 0).tolist():
                    captions = _stored(places[at]).captions[_within(places[at])]
                    if captions is None:  # what could not be decoded has none, and another image will stand here
                        caption_B[at] = -1
                    else:
                        texts[at] = captions[caption_B[at]]
                tokens_BL = self._texts.tokens(texts)
            if self._reinforced is not None and self._config.reinforce.affinity:
                text_BT = self._text_vectors(places, self._texts.kinds(drawn_B), class_B, caption_B)
        teacher_BT = None if self._teacher is None else self._teacher.of(facts.rows_B)
        if self._reinforced is not None and (self._config.reinforce.affinity or self._config.reinforce.vectors):
            chosen_B = self._augmentation(keys_B, self._reinforced)
            stored = [_stored(p).image_NKT[_within(p), k] for p, k in zip(places, chosen_B, strict=True)]
            teacher_BT = _unit(np.stack(stored))
        return _Described(
            torch.from_numpy(class_B),
            torch.from_numpy(facts.class_BK.copy()),
            tokens_BL,
            teacher_BT,
            None if text_BT is None else _unit(text_BT),
        )

    def _captions(self, keys_B: np.ndarray) -> np.ndarray:
        """Which stored caption is each image's text; −1: none."""
        caption_B = np.full(len(keys_B), -1)
        if self._reinforced is not None and (share := self._config.reinforce.captions):
            takes_B = uniform(hashed(keys_B, "captioned")) < share
            number_B = hashed(keys_B, "caption") % np.uint64(self._reinforced.settings.captions)
            caption_B[takes_B] = number_B[takes_B]
        return caption_B

    def _text_vectors(
        self, places: Sequence[_Slot | _StandIn], kind_B: np.ndarray, class_B: np.ndarray, caption_B: np.ndarray
    ) -> np.ndarray:
        """The teachers' vectors of the texts that were drawn, float16 (B, T)."""
        assert self._reinforced is not None
        found_BT = np.empty((len(places), self._reinforced.settings.width), dtype=np.float16)
        own_B = (kind_B == 0) | (caption_B >= 0)
        for at in np.flatnonzero(own_B).tolist():
            found_BT[at] = _stored(places[at]).text_NST[_within(places[at]), 1 + caption_B[at]]
        if not own_B.all():
            found_BT[~own_B] = self._reinforced.of_classes(class_B[~own_B], kind_B[~own_B] == 2)
        return found_BT

    def _decode(self, pending: _Pending, part: slice) -> dict[int, _StandIn]:
        """Decodes slots into the batch's pixels; returns what stands in for those that could not be."""
        pixels_BHWC = pending.pixels_BHWC.numpy()
        stand_ins = {}
        for at, slot in enumerate(pending.slots[part], part.start):
            view = None if pending.views is None else pending.views[at]
            pixels = self._pixels(slot.sample, slot.group, view)
            if isinstance(pixels, Rejected):
                stand_ins[at], pixels = self._stand_in(slot, pixels)
            pixels_BHWC[at] = pixels
        return stand_ins

    def _pixels(self, sample: int, group: Group, view: np.ndarray | None) -> np.ndarray | Rejected:
        """pixels_HWC of an image, or why there are none."""
        stored: Any = group.value(0, sample)
        try:
            opened = open_rgb(stored, self._limits, self._decoded_side)
            if isinstance(opened, Rejected):
                return opened
            if view is None:
                return centred(opened[0], self._side)
            if self._reinforced is not None:
                return viewed(opened[0], self._side, view)
            return augmented(opened[0], self._side, view, self._config.data.crop_area)
        except Exception as error:
            facts = Facts.of([group], [sample])
            raise LoaderError(
                f"{self._samples.published.folder}/{self._samples.place(int(facts.rows_B[0]))} (image "
                f"{facts.image_ids()[0].hex()}): {type(error).__name__}: {error}"
            ) from error

    # -- what stands in for a broken image ------------------------------------------------------------------------

    def _stand_in(self, slot: _Slot, why: Rejected) -> tuple[_StandIn, np.ndarray]:
        """Another image and its pixels, the same whichever rank asks.

        Raises LoaderError where none of those that are drawn can be decoded either.
        """
        tried = {slot.sample}
        for sample, group in self._candidates(slot):
            if sample in tried:
                continue
            if len(tried) > STAND_INS:
                break
            tried.add(sample)
            views = self._views([_Slot(sample, slot.epoch, group)], Facts.of([group], [sample]), np.array([slot.epoch]))
            pixels = self._pixels(sample, group, None if views is None else views[0])
            if not isinstance(pixels, Rejected):
                alt_text: Any = None if self._texts is None else group.value(1, sample)
                return _StandIn(sample, group, alt_text, why), pixels
        row = int(_facts([slot]).rows_B[0])
        raise LoaderError(
            f"{self._samples.published.folder}/{self._samples.place(row)} cannot be decoded: {why.reason}"
            + (f" ({why.detail})" if why.detail else "")
            + f"; nor can {len(tried) - 1} images drawn in its place. Most of the dataset's images are broken: "
            "copy it or build it again"
        )

    def _candidates(self, slot: _Slot) -> Iterator[tuple[int, Group]]:
        """Samples that may stand in, by hash of (seed, epoch, image id, attempt), with their row groups.

        Other row groups are drawn for the slot's row group and not for its image: where a whole one is broken, few
        others are read for all of it.
        """
        key_1 = self._keys(_facts([slot]), np.array([slot.epoch]))
        for turn in range(STAND_INS):
            group = slot.group
            if turn:
                drawn = hashed(np.array([group.number]), "stand-in group", self._config.seed, slot.epoch, turn)
                # By sample, so that a row group without any is never drawn.
                group = self._elsewhere.get(self._groups.of(drawn % np.uint64(self.order.samples)).item())
            for attempt in range(STAND_INS_PER_GROUP):
                drawn = hashed(key_1, "stand-in", turn, attempt) % np.uint64(len(group))
                yield group.first + int(drawn[0]), group

    def _finished(self, pending: _Pending) -> Batch:
        """The batch, once decoded, with what stands in for broken images."""
        stand_ins = dict(pending.stand_ins)
        for task in pending.tasks:
            stand_ins |= task.result()
        described = pending.described
        if stand_ins:
            described = self._replaced(pending, stand_ins)
        return Batch(
            pixels_BCHW=pending.pixels_BHWC.permute(0, 3, 1, 2),
            class_B=self._placed(described.class_B),
            classes_BK=self._placed(described.classes_BK),
            tokens_BL=None if described.tokens_BL is None else self._placed(described.tokens_BL),
            teacher_BT=None if described.teacher_BT is None else self._placed(described.teacher_BT),
            image_ids=pending.facts.image_ids(),
            teacher_text_BT=None if described.teacher_text_BT is None else self._placed(described.teacher_text_BT),
            teachers=() if self._reinforced is None else self._reinforced.teachers,
        )

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory() if self._pin else tensor

    def _replaced(self, pending: _Pending, stand_ins: dict[int, _StandIn]) -> _Described:
        """Counts the broken images, and describes those that stand in."""
        at = np.array(sorted(stand_ins))
        for slot in at.tolist():
            why = stand_ins[slot].why
            self.skipped[str(why.reason)] += 1
            if len(self.examples) < _EXAMPLES:
                broken = _facts([pending.slots[slot]])
                place = self._samples.place(int(broken.rows_B[0]))
                self.examples.append(Skipped(why.reason, why.detail, place, broken.image_ids()[0]))
        standing_in = [stand_ins[slot] for slot in at.tolist()]
        facts = Facts.of([s.group for s in standing_in], [s.sample for s in standing_in])
        pending.facts.put(at, facts)
        new = self._described(standing_in, facts, pending.epoch_B[at], [s.alt_text for s in standing_in])
        for old_B, new_B in zip(_tensors(pending.described), _tensors(new), strict=True):
            old_B[torch.from_numpy(at)] = new_B
        return pending.described

    # -- who does it ----------------------------------------------------------------------------------------------

    def _in_line(self) -> Generator[_Pending, None, None]:
        for pending in self._micro_batches():
            pending.stand_ins = self._decode(pending, slice(0, len(pending.slots)))
            yield pending

    def _in_background(self) -> Generator[_Pending, None, None]:
        """The same, with a thread that reads ahead by `prefetch` micro-batches and threads that decode."""
        ready: queue.Queue[_Pending | BaseException | None] = queue.Queue(self._config.data.prefetch)
        ended = threading.Event()
        pool = ThreadPoolExecutor(self.workers, "decode")

        def put(item: _Pending | BaseException | None) -> None:
            while not ended.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def read_ahead() -> None:
            try:
                for pending in self._micro_batches():
                    if ended.is_set():
                        return
                    for first in range(0, len(pending.slots), IMAGES_PER_TASK):
                        pending.tasks.append(pool.submit(self._decode, pending, slice(first, first + IMAGES_PER_TASK)))
                    put(pending)
                put(None)
            except BaseException as error:  # whatever it is, the caller has to hear of it
                put(error)

        reader = threading.Thread(target=read_ahead, name="read ahead", daemon=True)
        reader.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            ended.set()
            reader.join()
            pool.shutdown(wait=True, cancel_futures=True)


def _facts(slots: Sequence[_Slot]) -> Facts:
    return Facts.of([slot.group for slot in slots], [slot.sample for slot in slots])


def _tensors(described: _Described) -> list[torch.Tensor]:
    parts = (described.class_B, described.classes_BK, described.tokens_BL, described.teacher_BT)
    return [part for part in (*parts, described.teacher_text_BT) if part is not None]


def _within(place: _Slot | _StandIn) -> int:
    return place.sample - place.group.first


def _stored(place: _Slot | _StandIn) -> Reinforcements:
    assert place.group.reinforced is not None
    return place.group.reinforced


def _unit(vectors_BT: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(vectors_BT.astype(np.float32)), dim=-1)


def _empty(shape: tuple[int, ...], pin: bool) -> torch.Tensor:
    """uint8. Pinned memory comes from torch's cache; the rest from numpy, which asks for huge pages."""
    if pin:
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
    return torch.from_numpy(np.empty(shape, dtype=np.uint8))


def share_of_cores(world_size: int) -> int:
    """Cores per rank of this machine; torchrun and TorchDistributor say how many ranks it has."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))
