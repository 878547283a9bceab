"""What Spark needs of this machine and its environment variables, asked before a JVM is started.

One list: `i2e doctor` prints it, and every start of Spark refuses, in these words, what would else end in words about
something else, some of it after hours.
"""

from __future__ import annotations

import os
import pwd
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from i2e_pipeline.core import secrets
from i2e_pipeline.core.config import Config, paths
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.machine import scratch
from i2e_pipeline.engine import java
from i2e_pipeline.engine.master import is_local, master_of, submitted

OLDEST_SPARK = (4, 1)
"""4.0 runs for a while, and dies in the middle of a run: it lacks Arrow calls that stages make."""
_OPEN_FILES = 1024
WORKERS_NEED = {
    "pyarrow": "pyarrow", "numpy": "numpy", "pandas": "pandas", "pydantic": "pydantic", "msgspec": "msgspec",
    "pillow": "PIL", "pyyaml": "yaml", "filelock": "filelock", "deltalake": "deltalake",
}  # fmt: skip
"""Packages that every stage's workers import, and the name by which they do."""


class EnvironmentFault(I2EError, RuntimeError):
    """Something about this machine with which Spark cannot run; the message says the remedy."""


Check = tuple[str, Callable[[Config], str]]
"""A name, and what returns what it found or raises EnvironmentFault."""


def refuse(config: Config) -> None:
    """Raise EnvironmentFault, with a line for each, where checks of the list fail."""
    unset_empty()
    wrong = []
    for _, check in CHECKS:
        try:
            check(config)
        except I2EError as error:
            wrong.append(str(error))
    if wrong:
        raise EnvironmentFault("\n".join(wrong))


_ARE_UNSET = ("SPARK_HOME", "SPARK_CONF_DIR", "SPARK_LOCAL_DIRS", "SPARK_LOCAL_IP", "PYSPARK_PYTHON", "JAVA_HOME")


def unset_empty() -> None:
    """Take variables that are set to nothing out of the environment: pyspark starts './bin/spark-submit' for an empty
    SPARK_HOME."""
    for name in _ARE_UNSET:
        if not os.environ.get(name, "-").strip():
            del os.environ[name]


def version(text: str) -> tuple[int, ...]:
    """(4, 1) of "4.1.2", "4.1.0.dev1", "4.1.0-amzn-0"."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def spark_package(config: Config) -> str:
    import pyspark

    found = str(pyspark.__version__)
    if version(found) < OLDEST_SPARK:
        raise EnvironmentFault(
            f"pyspark is {found}, from {pyspark.__path__[0]}, and {_dotted(OLDEST_SPARK)} or newer is "
            f"needed: "
            f"pip install 'pyspark>={_dotted(OLDEST_SPARK)}', on a cluster one of that version"
        )
    return found


def spark_home(config: Config) -> str:
    """SPARK_HOME decides which JVM pyspark starts, whatever version pyspark has itself."""
    import pyspark

    unset_empty()
    home = os.environ.get("SPARK_HOME")
    if not home or submitted():
        return home or "not set"
    found = _version_of_home(Path(home))
    remedy = f"unset SPARK_HOME, or set it to Spark {_dotted(version(pyspark.__version__))}"
    if found is None:
        raise EnvironmentFault(f"SPARK_HOME={home} holds no Spark (no jars/spark-core_*.jar): {remedy}")
    if version(found) != version(pyspark.__version__):
        raise EnvironmentFault(
            f"SPARK_HOME={home} holds Spark {found}, and the imported pyspark is {pyspark.__version__}: one cannot "
            f"talk to the other. {remedy[0].upper()}{remedy[1:]}"
        )
    return f"{home}, {found}"


def _version_of_home(home: Path) -> str | None:
    for jar in sorted(home.glob("jars/spark-core_*.jar")):
        if found := re.fullmatch(r"spark-core_[\d.]+-(.+)\.jar", jar.name):
            return found[1]
    release = home / "RELEASE"
    found = (
        re.match(r"Spark (\S+)", release.read_text(encoding="utf-8", errors="replace")) if release.is_file() else None
    )
    return found[1] if found else None


def submit_arguments(config: Config) -> str:
    given = os.environ.get("PYSPARK_SUBMIT_ARGS")
    if given is None or submitted():
        return "not set" if given is None else "those of spark-submit"
    if "pyspark-shell" not in given.split():
        raise EnvironmentFault(
            f"PYSPARK_SUBMIT_ARGS={secrets.hide(given)!r} does not name what to submit, and Spark's launcher prints "
            "its usage and ends: append pyspark-shell to it, or unset it"
        )
    return secrets.hide(given)


def spark_settings(config: Config) -> str:
    """What the machine's own spark-defaults.conf sets, beside and under what this package does."""
    folder = os.environ.get("SPARK_CONF_DIR")
    if submitted() or not folder:
        return "those of spark-submit" if submitted() else "no SPARK_CONF_DIR"
    if not os.path.isdir(folder):
        raise EnvironmentFault(
            f"SPARK_CONF_DIR={folder} is no folder, and Spark passes over what it should set: name the folder of "
            "spark-defaults.conf, or unset SPARK_CONF_DIR"
        )
    file = Path(folder, "spark-defaults.conf")
    written = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    keys = [re.split(r"[\s=:]", line.strip(), maxsplit=1)[0] for line in written if line.strip()[:1] not in ("", "#")]
    return f"{file} sets {', '.join(keys)}" if keys else f"{folder}, without spark-defaults.conf"


