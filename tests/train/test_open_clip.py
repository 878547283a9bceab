"""Losses and steps of a training against those of open_clip's own code, on as many ranks.

Both sides run in the same processes on the same rows: ours through `World`, theirs through ClipLoss and SigLipLoss with
the settings that exchange rows. Gradients are averaged over ranks, as DDP does it on either side.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip.loss
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from i2e_pipeline.commands.train import pretrain
from i2e_pipeline.core import config as configuration
from i2e_pipeline.train import losses
from i2e_pipeline.train.batch import Batch
from i2e_pipeline.train.journal import rows
from i2e_pipeline.train.parallel import World
from i2e_pipeline.train.trainer import _Training
from tests.train.ranks import by_ranks
from tests.train.small_dataset import image_row, write_dataset

IMAGES, WIDTH, DIM = 12, 10, 8
SIZES = (1, 2, 3)
SMALL = 1e-6
"""Relative difference, in the norm of the whole tensor: float32's roundings of a sum of some hundred terms."""

CLIP = {
    "ClipLoss": {"local_loss": False, "gather_with_grad": True},
    "ClipLoss, local_loss": {"local_loss": True, "gather_with_grad": True},
    "ClipLoss, no gather_with_grad": {"local_loss": False, "gather_with_grad": False},
}
SIGLIP = {f"SigLipLoss, {how}": {"dist_impl": how} for how in ("bidir", "shift", "reduce", "gather")}
CASES = (*CLIP, *SIGLIP)


def weights(dtype: torch.dtype) -> dict[str, Tensor]:
    """Two towers of a layer each, the scale and the bias."""
    draws = torch.Generator().manual_seed(1)
    made = {
        "image tower": torch.randn(WIDTH, DIM, generator=draws),
        "text tower": torch.randn(WIDTH, DIM, generator=draws),
        "log scale": torch.tensor(2.0),
        "bias": torch.tensor(-3.0),
    }
    return {name: value.to(dtype).requires_grad_() for name, value in made.items()}


def encoded(given: dict[str, Tensor], world: World) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors of this rank's images and texts, and the scale."""
    draws = torch.Generator().manual_seed(2)
    own = slice(world.rank * IMAGES // world.size, (world.rank + 1) * IMAGES // world.size)
    images, texts = (torch.randn(IMAGES, WIDTH, generator=draws)[own].to(given["bias"]) for _ in range(2))
    image_BD, text_BD = normalize(images @ given["image tower"]), normalize(texts @ given["text tower"])
    return image_BD, text_BD, given["log scale"].exp()


def ours(case: str, given: dict[str, Tensor], world: World) -> Tensor:
    pair = encoded(given, world)
    return losses.siglip(*pair, given["bias"], world=world) if case in SIGLIP else losses.info_nce(*pair, world=world)


def theirs(case: str, given: dict[str, Tensor], world: World) -> Tensor:
    pair, place = encoded(given, world), {"rank": world.rank, "world_size": world.size}
    loss: Tensor
    if case in SIGLIP:
        loss = open_clip.loss.SigLipLoss(**place, **SIGLIP[case])(*pair, given["bias"])
    else:
        loss = open_clip.loss.ClipLoss(**place, **CLIP[case])(*pair)
    return loss


def found(
    how: Callable[[str, dict[str, Tensor], World], Tensor], case: str, dtype: torch.dtype, world: World
) -> dict[str, Tensor]:
    """The loss and the gradients, as the mean over ranks."""
    given = weights(dtype)
    loss = how(case, given, world)
    loss.backward()
    result = {"loss": loss.detach()} | {name: x.grad for name, x in given.items() if x.grad is not None}
    return {name: world.sum(value) / world.size for name, value in result.items()}


def both(case: str, world: World) -> list[dict[str, Tensor]]:
    """Ours in float32, theirs in float32 and in float64."""
    return [
        found(ours, case, torch.float32, world),
        found(theirs, case, torch.float32, world),
        found(theirs, case, torch.float64, world),
    ]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    found_by: dict[int, Any] = by_ranks(both, CASES, SIZES, tmp_path_factory.mktemp("ranks"))
    return found_by


def far(got: Tensor, wanted: Tensor) -> float:
    """Relative to what is wanted, in the norm of the whole."""
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_a_loss_and_all_its_gradients_are_open_clips(case: str, size: int, results: dict[int, Any]) -> None:
    """Catches: a factor of the number of ranks, negatives of other ranks that get no gradient, a sum for a mean."""
    got, *wanted = results[size][case]
    for peer in wanted:
        assert got.keys() == peer.keys() >= {"loss", "image tower", "text tower", "log scale"}
        for name, value in peer.items():
            # Without gather_with_grad open_clip's towers have gradients of 1/W: rows of other ranks carry none.
            share = size if "no gather" in case and name.endswith("tower") else 1
            assert far(got[name], value * share) <= SMALL, name


class Plain(nn.Module):
    """A training as one would write it with open_clip: its model, its loss, torch's AdamW, its schedule and clamp."""

    def __init__(self, model: Any, mean: Any, std: Any, settings: Any, steps: int) -> None:
        super().__init__()
        from open_clip_train.scheduler import cosine_lr

        self.model, self.settings = model, settings
        self.mean_C11, self.std_C11 = (torch.tensor(x).view(-1, 1, 1) for x in (mean, std))
        self.criterion = open_clip.loss.ClipLoss()
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        # open_clip's rule, and position embeddings, which it lets decay and a training here does not.
        undecayed = ("bn", "ln", "bias", "logit_scale", "positional_embedding")
        plain = [p for name, p in named if p.ndim < 2 or any(part in name for part in undecayed)]
        matrices = [p for _, p in named if not any(p is other for other in plain)]
        self.optimizer = torch.optim.AdamW(
            [{"params": plain, "weight_decay": 0.0}, {"params": matrices, "weight_decay": settings.weight_decay}],
            lr=settings.learning_rate, betas=settings.betas, eps=settings.eps,
        )  # fmt: skip
        self.schedule = cosine_lr(self.optimizer, settings.learning_rate, round(settings.warmup * steps), steps)

    def step(self, number: int, pixels_BCHW: Tensor, tokens_BL: Tensor) -> tuple[float, float]:
        """The loss, and the gradient's norm before it is clipped."""
        self.schedule(number)
        self.optimizer.zero_grad()
        image_BD, text_BD, scale = self.model((pixels_BCHW.float() / 255 - self.mean_C11) / self.std_C11, tokens_BL)[:3]
        loss = self.criterion(image_BD, text_BD, scale)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, torch.tensor(100.0).log())
        return float(loss.detach()), float(norm)


