"""The one list of stages, and what is built from it: a config with the sections of stages from outside, a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from i2e_pipeline.clean.stages import Decontaminate, NearDuplicates, People, Policy
from i2e_pipeline.core import config as configuration
from i2e_pipeline.core import files, places, settings
from i2e_pipeline.core.config import Config, Section
from i2e_pipeline.engine.arrange import arrange, from_outside
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.engine.stage import Stage
from i2e_pipeline.extract.stages import Extract, Pairs
from i2e_pipeline.knowledge.stages import KnowledgeBase, Surfaces
from i2e_pipeline.label.stages import Label
from i2e_pipeline.link.stages import Link
from i2e_pipeline.publish.stages import Finish, Publish, Select
from i2e_pipeline.rerank.stages import EncodeCandidates, RerankByVectors, stages_of
from i2e_pipeline.score.stages import EncodeEntities, Score
from i2e_pipeline.verify.stages import Verify

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def built_in(behind_link: Sequence[Stage] = ()) -> list[Stage]:
    """The stages of this package that every config has, in their order.

    behind_link   what stands between linking and scoring besides
    """
    return [
        KnowledgeBase(),
        Surfaces(),
        Pairs(),
        Extract(),
        Link(),
        *behind_link,
        EncodeEntities(),
        Score(),
        Label(),
        Select(),
        Publish(),
        Finish(),
    ]


def every() -> list[Stage]:
    """The same with those that only some configs have."""
    between = [Verify(), People(), Policy(), Decontaminate(), NearDuplicates()]
    return arrange(built_in([EncodeCandidates(), RerankByVectors()]), between)


def stages(config: Config | None = None) -> list[Stage]:
    """All stages, those that the config names among them. Raises StageError for one that does not fit."""
    if config is None:
        return arrange(built_in())
    return arrange(configured(config), from_outside(config.stages))


def configured(config: Config) -> list[Stage]:
    """The stages of this package, with those that are there only where the config asks for them and stand among the
    others as anybody's would: without them, nothing tells that there are any."""
    wanted: list[tuple[Stage, bool]] = [
        (Verify(), config.verify.on),
        (People(), config.clean.drops_labels_of_people),
        (Policy(), bool(config.clean.heads or config.clean.only_domains)),
        (Decontaminate(), bool(config.clean.evaluation_sets)),
        (NearDuplicates(), config.clean.near_duplicates),
    ]
    return arrange(built_in(stages_of(config)), [stage for stage, on in wanted if on])


def sections_of(names: Sequence[str]) -> Mapping[str, type[Section]]:
    """The config sections that stages from outside bring."""
    return {stage.name: stage.Settings for stage in from_outside(names) if stage.Settings is not None}


def load(file: str | None = None, overrides: Sequence[str] = ()) -> Config:
    """The config of a YAML file with `section.key=value` overrides on top; raises ConfigError or StageError."""
    return configuration.load(file, overrides, sections_of)


def from_tree(tree: Mapping[str, Any], file: str, overrides: Sequence[str] = ()) -> Config:
    """The same of settings that are read already; `file` says in messages where they come from."""
    return configuration.from_tree(tree, file, overrides, sections_of)


def of_output(tree: Mapping[str, Any], file: str, overrides: Sequence[str] = ()) -> Config:
    """The same of settings that lie in an output, which may be somebody else's: raises ConfigError where they ask for
    more than data."""
    return configuration.of_output(tree, file, overrides, sections_of)


def of_folder(output: str, overrides: Sequence[str] = ()) -> Pipeline | None:
    """The pipeline of an output under the settings that it keeps of its last run; None where it keeps none."""
    file = files.join(output, "config.yaml")
    if not files.exists(file):
        return None
    return pipeline(of_output(settings.read(file), file, [*overrides, f"output={output}"]))


def pipeline(config: Config, start_spark: Callable[[], SparkSession] | None = None) -> Pipeline:
    """All stages over the config's output. Raises StoreFault or PlaceError for an output that cannot be opened."""
    places.refuse_closed(config.output, "output")
    return Pipeline(config, stages(config), start_spark)