def java_version(config: Config) -> str:
    if submitted():
        return "that of spark-submit"  # what it is, session.ready asks of the JVM
    found = java.find()
    return f"version {java.version(found)} at {found}"


def user(config: Config, uid: int | None = None) -> str:
    uid = os.getuid() if uid is None else uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        raise EnvironmentFault(
            f"uid {uid} has no name on this machine, and Spark's login (Hadoop's) ends without one. Give it one: "
            f"echo 'i2e:x:{uid}:{os.getgid()}::/tmp:/bin/sh' >> /etc/passwd in the image, or run as a user that is "
            f"there"
        ) from None


def temporary_folder(config: Config) -> str:
    for variable in ("TMPDIR", "TEMP", "TMP", "SPARK_LOCAL_DIRS"):
        for folder in filter(None, os.environ.get(variable, "").split("," if variable == "SPARK_LOCAL_DIRS" else "\0")):
            if not os.path.isdir(folder):
                raise EnvironmentFault(f"{variable}={folder} is no folder: make it, or unset {variable}")
            try:
                with tempfile.TemporaryFile(dir=folder) as file:  # what root may write, a read-only disk may not take
                    file.write(b"x")
            except OSError as error:
                raise EnvironmentFault(
                    f"{variable}={folder} cannot be written ({error.strerror or error}): name a folder of yours, or "
                    f"unset {variable}"
                ) from None
    return str(scratch())


def open_files(config: Config) -> str:
    """How many files a process may have open: Spark opens its jars alone by hundreds. What may be raised is raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _OPEN_FILES:
        wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _OPEN_FILES:
        raise EnvironmentFault(
            f"a process may have {soft} files open (ulimit -n), and Spark needs {_OPEN_FILES}: ulimit -n 4096, where "
            "that is refused by who runs this machine (limits.conf; docker run --ulimit nofile=4096)"
        )
    return "no limit" if soft == resource.RLIM_INFINITY else f"{soft:,} at once"


def locale(config: Config) -> str:
    """A JVM reads and writes names of files in the locale's encoding, and in `C` that is ASCII."""
    said = next((f"{n}={v}" for n in ("LC_ALL", "LC_CTYPE", "LANG") if (v := os.environ.get(n))), "")
    encoded = re.search(r"utf-?8", said, re.IGNORECASE)
    if encoded or (not said and sys.platform == "darwin"):
        return said or "UTF-8"
    refuse_names(config, said or "no locale is set (LC_ALL, LANG)")
    return f"{said or 'none'}: names of files must be ASCII"


def refuse_names(config: Config, said: str) -> None:
    """Raise EnvironmentFault where names of files are not ASCII. `said`: why a JVM knows no others."""
    places = [*paths(config), ("the working folder", os.getcwd()), ("TMPDIR", os.environ.get("TMPDIR", ""))]
    if wrong := [f"{key}: {path}" for key, path in places if not path.isascii()]:
        raise EnvironmentFault(
            f"{said}, in which Java knows ASCII alone, and these names are not: {', '.join(wrong)}. "
            "export LC_ALL=C.UTF-8"
        )


def worker_python(config: Config) -> str:
    """The python of a local session's workers; those of a cluster are asked by a job (engine/cluster.py)."""
    worker = os.environ.get("PYSPARK_PYTHON") or sys.executable
    if not is_local(master_of(config)):
        return f"{worker}, on the workers' machines"
    if os.path.realpath(worker) == os.path.realpath(sys.executable) and os.path.dirname(worker) == os.path.dirname(
        sys.executable
    ):
        return f"{sys.version.split()[0]}, workers use {worker}"
    imports = ", ".join(("pyspark", *WORKERS_NEED.values()))
    ask = f"import sys; print(*sys.version_info[:3], sep='.', flush=True); import {imports}"
    remedy = f"unset PYSPARK_PYTHON, or name the python that has these packages ({sys.executable})"
    try:
        done = subprocess.run([worker, "-c", ask], capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentFault(f"PYSPARK_PYTHON={worker} is no program that runs ({error}): {remedy}") from None
    found = done.stdout.strip()
    if version(found) != sys.version_info[:2]:
        raise EnvironmentFault(
            f"PYSPARK_PYTHON={worker} is Python {found or 'of no version'}, and this is "
            f"{_dotted(sys.version_info[:2])}: none can "
            f"take the other's functions. {remedy[0].upper()}{remedy[1:]}"
        )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise EnvironmentFault(f"PYSPARK_PYTHON={worker} lacks what workers import ({last[0]}): {remedy}")
    return f"{found}, workers use {worker}"


def _dotted(numbers: Sequence[int]) -> str:
    return ".".join(map(str, numbers))


CHECKS: tuple[Check, ...] = (
    ("pyspark", spark_package),
    ("SPARK_HOME", spark_home),
    ("submit args", submit_arguments),
    ("spark conf", spark_settings),
    ("java", java_version),
    ("user", user),
    ("temporary", temporary_folder),
    ("open files", open_files),
    ("locale", locale),
    ("python", worker_python),
)
"""In the order in which they are said. All of them take less than a second together, unless workers have a python of
their own."""