def test_twenty_steps_are_those_of_a_plain_open_clip_loop(
    models: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a schedule that is off by a step, decay where open_clip has none, a gradient that is clipped twice or
    never, a scale that is not trained."""
    steps = 20
    data = write_dataset(tmp_path / "i2e", [image_row(i, labels=[(i % 12, 0.9)]) for i in range(96)], classes=12)
    config = configuration.from_tree(
        {
            "output": str(tmp_path),
            "train": {
                "dataset": data, "folder": str(tmp_path / "run"), "steps": steps, "device": "cpu", "threads": 1,
                "log_every": 1, "recipe": "clip_alt_text", "precision": "float32",
                "encoder": {"model": models("vit")},
                "data": {"batch_size": 16, "workers": 0},
                "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.2, "warmup": 0.2, "clip_norm": 1.0,
                              "eps": 1e-6},
            },
        },
        "a test",
    )  # fmt: skip
    seen: list[Batch] = []
    began: list[Any] = []
    on_device = _Training._on_device

    def noted(self: _Training, batch: Batch) -> Batch:
        if not began:
            began.append((copy.deepcopy(self.towers.model), self.towers.preprocessing))
        seen.append(dataclasses.replace(batch, pixels_BCHW=batch.pixels_BCHW.clone()))
        return on_device(self, batch)

    ended: list[Any] = []
    finish = _Training._finish
    monkeypatch.setattr(_Training, "_on_device", noted)
    monkeypatch.setattr(_Training, "_finish", lambda self: (ended.append(self.towers.model), finish(self))[1])
    pretrain(config)
    trained = [r for r in rows(tmp_path / "run") if r["kind"] == "step"]
    assert len(seen) == len(trained) == steps

    (model, preprocessing), settings = began[0], config.train.optimizer
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    plain = Plain(model.train(), preprocessing["mean"], preprocessing["std"], settings, steps)
    for number, (batch, told) in enumerate(zip(seen, trained, strict=True)):
        assert batch.tokens_BL is not None
        loss, norm = plain.step(number, batch.pixels_BCHW, batch.tokens_BL)
        assert told["losses"]["loss"] == pytest.approx(loss, rel=1e-5)
        assert told["norm"] == pytest.approx(norm, rel=1e-4)
        assert told["learning_rate"] == pytest.approx(plain.optimizer.param_groups[0]["lr"], rel=1e-6)
    assert min(r["norm"] for r in trained) < 1 < max(r["norm"] for r in trained)  # some are clipped, some are not
    got = dict(ended[0].named_parameters())
    for name, wanted in plain.model.named_parameters():
        moved = (wanted - start[name]).norm()
        assert moved > 0, name
        # Attention's biases of keys have no gradient but rounding, which AdamW makes a step of; all others are at 1e-5.
        assert (got[name] - wanted).norm() <= (1e-3 if name.endswith("in_proj_bias") else 1e-4) * moved, name
