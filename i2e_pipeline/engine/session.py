"""The only place that builds a SparkSession: local, under spark-submit, with Delta, with GPUs.

Under spark-submit the cluster's own settings hold. This module sets only what the pipeline needs for right results
(Arrow codecs, parallel units) and what the config asks for.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from i2e_pipeline.core import files
from i2e_pipeline.core.config import Config
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.machine import scratch

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_QUIET = """
status = error
rootLogger.level = error
rootLogger.appenderRef.file.ref = file
appender.file.type = File
appender.file.name = file
appender.file.fileName = {log}
appender.file.append = true
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{{HH:mm:ss}} %p %c{{1}}: %m%n%ex
"""


class SessionError(I2EError, RuntimeError):
    """Spark cannot be started; the message says the remedy."""


def is_local(master: str | None) -> bool:
    """Do tasks run in the driver's own JVM, on its disks? `local-cluster[…]` is a cluster on one machine."""
    return master is None or master == "local" or master.startswith("local[")


def master_of(config: Config) -> str:
    """The master that a session for this config has, or will have."""
    if config.session.master:
        return config.session.master
    return _submitted_with("spark.master", "local[*]") if _submitted() else "local[*]"


def build(config: Config, name: str = "i2e") -> SparkSession:
    """A session for this config; an active one is used as it is. Raises SessionError.

    What cannot be added to a session that runs (jars of Delta or of the output's store) is looked for at once.
    """
    _refuse_connect(config)
    from pyspark.sql import SparkSession

    active = SparkSession.getActiveSession()
    if active is not None:
        _refuse_connect(config, active)
        return active
    spark = _started(config, name)
    if lacking := lacking_jars(spark, config):
        spark.stop()
        raise SessionError(lacking)
    return spark


def _submitted() -> bool:
    """Has spark-submit started the JVM?"""
    return "PYSPARK_GATEWAY_PORT" in os.environ


def _refuse_connect(config: Config, spark: SparkSession | None = None) -> None:
    """Raise SessionError for a session that is a client of Spark's: there is no SparkContext in it."""
    asked = os.environ.get("SPARK_REMOTE") or config.session.conf.get("spark.remote") or config.session.master or ""
    client = spark is not None and "connect" in type(spark).__module__.split(".")
    if client or os.environ.get("SPARK_REMOTE") or asked.startswith("sc://"):
        raise SessionError(
            f"this is Spark Connect ({asked or 'serverless compute'}), whose client has no SparkContext. The driver "
            "needs one, for job groups, task resources and progress: run it as a job of a cluster (spark-submit; on "
            "Databricks classic compute in dedicated access mode), without SPARK_REMOTE"
        )


def _started(config: Config, name: str) -> SparkSession:
    from pyspark.sql import SparkSession

    # Workers must run the driver's python: another has no pyarrow, and the job dies in the middle.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    submitted = _submitted()
    master = config.session.master or (None if submitted else "local[*]")
    local = is_local(master_of(config))
    if local:
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    from i2e_pipeline.engine.java import use_java

    if not submitted:
        use_java()
    builder = SparkSession.builder.appName(name)
    if master:
        builder = builder.master(master)
    for key, value in _properties(config, local).items():
        builder = builder.config(key, value)
    if config.storage.format == "delta":
        builder = _with_delta(builder, config, submitted)
    for key, value in config.session.conf.items():
        builder = builder.config(key, value)
    try:
        with _noise_to(_log()) if local and not submitted else nullcontext():
            spark = builder.getOrCreate()
    except Exception as error:
        raise SessionError(
            f"Spark does not start: {error}. `i2e doctor` says what is missing; Spark's log is {_log()}"
        ) from error
    spark.sparkContext.setLogLevel("ERROR")
    logging.getLogger("py4j").setLevel(logging.ERROR)
    if local and config.session.shuffle_partitions is None:
        spark.conf.set("spark.sql.shuffle.partitions", str(2 * spark.sparkContext.defaultParallelism))
    return spark


def _submitted_with(key: str, default: str) -> str:
    """A property that spark-submit was given."""
    from pyspark import SparkConf, SparkContext

    SparkContext._ensure_initialized()
    return SparkConf().get(key, default) or default


def _log() -> Path:
    """Where Spark's own messages go in local mode."""
    return scratch("spark") / "spark.log"


