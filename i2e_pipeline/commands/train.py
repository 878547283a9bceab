"""`i2e train` and jobs/train.py: a training whose held-out figures are those of the evaluation.

One process is one rank. `torchrun --nproc-per-node 8 --no-python i2e train …` starts several on a machine,
`on_spark` starts them on a cluster's executors; alone, it is one.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from i2e_pipeline.core import config as configuration
from i2e_pipeline.core import files, logs, stores
from i2e_pipeline.core.config import Config, ConfigError
from i2e_pipeline.core.errors import ExitCode, I2EError

log = logging.getLogger(__name__)


def pretrain(config: Config, restart: bool = False) -> dict[str, Any] | None:
    """This process's part of the training; what it came to on rank 0 (outcome.json), None elsewhere."""
    from i2e_pipeline.evaluate.in_training import held_out
    from i2e_pipeline.train.parallel import join, leave
    from i2e_pipeline.train.trainer import folder_of, outcome, train

    if config.train.wandb is not None:
        importlib.import_module("wandb")  # what is missing is said before --restart removes anything
    sets = _sets(config) if config.train.evaluate_sets else None
    world = join(config.train.device)
    try:
        train(config, world, held_out, restart, sets)
        return outcome(folder_of(config)) if world.first else None
    finally:
        leave()


def _sets(config: Config) -> Callable[[Any], dict[str, float]]:
    """Measures the image sets of train.evaluate_sets; wants what the extra `evaluate` brings."""
    from i2e_pipeline.evaluate.sets_in_training import Sets
    from i2e_pipeline.train.on_ranks import AT_ONCE

    return Sets(config, AT_ONCE)


def on_spark(config: Config, restart: bool = False) -> dict[str, Any]:
    """The same, on processes that Spark starts: on the driver's machine with a local master, else on executors.

    Every executor needs the dataset, and `train.folder` on a file system that all of them share. The outcome is read
    from the file that rank 0 wrote: what TorchDistributor returns in local mode may be another rank's.
    """
    import torch
    from pyspark.ml.torch.distributor import TorchDistributor

    from i2e_pipeline.engine import cluster
    from i2e_pipeline.engine.master import is_local
    from i2e_pipeline.engine.session import build
    from i2e_pipeline.train.trainer import dataset_of, folder_of, outcome

    cluster.refuse_relative(config)
    spark = build(config, "i2e train")
    local = is_local(spark.sparkContext.master)
    settings = dict(spark.sparkContext.getConf().getAll())
    cards = torch.cuda.is_available() if local else "spark.task.resource.gpu.amount" in settings
    use_gpu = cards and config.train.device != "cpu"
    ranks = config.train.ranks or (torch.cuda.device_count() if use_gpu and local else 1)
    if not local and config.train.ranks is None:
        raise ConfigError("train.ranks is not set: say how many processes the cluster shall train with")
    log.info(f"{ranks} rank{'s' * (ranks > 1)} through TorchDistributor ({'this machine' if local else 'executors'})")
    reads = [("train.dataset", dataset_of(config))]
    reads += [
        place
        for place in configuration.paths(config)
        if place[0].startswith(("train.start_from", "train.evaluate_sets"))
    ]
    cluster.check(spark, config, [("train.folder", folder_of(config))], reads)
    place = files.join(folder_of(config), "failed.txt")
    files.remove(place)
    try:
        TorchDistributor(num_processes=ranks, local_mode=local, use_gpu=use_gpu).run(
            _travelling(spark.sparkContext._python_includes or ()), _of_a_rank(config), restart
        )
    except RuntimeError:
        if files.exists(place):
            raise TrainingFailed(files.read_bytes(place).decode()) from None
        raise
    return outcome(folder_of(config))


class TrainingFailed(I2EError, RuntimeError):
    """A rank that Spark started has failed; the message is that rank's."""

    exit_code = ExitCode.FAULT


def _of_a_rank(config: Config) -> dict[str, Any]:
    """The settings that travel to a rank. It starts no Spark, and Spark's properties may be secrets, as stores' options
    may be, which travel in the environment."""
    return config.model_dump(mode="json", exclude={"session": {"conf"}, "storage": {"options"}})


def _travelling(archives: Sequence[str]) -> Callable[[dict[str, Any], bool], None]:
    """A rank's main as it travels to the executors: as a whole, since the process that TorchDistributor starts there
    does not have on its path what --py-files brought into the executor's folder."""

    def rank(tree: dict[str, Any], restart: bool) -> None:
        import os
        import sys

        sys.path[:0] = [os.path.abspath(name) for name in archives if os.path.exists(name)]
        from i2e_pipeline.commands import train

        train.rank(tree, restart)

    return rank


def rank(tree: dict[str, Any], restart: bool) -> None:
    """One rank's main, in a process that Spark started. Its error, which torchrun would bury, goes to a file."""
    from i2e_pipeline.train.trainer import folder_of

    logs.set_up()
    tree["storage"]["options"] = stores.in_use()
    config = configuration.from_tree(tree, "the driver's config")
    try:
        pretrain(config, restart)
    except I2EError as error:
        if os.environ.get("RANK", "0") == "0":
            files.write_bytes(files.join(folder_of(config), "failed.txt"), str(error).encode())
        raise
