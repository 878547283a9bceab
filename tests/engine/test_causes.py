"""The cause of a failed job is named, in whatever Spark has wrapped it."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest

from i2e_pipeline.engine.causes import cause, lost_jvm, of_a_start

JVM = "\tat org.apache.spark.scheduler.Task.run(Task.scala:141)\n\t... 18 more\n"
PYTHON = (
    "org.apache.spark.api.python.PythonException: Traceback (most recent call last):\n"
    '  File "worker.py", line 1, in main\n    process()\n{last}\n\n' + JVM
)
STAGE = (
    "Job aborted due to stage failure: Task 3 in stage 7.0 failed 4 times, most recent failure: Lost task 3.3 in stage "
    "7.0 (TID 41) (host executor 2): {of}\nDriver stacktrace:\n" + JVM
)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (
            "An error occurred while calling o47.save.\n: java.io.IOException: No space left on device\n" + JVM,
            "java.io.IOException: No space left on device (a disk is full: free some space there, or name places on "
            "larger ones: output, TMPDIR, spark.local.dir)",
        ),
        (
            "An error occurred while calling o47.save.\n: org.apache.spark.SparkException: Job aborted.\n"
            + JVM + "Caused by: org.apache.spark.SparkException: Task failed while writing rows.\n" + JVM
            + "Caused by: java.io.FileNotFoundException: /data/00001.parquet (Permission denied)\n" + JVM,
            "java.io.FileNotFoundException: /data/00001.parquet (Permission denied)",
        ),
        (
            "x\n: org.apache.spark.SparkException: no\n" + JVM
            + "Caused by: java.lang.OutOfMemoryError: Java heap space\n" + JVM
            + "Caused by: java.lang.NullPointerException\n" + JVM,
            "java.lang.OutOfMemoryError: Java heap space",
        ),
        (
            "x\n: org.apache.spark.SparkException: " + STAGE.format(of="java.lang.StackOverflowError: deep\n" + JVM),
            "java.lang.StackOverflowError: deep",
        ),
        (
            "\n  An exception was thrown from the Python worker. Please see the stack trace below.\n"
            'Traceback (most recent call last):\n  File "a.py", line 3\n    x\n'
            "pyarrow.lib.ArrowInvalid: Invalid UTF8 payload\n",
            "pyarrow.lib.ArrowInvalid: Invalid UTF8 payload",
        ),
        (
            STAGE.format(of=PYTHON.format(last="pyarrow.lib.ArrowNotImplementedError: Unsupported cast"))
            + "Caused by: " + PYTHON.format(last="pyarrow.lib.ArrowNotImplementedError: Unsupported cast"),
            "pyarrow.lib.ArrowNotImplementedError: Unsupported cast",
        ),
        (STAGE.format(of=PYTHON.format(last="KeyError: 'caption'")), "KeyError: 'caption'"),
        (STAGE.format(of=PYTHON.format(last="zipfile.BadZipFile: no zip file")), "zipfile.BadZipFile: no zip file"),
        ("[NOT_FOUND] No table `x`.\n\nJVM stacktrace:\n" + JVM, "[NOT_FOUND] No table `x`."),
        (
            "a\norg.apache.spark.SparkException: Python worker exited unexpectedly (crashed)\n",
            "a Python worker died, of a crash in a library or because memory ran out (the executor's log says which)",
        ),
        ("", ""),
    ],
)  # fmt: skip
def test_the_cause_of_a_failed_job_is_found(said: str, found: str) -> None:
    """Catches: "An error occurred while calling o47.save", and a line of a trace, in place of the cause."""
    assert cause(said) == found


def test_an_exception_of_pythons_own_is_named_by_its_class() -> None:
    assert cause(ValueError("no such thing")) == "ValueError: no such thing"
    assert cause(KeyError()) == "KeyError"


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (
            "WARNING: Using incubator modules: jdk.incubator.vector\n"
            'Exception in thread "main" java.lang.UnsupportedClassVersionError: org/apache/spark/launcher/Main has '
            "been compiled by a more recent version of the Java Runtime (class file version 61.0)\n" + JVM,
            "UnsupportedClassVersionError",
        ),
        ("Error: Missing application resource.\n\nUsage: spark-submit\n", "Error: Missing application resource."),
        ("one\nError: Could not create the Java Virtual Machine.\n", "Could not create the Java Virtual Machine"),
        ("one\ntwo\n", "one · two"),
    ],
)  # fmt: skip
def test_a_start_that_failed_quotes_the_jvm(said: str, found: str) -> None:
    assert found in of_a_start(said)


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("Caused by: java.io.IOException: File too large", "ulimit -f unlimited"),
        ("java.io.FileNotFoundException: /x (Too many open files)", "ulimit -n 4096"),
    ],
)
def test_a_limit_of_the_shell_is_named_with_its_remedy(said: str, remedy: str) -> None:
    for told in (cause(said), of_a_start(said)):
        assert said.removeprefix("Caused by: ") in told
        assert remedy in told
    assert cause(OSError("no such thing")) == "OSError: no such thing"


def test_a_jvm_that_is_gone_is_told_from_other_faults() -> None:
    """Catches: a trace of refused connections, where the JVM was killed; and another's refused connection taken for
    it."""
    from py4j.clientserver import ClientServerConnection, JavaParameters, PythonParameters
    from py4j.protocol import Py4JError, Py4JNetworkError

    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        refused: list[Exception] = []
        connection = ClientServerConnection(
            JavaParameters(port=port), PythonParameters(), SimpleNamespace(pool=None), None
        )
        for connect in (connection.connect_to_java_server, lambda: socket.create_connection(("127.0.0.1", port))):
            with pytest.raises(ConnectionRefusedError) as raised:
                connect()
            refused.append(raised.value)
    assert [lost_jvm(error) for error in refused] == [True, False]
    wrapped = RuntimeError("stage link")
    wrapped.__cause__ = Py4JNetworkError("Answer from Java side is empty")
    assert lost_jvm(wrapped)
    assert lost_jvm(Py4JError("An error occurred while calling None.java.util.HashMap"))
    assert not lost_jvm(Py4JError("An error occurred while calling o1.x. Trace:\njava.lang.NullPointerException"))
