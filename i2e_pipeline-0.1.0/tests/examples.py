"""Hypothesis has one profile for the whole suite; a test that wants more than 100 examples says so with `examples`.

No deadline and no health check by the clock: a slow machine is no fault of the code. In CI the examples are the same in
every run, so that a change fails only for what it changed; elsewhere each run tries new ones.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

for name, share in {"tests": 1.0, "check": 0.2}.items():
    settings.register_profile(
        name,
        deadline=None,
        max_examples=int(100 * share),
        derandomize=os.environ.get("CI") == "true",
        suppress_health_check=[HealthCheck.too_slow],
    )


def examples(count: int) -> int:
    """`max_examples` of a test that wants `count` of `make test`; `make check` (profile "check") takes its share."""
    return max(5, count * settings.default.max_examples // 100)
