"""Training of a reranker on examples: gold links, anchors of Wikipedia, a dataset's own sure links.

The loss is the cross-entropy of the right choice among a mention's candidates and "none of these", with what the fast
path says as a start (fusing.py). A step depends on the seed and its number alone, so a training that was stopped goes
on as if it had not been.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from i2e_pipeline.core import files
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.rerank.fusing import Fusing, best_of, fit
from i2e_pipeline.rerank.questions import Asked, laid_flat, places_of
from i2e_pipeline.rerank.reranker import IN_TRAINING
from i2e_pipeline.rerank.scorer import Scorer, listwise, scores_of
from i2e_pipeline.rerank.seen import Seen, text_hash

log = logging.getLogger(__name__)
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

HELD_OUT = 20
"""One text of so many is not trained on: the fusing is fitted there, and the curve tells its figures."""
_SORTED_TOGETHER = 32
"""Batches whose questions are sorted by length, so that a batch has few empty tokens."""
_CURVE, _STATE = IN_TRAINING


class TrainingError(I2EError, ValueError):
    """Examples or a folder that cannot be trained with; the message says the remedy."""


@dataclass(frozen=True)
class Training:
    """How long and how fast."""

    epochs: float = 3.0
    batch: int = 32
    """Mentions a step."""
    rate: float = 5e-5
    """Peak learning rate of pretrained layers."""
    head_rate: float = 5e-4
    """Of the other layers."""
    warm_up: float = 0.05
    """Share of the steps in which the rate rises; in the others it falls to 0."""
    weight_decay: float = 0.01
    frozen: int = 0
    """Pretrained layers, from below, that stay as they are, with the embeddings; -1: not even those."""
    below: float = 0.97
    """Only mentions whose best candidate is less probable than this by the fast path are learned: the others are never
    asked."""
    bfloat16: bool = False
    seed: int = 0
    save_minutes: float = 10.0
    measure_steps: int = 200


def unsure(table: pa.Table, below: float) -> pa.Table:
    """Examples of at least two candidates of which none is as probable as `below`."""
    asked = laid_flat(table)
    top = np.zeros(len(asked))
    np.maximum.at(top, asked.mention, np.exp(asked.log_probability))
    return table.filter(pa.array((np.bincount(asked.mention, minlength=len(asked)) > 1) & (top < below)))


def held_out(texts: Iterable[str]) -> npt.NDArray[np.bool_]:
    """Which texts are not trained on, by a hash: all mentions of a text together, whatever file it is in."""
    digests = (hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest() for text in texts)
    return np.array([int.from_bytes(digest, "big") % HELD_OUT == 0 for digest in digests], dtype=bool)


def train(
    model: Scorer,
    examples: pa.Table,
    folder: str | Path,
    settings: Training,
    device: str = "cpu",
    stop: Callable[[], bool] = lambda: False,
    seen: Seen | None = None,
) -> dict[str, Any]:
    """Train, or go on where `folder` holds a training of the same settings and examples; returns its figures.

    examples   EXAMPLES
    folder     gets curve.jsonl, a line per measurement on the held-out texts, and training.pt, which is removed at the
               end
    stop       asked after each step; once true, the state is written and the training ends early (`finished` false)
    seen       where entities were seen, which the model is told
    Raises TrainingError for too few examples, or a folder with another training.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    learned = unsure(examples, settings.below)
    asked = laid_flat(learned, seen)
    chosen = places_of(learned.column("chosen").to_pylist(), asked)
    held = held_out(asked.texts)
    learn, measured = np.flatnonzero(~held), np.flatnonzero(held)
    if len(learn) < settings.batch or not len(measured):
        raise TrainingError(
            f"{len(learned)} of {len(examples)} examples are unsure enough to learn from (two candidates, the best "
            f"below {settings.below}): at least {settings.batch} and one text in {HELD_OUT} to measure on are needed"
        )
    steps = max(1, round(settings.epochs * len(learn) / settings.batch))
    batches = _Batches(learn, model.lengths(asked, np.arange(len(asked))), settings)
    optimizer, schedule = _optimizer(model, settings, steps)
    identity = _identity(model, settings, learned, asked.told)
    model.to(device)
    step, minutes = _go_on(place, model, optimizer, schedule, identity, device)
    began = saved = time.monotonic()
    losses: list[float] = []
    while step < steps and not stop():
        numbers = batches.of_step(step)
        torch.manual_seed((settings.seed << 32) + step)
        model.train()
        losses.append(_step(model, asked, chosen, numbers, settings, device, optimizer))
        schedule.step()
        step += 1
        if step % settings.measure_steps == 0 or step == steps:
            spent = minutes + (time.monotonic() - began) / 60
            figures = measure(asked, chosen, measured, *scores_of(model, asked, measured, device, settings.bfloat16))
            line = {"step": step, "of": steps, "loss": round(float(np.mean(losses)), 4), "minutes": round(spent, 2)}
            _told(place, {**line, **figures})
            losses = []
        if time.monotonic() - saved > 60 * settings.save_minutes:
            _save(place, model, optimizer, schedule, identity, step, minutes + (time.monotonic() - began) / 60)
            saved = time.monotonic()
    if step < steps:
        _save(place, model, optimizer, schedule, identity, step, minutes + (time.monotonic() - began) / 60)
        return {"finished": False, "step": step, "of": steps}
    score, none = scores_of(model, asked, measured, device, settings.bfloat16)
    # Figures are of the half of the held-out questions that the fusing was not fitted on; of too few, of all.
    half = np.array([text_hash(asked.texts[n]) % 2 == 0 for n in measured])
    fitted, rest = (measured[half], measured[~half]) if half.any() and not half.all() else (measured, measured)
    fusing = fit(asked, score, none, chosen, fitted)
    return {
        "finished": True,
        "examples": len(learn),
        "measured": len(rest),
        "steps": steps,
        "fusing": asdict(fit(asked, score, none, chosen, measured)),
        **measure(asked, chosen, rest, score, none, fusing),
    }


