"""Pages of Wikipedia as its dumps have them."""

from __future__ import annotations

import bz2
from collections.abc import Sequence
from html import escape

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="{language}">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <dbname>{language}wiki</dbname>
    <base>https://{language}.wikipedia.org/wiki/Main_Page</base>
    <generator>MediaWiki 1.43.0-wmf.20</generator>
    <case>first-letter</case>
    <namespaces>
      <namespace key="-2" case="first-letter">{media}</namespace>
      <namespace key="0" case="first-letter" />
      <namespace key="1" case="first-letter">Talk</namespace>
      <namespace key="4" case="first-letter">Wikipedia</namespace>
      <namespace key="6" case="first-letter">{file}</namespace>
      <namespace key="10" case="first-letter">Template</namespace>
      <namespace key="14" case="first-letter">{category}</namespace>
    </namespaces>
  </siteinfo>
"""
FOOT = "</mediawiki>\n"
LOCAL = {"en": ("Media", "File", "Category"), "de": ("Medium", "Datei", "Kategorie")}


def head(language: str = "en") -> str:
    media, file, category = LOCAL[language]
    return HEAD.format(language=language, media=media, file=file, category=category)


def page(title: str, text: str, namespace: int = 0, redirect: str | None = None, model: str = "wikitext") -> str:
    """A page of an export, version 0.11."""
    led = "" if redirect is None else f'    <redirect title="{escape(redirect)}" />\n'
    return f"""  <page>
    <title>{escape(title, quote=False)}</title>
    <ns>{namespace}</ns>
    <id>{len(title)}</id>
{led}    <revision>
      <id>1194</id>
      <parentid>1193</parentid>
      <timestamp>2024-01-01T00:00:00Z</timestamp>
      <contributor>
        <username>Someone</username>
        <id>7</id>
      </contributor>
      <comment>/* x */ [[not a link]]</comment>
      <model>{model}</model>
      <format>text/x-wiki</format>
      <text bytes="{len(text.encode())}" sha1="x" xml:space="preserve">{escape(text, quote=False)}</text>
      <sha1>x</sha1>
    </revision>
  </page>
"""


def multistream(parts: Sequence[str]) -> bytes:
    """As pages-articles-multistream.xml.bz2: each part is a stream by itself."""
    return b"".join(bz2.compress(part.encode()) for part in parts)
