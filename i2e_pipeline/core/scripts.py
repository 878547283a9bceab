"""Which script a text is in."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

# Scripts by Unicode block: first code point of each range that differs from the one before; "" is no letter of any.
# fmt: off
_BLOCKS: tuple[tuple[int, str], ...] = (
    (0x0000, ""), (0x0041, "Latin"), (0x005B, ""), (0x0061, "Latin"), (0x007B, ""), (0x00AA, "Latin"), (0x00AB, ""),
    (0x00BA, "Latin"), (0x00BB, ""), (0x00C0, "Latin"), (0x00D7, ""), (0x00D8, "Latin"), (0x00F7, ""),
    (0x00F8, "Latin"), (0x02B0, ""), (0x0370, "Greek"), (0x0400, "Cyrillic"), (0x0530, "Armenian"),
    (0x0590, "Hebrew"), (0x0600, "Arabic"), (0x0700, "Other"), (0x0750, "Arabic"), (0x0780, "Other"),
    (0x08A0, "Arabic"), (0x0900, "Devanagari"), (0x0980, "Bengali"), (0x0A00, "Gurmukhi"), (0x0A80, "Gujarati"),
    (0x0B00, "Other"), (0x0B80, "Tamil"), (0x0C00, "Telugu"), (0x0C80, "Kannada"), (0x0D00, "Malayalam"),
    (0x0D80, "Sinhala"), (0x0E00, "Thai"), (0x0E80, "Lao"), (0x0F00, "Tibetan"), (0x1000, "Myanmar"),
    (0x10A0, "Georgian"), (0x1100, "Hangul"), (0x1200, "Ethiopic"), (0x13A0, "Other"), (0x1780, "Khmer"),
    (0x1800, "Mongolian"), (0x18B0, "Other"), (0x1C80, "Cyrillic"), (0x1C90, "Georgian"), (0x1CC0, "Other"),
    (0x1D00, "Latin"), (0x1D2B, "Cyrillic"), (0x1D2C, "Latin"), (0x1DC0, ""), (0x1E00, "Latin"), (0x1F00, "Greek"),
    (0x2000, ""), (0x2C00, "Other"), (0x2C60, "Latin"), (0x2C80, "Other"), (0x2D00, "Georgian"), (0x2D30, "Other"),
    (0x2DE0, "Cyrillic"), (0x2E00, ""), (0x2E80, "Han"), (0x2FE0, ""), (0x3005, "Han"), (0x3006, ""),
    (0x3041, "Kana"), (0x3100, "Other"), (0x3130, "Hangul"), (0x3190, ""), (0x31A0, "Other"), (0x31F0, "Kana"),
    (0x3200, ""), (0x3400, "Han"), (0xA000, "Other"), (0xA640, "Cyrillic"), (0xA6A0, "Other"), (0xA720, "Latin"),
    (0xA800, "Other"), (0xAC00, "Hangul"), (0xD7FC, ""), (0xF900, "Han"), (0xFB00, "Latin"), (0xFB07, "Other"),
    (0xFB1D, "Hebrew"), (0xFB50, "Arabic"), (0xFE00, ""), (0xFE70, "Arabic"), (0xFEFF, ""), (0xFF21, "Latin"),
    (0xFF3B, ""), (0xFF41, "Latin"), (0xFF5B, ""), (0xFF66, "Kana"), (0xFFA0, "Hangul"), (0xFFE0, ""),
    (0x10000, "Other"), (0x1F000, ""), (0x20000, "Han"), (0x323B0, ""),
)
# fmt: on
_BLOCK_STARTS = np.array([start for start, _ in _BLOCKS], dtype=np.uint32)
_SCRIPTS = ("Common", *sorted({name for _, name in _BLOCKS if name}))
_BLOCK_SCRIPTS = np.array([_SCRIPTS.index(name) if name else 0 for _, name in _BLOCKS], dtype=np.int64)


def script(text: str) -> str:
    """The script of most letters of a text ("Latin", "Cyrillic", "Han", ...); "Common" if it has none."""
    return str(scripts(pa.array([text]))[0])


def scripts(texts: pa.Array) -> pa.Array:
    """`script` of each of a string array; ties go to the first script in alphabetical order."""
    strings = texts.to_pylist()
    lengths = np.fromiter(map(len, strings), dtype=np.int64, count=len(strings))
    points = np.frombuffer("".join(strings).encode("utf-32-le", "replace"), dtype=np.uint32)
    found = _BLOCK_SCRIPTS[np.searchsorted(_BLOCK_STARTS, points, side="right") - 1]
    rows = np.repeat(np.arange(len(strings)), lengths)
    counts = np.bincount(rows * len(_SCRIPTS) + found, minlength=len(strings) * len(_SCRIPTS))
    counts = counts.reshape(len(strings), len(_SCRIPTS))
    best = np.where(counts[:, 1:].any(axis=1), counts[:, 1:].argmax(axis=1) + 1, 0)
    return pa.DictionaryArray.from_arrays(pa.array(best, pa.int32()), pa.array(_SCRIPTS)).cast(pa.string())
