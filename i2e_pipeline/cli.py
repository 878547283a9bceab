"""`i2e …` and the jobs: thin. Reads the command line, calls the pipeline, prints what it returns."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

try:
    from i2e_pipeline.commands import evaluate as evaluation
    from i2e_pipeline.core import config as configuration
    from i2e_pipeline.core import ending, extras, files, logs, places, stores
    from i2e_pipeline.core.config import Config, ConfigError, digest
    from i2e_pipeline.core.errors import ExitCode, I2EError, NoSuchFile
    from i2e_pipeline.core.files import at_home
    from i2e_pipeline.core.secrets import hide
    from i2e_pipeline.core.terminal import shown, shown_json
    from i2e_pipeline.core.version import __version__
except KeyboardInterrupt:  # it takes a second, and who stops a command then wants no trace of imports
    sys.exit(130)

log = logging.getLogger("i2e_pipeline.cli")
"""Not `__name__`, which is `__main__` where the module is run."""

_STDOUT = "-"
_PIPED = 110
"""Columns of what is wrapped for a pipe or a file."""

if TYPE_CHECKING:
    from i2e_pipeline.commands.diff import Side
    from i2e_pipeline.commands.reinforcing import Reinforcement
    from i2e_pipeline.commands.verifying.faults import Verified
    from i2e_pipeline.engine.pipeline import Pipeline
    from i2e_pipeline.engine.stage import Run


class _Parser(argparse.ArgumentParser):
    """Quotes no secret of what it does not understand."""

    def error(self, message: str) -> NoReturn:
        super().error(hide(message))


def main(arguments: Sequence[str] | None = None) -> None:
    def work() -> int:
        options = _parser().parse_args(_settings_last(sys.argv[1:] if arguments is None else arguments))
        if getattr(options, "json", None) is not None:
            _refuse_closed_json(options.json)
        code: int = options.call(options)
        return code

    _end(work)


_SETS = re.compile(r"[A-Za-z_][\w.-]*=")
"""How a word begins that sets something, and that is no address with a question (`https://…?id=3`)."""


def _settings_last(arguments: Sequence[str]) -> list[str]:
    """The same, with words that `--set` would take and that set nothing put before all options: `explain --set a.b=c
    IMAGE` asks for IMAGE."""
    found: list[str] = []
    asked: list[str] = []
    after_set = False
    for word in arguments:
        if word.startswith("-"):
            after_set = word == "--set"
        elif after_set and found[-1] != "--set" and not _SETS.match(word):
            asked.append(word)
            continue
        found.append(word)
    place = next((n for n, word in enumerate(found) if word.startswith("-")), len(found))
    return [*found[:place], *asked, *found[place:]]


def _exit_codes() -> str:
    width = shutil.get_terminal_size().columns - 2
    lines = (textwrap.wrap(f"  {c.value:<5} {c.about}", width, subsequent_indent=" " * 8) for c in ExitCode)
    return "\n".join(["exit codes:", *(line for wrapped in lines for line in wrapped)])


def _parser() -> _Parser:
    parser = _Parser(
        prog="i2e",
        description="Images labelled with Wikidata entities.",
        epilog=_exit_codes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"i2e {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = _command(commands, "run", _run, "the whole chain; what is done is not done again")
    run.add_argument("--redo", action="append", default=[], metavar="STAGE", help="make this stage again")
    run.add_argument("--forget", action="append", default=[], metavar="UNIT", help="drop a unit from the dataset")
    run.add_argument(
        "--replace", action="store_true", help="an input file that has changed since it was read takes its old place"
    )
    run.add_argument("--until", metavar="STAGE", help="stop after this stage")

    about = "try rows again that were rejected for these reasons, then run: all others stay as they are"
    again = _command(commands, "retry", _retry, about)
    again.add_argument("--reason", required=True, metavar="REASON,…", help="such as broken_image,unsupported_format")

    _json_argument(_command(commands, "status", _status, "how every stage stands; runs nothing"))

    about = "what a run will cost: core-hours, GPU-hours, wall time, storage, shuffle, requests, money; runs nothing"
    from i2e_pipeline.commands import plan as planning

    planned = commands.add_parser("plan", help=about, description=about)
    planning.add_arguments(planned)
    _json_argument(planned)
    planned.set_defaults(call=_plan)

    fetching = _command(commands, "fetch", _fetch, "the images of a table of addresses, into a folder that a run reads")
    fetching.add_argument("--linked-only", action="store_true", help="only of rows whose text leads to an entity")

    link = _command(commands, "link", _link, "mentions and candidates of texts: {id, text} lines in, links out")
    texts = link.add_mutually_exclusive_group(required=True)
    texts.add_argument("--input", type=at_home, metavar="TEXTS.jsonl")
    texts.add_argument(
        "--text", action="append", metavar="TEXT", help="one or several; links as lines on stdout, or in --output"
    )
    link.add_argument("--output", type=at_home, metavar="LINKS.jsonl", help="where the links go")
    link.add_argument(
        "--explain", action="store_true", help="print why: each candidate's evidence, and what is no mention"
    )
    _json_argument(link)

    calibrate = _command(
        commands, "calibrate", _calibrate, "fit label probability and threshold on pairs of known truth"
    )
    calibrate.add_argument("--shards", default=None, metavar="0,1,2", help="fit on these; report on the others")
    calibrate.add_argument("--precision", type=float, default=0.95, help="wanted precision of labels (default .95)")
    calibrate.add_argument(
        "--write", required=True, type=at_home, metavar="FILE.json", help="where label.calibration finds it"
    )
    calibrate.add_argument(
        "--marks", type=at_home, metavar="FILE.jsonl", help="marks of `i2e explore`: truth beside the input's, or alone"
    )
    calibrate.add_argument(
        "--all-marks", action="store_true", help="also marks of labels that nobody drew, that somebody chose by eye"
    )

    fit_link = _command(commands, "fit-link", _fit_link, "fit the weights of linking on texts with gold links")
    fit_link.add_argument(
        "--gold", required=True, type=at_home, metavar="GOLD.jsonl", help="{text, mentions: [{start, end, qid}]}"
    )
    fit_link.add_argument("--test", type=at_home, metavar="GOLD.jsonl", help="measure on these instead")
    fit_link.add_argument(
        "--write", required=True, type=at_home, metavar="FILE.json", help="where link.weights finds it"
    )

    _reranker_commands(commands)
    _head_commands(commands)

    anchors = _command(
        commands,
        "count-anchors",
        _count_anchors,
        "how often Wikipedia's links have which text, for knowledge_base.anchors",
        without="the defaults",
    )
    anchors.add_argument(
        "--pages",
        required=True,
        nargs="+",
        type=at_home,
        metavar="FILE",
        help="pages-articles.xml.bz2, of any languages",
    )
    anchors.add_argument("--output", required=True, type=at_home, metavar="ANCHORS.tsv")
    anchors.add_argument("--languages", metavar="en,de", help="read the files of these Wikipedias alone")
    anchors.add_argument(
        "--redirects", nargs="+", default=[], type=at_home, metavar="FILE",
        help="page.sql.gz and redirect.sql.gz, in place of what the pages say",
    )  # fmt: skip
    anchors.add_argument(
        "--min-links", type=int, default=1, metavar="N",
        help="surfaces with fewer links are not looked for in the texts (default 1: all are)",
    )  # fmt: skip
    _json_argument(anchors)

    about = "what the knowledge base knows of an entity (Q308) or of all that a name can mean (Mercury)"
    entity = _command(commands, "entity", _entity, about)
    entity.add_argument("asked", metavar="Q308|NAME")
    entity.add_argument(
        "--live", metavar="CONTACT", help="ask Wikidata instead; CONTACT: your address, as it wants one"
    )

    about = "why an image has its labels, or where it ended: its whole way through a run"
    why = _command(commands, "explain", _explain, about)
    why.add_argument("asked", metavar="IMAGE_ID|URL|KEY", help="an image's id in hex, or the beginning of one")
    _json_argument(why)

    about = "a published dataset in a browser: find, ask why, mark what is wrong"
    looking = _command(commands, "explore", _explore, about, without="FOLDER, or the embedded sample's output")
    looking.add_argument(
        "folder",
        nargs="?",
        type=at_home,
        metavar="FOLDER",
        help="an output, or a dataset, instead of --config",
    )
    looking.add_argument("--port", type=int, default=8765, help="on this machine alone; 0: any (default 8765)")
    looking.add_argument("--open", action="store_true", help="open it in the browser")
    looking.add_argument("--marks", type=at_home, metavar="FILE.jsonl", help="where marks go (default: in the output)")
    looking.add_argument("--index", type=at_home, metavar="FOLDER", help="of the index (default: in the output)")
    looking.add_argument("--memory-gb", type=float, default=2.0, help="what queries and the index may take (default 2)")
    looking.add_argument("--similar", action="store_true", help="build the index of vectors that many images need")

    show = _command(commands, "config", _show_config, "print the settings that a command would see")
    show.add_argument("--explain", nargs="?", const="", metavar="SECTION", help="what each setting means instead")

    about = "copy the published dataset, as the tool that reads it wants it; goes on where it was"
    from i2e_pipeline.commands import export as exporting

    exporting.add_arguments(_command(commands, "export", _export, about))

    merging = _command(
        commands, "merge", _merge, "two outputs of one config become a third, where `i2e run` then goes on",
        without="that of the first output's last run, with the input of both",
    )  # fmt: skip
    merging.add_argument("outputs", nargs=2, type=at_home, metavar="OUTPUT")
    merging.add_argument("--to", required=True, type=at_home, metavar="FOLDER", help="the merged output")

    about = "two builds of a dataset: what is in one and not in the other, and why; reads no image, changes nothing"
    comparing = commands.add_parser("diff", help=about, description=about)
    _diff_arguments(comparing)
    _json_argument(comparing)
    comparing.set_defaults(call=_diff)

    about = "copy a published dataset of an older format as one of today's; needs its folder alone"
    older = _command(commands, "migrate", _migrate, about, without="the defaults")
    older.add_argument("--from", required=True, type=at_home, dest="source", metavar="FOLDER")
    older.add_argument("--to", required=True, type=at_home, metavar="FOLDER")

    about = "store what teachers make of each image, for trainings that distil them; goes on where it was"
    from i2e_pipeline.commands import reinforce as reinforcing

    strengthened = _command(commands, "reinforce", _reinforce, about)
    reinforcing.add_arguments(strengthened)
    _json_argument(strengthened)

    train = _command(commands, "train", _train, "pre-train image encoders on the dataset; goes on where it was")
    train.add_argument("--restart", action="store_true", help="forget the checkpoints of the folder")

    about = "a checkpoint of a training, as folders that open_clip and transformers load"
    exported = _command(commands, "export-model", _export_model, about)
    exported.add_argument("folder", nargs="?", type=at_home, metavar="FOLDER", help="of the training (train.folder)")
    exported.add_argument("--checkpoint", default="latest", metavar="STEP", help="or best, or latest (default)")
    exported.add_argument(
        "--to", type=at_home, metavar="FOLDER", help="default: exports/step-… in the training's folder"
    )

    cleaning = _command(commands, "clean", _clean, "remove what this config's dataset does not need; runs nothing")
    cleaning.add_argument("--dry-run", action="store_true", help="say what would be removed")
    cleaning.add_argument(
        "--removed-stages", action="store_true", help="also what stages wrote that the config no longer names"
    )
    cleaning.add_argument("--merge", action="store_true", help="also put small files of a unit together")
    cleaning.add_argument(
        "--purge", action="store_true", help="also take what select.exclude lists out of the run's own tables, for good"
    )

    about = "is an output, or a dataset by itself, still what was written? Reads only; exit code 1 where it is not"
    verifying = _command(commands, "verify", _verify, about, without="FOLDER, or the embedded sample's output")
    _verify_arguments(verifying)
    verifying.add_argument("--deep", action="store_true", help="every byte and every label, and not a sample")
    _json_argument(verifying)

    about = "mend what `i2e verify --deep` finds: take away what is damaged, and make again what is missing"
    repairing = _command(commands, "repair", _repair, about, without="FOLDER, or the embedded sample's output")
    _verify_arguments(repairing)
    repairing.add_argument("--quick", action="store_true", help="look as `i2e verify` does without --deep")
    _json_argument(repairing)

    _command(commands, "report", _report, "an HTML page of what was kept and why the rest was not")
    about = "the tables of a paper: retrieval, kNN, probe, zero-shot of image encoders; without arguments, the sample's"
    evaluation.add_arguments(_command(commands, "evaluate", _evaluate, about))
    doctor = _command(commands, "doctor", _doctor, "check Java, Spark, Delta, torch, models, disk; say the remedies")
    doctor.add_argument("--cluster", action="store_true", help="ask the workers of the cluster instead")
    _json_argument(doctor)

    return parser


def _diff_arguments(parser: argparse.ArgumentParser) -> None:
    for letter in "AB":
        parser.add_argument(letter.lower(), type=at_home, metavar=letter, help="an output, or a dataset")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="rows of a table of entities (default 10)")
    parser.add_argument(
        "--out", type=at_home, metavar="FOLDER", help="write all that differs there, row by row, as Parquet"
    )
    parser.add_argument("--memory-gb", type=float, default=2.0, help="what is compared at a time may take (default 2)")
    parser.add_argument(
        "--set", action="append", nargs="+", default=[], metavar="section.key=value",
        help="overrides of the settings under which the runs' tables are read",
    )  # fmt: skip


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", nargs="?", type=at_home, metavar="FOLDER", help="an output, or a dataset, instead of --config"
    )
    parser.add_argument("--sample", type=int, default=64, metavar="N", help="images that are decoded (default 64)")


def _command(
    commands: argparse._SubParsersAction[_Parser],
    name: str,
    call: Callable[[argparse.Namespace], int],
    about: str,
    without: str = "the embedded sample",
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=about, description=about)
    _config_arguments(parser, without)
    parser.set_defaults(call=call)
    return parser


def _config_arguments(parser: argparse.ArgumentParser, without: str = "the embedded sample") -> None:
    parser.add_argument("--config", type=at_home, metavar="FILE", help=f"YAML; without it, {without}")
    parser.add_argument(
        "--set", action="append", nargs="+", default=[], metavar="section.key=value", help="overrides of the config"
    )


def _json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        nargs="?",
        const=_STDOUT,
        type=at_home,
        metavar="FILE",
        help="for programs: write what is said as JSON there; `-` or no FILE: to stdout, in place of the table",
    )


def _as_json(options: argparse.Namespace, tree: Mapping[str, Any]) -> bool:
    """Write it where --json asks for it. Returns whether that was stdout, where then nothing else belongs."""
    if options.json is None:
        return False
    if options.json != _STDOUT:
        try:
            if _is_no_plain_file(options.json):  # a pipe is written to, and replaced by nothing
                Path(options.json).write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
            else:
                files.write_json(options.json, tree)
        except OSError as error:
            raise _no_json(options.json, error) from None
        return False
    print(shown_json(json.dumps(tree, indent=1, ensure_ascii=not _speaks_unicode())))
    return True


def _is_no_plain_file(path: str) -> bool:
    return files.is_local(path) and os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode)


def _refuse_closed_json(path: str) -> None:
    """Raise ConfigError, before any work, where --json names what cannot be written. Makes nothing."""
    if path == _STDOUT or not files.is_local(path):
        return
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise ConfigError(f"--json {path} is a folder: name a file")
    if not os.path.isdir(folder):
        raise ConfigError(f"--json {path}: {folder} is no folder: make it, or name a file elsewhere")
    if not _is_no_plain_file(path):
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(1 << 16))
        except OSError as error:
            raise _no_json(path, error) from None


def _no_json(path: str, error: OSError) -> ConfigError:
    return ConfigError(f"--json {path} cannot be written ({error.strerror or error}): name a file elsewhere")


def run_stage(job: str) -> None:
    """The main of jobs/<job>.py: the stages of that job, on the config's tables.

    Without --config it works on the embedded sample, and what earlier jobs would have made is made first.
    """
    parser = _Parser(prog=f"{job}.py")
    _config_arguments(parser)

    def work() -> int:
        options = parser.parse_args()
        from i2e_pipeline.stages import pipeline

        if job == "report" and options.config is not None:
            return _report(options)
        whole = pipeline(_config(options))
        mine = [s.name for s in whole.stages if s.job == ("build_dataset" if job == "report" else job)]
        return _carry_out(whole, whole.upto(mine[-1]) if options.config is None else mine)

    _end(work)


def _end(work: Callable[[], int]) -> NoReturn:
    """Do the work and end the process as core/errors.ExitCode says. A fault of the code keeps its traceback, without
    secrets."""
    _open_closed_streams()
    _remember_faults_of_output()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the locale cannot spell ends no command
    ended_by = ending.begin()
    try:
        code = _guarded(work)
    except SystemExit as ended:  # argparse's, of --help and of an argument that it does not understand
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except Exception:
        print(shown(hide(traceback.format_exc())), file=sys.stderr, end="")
        code = ExitCode.FAULT
    code = _flushed(code)
    if ended_by is not None:
        ended_by.restore()
    sys.exit(code)


def _open_closed_streams() -> None:
    """Give a process that was started without standard output or error (`>&-`) one that nobody reads: the next file
    that it opens would become that."""
    for name, of in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            if nowhere != of:
                os.dup2(nowhere, of)
            setattr(sys, name, open(of, "w", closefd=False))  # noqa: SIM115 - until the process ends


class _Output(io.FileIO):
    """Standard output, which remembers why it could not be written: argparse and rich pass over it."""

    fault: OSError | None = None

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            type(self).fault = error
            raise


def _remember_faults_of_output() -> None:
    before = sys.stdout
    if before is sys.__stdout__ and isinstance(before, io.TextIOWrapper):
        before.flush()
        into = io.BufferedWriter(_Output(1, "w", closefd=False))
        sys.stdout = io.TextIOWrapper(into, before.encoding, line_buffering=before.line_buffering)


def _flushed(code: int) -> int:
    """The exit code, when what was printed is out. Where nobody reads it, or its disk is full, nothing of it is tried
    again at the end of the process."""
    with suppress(OSError):
        sys.stdout.flush()
    if _Output.fault is None:
        return code
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if isinstance(_Output.fault, BrokenPipeError):
        return ExitCode.UNREAD
    print(f"i2e: standard output cannot be written: {_Output.fault.strerror}", file=sys.stderr)
    return code or ExitCode.FAULT


def _guarded(work: Callable[[], int]) -> int:
    """The exit code of a command. What is said to users becomes a line; a fault of the code keeps its traceback."""
    try:
        with logs.to_terminal():
            _refuse_no_folder()
            return work()
    except ModuleNotFoundError as error:
        remedy = extras.remedy(error)
        if remedy is None or os.environ.get("I2E_DEBUG"):
            raise
        print(shown(f"i2e: {remedy}"), file=sys.stderr)
        return ExitCode.MISTAKE
    except I2EError as error:
        if os.environ.get("I2E_DEBUG"):
            raise
        print(shown(f"i2e: {hide(str(error))}"), file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if error is _Output.fault:
            return ExitCode.FAULT
        if (number := ending.by()) is not None:  # Spark's JVM was told to end, too, and may have been faster
            log.debug("ended by a signal", exc_info=True)
            return _ended(number)
        if os.environ.get("I2E_DEBUG"):
            raise
        if told := stores.later_fault(error) or places.later_fault(error):
            print(shown(f"i2e: {hide(str(told))}\n(I2E_DEBUG=1 shows where)"), file=sys.stderr)
            return told.exit_code if isinstance(told, places.InTheWay) else ExitCode.FAULT
        from i2e_pipeline.engine.causes import cause, lost_jvm

        if lost_jvm(error):
            print(f"i2e: {_LOST_JVM}\n(I2E_DEBUG=1 shows where)", file=sys.stderr)
            return ExitCode.FAULT
        if not type(error).__module__.startswith(("pyspark", "py4j")):
            raise
        said = f"i2e: {hide(cause(error))}\n(I2E_DEBUG=1 shows where; Spark's log has the rest)"
        print(shown(said), file=sys.stderr)
        return ExitCode.FAULT
    except ending.Ended as ended:
        return _ended(ended.number)
    except KeyboardInterrupt:
        return _ended(signal.SIGINT)


def _ended(number: int) -> int:
    how = "interrupted" if number == signal.SIGINT else f"ended ({signal.Signals(number).name})"
    with suppress(OSError):  # the terminal may be gone
        print(shown(f"i2e: {how}; the next run goes on where this one was"), file=sys.stderr, flush=True)
    codes: dict[int, ExitCode] = {signal.SIGINT: ExitCode.INTERRUPTED, signal.SIGHUP: ExitCode.HUNG_UP}
    return codes.get(number, ExitCode.ENDED)


_LOST_JVM = (
    "Spark's JVM, which runs the jobs, is gone: somebody ended it, or the machine's memory ran out (`dmesg` says so; "
    "session.driver_memory and the number of cores set what it takes). What was made is kept; the same command goes on"
)


def _refuse_no_folder() -> None:
    """Raise NoSuchFile where the working folder was removed: libraries say that in words about themselves."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise NoSuchFile("the folder that this command is run in is gone: cd to one that is there") from None


