"""One training of the comparison, in a process of its own with one thread; its vectors are kept, not its weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from comparing.measures import Measured

_VECTORS = "vectors.npz"
_MAIN = "import sys; from comparing.training import run; run(sys.argv[1])"


@dataclass(frozen=True)
class Job:
    folder: Path
    config: str | None
    """None: the embedded sample's."""
    overrides: tuple[str, ...]
    untrained: bool = False

    @property
    def asked(self) -> dict[str, Any]:
        return {"config": self.config, "overrides": list(self.overrides), "untrained": self.untrained}


def done(job: Job) -> bool:
    """Whether it was trained already. Raises SystemExit where the folder holds a training with other settings."""
    if not (job.folder / _VECTORS).is_file():
        return False
    if json.loads((job.folder / "asked.json").read_text()) != job.asked:
        raise SystemExit(f"{job.folder} was trained with other settings: remove it, or take another --folder")
    return True


def carried_out(job: Job) -> Measured:
    """Trains, where that was not done; one that was cut off begins again."""
    if not done(job):
        shutil.rmtree(job.folder, ignore_errors=True)
        job.folder.mkdir(parents=True)
        (job.folder / "asked.json").write_text(json.dumps(job.asked))
        ran = subprocess.run(
            [sys.executable, "-c", _MAIN, str(job.folder)],
            capture_output=True, text=True, env=_alone(),
        )  # fmt: skip
        if ran.returncode:
            raise SystemExit(f"{job.folder}:\n{ran.stdout[-2000:]}{ran.stderr[-4000:]}")
    with np.load(job.folder / _VECTORS) as kept:
        return Measured(**{name: kept[name] for name in kept.files})


def _alone() -> dict[str, str]:
    here = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "RANK": "0", "PYTHONPATH": path}


class _Enough(Exception):
    """What an untrained encoder makes of the images is known."""


def run(folder: str) -> None:
    """In the process of its own: trains as <folder>/asked.json says and leaves <folder>/vectors.npz, written last."""
    from i2e_pipeline import stages
    from i2e_pipeline.core.errors import I2EError
    from i2e_pipeline.evaluate.in_training import held_out
    from i2e_pipeline.sample import embedded
    from i2e_pipeline.train.parallel import join
    from i2e_pipeline.train.trainer import train

    asked = json.loads(Path(folder, "asked.json").read_text())
    place = Path(folder, "training")
    overrides = [
        *asked["overrides"], f"train.folder={place}", "train.threads=1", "train.data.workers=1",
        "train.checkpoint_every=1000000", "train.checkpoint_minutes=null", "train.evaluate_every=null",
        "train.device=cpu",
    ]  # fmt: skip
    config = (
        stages.load(asked["config"], overrides)
        if asked["config"]
        else stages.from_tree(embedded.tree(overrides), "the embedded sample")
    )
    last: dict[str, Any] = {}

    def figures(
        image_ND: np.ndarray, class_N: np.ndarray, new_N: np.ndarray, text_CD: np.ndarray | None,
        train_ND: np.ndarray, train_class_M: np.ndarray,
    ) -> dict[str, float]:  # fmt: skip
        last.update(image=image_ND, new=new_N, text=text_CD, train=train_ND, train_class=train_class_M, own=class_N)
        if asked["untrained"]:
            raise _Enough
        return held_out(image_ND, class_N, new_N, text_CD, train_ND, train_class_M)

    started = time.monotonic()
    try:
        train(config, join("cpu"), figures)
    except _Enough:
        pass
    except I2EError as error:
        raise SystemExit(str(error)) from None
    measured = _named(config, last)
    shutil.rmtree(place, ignore_errors=True)  # 100 of them have 8 GB of checkpoints
    Path(folder, "seconds.txt").write_text(f"{time.monotonic() - started:.0f}\n")
    half = Path(folder, "half.npz")
    np.savez_compressed(half, **vars(measured))
    half.rename(Path(folder, _VECTORS))


def _named(config: Any, last: dict[str, Any]) -> Measured:
    """The vectors with the entities' numbers and the images' ids, which the training tells no function of figures."""
    from i2e_pipeline.core.ids import content_id
    from i2e_pipeline.dataset.published import open_published
    from i2e_pipeline.train.held_out import stored
    from i2e_pipeline.train.samples import Samples
    from i2e_pipeline.train.trainer import dataset_of

    samples = Samples.open(open_published(dataset_of(config)), config.train)
    held = samples.held_out
    entity_N = samples.entity_ids_C[np.concatenate([held.entity_classes, held.image_classes])]
    train_entity_M = samples.entity_ids_C[held.trained_classes]
    if (len(entity_N), len(train_entity_M)) != (len(last["image"]), len(last["train"])):
        raise SystemExit(f"{samples.published.folder}: an image that is held out cannot be decoded")
    rows_N = np.concatenate([held.entity_rows, held.image_rows])
    ids = {
        row: content_id(data or b"").hex()
        for rows, images in stored(samples, rows_N)
        for row, data in zip(rows.tolist(), images, strict=True)
    }
    named_C = samples.entity_ids_C[np.unique(np.concatenate([held.entity_classes, held.image_classes]))]
    has_text = last["text"] is not None
    return Measured(
        image_ND=np.float32(last["image"]),
        entity_N=entity_N,
        image_id_N=np.array([ids[row] for row in rows_N.tolist()]),
        new_N=last["new"],
        train_MD=np.float32(last["train"]),
        train_entity_M=train_entity_M,
        text_CD=np.float32(last["text"]) if has_text else np.empty((0, last["image"].shape[1]), np.float32),
        text_entity_C=named_C if has_text else named_C[:0],
    )


def seconds(jobs: Sequence[Job]) -> list[int]:
    """What those that are done took."""
    return [int(place.read_text()) for job in jobs if (place := job.folder / "seconds.txt").is_file()]
