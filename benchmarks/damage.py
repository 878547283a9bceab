"""Does `i2e verify --deep` find damage, and does `i2e repair` mend it? Drawn over every file of an output.

    python benchmarks/damage.py [--output OUT ...] [--draws 200] [--repairs 10] [--seed 0] [--json FILE]
    python benchmarks/damage.py --matrix [--cells N] [--repairs 10] [--json FILE]

OUT is a finished output, of the embedded sample in out/sample where it is not said. It is copied, and the copy is
damaged: of all its files one is drawn, each as likely as another, and one of KINDS, half of which leave the length as
it was. Printed is how many were found, and named: by the file itself, or by the stage and the unit that it is of. Then
draws are done again, `--repairs` groups of several at once, and each group is mended by `i2e repair` and compared with
OUT: every file by its content, but for what `contents` leaves out.

`--matrix` makes outputs of its own, on Parquet and on Delta, over an input of Parquet, a tar, a CSV with paths of
images and a folder of images, one of each as a run leaves it, and one after `clean --purge` and `run --forget`. Every
kind of file meets every kind of damage once.

The exit code is 1 where less than 99 % were found and named, or an output was not mended to an equal one.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import io
import json
import os
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

if __name__ == "__main__":  # the small world and the forms of input are the tests'
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from i2e_pipeline import cli
from i2e_pipeline.core import digests
from i2e_pipeline.core.config import dump
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.engine.records import Records
from i2e_pipeline.engine.seal import LIST
from i2e_pipeline.sample import compose
from tests.chain import settings
from tests.inputs.forms import FORMS, Pair, pairs_of

AT_ONCE = 5
"""Damaged files of a group that is mended."""
WANTED = 0.99
"""Share of damages that is to be found and named."""
OF_OTHERS = ("_explore", "_staging", "_lock", "train", "marks.jsonl")
"""What lies in an output and is not sealed: made again at need, unfinished, a training's, a reader's."""


def one_bit(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :]


def one_byte(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :]


def a_block(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    end = min(len(content), at + 64)
    return content[:at] + draw.randbytes(end - at) + content[end:]


def zeros(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    end = min(len(content), at + 4096)
    return content[:at] + bytes(end - at) + content[end:]


def swapped(content: bytes, draw: random.Random) -> bytes:
    size = max(1, min(512, len(content) // 2))
    a, b = sorted(draw.sample(range(len(content) // size), 2)) if len(content) // size > 1 else (0, 0)
    first, second = content[a * size : (a + 1) * size], content[b * size : (b + 1) * size]
    return content[: a * size] + second + content[(a + 1) * size : b * size] + first + content[(b + 1) * size :]


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def longer(content: bytes, draw: random.Random) -> bytes:
    return content + draw.randbytes(draw.randrange(1, 64))


def emptied(content: bytes, draw: random.Random) -> bytes:
    return b""


SAME_LENGTH: tuple[Callable[[bytes, random.Random], bytes], ...] = (one_bit, one_byte, a_block, zeros, swapped)
OTHER_LENGTH: tuple[Callable[[bytes, random.Random], bytes], ...] = (cut, longer, emptied)
BY_NAME = {f.__name__: f for f in (*SAME_LENGTH, *OTHER_LENGTH)}
REMOVED, ANOTHER, ADDED = "removed", "another's content", "another file beside it"
KINDS = (*BY_NAME, REMOVED, ANOTHER)
"""Of damage to a file that is there."""


def damage(path: Path, all_files: Sequence[Path], draw: random.Random, wanted: str | None = None) -> str:
    """Damage a file so that it is not what it was. Returns how; raises ValueError where `wanted` cannot do that."""
    before = path.read_bytes()
    for _ in range(200):
        others = (*(f.__name__ for f in OTHER_LENGTH), REMOVED, ANOTHER)
        same = draw.random() < 0.5
        kind = wanted or (draw.choice(SAME_LENGTH).__name__ if same else draw.choice(others))
        if kind == REMOVED:
            path.unlink()
            return REMOVED
        if kind == ANOTHER:
            after = draw.choice(all_files).read_bytes()
        elif before:
            after = BY_NAME[kind](before, draw)
        else:
            after = before
        if after != before:
            path.write_bytes(after)
            return kind
    raise ValueError(f"{path} is the same after {wanted}")


def beside(path: Path, draw: random.Random) -> Path:
    """Where another file would lie, named as its folder's are."""
    name, number = path.name, draw.randrange(16**8)
    if name.startswith("journal-"):
        return path.with_name(f"journal-{900_000_000 + number % 10_000_000:09d}.json")
    if path.parent.name == "_delta_log":
        return path.with_name(f"{900 + number % 100:020d}.json")
    if re.fullmatch(r"u-[0-9a-f]{12}\.json", name):
        return path.with_name(f"u-{number:012x}.json")
    if name.startswith("part-"):
        return path.with_name(f"part-90000-9-{number:08x}.parquet")
    return path.with_name(f"{path.stem}-{number:08x}{path.suffix}")