def _width() -> int | None:
    """Columns of the terminal, or as COLUMNS says; None where a pipe or a file has none."""
    asked = sys.stdout.isatty() or os.environ.get("COLUMNS")
    return max(40, shutil.get_terminal_size().columns) if asked else None


def _speaks_unicode() -> bool:
    return "utf" in (sys.stdout.encoding or "utf-8").lower()


def _config(options: argparse.Namespace, compose: bool = True) -> Config:
    """The config of a command; of the embedded sample, which `compose` makes first, where no file is named."""
    from i2e_pipeline import stages

    overrides = [o for group in options.set for o in group]
    if options.config is None:
        from i2e_pipeline.sample import embedded

        tree = embedded.composed(overrides) if compose else embedded.tree(overrides)
        return stages.from_tree(tree, "the embedded sample", overrides)
    return stages.load(options.config, overrides)


def _run(options: argparse.Namespace) -> int:
    from i2e_pipeline.stages import pipeline

    whole = pipeline(_config(options))
    whole.known([*options.redo, *([options.until] if options.until else [])])
    for unit in options.forget:
        whole.forget(unit)
    return _carry_out(whole, whole.upto(options.until) if options.until else None, options.redo, options.replace)


def _retry(options: argparse.Namespace) -> int:
    from i2e_pipeline.commands import summary
    from i2e_pipeline.engine.retrying import retry
    from i2e_pipeline.stages import pipeline

    whole = pipeline(_config(options))
    with whole.exclusive():
        tried = retry(whole, [reason.strip() for reason in options.reason.split(",") if reason.strip()])
        code = _carry_out(whole, None)
    summary.print_tried(tried)
    return code


