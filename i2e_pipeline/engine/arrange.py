"""Which stages a pipeline has, and in which order: the built-in ones, and those from outside where they say they
belong.

A stage from outside is named in the config's `stages`: `package.module:Class`, `path/file.py:Class`, or the name of an
entry point of the group `i2e_pipeline.stages` that an installed package brings.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa

from i2e_pipeline.core.config import Config, Section
from i2e_pipeline.engine.catalogue import Passed, Table
from i2e_pipeline.engine.stage import Stage, StageError, behind

GROUP = "i2e_pipeline.stages"


def from_outside(names: Sequence[str]) -> list[Stage]:
    """An instance of each named stage. Raises StageError, naming what is there, for one that cannot be had."""
    found = []
    for name in names:
        kind = _class(name)
        if not (isinstance(kind, type) and issubclass(kind, Stage)):
            raise StageError(f"stages: {name} is {kind!r}, and not a subclass of i2e_pipeline.Stage")
        try:
            found.append(kind())
        except TypeError as error:
            raise StageError(f"stages: {name}: {error}: a stage is made without arguments") from None
    return found


def _class(name: str) -> Any:
    if ":" not in name:
        known = {e.name: e for e in entry_points(group=GROUP)}
        if name not in known:
            raise StageError(
                f"stages: no installed package brings a stage {name!r} (known: {', '.join(sorted(known)) or 'none'}): "
                "write package.module:Class, or path/file.py:Class"
            )
        return known[name].load()
    return from_place(name, "stages")


def from_place(name: str, setting: str) -> Any:
    """What `package.module:name` or `path/file.py:name` names; workers get it by value where they cannot import it.
    Raises StageError."""
    place, _, attribute = name.rpartition(":")
    module = _module_of(name, setting)
    if not hasattr(module, attribute):
        raise StageError(f"{setting}: {name}: {place} has no {attribute}")
    return getattr(module, attribute)


def place_of(name: str, setting: str) -> str:
    """The file that such a name leads to. Raises StageError."""
    return str(_module_of(name, setting).__file__)


def _module_of(name: str, setting: str) -> ModuleType:
    place = name.rpartition(":")[0]
    return _file(place, f"{setting}: {name}") if place.endswith(".py") else _module(place, f"{setting}: {name}")


def _file(path: str, name: str) -> ModuleType:
    place = Path(path).expanduser().absolute()
    if not place.is_file():
        raise StageError(f"{name}: no such file as {place}")
    module = sys.modules.get(place.stem)
    if module is not None:
        if str(getattr(module, "__file__", "")) == str(place):
            _send_by_value(module)
            return module
        raise StageError(f"{name}: a module {place.stem!r} is loaded already: name the file otherwise")
    spec = importlib.util.spec_from_file_location(place.stem, place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[place.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[place.stem]
        raise
    _send_by_value(module)
    return module


def _module(dotted: str, name: str) -> ModuleType:
    try:
        module = importlib.import_module(dotted)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{dotted}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it imports is not
        # A console script has not the folder it was called in on its path, as `python -m` has.
        sys.path.append(os.getcwd())
        try:
            importlib.invalidate_caches()
            module = importlib.import_module(dotted)
        except ModuleNotFoundError:
            sys.path.remove(os.getcwd())
            raise StageError(
                f"{name}: python finds no module {dotted}: install its package, or run where it lies, or write "
                "path/file.py:Class"
            ) from None
    if not _installed(module):
        _send_by_value(sys.modules[dotted.partition(".")[0]])
    return module


def _installed(module: ModuleType) -> bool:
    """Does it lie where packages are installed, as it then must for the workers, too?"""
    places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()}
    return str(getattr(module, "__file__", "")).startswith(tuple(f"{place}{os.sep}" for place in places))


def _send_by_value(module: ModuleType) -> None:
    """Send the module's functions to workers as a whole and not by name: they cannot import what lies on the driver's
    path alone."""
    try:
        from pyspark import cloudpickle
    except ImportError:  # nothing travels where there is no Spark
        return
    cloudpickle.register_pickle_by_value(module)


def arrange(built_in: Sequence[Stage], outside: Sequence[Stage] = ()) -> list[Stage]:
    """All stages in their order; each one from outside directly behind the last of those that it names in `after`.

    Raises StageError for a stage that does not fit: names that are taken, tables that nobody writes before it …
    """
    stages = list(built_in)
    for stage in outside:
        _fits(stage, stages)
        writers = {table: s.name for s in stages for table in s.tables}
        names = [s.name for s in stages]
        stage.after = tuple(dict.fromkeys(writers.get(a, a) for a in stage.after))
        unknown = [a for a in stage.after if a not in names]
        if unknown or not stage.after:
            raise StageError(
                f"stage {stage.name}: after = {stage.after!r}: name at least one stage or table of {', '.join(names)}"
            )
        last = max(names.index(a) for a in stage.after)
        place = last + 1
        # Behind those from outside that were put there before: the order of the config.
        while place < len(stages) and stages[place] in outside:
            place += 1
        if place == len(stages):
            raise StageError(
                f"stage {stage.name}: after = {stage.after!r}: {stages[-1].name} ends the dataset and counts "
                "the stages before it; stand before that one"
            )
        stage.job = stage.job or stages[last].job
        stages.insert(place, stage)
    for stage in outside:
        _reads_what_is_written(stage, stages)
        _in_time(stage, stages, "narrows", stage.narrows)
        _in_time(stage, stages, "replaces", stage.replaces)
        _has_all_columns(stage, stages)
    return stages


_RESERVED = {"rejects", "input", "units", "forgotten_units", "kb", "i2e", "train", "evaluation", "export"}
_LISTS = ("after", "reads", "features", "sections", "guarded")
_SCOPES = ("unit", "whole")


def _fits(stage: Stage, stages: Sequence[Stage]) -> None:
    """Raises StageError for a declaration that contradicts itself or another stage's."""
    name = getattr(stage, "name", "")
    if not _is_name(name):
        raise StageError(f"stage {type(stage).__name__}: name = {name!r}: letters, digits and _ alone, _ not first")
    # The first fault: those behind it read what it is about.
    for fault in chain(_form(stage), _tables_and_passes(stage), _names_taken(stage, stages)):
        raise StageError(f"stage {name}: {fault}")


