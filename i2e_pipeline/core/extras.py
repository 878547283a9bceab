"""Which extra of the package brings a module: `pip install i2e-pipeline` alone reads finished datasets and no more.

setup.cfg is where an extra lists its packages; tests/core/test_extras.py compares.
"""

from __future__ import annotations

_PIPELINE, _TRAIN, _EVALUATE, _EXPORT, _EXPLORE = "spark", "train", "evaluate", "export", "explore"
_SECOND_LOOK, _WANDB = "second-look", "wandb"
_ENCODERS = (_PIPELINE, _TRAIN, _EVALUATE)
_FOR = {
    _PIPELINE: "the pipeline, on Spark",
    _TRAIN: "training",
    _EVALUATE: "evaluation",
    _EXPORT: "uploads to Hugging Face's Hub",
    _EXPLORE: "the dataset in a browser",
    _WANDB: "Weights & Biases beside TensorBoard",
    _SECOND_LOOK: "models of transformers within the pipeline",
}
BROUGHT_BY: dict[str, tuple[str, ...]] = {
    "pyspark": (_PIPELINE,),
    "py4j": (_PIPELINE,),
    "delta": (_PIPELINE,),
    "pandas": (_PIPELINE,),
    "spacy": (_PIPELINE,),
    "ftfy": (_PIPELINE,),
    "regex": (_PIPELINE,),
    "torch": _ENCODERS,
    "torchvision": _ENCODERS,
    "open_clip": _ENCODERS,
    "safetensors": (_SECOND_LOOK, *_ENCODERS),
    "matplotlib": (_TRAIN,),
    "huggingface_hub": (_EXPORT,),
    "duckdb": (_EXPLORE,),
    "transformers": (_SECOND_LOOK, _TRAIN, _EVALUATE),
    "scipy": (_SECOND_LOOK, _EVALUATE, _EXPLORE),
    "starlette": (_EXPLORE,),
    "usearch": (_EXPLORE,),
    "uvicorn": (_EXPLORE,),
    "wandb": (_WANDB,),
}
"""Extras by the name that a module is imported by."""


def remedy(error: ModuleNotFoundError) -> str | None:
    """What to install where a module of an extra is missing; None where no extra has it, which is a fault of ours."""
    missing = (error.name or "").split(".")[0]
    wanted = BROUGHT_BY.get(missing)
    if wanted is None:
        return None
    ways = [f"pip install 'i2e-pipeline[{extra}]' ({_FOR[extra]})" for extra in wanted]
    return f"{missing} is not installed: {', or '.join(ways)}"
