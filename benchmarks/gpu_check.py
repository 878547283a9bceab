"""Ten minutes with one card: what is right, what is wrong and what is slow, of training and scoring. `make gpu-check`.

    python benchmarks/gpu_check.py [--model ViT-B-16] [--steps 20] [--checks losses resume …] [--json FILE]

Without a card the same checks run on the processor as far as they can, with a small model, and the table says what was
left out. Each line is a check:

    device      the card, its memory, the versions of driver, CUDA and NCCL
    losses      a training on the card in bfloat16 against the same one on the processor in float32, both on the same
                JPEGs through the same loader: the largest relative difference of a loss in the first half of the steps
                (rounding is carried on from step to step)
    resume      the training goes on from its middle: the largest relative difference of a later step's loss
    waits       places in a step where the host waits for the card, by torch's synchronisation warnings, a step
    compile     vectors of compiled towers against those of the same towers as they are
    ranks       losses of two ranks against one: two cards, or two processes on processors. NCCL takes no two
                ranks on one card
    training    images/s, MFU and the head's share at two million classes, of ViT-B-16 and ViT-L-14 (training.py)
    scoring     images/s of the whole scoring against the model alone (gpu.py)

right, wrong (exit code 1), slow, or left out, with the reason. What slow means stands beside the figure.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.loader import write_dataset
from i2e_pipeline.commands.train import pretrain
from i2e_pipeline.core import config as configuration
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.train import checkpoint, journal, trainer

ROOT = Path(__file__).parent.parent
IMAGES, SIDE = 512, 256
SMALL = {
    "model_cfg": {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]},
}
"""The model without a card."""
LOSS_DIFFERS, RESUME_DIFFERS, VECTORS_DIFFER, RANKS_DIFFER = 0.01, 0.01, 0.01, 0.01
LONGEST = 300
"""Seconds that a check's own process may take."""
MFU, HEAD_SHARE, SCORING_SHARE = 0.2, 0.3, 0.5
"""Less, more and less of which is slow."""


@dataclass
class Check:
    name: str
    verdict: str
    """right, wrong, slow or left out"""
    said: str
    figures: dict[str, Any] = field(default_factory=dict)


class LeftOut(I2EError, RuntimeError):
    """Why a check cannot run here."""


@dataclass
class Place:
    """Where the checks work."""

    folder: Path
    dataset: str
    model: str
    steps: int
    card: bool

    def tree(self, name: str, **train: Any) -> dict[str, Any]:
        """A training's settings."""
        return {
            "output": str(self.folder / name),
            "train": {
                "dataset": self.dataset, "folder": str(self.folder / name), "steps": self.steps, "log_every": 1,
                "checkpoint_every": self.steps // 2, "encoder": {"model": self.model}, 
                # Small: at high rates the first steps of an untrained model carry rounding on a hundredfold.
                "optimizer": {"warmup": 0.1, "learning_rate": 1e-4},
                "data": {"batch_size": 64, "hold_out_entities": 0.0, "hold_out_images": 0.05},
                "head": {"sample": 1.0, "learning_rate": 0.01}, **train,
            },
        }  # fmt: skip

    def trained(self, name: str, **train: Any) -> dict[int, float]:
        """The loss of each step of a training of this process."""
        pretrain(configuration.from_tree(self.tree(name, **train), "gpu-check"))
        return self.losses(name)

    def losses(self, name: str) -> dict[int, float]:
        rows = journal.rows(self.folder / name)
        return {row["step"]: row["losses"]["loss"] for row in rows if row["kind"] == "step"}


def photos(images: int, side: int) -> list[bytes]:
    """JPEGs of coloured noise on a coarse grid, so that a model can tell them apart."""
    draw = np.random.default_rng(0)
    made = []
    for _ in range(images):
        coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        content = io.BytesIO()
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
        made.append(content.getvalue())
    return made


def device(place: Place) -> Check:
    if not place.card:
        return Check("device", "left out", f"torch {torch.__version__} sees no card: all checks on the processor")
    found = torch.cuda.get_device_properties(0)
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    figures = {"card": found.name, "gib": round(found.total_memory / 2**30), "cuda": torch.version.cuda, "nccl": nccl}
    narrow = "" if torch.cuda.is_bf16_supported() else ", no bfloat16"
    return Check("device", "right", f"{found.name}, {figures['gib']} GiB, NCCL {nccl}{narrow}", figures)