def _carry_out(
    pipeline: Pipeline, wanted: Sequence[str] | None, redo: Sequence[str] = (), replace_changed: bool = False
) -> int:
    from i2e_pipeline.commands import summary
    from i2e_pipeline.commands.run import run

    log.info(_told(configuration.differing(pipeline.config)))
    log.info(f"config fingerprint {digest(pipeline.config.shown())}\n")
    done = run(pipeline, wanted, redo, replace_changed)
    summary.print_funnel(done.states)
    summary.print_changes(done.states)
    summary.print_quality(done.quality)
    summary.print_places(done.run.tables, done.states)
    return 0


def _told(tree: Mapping[str, Any]) -> str:
    """The settings of a run as it begins: those that somebody set. The whole tree is in <output>/config.yaml."""
    return (
        f"settings that differ from the defaults:\n{configuration.as_yaml(tree)}".rstrip() if tree else "the defaults"
    )


def _status(options: argparse.Namespace) -> int:
    from i2e_pipeline.commands import summary
    from i2e_pipeline.stages import pipeline

    config = _config(options)
    found = pipeline(config).status_and_gone()
    if not _as_json(options, summary.status_tree(config.output, *found)):
        summary.print_status(config.output, *found)
    return 0


def _plan(options: argparse.Namespace) -> int:
    from i2e_pipeline.commands import summary
    from i2e_pipeline.commands.plan import plan

    found = plan(options)
    if not _as_json(options, found.as_json()):
        summary.print_plan(found)
    return 0