def _step(
    model: Scorer,
    asked: Asked,
    chosen: I64,
    numbers: I64,
    settings: Training,
    device: str,
    optimizer: torch.optim.Optimizer,
) -> float:
    order = np.random.default_rng(int(torch.randint(2**31, ()).item()))
    rows = model.rows(asked, numbers, order=order)
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=settings.bfloat16):
        scores = model(rows.to(device)).float()
    prior, target = prior_and_target(asked, chosen, numbers, rows.place, scores.shape[1])
    loss = listwise(scores, prior.to(device), target.to(device))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    return float(loss.detach())


def prior_and_target(asked: Asked, chosen: I64, numbers: I64, place: I64, width: int) -> tuple[Tensor, Tensor]:
    """The fast path's log-probabilities (Q, width) in the columns of the scores, 0 where there is no candidate, and
    the column of the right choice (Q); column 0 is "none of these".

    numbers rising
    place   of each candidate of the questions `numbers`, in their order, the column that it has in the scores
    """
    of = asked.places(numbers)
    row = np.searchsorted(numbers, asked.mention[of])
    prior = np.zeros((len(numbers), width), np.float32)
    prior[:, 0] = asked.log_none[numbers]
    prior[row, place] = asked.log_probability[of]
    target = np.zeros(len(numbers), np.int64)
    right = chosen[asked.mention[of]] == of
    target[row[right]] = place[right]
    return torch.from_numpy(prior), torch.from_numpy(target)