def losses(place: Place) -> Check:
    fast = place.trained("here", precision="bfloat16", device="cuda" if place.card else "cpu")
    exact = place.trained("exact", precision="float32", device="cpu")
    fast, exact = ({step: loss for step, loss in of.items() if step <= place.steps // 2} for of in (fast, exact))
    return _compared("losses", fast, exact, LOSS_DIFFERS, "bfloat16 here against float32 on the processor")


def resume(place: Place) -> Check:
    whole = place.losses("here")
    checkpoint.drop_beyond(place.folder / "here", place.steps // 2)
    (place.folder / "here" / trainer.OUTCOME).unlink()
    again = place.trained("here", precision="bfloat16", device="cuda" if place.card else "cpu")
    if min(whole.keys() & again.keys(), default=0) != 1:
        return Check("resume", "wrong", "the journal has holes")
    return _compared("resume", again, whole, RESUME_DIFFERS, f"steps after {place.steps // 2} against the whole")


def waits(place: Place) -> Check:
    if not place.card:
        raise LeftOut("only a card is waited for; the tests run a step on a device without data instead")
    counted = []
    step = trainer._Training._step

    def watched(self: Any, *how: Any) -> Any:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                return step(self, *how)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            counted.append([str(w.message) for w in seen if "synchroniz" in str(w.message)])

    trainer._Training._step = watched  # type: ignore[method-assign]
    try:
        place.trained("watched", precision="bfloat16", device="cuda", log_every=1000)
    finally:
        trainer._Training._step = step  # type: ignore[method-assign]
    steady = counted[3:-1]  # the first steps make the optimizer's state
    each = sum(map(len, steady)) / max(1, len(steady))
    where = "; ".join(sorted({w.splitlines()[0][:90] for of in steady for w in of})[:3])
    verdict = "right" if each == 0 else "slow"
    return Check("waits", verdict, f"{each:.1f} a step (none in the steady state){': ' * bool(where)}{where}")


def compiled(place: Place) -> Check:
    from i2e_pipeline.core.config import TrainConfig
    from i2e_pipeline.train import strategy
    from i2e_pipeline.train.encoders import build
    from i2e_pipeline.train.parallel import World

    here = torch.device("cuda" if place.card else "cpu")
    found, seconds = [], 0.0
    for compile in (False, True):
        config = TrainConfig.model_validate({"encoder": {"model": place.model, "compile": compile}})
        towers = build(config.encoder, config.loss, 0)
        module = strategy.wrap(towers, config, World(device=here))
        pixels = torch.randint(0, 256, (8, 3, towers.image_size, towers.image_size), generator=_drawn()).byte()
        began = time.perf_counter()
        try:
            with torch.no_grad():
                found.append(module(pixels.to(here)).image_BD.float().cpu())
        except Exception as error:  # a compiler that is not there, or does not know the card
            raise LeftOut(f"torch.compile: {str(error).strip().splitlines()[0][:120]}") from None
        seconds = time.perf_counter() - began
    far = float((found[0] - found[1]).abs().max())
    verdict = "right" if far <= VECTORS_DIFFER else "wrong"
    said = f"unit vectors differ by {far:.1e} at most (≤ {VECTORS_DIFFER}); {seconds:.0f} s to compile"
    return Check("compile", verdict, said, {"differ": far})


def ranks(place: Place) -> Check:
    cards = torch.cuda.device_count()
    if cards == 1:
        raise LeftOut("one card: NCCL takes no two ranks on it. The processor's ranks are compared by the tests")
    kind = "cuda" if cards > 1 else "cpu"
    name = "two ranks"
    settings = place.folder / "ranks.yaml"
    settings.write_text(json.dumps(place.tree(name, precision="float32", device=kind)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "i2e_pipeline.cli", "train", "--config", str(settings)], cwd=ROOT, capture_output=True,
        text=True, timeout=LONGEST, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        return Check("ranks", "wrong", "two ranks failed: " + " ".join(done.stderr.split())[-300:])
    alone = place.losses("exact") if kind == "cpu" else place.trained("one rank", precision="float32", device=kind)
    return _compared("ranks", place.losses(name), alone, RANKS_DIFFER, f"two ranks ({kind}) against one")


def training(place: Place) -> Check:
    models = ["ViT-B-16", "ViT-L-14"] if place.card else [place.model]
    of_size = [] if place.card else ["--batch", "32", "--classes", "5000", "--steps", "2", "--micro-batches", "1"]
    kind = "cuda" if place.card else "cpu"
    said = _lines("training.py", "--model", *models, "--recipes", "multi_task", "--device", kind, *of_size)
    rows = [json.loads(line) for line in said]
    slow = [r["model"] for r in rows if place.card and (r["mfu"] < MFU or r["head_share"] > HEAD_SHARE)]
    told = "; ".join(
        f"{Path(r['model']).name}: {r['images_per_second']} images/s, head {100 * r['head_share']:.0f} %"
        + (f", MFU {100 * r['mfu']:.0f} %, {r['peak_gib']} GiB" if place.card else "")
        for r in rows
    )
    bar = f" (slow: MFU below {MFU}, head above {HEAD_SHARE})" if place.card else " (no bar without a card)"
    return Check("training", "slow" if slow else "right", told + bar, {"rows": rows})


def scoring(place: Place) -> Check:
    if not place.card:
        raise LeftOut("gpu.py feeds a card; scoring.py measures processors")
    target = place.folder / "scoring.json"
    _lines("gpu.py", "--models", "ViT-B-32", "--batches", "256", "--parts", "forward", "kernel", "--json", str(target))
    found = json.loads(target.read_text())
    rates = list(_rates(found))
    forward = max((rate for path, rate in rates if "forward" in path), default=0.0)
    kernel = max((rate for path, rate in rates if "kernel" in path), default=0.0)
    share = kernel / forward if forward else 0.0
    said = f"{kernel:,.0f} images/s of all of it, {forward:,.0f} of the model: {share:.2f} (slow below {SCORING_SHARE})"
    return Check("scoring", "right" if share >= SCORING_SHARE else "slow", said, {"found": found})


CHECKS: dict[str, Callable[[Place], Check]] = {
    "device": device, "losses": losses, "resume": resume, "waits": waits, "compile": compiled, "ranks": ranks,
    "training": training, "scoring": scoring,
}  # fmt: skip


def _compared(name: str, found: dict[int, float], expected: dict[int, float], bar: float, what: str) -> Check:
    if found.keys() != expected.keys():
        return Check(name, "wrong", f"{what}: steps {sorted(found.keys() ^ expected.keys())} are of one alone")
    far = max(abs(found[step] - expected[step]) / abs(expected[step]) for step in expected)
    verdict = "right" if far <= bar else "wrong"
    said = f"{what}: losses of {len(found)} steps differ by {far:.1e} at most (≤ {bar})"
    return Check(name, verdict, said, {"differ": far})


def _drawn() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _lines(script: str, *arguments: str) -> list[str]:
    """What a benchmark prints; raises LeftOut with the end of its complaint."""
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}", *arguments], cwd=ROOT, capture_output=True, text=True,
        timeout=LONGEST, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{script}: " + " ".join(done.stderr.split())[-300:])
    return [line for line in done.stdout.splitlines() if line.startswith("{")]


def _rates(tree: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every images/s of a benchmark's figures, with where it stands."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == "images_per_second" and isinstance(value, int | float):
                yield path, float(value)
            else:
                yield from _rates(value, f"{path}/{key}")
    elif isinstance(tree, list):
        for value in tree:
            yield from _rates(value, path)


def checked(place: Place, names: Sequence[str]) -> Iterator[Check]:
    for name in names:
        began = time.perf_counter()
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                found = CHECKS[name](place)
        except LeftOut as error:
            found = Check(name, "left out", str(error))
        except Exception as error:  # a check that dies is a finding, and the others still run
            found = Check(name, "wrong", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        found.figures["seconds"] = round(time.perf_counter() - began, 1)
        yield found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: ViT-B-16, without a card a model of two layers")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--checks", nargs="+", default=list(CHECKS), choices=list(CHECKS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    card = torch.cuda.is_available()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_dataset(photos(IMAGES, SIDE), Path(folder) / "i2e")
        small = Path(folder) / "small"
        small.mkdir()
        (small / "open_clip_config.json").write_text(json.dumps(SMALL))
        model = options.model or ("ViT-B-16" if card else f"local-dir:{small}")
        for check in checked(Place(Path(folder), dataset, model, options.steps, card), options.checks):
            found.append(check)
            print(f"{check.name:<9} {check.verdict:<9} {check.figures['seconds']:>6} s  {check.said}", flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(check) for check in found], indent=1) + "\n", encoding="utf-8")
    return int(any(check.verdict == "wrong" for check in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
