"""Answers that were given already, by what they depend on: nobody is asked twice.

An answer is kept as it came, and read anew whenever it is used. It is kept as soon as it is known, together with those
that came while the last ones were written: one file for each such group, and one in their place when a task has done a
unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from i2e_pipeline.core.schemas import ID
from i2e_pipeline.engine import kept

_FILES = 256
"""Files of a task that are put together at the latest."""
LONGEST = 2000
"""Characters of an answer that are kept."""
ANSWERS = pa.schema(
    [
        pa.field("key", ID, nullable=False),
        pa.field("pair_id", ID, nullable=False),
        pa.field("said", pa.string(), nullable=False),
    ]
)
"""`key` names the question by its content (question.key_of), `pair_id` is of the pair because of which it was asked."""


class Answers:
    """The answers of a unit. They are read when one is first looked for."""

    def __init__(self, folder: str, before: Sequence[str] = ()) -> None:
        """`folder`: where new ones are kept, too. `before`: folders of units whose place this one has taken."""
        self._folder, self._before = folder, before
        self._known: dict[bytes, str] | None = None
        self._paths: list[str] = []
        self._new: list[pa.Table] = []
        self.broken = 0
        """Files that were no longer what was written."""

    def known(self) -> Mapping[bytes, str]:
        """Answers by the keys of their questions."""
        if self._known is None:
            rows, self.broken = kept.read([self._folder, *self._before], ANSWERS)
            said = zip(rows.column("key").to_pylist(), rows.column("said").to_pylist(), strict=True)
            # Of two answers to one question the first by its letters, in whatever files they lie.
            self._known = {}
            for key, text in said:
                self._known[key] = min(text, self._known.get(key, text))
        return self._known

    def keep(self, given: Sequence[tuple[bytes, bytes, str]]) -> None:
        """Keep answers (key, pair_id, said): when this returns, no kill costs them."""
        if not given:
            return
        keys, pairs, said = (list(column) for column in zip(*given, strict=True))
        rows = pa.table({"key": keys, "pair_id": pairs, "said": said}, schema=ANSWERS)
        self._paths.append(kept.write(self._folder, rows))
        self._new.append(rows)
        if self._known is not None:
            self._known.update(zip(keys, said, strict=True))
        if len(self._paths) >= _FILES:
            self.settle()

    def settle(self) -> None:
        """Put one file in the place of those that were written here."""
        if len(self._paths) > 1:
            self._new = [pa.concat_tables(self._new)]
            self._paths = [kept.joined(self._folder, self._paths, self._new[0])]


def as_kept(said: str) -> str:
    """An answer as it can be stored: bounded, and without what is no text."""
    return said[:LONGEST].encode("utf-8", "replace").decode("utf-8").replace("\0", " ")