def _is_name(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) is not None


def _form(stage: Stage) -> Iterator[str]:
    """What is not of the kind that it must be."""
    for words in ("does", "rows_are"):
        if not isinstance(getattr(stage, words, None), str) or not getattr(stage, words):
            yield f"set `{words}`, a few words"
    for listed in _LISTS:
        if not isinstance(getattr(stage, listed), tuple):
            yield f"{listed} = {getattr(stage, listed)!r}: write a tuple, ({getattr(stage, listed)!r},)"
    if stage.scope not in _SCOPES:
        yield f"scope = {stage.scope!r}: one of {', '.join(_SCOPES)}"
    if not isinstance(stage.reasons, Mapping) or not all(isinstance(why, str) for why in stage.reasons.values()):
        yield "reasons: write each reason with its sentence, {reason: sentence}"
    if not isinstance(stage.tables, Mapping) or not all(isinstance(t, Table) for t in stage.tables.values()):
        yield "tables: write {name: Table(schema, key=(…,), holds=…)}"
    if stage.passes is not None and not isinstance(stage.passes, Passed):
        yield f"passes = {stage.passes!r}: write Passed(table, (key, …))"
    if stage.Settings is not None and not (isinstance(stage.Settings, type) and issubclass(stage.Settings, Section)):
        yield "Settings: let it derive from i2e_pipeline.Section"
    kinds = {n: f.annotation for n, f in Config.model_fields.items()}
    known = [n for n, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Section)]
    if unknown := [s for s in stage.sections if s not in known]:
        yield f"sections: the config has no {', '.join(unknown)}; it has {', '.join(known)}"
    if type(stage).plan is Stage.plan and type(stage).carry_out is Stage.carry_out:
        yield "define `plan`: which rows go to which kernel?"