@contextmanager
def _noise_to(log: Path) -> Iterator[None]:
    """Give the JVM a file as its standard error: nobody needs what it prints before its logger is set up."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(log, "a") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _properties(config: Config, local: bool) -> dict[str, str]:
    properties = {
        "spark.sql.execution.arrow.maxRecordsPerBatch": "2048",
        "spark.sql.adaptive.enabled": "true",
        "spark.sql.adaptive.skewJoin.enabled": "true",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.parquet.enableVectorizedReader": "true",
        "spark.databricks.delta.snapshotPartitions": "2",
        # More than 32 folders are listed by tasks, without this one a folder: thousands for as many units.
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": "100",
    }
    if workers := os.cpu_count() if local else _tasks_at_once(config):
        # A worker that outlives its stage keeps its model. Without this limit, a stage with more or fewer tasks would
        # leave two models on one GPU.
        properties["spark.python.factory.idleWorkerMaxPoolSize"] = str(workers)
    if config.session.shuffle_partitions is not None:
        properties["spark.sql.shuffle.partitions"] = str(config.session.shuffle_partitions)
    if local:
        settings = _log().with_name("log4j2.properties")
        files.write_bytes(str(settings), _QUIET.format(log=_log()).encode())
        properties |= {
            "spark.ui.enabled": "false",
            "spark.driver.memory": config.session.driver_memory,
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            # In short jobs the second compiler and a parallel garbage collector cost more than they save.
            "spark.driver.extraJavaOptions": (
                # As a URI: Java's options end at a blank, and TMPDIR may hold one.
                f"-Dlog4j2.configurationFile={settings.as_uri()} -XX:TieredStopAtLevel=1 -XX:+UseSerialGC "
                # With the first compiler alone Java leaves 48 MB for code, which long runs fill.
                "-XX:ReservedCodeCacheSize=240m -Dio.netty.tryReflectionSetAccessible=true"
            ),
            "spark.sql.warehouse.dir": str(_log().with_name("warehouse")),
            "spark.ui.showConsoleProgress": "false",
            "spark.python.daemon.module": "i2e_pipeline.engine.daemon",
            # pyarrow says s3://, Hadoop's own client s3a://; on EMR s3:// is Amazon's and stays as it is.
            "spark.hadoop.fs.s3.impl": "org.apache.hadoop.fs.s3a.S3AFileSystem",
            # Shuffles stay on one machine: compressing them costs time and saves no network.
            "spark.shuffle.compress": "false",
            # A disk of this machine is listed at once.
            "spark.sql.sources.parallelPartitionDiscovery.threshold": "1000000",
        }
    return properties


_DELTA = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}


def _tasks_at_once(config: Config) -> int | None:
    """Tasks that an executor of the cluster runs side by side; None where spark-submit was not told: then it may be all
    cores of a machine, and a limit below them would end workers, with their models, whenever they rest."""
    if not _submitted() or not (cores := _submitted_with("spark.executor.cores", "")):
        return None
    return max(1, int(cores) // int(_submitted_with("spark.task.cpus", "1")), config.session.gpu_executor.gpus)


def _with_delta(builder: SparkSession.Builder, config: Config, submitted: bool) -> SparkSession.Builder:
    for key, value in _DELTA.items():
        builder = builder.config(key, value)
    if submitted:  # its JVM runs already, and takes no jars any more
        return builder
    if config.session.jars is None:
        from delta import configure_spark_with_delta_pip

        return configure_spark_with_delta_pip(builder)
    jars = sorted(str(p) for p in Path(config.session.jars).glob("*.jar"))
    if not jars:
        raise SessionError(f"session.jars: no *.jar in {config.session.jars}")
    return builder.config("spark.jars", ",".join(jars))


_STORES = {
    "s3": ("org.apache.hadoop:hadoop-aws:{hadoop}", "fs.s3.impl=org.apache.hadoop.fs.s3a.S3AFileSystem"),
    "s3a": ("org.apache.hadoop:hadoop-aws:{hadoop}", ""),
    "gs": (
        "com.google.cloud.bigdataoss:gcs-connector:hadoop3-2.2.26",
        "fs.gs.impl=com.google.cloud.hadoop.fs.gcs.GoogleHadoopFileSystem",
    ),
    "abfs": ("org.apache.hadoop:hadoop-azure:{hadoop}", ""),
    "abfss": ("org.apache.hadoop:hadoop-azure:{hadoop}", ""),
}
"""Of a store's scheme: what brings Hadoop's client, and the property that it wants beside it."""


def lacking_jars(spark: SparkSession, config: Config) -> str | None:
    """Which jars the output needs and this session does not have, and what brings them; None where it has all.

    Without this the run fails in the middle, with the name of a Java class.
    """
    jvm: Any = spark._jvm
    packages: list[str] = []
    lines: list[str] = []
    what: list[str] = []
    if config.storage.format == "delta":
        try:
            # pyspark's own tables of types lead to the JVM, and not to this.
            jvm.org.apache.spark.sql.execution.datasources.DataSource.lookupDataSource(
                "delta", spark._jsparkSession.sessionState().conf()
            )
        except Exception as error:
            what.append(f"storage.format=delta: Spark finds no data source of that name ({_java_cause(error)})")
            packages.append(_delta_package())
            lines += [f"{key}={value}" for key, value in _DELTA.items()]
    scheme = config.output.partition("://")[0] if "://" in config.output else "file"
    try:
        hadoop = spark.sparkContext._jsc.hadoopConfiguration()
        jvm.org.apache.hadoop.fs.FileSystem.getFileSystemClass(scheme, hadoop)
    except Exception as error:
        what.append(f"output={config.output}: Hadoop knows no file system for {scheme}:// ({_java_cause(error)})")
        package, line = _STORES.get(scheme, ("", ""))
        if package:
            packages.append(package.format(hadoop=jvm.org.apache.hadoop.util.VersionInfo.getVersion()))
        lines += [f"spark.hadoop.{line}"] if line else []
    if not what:
        return None
    options = ([f"--packages {','.join(packages)}"] if packages else []) + [f"--conf {line}" for line in lines]
    return "; ".join(what) + ". A session that runs takes no jars: spark-submit " + " ".join(options)


def _delta_package() -> str:
    """Maven's name of the Delta that fits the installed delta-spark and Spark."""
    from delta import configure_spark_with_delta_pip
    from pyspark.sql import SparkSession

    return str(configure_spark_with_delta_pip(SparkSession.Builder())._options["spark.jars.packages"])


def _java_cause(error: Exception) -> str:
    """The last exception that Java names, without its trace."""
    said = str(getattr(error, "java_exception", error)).strip().split("\n")[0]
    return said.removeprefix("java.lang.").removeprefix("org.apache.hadoop.fs.")
