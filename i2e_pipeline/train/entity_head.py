"""The entity head: which of millions of entities does an image show?

Reads    image vectors and class indices of each rank's images
Writes   the loss, the gradient of the image vectors, and its own class vectors (it is its own optimiser)

Cosine classification with a margin. The class vectors are shared out over the ranks: class c is row c // W of rank
c % W, which keeps the ranks equal and lets new classes join at the end without moving an old one. A step compares with
the classes of its batch and a window of the others (class_sampling.py), the same for any number of ranks; with
`head.sample` 1, with all. What differs from Partial FC (arXiv 2203.15565) as arcface_torch has it: nothing as large as
the shard is ever made beside the shard. The rows of a step are copied, their gradient is kept for these rows alone, and
row-wise Adagrad (one number per row) writes them back.

All gradients are computed in the forward pass, for one slice of the batch after the other. So of the matrix of
probabilities only a slice exists at a time, and none is left when the towers' backward pass begins. The head
exchanges nothing in that pass: an exchange of its own could cross with those of DDP.

Which rows and pairs a step has follows from labels and step number alone, and labels come from the loader on the host.
So it is worked out there, and exchanged between hosts: shapes are exact and nothing waits for the device. Shapes that
need no labels would have room for all classes of the batch on each rank, which holds 1/W of them.

Legend: B images of all ranks, C images of a slice, D width, K labels of the image with most labels, R rows of this
rank, S of them in the step: M of the window, then E of the batch's classes that are not in it. P classes that are right
for an image of the batch, T pairs of image and class. W ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from i2e_pipeline.core.config import HeadConfig
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.train.class_sampling import Window, normal_rows, sample_size, window
from i2e_pipeline.train.parallel import World

LOGITS = 1 << 26
"""Logits that exist at a time (256 MiB): the batch is cut into slices for it. Each slice costs one exchange."""

BLOCK = 1 << 17
"""Numbers handled at a time where rows are copied, normalised or updated: they stay in a core's cache."""

BLOCK_CUDA = 1 << 26

DEVIATION = 0.05
"""Of the numbers in the first rows. Only the rows' directions matter, so what counts is learning rate / deviation. On
3,000 and on 200 noisy classes (300 steps of 128) ratios of 2 to 4 learnt best and 0.1 hardly anything;
head.learning_rate=0.1 makes it 2."""

EPSILON = 1e-10
"""Added to Adagrad's root: gradients far below it (of classes that were never close) hardly move their rows."""


class HeadError(I2EError, ValueError):
    """Class indices or rows that do not fit the head."""


