"""Which classes a step compares with: a window of a stride permutation, so that nothing has to be remembered.

Reads    step, number of classes, sample size, seed
Writes   class indices of the step's window, and where in the window a class stands

Slot i of the window that begins at `offset` holds class (offset + i) · stride mod classes. A stride without common
divisor with the number of classes makes that a permutation, and it is undone by one multiplication: whether a class is
in the window is asked without a table. The windows of a pass lie side by side, so each class is seen once per pass (the
last window, which begins again from the front, is the exception); each pass has its own stride.

The window belongs to the step and not to a rank: any number of ranks compares with the same classes. For that each rank
lists the whole window, 8 bytes per class of it, and keeps its own.

Legend: M classes of the window, T any classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from i2e_pipeline.core.draws import GOLDEN, drawn, mix_, signed


@dataclass(frozen=True)
class Window:
    """Some of the classes 0 ... classes − 1, in a fixed order: slots 0 ... size − 1."""

    classes: int
    size: int
    offset: int
    stride: int

    def classes_of(self, device: torch.device | str = "cpu") -> Tensor:
        """class_M, int64: the class of each slot."""
        slots_M = torch.arange(self.size, device=device)
        return (slots_M.add_(self.offset)).mul_(self.stride).remainder_(self.classes)

    def slots(self, class_T: Tensor) -> Tensor:
        """slot_T, int64, of each class; those not in the window get a number ≥ size."""
        inverse = pow(self.stride, -1, self.classes)
        return (class_T * inverse - self.offset).remainder(self.classes)


def sample_size(classes: int, share: float, at_least: int) -> int:
    """How many classes a window holds: the share, never fewer than `at_least`, never more than there are."""
    return min(classes, max(at_least, round(share * classes)))


def window(step: int, classes: int, size: int, seed: int) -> Window:
    """The window of a step, the same on each rank. All classes in their own order when size is their number."""
    if size >= classes:
        return Window(classes, classes, 0, 1)
    number, place = divmod(step, math.ceil(classes / size))
    bits = drawn(drawn(seed) + number)
    # Between a quarter and three quarters of the classes: neighbours (and the ranks that own them) are spread.
    stride = max(1, classes // 4) + (bits & 0xFFFFFFFF) * (classes // 2) // 2**32
    while math.gcd(stride, classes) > 1:
        stride += 1
    return Window(classes, size, (place * size + (bits >> 32)) % classes, stride % classes)


def normal_rows(class_T: Tensor, width: int, seed: int) -> Tensor:
    """Nearly normal draws of mean 0 and deviation 1, (T, width) float32, that depend on seed, class and column alone.

    The sum of the four 16-bit parts of a hash (Irwin–Hall): integers only, so the bits are the same on every device,
    whatever rows are drawn together.
    """
    columns_D = torch.arange(width, dtype=torch.int64, device=class_T.device)
    keys_T1 = mix_((class_T + signed(drawn(seed)))[:, None])
    bits_TD = mix_(keys_T1 + columns_D * signed(GOLDEN))
    sum_TD = bits_TD & 0xFFFF
    for shift in (16, 32, 48):
        sum_TD += (bits_TD >> shift) & 0xFFFF
    variance = 4 * (65536**2 - 1) / 12
    return sum_TD.float().sub_(2 * 65535).mul_(variance**-0.5)
