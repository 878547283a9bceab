"""The only place that builds a SparkSession: local, under spark-submit, with Delta, with GPUs.

Under spark-submit the cluster's own settings hold. This module sets only what the pipeline needs for right results
(Arrow codecs, parallel units) and what the config asks for.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from i2e_pipeline.core import ending, files, secrets, stores
from i2e_pipeline.core.config import Config
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.machine import scratch
from i2e_pipeline.engine import environment, java
from i2e_pipeline.engine.causes import cause, of_a_start
from i2e_pipeline.engine.master import is_local, master_of, submitted, submitted_with

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)

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


def build(config: Config, name: str = "i2e") -> SparkSession:
    """A session for this config; an active one is used as it is. Raises SessionError.

    What cannot be added to a session that runs (jars of Delta or of the output's store) is looked for at once.
    """
    _refuse_connect(config)
    from pyspark.sql import SparkSession

    active = SparkSession.getActiveSession()
    if active is not None:
        return ready(active, config)
    spark = _started(config, name)
    try:
        ready(spark, config)
    except SessionError:
        spark.stop()
        raise
    if lacking := lacking_jars(spark, config):
        spark.stop()
        raise SessionError(lacking)
    return spark


_PINNED = ("spark.sql.files.ignoreCorruptFiles", "spark.sql.files.ignoreMissingFiles")
"""Properties that are false whatever a cluster's defaults say: with them rows are lost without a word."""
_PINNED_OF_CORE = ("spark.files.ignoreCorruptFiles", "spark.files.ignoreMissingFiles")


def ready(spark: SparkSession, config: Config) -> SparkSession:
    """The session, asked for its versions and told what must hold in it; it may be somebody else's. Raises
    SessionError."""
    import pyspark

    _refuse_connect(config, spark)
    if environment.version(spark.version) < environment.OLDEST_SPARK:
        raise SessionError(
            f"this is Spark {spark.version}, and 4.1 or newer is needed: 4.0 dies in the middle of a run. Take a "
            "cluster, or an image, of that version"
        )
    if environment.version(spark.version) != environment.version(pyspark.__version__):
        raise SessionError(
            f"the JVM runs Spark {spark.version}, and the imported pyspark is {pyspark.__version__}: give driver and "
            "workers the pyspark of the cluster's Spark"
        )
    jvm: Any = spark._jvm
    version = str(jvm.java.lang.System.getProperty("java.specification.version"))
    if not java.fits(int(version)):
        raise SessionError(
            f"the JVM is Java {version}, and Spark runs on {java.OLDEST} to {java.NEWEST}: set JAVA_HOME to such a "
            "one, of the driver and of the executors (spark.executorEnv.JAVA_HOME)"
        )
    encoding = str(jvm.java.lang.System.getProperty("sun.jnu.encoding"))
    if "UTF" not in encoding.upper():
        environment.refuse_names(config, f"the JVM spells names of files in {encoding}")
    for key in _PINNED:
        if spark.conf.get(key, "false") != "false":
            log.warning(
                "%s is false for this run: rows that cannot be read are an error or a reject, and never left out", key
            )
        spark.conf.set(key, "false")
    _open_stores(spark, config)
    return spark


_told: dict[str, dict[str, str | None]] = {}
"""By application: Hadoop's properties that were set for a config, and what they were before."""


def _open_stores(spark: SparkSession, config: Config) -> None:
    """Let Hadoop and the workers open object stores as `storage.options` says.

    It is told to the session that runs, and not by Spark's properties: these stand on a command line, in the event log
    and on a page, and somebody else's session takes none any more. A Spark property of the same name holds.
    """
    context = spark.sparkContext
    hadoop: Any = context._jsc.hadoopConfiguration()
    for name, before in _told.pop(context.applicationId, {}).items():
        hadoop.unset(name) if before is None else hadoop.set(name, before)
    properties = {
        name: value
        for name, value in stores.hadoop(config.storage.options).items()
        if not context.getConf().contains(f"spark.hadoop.{name}")
    }
    _told[context.applicationId] = {name: hadoop.get(name) for name in properties}
    for name, value in properties.items():
        hadoop.set(name, value)
    context.environment[stores.VARIABLE] = json.dumps(config.storage.options, sort_keys=True)


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

    environment.unset_empty()
    # Workers must run the driver's python: another has no pyarrow, and the job dies in the middle.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    by_submit = submitted()
    master = config.session.master or (None if by_submit else "local[*]")
    local = is_local(master_of(config))
    if local:
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    environment.refuse(config)
    if not by_submit:
        java.use_java()
    builder = SparkSession.builder.appName(name)
    if master:
        builder = builder.master(master)
    for key, value in properties(config, local, by_submit).items():
        builder = builder.config(key, value)
    quiet = local and not by_submit
    began = _log().stat().st_size if quiet and _log().exists() else 0
    try:
        with _noise_to(_log()) if quiet else nullcontext():
            spark = builder.getOrCreate()
    except Exception as error:
        said = _since(_log(), began) if quiet else ""
        told = f" The JVM said: {said}." if said else ""
        raise SessionError(
            f"Spark does not start: {cause(error).rstrip('.')}.{told}{_also_read()} `i2e doctor` says what is missing"
            + (f"; Spark's log is {_log()}" if quiet else "")
        ) from error
    ending.keep()
    spark.sparkContext.setLogLevel("ERROR")
    server: Any = spark.sparkContext._accumulatorServer
    # It prints a trace of its own when the JVM hangs up in the middle; who waits for a job says what is to say.
    server.handle_error = lambda *_: log.debug("the JVM has hung up", exc_info=True)
    # What it says of a connection that broke it raises, too; some of it it says as nobody, to the root.
    logging.getLogger("py4j").setLevel(logging.CRITICAL)
    logging.getLogger().addFilter(_not_of_py4j)
    if local and config.session.shuffle_partitions is None:
        spark.conf.set("spark.sql.shuffle.partitions", str(2 * spark.sparkContext.defaultParallelism))
    return spark


def _not_of_py4j(record: logging.LogRecord) -> bool:
    return f"{os.sep}py4j{os.sep}" not in record.pathname


def _also_read() -> str:
    """Where Spark's scripts take settings from that no message of theirs names."""
    folder = os.environ.get("SPARK_CONF_DIR")
    named = [name for name in ("spark-defaults.conf", "spark-env.sh") if folder and (Path(folder) / name).is_file()]
    return f" It read {' and '.join(named)} of SPARK_CONF_DIR={folder}." if named else ""


def _log() -> Path:
    """Where Spark's own messages go in local mode."""
    return scratch("spark") / "spark.log"


def _since(log: Path, began: int) -> str:
    """What a JVM that did not start has written there."""
    with open(log, "rb") as file:
        file.seek(began)
        return secrets.hide(of_a_start(file.read().decode(errors="replace")))


@contextmanager
def _noise_to(log: Path) -> Iterator[None]:
    """Give the JVM a file as its standard output and error: nobody needs what it prints before its logger is set up,
    and why it does not start stands in either."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = {of: os.dup(of) for of in (1, 2)}
    with open(log, "a") as file:
        for of in kept:
            os.dup2(file.fileno(), of)
        try:
            yield
        finally:
            for of, before in kept.items():
                os.dup2(before, of)
                os.close(before)


_LISTS = {"spark.jars.packages": ",", "spark.jars": ",", "spark.sql.extensions": ",", "spark.redaction.regex": "|"}
"""Properties that hold several things, each with what stands between them: the user's stand beside ours."""


def properties(config: Config, local: bool, by_submit: bool) -> dict[str, str]:
    """All properties of a session that is started: what the pipeline needs, and over it the user's own."""
    found = _properties(config, local)
    if config.storage.format == "delta":
        found |= _of_delta(config, by_submit)
    if local and not by_submit and config.session.jars is None:
        for package, line in _of_stores(config):
            found["spark.jars.packages"] = ",".join(filter(None, (found.get("spark.jars.packages"), package)))
            if line:
                found[f"spark.hadoop.{line.partition('=')[0]}"] = line.partition("=")[2]
    for key, value in config.session.conf.items():
        between = _LISTS.get(key)
        found[key] = between.join(_together(key, found[key], value)) if between and found.get(key) else value
    return found | dict.fromkeys((*_PINNED, *_PINNED_OF_CORE), "false")


def _together(key: str, ours: str, theirs: str) -> list[str]:
    """What is named in both, once: of a package of Maven's in two versions the user's."""
    if key == "spark.redaction.regex":
        return [f"(?:{ours})", f"(?:{theirs})"]
    parts = [part.strip() for part in theirs.split(",") if part.strip()]

    def name(part: str) -> str:
        return part.rpartition(":")[0] if key == "spark.jars.packages" else part

    return [*(part for part in ours.split(",") if name(part) not in map(name, parts)), *dict.fromkeys(parts)]


def _properties(config: Config, local: bool) -> dict[str, str]:
    properties = {
        "spark.redaction.regex": secrets.SPARK_REDACTION,
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
            # What its pages would show is kept all the same, of a thousand jobs and plans. Progress asks for the jobs
            # of the waves that are worked on.
            "spark.ui.retainedJobs": "100",
            "spark.ui.retainedStages": "200",
            "spark.ui.retainedTasks": "2000",
            "spark.sql.ui.retainedExecutions": "20",
            # Of the heap each table that is broadcast takes a page, however small it is: by itself Spark makes it 16 MB
            # on two cores.
            "spark.buffer.pageSize": "2m",
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
    if not submitted() or not (cores := submitted_with("spark.executor.cores", "")):
        return None
    return max(1, int(cores) // int(submitted_with("spark.task.cpus", "1")), config.session.gpu_executor.gpus)


def _of_delta(config: Config, by_submit: bool) -> dict[str, str]:
    if by_submit:  # its JVM runs already, and takes no jars any more
        return dict(_DELTA)
    if config.session.jars is None:
        return _DELTA | {"spark.jars.packages": _delta_package()}
    jars = sorted(str(p) for p in Path(config.session.jars).glob("*.jar"))
    if not jars:
        raise SessionError(f"session.jars: no *.jar in {config.session.jars}")
    return _DELTA | {"spark.jars": ",".join(jars)}


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


def _opened_by_hadoop(config: Config) -> list[tuple[str, str]]:
    """Settings and paths that Spark itself opens. Pairs and models are read by pyarrow alone."""
    kb = config.knowledge_base
    read = {"knowledge_base.dump": kb.dump, "knowledge_base.path": kb.path}
    return [("output", config.output), *((setting, path) for setting, path in read.items() if path)]


def _of_stores(config: Config) -> list[tuple[str, str]]:
    """Of the stores that Hadoop is to open: Maven's names of their clients, as far as Spark does not have them, each
    with the property that it wants."""
    from pyspark.find_spark_home import _find_spark_home

    home = Path(_find_spark_home()) / "jars"
    versions = [m[1] for jar in home.glob("hadoop-client-api-*.jar") if (m := re.search(r"api-(.+)\.jar", jar.name))]
    theirs = " ".join((config.session.conf.get("spark.jars", ""), *(jar.name for jar in home.glob("*.jar"))))
    found: dict[str, str] = {}
    for _, path in _opened_by_hadoop(config):
        package, line = _STORES.get(stores.scheme_of(path), ("", ""))
        artifact = package.partition(":")[2].partition(":")[0]
        if package and f"{artifact}-" not in theirs and ("{hadoop}" not in package or versions):
            found[package.format(hadoop=versions[0] if versions else "")] = line
    return list(found.items())


def lacking_jars(spark: SparkSession, config: Config) -> str | None:
    """Which jars output and dump need and this session does not have, and what brings them; None where it has all.

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
            what.append(f"storage.format=delta: Spark finds no data source of that name ({cause(error)})")
            packages.append(_delta_package())
            lines += [f"{key}={value}" for key, value in _DELTA.items()]
    hadoop = spark.sparkContext._jsc.hadoopConfiguration()
    for scheme, opened in {
        stores.scheme_of(p) or "file": (s, p) for s, p in reversed(_opened_by_hadoop(config))
    }.items():
        try:
            jvm.org.apache.hadoop.fs.FileSystem.getFileSystemClass(scheme, hadoop)
        except Exception as error:
            what.append(f"{'='.join(opened)}: Hadoop knows no file system for {scheme}:// ({cause(error)})")
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
