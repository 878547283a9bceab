"""Small open_clip models with random weights, and rows of the tables that scoring reads."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

TEXT = {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
MODELS = {
    "vit": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": TEXT,
    },
    "resnet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "patch_size": None},
        "text_cfg": TEXT,
    },
    "bidirectional": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {**TEXT, "no_causal_mask": True, "pool_type": "last"},
    },
    "custom": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": TEXT,
    },
}


def write_model(folder: Path, kind: str, seed: int = 0, break_weights: bool = False) -> str:
    """Saves a small random model; returns what score.model names it by."""
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {
        "size": 32,
        "mode": "RGB",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
        "interpolation": "bicubic",
    }
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": MODELS[kind], "preprocess_cfg": {**preprocess, "resize_mode": "shortest"}})
    )
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    with torch.no_grad():
        for name, value in model.named_buffers():  # batch norms as they are after training, not the identity
            if name.endswith("running_mean"):
                value.normal_(0, 0.1)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 2)
        if break_weights:
            next(model.visual.parameters()).fill_(float("nan"))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def picture(seed: int, size: tuple[int, int] = (64, 48), mode: str = "RGB") -> Image.Image:
    """Smooth coloured blobs, so that scaling and JPEG change little, as with photos."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC).convert(mode)


def stored(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def write_shard(path: Path, images: list[bytes | None], group: int = 4) -> str:
    pq.write_table(pa.table({"jpg": pa.array(images, pa.binary())}), path, row_group_size=group)
    return str(path)


def rows_of(entity_ids: list[list[int] | None], shard: int = 0, first: int = 0) -> pa.RecordBatch:
    """Input rows of the scoring kernel: row `first` + i of a shard, with the entities given."""
    count = len(entity_ids)
    return pa.record_batch(
        {
            "shard": pa.array([shard] * count, pa.int32()),
            "row": pa.array(range(first, first + count), pa.int64()),
            "pair_id": pa.array([(shard * 1000 + first + i).to_bytes(16, "big") for i in range(count)], pa.binary(16)),
            "entity_ids": pa.array(entity_ids, pa.list_(pa.int64())),
        }
    )
