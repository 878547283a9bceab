"""`i2e …` whose process kills itself at one of the changes that it makes, with SIGKILL, as a machine would.

    I2E_DIES_AT='move_file .*/mentions/' I2E_CHANGES=FILE python -m tests.faults.dying run --config mine.yaml

Counted are calls of what changes files and Delta logs, each before it is made, so that a death lies between two
changes. Each is written to FILE, a line each: what is called, of what. The first whose line matches I2E_DIES_AT is not
made any more; a number at the beginning (`3: …`) passes over as many, and with one alone (`17:`) every change counts.

Imports take longer than most of these commands. `--each` reads commands from stdin, a JSON object a line (`arguments`,
`dies_at`, null for none, `changes`, `log`), lets a fork of this process carry each out, and prints its exit code.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from typing import Any

from i2e_pipeline.core import files
from i2e_pipeline.engine import delta

IN_FILES = (
    "write_bytes", "write_table", "write_batches", "create_json", "make_folder", "remove", "move", "move_file", "copy",
    "put_in_place",
)  # fmt: skip


def counting(dies_at: str, listed: str) -> None:
    """From now on changes are counted, and one of them is not made any more; none, where nothing matches."""
    skip, _, pattern = dies_at.rpartition(": " if ": " in dies_at else ":")
    matches = itertools.count()
    wanted = re.compile(pattern)
    out = open(listed, "a", buffering=1)  # noqa: SIM115 - for as long as the process lives

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(real)
        def change(*arguments: Any, **named: Any) -> Any:
            of = next((str(a) for a in arguments if isinstance(a, str | os.PathLike)), "")
            said = f"{name} {of or getattr(arguments[0], 'path', '') if arguments else ''}"
            out.write(f"{said}\n")
            if wanted.match(said) and next(matches) == int(skip or 0):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return change

    for name in IN_FILES:
        setattr(files, name, counted(name, getattr(files, name)))
    for name in ("replace", "rename", "fsync"):  # within a write: before the file has its name, and before it is whole
        setattr(os, name, counted(name, getattr(os, name)))
    shutil.rmtree = counted("rmtree", shutil.rmtree)  # type: ignore[assignment]
    delta.DeltaLog.replace = counted("DeltaLog.replace", delta.DeltaLog.replace)  # type: ignore[method-assign]
    import deltalake
    from deltalake import transaction

    # Between a table's columns and its rows, and between the transaction and what the log remembers of it.
    made = transaction.create_table_with_add_actions
    transaction.create_table_with_add_actions = counted("create_table", made)
    deltalake.DeltaTable.create_write_transaction = counted(  # type: ignore[method-assign]
        "write_transaction", deltalake.DeltaTable.create_write_transaction
    )
    delta.DeltaLog._changed = counted("after the transaction", delta.DeltaLog._changed)  # type: ignore[method-assign]


NOWHERE = r"(?!)"


def each() -> None:
    """Carry out commands in forks of this process, which has imported what they need and has no thread yet."""
    from i2e_pipeline import cli, stages  # noqa: F401
    from i2e_pipeline.commands import clean, export, merge, purge, repair, verify  # noqa: F401

    for line in sys.stdin:
        told = json.loads(line)
        if (child := os.fork()) == 0:
            log = os.open(told["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            for out in (1, 2):
                os.dup2(log, out)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            counting(told["dies_at"] or NOWHERE, told["changes"])
            cli.main(told["arguments"])
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--each"]:
        each()
    else:
        counting(os.environ["I2E_DIES_AT"], os.environ["I2E_CHANGES"])
        from i2e_pipeline import cli

        cli.main(sys.argv[1:])
