"""Batches: from the published dataset to the tensors of a step, for one rank.

Reads    row groups of the dataset (image, alt_text), those that the order asks of this rank
Writes   Batch: pixels_BCHW uint8, class, labels, tokens, teacher vectors, ids

    reader thread     places of the next micro-batch -> stored bytes, labels, texts and their tokens, in order
    decode threads    stored bytes -> decoded, cropped, scaled, mirrored pixels, straight into the batch's array
    caller            the finished batches, in order

Threads, not processes: Pillow decodes and scales without the interpreter's lock, nothing is copied between processes,
and a rank starts at once. benchmarks/loader.py compares it with a bare loop and with webdataset.

What is drawn for an image (crop, mirror, label, text) is a hash of (seed, epoch, image id).

Legend: B images of this rank's micro-batch, H W C sides and channels of the pixels.
"""

from __future__ import annotations

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

from i2e_pipeline.config import ImageLimits, TrainConfig
from i2e_pipeline.draws import hashed, uniform
from i2e_pipeline.images import Rejected, open_rgb
from i2e_pipeline.schemas import Reason
from i2e_pipeline.train.augment import augmented, centred, decoded_side, draws
from i2e_pipeline.train.batch import Batch
from i2e_pipeline.train.order import Order, Places, micro_batch_size
from i2e_pipeline.train.samples import Samples
from i2e_pipeline.train.teacher import Teacher
from i2e_pipeline.train.texts import Texts, Tokenizer
from i2e_pipeline.train.windows import Windows

__all__ = ["Loader", "LoaderError", "Samples"]

IMAGES_PER_TASK = 8
"""Images that a decode thread takes at a time: few enough that a small micro-batch is shared by all threads."""
_EXAMPLES = 20


class LoaderError(RuntimeError):
    """A batch that cannot be made; the message names file and row."""


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

    rows_B: np.ndarray
    pixels_BHWC: torch.Tensor
    class_B: torch.Tensor
    classes_BK: torch.Tensor
    tokens_BL: torch.Tensor | None
    teacher_BT: torch.Tensor | None
    tasks: list[Future[dict[int, Rejected]]] = field(default_factory=list)
    rejected: dict[int, Rejected] = field(default_factory=dict)


