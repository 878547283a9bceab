"""What settings, tables and reject reasons are there: for `i2e config --explain`, and for the pages of docs/.

All of it is read off the declarations: the config's fields with their docstrings, the stages' tables and reasons.
"""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from i2e_pipeline.commands.verifying.faults import CHECKS
from i2e_pipeline.core.config import Config, ConfigError, Section
from i2e_pipeline.core.errors import ExitCode
from i2e_pipeline.core.rejects import reason_name
from i2e_pipeline.engine.stage import OF_NO_STAGE, Stage


@dataclass(frozen=True)
class Setting:
    """One setting, as it is explained."""

    path: str
    allowed: str
    default: str
    about: str


def settings(model: type[Section], path: str = "") -> Iterator[Setting | tuple[str, str]]:
    """Every setting below a section; before those of a sub-section (its path, what it is about)."""
    below: list[tuple[str, type[Section], str]] = []
    for name, field in model.model_fields.items():
        where = f"{path}.{name}" if path else name
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            below.append((where, field.annotation, field.description or ""))
        else:
            yield Setting(where, _allowed(field), _default(field), _about(field))
    for where, section, about in below:
        yield where, about
        yield from settings(section, where)


def _about(field: FieldInfo) -> str:
    """Its docstring on one line, with YAML's word for None."""
    return re.sub(r"\bNone\b", "null", " ".join((field.description or "").split()))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "null" if value is None else json.dumps(value, ensure_ascii=False)


def _allowed(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {value:g}"
        for kind, attribute, sign in ((Ge, "ge", "≥"), (Gt, "gt", ">"), (Le, "le", "≤"), (Lt, "lt", "<"))
        for m in field.metadata
        if isinstance(m, kind) and (value := getattr(m, attribute)) is not None
    ]
    return ", ".join([_kind(field.annotation), *bounds])


