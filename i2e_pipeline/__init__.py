"""I2E: turn noisy web image + alt-text pairs into images labelled with Wikidata entities.

    import i2e_pipeline

    done = i2e_pipeline.run("mine.yaml", set=["score.batch_size=256"])
    done.dataset, done.report, done.quality
    i2e_pipeline.open_output("out/sample").table("labels")

`Stage`, `Table`, `Passed`, `Plan`, `Section` are what a stage of your own is made of (docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from i2e_pipeline.core.version import __version__

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from i2e_pipeline.commands.run import Outcome
    from i2e_pipeline.core.config import Config, Content, ImageLimits, Section
    from i2e_pipeline.core.rejects import part, reject
    from i2e_pipeline.engine.catalogue import Passed, Table
    from i2e_pipeline.engine.stage import Plan, Run, Stage, StageError
    from i2e_pipeline.images.decode import REASONS as IMAGE_REASONS
    from i2e_pipeline.images.decode import Rejected, open_rgb
    from i2e_pipeline.inputs.formats import StoredImages
    from i2e_pipeline.report.output import Output

_FROM = {
    "Content": "core.config",
    "IMAGE_REASONS": "images.decode:REASONS",
    "ImageLimits": "core.config",
    "Passed": "engine.catalogue",
    "Plan": "engine.stage",
    "Rejected": "images.decode",
    "Run": "engine.stage",
    "Section": "core.config",
    "Stage": "engine.stage",
    "StageError": "engine.stage",
    "StoredImages": "inputs.formats",
    "Table": "engine.catalogue",
    "open_rgb": "images.decode",
    "part": "core.rejects",
    "reject": "core.rejects",
}
__all__ = [
    "IMAGE_REASONS",
    "Content",
    "ImageLimits",
    "Passed",
    "Plan",
    "Rejected",
    "Run",
    "Section",
    "Stage",
    "StageError",
    "StoredImages",
    "Table",
    "__version__",
    "open_output",
    "open_rgb",
    "part",
    "reject",
    "run",
]


def __getattr__(name: str) -> Any:
    """What `_FROM` names, loaded when it is asked for: `import i2e_pipeline` alone loads neither Arrow nor torch."""
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _FROM[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute or name)


def run(
    config: Config | str | None = None,
    *,
    set: Sequence[str] = (),
    until: str | None = None,
    redo: Sequence[str] = (),
    forget: Sequence[str] = (),
    spark: SparkSession | None = None,
) -> Outcome:
    """The whole chain, as `i2e run`: what is done is not done again.

    config   a YAML file, or a config as `i2e_pipeline.stages.load` reads it; None: the embedded sample
    set      overrides, "section.key=value"
    until    the last stage to run; None: all
    redo     stages to make again
    forget   units to drop from the dataset
    spark    the session to use; None: an active one, else as the config says
    Raises what the command line prints: ConfigError, InputError, StageError …
    """
    from i2e_pipeline import stages
    from i2e_pipeline.commands import run as command
    from i2e_pipeline.core.config import Config, ConfigError

    if isinstance(config, Config):
        if set:
            raise ConfigError("run: `set` goes with a file; of a config make another one (model_copy)")
        settings = config
    elif config is None:
        from i2e_pipeline.sample import embedded

        settings = stages.from_tree(embedded.composed(set), "the embedded sample", set)
    else:
        settings = stages.load(str(config), set)
    whole = stages.pipeline(settings, None if spark is None else lambda: spark)
    whole.known([*redo, *([until] if until else [])])
    for unit in forget:
        whole.forget(unit)
    return command.run(whole, whole.upto(until) if until else None, redo)


def open_output(where: Config | str = "out/sample", *, spark: SparkSession | None = None) -> Output:
    """The tables of an output, to look at in a notebook (report/output.py).

    where   the folder of an output, which keeps the config of its last run; a YAML file; or a config
    spark   the session to read with; None: this process reads, and starts none
    Raises ConfigError, and OutputError where the folder holds nothing that a run has made.
    """
    from i2e_pipeline import stages
    from i2e_pipeline.core import files, settings
    from i2e_pipeline.core.config import Config
    from i2e_pipeline.report.output import Output

    if isinstance(where, Config):
        config = where
    elif where.endswith((".yaml", ".yml")):
        config = stages.load(where)
    elif files.exists(kept := files.join(where, "config.yaml")):
        config = stages.of_output(settings.read(kept), kept, [f"output={where}"])
    else:
        config = stages.from_tree({"output": where}, "open_output")
    return Output(stages.pipeline(config, None if spark is None else lambda: spark), spark)
