"""What a command says when it fails: a line for what a user can mend, a traceback for a fault of the code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from i2e_pipeline import cli
from i2e_pipeline.commands.train import TrainingFailed
from i2e_pipeline.core.errors import ExitCode, I2EError, NoSuchFile
from tests.engine.toys import write_shard


def command(tmp_path: Path, *arguments: str, patch: str = "") -> subprocess.CompletedProcess[str]:
    """`i2e` in a process of its own, a module patched before."""
    script = f"from i2e_pipeline import cli\n{patch}\ncli.main({list(arguments)!r})"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=120)


def test_a_fault_of_the_code_keeps_its_traceback(tmp_path: Path) -> None:
    """Catches: `zip(strict=True)` raises ValueError, and a command that expects it tells users of their mistake."""
    (tmp_path / "c.yaml").write_text("output: out\n")
    patch = (
        "from i2e_pipeline.commands import doctor\ndoctor.checks = lambda config: list(zip([1], [1, 2], strict=True))"
    )
    done = command(tmp_path, "doctor", "--config", "c.yaml", patch=patch)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "zip() argument 2 is longer than argument 1" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["status", "--config", "c.yaml", "--set", "score.batch_size=-3"], "score.batch_size: -3 is not allowed"),
        (["status", "--config", "none.yaml"], "--config none.yaml: no such file"),
        (["status", "--config", "c.yaml", "--set", "pairs.path=none/*.parquet"], "pairs.path: none/*.parquet: no file"),
        (["link", "--config", "c.yaml", "--input", "none.jsonl", "--output", "l"], "--input none.jsonl: no such file"),
        (["report", "--config", "c.yaml"], "out/i2e has no manifest.json"),
        (["export", "--config", "c.yaml", "--to", "there"], "out/i2e has no manifest.json"),
        (["train", "--config", "c.yaml"], "out/i2e has no manifest.json"),
        (["evaluate", "--vectors", "none.npz", "--protocol", "gpr"], "none.npz: no such file"),
        (["evaluate", "--compare", "none.json"], "none.json: no such file"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    tmp_path: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a path that a user named wrongly and that ends in a traceback."""
    (tmp_path / "c.yaml").write_text("output: out\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    said = capsys.readouterr().err.strip().split("\n")
    assert ended.value.code == 2
    assert said[-1].startswith(f"i2e: {says}")
    assert not [line for line in said if line.startswith("Traceback")]


@pytest.mark.parametrize(("error", "code"), [(NoSuchFile("x"), 2), (TrainingFailed("x"), 1), (I2EError("x"), 2)])
def test_an_error_says_its_exit_code(error: I2EError, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise error

    assert cli._guarded(fail) == code
    assert capsys.readouterr().err == "i2e: x\n"


@pytest.mark.parametrize("error", [ValueError("x"), FileNotFoundError("x"), RuntimeError("x"), KeyError("x")])
def test_builtin_errors_are_not_caught(error: Exception) -> None:
    def fail() -> int:
        raise error

    with pytest.raises(type(error)):
        cli._guarded(fail)


def test_names_that_the_locale_cannot_spell_end_no_command(tmp_path: Path) -> None:
    """Catches: UnicodeEncodeError, at the end of a run of hours."""
    (tmp_path / "c.yaml").write_text("output: out_été_日本\n", "utf-8")
    write_shard(tmp_path / "in_é" / "a.parquet", 1, 2)
    settings = [
        "--config",
        "c.yaml",
        "--set",
        "pairs.path=in_é",
        "knowledge_base.dump=c.yaml",
        "score.model=ViT-B-32@x",
    ]
    script = (
        "from i2e_pipeline import cli\n"
        "for command in (['config'], ['status', '--json'], ['status']):\n"
        f"    try: cli.main([*command, *{settings!r}])\n"
        "    except SystemExit as ended: print(chr(0), ended.code)"
    )
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, cwd=tmp_path, env=environ)
    assert done.stdout.count(b"\0 0\n") == 3, done.stderr
    told, status, table, _ = done.stdout.decode("ascii").split("\0")
    assert yaml.safe_load(told)["output"] == "out_été_日本"
    assert json.loads(status.removeprefix(" 0\n"))["output"] == "out_été_日本"
    assert "knowledge_base" in table


def test_a_working_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    """Catches: "Intel oneMKL FATAL ERROR: Cannot load libtorch_cpu.so"."""
    script = (
        "import os, shutil\nfrom i2e_pipeline import cli\nshutil.rmtree(os.getcwd())\n"
        "cli.main(['status', '--set', 'output=/nowhere'])"
    )
    (tmp_path / "gone").mkdir()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path / "gone")
    assert done.returncode == 2
    assert done.stderr == "i2e: the folder that this command is run in is gone: cd to one that is there\n"


