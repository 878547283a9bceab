"""Stages whose tables many outputs share (`Stage.shared_in`): made once, named by what they are made of.

    <folder>/<stage>-<fingerprint>/     looks like an output of one stage: tables, rejects, _commits, _lock, and what
                                        other stages lay out of the tables

A folder of such a name is written once. Another dump, setting or version is another folder, so nothing changes under a
reader, and the older one stays until somebody removes it. Who needs one that is not whole makes it under its lock; who
comes meanwhile waits.

An output whose config does not name what they are made of (`Stage.takes_what_is_there`) takes what lies there whole:
the only one that fits its settings, or the one that it names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from i2e_pipeline.core import files
from i2e_pipeline.core.config import Config
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.engine.records import Commit, Records
from i2e_pipeline.engine.tables import WHOLE, Tables

_NAME = re.compile(r"(?P<stage>[A-Za-z]\w*)-(?P<fingerprint>[0-9a-f]{16})")
_SHOWN = 16
"""Hex characters of a fingerprint that a folder's name has; its record has all."""


def home(place: str, stage: str, fingerprint: str) -> str:
    """The folder of what a stage makes under a fingerprint. `place` may also be such a folder, of whichever stage."""
    return files.join(_above(place), f"{stage}-{fingerprint[:_SHOWN]}")


class Made(Protocol):
    """What is asked of a stage here (engine/stage.py)."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def leaves_out(self) -> Mapping[str, str]: ...
    def all_sections(self) -> tuple[str, ...]: ...
    def settings(self, config: Config) -> dict[str, Any]: ...
    def weighs(self, config: Config) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Base:
    """What several stages made one out of the other, and lies in one place whole."""

    folder: str
    """that of the last of the stages"""
    commits: Mapping[str, Commit]
    """by stage"""


class NoBase(I2EError, LookupError):
    """Why none can be taken; the message is the rest of a sentence on the setting."""


def base(place: str, stages: Sequence[tuple[Made, Config]]) -> Base:
    """The one in a place that fits the settings. Raises NoBase where there is none, or several.

    stages   those that share the place, in their order, each with the config as it may see it
    """
    last = stages[-1][0].name
    named = place.rstrip("/").rpartition("/")[2]
    if (match := _NAME.fullmatch(named)) and match["stage"] != last:
        raise NoBase(f"{place} is what {match['stage']} made: name the folder {last}-… beside it, or the one above")
    folders = [named] if match else [n for n in files.list_folders(place) if n.startswith(f"{last}-")]
    found = [whole for name in folders if (whole := _whole(files.join(_above(place), name), stages)) is not None]
    if not found:
        raise NoBase(f"{place} holds none that is whole")
    reasons = {one.folder: _unlike(one, stages) for one in found}
    fitting = [one for one in found if not reasons[one.folder]]
    if not fitting:
        said = "; ".join(f"{folder} was made otherwise ({why})" for folder, why in reasons.items())
        raise NoBase(f"{place} holds none that fits: {said}")
    if len(fitting) > 1:
        raise NoBase(f"{place} holds several: name one of {', '.join(one.folder for one in fitting)}")
    return fitting[0]


def _above(place: str) -> str:
    """The folder of all of them, where one is named."""
    place = place.rstrip("/") or place
    return files.folder_of(place) or "." if _NAME.fullmatch(place.rpartition("/")[2]) else place


def _whole(folder: str, stages: Sequence[tuple[Made, Config]]) -> Base | None:
    """What lies in the folder of the last stage and in those that it was made of; None where a record is missing."""
    commits: dict[str, Commit] = {}
    for stage, _ in reversed(stages):
        if commits:
            known = {name: value for c in commits.values() for name, value in c.components["after"].items()}
            if stage.name not in known:
                return None
            at = home(folder, stage.name, known[stage.name])
        else:
            at = folder
        commit = Records(files.join(at, "_commits")).read(stage.name).get(WHOLE)
        if commit is None:
            return None
        commits[stage.name] = commit
    return Base(folder, commits)


def _unlike(one: Base, stages: Sequence[tuple[Made, Config]]) -> str:
    """In which settings it differs from what the config asks for; those that have their defaults ask for nothing."""
    found = []
    for stage, config in stages:
        made = one.commits[stage.name].components
        if made["version"] != stage.version or made.get("weighs", {}) != stage.weighs(config):
            return "another version of this package"
        now, default = stage.settings(config), stage.settings(_defaults(stage, config))
        for key in sorted(now):
            was = made["settings"].get(key, default.get(key))
            if now[key] not in (default.get(key), was):
                found.append(f"{key}: {was}, now {now[key]}")
    return ", ".join(dict.fromkeys(found))


def _defaults(stage: Made, config: Config) -> Config:
    """The config in which all that counts for the stage has its default."""
    tree = Config()
    own = {}
    for name in stage.all_sections():
        section = getattr(config, name)
        keys = [key.removeprefix(f"{name}.") for key in stage.leaves_out if key.startswith(f"{name}.")]
        own[name] = type(section).model_construct(**{k: getattr(section, k) for k in keys if "." not in k})
    return tree.model_copy(update=own)


def earlier(tables: Tables, stage: str) -> tuple[Tables, Commit] | None:
    """What a shared stage made last in the same folder under another fingerprint, and where; None: nothing, or it is
    not shared."""
    now = tables.of(stage)
    if now is tables:
        return None
    place, newest = files.folder_of(now.root), 0
    found = None
    for name in files.list_folders(place):
        folder = files.join(place, name)
        if not name.startswith(f"{stage}-") or folder == now.root:
            continue
        other = Tables(folder, now.storage, lambda: tables.spark, tables.catalogue)
        commit = other.commits(stage).get(WHOLE)
        made = max((i.modified for i in files.list_files(files.join(folder, "_commits", stage))), default=0)
        if commit is not None and (found is None or made > newest):
            found, newest = (other, commit), made
    return found


def adopt(into: Tables, source: Tables, commit: Commit) -> None:
    """Copy what a commit made into other tables, where it then counts. A kill before the end leaves files that nothing
    names."""
    for table, made in commit.files.items():
        for file in made:
            files.copy(source.path(table, file.path), into.path(table, file.path))
    into.records.add(commit.stage, [commit])
