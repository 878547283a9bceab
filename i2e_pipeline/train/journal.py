"""The journal of a training: what it prints, and what it leaves to be read later.

Writes  <train folder>/journal.jsonl           one JSON object a line: kind "start", "step" or "evaluation"
        <train folder>/tensorboard/            the same for TensorBoard, where it is installed
        <train folder>/wandb/                  the same for Weights & Biases, where it is asked for (wandb_board.py)
        <train folder>/loss.png                (curves.py)
        <train folder>/bad-step-00000012.json  the batch of a step whose loss is not a number

After a kill and a resume the file reads like one run: rows beyond the step that is resumed are dropped, for those
steps are done again. Only rank 0 prints and writes.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i2e_pipeline.core import files
from i2e_pipeline.core.errors import ExitCode, I2EError
from i2e_pipeline.train import curves
from i2e_pipeline.train.parallel import World
from i2e_pipeline.train.step_time import BETWEEN
from i2e_pipeline.train.wandb_board import Board

log = logging.getLogger(__name__)

Number = float | Tensor
FILE = "journal.jsonl"
_DATA, _ALL = "data", "all"
"""Of a step's seconds: waiting for the loader, and the whole."""


class BadLoss(I2EError, ValueError):
    """A loss that is not a finite number."""

    exit_code = ExitCode.FAULT


