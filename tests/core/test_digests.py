"""Lists of digests, as `b2sum` writes and reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.core import digests, files

_PATHS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), min_size=1).filter(files.is_below)


@given(st.dictionaries(_PATHS, st.binary().map(digests.of_bytes)))
def test_a_list_says_what_was_listed(by_path: dict[str, str]) -> None:
    assert digests.listed(digests.listing(by_path)) == by_path


@given(st.binary(max_size=200))
def test_any_bytes_are_a_list_or_a_value_error(content: bytes) -> None:
    try:
        found = digests.listed(content)
    except ValueError:
        return
    assert all(files.is_below(path) for path in found)


def test_a_list_that_is_none_names_its_line() -> None:
    good = f"{'0' * 32}  a\n"
    for wrong in (
        f"{'0' * 32}  {'a' * 256}\n",
        "\n",
        f"{'0' * 31}  a\n",
        f"{'0' * 32} *a\n",
        f"{'0' * 32}  /etc/passwd\n",
        good,
    ):
        with pytest.raises(ValueError, match="line 2 does not name a file and its digest"):
            digests.listed((good + wrong).encode())