def shell(tmp_path: Path, line: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A line of bash, in which `i2e` is the command."""
    write_shard(tmp_path / "in" / "a.parquet", 1, 2)
    (tmp_path / "c.yaml").write_text(
        "output: out\npairs: {path: in}\nknowledge_base: {dump: c.yaml}\nscore: {model: ViT-B-32@laion2b_e16}\n"
    )
    function = f'i2e() {{ "{sys.executable}" -m i2e_pipeline.cli "$@"; }}; {line}'
    environ = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parent.parent)}
    run = ["bash", "-c", function, "bash", *arguments]
    return subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, timeout=120, env=environ)


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("i2e config | true; exit ${PIPESTATUS[0]}", 141, ""),
        ("i2e --help | true; exit ${PIPESTATUS[0]}", 141, ""),
        ("i2e status --config c.yaml | true; exit ${PIPESTATUS[0]}", 141, ""),
        ("i2e config > /dev/full", 1, "i2e: standard output cannot be written: No space left on device\n"),
        ("i2e --help > /dev/full", 1, "i2e: standard output cannot be written: No space left on device\n"),
        ("i2e config >&-", 0, ""),
        ("i2e status --config c.yaml >&-", 0, ""),
    ],
)
def test_an_output_that_nobody_reads_or_that_is_full_is_no_traceback(
    tmp_path: Path, line: str, code: int, says: str
) -> None:
    """Catches: `i2e doctor | head` ends in BrokenPipeError, and `>&-` in an AttributeError of None."""
    slow = line.replace("| true", "| (exec <&-; sleep 3)")
    done = shell(tmp_path, slow)
    assert (done.returncode, done.stderr) == (code, says)


@pytest.mark.parametrize("place", ["/proc/x", ".", "none/x", "c.yaml/x", "/dev/full"])
def test_a_json_that_cannot_be_written_is_said_before_the_work(tmp_path: Path, place: str) -> None:
    done = shell(tmp_path, 'i2e status --config c.yaml --json "$1"', place)
    assert done.returncode == 2
    assert done.stderr.startswith(f"i2e: --json {place}")
    assert done.stderr.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.yaml", "in"]


def test_a_json_goes_into_a_pipe(tmp_path: Path) -> None:
    done = shell(
        tmp_path, "i2e status --config <(sed 's/: out/: piped/' c.yaml) --json >(cat >&2) > /dev/null; wait $!; sleep 1"
    )
    assert json.loads(done.stderr)["output"] == "piped"


@pytest.mark.parametrize("module", ["pydantic", "pyarrow", "i2e_pipeline.core.config"])
def test_ctrl_c_while_modules_are_imported_leaves_no_traceback(tmp_path: Path, module: str) -> None:
    """Catches: Ctrl-C in a command's first second, in which pydantic and pyarrow are imported."""
    script = (
        "import os, signal, sys\n"
        "class Stopped:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Stopped())\n"
        "from i2e_pipeline import cli\ncli.main(['config'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stderr) == (130, "")


def test_sigterm_is_a_sentence_and_an_exit_code_of_its_own(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    script = (
        "import os, signal, threading\nfrom i2e_pipeline import cli\n"
        "threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()\n"
        "cli.main(['status', '--config', 'pipe'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 143
    assert done.stderr == "i2e: ended (SIGTERM); the next run goes on where this one was\n"


@pytest.mark.parametrize("line", ["i2e --help", "i2e config --explain score", "i2e status --config c.yaml"])
def test_lines_are_as_wide_as_the_terminal(tmp_path: Path, line: str) -> None:
    done = shell(tmp_path, f"export COLUMNS=80; {line}")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not [each for each in done.stdout.splitlines() if each != each.rstrip()]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("explain --set a.b=c d.e=f Q1", "explain Q1 --set a.b=c d.e=f"),
        ("explain --set a.b=c Q1 Q2 --json", "explain Q1 Q2 --set a.b=c --json"),
        ("explain Q1 --set a.b=c --set d.e=f", "explain Q1 --set a.b=c --set d.e=f"),
        ("explain --set nothing", "explain --set nothing"),
        ("explain --set a.b=c https://d.e/f?g=h", "explain https://d.e/f?g=h --set a.b=c"),
        ("explain --json --set a.b=c Q1", "explain Q1 --json --set a.b=c"),
        ("count-anchors --pages a --set a.b=c d", "count-anchors d --pages a --set a.b=c"),
        ("link --set a.b=c --text one two", "link --set a.b=c --text one two"),
    ],
)
def test_what_set_would_swallow_is_what_the_command_is_asked_for(given: str, meant: str) -> None:
    assert cli._settings_last(given.split()) == meant.split()


def test_the_page_on_faults_has_the_exit_codes() -> None:
    page = (Path(__file__).parent.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
    table = page.partition("<!-- exit codes -->")[2].partition("<!-- end -->")[0].strip().splitlines()[2:]
    said = [row.replace("\\|", "/").strip("| ").split(" | ") for row in table]
    assert said == [[str(code.value), code.about.replace("|", "/")] for code in ExitCode]


# What a command of some seconds does when it is ended: it closes what is open, and then says so. Spark's context takes
# Ctrl-C for itself, as here, and cancels its jobs in the handler.
ENDED = """
import os, signal, sys, threading, time
from i2e_pipeline import cli
from i2e_pipeline.core import ending

def sparks(number, frame):
    print("jobs cancelled", flush=True)
    time.sleep(.5)
    raise KeyboardInterrupt

def work(options):
    signal.signal(signal.SIGINT, sparks)
    ending.keep()
    try:
        print("works", flush=True)
        time.sleep(60)
    finally:
        time.sleep(float(sys.argv[1]))
        print("closed", flush=True)
    return 0

cli._status = work
cli.main(["status"])
"""


def ended(tmp_path: Path, *numbers: int, closing: float = 1.0, before: str = "") -> tuple[int, str, str]:
    """Exit code and what was said, of a command that gets these signals, 0.3 s apart."""
    process = subprocess.Popen(
        [sys.executable, "-c", before + ENDED, str(closing)], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "works\n"
    for number in numbers:
        time.sleep(0.3)
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_ctrl_c_twice_ends_as_once(tmp_path: Path) -> None:
    """Catches: the second in the middle of what the first began, and a trace of Spark's handler."""
    code, out, err = ended(tmp_path, signal.SIGINT, signal.SIGINT)
    assert (code, out) == (130, "jobs cancelled\nclosed\n"), err
    assert err == ("i2e: ending; one more ends it at once\ni2e: interrupted; the next run goes on where this one was\n")


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP])
def test_what_ends_a_command_ends_it_once(first: int, tmp_path: Path) -> None:
    """A closed ssh session, too."""
    code, out, err = ended(tmp_path, first, signal.SIGINT)
    assert (code, out) == (128 + first, "closed\n"), err
    assert f"i2e: ended ({signal.Signals(first).name}); the next run goes on where this one was" in err
    assert "Traceback" not in err


def test_a_third_signal_ends_a_command_that_does_not_end(tmp_path: Path) -> None:
    code, out, err = ended(tmp_path, signal.SIGINT, signal.SIGINT, signal.SIGINT, closing=50)
    assert (code, "closed" in out, "Traceback" in err) == (-signal.SIGINT, False, False)


def test_nohup_goes_on_when_the_terminal_is_closed(tmp_path: Path) -> None:
    ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    code, out, _ = ended(tmp_path, signal.SIGHUP, signal.SIGTERM, before=ignored)
    assert (code, out) == (143, "closed\n")


def test_a_command_that_was_not_ended_leaves_the_handlers_as_they_were() -> None:
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in signals]
    with pytest.raises(SystemExit):
        cli.main(["config"])
    assert [signal.getsignal(number) for number in signals] == before
