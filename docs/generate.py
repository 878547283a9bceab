"""Writes what docs/ says of settings, tables and reject reasons from the code that declares them, and of faults from
what benchmarks/faults.py has counted.

python docs/generate.py            # write
python docs/generate.py --check    # 1, naming the page, where one is not as the code says
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from i2e_pipeline import stages
from i2e_pipeline.commands import reference
from i2e_pipeline.core.config import Config

HERE = Path(__file__).parent
FAULTS = HERE.parent / "benchmarks" / "results" / "faults.json"
PLACES = [(where, storage) for where in ("local", "cluster") for storage in ("parquet", "delta")]


def pages() -> dict[Path, str]:
    """Every generated page and what it must hold."""
    built_in = stages.every()
    formats = HERE / "data-formats.md"
    text = reference.between(formats.read_text(encoding="utf-8"), "tables", reference.tables(built_in))
    reliability = HERE / "reliability.md"
    told = reference.between(reliability.read_text(encoding="utf-8"), "exit codes", reference.exit_codes())
    told = reference.between(told, "checks", reference.checks())
    return {
        reliability: reference.between(told, "faults", faults(json.loads(FAULTS.read_text(encoding="utf-8")))),
        HERE / "configuration.md": reference.configuration_page(Config, built_in),
        formats: reference.between(text, "reasons", reference.reasons(built_in)),
    }


def faults(figures: Mapping[str, Any]) -> str:
    """The table of faults: how often each was injected where, and what came of it."""
    lines = [
        "| fault | | local, Parquet | local, Delta | cluster, Parquet | cluster, Delta | survived | slowest end |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(of["fault"] for of in figures["faults"]):
        found = {(of["where"], of["storage"]): of for of in figures["faults"] if of["fault"] == name}
        counts = [str(found[place]["injected"]) if place in found else "" for place in PLACES]
        injected, survived = (sum(of[count] for of in found.values()) for count in ("injected", "survived"))
        ended = max(of["slowest end, s"] for of in found.values())
        told = [name, next(iter(found.values()))["how"], *counts, f"{survived} of {injected}"]
        lines.append(f"| {' | '.join(told)} | {f'{ended:.1f} s' if ended else ''} |")
    lines += [
        "",
        f"{figures['injected']} faults of {figures['kinds']} kinds in {figures['chains']} chains, "
        f"{figures['killed with -9']} of them kill -9; {figures['survived']} survived. "
        f"{figures['rows compared']:,} rows compared with an undisturbed run's: {figures['rows lost']} lost, "
        f"{figures['rows twice']} twice; {figures['orphans']} orphans, {figures['files left in _staging']} files left "
        f"in `_staging`, {figures['commits made again']} commits made again.",
    ]
    if figures["never injected"]:
        lines[-1] += f" Not injected: {', '.join(figures['never injected'])}."
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    stale = [p for p, text in pages().items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    for path in stale:
        if "--check" in arguments:
            print(f"{path} is not as the code says: python docs/generate.py", file=sys.stderr)
        else:
            path.write_text(pages()[path], encoding="utf-8")
            print(path)
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