class Loader:
    """Micro-batches of one rank, without end (or up to `stop`), from any position of the order.

    The stream of positions is that of order.Order: the samples of a step, and of a global micro-batch, are the same for
    any number of ranks and workers. A rank's micro-batch has batch_size / world_size / accumulate rows.

    An image that cannot be decoded is counted in `skipped` and its slot filled with the next one of the rank's
    micro-batch that can, so that shapes stay; `Batch.image_ids` are those of the images really there.
    """

    def __init__(
        self, samples: Samples, config: TrainConfig, *, side: int, world_size: int = 1, rank: int = 0, start: int = 0,
        stop: int | None = None, tokenizer: Tokenizer | None = None,
        text_probabilities: Sequence[float] | None = None, teacher: Teacher | None = None, pin: bool = False,
    ) -> None:
        """side                 of the model's input, in pixels
        start, stop          positions: samples that the training has consumed over all ranks, and where it ends
        tokenizer            None: batches without texts
        text_probabilities   of alt-text, name, name and description; None: config.text
        pin                  pixels in page-locked memory, for copies to a GPU that do not wait

        Raises OrderError where ranks and micro-batches do not divide the batch.
        """
        data = config.data
        self.micro_batch = micro_batch_size(data.batch_size, world_size, config.accumulate)
        """Images of a micro-batch over all ranks."""
        self.order = Order(
            samples.sizes_G, batch_size=data.batch_size, lanes=data.lanes, window=data.window, seed=config.seed,
            shuffle=data.shuffle,
        )
        self.workers = _share_of_cores(world_size) if data.workers is None else data.workers
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
        self._teacher = teacher
        self._texts: Texts | None = None
        if tokenizer is not None:
            text = config.text
            probabilities = text_probabilities or (text.alt_text, text.name, text.name_and_description)
            self._texts = Texts(samples.published.entities, probabilities, text.template, tokenizer)
        self._running: weakref.ref[Generator[Batch, None, None]] | None = None
        self._limits = samples.limits
        self._decoded_side = decoded_side(side, data)

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

    def _micro_batches(self) -> Iterator[tuple[_Pending, list[Any], np.ndarray | None]]:
        """Each micro-batch with everything but its pixels, the stored bytes, and what is drawn for the crops."""
        columns = ["image.bytes"] if self._texts is None else ["image.bytes", "alt_text"]
        windows = Windows(self._samples, self.order, columns)
        start = self.position
        while self._stop is None or start + self.micro_batch <= self._stop:
            places = self.order.share(start, self.micro_batch, self._rank, self._world_size)
            stored, *alt_texts = windows.read(places)
            yield self._described(places, alt_texts[0] if alt_texts else None), stored, self._draws(places)
            start += self.micro_batch

    def _keys(self, places: Places) -> np.ndarray:
        """uint64, of (seed, epoch, image id)."""
        image_keys = self._samples.keys(self._samples.training[places.sample])
        return hashed(image_keys ^ hashed(places.epoch, "epoch"), self._config.seed)

    def _draws(self, places: Places) -> np.ndarray | None:
        return draws(self._keys(places), self._config.data)

    def _described(self, places: Places, alt_texts: list[Any] | None) -> _Pending:
        rows_B = self._samples.training[places.sample]
        keys_B = self._keys(places)
        sampled = self._config.data.label == "sampled"
        class_B = self._samples.class_of(rows_B, uniform(hashed(keys_B, "label")) if sampled else None)
        tokens_BL = None
        if self._texts is not None:
            texts = self._texts.drawn(uniform(hashed(keys_B, "text")), alt_texts or [], class_B)
            tokens_BL = self._texts.tokens(texts)
        return _Pending(
            rows_B=rows_B,
            pixels_BHWC=_empty((len(rows_B), self._side, self._side, 3), self._pin),
            class_B=torch.from_numpy(class_B),
            classes_BK=torch.from_numpy(self._samples.classes_of(rows_B)),
            tokens_BL=tokens_BL,
            teacher_BT=None if self._teacher is None else self._teacher.of(rows_B),
        )

    def _decode(
        self, pending: _Pending, first: int, stored: list[bytes | None], drawn: np.ndarray | None
    ) -> dict[int, Rejected]:
        """Decodes slots first … into the batch's pixels; returns those that could not be."""
        pixels_BHWC = pending.pixels_BHWC.numpy()
        rejected = {}
        for slot, data in enumerate(stored, first):
            try:
                pixels = _pixels(data, self._limits, self._side, self._decoded_side,
                                 None if drawn is None else drawn[slot - first], self._config.data.crop_area)
            except Exception as error:
                row = int(pending.rows_B[slot])
                raise LoaderError(
                    f"{self._samples.published.folder}/{self._samples.place(row)} (image "
                    f"{self._samples.image_id(row).hex()}): {type(error).__name__}: {error}"
                ) from error
            if isinstance(pixels, Rejected):
                rejected[slot] = pixels
            else:
                pixels_BHWC[slot] = pixels
        return rejected

    def _finished(self, pending: _Pending) -> Batch:
        """The batch, once decoded; slots of broken images filled with the next good one."""
        rejected = dict(pending.rejected)
        for task in pending.tasks:
            rejected |= task.result()
        if rejected:
            self._replace(pending, rejected)
        return Batch(
            pixels_BCHW=pending.pixels_BHWC.permute(0, 3, 1, 2),
            class_B=pending.class_B,
            classes_BK=pending.classes_BK,
            tokens_BL=pending.tokens_BL,
            teacher_BT=pending.teacher_BT,
            image_ids=tuple(self._samples.ids_N2[pending.rows_B].view("V16").ravel().tolist()),
        )

    def _replace(self, pending: _Pending, rejected: dict[int, Rejected]) -> None:
        for slot, why in sorted(rejected.items()):
            self.skipped[str(why.reason)] += 1
            if len(self.examples) < _EXAMPLES:
                row = int(pending.rows_B[slot])
                self.examples.append(
                    Skipped(why.reason, why.detail, self._samples.place(row), self._samples.image_id(row))
                )
        size = len(pending.rows_B)
        good = [slot for slot in range(size) if slot not in rejected]
        if not good:
            why = next(iter(rejected.values()))
            raise LoaderError(
                f"none of the {size} images of a micro-batch can be decoded; the first is "
                f"{self._samples.published.folder}/{self._samples.place(int(pending.rows_B[0]))}: {why.reason}"
                + (f" ({why.detail})" if why.detail else "")
            )
        source = np.arange(size)
        for slot in rejected:
            source[slot] = next((g for g in good if g > slot), good[0])
        pending.rows_B = pending.rows_B[source]
        taken = torch.from_numpy(source)
        for name in ("pixels_BHWC", "class_B", "classes_BK", "tokens_BL", "teacher_BT"):
            if (value := getattr(pending, name)) is not None:
                setattr(pending, name, value[taken])

    # -- who does it ----------------------------------------------------------------------------------------------

    def _in_line(self) -> Generator[_Pending, None, None]:
        for pending, stored, drawn in self._micro_batches():
            pending.rejected = self._decode(pending, 0, stored, drawn)
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
                for pending, stored, drawn in self._micro_batches():
                    if ended.is_set():
                        return
                    for first in range(0, len(stored), IMAGES_PER_TASK):
                        part = slice(first, first + IMAGES_PER_TASK)
                        pending.tasks.append(pool.submit(
                            self._decode, pending, first, stored[part], None if drawn is None else drawn[part]
                        ))
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


def _pixels(
    stored: bytes | None, limits: ImageLimits, side: int, decoded: int, drawn_F: np.ndarray | None,
    area: tuple[float, float],
) -> np.ndarray | Rejected:
    """pixels_HWC of one stored image, or why there are none."""
    opened = open_rgb(stored, limits, decoded)
    if isinstance(opened, Rejected):
        return opened
    return centred(opened[0], side) if drawn_F is None else augmented(opened[0], side, drawn_F, area)


def _empty(shape: tuple[int, ...], pin: bool) -> torch.Tensor:
    """uint8. Pinned memory comes from torch's cache; the rest from numpy, which asks for huge pages."""
    if pin:
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
    return torch.from_numpy(np.empty(shape, dtype=np.uint8))


def _share_of_cores(world_size: int) -> int:
    """Cores per rank of this machine; torchrun and TorchDistributor say how many ranks it has."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))
