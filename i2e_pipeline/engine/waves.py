"""Waves: which units a stage works on in one Spark job, and what becomes of those that fail.

A wave is bounded in units, rows, bytes and minutes. Its composition changes no row. When the job itself fails, and not
a unit in it, the units that are left are tried again in two halves, then in quarters, until the one that fails is alone
and has a name; the others are made meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from threading import Lock

from i2e_pipeline.core.config import RunConfig

_FIRST_ROWS_PER_CORE = 20_000
HOPELESS = 3
"""So many units failed by themselves and none made yet: the units are not the cause."""
_GIVEN_UP = 100
"""The same where some were made before, one after the other: each costs a job."""


class Waves:
    """The units of one stage that are to do, handed out wave by wave; its callers may be threads."""

    def __init__(
        self, units: Sequence[str], rows: Mapping[str, int], gb: Mapping[str, float], limits: RunConfig, cores: int
    ) -> None:
        """`rows` and `gb`: of each unit; what is not in them counts nothing."""
        self._left = deque(units)
        self._again: deque[list[str]] = deque()
        self._rows, self._gb, self._limits = rows, gb, limits
        self._first_rows = _FIRST_ROWS_PER_CORE * cores
        self._rows_done, self._seconds = 0, 0.0
        self._strikes, self._made = 0, False
        self._lock = Lock()
        self._stopped = False

    def next(self) -> list[str]:
        """The units of the next wave, in their order; none when all were handed out."""
        with self._lock:
            if self._stopped:
                return []
            if self._again:
                # Behind a unit that failed the largest part: where bad units lie together, the others tell that not
                # everything fails.
                return self._again.pop() if self._strikes else self._again.popleft()
            wave: list[str] = []
            rows, gb, most_rows = 0, 0.0, self._most_rows()
            while self._left and len(wave) < self._limits.wave_units:
                unit = self._left[0]
                rows += self._rows.get(unit, 0)
                gb += self._gb.get(unit, 0.0)
                if wave and (rows > most_rows or gb > self._limits.wave_gb):
                    break
                wave.append(self._left.popleft())
            return wave

    def _most_rows(self) -> float:
        if not self._seconds:
            return min(self._limits.wave_rows, self._first_rows)
        # Waves side by side share the cores: what one of them did in its time is what the next will do.
        return min(self._limits.wave_rows, self._rows_done / self._seconds * 60 * self._limits.wave_minutes)

    def done(self, units: Sequence[str], seconds: float) -> None:
        """A wave has made these units in so many seconds."""
        with self._lock:
            self._rows_done += sum(self._rows.get(unit, 0) for unit in units)
            self._seconds += seconds

    def made(self) -> None:
        """A unit was made: what fails now is not everything."""
        with self._lock:
            self._strikes, self._made = 0, True

    def failed(self, left: Sequence[str]) -> bool:
        """A wave's job failed before these units were whole. Returns whether they will be tried again, in halves."""
        with self._lock:
            if len(left) < 2:
                # Only a unit that fails by itself says something: any number of halves may each hold a bad one.
                self._strikes += 1
                return False
            middle = len(left) // 2
            # The last halves first: a unit has its name after few jobs, and the others come between.
            self._again.extendleft([list(left[middle:]), list(left[:middle])])
            return True

    def hopeless(self) -> bool:
        """Whether everything fails."""
        with self._lock:
            return self._strikes >= (_GIVEN_UP if self._made else HOPELESS)

    def stop(self) -> None:
        """Hand out no more."""
        with self._lock:
            self._stopped = True
