"""Trainer: from the batches of a dataset to checkpoints and figures, on one rank or many.

Reads   a published I2E dataset · the last checkpoint of the folder, if there is one; else train.start_from
Writes  <folder>/checkpoints · journal.jsonl · loss.png · tensorboard/ · export/ · outcome.json (last)

A step: its global batch is cut over micro-batches and ranks (order.py), each part goes through the towers and the
recipe's losses, gradients are averaged over both and clipped, and the step is taken: AdamW on the towers, row-wise
Adagrad on the entity head. A training that was cut off goes on from its last checkpoint, on any number of ranks, with
the samples that are left.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from i2e_pipeline.core import config as configuration
from i2e_pipeline.core import files, lock, places
from i2e_pipeline.core.config import Config, TrainConfig, digest
from i2e_pipeline.core.errors import ExitCode, I2EError
from i2e_pipeline.dataset.published import DatasetError, Published
from i2e_pipeline.train import away, card, checkpoint, export, journal, strategy, wandb_board, warm_start
from i2e_pipeline.train.batch import Batch, Encoded
from i2e_pipeline.train.dataset import Loader, share_of_cores
from i2e_pipeline.train.ema import Ema
from i2e_pipeline.train.encoders import Towers, build
from i2e_pipeline.train.entity_head import EntityHead
from i2e_pipeline.train.held_out import Figures, HeldOutImages
from i2e_pipeline.train.indexed import open_indexed
from i2e_pipeline.train.on_ranks import Measure, OnRanks
from i2e_pipeline.train.order import micro_batch_size
from i2e_pipeline.train.parallel import World
from i2e_pipeline.train.recipes import Contrastive, Recipe, recipe
from i2e_pipeline.train.reinforced import Reinforced, open_reinforced
from i2e_pipeline.train.samples import Samples
from i2e_pipeline.train.schedule import factor
from i2e_pipeline.train.shared_negatives import Shared, draws_differ, share
from i2e_pipeline.train.step_time import StepTime, operations, peak_flops
from i2e_pipeline.train.teacher import Teacher, open_teacher

OUTCOME = "outcome.json"
_BAD_STEPS = "bad steps"
"""Among the counts of a checkpoint's state."""
FIGURES = ("mAP", "knn", "zero_shot")
"""The first of these that is measured says which checkpoint is best."""
_MAY_CHANGE = (
    "dataset", "folder", "device", "threads", "ranks", "strategy", "precision", "checkpoint_every",
    "checkpoint_minutes", "save_in_background", "skip_bad_steps", "keep_checkpoints", "log_every", "peak_tflops",
    "evaluate_every",
    "evaluate_images", "evaluate_sets", "evaluate_protocols", "data.workers", "data.prefetch", "data.readers",
    "data.read_ahead_mb", "encoder.compile", "encoder.checkpoint_activations", "reinforce.folder", "wandb",
)  # fmt: skip
"""Settings that may differ when a training goes on from a checkpoint: they change roundings alone."""
_CHANGE_IS_LOGGED = ("steps", "epochs", "head.learning_rate", "accumulate", "loss.shared_negatives")
"""These settings, and all of `optimizer`, may differ too (a lower learning rate after a bad loss, for example). The log
then names each change. `accumulate` changes what is compared within a micro-batch: the negatives of a contrastive loss
without `shared_negatives`, the classes of a sampled head, and the images that distillation is the mean of."""

log = logging.getLogger(__name__)


class TrainError(I2EError, ValueError):
    """A training that cannot begin or go on; the message says the way out."""


class Interrupted(I2EError, RuntimeError):
    """A training that somebody stopped, after its state was saved; the message says where and how to go on."""

    exit_code = ExitCode.INTERRUPTED


class _BrokenOff(Exception):
    """An evaluation that ends because somebody asked for a stop."""


@dataclass(frozen=True)
class Outcome:
    """What a training came to; outcome.json holds it."""

    folder: str
    recipe: str
    steps: int
    images: int
    """Trained on, of the dataset."""
    before: dict[str, float]
    """Held-out figures of the initial weights."""
    after: dict[str, float]
    export: str
    left_out: dict[str, int] = field(default_factory=dict)
    """Images of the dataset that are neither trained on nor held out, by reason (samples.py)."""
    skipped: dict[str, int] = field(default_factory=dict)
    """How often an image could not be decoded, by reason; one that comes in every epoch counts in every epoch."""
    bad_steps: int = 0
    """Steps without a finite loss that were passed over (train.skip_bad_steps)."""