class _Batches:
    """The questions of each step: each once an epoch, those of a batch of about one length."""

    def __init__(self, learn: I64, lengths: I64, settings: Training) -> None:
        self._learn, self._lengths, self._settings = learn, lengths, settings
        self._epoch, self._batches = -1, list[I64]()

    def of_step(self, step: int) -> I64:
        """Rising numbers."""
        epoch, at = divmod(step, max(1, len(self._learn) // self._settings.batch))
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._of_epoch(epoch)
        return self._batches[at]

    def _of_epoch(self, epoch: int) -> list[I64]:
        batch = self._settings.batch
        draw = np.random.default_rng([self._settings.seed, epoch])
        order = draw.permutation(self._learn)
        order = order[: max(1, len(order) // batch) * batch]
        batches: list[I64] = []
        for start in range(0, len(order), _SORTED_TOGETHER * batch):
            some = order[start : start + _SORTED_TOGETHER * batch]
            some = some[np.argsort(self._lengths[some], kind="stable")]
            of_some = [np.sort(some[at : at + batch]) for at in range(0, len(some), batch)]
            batches += [of_some[i] for i in draw.permutation(len(of_some))]
        return batches


def _optimizer(
    model: Scorer, settings: Training, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    for layer in model.from_below()[: settings.frozen + 1]:
        for parameter in layer.parameters():
            parameter.requires_grad = False
    pretrained = {id(p) for p in model.pretrained().parameters()}
    groups = [
        {
            "params": [p for p in model.parameters() if p.requires_grad and (id(p) in pretrained) == of],
            "lr": rate,
        }
        for of, rate in ((True, settings.rate), (False, settings.head_rate))
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=settings.weight_decay)
    warm = max(1, int(settings.warm_up * steps))
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / warm, max(0.0, (steps - n) / max(1, steps - warm)))
    )


def _identity(model: Scorer, settings: Training, learned: pa.Table, told: Sequence[str]) -> str:
    """Names what a training must agree in to go on: all but how often it is saved and measured."""
    of = {k: v for k, v in asdict(settings).items() if k not in ("save_minutes", "measure_steps")}
    about = json.dumps([model.kind, model.candidate_tokens, of], sort_keys=True)
    digest = hashlib.blake2b(about.encode(), digest_size=16)
    for text in told:
        digest.update(f"{len(text)} {text}".encode("utf-8", "replace"))
    for row in learned.to_pylist():
        digest.update(json.dumps(row, sort_keys=True).encode())
    for name, parameter in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _save(place: Path, model: Scorer, optimizer: Any, schedule: Any, identity: str, step: int, minutes: float) -> None:
    state = {
        "identity": identity,
        "step": step,
        "minutes": minutes,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
    }
    content = io.BytesIO()
    torch.save(state, content)
    files.write_bytes(str(place / _STATE), content.getvalue())
    log.info("step %d is kept in %s", step, place / _STATE)


def _go_on(place: Path, model: Scorer, optimizer: Any, schedule: Any, identity: str, device: str) -> tuple[int, float]:
    """Step and minutes of the training that lies there; 0 where none does."""
    path = place / _STATE
    if not path.exists():
        (place / _CURVE).unlink(missing_ok=True)
        return 0, 0.0
    state = torch.load(path, map_location=device, weights_only=True)
    if state["identity"] != identity:
        raise TrainingError(
            f"{path} is of a training with another model, other settings or other examples: name another folder, or "
            "remove that file"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    _cut_curve(place, state["step"])
    log.info("going on at step %d", state["step"])
    return int(state["step"]), float(state["minutes"])


def _cut_curve(place: Path, step: int) -> None:
    """Measurements behind the state that is gone on from are made again."""
    path = place / _CURVE
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    files.write_bytes(str(path), "".join(f"{line}\n" for line in kept).encode())


def _told(place: Path, line: dict[str, Any]) -> None:
    with (place / _CURVE).open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")
    log.info(
        "step %d of %d, %.0f min: loss %.4f; held out %.4f (before %.4f), right %.4f (before %.4f)",
        *(line[k] for k in ("step", "of", "minutes", "loss", "held_out_loss", "loss_before", "right", "right_before")),
    )


def measure(
    asked: Asked, chosen: I64, numbers: I64, score: F64, none: F64, fusing: Fusing | None = None
) -> dict[str, float]:
    """Figures on some questions, with the reranker and before: mean loss, how often the most probable candidate is the
    right one, the expected calibration error of its probability in 10 bins, and how often the right one is among the
    candidates (`within`)."""
    p, q = (fusing or Fusing()).probabilities(asked, score, none)

    def loss(of: F64, rest: F64) -> float:
        likely = np.where(chosen >= 0, of[chosen], rest)[numbers]
        return round(float(-np.log(np.maximum(likely, 1e-12)).mean()), 4)

    def right(of: F64) -> float:
        return round(float((best_of(of, asked) == chosen)[numbers].mean()), 4)

    def ece(of: F64) -> float:
        best = best_of(of, asked)[numbers]
        bins = np.minimum((of[best] * 10).astype(np.int64), 9)
        gap = np.bincount(bins, of[best] - (best == chosen[numbers]), 10)
        return round(float(np.abs(gap).sum() / max(len(numbers), 1)), 4)

    before = np.exp(asked.log_probability)
    return {
        "held_out_loss": loss(p, q),
        "loss_before": loss(before, np.exp(asked.log_none)),
        "right": right(p),
        "right_before": right(before),
        "ece": ece(p),
        "ece_before": ece(before),
        "within": round(float((chosen[numbers] >= 0).mean()), 4),
    }
