"""`i2e …` whose process kills itself at the n-th change that it makes, with SIGKILL, as a machine would.

    I2E_DIES_AT=17 I2E_CHANGES=FILE python -m tests.faults.dying run --config mine.yaml

Counted are calls of what changes files and Delta logs, each before it is made: so a death lies after one change and
before the next. Each is written to FILE first, a line each: the stage that is at work, what is called, of what.
"""

from __future__ import annotations

import functools
import itertools
import os
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


def counting(dies_at: int, listed: str) -> None:
    """From now on changes are counted, and one of them, or none (-1), is not made any more."""
    numbers = itertools.count()
    out = open(listed, "a", buffering=1)  # noqa: SIM115 - for as long as the process lives

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(real)
        def change(*arguments: Any, **named: Any) -> Any:
            number = next(numbers)
            of = next((str(a) for a in arguments if isinstance(a, str | os.PathLike)), "")
            out.write(f"{number}\t{name}\t{of or getattr(arguments[0], 'path', '') if arguments else ''}\n")
            if number == dies_at:
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


if __name__ == "__main__":
    counting(int(os.environ["I2E_DIES_AT"]), os.environ["I2E_CHANGES"])
    from i2e_pipeline import cli

    cli.main(sys.argv[1:])
