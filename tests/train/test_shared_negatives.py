"""Shared negatives against the textbook: all micro-batches kept in memory and differentiated at once."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.functional import normalize

from i2e_pipeline.core.config import TrainConfig
from i2e_pipeline.train.batch import Batch, Encoded
from i2e_pipeline.train.parallel import World
from i2e_pipeline.train.recipes import Contrastive, recipe
from i2e_pipeline.train.shared_negatives import draws_differ, share
from tests.train.no_data import DEVICE, nothing_is_read

SIZES = (5, 3, 4)
"""Images of each micro-batch."""


class Towers(nn.Module):
    """Small ones that draw, and that have a batch norm."""

    def __init__(self, siglip: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.visual = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 6))
        self.text = nn.Sequential(nn.Embedding(9, 8), nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, 6))
        self.log_scale = nn.Parameter(torch.tensor([1.2]))
        self.bias = nn.Parameter(torch.tensor([-1.0])) if siglip else None

    def forward(self, pixels_BCHW: Tensor, tokens_BL: Tensor) -> Encoded:
        return Encoded(
            image_BD=normalize(self.visual(pixels_BCHW.flatten(1).float() / 255), dim=-1),
            text_BD=normalize(self.text(tokens_BL), dim=-1),
            scale=self.log_scale.exp().sum(),
            bias=None if self.bias is None else self.bias.sum(),
        )


def batches(device: str = "cpu") -> list[Batch]:
    draws = torch.Generator().manual_seed(3)
    return [
        Batch(
            pixels_BCHW=torch.randint(0, 256, (size, 3, 2, 2), dtype=torch.uint8, generator=draws).to(device),
            class_B=torch.zeros(size, dtype=torch.int64),
            classes_BK=torch.randint(-1, 4, (size, 2), generator=draws),
            tokens_BL=torch.randint(0, 9, (size, 4), generator=draws).to(device),
            teacher_BT=None,
            image_ids=(),
        )
        for size in SIZES
    ]


def chosen(contrastive: str) -> Contrastive:
    made = recipe(TrainConfig.model_validate({"recipe": "contrastive", "loss": {"contrastive": contrastive}}))
    assert isinstance(made, Contrastive)
    return made


def encoder(towers: nn.Module) -> Callable[[Batch], Encoded]:
    def encode(batch: Batch) -> Encoded:
        found: Encoded = towers(batch.pixels_BCHW, batch.tokens_BL)
        return found

    return encode


def shared_gradients(towers: Towers, contrast: Callable[[Encoded, Tensor], Tensor]) -> Tensor:
    encode, world = encoder(towers), World()
    losses = []
    for batch, of_step in zip(batches(), share(batches(), towers, encode, contrast, world), strict=True):
        of_step.repeat_draws(world.device)
        losses.append(of_step.contrastive(encode(batch)))
        (losses[-1] / len(SIZES)).backward()
    assert torch.equal(torch.stack(losses).detach(), losses[0].detach().expand(len(SIZES)))
    return losses[0].detach()


@pytest.mark.parametrize("contrastive", ["infonce", "siglip"])
def test_gradients_loss_statistics_and_draws_are_those_of_the_whole_step(contrastive: str) -> None:
    """Catches: patches dropped anew in the second pass; batch norms that count each micro-batch twice; gradients of the
    scale or the bias that come once per micro-batch, or not at all; labels of one micro-batch alone."""
    ours = Towers(contrastive == "siglip")
    theirs = copy.deepcopy(ours)
    found = chosen(contrastive)

    torch.manual_seed(7)
    loss = shared_gradients(ours, lambda e, c: found.contrast(e, c, World()))
    drawn_after = torch.rand(())

    torch.manual_seed(7)
    seen = [encoder(theirs)(batch) for batch in batches()]
    whole = Encoded(
        image_BD=torch.cat([e.image_BD for e in seen]),
        text_BD=torch.cat([e.text_BD for e in seen if e.text_BD is not None]),
        scale=seen[0].scale,
        bias=seen[0].bias,
    )
    expected = found.contrast(whole, torch.cat([b.classes_BK for b in batches()]), World())
    expected.backward()  # type: ignore[no-untyped-call]

    assert drawn_after == torch.rand(())
    assert torch.allclose(loss, expected.detach())
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None, name
        assert other.grad is not None, name
        assert torch.allclose(mine.grad, other.grad, atol=1e-6), name
    assert [torch.equal(*pair) for pair in zip(ours.buffers(), theirs.buffers(), strict=True)] == [True] * 3
    assert all(m.track_running_stats for m in ours.modules() if isinstance(m, nn.BatchNorm1d))


def test_what_follows_the_vectors_gets_its_gradient_too() -> None:
    """Catches: a classification or distillation loss that is cut off from the towers, or counted A times."""
    towers = Towers(siglip=False).eval()
    other = copy.deepcopy(towers)
    encode, found = encoder(towers), chosen("infonce")
    for batch, of_step in zip(
        batches(), share(batches(), towers, encode, lambda e, c: found.contrast(e, c, World()), World()), strict=True
    ):
        encoded = encode(batch)
        (of_step.contrastive(encoded) * 0 + encoded.image_BD[:, 0].sum()).backward()
    sum(encoder(other)(batch).image_BD[:, 0].sum() for batch in batches()).backward()  # type: ignore[union-attr]
    mine, theirs = towers.visual[0].weight.grad, other.visual[0].weight.grad
    assert mine is not None
    assert theirs is not None
    assert torch.allclose(mine, theirs, atol=1e-6)


def test_a_host_does_not_wait_for_a_card() -> None:
    towers = Towers(siglip=True).to(DEVICE)
    found, world = chosen("siglip"), World(device=DEVICE)
    held = batches("meta")
    with nothing_is_read():
        given = share(held, towers, encoder(towers), lambda e, c: found.contrast(e, c, world), world)
        for batch, of_step in zip(held, given, strict=True):
            of_step.repeat_draws(world.device)
            of_step.contrastive(encoder(towers)(batch)).backward()  # type: ignore[no-untyped-call]


def test_under_autocast_the_gradient_at_the_vectors_is_that_of_float32() -> None:
    """Catches: the loss's backward pass under autocast, whose products are then bfloat16."""
    towers, found = Towers(siglip=False).eval(), chosen("infonce")

    def encode(batch: Batch) -> Encoded:
        with torch.autocast("cpu", torch.bfloat16):
            return encoder(towers)(batch)

    of_step = share(batches(), towers, encode, lambda e, c: found.contrast(e, c, World()), World())
    with torch.no_grad():
        seen = [encode(batch) for batch in batches()]
    images = torch.cat([e.image_BD for e in seen]).requires_grad_()
    texts = torch.cat([e.text_BD for e in seen if e.text_BD is not None])
    whole = Encoded(images, texts, seen[0].scale, None)
    found.contrast(whole, torch.cat([b.classes_BK for b in batches()]), World()).backward()  # type: ignore[no-untyped-call]
    assert torch.equal(torch.cat([one.image_gradient_BD for one in of_step]), images.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("block", "differ"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0), DropPath(0.0)), False),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), True),
        (nn.Sequential(DropPath(0.1)), True),
        (nn.MultiheadAttention(4, 2), False),
        (nn.MultiheadAttention(4, 2, dropout=0.1), True),
    ],
)
def test_what_drops_at_random_is_known(block: nn.Module, differ: bool) -> None:
    assert draws_differ([nn.Linear(2, 2), block]) is differ
