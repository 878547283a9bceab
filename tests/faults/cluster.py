"""A standalone cluster of real processes whose workers have this Python and this code, so that it is up in seconds."""

from __future__ import annotations

import os
import sys

from tests.cluster.conftest import ROOT, Cluster
from tests.faults import processes
from tests.faults.injector import UNCOMPILED

PATH = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


class LightCluster(Cluster):
    """tests/cluster/ ships environment and code as users do; what is tested here is what happens to processes."""

    def add(self, name: str, **environment: str) -> None:
        # Each on a host of its own: Spark speculates on no host that has the task already.
        address = f"127.0.0.{2 + len(self.processes)}"
        self.workers[name] = self.start_worker(name, "--host", address, SPARK_LOCAL_IP=address, **environment)

    def overrides(self, **conf: str) -> list[str]:
        """Of the config of a driver beside it."""
        theirs = {
            **UNCOMPILED,
            "spark.executorEnv.PYTHONPATH": PATH,
            "spark.pyspark.python": sys.executable,
            "spark.python.daemon.module": "i2e_pipeline.engine.daemon",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.ui.enabled": "false",
            "spark.executor.memory": "1g",
            "spark.executor.cores": "1",
            "spark.executor.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
            # What was lost is looked for again at once, and not after a minute of a large cluster's patience.
            "spark.shuffle.io.maxRetries": "1",
            "spark.shuffle.io.retryWait": "500ms",
            **conf,
        }
        return [
            f"session.master={self.master}",
            "session.driver_memory=1g",
            f"session.conf={{{', '.join(f'{k}: {_quoted(v)}' for k, v in theirs.items())}}}",
        ]

    def worker_jvms(self) -> list[int]:
        return [process.pid for process in self.workers.values() if processes.alive(process.pid)]

    def executors(self) -> list[int]:
        return [pid for worker in self.worker_jvms() for pid in processes.executors(worker)]

    def python_daemons(self) -> list[int]:
        return [pid for executor in self.executors() for pid in processes.daemons(executor)]

    def python_workers(self) -> list[int]:
        return [pid for daemon in self.python_daemons() for pid in processes.children(daemon)]

    def replenish(self) -> None:
        """Two workers again: machines come and go."""
        for name, process in list(self.workers.items()):
            if process.poll() is not None:
                del self.workers[name]
        for n in range(len(self.workers), 2):
            self.add(f"late-{len(self.processes)}-{n}")


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
