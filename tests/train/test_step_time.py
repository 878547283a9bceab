from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from i2e_pipeline.core.config import EncoderConfig, LossConfig, TrainConfig
from i2e_pipeline.train import step_time
from i2e_pipeline.train.encoders import build
from i2e_pipeline.train.step_time import BETWEEN, PARTS, StepTime, operations, peak_flops

CPU = torch.device("cpu")


class Card:
    """A card's timeline: events pass when it has come so far."""

    def __init__(self) -> None:
        self.queued = self.passed = 0.0

    def Event(self, enable_timing: bool) -> Any:
        assert enable_timing
        card = self

        class Event:
            def record(self) -> None:
                self.at = card.queued

            def query(self) -> bool:
                return card.passed >= self.at

            def elapsed_time(self, end: Any) -> float:
                assert self.query()
                assert end.query(), "asked for a time that is still to come, which raises or waits"
                return 1000 * float(end.at - self.at)

        return Event()


def test_times_of_a_card_are_those_of_its_own_timeline_and_nobody_waits_for_it() -> None:
    """Catches: times of the host, which has queued a step before the card has begun it."""
    card, times = Card(), StepTime(CPU)
    times._card = card
    for _ in range(3):
        for part, seconds in (("towers", 2.0), ("backward", 4.0), ("update", 0.5)):
            with times.of(part):
                card.queued += seconds
        card.queued += 0.5
    assert times.totals() == dict.fromkeys((*PARTS, BETWEEN), 0.0)
    card.passed = 12.0  # in the backward pass of the second step, which ends at 14
    assert times.totals() == {"towers": 4.0, "losses": 0.0, "backward": 4.0, "update": 0.5, "between": 0.5}
    card.passed = 23.0
    assert times.totals() == {"towers": 6.0, "losses": 0.0, "backward": 12.0, "update": 1.5, "between": 1.0}


def per_block(tokens: int, width: int) -> float:
    """Multiplications and additions of a transformer's block: four projections, an MLP of four times the width, and
    attention's two products."""
    return 2 * tokens * (4 * width**2 + 8 * width**2) + 2 * 2 * tokens**2 * width


@pytest.mark.parametrize(("frozen", "image_passes", "text_passes"), [((), 3, 3), (("image",), 1, 3)])
def test_operations_are_those_of_the_formulas(frozen: tuple[str, ...], image_passes: int, text_passes: int) -> None:
    """ViT-B-32 at 224 pixels: 50 tokens of 768 in twelve blocks; texts of 77 tokens of 512."""
    towers = build(EncoderConfig(model="ViT-B-32"), LossConfig(), 0, frozen=frozen)
    counted = operations(towers, uses_text=True)
    image = 12 * per_block(50, 768) + 2 * 49 * 3 * 32**2 * 768 + 2 * 768 * 512
    text = 12 * per_block(77, 512) + 2 * 512 * 512
    assert math.isclose(counted.per_image, image_passes * image, rel_tol=0.01)
    assert math.isclose(counted.per_token * 77, text_passes * text, rel_tol=0.01)
    assert counted.of(2, 154) == pytest.approx(2 * (counted.per_image + 77 * counted.per_token))
    assert towers.training


def test_blocks_that_are_compiled_are_counted_too(models: Callable[[str], str]) -> None:
    """Catches: kernels of torch.compile, which the counter does not see into."""
    plain, compiled = (
        operations(build(EncoderConfig(model=models("vit"), compile=c), LossConfig(), 0), True) for c in (False, True)
    )
    assert plain == compiled
    assert plain.per_image > 0


def test_patches_that_are_dropped_are_not_counted(tmp_path: Path) -> None:
    """Catches: an arithmetic that looks twice as busy as it is; draws and statistics that the counting moves."""
    per_image = []
    for rate in (0.0, 0.5):
        folder = tmp_path / str(rate)
        folder.mkdir()
        vision = {"image_size": 64, "layers": 2, "width": 64, "patch_size": 8, "patch_dropout": rate}
        text = {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
        model = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
        described = {"model_cfg": model, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
        (folder / "open_clip_config.json").write_text(json.dumps(described))
        towers = build(EncoderConfig(model=f"local-dir:{folder}"), LossConfig(), 0)
        before = torch.get_rng_state()
        per_image.append(operations(towers, uses_text=True).per_image)
        assert torch.equal(before, torch.get_rng_state())
    # The patches' own convolution comes before any is dropped.
    assert 0.4 < per_image[1] / per_image[0] < 0.6


def test_the_peak_is_the_configs_or_the_cards_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756, "NVIDIA A100-SXM4-80GB": 312, "NVIDIA H200": 989,
        "NVIDIA L40S": 362, "NVIDIA L4": 121, "NVIDIA A10": 125, "NVIDIA A10G": 70, "NVIDIA H100 NVL": 835,
        "Quadro P4": None, "NVIDIA RTX A1000": None, "NVIDIA L40": None, "NVIDIA GB200": None,
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb": None, "NVIDIA GeForce RTX 4090": None, "NVIDIA B200": 2250,
    }  # fmt: skip
    card, narrow = torch.device("cuda", 0), TrainConfig(precision="bfloat16")
    for name, tflops in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert peak_flops(narrow, card) == (None if tflops is None else tflops * 1e12), name
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    assert peak_flops(TrainConfig(), card) is None, "float32 has another peak"
    assert peak_flops(narrow, CPU) is None
    assert peak_flops(TrainConfig(peak_tflops=0.5), CPU) == 0.5e12
    assert set(step_time.PEAK_TFLOPS) >= {"A100", "H100", "H200"}
