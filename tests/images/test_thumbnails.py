"""Thumbnails open hostile bytes; and there is one way to open an image in the whole package."""

from __future__ import annotations

import ast
import base64
import io
import subprocess
from pathlib import Path

import pytest
from PIL import EpsImagePlugin, Image

from i2e_pipeline.images.thumbnails import Thumbnails

PACKAGE = Path(__file__).parents[2] / "i2e_pipeline"
EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 40 40
%%EndComments
0 0 1 setrgbcolor 0 0 40 40 rectfill
showpage
%%EOF
"""


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program `gs` that leaves a mark: the mark's path."""
    mark = tmp_path / "gs-was-run"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ntouch "{mark}"\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # what Pillow found before
    return mark


def test_postscript_never_reaches_ghostscript(ghostscript: Path) -> None:
    """Catches: a page that opens rejected bytes with every plugin of Pillow starts Ghostscript on the driver."""
    with pytest.raises((OSError, subprocess.CalledProcessError)):  # the trap is set
        Image.open(io.BytesIO(EPS)).load()
    assert ghostscript.exists()
    ghostscript.unlink()
    shown = Thumbnails()(EPS)
    assert (shown.uri, shown.why, shown.detail) == (None, "unsupported_format", "PostScript")
    assert not ghostscript.exists()


def test_no_bytes_no_picture_and_nothing_to_explain() -> None:
    assert Thumbnails()(None).why == Thumbnails()(b"").why == ""


def test_a_thumbnail_is_a_small_jpeg_upright_on_white() -> None:
    """Catches: an alpha channel that is dropped shows the black below it; a photo that lies on its side."""
    picture = Image.new("RGBA", (400, 200), (0, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    picture.save(stream, "PNG", exif=exif)
    uri = Thumbnails(side=100)(stream.getvalue()).uri
    assert uri is not None
    head, _, data = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    small = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (small.format, small.size) == ("JPEG", (50, 100))
    assert min(low for low, _ in small.getextrema()) > 250


def openers(source: str) -> list[str]:
    """How a module opens images by itself: `line: what`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in ("imread", "decode_image", "decode_jpeg", "read_image"):
            found.append(f"{node.lineno}: {node.attr}")
        if isinstance(node, ast.Attribute) and node.attr == "open" and ast.unparse(node.value).endswith("Image"):
            found.append(f"{node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.ImportFrom) and node.module == "PIL.Image":
            found += [f"{node.lineno}: from PIL.Image import {a.name}" for a in node.names if a.name == "open"]
    return found


def test_only_decode_opens_images() -> None:
    """Catches: a second way to open an image, without the limits of the first."""
    found = {
        path.relative_to(PACKAGE).as_posix(): openers(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    assert len(found) > 100
    assert {name: lines for name, lines in found.items() if lines and name != "images/decode.py"} == {}
    assert len(found["images/decode.py"]) == 1


@pytest.mark.parametrize(
    "source",
    ["Image.open(x)", "PIL.Image.open(x)", "from PIL.Image import open", "cv2.imread(x)", "read = PIL.Image.open"],
)
def test_another_opener_is_found(source: str) -> None:
    assert openers(source)
