"""Where tasks run: what master a config's session has, or will have, and whether spark-submit has started it."""

from __future__ import annotations

import os

from i2e_pipeline.core.config import Config


def is_local(master: str | None) -> bool:
    """Do tasks run in the driver's own JVM, on its disks? `local-cluster[…]` is a cluster on one machine."""
    return master is None or master == "local" or master.startswith("local[")


def submitted() -> bool:
    """Has spark-submit started the JVM?"""
    return "PYSPARK_GATEWAY_PORT" in os.environ


def submitted_with(key: str, default: str) -> str:
    """A property that spark-submit was given."""
    from pyspark import SparkConf, SparkContext

    SparkContext._ensure_initialized()
    return SparkConf().get(key, default) or default


def master_of(config: Config) -> str:
    """The master that a session for this config has, or will have."""
    if config.session.master:
        return config.session.master
    return submitted_with("spark.master", "local[*]") if submitted() else "local[*]"