class EntityHead:
    """Class vectors of this rank, the loss over those of all ranks, and their row-wise Adagrad.

    Not a module: DDP must not see it, for each rank has other rows.
    """

    def __init__(self, classes: int, width: int, config: HeadConfig, world: World, seed: int) -> None:
        if classes < 1:
            raise HeadError(f"a head needs a class, and was given {classes}: the dataset has no labels.")
        self.classes, self.width, self.config, self.world, self.seed = classes, width, config, world, seed
        self.size = sample_size(classes, config.sample, config.sample_min)
        own_R = self._own_classes()
        self.weights_RD = torch.empty(len(own_R), width, dtype=getattr(torch, config.dtype), device=world.device)
        for part in self._blocks(len(own_R)):
            self.weights_RD[part] = (normal_rows(own_R[part], width, seed) * DEVIATION).to(self.weights_RD.dtype)
        self.accumulators_R = torch.zeros(len(own_R), device=world.device)
        self._pending: _Pending | None = None
        self._window: _OwnWindow | None = None
        self._kept: dict[str, Tensor] = {}
        # The loss needs a gradient even where the towers are frozen, or backward() would not reach the head.
        self._anchor = torch.zeros((), device=world.device, requires_grad=True)

    def loss(self, image_BD: Tensor, class_B: Tensor, classes_BK: Tensor, step: int) -> Tensor:
        """Mean cross-entropy over the images of all ranks; every rank calls it, with as many images.

        image_BD     float, norm 1; this rank's images
        class_B      int64, the class drawn for each image; on the host, or the device is waited for
        classes_BK   int64, all classes of each image, −1 beyond the last; there too, and K is the same on all ranks
        step         says which classes are compared with; the same for all parts of an accumulated step

        CosFace (arXiv 1801.09414, eq. 4): logit (cos − margin · [right class]) / temperature. `multi_label` one:
        class_B is right and other classes of the image are left out; all: each of the image's classes has an equal
        share of the target, and the margin. `correct_sampling` adds −log r' to the logits of classes that are
        no image's, r' = (r n − |P|) / (n − |P|) with r n classes compared of n and P those of the batch (arXiv
        2507.09331): the share of them that was sampled. Classes of P are always there and left as they are.

        backward() gives image_BD the gradient of the mean times W, because DDP divides by W, and adds the gradient of
        this rank's rows to what `step` will apply. As with any torch gradient it is that of the value which backward()
        is called on: of an accumulated step, divide each part by the number of parts first. Raises HeadError, on all
        ranks, for a class index that the head does not have, and RuntimeError if gradients of another step still wait.
        """
        labels = _labels(self.world, class_B, classes_BK, self.config.multi_label)
        class_T = torch.cat([labels.right.class_T, labels.ignored.class_T])
        low, high = int(class_T.min()), int(class_T.max())
        if low < 0 or high >= self.classes:
            raise HeadError(
                f"class index {low if low < 0 else high} is not one of the head's {self.classes} classes "
                f"(0 to {self.classes - 1}): build the head with the number of classes of the dataset; "
                "a checkpoint of fewer classes loads into it."
            )
        self._refuse_other_than(step)
        anchor = self._anchor if torch.is_grad_enabled() else self._anchor.detach()
        result: Tensor = _Loss.apply(image_BD, anchor, self, labels, step)
        return result

    def step(self, learning_rate: float, unless: Tensor | None = None) -> None:
        """Row-wise Adagrad on the rows that have gradients, then forgets these; nothing where there are none.

        unless   a bool of the device: where it is true, rows and accumulators stay as they are

        accumulator += mean of the squares of the row's gradient; row −= learning_rate · gradient /
        (√accumulator + ε). In float32; bfloat16 rows are rounded to nearest at the end, so moves below 1/512 of a
        number are lost.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        self._update(pending.row_M, pending.gradient_MD, learning_rate, unless)
        self.give_back("gradient", pending.gradient_MD)
        if pending.row_E:
            row_E, gradient_ED = pending.outside(self.world)
            self._update(row_E, gradient_ED, learning_rate, unless)

    def shard(self) -> tuple[Tensor, Tensor, Tensor]:
        """This rank's class indices (R,), class vectors (R, D) and accumulators (R,): the tensors, not copies."""
        return self._own_classes(), self.weights_RD, self.accumulators_R

    def load(self, class_indices: Tensor, weights: Tensor, accumulators: Tensor) -> None:
        """Takes those of the given rows that are this rank's, from any rank's shard() or any part of one, on any
        device. Classes that are in none of the calls keep their first vectors: so new entities join."""
        if weights.shape != (len(class_indices), self.width) or accumulators.shape != (len(class_indices),):
            raise HeadError(
                f"{len(class_indices)} classes came with vectors of shape {tuple(weights.shape)} and accumulators of "
                f"shape {tuple(accumulators.shape)}, and the head is {self.width} wide: the checkpoint is of another "
                "encoder, or damaged."
            )
        if not len(class_indices):
            return
        low, high = int(class_indices.min()), int(class_indices.max())
        if low < 0 or high >= self.classes:
            raise HeadError(
                f"the checkpoint has class index {low if low < 0 else high}, and the head has {self.classes} classes "
                f"(0 to {self.classes - 1}): train on the dataset of the checkpoint or one that continues its class "
                "indices, or begin in another folder."
            )
        own = class_indices % self.world.size == self.world.rank
        row_T = (class_indices[own] // self.world.size).to(self.world.device)
        self.weights_RD[row_T] = weights[own].to(self.weights_RD)
        self.accumulators_R[row_T] = accumulators[own].to(self.accumulators_R)

    def keep(self, gradients: _Gradients, step: int) -> None:
        """Adds gradients of rows to those that wait for step(). The window is the same for all parts of a step."""
        row_SD, window_rows = gradients.row_SD, len(gradients.row_M)
        outside_ED = row_SD[window_rows:].clone()
        if self._pending is None:
            self._pending = _Pending(step, gradients.row_M, row_SD[:window_rows])
        else:
            self._refuse_other_than(step)
            self._pending.gradient_MD.add_(row_SD[:window_rows])
            self.give_back("gradient", row_SD)
        if len(outside_ED):
            self._pending.row_E.append(gradients.row_E)
            self._pending.gradient_ED.append(outside_ED)

    def borrow(self, what: str, rows: int, columns: int) -> Tensor:
        """A float32 tensor (rows, columns) of any content, in memory that an earlier step gave back if it suffices.

        A CPU's allocator returns large memory to the system; to touch 60 MB of new pages in each step took a quarter
        of its time at 200 k × 256 classes. CUDA's keeps it by itself.
        """
        flat = self._kept.pop(what, None)
        if flat is None or len(flat) < rows * columns:
            flat = torch.empty(rows * columns * 33 // 32, device=self.world.device)  # the next step may need more
        return flat[: rows * columns].view(rows, columns)

    def give_back(self, what: str, borrowed: Tensor) -> None:
        if borrowed.device.type == "cpu":
            self._kept[what] = borrowed.new_empty(0).set_(borrowed.untyped_storage())

    def unit_rows(self, row_S: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of rows, normalised, (S, D) float32, and their norms (S,)."""
        unit_SD = self.borrow("rows", len(row_S), self.width)
        norm_S = torch.empty(len(row_S), device=self.world.device)
        for part in self._blocks(len(row_S)):
            # index_select: several times faster on a CPU than indexing.
            rows = self.weights_RD.index_select(0, row_S[part]).float()
            norm_S[part] = torch.linalg.vector_norm(rows, dim=1).clamp_min_(1e-12)
            torch.mul(rows, norm_S[part].reciprocal()[:, None], out=unit_SD[part])
        return unit_SD, norm_S

    def through_norm_(self, gradient_SD: Tensor, unit_SD: Tensor, norm_S: Tensor) -> None:
        """Makes the gradient of unit rows that of the rows: its part across the row, over the row's norm."""
        for part in self._blocks(len(norm_S)):
            gradient, unit = gradient_SD[part], unit_SD[part]
            along = (gradient * unit).sum(1, keepdim=True)
            gradient.addcmul_(unit, along, value=-1).mul_(norm_S[part].reciprocal()[:, None])

    def own_window(self, step: int) -> _OwnWindow:
        """This rank's part of the step's window; listed once for all parts of a step, and once for all where the window
        has every class."""
        drawn = window(step, self.classes, self.size, self.seed)
        if self._window is None or self._window.window != drawn:
            self._window = _OwnWindow.of(drawn, self.world)
        return self._window

    def _own_classes(self) -> Tensor:
        first = min(self.world.rank, self.classes)  # with more ranks than classes, some have none
        return torch.arange(first, self.classes, self.world.size, device=self.world.device)

    def _refuse_other_than(self, step: int) -> None:
        if self._pending and self._pending.step != step:
            raise RuntimeError(
                f"gradients of step {self._pending.step} wait, and this is step {step}: call step() first."
            )

    def _update(self, row_S: Tensor, gradient_SD: Tensor, learning_rate: float, unless: Tensor | None) -> None:
        """Adagrad on distinct rows; the gradient is overwritten."""
        for part in self._blocks(len(row_S)):
            row, gradient = row_S[part], gradient_SD[part]
            if unless is not None:
                gradient.masked_fill_(unless, 0)  # Adagrad moves nothing then; the host need not know
            square = self.accumulators_R[row] + torch.linalg.vector_norm(gradient, dim=1).square_().div_(self.width)
            self.accumulators_R[row] = square
            gradient.mul_((-learning_rate / square.sqrt_().add_(EPSILON))[:, None])
            gradient.add_(self.weights_RD.index_select(0, row))
            self.weights_RD.index_copy_(0, row, gradient.to(self.weights_RD.dtype))

    def _blocks(self, rows: int) -> list[slice]:
        length = max(1, (BLOCK_CUDA if self.world.device.type == "cuda" else BLOCK) // self.width)
        return [slice(start, min(start + length, rows)) for start in range(0, rows, length)]


@dataclass
class _Pending:
    """Gradients of rows, between backward() and step()."""

    step: int
    row_M: Tensor
    gradient_MD: Tensor
    row_E: list[Tensor] = field(default_factory=list)
    """Rows outside the window, of each part of an accumulated step; a row may come again. On the host."""
    gradient_ED: list[Tensor] = field(default_factory=list)

    def outside(self, world: World) -> tuple[Tensor, Tensor]:
        """Distinct rows outside the window, and their gradients."""
        if len(self.row_E) == 1:
            return world.on_device(self.row_E[0]), self.gradient_ED[0]
        row_E, place_E = torch.unique(torch.cat(self.row_E), return_inverse=True)
        gradient_ED = self.gradient_MD.new_zeros(len(row_E), self.gradient_MD.shape[1])
        gradient_ED.index_add_(0, world.on_device(place_E), torch.cat(self.gradient_ED))
        return world.on_device(row_E), gradient_ED


@dataclass(frozen=True)
class _Pairs:
    """Images and classes that belong together, in the order of the images. On the host."""

    image_T: Tensor
    class_T: Tensor
    share_T: Tensor
    """Of the image's target; equal for all classes of an image."""


@dataclass(frozen=True)
class _Labels:
    """Of the images of all ranks, the same on each."""

    right: _Pairs
    ignored: _Pairs
    """Classes that are right too, and therefore no negatives of their image."""


def _labels(world: World, class_B: Tensor, classes_BK: Tensor, multi_label: str) -> _Labels:
    """The labels of all ranks' images, each class of an image once."""
    gathered_BK = world.gather_fixed(torch.cat([class_B[:, None], classes_BK], dim=1).cpu())
    class_B, classes_BK = gathered_BK[:, 0].contiguous(), gathered_BK[:, 1:]
    others_BK = classes_BK.masked_fill(classes_BK == class_B[:, None], -1).sort(dim=1).values
    repeated = others_BK[:, 1:] == others_BK[:, :-1]
    others_BK[:, 1:] = others_BK[:, 1:].masked_fill(repeated, -1)
    image_B = torch.arange(len(class_B))
    image_T, column_T = torch.nonzero(others_BK >= 0, as_tuple=True)
    class_T = others_BK[image_T, column_T]
    if multi_label == "one":
        ones_B = torch.ones_like(class_B, dtype=torch.float32)
        return _Labels(_Pairs(image_B, class_B, ones_B), _Pairs(image_T, class_T, class_T.float()))
    image_T, order_T = torch.cat([image_B, image_T]).sort(stable=True)
    class_T = torch.cat([class_B, class_T])[order_T]
    share_T = torch.bincount(image_T).float().reciprocal()[image_T]
    return _Labels(_Pairs(image_T, class_T, share_T), _Pairs(image_T[:0], class_T[:0], share_T[:0]))


@dataclass(frozen=True)
class _OwnWindow:
    """What of a window is this rank's."""

    window: Window
    slot_M: Tensor
    """Ascending, on the host."""
    row_M: Tensor
    """On the device."""

    @staticmethod
    def of(drawn: Window, world: World) -> _OwnWindow:
        class_M = drawn.classes_of()
        slot_M = torch.nonzero(class_M % world.size == world.rank).squeeze(1)
        return _OwnWindow(drawn, slot_M, world.on_device(class_M[slot_M] // world.size))


class _Columns:
    """The classes that this rank compares a batch with: columns of its part of the logits."""

    def __init__(self, own: _OwnWindow, positive_P: Tensor, world: World) -> None:
        self.own, self.world = own, world
        drawn = own.window
        outside_P = positive_P[drawn.slots(positive_P) >= drawn.size]
        self._outside_E = outside_P[outside_P % world.size == world.rank]
        self.row_E = self._outside_E // world.size
        self.row_S = torch.cat([own.row_M, world.on_device(self.row_E)])
        column_P = self.of(positive_P)
        self.positive_columns = world.on_device(column_P[column_P >= 0])
        compared = drawn.size + len(outside_P)
        negatives = compared - len(positive_P)
        self.sampled_share = negatives / (drawn.classes - len(positive_P)) if negatives else 1.0
        """r′: of the classes that are no image's, the share that is compared with."""

    def of(self, class_T: Tensor) -> Tensor:
        """column_T, −1 for classes that are another rank's or not compared with. On the host."""
        outside_T = _find(class_T, self._outside_E)
        of_window_T = _find(self.own.window.slots(class_T), self.own.slot_M)
        return torch.where(outside_T >= 0, outside_T + len(self.own.slot_M), of_window_T)

    def pairs(self, pairs: _Pairs) -> _PairsHere:
        return _PairsHere(pairs, self.of(pairs.class_T), self.world)


class _PairsHere:
    """Those pairs whose class is compared with on this rank, with columns for classes."""

    def __init__(self, pairs: _Pairs, column_T: Tensor, world: World) -> None:
        here = column_T >= 0
        self._image_T = pairs.image_T[here]
        self._placed = tuple(world.on_device(x) for x in (self._image_T, column_T[here], pairs.share_T[here]))

    def of(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """image_T, column_T and share_T of a slice of the batch; images count from its start."""
        inside = _inside(self._image_T, part)
        image_T, column_T, share_T = (x[inside] for x in self._placed)
        return image_T - part.start, column_T, share_T


def _find(x_T: Tensor, sorted_M: Tensor) -> Tensor:
    """Where in sorted numbers each x stands, −1 where it is none of them."""
    if not len(sorted_M):
        return torch.full_like(x_T, -1)
    place_T = torch.searchsorted(sorted_M, x_T).clamp_max_(len(sorted_M) - 1)
    return place_T.masked_fill(sorted_M[place_T] != x_T, -1)


def _inside(image_T: Tensor, part: slice) -> slice:
    """Where among sorted images, on the host, those of a slice of the batch stand."""
    first, end = torch.searchsorted(image_T, torch.tensor([part.start, part.stop])).tolist()
    return slice(first, end)


@dataclass
class _Gradients:
    """Of the mean loss: of this rank's images, and of the rows that it compared."""

    image_BD: Tensor | None
    row_SD: Tensor
    row_M: Tensor
    row_E: Tensor
    """On the host."""


class _Loss(torch.autograd.Function):
    """The loss, with both gradients found in the forward pass."""

    @staticmethod
    def forward(ctx: Any, image_BD: Tensor, anchor: Tensor, head: EntityHead, labels: _Labels, step: int) -> Tensor:
        ctx.head, ctx.step, ctx.dtype = head, step, image_BD.dtype
        with torch.autocast(image_BD.device.type, enabled=False):
            loss, ctx.gradients = _compare(image_BD.float(), head, labels, step, *ctx.needs_input_grad[:2])
        return loss

    @staticmethod
    def backward(ctx: Any, *scales: Tensor) -> tuple[Tensor | None, ...]:
        gradients: _Gradients | None = ctx.gradients
        if gradients is None:
            raise RuntimeError("backward() was called twice on one loss of the entity head.")
        ctx.gradients = None
        gradients.row_SD.mul_(scales[0])
        ctx.head.keep(gradients, ctx.step)
        image_BD = None if gradients.image_BD is None else gradients.image_BD.mul_(scales[0]).to(ctx.dtype)
        return image_BD, None, None, None, None


def _compare(
    own_image_BD: Tensor, head: EntityHead, labels: _Labels, step: int, train_images: bool, train_rows: bool
) -> tuple[Tensor, _Gradients | None]:
    """The loss over all ranks and its gradients, a slice of the batch at a time."""
    config, world = head.config, head.world
    positive_P = torch.unique(labels.right.class_T)
    columns = _Columns(head.own_window(step), positive_P, world)
    row_SD, norm_S = head.unit_rows(columns.row_S)
    right, ignored = columns.pairs(labels.right), columns.pairs(labels.ignored)
    shift_S = None
    if config.correct_sampling and columns.sampled_share < 1:
        shift_S = torch.full_like(norm_S, -math.log(columns.sampled_share))
        shift_S[columns.positive_columns] = 0
    drop = None if config.drop_closer_than is None else _TooClose(config.drop_closer_than, labels, columns, row_SD)

    scaled_BD = world.gather_fixed(own_image_BD) / config.temperature
    images = len(scaled_BD)
    image_gradient_BD = torch.empty_like(scaled_BD) if train_images else None
    gradient_SD = head.borrow("gradient", *row_SD.shape) if train_rows else None
    normalisers, rights = scaled_BD.new_zeros(()), scaled_BD.new_zeros(())
    # The same slices on all ranks, whose numbers of columns differ a little: each slice is an exchange.
    length = max(1, LOGITS * world.size // (head.size + len(positive_P)))
    for start in range(0, images, length):
        part = slice(start, min(start + length, images))
        logit_CS = head.borrow("logits", part.stop - part.start, len(row_SD))
        torch.mm(scaled_BD[part], row_SD.T, out=logit_CS)
        if shift_S is not None:
            logit_CS += shift_S
        image_T, column_T, share_T = right.of(part)
        right_T = logit_CS[image_T, column_T] - config.margin / config.temperature
        rights += share_T @ right_T
        if drop is not None:
            drop.leave_out_(logit_CS, part)
        logit_CS[image_T, column_T] = right_T
        logit_CS[ignored.of(part)[:2]] = -torch.inf
        share_of_exp_C, normaliser_C = _exp_(logit_CS, world)
        normalisers += normaliser_C.sum()
        # Probability minus target, over B: the probability is exp times a number of the image, which the images
        # take instead of the large matrix; the target is a few pairs.
        weight_C1, exp_CS = (share_of_exp_C / images)[:, None], logit_CS
        if gradient_SD is not None:
            gradient_SD.addmm_(exp_CS.T, scaled_BD[part] * weight_C1, beta=float(start > 0))
            gradient_SD.index_add_(0, column_T, scaled_BD[part][image_T] * (-share_T / images)[:, None])
        if image_gradient_BD is not None:
            gradient_CD = image_gradient_BD[part]
            torch.mm(exp_CS, row_SD, out=gradient_CD).mul_(weight_C1)
            gradient_CD.index_add_(0, image_T, row_SD[column_T] * (-share_T / images)[:, None])
        head.give_back("logits", logit_CS)
    loss = (normalisers - world.sum(rights)) / images
    if gradient_SD is not None:
        head.through_norm_(gradient_SD, row_SD, norm_S)
    head.give_back("rows", row_SD)
    if gradient_SD is None:
        return loss, None
    if image_gradient_BD is not None:
        image_gradient_BD = world.scatter_sum(image_gradient_BD) * (world.size / config.temperature)
    return loss, _Gradients(image_gradient_BD, gradient_SD, columns.own.row_M, columns.row_E)


def _exp_(logit_CS: Tensor, world: World) -> tuple[Tensor, Tensor]:
    """Makes logits exp(logit − c) with a c of the image; returns what turns that into a probability over the classes
    of all ranks, and the log of the sum of exp over all of them, (C,) each. One exchange of two numbers an image."""
    lowest = torch.finfo(logit_CS.dtype).min / 4  # not −inf: inf − inf is not a number
    if logit_CS.shape[1]:
        highest_C = logit_CS.amax(1).clamp_min_(lowest)
    else:
        highest_C = logit_CS.new_full((len(logit_CS),), lowest)
    logit_CS.sub_(highest_C[:, None]).exp_()
    both_W2C = world.gather_fixed(torch.stack([highest_C, logit_CS.sum(1)])).view(world.size, 2, -1)
    highest_WC, sum_WC = both_W2C[:, 0], both_W2C[:, 1]
    top_C = highest_WC.amax(0)
    normaliser_C = top_C + (sum_WC * (highest_WC - top_C).exp()).sum(0).log()
    return (highest_C - normaliser_C).exp(), normaliser_C


class _TooClose:
    """Leaves out negatives whose class vector is nearer to one of the image's own classes than a cosine: they may be
    the same thing under another name. Doubles the memory of a slice."""

    def __init__(self, cosine: float, labels: _Labels, columns: _Columns, row_SD: Tensor) -> None:
        self.cosine, self.row_SD = cosine, row_SD
        world = columns.world
        image_T = labels.right.image_T
        nth_T, order_T = (torch.arange(len(image_T)) - torch.searchsorted(image_T, image_T)).sort(stable=True)
        self._image_T = image_T[order_T]
        self._placed_T = world.on_device(self._image_T)
        # The first class of each image, then the second of those that have one ...: an image once in each.
        self._nth = nth_T.bincount().tolist()
        column_T = columns.of(labels.right.class_T[order_T])
        own_T = torch.nonzero(column_T >= 0).squeeze(1)
        vector_TD = row_SD.new_zeros(len(image_T), row_SD.shape[1])
        vector_TD.index_copy_(0, world.on_device(own_T), row_SD[world.on_device(column_T[own_T])])
        self._vector_TD = world.sum(vector_TD)

    def leave_out_(self, logit_CS: Tensor, part: slice) -> None:
        for image_T, placed_T, vector_TD in zip(
            self._image_T.split(self._nth), self._placed_T.split(self._nth), self._vector_TD.split(self._nth),
            strict=True,
        ):  # fmt: skip
            inside = _inside(image_T, part)
            close = vector_TD[inside] @ self.row_SD.T > self.cosine
            image = placed_T[inside] - part.start
            logit_CS[image] = logit_CS[image].masked_fill_(close, -torch.inf)