def _tables_and_passes(stage: Stage) -> Iterator[str]:
    for table, declared in stage.tables.items():
        columns = declared.schema.names
        if not _is_name(table) or table in _RESERVED:
            yield f"there can be no table {table!r}: letters, digits and _ alone, and none of {', '.join(_RESERVED)}"
        if not declared.key or not set(declared.key) <= {*columns, "unit"}:
            yield f"table {table!r}: key = {declared.key!r}: name columns of {', '.join(columns)}"
        if "unit" in columns:
            yield f"table {table!r}: `unit` is the folder's name: leave it out of the schema, and out of a unit's rows"
    passed = stage.passes
    if passed is None:
        if stage.narrows or stage.replaces or stage.features or stage.reasons:
            yield "set `passes`: in which table, by which key, are the rows that it passes on?"
        return
    schema = stage.tables[passed.table].schema if passed.table in stage.tables else pa.schema([])
    wanted = (*passed.narrows_by, *((passed.where_null,) if passed.where_null else ()), *stage.features)
    if lacking := [c for c in wanted if c not in schema.names]:
        yield f"passes: its tables have no {', '.join(lacking)} in {passed.table!r}"
        return
    if stage.features and set(stage.tables[passed.table].key) != set(passed.key):
        yield f"features need one row a key: let the key of {passed.table} be passes.key"
    for feature in stage.features:
        kind = schema.field(feature).type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
            yield f"features: {feature} is {kind}, and not a number"


def _names_taken(stage: Stage, stages: Sequence[Stage]) -> Iterator[str]:
    taken = {s.name for s in stages} | {table for s in stages for table in s.tables}
    for own in (stage.name, *stage.tables):
        if own in taken:
            yield f"there is a stage or table {own!r} already: name it otherwise"
    # What `label` has beside them when it joins the features.
    columns = {c for s in stages for t in s.tables.values() if t.narrowable for c in t.schema.names}
    columns |= {feature for s in stages for feature in s.features}
    for feature in stage.features:
        if feature in columns:
            yield f"features: there is a column {feature!r} already: name it otherwise"


def _reads_what_is_written(stage: Stage, stages: Sequence[Stage]) -> None:
    before = list(stages[: stages.index(stage)])
    writers = {table: s for s in before for table in s.tables}
    known = behind(stage, stages)
    for table in stage.reads:
        if table not in writers:
            raise StageError(
                f"stage {stage.name} reads {table!r}, and no stage before it writes that; there are "
                f"{', '.join(writers)}"
            )
        if writers[table].name not in known:
            raise StageError(f"stage {stage.name} reads {table!r}: put {writers[table].name!r} into `after`")


def _in_time(stage: Stage, stages: Sequence[Stage], does: str, table: str | None) -> None:
    """Raises StageError where a table is narrowed, or replaced, after somebody read it: stages would count different
    rows of it. One that makes segments counts none: what it has made too much of is not asked for."""
    if table is None:
        return
    at = stages.index(stage)
    writer = next((s for s in stages[:at] if table in s.tables), None)
    if writer is None:
        raise StageError(f"stage {stage.name} {does} {table!r}, and no stage before it writes that")
    if not writer.tables[table].narrowable:
        narrowable = [t for s in stages for t, declared in s.tables.items() if declared.narrowable]
        raise StageError(f"stage {stage.name} {does} {table!r}, which cannot be; these can: {', '.join(narrowable)}")
    for earlier in stages[stages.index(writer) + 1 : at]:
        if table in earlier.reads and table not in (earlier.narrows, earlier.replaces) and earlier.scope != "segments":
            raise StageError(
                f"stage {stage.name} {does} {table!r} behind {earlier.name}, which reads it: stand before that one "
                f"(after = ({writer.name!r},))"
            )
    assert stage.passes is not None
    if lacking := [c for c in stage.passes.narrows_by if c not in writer.tables[table].schema.names]:
        raise StageError(f"stage {stage.name} {does} {table!r}, which has no column {', '.join(lacking)}")


def _has_all_columns(stage: Stage, stages: Sequence[Stage]) -> None:
    """Raises StageError where what takes a table's place is not as its readers know that."""
    if stage.replaces is None or stage.passes is None:
        return
    of = next(s.tables[stage.replaces] for s in stages if stage.replaces in s.tables)
    own = stage.tables[stage.passes.table]
    if lacking := [f.name for f in of.schema if f.name not in own.schema.names or own.schema.field(f.name) != f]:
        raise StageError(
            f"stage {stage.name} replaces {stage.replaces!r}, and its {stage.passes.table!r} has not the same "
            f"{', '.join(lacking)}"
        )
    if tuple(own.key) != tuple(of.key):
        raise StageError(f"stage {stage.name} replaces {stage.replaces!r}, whose key is {of.key!r}, not {own.key!r}")