def _fetch(options: argparse.Namespace) -> int:
    from i2e_pipeline.commands.fetch import fetch, told
    from i2e_pipeline.stages import pipeline

    if options.linked_only:
        options.set.append(["fetch.linked_only=true"])
    told(fetch(pipeline(_config(options, compose=options.linked_only))), log.info)
    return 0


def _link(options: argparse.Namespace) -> int:
    from i2e_pipeline.commands import summary
    from i2e_pipeline.commands.link import check_output, explain_texts, link_texts, plain, read_lines, write_lines
    from i2e_pipeline.stages import pipeline

    if options.json is not None and not options.explain:
        raise ConfigError("--json goes with --explain: links are JSON lines as they are")
    if options.explain and options.output is not None:
        raise ConfigError("--output holds plain links: --explain prints, and --json FILE writes what it says")
    if options.explain or options.text:
        given = [{"id": n, "text": text} for n, text in enumerate(options.text or ())]
        if options.output is not None:
            check_output(options.output)
        told = explain_texts(pipeline(_config(options, compose=False)), given or read_lines(options.input))
        if options.output is not None:
            write_lines(options.output, map(plain, told))
            log.info(f"{len(told):,} texts linked into {options.output}")
        elif not options.explain:
            for text in told:
                print(shown_json(json.dumps(plain(text), ensure_ascii=not _speaks_unicode())))
        elif not _as_json(options, {"texts": told}):
            summary.print_links(told)
        return 0
    if options.output is None:
        raise ConfigError("--input needs --output, a file for the links, or --explain")
    texts = link_texts(pipeline(_config(options)), options.input, options.output)
    log.info(f"{texts:,} texts linked into {options.output}")
    return 0


