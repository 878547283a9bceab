"""What stages declare of their tables and rejects: the contract by which stages meet without knowing each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pyarrow as pa

from i2e_pipeline.core.schemas import REJECTS


@dataclass(frozen=True)
class Table:
    """A table that a stage writes."""

    schema: pa.Schema
    """Without `unit`: that column is in the folder's name."""
    key: tuple[str, ...] = ()
    """Columns that tell its rows apart."""
    holds: str = ""
    """What is in it, in a few words for the documentation."""
    narrowable: bool = False
    """Whether a later stage may leave rows of it out for the stages behind that one. Not if counts or files that were
    made from it would then be wrong."""


@dataclass(frozen=True)
class Passed:
    """Which rows a stage has passed on: those whose key is in one of its tables.

    All rows of a key leave the kernel one after the other.
    """

    table: str
    key: tuple[str, ...]
    where_null: str | None = None
    """Only rows in which this column is null count."""
    within: tuple[str, ...] = ()
    """Further columns by which a stage narrows: of a key that it passes on, only the rows stay that stand there with
    these, too. Counted are keys."""

    @property
    def narrows_by(self) -> tuple[str, ...]:
        return (*self.key, *self.within)


@dataclass(frozen=True)
class Catalogue:
    """All tables of a list of stages."""

    tables: Mapping[str, Table] = field(default_factory=dict)
    writers: Mapping[str, str] = field(default_factory=dict)
    """Table to the stage that writes it."""
    reasons: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Stage to its reject reasons, each with its sentence."""

    def schema(self, table: str) -> pa.Schema:
        """Raises KeyError, naming what is known, for a table that no stage declares."""
        if table == "rejects":
            return REJECTS
        if table not in self.tables:
            raise KeyError(f"no stage declares the table {table!r}; declared are {', '.join(self.tables)}")
        return self.tables[table].schema

    def widened(self, further: Mapping[str, pa.Schema]) -> Catalogue:
        """The same with further columns in some tables."""
        tables = {
            name: replace(table, schema=pa.schema([*table.schema, *further[name]])) if name in further else table
            for name, table in self.tables.items()
        }
        return replace(self, tables=tables)

    def explain(self, stage: str, reason: str) -> str:
        """The sentence of a stage's reason; of one that it does not declare, its name in words."""
        known = self.reasons.get(stage, {})
        return known.get(reason, reason.replace("_", " ").capitalize() + ".")
