"""Makes tasks of some stages fail, or take long, in one attempt: first on the path of a cluster's Python workers.

I2E_FAULTS names a folder, in which `STAGE.fails`, `STAGE.sleeps` or `STAGE.waits` say what is to happen to whichever
task of that stage comes first. What happened is left there: `STAGE.KIND.done` holds the numbers of executor, partition
and attempt, `STAGE.attempts` those of all its tasks.

    fails    after its files are written, and before it has reported them
    sleeps   for two minutes at the same place, unless another attempt of it is faster
    waits    at its beginning until `STAGE.waits.over` is there, at most half a minute
"""

import functools
import os
import sys
import time

LOADED = "i2e_pipeline.engine.tasks"


def disturb(module):
    folder = os.environ["I2E_FAULTS"]
    real = module.Task._work

    def mine(stage, kind, said):
        """Is it this attempt that it happens to?"""
        try:
            os.rename(f"{folder}/{stage}.{kind}", f"{folder}/{stage}.{kind}.now")
        except OSError:
            return False
        with open(f"{folder}/{stage}.{kind}.writing", "w") as out:
            out.write(said)
        os.rename(f"{folder}/{stage}.{kind}.writing", f"{folder}/{stage}.{kind}.done")
        return True

    @functools.wraps(real)
    def work(self, *arguments, **named):
        from pyspark import TaskContext

        stage, task = self.plan.stage, TaskContext.get()
        with open(f"/proc/{os.getppid()}/stat") as stat:
            executor = int(stat.read().rpartition(")")[2].split()[1])
        said = f"{executor} {task.partitionId()} {task.taskAttemptId()}\n"
        with open(f"{folder}/{stage}.attempts", "a") as out:
            out.write(said)
        if mine(stage, "waits", said):
            until = time.monotonic() + 30
            while not os.path.exists(f"{folder}/{stage}.waits.over") and time.monotonic() < until:
                time.sleep(0.05)
        real(self, *arguments, **named)
        if mine(stage, "sleeps", said):
            time.sleep(120)
        if mine(stage, "fails", said):
            raise RuntimeError("a task that fails once")

    module.Task._work = work


class AfterTasks:
    """Waits for the module to be imported, and changes it then."""

    def find_spec(self, name, path=None, target=None):
        if name != LOADED:
            return None
        sys.meta_path.remove(self)
        import importlib.util

        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            disturb(module)

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("I2E_FAULTS"):
    sys.meta_path.insert(0, AfterTasks())
