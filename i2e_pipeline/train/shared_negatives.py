"""Shared negatives: a contrastive loss over the batch of a whole step, of which the device holds the activations of one
micro-batch at a time.

GradCache (Gao et al., arXiv 2101.06983, §3.2): the vectors of all micro-batches are made without gradient; the loss
over all of them gives the gradient at each vector; then each micro-batch is encoded again, and that gradient goes on
into the towers. It is the gradient of the large batch, whatever the loss. Only statistics of batch norms are still
those of a micro-batch. Beside the vectors and pixels of the step the loss takes five to seven times 4 bytes for each
of a rank's images and each of all: 0.1 GB for 128 of 32,768, and 25 GB for a step of 32,768 on one rank.

Legend: A micro-batches of a step, B images of a rank's micro-batch, D width, K labels of the image with most labels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from i2e_pipeline.train.batch import Batch, Encoded
from i2e_pipeline.train.parallel import World

Encode = Callable[[Batch], Encoded]
Contrast = Callable[[Encoded, Tensor], Tensor]
"""(vectors of A · B images, classes (A · B, K)) → this rank's part of the loss."""


@dataclass(frozen=True)
class Shared:
    """What the loss over all micro-batches says of one of them."""

    loss: Tensor
    """Of the whole step."""
    image_gradient_BD: Tensor
    text_gradient_BD: Tensor
    scale_gradient: Tensor
    bias_gradient: Tensor | None
    parts: int
    """A."""
    random_state: tuple[Tensor, ...]

    def repeat_draws(self, device: torch.device) -> None:
        """What is encoded next drops the patches and paths that the micro-batch dropped the first time."""
        for generator, state in zip(_generators(device), self.random_state, strict=True):
            generator.set_rng_state(state)

    def contrastive(self, encoded: Encoded) -> Tensor:
        """The step's loss, as this micro-batch's share: its mean over micro-batches has the value and the gradient of
        the loss of the large batch."""
        assert encoded.text_BD is not None
        share = (encoded.image_BD * self.image_gradient_BD).sum() + (encoded.text_BD * self.text_gradient_BD).sum()
        share = share * self.parts + encoded.scale * self.scale_gradient
        if encoded.bias is not None and self.bias_gradient is not None:
            share = share + encoded.bias * self.bias_gradient
        return self.loss + (share - share.detach())


def share(
    batches: Sequence[Batch],
    module: nn.Module,
    encode: Encode,
    contrast: Contrast,
    world: World,
    timed: Callable[[str], contextlib.AbstractContextManager[None]] = lambda _: contextlib.nullcontext(),
) -> list[Shared]:
    """Encodes the micro-batches of a step without gradient and contrasts all of their images and texts, of all ranks.

    module   what `encode` calls: the running statistics of its batch norms stay as they are
    timed    is told in which part of the step the time goes (StepTime.of)
    Not to be called under autocast, which would narrow the products of the loss's backward pass; `encode` may have it.
    """
    seen: list[Encoded] = []
    states: list[tuple[Tensor, ...]] = []
    with timed("towers"), torch.no_grad(), statistics_left(module):
        for batch in batches:
            states.append(tuple(generator.get_rng_state() for generator in _generators(world.device)))
            seen.append(encode(batch))
    image_ND = _leaf(torch.cat([e.image_BD for e in seen]))
    text_ND = _leaf(torch.cat([_texts(e) for e in seen]))
    scale = _leaf(seen[0].scale)
    bias = None if seen[0].bias is None else _leaf(seen[0].bias)
    whole = replace(seen[0], image_BD=image_ND, text_BD=text_ND, scale=scale, bias=bias, distilled_BT=None)
    with timed("losses"):
        loss = contrast(whole, torch.cat([b.classes_BK for b in batches]))
        loss.backward()
    sizes = [len(b) for b in batches]
    return [
        Shared(
            loss.detach(),
            image_BD,
            text_BD,
            _gradient(scale),
            None if bias is None else _gradient(bias),
            len(sizes),
            state,
        )
        for image_BD, text_BD, state in zip(
            _gradient(image_ND).split(sizes), _gradient(text_ND).split(sizes), states, strict=True
        )
    ]


def draws_differ(blocks: Sequence[nn.Module]) -> bool:
    """Whether a block drops something at random. What torch compiles draws otherwise than what it does not, and it may
    stop compiling between two passes: so compiled blocks do not repeat their draws."""
    return any(_drops(part) for block in blocks for part in block.modules())


def _drops(part: nn.Module) -> bool:
    if isinstance(part, nn.modules.dropout._DropoutNd):
        return part.p > 0
    if isinstance(part, nn.MultiheadAttention):
        return part.dropout > 0
    rate = getattr(part, "drop_prob", None)  # of timm's paths
    return isinstance(rate, (int, float)) and rate > 0


def _texts(encoded: Encoded) -> Tensor:
    assert encoded.text_BD is not None
    return encoded.text_BD


def _leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def _gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


@contextlib.contextmanager
def statistics_left(module: nn.Module) -> Iterator[None]:
    """Batch norms normalise by the batch and remember nothing of it, or each micro-batch would count twice."""
    norms: list[Any] = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _generators(device: torch.device) -> list[Any]:
    """Modules of torch that layers draw from on a device."""
    return [torch, *([torch.get_device_module(device)] if device.type in ("cuda", "mps") else [])]