def _calibrate(options: argparse.Namespace) -> int:
    from i2e_pipeline.commands.calibrate import calibrate
    from i2e_pipeline.stages import pipeline

    if options.all_marks and options.marks is None:
        raise ConfigError("--all-marks goes with --marks FILE")
    shards = None if options.shards is None else _numbers(options.shards)
    whole = pipeline(_config(options))
    figures = calibrate(whole, shards, options.precision, options.write, options.marks, options.all_marks)
    print(json.dumps(figures, indent=1))
    return 0


def _fit_link(options: argparse.Namespace) -> int:
    from i2e_pipeline.commands.fit_link import fit_link
    from i2e_pipeline.stages import pipeline

    figures = fit_link(pipeline(_config(options)), options.gold, options.test, options.write)
    print(json.dumps(figures, indent=1))
    return 0


def _reranker_commands(commands: argparse._SubParsersAction[_Parser]) -> None:
    about = "a second look at what linking is unsure of: examples, and a reranker that learns from them"
    reranker = commands.add_parser("reranker", help=about, description=about)
    parts = reranker.add_subparsers(dest="part", required=True, metavar="PART")

    gold = _command(parts, "gold", _reranker_gold, "sentences of Wikipedia with their links, as gold lines")
    gold.add_argument(
        "--pages", required=True, nargs="+", type=at_home, metavar="FILE",
        help="pages-articles.xml.bz2 in the knowledge base's first language",
    )  # fmt: skip
    gold.add_argument("--most", type=int, default=100_000, help="sentences at most, drawn by hash (default 100,000)")
    gold.add_argument("--write", required=True, type=at_home, metavar="GOLD.jsonl")

    examples = _command(parts, "examples", _reranker_examples, "mentions with their candidates and what they mean")
    source = examples.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--gold", nargs="+", type=at_home, metavar="GOLD.jsonl", help="{text, mentions: [{start, end, qid}]}"
    )
    source.add_argument(
        "--own", action="store_true", help="what the labels of the config's output are sure of, by text and image"
    )
    examples.add_argument("--sure", type=float, default=0.95, help="with --own: least probability of a label")
    examples.add_argument("--most", type=int, default=1_000_000, help="with --own: examples at most, drawn by hash")
    examples.add_argument("--write", required=True, type=at_home, metavar="FILE.parquet")

    about = "train a reranker on files of examples; the same command goes on where one was stopped"
    trained = parts.add_parser("train", help=about, description=about)
    trained.add_argument("--examples", required=True, nargs="+", type=at_home, metavar="FILE.parquet")
    trained.add_argument("--kind", choices=("cross", "bi", "fusion"), default="cross", help="default: cross")
    trained.add_argument(
        "--model", required=True, type=at_home, metavar="FOLDER|NAME",
        help="pretrained, of Hugging Face's form: an encoder; for fusion an encoder–decoder, or what becomes one",
    )  # fmt: skip
    trained.add_argument(
        "--write", required=True, type=at_home, metavar="FOLDER", help="where link.reranker.model finds it"
    )
    trained.add_argument(
        "--seen", nargs="+", default=[], type=at_home, metavar="GOLD.jsonl",
        help="tell the model of a candidate a text in which these lines link it",
    )  # fmt: skip
    trained.add_argument(
        "--candidate-tokens",
        type=int,
        metavar="N",
        help="what is told of a candidate (default: 24, with --seen 44)",
    )
    trained.add_argument("--epochs", type=float, default=3.0)
    trained.add_argument("--batch", type=int, default=32, help="mentions a step (default 32)")
    trained.add_argument("--rate", type=float, default=5e-5, help="peak learning rate of pretrained layers")
    trained.add_argument("--head-rate", type=float, default=5e-4, help="that of the other layers")
    trained.add_argument("--frozen", type=int, default=0, metavar="N", help="layers from below that stay as they are")
    trained.add_argument("--seed", type=int, default=0)
    trained.add_argument("--bfloat16", action="store_true", help="faster where the processor or card has it")
    trained.add_argument("--device", default="auto")
    trained.add_argument("--threads", type=int, help="of the processor (default: all)")
    trained.set_defaults(call=_reranker_train)


def _reranker_gold(options: argparse.Namespace) -> int:
    from i2e_pipeline.commands import reranker
    from i2e_pipeline.stages import pipeline

    figures = reranker.wikipedia_gold(pipeline(_config(options)), options.pages, options.write, options.most)
    print(json.dumps(figures, indent=1))
    return 0


def _reranker_examples(options: argparse.Namespace) -> int:
    from i2e_pipeline.commands import reranker
    from i2e_pipeline.stages import pipeline

    options.set = [*options.set, ["link.reranker.model=null"]]  # examples are of what linking leaves
    whole = pipeline(_config(options))
    if options.own:
        figures = reranker.own_examples(whole, options.write, options.sure, options.most)
    else:
        figures = reranker.gold_examples(whole, options.gold, options.write)
    print(json.dumps(figures, indent=1))
    return 0


