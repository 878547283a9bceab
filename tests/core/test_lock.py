"""One writer at a time, whatever clocks, kills and other machines do. The writers are processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from i2e_pipeline.core import lock
from i2e_pipeline.core.lock import Held, LostLock, exclusive

WRITER = """
import sys, time
from i2e_pipeline.core.lock import Held, exclusive
print("ready", flush=True)
sys.stdin.readline()
try:
    with exclusive(sys.argv[1]):
        print("holds", flush=True)
        sys.stdin.readline()
except Held as error:
    print(error, flush=True)
"""


class Writer:
    """A process that takes the lock of a folder when it is told to, and lets go when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.heard() == "ready"

    def heard(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        if self.process.poll() is None:
            self.go()
        self.process.wait(20)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats, and patience for them, in fractions of seconds."""
    for name, value in {"_BEAT": 0.2, "_LOOKED": 0.1, "_FILLED": 0.5, "_ASKED_AGAIN": 0.05}.items():
        monkeypatch.setattr(lock, name, value)


def of_another(folder: Path, **named: object) -> Path:
    """A lock of another host, which beat now or as `named` says."""
    folder.mkdir(exist_ok=True)
    path = folder / "_lock"
    holder = {"host": "elsewhere", "process": 7, "since": "2026-01-01 00:00:00", "beat": time.time()}
    path.write_text(json.dumps({**holder, **named}))
    return path


@pytest.mark.parametrize("left", [None, "dead", "torn"])
def test_of_two_writers_at_the_same_moment_one_goes_on_and_the_other_is_told_whom_it_meets(
    left: str | None, tmp_path: Path
) -> None:
    """Catches: two that find a dead lock, of which the second removes what the first has just written."""
    for n in range(3):
        folder = tmp_path / f"out-{n}"
        folder.mkdir()
        if left == "dead":
            dead = subprocess.Popen([sys.executable, "-c", ""])
            dead.wait()
            of_another(folder, host=socket.gethostname(), process=dead.pid)
        elif left == "torn":
            (folder / "_lock").write_text('{"host": "he')
        both = [Writer(folder) for _ in range(2)]
        for writer in both:
            writer.go()
        said = [writer.heard() for writer in both]
        (holder,) = [w for w, words in zip(both, said, strict=True) if words == "holds"]
        (refused,) = [words for words in said if words != "holds"]
        assert f"is being written by process {holder.process.pid} on {socket.gethostname()}" in refused
        for writer in both:
            writer.end()
        assert not (folder / "_lock").exists()


def test_a_writer_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    first, second = Writer(tmp_path), Writer(tmp_path)
    first.go()
    assert first.heard() == "holds"
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    second.go()
    assert second.heard() == "holds"
    second.end()


def test_another_process_of_the_same_number_is_not_taken_for_the_holder(tmp_path: Path) -> None:
    """Catches: an output that nobody may write after a restart, since some program has the number by now."""
    of_another(tmp_path, host=socket.gethostname(), process=os.getppid(), began="another-boot/17")
    with exclusive(str(tmp_path)):
        assert json.loads((tmp_path / "_lock").read_text())["process"] == os.getpid()


def test_a_container_of_the_same_name_is_another_machine(tmp_path: Path) -> None:
    """Catches: a living writer in another container, whose process number means nothing here."""
    if not Path("/proc/self/ns/pid").exists():
        pytest.skip("Linux's /proc names processes' namespaces")
    of_another(tmp_path, host=socket.gethostname(), process=2**22 + 1, namespace="pid:[1]")
    with pytest.raises(Held, match="or until it has been silent for 10 minutes"), exclusive(str(tmp_path)):
        pass


WHOLE = {"host": "elsewhere", "process": 7, "since": "2026-01-01", "beat": 1e9, "began": "", "namespace": ""}
ODD = [
    json.dumps({**WHOLE, key: value})
    for key in WHOLE
    for value in (None, [], {"a": 1}, True, -7, 2**70, "x", "7" * 5000, 1e400, "\ud800")
    if not (isinstance(value, str) and isinstance(WHOLE[key], str) and value == "x")
    and not (key == "beat" and value in (True, -7))
]
"""Locks of which a part is of another kind than a holder writes."""


def test_a_lock_that_holds_odd_values_holds_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Catches: `i2e verify` and `run` that end with a trace of what somebody wrote into `_lock`."""
    monkeypatch.setattr(lock, "_FILLED", 0.01)
    odd = [*ODD, *(json.dumps({k: v for k, v in WHOLE.items() if k != key}) for key in ("host", "process"))]
    for content in [*odd, '{"host": "x", "beat": "now"}', "[" * 100_000, "7", '"x"', "\x00"]:
        (tmp_path / "_lock").write_text(content)
        lock.refuse_held(str(tmp_path))
        with exclusive(str(tmp_path)):
            assert json.loads((tmp_path / "_lock").read_text())["process"] == os.getpid(), content
    with (tmp_path / "_lock").open("wb") as file:
        file.truncate(8 << 30)  # a hole
    with exclusive(str(tmp_path)):
        pass


@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}/../{name}", "linked", "file://{}"])
def test_of_two_threads_of_a_process_one_is_refused(
    spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a lock that names a process, which lets all of its threads in."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "linked").symlink_to(folder)
    named = spelling.format(folder, name="out")
    said: list[str] = []

    def second() -> None:
        for attempt in (lambda: exclusive(named).__enter__(), lambda: lock.refuse_held(named)):
            try:
                attempt()
                said.append("holds")
            except Held as error:
                said.append(str(error))

    with exclusive(str(folder)):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert [("by this process already" in one, "wait for it" in one) for one in said] == [(True, True)] * 2, said
        lock.refuse_held(str(folder))  # whoever holds it may look
        with pytest.raises(Held, match="by this process already"), exclusive(str(folder)):
            pass
        assert json.loads((folder / "_lock").read_text())["process"] == os.getpid()
    said.clear()
    thread = threading.Thread(target=second)
    thread.start()
    thread.join()
    assert said[0] == "holds"


def test_a_thread_that_waits_gets_the_folder_when_it_is_free(quick: None, tmp_path: Path) -> None:
    order: list[str] = []
    waits = threading.Event()

    def second() -> None:
        waits.set()
        with lock.waiting(str(tmp_path), "it"):
            order.append("second")

    with exclusive(str(tmp_path)):
        thread = threading.Thread(target=second)
        thread.start()
        waits.wait()
        time.sleep(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert not (tmp_path / "_lock").exists()


def test_a_child_that_was_forked_neither_holds_nor_frees_what_its_parent_holds(tmp_path: Path) -> None:
    """Catches: a child that leaves the block and takes its parent's lock away."""
    script = (
        "import os, sys\nfrom i2e_pipeline.core.lock import Held, exclusive\n"
        "try:\n"
        "    with exclusive(sys.argv[1]):\n"
        "        child = os.fork()\n"
        "        if not child:\n"
        "            try:\n"
        "                with exclusive(sys.argv[1]): pass\n"
        "            except Held as error: os.write(1, (str(error) + '\\n').encode())\n"
        "            raise SystemExit(3)\n"
        "        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "        print(child and code, os.path.exists(sys.argv[1] + '/_lock'))\n"
        "finally:\n"
        "    sys.stdout.flush()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)},
    )  # fmt: skip
    refused, last = done.stdout.splitlines()
    assert "is being written by process" in refused
    assert last == "3 True"
    assert not (tmp_path / "_lock").exists()


@pytest.mark.parametrize("content", ["", "{", '{"host": "el', "[]", "null"])
def test_a_lock_that_is_no_whole_record_holds_nothing(content: str, quick: None, tmp_path: Path) -> None:
    """Catches: a trace of a JSON parser, or "process None on None", for ever."""
    (tmp_path / "_lock").write_text(content)
    with exclusive(str(tmp_path)):
        assert json.loads((tmp_path / "_lock").read_text())["process"] == os.getpid()


def test_a_lock_of_a_host_that_is_gone(quick: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    of_another(tmp_path, beat=time.time() - 601)
    with caplog.at_level("INFO"), exclusive(str(tmp_path)):
        pass
    assert "process 7 on elsewhere gives no sign of life: it holds no more" in caplog.text
    of_another(tmp_path, beat=time.time() - 599)
    said = "is being written by process 7 on elsewhere since 2026-01-01"
    with pytest.raises(Held, match=said), exclusive(str(tmp_path)):
        pass


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_a_clock_that_is_set_takes_no_lock_from_who_lives(jump: float, quick: None, tmp_path: Path) -> None:
    """Its beat seems a day old, or to come tomorrow; but it beats."""
    path = of_another(tmp_path, beat=time.time() + jump)
    beating = subprocess.Popen(
        [sys.executable, "-c",
         "import json, sys, time; path = sys.argv[1]; held = json.load(open(path))\n"
         "while True: time.sleep(.05); held['beat'] += .05; open(path + '.x', 'w').write(json.dumps(held));"
         "__import__('os').replace(path + '.x', path)", str(path)],
    )  # fmt: skip
    try:
        until = time.monotonic() + 20
        while json.loads(path.read_text())["beat"] < time.time() + jump - 100 and time.monotonic() < until:
            time.sleep(0.05)
        first = path.read_text()
        while path.read_text() == first and time.monotonic() < until:
            time.sleep(0.02)
        with pytest.raises(Held), exclusive(str(tmp_path)):
            pass
    finally:
        beating.kill()
        beating.wait()
    # And one that is dead does not hold until the clock has caught up.
    with exclusive(str(tmp_path)):
        pass


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_a_holder_whose_clock_is_set_keeps_its_lock(
    jump: float, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    with exclusive(str(tmp_path)):
        monkeypatch.setattr(lock.time, "time", lambda: real() + jump)
        before = json.loads((tmp_path / "_lock").read_text())["beat"]
        until = time.monotonic() + 20
        while (beat := json.loads((tmp_path / "_lock").read_text())["beat"]) == before and time.monotonic() < until:
            time.sleep(0.02)
        assert abs(beat - before - jump) < 1000
    assert not (tmp_path / "_lock").exists()


def test_a_folder_that_is_removed_stops_its_run(quick: None, tmp_path: Path) -> None:
    """Catches: a run that makes the folder anew and goes on, or that hangs."""
    folder = tmp_path / "out"

    def held() -> None:
        with exclusive(str(folder)):
            (folder / "_lock").unlink()
            folder.rmdir()
            time.sleep(20)

    with pytest.raises(LostLock, match="_lock was removed, and maybe the folder with it"):
        held()
    assert not folder.exists()


def test_a_beat_makes_no_folder_anew_that_was_removed_since_the_look_before_it(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a run that goes on, alone in a folder that its own beat has made, because it was removed just between
    the two."""
    folder, looks = tmp_path / "out", []

    def held_until_now(path: str, me: Mapping[str, Any], holds: Callable[..., bool] = lock._holds) -> bool:
        held = holds(path, me)
        looks.append(held)
        if len(looks) == 2:  # the look that a beat follows
            shutil.rmtree(folder)
        return held

    monkeypatch.setattr(lock, "_holds", held_until_now)
    with pytest.raises(LostLock, match="_lock was removed"), exclusive(str(folder)):
        time.sleep(20)
    assert looks[:3] == [True, True, False]
    assert not folder.exists()


def test_whoever_reads_a_lock_while_it_beats_finds_its_holder(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: half a record, which counts as nobody's."""
    monkeypatch.setattr(lock, "_BEAT", 0.0)
    monkeypatch.setattr(lock, "_LOOKED", 1e-4)
    path = tmp_path / "_lock"
    with exclusive(str(tmp_path)):
        read = [lock._holder(str(path)) for _ in range(3000)]
    assert all(found and found["process"] == os.getpid() for found in read)
    assert len({found["beat"] for found in read if found}) > 10


@pytest.mark.usefixtures("quick")
def test_who_is_patient_hears_a_living_holder_of_another_machine(tmp_path: Path) -> None:
    path = of_another(tmp_path)

    def beat() -> None:
        time.sleep(0.3)
        of_another(tmp_path)

    beating = threading.Thread(target=beat)
    beating.start()
    with pytest.raises(Held, match="is being written by process 7 on elsewhere"), exclusive(str(tmp_path), True):
        pass
    beating.join()
    assert json.loads(path.read_text())["host"] == "elsewhere"


@pytest.mark.usefixtures("quick")
def test_who_is_patient_follows_a_holder_that_has_died_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a job that a scheduler starts again on another machine, and that gives up over its own last lock."""
    monkeypatch.setattr(lock, "_SILENT", 1.0)
    of_another(tmp_path)
    with pytest.raises(Held), exclusive(str(tmp_path)):
        pass
    with exclusive(str(tmp_path), patient=True) as check:
        check()
        assert json.loads((tmp_path / "_lock").read_text())["process"] == os.getpid()


def test_a_holder_can_ask_whether_the_folder_is_still_its_own(tmp_path: Path) -> None:
    with exclusive(str(tmp_path)) as check:
        check()
        of_another(tmp_path)
        with pytest.raises(LostLock, match="is somebody else's now"):
            check()
