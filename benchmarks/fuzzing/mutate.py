"""Changes bytes as damage, and as somebody who means harm, would."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Sequence
from typing import Any

_NUMBERS = (
    0,
    1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    511,
    512,
    32767,
    32768,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
)
_TEXTS = (
    b"\0",
    b"\n",
    b"\r\n",
    b"\t",
    b",",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b"[[[[[[[[",
    b"null",
    b"NaN",
    b"1e999",
    b"-1",
    b"99999999999999999999",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xc0\x80",
    b"../",
    b"%s",
    b"&amp;",
    b"<",
    b">",
    b"\\ud800",
    b"\xe2\x80\xae",
    b"\x1b[",
    b"*a",
    b"&a",
    b"<<",
    b"!!",
    b": ",
    b"Q0",
    b"Q-1",
)


ODD = (
    None, True, 0, -1, 7, 1.5, 1e308, 2**63, 2**70, "", "x", ".", "..", "../victim", "/victim", "a/b", "a\0b", "\ud800",
    [], {}, [1], {"a": "b"}, float("nan"),
)  # fmt: skip


def odd(stored: bytes, rng: random.Random) -> bytes:
    """A JSON record with something else in the place of one of its values."""
    tree = json.loads(stored)
    node: Any = tree
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = rng.choice(keys)
        below = node[key]
        if not isinstance(below, dict | list) or not below or rng.random() < 0.2:
            node[key] = rng.choice(ODD)
            return json.dumps(tree).encode()
        node = below


def mutated(stored: bytes, rng: random.Random, others: Sequence[bytes] = (), most: int = 8) -> bytes:
    """The bytes after one change, or up to `most`; of `others` pieces are taken over."""
    data = bytearray(stored)
    for _ in range(1 if rng.random() < 0.5 else rng.randint(0, most)):
        at = _place(len(data), rng)
        kind = rng.randrange(10)
        if kind == 0 and data:  # a bit
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:  # a byte
            data[at] = rng.randrange(256)
        elif kind == 2:  # a number that is a border of something
            number = rng.choice(_NUMBERS)
            size = rng.choice([1, 2, 4, 8])
            packed = struct.pack(rng.choice("<>") + "Q", number)
            data[at : at + size] = packed[:size] if packed[0] else packed[-size:]
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.choice([1, 2, 4, 16, 512]))
        elif kind == 4:
            data[at:at] = rng.choice(_TEXTS) * rng.choice([1, 1, 1, 2, 64])
        elif kind == 5:
            del data[at : at + rng.choice([1, 2, 4, 16, 512])]
        elif kind == 6:  # a piece of it once more, elsewhere
            start = _place(len(data), rng)
            piece = data[start : start + rng.choice([4, 16, 128, 1024])]
            data[at : at + (len(piece) if rng.random() < 0.5 else 0)] = piece
        elif kind == 7 and others:
            other = rng.choice(others)
            start = _place(len(other), rng)
            data[at : at + rng.choice([0, 16, 256])] = other[start : start + rng.choice([16, 256, 4096])]
        elif kind == 8:
            data[at:] = b"" if rng.random() < 0.3 else data[at:]
        elif data:
            piece = rng.choice([b"\0", b"\xff", b" ", b"0", b"9"])
            size = rng.choice([1, 4, 8, 64])
            data[at : at + size] = piece * size
    return bytes(data)


def _place(size: int, rng: random.Random) -> int:
    """A place; headers and footers are hit as often as all that lies between."""
    if not size:
        return 0
    where = rng.random()
    if where < 0.3:
        return rng.randrange(min(size, 512))
    if where < 0.5:
        return size - 1 - rng.randrange(min(size, 1024))
    return rng.randrange(size)


def text(rng: random.Random, length: int = 40) -> str:
    """Any characters: of all planes, marks without a letter, halves of pairs, what turns the order, what is no
    character."""
    ranges = (
        (0x20, 0x7E),
        (0x20, 0x7E),
        (0xA0, 0x24F),
        (0x300, 0x36F),
        (0x370, 0x52F),
        (0x590, 0x6FF),
        (0x900, 0xDFF),
        (0xE00, 0xFFF),
        (0x1100, 0x11FF),
        (0x1E00, 0x20CF),
        (0x2E80, 0x9FFF),
        (0xA000, 0xDFFF),
        (0xF900, 0xFFFF),
        (0x10000, 0x1FFFF),
        (0x20000, 0x10FFFF),
        (0, 0x1F),
        (0x7F, 0x9F),
    )
    few = rng.sample(ranges, rng.randint(1, 4))
    return "".join(chr(rng.randint(*rng.choice(few))) for _ in range(rng.randrange(length)))
