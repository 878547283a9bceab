"""Damaged and hostile inputs at every door through which bytes come in: does anything crash, hang or lose rows?

    python benchmarks/fuzz.py [--minutes 10] [--inputs N] [--seed 1] [--only NAME …] [--at NUMBER] [--json FILE]

Small files of each kind are made and then damaged: bits, borders of numbers, pieces that are cut out, doubled or taken
from another file; texts are any characters. With I2E_REAL_DATA the files of that folder are damaged, too. Each target
runs in a process of its own, of bounded memory, in which an input may take ten seconds. What is counted:

    inputs    tried
    read      taken for what they should be, in part at least
    refused   with an error that is said to users and names the file, or as rejects with a reason
    crashes   the process died, the memory did not suffice, or an error came that is not said to users
    hangs     more than ten seconds
    lost      rows that were neither read nor rejected

The same seed makes the same inputs: a failure is tried again by `--only NAME --at NUMBER`. Ends with 1 where there is
any.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fuzzing.run import Tried, tried
from fuzzing.targets import TARGETS


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="for all targets together")
    parser.add_argument("--inputs", type=int, default=10**9, help="of each target, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--at", type=int, help="the input of this number alone")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    names = options.only or list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"no target {', '.join(unknown)}")
    count, first = (1, options.at) if options.at is not None else (options.inputs, 0)
    seconds = 60 * options.minutes / len(names)
    print(f"{'target':<44}{'inputs':>10}{'read':>10}{'refused':>10}{'crashes':>9}{'hangs':>7}{'lost':>6}{'MB':>7}")
    found = []
    for name in names:
        one = tried(name, options.seed, count, seconds, first)
        found.append(one)
        _print(one)
    whole = Tried("all", **{k: sum(getattr(one, k) for one in found) for k in _COUNTS})
    _print(whole)
    for one in found:
        for failure in one.failures:
            print(
                f"\n{one.name}, input {failure['at']} ({failure['times']} times): {failure['kind']}: {failure['said']}"
            )
            print(failure["trace"])
    told = {
        "seed": options.seed,
        "targets": [{k: v for k, v in asdict(one).items() if k != "failures"} for one in found],
        "all": {k: getattr(whole, k) for k in _COUNTS},
        "failures": [{"target": one.name, **f} for one in found for f in one.failures],
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return told


def table(told: dict[str, Any]) -> list[str]:
    """Rows of Markdown of what `main` tells, as docs/security.md has them; all formats of images in one."""
    rows: dict[str, dict[str, int]] = {}
    images = [one for one in told["targets"] if one["name"].startswith("images: ")]
    for one in told["targets"]:
        name = f"images of {len(images)} formats" if one in images else one["name"]
        of = rows.setdefault(name, dict.fromkeys(_TOLD, 0))
        for count in _TOLD:
            of[count] += one[count]
    rows["all"] = {count: told["all"][count] for count in _TOLD}
    return [f"| {name} | {' | '.join(f'{of[count]:,}' for count in _TOLD)} |" for name, of in rows.items()]


_TOLD = ("inputs", "read", "refused", "crashes", "hangs", "lost")
_COUNTS = ("inputs", "read", "refused", "lost", "crashes", "hangs", "seconds")


def _print(one: Tried) -> None:
    counts = f"{one.inputs:>10,}{one.read:>10,}{one.refused:>10,}{one.crashes:>9,}{one.hangs:>7,}{one.lost:>6,}"
    print(f"{one.name:<44}{counts}{one.peak_mb:>7,.0f}", flush=True)


if __name__ == "__main__":
    sys.exit(1 if main()["failures"] else 0)
