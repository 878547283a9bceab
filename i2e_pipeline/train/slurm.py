"""SLURM: which rank a task of `srun i2e train` is, as torchrun would say it.

srun starts the tasks of a step and gives each its number; PyTorch wants RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE,
MASTER_ADDR and MASTER_PORT. Names and meanings of SLURM's variables: https://slurm.schedmd.com/srun.html, "Output
environment variables". Those of the step are read, for a batch script sees the job's without being a task of one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_FIRST_PORT, _PORTS = 20_000, 10_000
"""Below those that Linux hands out by itself (32,768 on); one for each job and step of a machine."""
_COUNT = re.compile(r"(\d+)(?:\(x(\d+)\))?")
_RANGE = re.compile(r"\[(\d+)[^\]]*\]")


def adopt() -> None:
    """Set in this process what torchrun would."""
    os.environ.update(variables(os.environ))


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What torchrun would set; nothing where torchrun, or anybody else, has set a rank, or where this is no task of
    several that srun started."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "")
    needed = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_NODELIST")
    if "RANK" in environment or "WORLD_SIZE" in environment or not tasks.isdecimal() or int(tasks) < 2:
        return {}
    if any(name not in environment for name in needed):
        return {}
    here = tasks_of(environment["SLURM_STEP_TASKS_PER_NODE"])[int(environment["SLURM_NODEID"])]
    job, step = (int(environment.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(here),
        "MASTER_ADDR": first_of(environment["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(_FIRST_PORT + (31 * job + step) % _PORTS),
    }


def tasks_of(counts: str) -> list[int]:
    """Tasks of each node: `2(x3),1` is 2, 2, 2, 1."""
    found = (_COUNT.fullmatch(part) for part in counts.split(","))
    return [int(one[1]) for one in found if one for _ in range(int(one[2] or 1))]


def first_of(nodes: str) -> str:
    """The first host of a list: of `gpu[003-005,9]-ib,login` it is gpu003-ib."""
    return _RANGE.sub(r"\1", re.split(r",(?![^\[]*\])", nodes)[0])