def train(
    config: Config, world: World, figures: Figures, restart: bool = False, sets: Measure | None = None
) -> Outcome:
    """Trains as `config.train` says, or goes on where an earlier training of the folder was; every rank calls it.

    figures   what is measured on held-out images: (vectors, classes …) → name → number (held_out.py)
    restart   forget the folder's checkpoints
    sets      measures the towers on images of its own, at each evaluation
    Raises PlaceError where a file is in the folder's place, TrainError, and the errors of dataset, encoders, head,
    recipes and checkpoints, all of them ValueErrors; Held on every rank while another training is in the folder.
    """
    folder = folder_of(config)
    world.broadcast(lambda: places.refuse_closed(folder, "train.folder" if config.train.folder else "output"))
    with (
        _alone_in(folder, world) as still_alone,
        _torch_settings(config.train),
        _Training(config, world, figures, restart, still_alone, sets) as training,
    ):
        if world.first:
            configuration.keep(config, folder)
        return training.run()


@contextlib.contextmanager
def _alone_in(folder: str, world: World) -> Iterator[Callable[[], None]]:
    """A training's folder is these ranks' alone in the block; yields what raises LostLock on rank 0 once it is not.

    A holder on another machine is listened to: a job that a scheduler starts again elsewhere may come before its last
    one's lock counts as silent.
    """
    with contextlib.ExitStack() as held:
        checks: list[Callable[[], None]] = []
        world.broadcast(lambda: checks.append(held.enter_context(lock.exclusive(folder, patient=True))))
        yield checks[0] if checks else lambda: None


def folder_of(config: Config) -> str:
    """Where a training of this config lies."""
    return config.train.folder or files.join(config.output, "train", config.train.recipe)


def dataset_of(config: Config) -> str:
    """What a training of this config reads."""
    return config.train.dataset or files.join(config.output, "i2e")


@dataclass(frozen=True)
class _Told:
    """What a step tells of itself."""

    step: int
    """Counted from 1."""
    losses: dict[str, Tensor]
    """Of this rank."""
    image_ids: list[bytes]
    learning_rate: float
    wait_seconds: float
    operations: float
    """Of the towers on this rank since the training began."""
    read: Callable[[], list[float]]
    """The means over ranks of losses, of whether a rank has a bad one, was asked to stop, wants a checkpoint, or has
    written it."""


