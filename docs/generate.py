"""Writes what docs/ says of settings, tables and reject reasons from the code that declares them.

python docs/generate.py            # write
python docs/generate.py --check    # 1, naming the page, where one is not as the code says
"""

from __future__ import annotations

import sys
from pathlib import Path

from i2e_pipeline import stages
from i2e_pipeline.commands import reference
from i2e_pipeline.core.config import Config

HERE = Path(__file__).parent


def pages() -> dict[Path, str]:
    """Every generated page and what it must hold."""
    built_in = stages.built_in()
    formats = HERE / "data-formats.md"
    text = reference.between(formats.read_text(encoding="utf-8"), "tables", reference.tables(built_in))
    reliability = HERE / "reliability.md"
    told = reference.between(reliability.read_text(encoding="utf-8"), "exit codes", reference.exit_codes())
    return {
        reliability: reference.between(told, "checks", reference.checks()),
        HERE / "configuration.md": reference.configuration_page(Config, built_in),
        formats: reference.between(text, "reasons", reference.reasons(built_in)),
    }


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
