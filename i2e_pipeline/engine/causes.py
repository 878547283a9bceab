"""What lies behind an error of Spark's, in one line. Its own text is a page: a JVM's trace around a worker's."""

from __future__ import annotations

import re
import traceback

_LONGEST = 600
_TRACEBACK = "Traceback (most recent call last):"
_NAMED = r"(?:[\w$]+\.)+[\w$]*[A-Z][\w$]*"
_LOST = (
    re.compile(rf"most recent failure: .*?\): ({_NAMED}: .+)"),
    re.compile(rf"^: ({_NAMED}: .+)", re.MULTILINE),
    re.compile(r"^((?:\w+\.)*\w+(?:Error|Exception|Changed|Lost|Published): .+)", re.MULTILINE),
)
"""Where an exception without a cause of its own stands: a task's, the driver's, one of Python's without its trace."""
_FRAME = re.compile(r"^\s*(?:at |\.\.\. \d+ more|Driver stacktrace:|JVM stacktrace:|Suppressed: )")
_LIMITS = {
    "File too large": "a limit of the size of files: ulimit -f unlimited, or a disk that takes larger ones",
    "Too many open files": "a limit of open files: ulimit -n 4096",
    "No space left on device": "a disk is full: free some space there, or name places on larger ones: output, "
    "TMPDIR, spark.local.dir",
    "unable to create native thread": "a limit of processes and threads: ulimit -u, or the container's pids",
}
"""What Java and Python say of limits that a shell or a container sets, and the remedy."""
_UNANSWERED = re.compile(r"An error occurred while calling \S+\s*")
"""py4j's whole text where no answer came; behind a fault in the JVM stands its trace."""
_ENDS = re.compile(r"SparkContext was shut down|Cannot call methods on a stopped SparkContext")
_DIED = "Python worker exited unexpectedly"


def cause(error: BaseException | str) -> str:
    """The last thing that a worker's Python said; else the deepest of Java's causes that says something; else the first
    line. An exception of Python's own is named by its class."""
    said = error if isinstance(error, str) else str(error)
    if _DIED in said:
        return "a Python worker died, of a crash in a library or because memory ran out (the executor's log says which)"
    found = _of_python(said) or _of_java(said)
    if found:
        return found[:_LONGEST] + limit(said)
    first = next((line.strip() for line in said.splitlines() if line.strip() and not _FRAME.match(line)), "")
    first = first if isinstance(error, str) else f"{type(error).__name__}: {first}".removesuffix(": ")
    return first[:_LONGEST] + limit(said)


def lost_jvm(error: BaseException) -> bool:
    """Is it that the driver's JVM answers no more, or ends? py4j says so in its own exceptions or in the socket's."""
    seen: set[int] = set()
    behind: BaseException | None = error
    while behind is not None and id(behind) not in seen:
        seen.add(id(behind))
        named = type(behind).__name__
        if named == "Py4JNetworkError" or (named == "Py4JError" and _UNANSWERED.fullmatch(str(behind))):
            return True
        if type(behind).__module__.startswith(("pyspark", "py4j")) and _ENDS.search(str(behind)):
            return True
        if isinstance(behind, ConnectionError):
            frames = traceback.walk_tb(behind.__traceback__)
            if any(frame.f_globals.get("__name__", "").startswith("py4j.") for frame, _ in frames):
                return True
        behind = behind.__cause__ or behind.__context__
    return False


def limit(said: str) -> str:
    """Which limit of a process an error is of, and the remedy, where it is of one; else empty."""
    for pattern, about in _LIMITS.items():
        if pattern in said:
            return f" ({about})"
    return ""


def _of_python(said: str) -> str:
    """The exception of the last traceback: its first line that is not indented, `pyarrow.lib.ArrowInvalid: …`."""
    for trace in reversed(said.split(_TRACEBACK)[1:]):
        for line in trace.splitlines()[1:]:
            if line.strip() and not line[0].isspace():
                return line.strip()
    return ""


def _of_java(said: str) -> str:
    causes = [line.strip().removeprefix("Caused by: ") for line in said.splitlines() if "Caused by: " in line[:40]]
    telling = [one for one in causes if ": " in one]
    if telling or causes:
        return (telling or causes)[-1]
    return next((found[-1].strip() for way in _LOST if (found := way.findall(said))), "")


def of_a_start(said: str) -> str:
    """What a JVM or Spark's launcher printed when it did not start: the lines that say something, at most three."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and not _FRAME.match(line)]
    telling = [
        line
        for line in lines
        if re.search(
            r"\b(?:Error|Exception|Caused by|[Ff]ailed|Could not|not (?:found|supported)|Invalid|Missing)\b", line
        )
        or re.search(rf"^(?:Exception in thread .*)?{_NAMED}(?:Error|Exception)\b", line)
    ]
    return " · ".join(dict.fromkeys(telling[-3:] or lines[:3]))[:_LONGEST] + limit(said)