class _Training:
    """All parts of a training of one rank, and its loop."""

    def __init__(
        self,
        whole: Config,
        world: World,
        figures: Figures,
        restart: bool = False,
        still_alone: Callable[[], None] = lambda: None,
        sets: Measure | None = None,
    ) -> None:
        """still_alone   raises where the folder is no longer this training's; rank 0 asks it before each save"""
        self.config, self.world, self._still_alone = whole.train, world, still_alone
        config = self.config
        micro_batch_size(config.data.batch_size, world.size, config.accumulate)  # refused before anything is read
        self.home = folder_of(whole)
        """Where the training lies; a URI is that of a folder in a store."""
        self.folder = away.working_folder(self.home)
        """The same on this machine."""
        self.mirror = away.Mirror(self.home, self.folder)
        self.recipe: Recipe = recipe(config)
        self.published, index = open_indexed(dataset_of(whole), config, world, self.home)
        self.samples = Samples.of(self.published, index, config)
        teacher = _teacher(whole, self.recipe, self.samples)
        self.reinforced = world.on_each(lambda: _reinforced(config, self.published))
        width = teacher.width if teacher else None
        if config.reinforce.vectors:
            width = self.reinforced.settings.width
        self.towers: Towers = build(
            config.encoder,
            config.loss,
            config.seed,
            teacher_width=width,
            uses_text=self.recipe.uses_text,
            frozen=config.optimizer.frozen,
        )
        self.time = StepTime(world.device)
        self.operations = 0.0
        peak = peak_flops(config, world.device)
        self._counts = None if peak is None else operations(self.towers, self.recipe.uses_text)
        if config.encoder.compile and self._sharing() and draws_differ(self.towers.blocks()):
            raise TrainError(
                f"train.loss.shared_negatives: {config.encoder.model} drops paths or values at random, which must be "
                "the same ones when it encodes a batch again, and compiled blocks draw others: set "
                "train.encoder.compile=false"
            )
        self.module: nn.Module = strategy.wrap(self.towers, config, world)
        self.optimizer = strategy.optimizer_of(self.towers, config.optimizer)
        self.head = (
            EntityHead(self.samples.classes, self.towers.width, config.head, world, config.seed)
            if self.recipe.uses_classes
            else None
        )
        self.ema = Ema(self.towers, config.optimizer.ema) if config.optimizer.ema else None
        self.steps = config.steps or math.ceil(config.epochs * len(self.samples) / config.data.batch_size)
        factor(0, self.steps, config.optimizer.warmup)  # a warm-up that is too long is refused before anything is done
        self.step = 0
        """Steps that the device was given."""
        self._told: _Told | None = None
        self._saved_at = time.monotonic()
        self._saving: checkpoint.Save | None = None
        self.best: float | None = None
        self.skipped: dict[str, int] = {}
        self.bad_steps = 0
        trains_text = self.recipe.uses_text and not config.optimizer.text.freeze
        self.text_trained = trains_text or config.encoder.pretrained is not None
        self.began_from: checkpoint.Place | None = None
        self._goes_on_from: checkpoint.Place | None = None
        self.fingerprint = digest(config.shown())
        self.held_out = HeldOutImages(self.samples, self.towers, self.module, config, world, figures)
        self._sets = sets
        self._resume(restart)
        self.loader = Loader(
            self.samples,
            config,
            side=self.towers.image_size,
            world_size=world.size,
            rank=world.rank,
            start=self.step * config.data.batch_size,
            stop=self.steps * config.data.batch_size,
            tokenizer=self.towers.tokenizer if self.recipe.uses_text else None,
            text_probabilities=self.recipe.text_probabilities() if self.recipe.uses_text else None,
            teacher=teacher,
            reinforced=self.reinforced,
            pin=world.device.type == "cuda",
        )
        self.journal = journal.Journal(
            self.folder,
            self.steps,
            config.data.batch_size,
            world,
            images=len(self.samples),
            start=self.step,
            log_every=config.log_every,
            facts={
                "recipe": config.recipe,
                "config": self.fingerprint,
                "data": card.data_of(self.published, self.samples),
                **({"start_from": str(self.began_from)} if self.began_from else {}),
            },
            peak_flops=peak,
            wandb=config.wandb,
            settings=config.shown(),
        )
        if restart:  # only now: whatever is refused leaves the earlier training as it was
            world.broadcast(self._forget)

    def __enter__(self) -> _Training:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None, at_once=kind is not None and issubclass(kind, KeyboardInterrupt))

    def close(self, failed: bool = False, at_once: bool = False) -> None:
        """at_once   somebody pressed Ctrl-C twice: nothing is brought to a store any more, or waited for there"""
        if self._saving is not None:
            self._saving.abandon(at_once)
        if hasattr(self, "batches"):
            self.batches.close()
        if hasattr(self, "journal"):
            self.journal.close(failed)
        if self.world.first and not at_once:
            try:
                self.mirror.push()
            except OSError as error:  # an error that ends the training is not to be hidden by this one
                log.warning("%s lacks the last lines of the journal: %s", self.home, error)

    def _log(self, line: str) -> None:
        """Progress; rank 0 speaks for all ranks."""
        if self.world.first:
            log.info(line)

    # -- the loop -----------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        self._log(
            f"{self.config.recipe}: {len(self.samples):,} images of {self.samples.classes:,} entities, "
            f"{self.held_out} held out, {self.steps:,} steps of {self.config.data.batch_size:,} images on "
            f"{self.world.size} rank{'s' * (self.world.size > 1)} ({self.world.device.type})"
        )
        for reason, images in self.samples.left_out.items():
            if images:
                self._log(f"left out: {images:,} images, {reason.replace('_', ' ')}")
        if self.step == 0 and FIGURES[0] not in self._evaluate():
            self._log("no mAP: fewer than two entities are held out (train.data.hold_out_entities)")
        self.batches: Any = iter(self.loader)
        with _Stop() as stop:
            self._all_steps(stop)
        return self._finish()

    def _all_steps(self, stop: _Stop) -> None:
        """A step's evaluation comes when its checkpoint is whole: it may take long, and whatever ends it costs no
        step. One that an earlier process did not come to the end of is done first."""
        begun = self._goes_on_from
        if begun and self._evaluates() and not self.world.broadcast(lambda: self.journal.has_evaluation(self.step)):
            self._evaluate_saved(begun, stop)
        while self.step < self.steps:
            asked, due, written = self._step(self.batches, stop)
            if written:
                self._end_save()
            evaluates, saves = self._evaluates(), due or self.step % self.config.checkpoint_every == 0
            if evaluates or saves or asked:
                asked = self._settle()[0] or asked
            if evaluates or asked:
                with self.journal.outside():
                    saved = self._save()
                if asked:
                    raise self._interrupted(saved)
                self._evaluate_saved(saved, stop)
            elif saves:
                with self.journal.outside():
                    self._begin_save()
                    if not self.config.save_in_background:
                        self._end_save()

    def _evaluates(self) -> bool:
        """Whether an evaluation is due after this step."""
        every = self.config.evaluate_every
        return self.step > 0 and (self.step == self.steps or (every is not None and self.step % every == 0))

    def _evaluate_saved(self, saved: checkpoint.Place, stop: _Stop) -> None:
        try:
            self._evaluate(stop)
        except _BrokenOff:
            raise self._interrupted(saved) from None

    def _interrupted(self, saved: checkpoint.Place) -> Interrupted:
        return Interrupted(
            f"interrupted after step {self.step:,} of {self.steps:,}, which is saved in {saved}: the same command goes "
            "on from there, --restart begins anew"
        )

    def _step(self, batches: Iterator[Batch], stop: _Stop) -> tuple[bool, bool, bool]:
        """One step of all ranks. Returns what `_settle` found.

        To ask a card in every step whether the loss is a number would have it wait for the next step's kernels. So the
        card decides alone whether the update changes anything, and the host reads the numbers of a step when it has
        queued the gradient of the next one, but not yet its update: weights, moments and head are then those before a
        bad step, as if it had been passed over at once. (Statistics of batch norms have seen the next batch.) On a
        processor there is nothing to wait for.
        """
        config, parts = self.config, self.config.accumulate
        rate = factor(self.step, self.steps, config.optimizer.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * config.optimizer.learning_rate * group["lr_scale"]
        self.module.train()
        losses: dict[str, Tensor] = {}
        image_ids: list[bytes] = []
        for part, (batch, shared) in enumerate(self._micro_batches(batches)):
            image_ids += batch.image_ids
            with strategy.micro_batch(self.module, last=part == parts - 1):
                if shared is not None:
                    shared.repeat_draws(self.world.device)
                with self.time.of("towers"):
                    encoded = self._encode(batch)
                with self.time.of("losses"), self._precision():
                    contrastive = None if shared is None else shared.contrastive(encoded)
                    found = self.recipe.losses(encoded, batch, self.head, self.world, self.step, contrastive)
                with self.time.of("backward"):
                    (found["loss"] / parts).backward()
            if self._counts is not None:
                tokens = 0 if batch.tokens_BL is None else batch.tokens_BL.numel()
                self.operations += self._counts.of(len(batch), tokens)
            for name, loss in found.items():
                losses[name] = losses.get(name, 0.0) + loss.detach() / parts
        settled = self._settle()
        with self.time.of("update"):
            told = self._update(losses, rate, stop)
        self.step += 1
        learning_rate, wait = rate * config.optimizer.learning_rate, self.loader.wait_seconds
        read = self.world.on_host(told / self.world.size)
        self._told = _Told(self.step, losses, image_ids, learning_rate, wait, self.operations, read)
        return self._settle() if self._reads_at_once else settled

    def _update(self, losses: dict[str, Tensor], rate: float, stop: _Stop) -> Tensor:
        """Clips the gradient, whose norm is added to the losses, and applies it unless something of the step is bad on
        some rank. Returns the sums over ranks that `_settle` reads."""
        losses["gradient norm"] = self._clip()
        mine = torch.stack([x.float().reshape(()) for x in losses.values()])
        written = self._saving is not None and self._saving.written
        flags = self.world.on_device(torch.tensor([float(stop.asked), float(self._is_due()), float(written)]))
        told = self.world.sum(torch.cat([mine, (~mine.isfinite()).any().float()[None], flags]))
        bad = told[len(mine)] > 0
        strategy.update(self.optimizer, unless=bad)
        self.optimizer.zero_grad(set_to_none=True)
        if self.head is not None:
            self.head.step(rate * self.config.head.learning_rate, unless=bad)
        self.towers.clamp()
        return told

    def _micro_batches(self, batches: Iterator[Batch]) -> Iterator[tuple[Batch, Shared | None]]:
        """Those of a step, on the device; all at once where they share their negatives."""
        count, sharing = self.config.accumulate, self._sharing()
        if sharing is None:
            for _ in range(count):
                yield self._on_device(next(batches)), None
            return
        held = [self._on_device(next(batches)) for _ in range(count)]
        contrast = functools.partial(sharing.contrast, world=self.world)
        shared = share(held, self.module, self._encode, contrast, self.world, self.time.of)
        yield from zip(held, shared, strict=True)

    def _sharing(self) -> Contrastive | None:
        """The recipe, where its micro-batches share their negatives."""
        wanted = self.config.loss.shared_negatives and self.config.accumulate > 1
        return self.recipe if wanted and isinstance(self.recipe, Contrastive) else None

    def _encode(self, batch: Batch) -> Encoded:
        with self._precision():
            encoded: Encoded = self.module(batch.pixels_BCHW, batch.tokens_BL)
        return encoded

    @property
    def _reads_at_once(self) -> bool:
        """Whether a step's numbers are there when the host has done its part."""
        return self.world.device.type == "cpu"

    def _settle(self) -> tuple[bool, bool, bool]:
        """Reads what the last step came to: into the journal and the mean of the weights, or it was a bad one. Returns
        whether somebody asked a rank to stop by then, whether a checkpoint is due by the first one's clock, and whether
        all ranks have written the one that is under way."""
        told, self._told = self._told, None
        if told is None:
            return False, False, False
        *means, bad, asked, due, written = told.read()
        if bad:
            self._pass_over(told)
        else:
            if self.ema is not None:
                self.ema.update(self.towers, told.step)
            mean = dict(zip(told.losses, means, strict=True))
            norm = mean.pop("gradient norm")
            spent = self.time.totals()
            self.journal.step(told.step, mean, told.learning_rate, norm, told.wait_seconds, spent, told.operations)
        return asked > 0, due > 0, written == 1

    def _can_pass_over(self) -> bool:
        """Whether nothing of a bad step is left in the towers: running statistics of batch norms would be."""
        statistics = (b for name, b in self.towers.named_buffers() if name.rpartition(".")[2].startswith("running_"))
        mine = all(bool(torch.isfinite(b).all()) for b in statistics)
        return all(self.world.gather_objects(mine))

    def _pass_over(self, told: _Told) -> None:
        """Counts a bad step, or raises BadLoss; all ranks do the same."""

        def save() -> checkpoint.Place:
            self.step = told.step - 1
            return self._save()

        journal.check_finite(
            told.losses,
            told.step,
            told.image_ids,
            self.world,
            self.folder,
            config_digest=self.fingerprint,
            save=save,
            pass_over=self.bad_steps < self.config.skip_bad_steps and self._can_pass_over(),
        )
        self.bad_steps += 1
        self.journal.passed_over(told.step)

    def _is_due(self) -> bool:
        minutes = self.config.checkpoint_minutes
        return self.world.first and minutes is not None and time.monotonic() - self._saved_at > 60 * minutes

    def _on_device(self, batch: Batch) -> Batch:
        """Labels stay on the host, where the head works out what it compares."""
        device = self.world.device
        tokens_BL = None if batch.tokens_BL is None else self.towers.trim(batch.tokens_BL)
        if device.type == "cpu":
            return replace(batch, tokens_BL=tokens_BL)
        teacher_BT, teacher_text_BT = batch.teacher_BT, batch.teacher_text_BT
        return Batch(
            pixels_BCHW=batch.pixels_BCHW.to(device, non_blocking=True),
            class_B=batch.class_B,
            classes_BK=batch.classes_BK,
            tokens_BL=None if tokens_BL is None else tokens_BL.to(device, non_blocking=True),
            teacher_BT=None if teacher_BT is None else teacher_BT.to(device, non_blocking=True),
            image_ids=batch.image_ids,
            teacher_text_BT=None if teacher_text_BT is None else teacher_text_BT.to(device, non_blocking=True),
            teachers=batch.teachers,
        )

    def _clip(self) -> Tensor:
        """Norm of the towers' gradient over all ranks, before it is cut to `clip_norm`."""
        limit = self.config.optimizer.clip_norm
        norm = nn.utils.clip_grad_norm_(self.towers.parameters(), math.inf if limit is None else limit)
        full = getattr(norm, "full_tensor", None)
        return norm if full is None else full()

    def _precision(self) -> Any:
        if self.config.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.world.device.type, torch.bfloat16)

    # -- figures, checkpoints, the end --------------------------------------------------------------------------

    def _evaluate(self, stop: _Stop | None = None) -> dict[str, float]:
        """Held-out figures of the weights that an export would have; the same on every rank.

        Raises _BrokenOff, on every rank, where one was asked to stop: they look between two batches.
        """
        go_on = functools.partial(self._go_on, stop)
        with self.journal.outside(), self._weights_to_use(), self._precision():
            measured = self.held_out.measure(go_on)
            if self._sets is not None:
                self.module.eval()
                measured |= self._sets(OnRanks(self.towers, self.module, self.world, go_on))
                self.module.train()
        if self.step and self._is_better(measured):
            self.world.broadcast(self._mark_best)  # before the journal has it, which says that nothing is left to do
        self.journal.evaluation(self.step, measured)
        return measured

    def _go_on(self, stop: _Stop | None) -> None:
        if stop is not None and self.world.max(torch.tensor(float(stop.asked))) > 0:
            raise _BrokenOff

    def _weights_to_use(self) -> Any:
        return self.ema.swapped(self.towers) if self.ema is not None else contextlib.nullcontext()

    def _save(self) -> checkpoint.Place:
        """The checkpoint of this step, whole; one that is there stays as it is."""
        self._begin_save(copies=False)
        saved = self._end_save()
        assert saved is not None
        return saved

    def _begin_save(self, copies: bool = True) -> None:
        """Begins to write the checkpoint of this step; `_end_save` makes it whole.

        copies   the training goes on meanwhile
        """
        self._end_save()
        self.world.broadcast(self._still_alone)
        state = checkpoint.State(
            step=self.step,
            position=self.step * self.config.data.batch_size,
            width=self.towers.width,
            recipe=self.config.recipe,
            config=self.config.shown(),
            dataset=self.published.fingerprint,
            best=self.best,
            counts={**self._skipped(), _BAD_STEPS: self.bad_steps},
            text_trained=self.text_trained,
            reinforced=None if self.reinforced is None else self.reinforced.fingerprint,
        )
        mean = None if self.ema is None else strategy.part_of(self.ema.mean.items(), self.world)
        head = None
        if self.head is not None:
            class_R, weights_RD, accumulators_R = self.head.shard()
            entity_R = torch.tensor(self.samples.entity_ids_C)[class_R.cpu()]
            head = checkpoint.HeadRows(class_R, entity_R, weights_RD, accumulators_R)
        self._saving = checkpoint.Save(
            self.home,
            state,
            self.world,
            towers=strategy.part_of(strategy.towers_state(self.towers), self.world),
            ema=mean,
            optimizer=strategy.part_of(strategy.optimizer_state(self.towers, self.optimizer), self.world),
            head=head,
            copies=copies and self.config.save_in_background,
            spool=self.folder,
        )
        self._saved_at = time.monotonic()

    def _end_save(self) -> checkpoint.Place | None:
        """The checkpoint that was under way, whole; None where none was."""
        saving, self._saving = self._saving, None
        if saving is None:
            return None
        self.world.broadcast(self._still_alone)
        saved = saving.finish()
        self.world.broadcast(self._tidy)
        self.journal.draw()
        return saved

    def _is_better(self, measured: dict[str, float]) -> bool:
        """Whether the figure that says which checkpoint is best is better than any before."""
        figure = next((measured[name] for name in FIGURES if name in measured), None)
        if figure is None or (self.best is not None and figure <= self.best):
            return False
        self.best = figure
        return True

    def _mark_best(self) -> None:
        """The checkpoint of this step, which is there."""
        assert self.best is not None
        checkpoint.mark_best(self.home, self.step, self.best)
        self._tidy()

    def _tidy(self) -> None:
        """Removes old checkpoints."""
        checkpoint.prune(self.home, self.config.keep_checkpoints)
        self.mirror.push()

    def _resume(self, restart: bool) -> None:
        """Goes on from the folder's last checkpoint, or begins."""
        found = self.world.broadcast(lambda: None if restart else self._last())
        if found is None:
            self._begin()
            return
        saved = checkpoint.load(found, self.world)
        changed = _changed(export.settings_of(saved).shown(), self.config.shown())
        taken = {k: v for k, v in changed.items() if _is_taken(k, v)}
        refused = [f"train.{k} ({v})" for k, v in changed.items() if k not in taken]
        if refused:
            raise TrainError(
                f"{found} was trained with other settings: {', '.join(refused)}. "
                "Set them back, take another train.folder, or start anew with --restart"
            )
        if saved.state.step > self.steps:
            raise TrainError(
                f"{found} has done {saved.state.step:,} steps, more than the {self.steps:,} asked for: raise "
                "train.steps or train.epochs, take another train.folder, or start anew with --restart"
            )
        before, now = saved.state.reinforced, None if self.reinforced is None else self.reinforced.fingerprint
        if before is not None and now != before:
            raise TrainError(
                f"{found} was trained with other teachers, augmentations or captions than the reinforced tables have "
                "by now: bring those back, take another train.folder, or start anew with --restart"
            )
        saved.check_width(self.towers.width)
        strategy.load_towers(self.towers, saved.towers, str(found))
        strategy.load_optimizer(self.towers, self.optimizer, saved.optimizer or {}, saved.state.step)
        if self.ema is not None:
            self.ema.load(saved.weights)  # the trained weights, where no mean was kept so far
        if self.head is not None:
            self._load_head(saved)
        if saved.state.dataset != self.published.fingerprint:
            self._log(
                f"{found} was trained on another state of the dataset: which samples are left of its epoch cannot be "
                "said, so the training goes on at the same position of this one"
            )
        self._goes_on_from, self.step = found, saved.state.step
        self.skipped = dict(saved.state.counts)
        self.bad_steps = self.skipped.pop(_BAD_STEPS, 0)
        self.best = self.world.broadcast(lambda: self._best_by_then(saved.state))
        self.text_trained = self.text_trained or export.text_trained(saved)
        with_these = f", with train.{', train.'.join(f'{k} ({v})' for k, v in taken.items())}" if taken else ""
        self._log(f"goes on from {found}, {self.step:,} of {self.steps:,} steps done{with_these}")

    def _begin(self) -> None:
        """From the checkpoint that train.start_from names, where it names one."""
        named = self.config.start_from
        if named is None:
            return
        self.began_from = self.world.broadcast(lambda: warm_start.find(named, self.home))
        saved = checkpoint.load(self.began_from, self.world)
        self._log(f"begins from {self.began_from}")
        for line in warm_start.take(self.towers, saved, self.config):
            self._log(line)
        self.text_trained = self.text_trained or export.text_trained(saved)
        if self.ema is not None:
            self.ema = Ema(self.towers, self.ema.decay)
        if self.head is not None:
            self._load_head(saved, fresh=True)

    def _last(self) -> checkpoint.Place | None:
        self.mirror.fetch(journal.FILE, wandb_board.FILE)
        return checkpoint.latest(self.home)

    def _forget(self) -> None:
        """The checkpoints and the outcome of the folder's earlier training."""
        checkpoint.drop_beyond(self.home, -1)
        files.remove(files.join(self.home, OUTCOME))

    def _best_by_then(self, state: checkpoint.State) -> float | None:
        """The best figure of the steps up to a checkpoint's; its own was measured when it had been saved."""
        marked = checkpoint.best(self.home)
        figures = [state.best, marked[1] if marked is not None and marked[0] <= state.step else None]
        return max((figure for figure in figures if figure is not None), default=None)

    def _load_head(self, saved: checkpoint.Checkpoint, fresh: bool = False) -> None:
        """fresh   without the accumulators, which are the state of an optimizer"""
        assert self.head is not None
        entity_C = torch.tensor(self.samples.entity_ids_C)
        change = saved.class_change(entity_C)
        if change or fresh:
            self._log(str(change))
        rank, size = self.world.rank, self.world.size
        for rows in saved.head_rows(entity_C, self.towers.width, lambda class_C: class_C % size == rank):
            accumulators_C = torch.zeros_like(rows.accumulators_C) if fresh else rows.accumulators_C
            self.head.load(rows.class_C, rows.weights_CD, accumulators_C)

    def _skipped(self) -> dict[str, int]:
        """Undecodable images so far, by reason: of all ranks, and of the parts of the training before a resume."""
        total = dict(self.skipped) if self.world.first else {}
        mine = self.loader.skipped if hasattr(self, "loader") else {}
        for counts in self.world.gather_objects(dict(mine)):
            for reason, count in counts.items():
                total[reason] = total.get(reason, 0) + count
        return total

    def _finish(self) -> Outcome:
        """Exports the weights and writes the outcome; what an earlier call wrote stays as it is."""
        skipped = self._skipped()
        weights = strategy.gathered(strategy.towers_state(self.towers), self.world.first)
        if self.ema is not None:
            weights |= strategy.gathered(self.ema.mean.items(), self.world.first)
        result = None
        if self.world.first:
            measured = [r["figures"] for r in journal.rows(self.folder) if r["kind"] == "evaluation"]
            result = Outcome(
                folder=self.home,
                recipe=self.config.recipe,
                steps=self.steps,
                images=len(self.samples),
                before=measured[0] if measured else {},
                after=measured[-1] if measured else {},
                export=files.join(self.home, "export"),
                left_out=self.samples.left_out,
                skipped=skipped,
                bad_steps=self.bad_steps,
            )
            told = card.of_training(self.folder, self.config, self.step, self.text_trained)
            export.export(self.towers, weights, self.folder / "export", card=told)
            self.mirror.push()
            files.write_json(files.join(self.home, OUTCOME), asdict(result))
        found: Outcome = self.world.gather_objects(result)[0]
        return found