class Journal:
    """Takes every step; once in `log_every` steps it logs and writes what happened since the last time."""

    def __init__(
        self,
        folder: str | Path,
        steps: int,
        batch_size: int,
        world: World,
        *,
        images: int,
        start: int = 0,
        log_every: int = 10,
        facts: Mapping[str, Any] | None = None,
        peak_flops: float | None = None,
        wandb: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """batch_size   images of a step over all ranks
        images       of an epoch
        start        steps that a resumed training has done
        facts        more about this process for the start row: recipe, config …
        peak_flops   operations a second that a rank's device can do; None: not known, and no `mfu` is written
        wandb        project of Weights & Biases that gets the same scalars, and the settings
        Raises WandbError, and ModuleNotFoundError without that package, on every rank.
        """
        self.folder, self.steps, self.batch_size, self.images = Path(folder), steps, batch_size, images
        self.log_every = log_every
        self._writes = world.first
        self._sums: dict[str, Number] = {}
        self._counted = 0
        self._step = self._since = start
        self._peak_flops = peak_flops
        self._spent, self._spent_before = dict[str, float](), dict[str, float]()
        self._spent_long = {_DATA: 0.0, _ALL: 0.0}
        """Seconds by part since the last evaluation."""
        self._operations = self._operations_before = 0.0
        self._wait = self._waited = 0.0
        self._began = time.monotonic()
        self._wandb: list[Board] = []
        if wandb is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            world.broadcast(lambda: self._wandb.append(Board(wandb, self.folder, start, settings or {})))
        if self._writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._seen = rewind(self.folder, start)
            self._file = (self.folder / FILE).open("a", encoding="utf-8")
            self._board = _tensorboard(self.folder / "tensorboard", start)
            self._write({"kind": "start", "step": start, "time": _now(), "ranks": world.size, **(facts or {})})
            self._artist = ThreadPoolExecutor(1, "i2e-curves")
            self._drawing: Future[Path | None] | None = None
            self._undrawn = False

    def step(
        self,
        step: int,
        losses: Mapping[str, Number],
        learning_rate: float,
        norm: Number | None,
        wait_seconds: float,
        spent: Mapping[str, float] | None = None,
        operations: float = 0.0,
    ) -> None:
        """One optimiser step is done.

        step          counted from 1
        losses        scalars: "loss" and its parts; tensors are read only when a line is due, so that steps overlap
        norm          of the gradient before clipping
        wait_seconds  total that this rank has waited for data since the training began (Loader.wait_seconds)
        spent         seconds of each part of all its steps (StepTime.totals)
        operations    of all its steps
        """
        if not self._writes:
            return
        self._step, self._wait, self._spent, self._operations = step, wait_seconds, dict(spent or {}), operations
        self._counted += 1
        for name, value in {**losses, **({} if norm is None else {"norm": norm})}.items():
            value = value.detach() if isinstance(value, Tensor) else value
            self._sums[name] = value if name not in self._sums else self._sums[name] + value
        if step % self.log_every == 0 or step == self.steps:
            self._report(learning_rate)

    def passed_over(self, step: int) -> None:
        """A step that was not applied; it counts for the speed and has no losses."""
        self._step = step

    def evaluation(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures of what is held out, by name, after `step` steps."""
        if not self._writes:
            return
        row = {"kind": "evaluation", "step": step, "figures": dict(figures)}
        if any(seen == _plain(row) for seen in self._seen):
            return  # done again after a resume, with the same outcome
        log.info(f"step {step:,}/{self.steps:,}  " + "  ".join(f"{n} {_short(v)}" for n, v in figures.items()))
        self._write(row)
        self._to_board({f"evaluation/{n}": v for n, v in figures.items()}, step)
        if self._spent_long[_ALL] > 0 and len(self._spent_long) > 2:
            log.info(f"time of the steps: {_shares_line(_shares(self._spent_long))}")
        self._spent_long = {_DATA: 0.0, _ALL: 0.0}

    def has_evaluation(self, step: int) -> bool:
        """Whether an earlier process wrote one of this step; rank 0 knows."""
        return any(row["kind"] == "evaluation" and row["step"] == step for row in self._seen)

    @contextmanager
    def outside(self) -> Iterator[None]:
        """The time of the block does not count as time of training: evaluations, checkpoints."""
        began = time.monotonic()
        yield
        self._began += time.monotonic() - began

    def picture(self) -> Path | None:
        """Draws the journal into loss.png; None on other ranks and before the first line."""
        if not self._writes:
            return None
        title = f"{self.folder.name}: {self._step:,} of {self.steps:,} steps"
        return curves.draw(rows(self.folder), self.folder, title)

    def draw(self) -> None:
        """Has loss.png drawn while the training goes on; all that was written by then is in it after `close`, at the
        latest."""
        if not self._writes:
            return
        if self._drawing is not None and not self._drawing.done():
            self._undrawn = True
            return
        self._undrawn = False
        self._drawing = self._artist.submit(self.picture)
        self._drawing.add_done_callback(_say_why)

    def close(self, failed: bool = False) -> None:
        """failed   the training did not come to its end"""
        if self._writes:
            self._artist.shutdown()
            if self._undrawn:
                self.picture()
            self._file.close()
            if self._board is not None:
                self._board.close()
            for board in self._wandb:
                board.close(failed)

    def _report(self, learning_rate: float) -> None:
        now = time.monotonic()
        done, seconds = self._step - self._since, max(now - self._began, 1e-9)
        means = {name: float(total) / self._counted for name, total in self._sums.items()}
        norm = means.pop("norm", None)
        wait = min(1.0, max(0.0, self._wait - self._waited) / seconds)
        parts = {name: total - self._spent_before.get(name, 0.0) for name, total in self._spent.items()}
        # A host that runs ahead waits for the loader while the card still computes: the card waits between two steps.
        waited = min(wait * seconds, parts.pop(BETWEEN, math.inf))
        spent = {_DATA: waited, **parts, _ALL: seconds}
        shares = _shares(spent) if parts else {}
        row: dict[str, Any] = {
            "kind": "step",
            "step": self._step,
            "epoch": round(self._step * self.batch_size / self.images, 4),
            "images_per_second": round(done * self.batch_size / seconds, 2),
            "wait": round(wait, 5),
            "losses": means,
            "learning_rate": learning_rate,
            "norm": norm,
            "time": _now(),
        }
        if shares:
            row["time_shares"] = {name: round(share, 4) for name, share in shares.items()}
        if self._peak_flops is not None:
            row["mfu"] = round((self._operations - self._operations_before) / seconds / self._peak_flops, 4)
        self._write(row)
        log.info(line(row, self.steps, (self.steps - self._step) * seconds / done))
        scalars = {f"loss/{n}": v for n, v in means.items()}
        scalars |= {"learning_rate": learning_rate, "speed/images_per_second": done * self.batch_size / seconds}
        scalars |= {"speed/wait": wait} | ({} if norm is None else {"norm": norm})
        scalars |= {f"time/{name}": share for name, share in shares.items()}
        scalars |= {"speed/mfu": row["mfu"]} if "mfu" in row else {}
        self._to_board(scalars, self._step)
        self._sums, self._since, self._waited, self._began = {}, self._step, self._wait, now
        self._spent_before, self._operations_before = self._spent, self._operations
        for name, some in spent.items():
            self._spent_long[name] = self._spent_long.get(name, 0.0) + some
        self._counted = 0

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(_plain(row), ensure_ascii=False) + "\n")
        self._file.flush()

    def _to_board(self, scalars: Mapping[str, float], step: int) -> None:
        if self._board is not None:
            for name, value in scalars.items():
                self._board.add_scalar(name, value, step)
        for board in self._wandb:
            board.add(scalars, step)


def _shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Of the whole, by part; `rest` is what none of them is."""
    whole = max(seconds[_ALL], 1e-9)
    parts = {name: some / whole for name, some in seconds.items() if name != _ALL}
    return {**parts, "rest": max(0.0, 1 - sum(parts.values()))}


def _shares_line(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}".replace("%", " %") for name, share in shares.items())


def _say_why(drawn: Future[Path | None]) -> None:
    """A picture that cannot be drawn ends no training."""
    if error := drawn.exception():
        log.warning("%s was not drawn: %r", curves.FILE, error)


def rows(folder: str | Path) -> list[dict[str, Any]]:
    """Rows of a journal; a line that a kill cut off is left out, with a warning."""
    path = Path(folder) / FILE
    if not path.exists():
        return []
    found = []
    for number, text in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(text)
            row["kind"], row["step"]
        except (ValueError, TypeError, KeyError):
            log.warning(f"{path}, line {number}: cut off or not of this journal, left out")
            continue
        found.append(row)
    return found


def rewind(folder: Path, step: int) -> list[dict[str, Any]]:
    """Removes the journal's rows beyond a step, and broken ones; returns the rows that stay. A training that begins
    anew (step 0) keeps none: its first evaluation is done again too."""
    stay = [row for row in rows(folder) if row["step"] <= step] if step else []
    if (folder / FILE).exists():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in stay)
        files.write_bytes(str(folder / FILE), text.encode())
    return stay


def line(row: Mapping[str, Any], steps: int, seconds_left: float) -> str:
    """A step row as it is printed."""
    parts = {name: value for name, value in row["losses"].items() if name != "loss"}
    detail = ", ".join(f"{name} {_short(value)}" for name, value in parts.items())
    words = [
        f"step {row['step']:,}/{steps:,}",
        f"epoch {row['epoch']:.1f}",
        f"{row['images_per_second']:,.0f} images/s",
        f"wait {row['wait']:.1%}".replace("%", " %"),
        *([f"mfu {row['mfu']:.1%}".replace("%", " %")] if "mfu" in row else []),
        f"loss {_short(row['losses'].get('loss', math.nan))}" + (f" ({detail})" if len(parts) > 1 else ""),
        f"lr {row['learning_rate']:.1e}".replace("e-0", "e-").replace("e+00", ""),
        *([] if row["norm"] is None else [f"norm {_short(row['norm'])}"]),
        *([f"eta {_clock(seconds_left)}"] if row["step"] < steps else []),
    ]
    return "  ".join(words)


def check_finite(
    losses: Mapping[str, Number],
    step: int,
    image_ids: Sequence[bytes],
    world: World,
    folder: str | Path,
    *,
    config_digest: str,
    save: Callable[[], Path | str] | None = None,
    pass_over: bool = False,
) -> bool:
    """Whether a loss is NaN or infinite on any rank, which stops the training: all ranks raise BadLoss. They all call
    it.

    step       the one being done, counted from 1: its gradient has not been applied
    image_ids  this rank's images of the step
    save       writes the state before the step and says where; called by all ranks
    pass_over  the step is noted and said, and the training goes on without it
    """
    bad = [name for name, value in losses.items() if not math.isfinite(float(value))]
    flag = torch.tensor(float(bool(bad)), device=world.device)
    if not world.max(flag):
        return False
    values = {name: float(value) for name, value in losses.items()}
    told = world.gather_objects((values, bad, [image_id.hex() for image_id in image_ids]))
    path = Path(folder) / f"bad-step-{step:08d}.json"
    if world.first:
        ranks = [
            {"rank": rank, "losses": _plain(values), "image_ids": ids} for rank, (values, _, ids) in enumerate(told)
        ]
        files.write_json(str(path), {"step": step, "config_digest": config_digest, "ranks": ranks})
    # What ranks share, as the norm of the gradient, is bad on all of them: where it began, more is.
    rank, (values, bad, ids) = max(enumerate(told), key=lambda of_rank: len(of_rank[1][1]))
    what = f"step {step:,}: {', '.join(f'{name} is {values[name]}' for name in bad)}"
    what += f" on rank {rank}" if world.size > 1 else ""
    if pass_over:
        if world.first:
            log.warning(f"{what}, so it is passed over (train.skip_bad_steps); its images are in {path}")
        return True
    saved = "the state was not saved" if save is None else f"the state before this step is in {save()}"
    raise BadLoss(
        f"{what}, so the training stopped before it was applied. First images: {', '.join(ids[:4])}; all of them, and "
        f"the losses, are in {path}; {saved}. The same settings stop here again: try a lower "
        "train.optimizer.learning_rate, train.optimizer.clip_norm or train.precision=float32; where it is one batch in "
        "many, train.skip_bad_steps passes it over"
    )


def _tensorboard(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("tensorboard"):
            raise
        log.info("TensorBoard is not installed, so there are no event files (pip install tensorboard)")
        return None
    return SummaryWriter(str(folder), purge_step=start + 1 if start else 0)


def _plain(value: Any) -> Any:
    """As JSON can hold it: "nan" and "inf" as text."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _short(value: float) -> str:
    """Three figures: 12.3, 3.21, 0.0045."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