def _kind(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return " | ".join(str(a) for a in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join("null" if a is types.NoneType else _kind(a) for a in arguments)
    if origin is tuple:
        return f"list of {_kind(arguments[0])}"
    if origin is dict:
        return f"map of {_kind(arguments[1])}"
    return {str: "text", int: "integer", float: "number", bool: "true | false"}.get(kind, str(kind))


def explain(model: type[Config], section: str | None = None, width: int = 110) -> str:
    """The settings of a section (None: of all), in lines of at most `width` characters but for long words.

    Raises ConfigError for a section that is not there.
    """
    lines: list[str] = []
    names = [name for name, _ in _sections(model)]
    if section is not None and section not in names:
        raise ConfigError(f"no section {section!r}; sections are {', '.join(names)}")
    for found in settings(model):
        if isinstance(found, tuple):
            if section is None or f"{found[0]}.".startswith(f"{section}."):
                lines += ["", *_wrapped(f"{found[0]}: {found[1]}", 0, width)]
        elif section is None or found.path.startswith(f"{section}."):
            lines += _wrapped(f"{found.path} = {found.default}   ({found.allowed})", 2, width, 8)
            lines += _wrapped(found.about, 6, width)
    return "\n".join(lines).strip("\n") + "\n"


def _sections(model: type[Config]) -> Iterator[tuple[str, str]]:
    for found in settings(model):
        if isinstance(found, tuple):
            yield found


def _wrapped(text: str, indent: int, width: int, below: int | None = None) -> list[str]:
    import textwrap

    further = " " * (indent if below is None else below)
    return textwrap.wrap(
        text, width, initial_indent=" " * indent, subsequent_indent=further, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


_PREFACE = """\
<!-- Written by docs/generate.py from the docstrings of i2e_pipeline/core/config.py: change those. -->
# Configuration

One YAML file with a section per stage, and `--set section.key=value` on top of it. `i2e config` prints the whole tree
as a command would see it, `i2e config --explain [SECTION]` what is on this page. Unknown keys and values that are not
allowed are refused before any work, with what is allowed. Paths are relative to the folder that the command is run in,
and `~` is your home.

Where text is wanted, a scalar of YAML is text: `no`, `2024` and `1e3` are what they look like. A key that stands twice
is refused. `--set` takes the value of a text whole, so a `#`, a `: ` or a quote in it means nothing; of other settings
it is YAML (`pairs.path=[a, b]`). A list may be one value. Keys of Spark's hold dots:
`--set session.conf.spark.executor.memory=8g`.
**Secrets** (names that end in secret, token, password, key of an access or account; passwords in URLs; what a text
gives as `password=…`) are shown as
`***` wherever settings are printed or written, and are in no fingerprint.

A setting counts for the **fingerprint** of the stages that use it: change it, and these are done again, and those
behind them. The last column says which. What is in no fingerprint changes no row; the end of this page says why.
"""


def configuration_page(model: type[Config], stages: Sequence[Stage]) -> str:
    """docs/configuration.md."""
    out = [_PREFACE, "## Exit codes", "", exit_codes()]
    used = used_by(stages)
    heading = "| setting | allowed | default | about | done again |\n|---|---|---|---|---|"
    out += ["## At the top", "", heading]
    for found in settings(model):
        if isinstance(found, tuple):
            out += ["", f"## {found[0]}", "", found[1], "", heading]
        else:
            done_again = ", ".join(used.get(found.path, [])) or "–"
            cells = (f"`{found.path}`", found.allowed, f"`{found.default}`", found.about, done_again)
            out.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    out += ["", "## In no fingerprint", "", "| setting | why |", "|---|---|"]
    out += [f"| `{path}` | {why} |" for path, why in unused(stages).items()]
    out += ["", "`train` and `evaluate` are no stages: a training says itself what may change when it goes on"]
    out += ["([training](training.md)).", ""]
    return _without_empty_tables("\n".join(out), heading)


def exit_codes() -> str:
    """What the exit codes say, as a table."""
    rows = [f"| {code.value} | {code.about.replace('|', chr(92) + '|')} |" for code in ExitCode]
    return "\n".join(["| code | what it says |", "|---|---|", *rows]) + "\n"


def checks() -> str:
    """What `i2e verify` looks at, as a table."""
    rows = [f"| `{name}` | {about} |" for name, about in CHECKS.items()]
    return "\n".join(["| check | what holds where it finds nothing |", "|---|---|", *rows]) + "\n"


def _without_empty_tables(page: str, heading: str) -> str:
    return page.replace(f"\n{heading}\n\n", "\n")


def used_by(stages: Sequence[Stage]) -> dict[str, list[str]]:
    """Setting to the stages in whose fingerprints it is; a section within one, to those of any of its settings."""
    found: dict[str, list[str]] = {}
    for stage in stages:
        for section in stage.sections:
            for one in settings(typing.cast(type[Section], Config.model_fields[section].annotation), section):
                if isinstance(one, tuple):
                    continue
                parts = one.path.split(".")
                paths = [".".join(parts[:n]) for n in range(2, len(parts) + 1)]
                for path in paths if not stage.leaves_out.keys() & set(paths) else ():
                    users = found.setdefault(path, [])
                    users += [stage.name] if stage.name not in users else []
        if stage.sees_images and stage.name not in found.get("pairs.image_column", []):
            found.setdefault("pairs.image_column", []).append(stage.name)
    return found


def unused(stages: Sequence[Stage]) -> Mapping[str, str]:
    """Settings of stages that are in no fingerprint, and why."""
    used = used_by(stages)
    found = {path: why for stage in stages for path, why in stage.leaves_out.items() if path not in used}
    return {**OF_NO_STAGE, **found}


def tables(stages: Sequence[Stage]) -> str:
    """The tables that stages write, as Markdown."""
    out = ["| table | stage | key | columns | holds |", "|---|---|---|---|---|"]
    for stage in stages:
        for name, table in stage.tables.items():
            columns = ", ".join(table.schema.names)
            holds = table.holds.replace("|", "\\|")
            out.append(f"| `{name}` | {stage.name} | {', '.join(table.key)} | {columns} | {holds} |")
    return "\n".join(out) + "\n"


def reasons(stages: Sequence[Stage]) -> str:
    """Why rows are rejected, as Markdown."""
    out = ["| stage | reason | means |", "|---|---|---|"]
    for stage in stages:
        for reason, sentence in stage.reasons.items():
            out.append(f"| {stage.name} | {reason_name(reason)} | {sentence} |")
    return "\n".join(out) + "\n"


def between(page: str, mark: str, content: str) -> str:
    """A page with what stands between `<!-- mark -->` and `<!-- end -->` replaced. Raises ValueError without them."""
    before, found, rest = page.partition(f"<!-- {mark} -->\n")
    _, ended, after = rest.partition("<!-- end -->")
    if not found or not ended:
        raise ValueError(f"the page has no <!-- {mark} --> … <!-- end -->")
    return f"{before}{found}{content}{ended}{after}"