def _reranker_train(options: argparse.Namespace) -> int:
    from i2e_pipeline.commands import reranker
    from i2e_pipeline.rerank.training import Training

    settings = Training(
        **{
            name: getattr(options, name)
            for name in ("epochs", "batch", "rate", "head_rate", "frozen", "seed", "bfloat16")
        }
    )
    figures = reranker.train(
        options.examples, options.kind, options.model, options.write, settings, options.device, options.threads,
        options.seen, options.candidate_tokens,
    )  # fmt: skip
    print(json.dumps(figures, indent=1))
    return 0 if figures["finished"] else 128 + signal.SIGINT


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share above 0 and up to 1")
    return value


def _at_least_0(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number from 0 on")
    return value


def _head_commands(commands: argparse._SubParsersAction[_Parser]) -> None:
    about = "small models that read one thing of an image's vector, for clean.heads"
    head = commands.add_parser("head", help=about, description=about)
    parts = head.add_subparsers(dest="part", required=True, metavar="PART")
    trained = _command(parts, "train", _head_train, "fit a head on stored vectors and on labels of their images")
    trained.add_argument(
        "--labels", required=True, type=at_home, metavar="FILE.csv",
        help="CSV or Parquet: image_id, found (1 or 0), and if images belong together, group",
    )  # fmt: skip
    trained.add_argument(
        "--vectors", type=at_home, metavar="FILE.parquet",
        help="image_id, vector, of the model of `score` (default: those that the config's output keeps)",
    )  # fmt: skip
    trained.add_argument("--finds", required=True, metavar="TEXT", help="what it finds, in a few words, for the file")
    trained.add_argument(
        "--precision", type=_share, default=0.9, help="asked of the threshold, on a fifth of the labels (default 0.9)"
    )
    trained.add_argument("--l2", type=_at_least_0, default=1.0, help="how strongly weights are drawn to 0 (default 1)")
    trained.add_argument(
        "--write", required=True, type=at_home, metavar="FILE.safetensors", help="where clean.heads finds it"
    )

    made = _command(
        parts, "convert", _head_convert, "read a head of a state dict of Linear layers, as others have trained it"
    )
    made.add_argument(
        "--from", dest="read", required=True, type=at_home, metavar="FILE",
        help="a state dict: FILE.safetensors, or torch's FILE.pth, of which tensors alone are read",
    )  # fmt: skip
    made.add_argument(
        "--model", metavar="NAME@WEIGHTS", help="the model whose vectors it reads (default: score.model of the config)"
    )
    made.add_argument(
        "--finds", required=True, metavar="TEXT", help="what its number is of, in a few words, for the file"
    )
    made.add_argument("--threshold", required=True, type=float, help="from which number on images are left out")
    made.add_argument(
        "--drops", choices=("above", "below"), default="above", help="images that are left out (default: above it)"
    )
    made.add_argument(
        "--output", choices=("probability", "number"), required=True,
        help="probability: what the last layer gives is the logit of one; number: it is the number itself",
    )  # fmt: skip
    made.add_argument(
        "--scale",
        nargs=2,
        type=float,
        metavar=("LOWEST", "HIGHEST"),
        help="of a number: such as 1 10; thresholds lie within",
    )
    made.add_argument(
        "--activation", choices=("relu", "none"), required=True, help="between its layers; dropout is none"
    )
    made.add_argument(
        "--write", required=True, type=at_home, metavar="FILE.safetensors", help="where clean.heads finds it"
    )


def _head_convert(options: argparse.Namespace) -> int:
    from i2e_pipeline.commands import head

    score = _config(options).score
    about = {name: getattr(options, name) for name in ("finds", "threshold", "drops", "output", "scale", "activation")}
    print(json.dumps(head.convert(options.read, options.model, score, options.write, about), indent=1))
    return 0


def _head_train(options: argparse.Namespace) -> int:
    from i2e_pipeline.commands import head
    from i2e_pipeline.stages import pipeline

    config = _config(options)
    labels = head.read_labels(options.labels)
    of_file = options.vectors
    vectors = head.of_file(of_file, labels) if of_file else head.of_output(pipeline(config), labels)
    figures = head.train(vectors, config.score, labels, options.finds, options.write, options.precision, options.l2)
    print(json.dumps(figures, indent=1))
    return 0


def _count_anchors(options: argparse.Namespace) -> int:
    from i2e_pipeline import stages
    from i2e_pipeline.commands import summary
    from i2e_pipeline.commands.count_anchors import count_anchors

    overrides = [o for group in options.set for o in group]  # without --config the defaults, and not the sample
    whole = stages.pipeline(stages.load(options.config, overrides))
    languages = [language.strip() for language in (options.languages or "").split(",") if language.strip()]
    counted = count_anchors(whole, options.pages, options.output, languages, options.redirects, options.min_links)
    if not _as_json(options, counted.as_json()):
        summary.print_anchors(counted, options.output)
    return 0


def _entity(options: argparse.Namespace) -> int:
    from i2e_pipeline.commands import entity
    from i2e_pipeline.stages import pipeline

    if options.live:
        print(shown(entity.live(options.asked, options.live)))
    else:
        print(shown(entity.describe(pipeline(_config(options, compose=False)), options.asked)))
    return 0


def _explain(options: argparse.Namespace) -> int:
    from i2e_pipeline.commands import summary
    from i2e_pipeline.commands.explain import explain
    from i2e_pipeline.stages import pipeline

    found = explain(pipeline(_config(options, compose=False)), options.asked)
    if not _as_json(options, found):
        summary.print_explanation(found)
    return 0


def _explore(options: argparse.Namespace) -> int:
    from i2e_pipeline import stages
    from i2e_pipeline.commands import explore
    from i2e_pipeline.dataset.place import Place
    from i2e_pipeline.explore.index import Limits

    if options.folder is None:
        pipeline = stages.pipeline(_config(options, compose=False))
        place = Place.of(pipeline.config.output)
    else:
        if options.config is not None:
            raise ConfigError("FOLDER or --config: each says which dataset")
        place, pipeline = Place.of(options.folder), None
        if place.output is not None:
            overrides = [o for group in options.set for o in group]
            # The run's own settings, wherever the output lies by now.
            pipeline = stages.of_folder(place.output, overrides)
    if place.output is None:
        pipeline = None
    shown = explore.explored(place, pipeline, options.marks, options.index, Limits(options.memory_gb))
    if options.similar:
        shown.similar.build()
    explore.serve(shown, options.port, options.open)
    return 0


def _show_config(options: argparse.Namespace) -> int:
    from i2e_pipeline.commands.reference import explain

    config = _config(options, compose=False)
    if options.explain is None:
        print(shown(configuration.as_yaml(config.shown(), not _speaks_unicode())), end="")
    else:
        print(shown(explain(type(config), options.explain or None, _width() or _PIPED)), end="")
    return 0


def _numbers(text: str) -> set[int]:
    try:
        return {int(s) for s in text.split(",")}
    except ValueError:
        raise ConfigError(f"--shards {text}: write numbers of shards, in the order they were read: 0,1,2") from None


def _export(options: argparse.Namespace) -> int:
    from i2e_pipeline.commands import export as exporting

    overrides = [o for group in options.set for o in group]
    log.info(exporting.run(options, _config_of_readers(options.config, overrides)))
    return 0


def _merge(options: argparse.Namespace) -> int:
    from i2e_pipeline import stages
    from i2e_pipeline.commands.merge import merge, settings_of

    first, second = options.outputs
    overrides = [*(o for group in options.set for o in group), f"output={options.to}"]
    if options.config is None:
        tree = settings_of(first, second, options.to)
        config = stages.of_output(tree, files.join(first, "config.yaml"), overrides)
    else:
        config = stages.load(options.config, overrides)
    joined = merge(first, second, stages.pipeline(config))
    log.info(
        f"{joined.units:,} units in {options.to}, {joined.twice:,} of them in both outputs; {joined.forgotten:,} left "
        f"out, which one has forgotten"
    )
    named = options.config or files.join(options.to, "config.yaml")
    log.info(f"`i2e run --config {named}{'' if options.config is None else f' --set output={options.to}'}` goes on")
    return 0


def _diff(options: argparse.Namespace) -> int:
    from i2e_pipeline.commands import summary
    from i2e_pipeline.commands.diff import as_json, diff

    a, b = (_side_of(options, letter) for letter in "AB")
    found = diff(a, b, options.memory_gb, options.out)
    if not _as_json(options, as_json(found)):
        summary.print_difference(found, options.top)
    return 0


def _side_of(options: argparse.Namespace, letter: str) -> Side:
    """A dataset that is compared, with its run's tables where they lie beside it and may be read."""
    from i2e_pipeline.commands.diff import Side
    from i2e_pipeline.dataset.place import Place

    place = Place.of(getattr(options, letter.lower()))
    if place.output is None:
        return Side.of(letter, place.dataset, None)
    try:
        return Side.of(letter, place.dataset, _run_of(place.output, [o for group in options.set for o in group]))
    except (_NotAsked, ModuleNotFoundError) as error:  # what the tables would say is said to be unknown
        said = extras.remedy(error) if isinstance(error, ModuleNotFoundError) else str(error)
        if said is None:
            raise
        side = Side.of(letter, place.dataset, None)
        side.notes.append(f"the tables beside {letter} are not asked: {said}")
        return side


class _NotAsked(I2EError):
    """The settings of an output are not there, or not to be trusted."""


def _run_of(output: str, overrides: Sequence[str]) -> Run:
    from i2e_pipeline import stages
    from i2e_pipeline.engine import seal

    # A recognizer of another checkout or machine, it may be: nothing is recognised here.
    own = ["extract.recognizer=blank", *overrides, f"output={output}"]
    try:
        config = stages.of_output(seal.settings_of(output), files.join(output, seal.CONFIG), own)
    except I2EError as error:
        raise _NotAsked(str(error)) from None
    return stages.pipeline(config).as_it_is()


def _migrate(options: argparse.Namespace) -> int:
    from i2e_pipeline.commands.migrate import migrate

    overrides = [o for group in options.set for o in group]  # without --config the defaults, and not the sample
    config = configuration.load(options.config, overrides)
    made = migrate(options.source, options.to, config.publish)
    log.info(f"{made.rows:,} images and {len(made.entities):,} entities copied to {options.to}")
    return 0


def _reinforce(options: argparse.Namespace) -> int:
    from i2e_pipeline.commands import reinforce

    config = _config_of_readers(options.config, [o for group in options.set for o in group])
    return _print_reinforcement(options, reinforce.run(options, config))


def _print_reinforcement(options: argparse.Namespace, found: Reinforcement) -> int:
    from i2e_pipeline.commands import summary

    if not _as_json(options, found.as_json()):
        summary.print_reinforcement(found)
    return 0


def run_reinforcement() -> None:
    """The main of jobs/reinforce.py: the same by Spark's workers."""
    parser = _Parser(prog="reinforce.py")
    _config_arguments(parser)
    _json_argument(parser)
    from i2e_pipeline.commands import reinforce

    reinforce.add_arguments(parser)

    def work() -> int:
        options = parser.parse_args()
        config = _config_of_readers(options.config, [o for group in options.set for o in group])
        return _print_reinforcement(options, reinforce.on_spark(options, config))

    _end(work)


def _train(options: argparse.Namespace) -> int:
    from i2e_pipeline.commands.train import pretrain
    from i2e_pipeline.train import slurm

    slurm.adopt()
    config = _train_config(options)
    return _print_training(config, pretrain(config, options.restart))


def _export_model(options: argparse.Namespace) -> int:
    from i2e_pipeline.train.export import export_checkpoint
    from i2e_pipeline.train.trainer import folder_of

    folder = options.folder
    if folder is None or options.config is not None:  # which may say how a store is reached
        config = _config_of_readers(options.config, [o for group in options.set for o in group])
        folder = folder or folder_of(config)
    print(shown(str(export_checkpoint(folder, options.checkpoint, options.to))))
    return 0


def _train_config(options: argparse.Namespace) -> Config:
    """The config of a training, shown by the first rank; the embedded sample is composed by `i2e run`, not here."""
    config = _config_of_readers(options.config, [o for group in options.set for o in group])
    if os.environ.get("RANK", "0") == "0":
        differing = configuration.differing(config)
        log.info(_told({key: differing[key] for key in ("output", "train") if key in differing}) + "\n")
    return config


def _config_of_readers(file: str | None, overrides: Sequence[str]) -> Config:
    """The config of a command that reads a finished dataset and knows no stage."""
    if file is not None:
        return configuration.load(file, overrides)
    from i2e_pipeline.sample import embedded

    return configuration.from_tree(embedded.tree(overrides), "the embedded sample", overrides)


def _print_training(config: Config, found: dict[str, Any] | None) -> int:
    from i2e_pipeline.commands import summary

    if found is not None:
        summary.print_training(found)
    return 0


def run_training() -> None:
    """The main of jobs/train.py: the ranks of a training, through Spark."""
    parser = _Parser(prog="train.py")
    _config_arguments(parser)
    parser.add_argument("--restart", action="store_true", help="forget the checkpoints of the folder")

    def work() -> int:
        options = parser.parse_args()
        from i2e_pipeline.commands.train import on_spark

        config = _train_config(options)
        return _print_training(config, on_spark(config, options.restart))

    _end(work)


def _clean(options: argparse.Namespace) -> int:
    from i2e_pipeline.commands.clean import clean
    from i2e_pipeline.stages import pipeline

    freed = clean(pipeline(_config(options)), options.dry_run, options.removed_stages, options.merge, options.purge)
    for one in freed:
        fewer = {"merged": " fewer", "purged": " rewritten"}.get(one.kind, "")
        print(shown(f"{one.kind:<10} {one.path}: {one.files:,} files{fewer}, {one.bytes / 1e6:,.1f} MB"))
    verb = "would go" if options.dry_run else "gone"
    print(f"{sum(f.files for f in freed):,} files, {sum(f.bytes for f in freed) / 1e6:,.1f} MB {verb}")
    return 0


def _of_folder(options: argparse.Namespace, *instead: str) -> Pipeline | None:
    """The pipeline of an output, under the settings of its own last run wherever it lies by now; None: a dataset lies
    there by itself.

    instead   settings, KEY=VALUE, in place of those that the command never loads
    """
    from i2e_pipeline import stages

    if options.folder is None or options.config is not None:
        if options.folder is not None:
            raise ConfigError("FOLDER or --config: each says which output")
        return stages.pipeline(_config(options, compose=False))
    folder = options.folder.rstrip("/") or "/"
    return stages.pipeline(_settings_of(options, *instead)) if files.exists(files.join(folder, "_commits")) else None


def _settings_of(options: argparse.Namespace, *instead: str) -> Config:
    from i2e_pipeline import stages
    from i2e_pipeline.engine import seal

    folder = options.folder.rstrip("/") or "/"
    tree = seal.settings_of(folder)
    overrides = [*instead, *(o for group in options.set for o in group), f"output={folder}"]
    return stages.of_output(tree, files.join(folder, seal.CONFIG), overrides)


def _verify(options: argparse.Namespace) -> int:
    from i2e_pipeline.commands import verify

    # Which lies in another checkout or on another machine, it may be, than what looks at the output now.
    pipeline = _of_folder(options, "extract.recognizer=blank")
    if pipeline is None:
        found = verify.verify_dataset(options.folder, options.deep, options.sample)
    else:
        found = verify.verify(pipeline, options.deep, options.sample)
    if not _as_json(options, verify.as_json(found)):
        print(shown("\n".join([*verify.told(found), _whole(found, options.folder or "", options.deep)])))
    return ExitCode.FAULT if found.faults else ExitCode.DONE


def _whole(found: Verified, folder: str, deep: bool) -> str:
    """The last line of what was looked at."""
    if not found.faults:
        return "whole" if deep else "whole, as far as sizes, footers and a sample say: --deep reads every byte"
    count = f"{len(found.faults):,} thing{'s are' if len(found.faults) > 1 else ' is'} wrong"
    if not found.mendable():
        return count
    return f"{count}: `i2e repair{f' {folder}' if folder else ''}` mends what can be made again"


def _repair(options: argparse.Namespace) -> int:
    from i2e_pipeline.commands import repair, verify
    from i2e_pipeline.sample import embedded

    pipeline = _of_folder(options)
    if pipeline is None:
        raise ConfigError(
            f"{options.folder} holds no tables of a run, and a dataset by itself cannot be made again from anything: "
            "copy it again, or name the output that it is of"
        )
    compose = embedded.composer(pipeline.config.output)
    again = None if options.config is not None or options.folder is None else lambda: _settings_of(options)
    done = repair.repair(pipeline, not options.quick, options.sample, compose, again)
    tree = {"mended": verify.as_json(done.mended_as_found())["faults"], **verify.as_json(done.left)}
    if not _as_json(options, tree):
        lines = [*(f"mended  {fault}" for fault in done.mended), *verify.told(done.left)]
        print(shown("\n".join([*lines, _whole(done.left, "", not options.quick)])))
    return ExitCode.FAULT if done.left.faults else ExitCode.DONE


def _report(options: argparse.Namespace) -> int:
    from i2e_pipeline.engine import seal
    from i2e_pipeline.report.page import write_page
    from i2e_pipeline.stages import pipeline

    whole = pipeline(_config(options))
    log.info(f"report: {write_page(whole)}")
    seal.renew(whole.config.output, *seal.REPORT)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from i2e_pipeline.sample import embedded

    overrides = [o for group in options.set for o in group]
    if evaluation.wants_sample(options):
        return evaluation.run(options, lambda: embedded.evaluation(overrides))
    return evaluation.run(options, lambda: configuration.load(options.config, overrides))


def _doctor(options: argparse.Namespace) -> int:
    from i2e_pipeline.commands import doctor

    config, found = _config(options), []
    for finding in (doctor.examine_cluster if options.cluster else doctor.examine)(config):
        found.append(finding)
        if options.json != _STDOUT:
            print(shown(doctor.told(finding, _width())), flush=True)
    _as_json(options, doctor.as_json(found))
    return ExitCode.FAULT if doctor.failed(found) else ExitCode.DONE


if __name__ == "__main__":
    main()
