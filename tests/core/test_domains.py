"""Domains: what an address's host is, in all the ways in which people write addresses, and which list names it."""

from __future__ import annotations

from urllib.parse import urlsplit

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.core.domains import Domains, bare_hosts, checked, hosts


def host(url: str | None) -> str | None:
    found: str | None = hosts(pa.array([url], pa.string()))[0].as_py()
    return found


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://www.Example.org/a.jpg?x=//y.org/", "www.example.org"),
        ("http://user:word@img.example.org:8080/a", "img.example.org"),
        ("ftp://a@b@example.org", "example.org"),
        ("//cdn.example.org./a", "cdn.example.org"),
        ("  http://example.org/", "example.org"),
        ("http://example.org?a", "example.org"),
        ("http://example.org#a", "example.org"),
        ("http://localhost/a", "localhost"),
        ("http://good.org\\@bad.org/", "good.org"),
        ("http://[2001:db8::1]:80/a", "2001:db8::1"),
        ("example.org/a", "example.org"),
        ("example.org/a//b", "example.org"),
        ("example.org:80/a//b", "example.org"),
        ("example.org?to=http://other.org/", "example.org"),
        ("user@example.org/a//b", "example.org"),
        ("HTTP://M\u00dcNCHEN.de/\u00e4 b.jpg", "xn--mnchen-3ya.de"),
        ("m\u00fcnchen\u3002de/a//b", "xn--mnchen-3ya.de"),
        ("http://m%C3%BCnchen.de/", "xn--mnchen-3ya.de"),
        ("http://ex%61mple.org/", "example.org"),
        ("http://xn--mnchen-3ya.de/", "xn--mnchen-3ya.de"),
        ("pictures//a.jpg", None),
        ("data:image/png;base64,AAAA//AA", None),
        ("https:example.org", None),
        ("http://", None),
        ("http:///a.org", None),
        ("", None),
        (None, None),
        ("http://a..\u00fc.de", None),
        ("http://" + "a." * 200 + "org", None),
    ],
)
def test_the_host_of_an_address(url: str | None, name: str | None) -> None:
    assert host(url) == name


PARTS = st.text("abc.-", min_size=1, max_size=12)


@given(
    scheme=st.sampled_from(["http://", "HTTPS://", "//"]), user=st.sampled_from(["", "u@", "u:w@"]), name=PARTS,
    port=st.sampled_from(["", ":1"]), path=st.text("/?#@:.a", max_size=8).map(lambda text: f"/{text}" if text else ""),
)  # fmt: skip
def test_of_whole_addresses_it_is_what_python_parts(scheme: str, user: str, name: str, port: str, path: str) -> None:
    expected = (urlsplit(f"{scheme}{user}{name}{port}{path}").hostname or "").rstrip(".")
    assert host(f"{scheme}{user}{name}{port}{path}") == (expected or None)


@given(st.lists(st.one_of(st.none(), st.text(max_size=30), st.text("a\u00fc./:@%[]\\ ", max_size=12)), max_size=5))
def test_whatever_stands_there_is_read_and_each_row_by_itself(urls: list[str | None]) -> None:
    """Catches: one odd address that ends a task, or that moves the hosts of others."""
    kept = [None if url is None else "".join(c for c in url if not 0xD800 <= ord(c) < 0xE000) for url in urls]
    assert hosts(pa.array(kept, pa.string())).to_pylist() == [host(url) for url in kept]


@given(st.lists(PARTS.map(lambda text: f"http://{text}/"), min_size=1, max_size=6), st.sets(PARTS, max_size=4))
def test_a_list_holds_what_it_names_and_all_below(urls: list[str], names: set[str]) -> None:
    listed = {name.strip(".") for name in names} - {""}

    def below(url: str) -> bool:
        name = host(url)
        return name is not None and any(name == one or name.endswith(f".{one}") for one in listed)

    assert Domains(listed).hold(pa.array(urls)).tolist() == [below(url) for url in urls]


def test_letters_of_a_list_and_of_an_address_may_be_written_in_either_way() -> None:
    urls = pa.array(["http://img.m\u00fcnchen.de/1", "img.xn--mnchen-3ya.de/a//2", "http://munchen.de/3"])
    for written in ("m\u00fcnchen.de", "*.M\u00dcNCHEN.de", "m\u00fcnchen\u3002de", "xn--mnchen-3ya.de"):
        assert Domains([checked(written)]).hold(urls).tolist() == [True, True, False]
    assert not Domains(())
    for bad in ("no domain", "http://example.org", "\u00fc" * 70 + ".de"):
        with pytest.raises(ValueError, match=r"name of a host|is no domain"):
            checked(bad)


def test_www_is_the_same_site_where_something_is_left_of_it() -> None:
    urls = pa.array(["http://www.a.org/", "http://www.org/", "http://www.a/", "http://wwww.a.org"])
    assert bare_hosts(urls).to_pylist() == ["a.org", "www.org", "www.a", "wwww.a.org"]
