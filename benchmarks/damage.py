"""Does `i2e verify --deep` find damage, and does `i2e repair` mend it? Drawn over every file of an output.

    python benchmarks/damage.py [--output OUT] [--draws 200] [--repairs 10] [--seed 0] [--json FILE]

OUT is a finished output, of the embedded sample in out/sample where it is not said. It is copied, and the copy is
damaged: of all its files one is drawn, each as likely as another, and one of KINDS, half of which leave the length as
it was. Printed is how many were found, and named by the file itself; then the draws are done again, `--repairs` groups
of several at once, and each group is mended by `i2e repair` and compared with OUT, row by row, every table.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from i2e_pipeline import cli
from i2e_pipeline.engine.records import Records

AT_ONCE = 5
"""Damaged files of a group that is mended."""


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
REMOVED = "removed"
KINDS = (*(f.__name__ for f in SAME_LENGTH), *(f.__name__ for f in OTHER_LENGTH), REMOVED, "another's content")


def damage(path: Path, all_files: Sequence[Path], draw: random.Random) -> str:
    """Damage a file so that it is not what it was. Returns how."""
    before = path.read_bytes()
    while True:
        others = (*OTHER_LENGTH, REMOVED, "another's content")
        kind = draw.choice(SAME_LENGTH) if draw.random() < 0.5 else draw.choice(others)
        if kind == REMOVED:
            path.unlink()
            return REMOVED
        if callable(kind):
            if not before:
                continue
            after, name = kind(before, draw), kind.__name__
        else:
            after, name = draw.choice(all_files).read_bytes(), str(kind)
        if after != before:
            path.write_bytes(after)
            return name


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
    return sorted(p for p in output.rglob("*") if p.is_file() and not p.is_relative_to(output / "_explore"))


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


def finding(output: Path, draws: int, seed: int) -> Iterator[dict[str, Any]]:
    """One damage after the other, each taken back before the next."""
    all_files = lying(output)
    for n in range(draws):
        draw = random.Random(f"{seed} {n}")
        path = draw.choice(all_files)
        stat, before = path.stat(), path.read_bytes()
        kind = damage(path, all_files, draw)
        code, told = i2e("verify", str(output), "--deep")
        below = path.relative_to(output).as_posix()
        faults = told.get("faults", [])
        named = [f for f in faults if f["path"] == below or below.startswith(f"{f['path']}/") or f["path"] in below]
        yield {
            "file": below,
            "kind": kind,
            "found": code == 1 and bool(faults),
            "named": bool(named),
            "says": named[0] if named else faults[:1],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(before)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def mending(output: Path, copy: Path, groups: int, seed: int) -> Iterator[dict[str, Any]]:
    """Several files damaged at once, mended, and compared with what they were."""
    wanted = rows(output)
    for n in range(groups):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(output, copy)
        all_files = lying(copy)
        draw = random.Random(f"{seed} group {n}")
        chosen = draw.sample(all_files, min(AT_ONCE, len(all_files)))
        kinds = {p.relative_to(copy).as_posix(): damage(p, [q for q in all_files if q.exists()], draw) for p in chosen}
        code, told = i2e("repair", str(copy))
        again, left = i2e("verify", str(copy), "--deep")
        yield {
            "damaged": kinds,
            "mended": len(told.get("mended", [])),
            "whole": code == 0 and again == 0,
            "equal": rows(copy) == wanted,
            "left": left.get("faults", []),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/sample"))
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--repairs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    a = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "out"
        shutil.copytree(a.output, copy)
        found = list(finding(copy, a.draws, a.seed))
        by_kind = {k: [f["found"] and f["named"] for f in found if f["kind"] == k] for k in KINDS}
        for kind, said in by_kind.items():
            print(f"{kind:<18} {sum(said):>4} of {len(said):>4} found and named")
        print(f"{'all':<18} {sum(f['found'] and f['named'] for f in found):>4} of {len(found):>4} found and named")
        for one in found:
            if not (one["found"] and one["named"]):
                print("not found", one)
        mended = []
        for one in mending(a.output, copy, a.repairs, a.seed):
            mended.append(one)
            if not (one["whole"] and one["equal"]):
                print("not mended", one)
        equal = sum(one["whole"] and one["equal"] for one in mended)
        damaged = sum(len(one["damaged"]) for one in mended)
        print(f"{equal} of {len(mended)} outputs with {damaged} damaged files were mended to equal ones")
    if a.json is not None:
        figures = {
            "files": len(lying(a.output)),
            "draws": len(found),
            "found_and_named": sum(f["found"] and f["named"] for f in found),
            "by_kind": {kind: [sum(said), len(said)] for kind, said in by_kind.items()},
            "groups": len(mended),
            "damaged_in_groups": damaged,
            "groups_mended_to_equal": equal,
            "not_found": [f for f in found if not (f["found"] and f["named"])],
            "not_mended": [m for m in mended if not (m["whole"] and m["equal"])],
        }
        a.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