def i2e(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code of a command that tells what it found as JSON, and that."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told.json"
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                cli.main([*arguments, "--json", str(told)])
        except SystemExit as ended:
            return int(ended.code or 0), json.loads(told.read_text()) if told.exists() else {}
    raise AssertionError("a command ends the process")


def lying(output: Path) -> list[Path]:
    found = (p for p in output.rglob("*") if p.is_file())
    return sorted(p for p in found if p.relative_to(output).parts[0] not in OF_OTHERS)


def rows(output: Path) -> dict[str, Counter[str]]:
    """The rows of every table of an output by its commit records, whatever files they are in."""
    records = Records(str(output / "_commits"))
    paths: dict[str, list[str]] = {}
    for stage in records.stages():
        for commit in records.read(stage).values():
            for table, made in commit.files.items():
                paths.setdefault(table, []).extend(str(output / table / f.path) for f in made)
    return {
        table: Counter(repr(row) for batch in ds.dataset(of_table).to_batches() for row in batch.to_pylist())
        for table, of_table in paths.items()
    }


# What is equal

_RANDOM = ("_commits", "_seal", "_unsealed")
"""Files whose bytes hold random names, times and digests of files with these: what records say is compared."""
_DATES = re.compile(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?|\b\d{4}-\d\d-\d\d\b")
_PART = re.compile(rb"part-[\w-]+\.parquet")
_PLACES = re.compile(rb"[^\s\"<>]*/(config\.yaml|i2e)\b")
_PLACE = re.compile(rb"^output: .*\n", re.MULTILINE)
"""In the settings, where the output lies: what is mended is a copy."""
_TOOK = re.compile(rb'"(task_)?seconds": [\d.e-]+')


def contents(output: Path) -> dict[str, Any]:
    """What an output is: rows of each table by its records and names of no other files, what records say of units, and
    every other file by its bytes.

    Left out are random names of table files and what follows from them (Delta's logs, the seal), times that stages
    took, and dates in what is written for readers.
    """
    found: dict[str, Any] = {f"rows of {table}": counts for table, counts in rows(output).items()}
    by_record = recorded(output)
    for (stage, unit), record in records(output).items():
        found[f"record of {stage} {unit}"] = record
    tables = {path.rpartition("/unit=")[0].partition("/stage=")[0] for path in by_record}
    log_only = {table for table in tables if (output / table / "_delta_log").exists()}
    for path in lying(output):
        below = path.relative_to(output).as_posix()
        table = next((t for t in tables if below.startswith(f"{t}/")), None)
        random_names = below.partition("/")[0] in _RANDOM or "/_delta_log/" in below
        if below in by_record or random_names or table in log_only:
            continue  # files that a Delta log names no more lie there until `i2e clean`
        content = path.read_bytes()
        if below == LIST:
            found[f"file {below}"] = _listed(output, content)
            continue
        if path.suffix in (".json", ".md", ".html", ".yaml"):
            content = _TOOK.sub(b"", _DATES.sub(b"", content))
        if below.startswith("i2e/"):  # of a Delta table, the files that count are named
            content = _PART.sub(b"part", content)
        if path.suffix == ".html":  # which tells where it lies, and how to ask for more
            content = _PLACES.sub(b"", content)
        if below == "config.yaml":
            content = _PLACE.sub(b"", content)
        found[f"file {below}"] = hashlib.sha256(content).hexdigest()
    return found


def _listed(output: Path, content: bytes) -> tuple[bool, list[str]]:
    """Whether the list of digests is right, and the folders of its files, whose names are random."""
    try:
        named = digests.listed(content)
        right = all(digests.of_file(str(output / "i2e" / path)) == digest for path, digest in named.items())
    except (ValueError, OSError):
        return False, []
    return right, sorted(path.rpartition("/")[0] for path in named)


def records(output: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """What every stage says of every unit, but for names of files, times and digests."""
    read = Records(str(output / "_commits"))
    found = {}
    for stage in read.stages():
        if stage == "entity_vectors":  # whose segments are named by what was missing when they were made
            continue
        for unit, commit in read.read(stage).items():
            told = asdict(commit)
            told["facts"].pop("notes", None)  # what the work came upon: vectors that were there already
            told["files"] = {t: rows for t in commit.files if (rows := commit.rows(t))}  # some have a file of none
            found[stage, unit] = {k: v for k, v in told.items() if k not in ("seconds", "task_seconds")}
    return found


def recorded(output: Path) -> dict[str, tuple[str, str]]:
    """Files of tables, with the stage and the unit that they are of."""
    read = Records(str(output / "_commits"))
    return {
        f"{table}/{f.path}": (stage, unit)
        for stage in read.stages()
        for unit, commit in read.read(stage).items()
        for table, made in commit.files.items()
        for f in made
    }


def owners(output: Path) -> dict[str, tuple[str, str]]:
    """Every file with the stage and the unit that it is of; "" where it is of none."""
    by_record = recorded(output)
    of_table = {path.partition("/unit=")[0].partition("/stage=")[0]: stage for path, (stage, _) in by_record.items()}
    found = {}
    for path in lying(output):
        below = path.relative_to(output).as_posix()
        if below in by_record:
            found[below] = by_record[below]
        elif below.startswith("_commits/") and below.count("/") == 2:
            found[below] = (below.split("/")[1], "")
        elif "/_delta_log/" in below:
            found[below] = (of_table.get(below.partition("/_delta_log/")[0], ""), "")
        elif below.startswith(("units/u-", "forgotten_units/u-")):
            found[below] = ("", path.stem)
        else:
            found[below] = ("", "")
    return found


def is_delta(output: Path) -> bool:
    return bool(json.loads((output / "_storage.json").read_bytes())["format"] == "delta")


def kind_of(below: str) -> str:
    """A path without names of units, digests and numbers: files of one kind have the same."""
    return re.sub(r"u-[0-9a-f]{12}|s-[0-9a-f]{12}|[0-9a-f]{8,}[^/.]*|part-[^/]*|journal-\d+|\d{20}[^/]*", "*", below)


def names(fault: dict[str, Any], below: str, owner: tuple[str, str]) -> bool:
    """Whether a fault is that of a file: its path, or the stage and the unit that it is of."""
    of = (fault.get("stage", ""), fault.get("unit", ""))
    return bool(fault["path"] == below or (all(owner) and of == owner))


# Finding and mending


@dataclass(frozen=True)
class Cell:
    """A damage that is to be done."""

    below: str
    kind: str | None
    """None: drawn"""
    seed: str


def drawn(output: Path, draws: int, seed: int) -> list[Cell]:
    """One file and damage after the other; of thirty one is another file beside one that is there."""
    all_files = [p.relative_to(output).as_posix() for p in lying(output)]
    found = []
    for n in range(draws):
        draw = random.Random(f"{seed} {n}")
        below = draw.choice(all_files)
        added = draw.random() < 1 / 30 and may_be_added(below, is_delta(output))
        found.append(Cell(below, ADDED if added else None, f"{seed} {n}"))
    return found


def matrix(output: Path, cells: int | None, seed: int) -> list[Cell]:
    """Each kind of file with each kind of damage; `cells` of these where that is said."""
    by_kind: dict[str, list[str]] = {}
    for path in lying(output):
        below = path.relative_to(output).as_posix()
        by_kind.setdefault(kind_of(below), []).append(below)
    draw = random.Random(seed)
    delta = is_delta(output)
    chosen = {(kind, how): draw.choice(files) for kind, files in sorted(by_kind.items()) for how in (*KINDS, ADDED)}
    found = [
        Cell(below, how, f"{seed} {kind} {how}")
        for (kind, how), below in chosen.items()
        if how != ADDED or may_be_added(below, delta)
    ]
    return found if cells is None else draw.sample(found, min(cells, len(found)))


def may_be_added(below: str, delta: bool) -> bool:
    """Whether another file beside this one is damage. It is none at the top, which may be anybody's, where files are
    opened by their names, in a run's own tables, whose files records name (`verify` tells of them, and `clean` removes
    them), beside the files of a Delta table, whose log names them, and among more input."""
    opened_by_name = below.startswith(("input/", "kb/gazetteer/", "kb/context/"))
    named = below.endswith(".parquet") and not below.startswith("units/") and (delta or not below.startswith("i2e/"))
    return "/" in below and not opened_by_name and not named


def done(output: Path, cell: Cell, all_files: Sequence[Path]) -> tuple[str, str]:
    """Do a damage. Returns the path that is wrong now, and how. Raises ValueError where it would change nothing."""
    draw, path = random.Random(cell.seed), output / cell.below
    if cell.kind == ADDED:
        added = beside(path, draw)
        shutil.copyfile(path, added)
        return added.relative_to(output).as_posix(), ADDED
    return cell.below, damage(path, all_files, draw, cell.kind)


def finding(output: Path, cells: Iterable[Cell]) -> Iterator[dict[str, Any]]:
    """One damage after the other, each taken back before the next."""
    all_files, owner = lying(output), owners(output)
    for cell in cells:
        path = output / cell.below
        stat, before = path.stat(), path.read_bytes()
        try:
            below, kind = done(output, cell, all_files)
        except ValueError:  # as two files of eight bytes that are alike
            continue
        code, told = i2e("verify", str(output), "--deep")
        faults = told.get("faults", [])
        named = [f for f in faults if names(f, below, owner[cell.below])]
        yield {
            "file": below,
            "kind": kind,
            "found": code == 1 and bool(faults),
            "named": bool(named),
            "says": named[0] if named else faults[:1] or code,
        }
        (output / below).unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(before)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def mending(output: Path, copy: Path, groups: Iterable[Sequence[Cell]]) -> Iterator[dict[str, Any]]:
    """Several damages at once, mended, and compared with what was there."""
    wanted = contents(output)
    for group in groups:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(output, copy)
        kinds = {}
        for cell in group:
            if (copy / cell.below).exists():
                with contextlib.suppress(ValueError):
                    below, kind = done(copy, cell, [p for p in lying(copy) if p.exists()])
                    kinds[below] = kind
        code, told = i2e("repair", str(copy))
        again, left = i2e("verify", str(copy), "--deep")
        try:
            found = contents(copy)
        except (I2EError, OSError, ValueError) as error:  # it is still damaged
            found = {"nothing can be compared": str(error)}
        yield {
            "damaged": kinds,
            "mended": len(told.get("mended", [])),
            "whole": code == 0 and again == 0,
            "equal": found == wanted,
            "unlike": sorted(k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k))[:9],
            "left": left.get("faults", []),
            "said": told if code else {},
        }


def grouped(cells: Sequence[Cell], groups: int, seed: int) -> list[list[Cell]]:
    """Groups of damages of different files."""
    found = []
    for n in range(groups):
        mixed = list(cells)
        random.Random(f"{seed} group {n}").shuffle(mixed)
        found.append(list({cell.below: cell for cell in mixed}.values())[:AT_ONCE])
    return found


# Outputs of the matrix


def several_forms(folder: Path) -> Path:
    """A small world whose pairs lie in four forms; three of them have no rows of their own that can be read again by
    number, so the output keeps an index of each."""
    world = folder / "input"
    compose.compose(world, rows=40, shards=1)
    pairs = pairs_of(world / "pairs" / "00000.parquet")
    forms = folder / "forms"
    for n, name in enumerate(("img2dataset's Parquet", "img2dataset's tars", "folder of texts", "a CSV with paths")):
        (forms / f"{n}").mkdir(parents=True)
        write = FORMS.get(name, paths_in_csv)
        write(pairs[n::4], forms / f"{n}")
    return forms


def paths_in_csv(pairs: Sequence[Pair], folder: Path) -> dict[str, Any]:
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["jpg", "caption", "url"])
        for pair in pairs:
            (folder / f"{pair.key}.image").write_bytes(pair.image)
            writer.writerow([f"{pair.key}.image", pair.caption, pair.url])
    return {"path": str(folder)}


def made(folder: Path) -> Iterator[tuple[str, Path]]:
    """Outputs by name."""
    forms = several_forms(folder)
    for storage in ("parquet", "delta"):
        output = folder / storage
        config = folder / f"{storage}.yaml"

        def ran(*arguments: str, output: Path = output, config: Path = config, storage: str = storage) -> None:
            paths = ", ".join(f"{forms}/{n}" for n in range(4))
            given = [f"pairs.path=[{paths}]", f"storage.format={storage}"]
            given += [f"select.exclude={folder}/listed.txt"] if (folder / "listed.txt").exists() else []
            config.write_text(dump(settings(folder / "input", output, *given)))
            _command(*arguments, "--config", str(config))

        ran("run")
        yield storage, output
        unit = min((output / "units").glob("u-*.json")).stem
        listed = [p.url for p in pairs_of(folder / "input" / "pairs" / "00000.parquet")[::9]]
        (folder / "listed.txt").write_text("".join(f"{url}\n" for url in listed))
        ran("run", "--forget", unit)
        ran("clean", "--purge")
        yield f"{storage}, purged and forgotten", output
        (folder / "listed.txt").unlink()


def _command(*arguments: str) -> None:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            cli.main(arguments)
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError(f"i2e {' '.join(arguments)} ended with {ended.code}") from None


def measured(name: str, output: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Damage one output, and mend it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "out"
        shutil.copytree(output, copy)
        all_files = len(lying(copy))
        cells = (
            matrix(copy, options.cells, options.seed) if options.matrix else drawn(copy, options.draws, options.seed)
        )
        found = list(finding(copy, cells))
        other = cells if options.matrix else drawn(copy, options.repairs * AT_ONCE * 2, options.seed + 1)
        mended = list(mending(output, copy, grouped(other, options.repairs, options.seed)))
    by_kind = {k: [f["found"] and f["named"] for f in found if f["kind"] == k] for k in (*KINDS, ADDED)}
    print(f"== {name}: {all_files} files")
    for kind, said in by_kind.items():
        print(f"{kind:<22} {sum(said):>4} of {len(said):>4} found and named")
    for one in found:
        if not (one["found"] and one["named"]):
            print("not named" if one["found"] else "not found", one)
    for one in mended:
        if not (one["whole"] and one["equal"]):
            print("not mended", one)
    return {
        "output": name,
        "files": all_files,
        "draws": len(found),
        "found_and_named": sum(f["found"] and f["named"] for f in found),
        "by_kind": {kind: [sum(said), len(said)] for kind, said in by_kind.items()},
        "groups": len(mended),
        "damaged_in_groups": sum(len(one["damaged"]) for one in mended),
        "groups_mended_to_equal": sum(one["whole"] and one["equal"] for one in mended),
        "not_found": [f for f in found if not (f["found"] and f["named"])],
        "not_mended": [m for m in mended if not (m["whole"] and m["equal"])],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, nargs="+", default=[Path("out/sample")])
    parser.add_argument("--draws", type=int, default=200, help="of each output")
    parser.add_argument("--matrix", action="store_true", help="every kind of file with every kind of damage")
    parser.add_argument("--cells", type=int, help="so many of each output's matrix (default: all)")
    parser.add_argument("--repairs", type=int, default=10, help="groups of each output that are mended")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        outputs = made(Path(folder)) if options.matrix else ((str(path), path) for path in options.output)
        told = [measured(name, output, options) for name, output in outputs]
    counts = {
        key: sum(one[key] for one in told)
        for key in ("draws", "found_and_named", "groups", "damaged_in_groups", "groups_mended_to_equal")
    }
    print(f"{counts['found_and_named']} of {counts['draws']} damages found and named")
    print(
        f"{counts['groups_mended_to_equal']} of {counts['groups']} outputs with {counts['damaged_in_groups']} damages "
        "were mended to equal ones"
    )
    if options.json is not None:
        options.json.write_text(json.dumps({**counts, "outputs": told}, indent=1) + "\n")
    enough = counts["found_and_named"] >= WANTED * counts["draws"]
    return int(not enough or counts["groups_mended_to_equal"] < counts["groups"])


if __name__ == "__main__":
    sys.exit(main())