_STOPPED_BY = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C, torchrun's and a scheduler's end, and what `sbatch --signal` sends some time before it."""


class _Stop:
    """While it is open, a signal asks for an end after the step that is being done; a second Ctrl-C ends at once.

    Elsewhere than in a process's main thread, which alone is told of signals, nobody asks.
    """

    def __init__(self) -> None:
        self.asked = False
        self._by_hand = 0

    def __enter__(self) -> _Stop:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in _STOPPED_BY:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _ask(self, number: int, _: object) -> None:
        self._by_hand += number == signal.SIGINT
        if self._by_hand > 1:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked = True
            log.warning(
                "%s: the step is finished and saved first; one more Ctrl-C ends at once, without saving",
                signal.Signals(number).name,
            )


def outcome(folder: str) -> dict[str, Any]:
    """What the training in a folder came to. Raises TrainError where it has not ended."""
    path = files.join(folder, OUTCOME)
    if not files.exists(path):
        raise TrainError(f"{path} is not there: the training has not ended; the same command goes on with it")
    found: dict[str, Any] = files.read_json(path)
    return found


def _is_taken(name: str, change: str) -> bool:
    """Whether the training goes on with the changed setting and logs it; else it refuses."""
    moved = name == "encoder.model" and change.count("local-dir:") == 2  # the weights' names and shapes are compared
    return moved or name in _CHANGE_IS_LOGGED or name.startswith("optimizer.")


def _changed(before: dict[str, Any], now: dict[str, Any], path: str = "") -> dict[str, str]:
    """`then → now` of each setting that differs and is not of _MAY_CHANGE, by its path below `train`."""
    found: dict[str, str] = {}
    for key in sorted(before.keys() | now.keys()):
        then, here, name = before.get(key), now.get(key), f"{path}{key}"
        if name in _MAY_CHANGE:
            continue
        if isinstance(then, dict) and isinstance(here, dict):
            found |= _changed(then, here, f"{name}.")
        elif then != here:
            found[name] = f"{then} → {here}"
    return found


def _reinforced(config: TrainConfig, published: Published) -> Reinforced | None:
    """The reinforced tables, where they are read. Raises DatasetError, also where texts were put together otherwise."""
    if not config.reinforce.reads:
        return None
    found = open_reinforced(config.reinforce, published)
    if config.reinforce.affinity and found.settings.template != config.text.template:
        raise DatasetError(
            f"train.text.template is {config.text.template!r}, and the teachers of {found.folder} were told entities "
            f"as {found.settings.template!r}: set the one as the other, or `i2e reinforce --restart`"
        )
    return found


def _teacher(config: Config, chosen: Recipe, samples: Samples) -> Teacher | None:
    if not chosen.uses_teacher:
        return None
    return open_teacher(config.train.loss.teacher or files.join(config.output, "image_vectors"), samples)


@contextlib.contextmanager
def _torch_settings(config: TrainConfig) -> Iterator[None]:
    """Threads (the rank's share of the machine's cores, unless the config says otherwise) and the precision of float32
    products for the length of a training; afterwards both are as the caller had them."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(config.threads or share_of_cores(1))
    # The head's products stay float32 under autocast; on a card TF32 makes them several times as fast.
    torch.set_float32_matmul_precision("high" if config.precision == "bfloat16" else "highest")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
