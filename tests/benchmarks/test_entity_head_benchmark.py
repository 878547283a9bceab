"""The benchmark of the entity head runs, and its ways do the same work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import entity_head
from i2e_pipeline.train.parallel import World


@pytest.mark.slow
def test_all_ways_are_measured(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    sizes = ["--classes", "200000", "--width", "64", "--batch", "8", "--steps", "1"]
    figures = entity_head.main([*sizes, "--json", str(out)])
    assert json.loads(out.read_text(encoding="utf-8")) == figures
    (large,) = figures["sizes"]
    assert large["classes"] == 200_000
    assert set(large["ways"]) == set(entity_head.WAYS)
    assert all(found["seconds"] > 0 and found["peak_mb"] > 0 for found in large["ways"].values())
    assert set(large["seconds_times_head"]) == set(entity_head.WAYS) - {"head"}
    rules = {way: large["ways"][way]["rule_mb"] for way in ("head", "head-bf16", "head-full")}
    assert rules["head-bf16"] < rules["head"] < rules["head-full"]


def test_without_sampling_a_baseline_has_the_head_s_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a baseline that is fast because it computes something else."""
    losses: list[Tensor] = []
    cross_entropy = functional.cross_entropy

    def overheard(logit_BS: Tensor, target_B: Tensor) -> Tensor:
        losses.append(cross_entropy(logit_BS, target_B))
        return losses[-1]

    monkeypatch.setattr(functional, "cross_entropy", overheard)
    made = entity_head.EntityHead(50, 8, entity_head.config_of(1.0), World(), seed=0)
    image_BD = functional.normalize(torch.randn(6, 8))
    class_B = torch.arange(6)
    step = entity_head.as_parameter(50, 8, 1.0, World(), optimizer="sgd", rows_ND=made.weights_RD.clone())
    step(image_BD, class_B, 0)
    torch.testing.assert_close(losses[0], made.loss(image_BD, class_B, class_B[:, None], 0))


def test_a_sparse_gradient_moves_the_rows_of_the_step_as_a_dense_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a sparse baseline that is fast because it trains other rows, or none."""
    monkeypatch.setitem(entity_head.OPTIMIZERS, "sgd", entity_head.OPTIMIZERS["sparse-sgd"])
    torch.manual_seed(0)
    image_BD, class_B = functional.normalize(torch.randn(6, 8)), torch.arange(6)
    begin_ND, moved = torch.randn(50, 8), []
    for optimizer in ("sgd", "sparse-sgd"):
        rows_ND = begin_ND.clone()
        torch.manual_seed(1)  # the same classes are drawn
        entity_head.as_parameter(50, 8, 0.4, World(), optimizer=optimizer, rows_ND=rows_ND)(image_BD, class_B, 0)
        moved.append(rows_ND)
    # Of the 20 that are compared; the gradient of a class that no image is near to may vanish.
    assert 6 < int((moved[0] != begin_ND).any(1).sum()) <= 20
    torch.testing.assert_close(moved[0], moved[1])
