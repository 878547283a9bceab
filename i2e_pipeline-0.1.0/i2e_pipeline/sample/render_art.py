"""Render the drawings of the sample world from free emoji and flag sets (development only; needs npm and resvg-py).

    for p in @twemoji/svg flag-icons region-flags @iconify-json/{noto,noto-v1,fluent-emoji-flat,emojione,fxemoji} \\
             @iconify-json/{streamline-emojis,circle-flags,flagpack,game-icons,mdi,fa6-solid}; do npm pack $p; done
    for t in *.tgz; do mkdir -p DIR/${t%.tgz}; tar xzf $t -C DIR/${t%.tgz}; done
    python -m i2e_pipeline.sample.render_art --packages DIR

writes, beside this file, `art/<style>.webp` (a sheet of drawings per art style, RGBA) and `art/index.json` (what lies
where).
A fresh machine needs neither npm nor this script: the rendered sheets ship (licences: art/LICENSES.md).
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from i2e_pipeline.images.decode import open_image
from i2e_pipeline.sample.planets import PLANETS, VARIANTS, planet_svg
from i2e_pipeline.sample.world import ART, load_world

SIDE = 128
"""Pixels of a drawing's longer side, before it is posed in a scene."""

# The names that this set uses. Where it has both a side view and a face, the side view is taken.
FXEMOJI = {
    "mouse": "mouseside", "dog": "dogside", "cat": "catside", "pig": "pigside", "tiger": "tigerside",
    "leopard": "leopardside", "rabbit": "bunnyside", "ewe": "sheep", "two-hump-camel": "bactriancamel",
    "panda": "pandaface", "wolf": "wolfface", "computer-mouse": "twobuttonmouse", "keyboard": "wiredkeyboard",
    "ear-of-corn": "earofmaize", "hot-pepper": "chilipepper", "pizza": "sliceofpizza", "scissors": "blackscissors",
    "laptop": "personalcomputer", "tennis": "tennisball", "heart-suit": "blackheartsuit", "gem-stone": "gem",
    "castle": "europeancastle", "globe-showing-europe-africa": "europeafricaglobe", "star": "whitemediumstar",
    "bear": "bear", "basketball": "", "red-apple": "redapple", "sun": "whitesun", "trumpet": "trumpet",
}  # fmt: skip
GLYPHS = {
    "queen": {"game-icons": "chess-queen", "mdi": "chess-queen", "fa6-solid": "chess-queen"},
    "kiwi": {"game-icons": "kiwi-bird", "fa6-solid": "kiwi-bird"},
    "baseball-bat": {"game-icons": "baseball-bat", "mdi": "baseball-bat"},
}
WRONG = {("streamline", "turkey"), ("fxemoji", "star"), ("circle_flags", "flag:ar"), ("circle_flags", "flag:ie")}
"""Same name, another thing: a flag for the bird, a language for the country."""
INK = ("#2b2b33", "#7a4a21", "#b5382a", "#1f5f8b", "#d9d4c7")
"""Glyph sets have no colour of their own: each glyph is drawn in each of these."""


class IconSet:
    """One `@iconify-json` package: SVG bodies by name."""

    def __init__(self, folder: Path) -> None:
        data: dict[str, Any] = json.loads((folder / "icons.json").read_text())
        chars = folder / "chars.json"
        self.icons: dict[str, Any] = data["icons"]
        self.aliases: dict[str, Any] = data.get("aliases", {})
        self.size = (data.get("width", 16), data.get("height", data.get("width", 16)))
        self.chars: dict[str, str] = json.loads(chars.read_text()) if chars.exists() else {}

    def svg(self, name: str, colour: str = "currentColor") -> str | None:
        """The named icon as SVG, or None."""
        while name in self.aliases and name not in self.icons:
            name = self.aliases[name]["parent"]
        icon = self.icons.get(name)
        if icon is None:
            return None
        width, height = icon.get("width", self.size[0]), icon.get("height", self.size[1])
        left, top = icon.get("left", 0), icon.get("top", 0)
        body = icon["body"].replace("currentColor", colour)
        return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left} {top} {width} {height}">{body}</svg>'


def render(svg: str) -> Image.Image:
    """Draw, trim to what is visible, fit the longer side to SIDE."""
    import resvg_py

    # Twice the size, then reduced: the trimmed drawing still has SIDE true pixels.
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIDE))
    image = open_image(png).convert("RGBA")
    box = image.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox()
    if box is None:
        raise ValueError("an empty drawing")
    image = image.crop(box)
    scale = SIDE / max(image.size)
    return image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
    )


def _candidates(name: str) -> Iterator[str]:
    yield from (name, f"{name}-1", f"{name}-face", f"{name}-face-1", name.replace("-", ""))


def emoji_styles(packages: Callable[[str], Path]) -> Iterator[tuple[str, str, str]]:
    """(art style, entity, SVG) of everything that emoji sets draw."""
    sets = {
        style: IconSet(packages(f"iconify-json-{package}"))
        for style, package in (
            ("noto", "noto"), ("noto_v1", "noto-v1"), ("fluent", "fluent-emoji-flat"),
            ("emojione", "emojione"), ("fxemoji", "fxemoji"), ("streamline", "streamline-emojis"),
        )
    }  # fmt: skip
    code_of = {name: code for code, name in sets["noto"].chars.items()}
    twemoji = packages("twemoji-svg")
    for entity in load_world().depicted:
        name = entity.art
        if ":" in name or name in PLANETS or name in GLYPHS:
            continue
        for style, icons in sets.items():
            if style == "fxemoji":
                names = [FXEMOJI.get(name, name.replace("-", ""))]
            elif style in ("noto", "fluent") and icons.chars:
                code = code_of[name]
                names = [
                    icons.chars.get(code)
                    or icons.chars.get(code + "-fe0f")
                    or icons.chars.get(code.replace("-fe0f", ""), "")
                ]
            else:
                names = list(_candidates(name))
            svg = next((s for s in map(icons.svg, names) if s), None)
            if svg and (style, name) not in WRONG:
                yield style, entity.id, svg
        code = code_of[name].replace("-fe0f", "")
        yield "twemoji", entity.id, (twemoji / f"{code}.svg").read_text()


def flag_styles(packages: Callable[[str], Path]) -> Iterator[tuple[str, str, str]]:
    """(art style, entity, SVG) of every flag."""
    emojione = IconSet(packages("iconify-json-emojione"))
    circle, flagpack = (IconSet(packages(f"iconify-json-{p}")) for p in ("circle-flags", "flagpack"))
    twemoji, icons, region = packages("twemoji-svg"), packages("flag-icons"), packages("region-flags")
    for entity in load_world().depicted:
        if not entity.art.startswith("flag:"):
            continue
        code = entity.art[5:]
        region_file = region / "svg" / f"{code.upper()}.svg"
        if code.startswith("us-"):
            yield "circle_flags", entity.id, circle.svg(code) or ""
            yield "region_flags", entity.id, region_file.read_text()
            continue
        if code.startswith("gb-"):
            tag = "1f3f4-" + "-".join(f"e00{ord(c):02x}" for c in code.replace("-", "")) + "-e007f"
        else:
            tag = "-".join(f"{0x1F1E6 + ord(c) - 97:x}" for c in code)
        yield "twemoji", entity.id, (twemoji / f"{tag}.svg").read_text()
        yield "flag_icons", entity.id, (icons / "flags" / "4x3" / f"{code}.svg").read_text()
        for style, svg in (
            ("circle_flags", circle.svg(code)),
            ("flagpack", flagpack.svg("gb-ukm" if code == "gb" else code)),
        ):
            if svg and (style, entity.art) not in WRONG:
                yield style, entity.id, svg
        if region_file.exists():
            yield "region_flags", entity.id, region_file.read_text()
        slug = re.sub(r"[^a-z]+", "-", (entity.label if code != "us" else "united states").lower()).strip("-")
        for name in (f"flag-for-{slug}", f"flag-{slug}"):
            svg = emojione.svg(name)
            if svg:
                yield "emojione", entity.id, svg
                break


def own_styles(packages: Callable[[str], Path]) -> Iterator[tuple[str, str, str]]:
    """(art style, entity, SVG) of planets, drawn by planets.py, and of glyphs in several inks."""
    sets = {p: IconSet(packages(f"iconify-json-{p}")) for p in ("game-icons", "mdi", "fa6-solid")}
    for entity in load_world().depicted:
        if entity.art in PLANETS:
            for variant in range(VARIANTS):
                yield "drawn", entity.id, planet_svg(entity.art, variant)
        for package, name in GLYPHS.get(entity.art, {}).items():
            for ink in INK:
                yield package.replace("-", "_"), entity.id, sets[package].svg(name, ink) or ""


def pack(drawings: list[tuple[str, Image.Image]]) -> tuple[Image.Image, dict[str, list[list[int]]]]:
    """Rows of SIDE pixels on one sheet; entity → boxes [left, top, width, height]."""
    columns = 16
    sheet = Image.new("RGBA", (columns * SIDE, -(-len(drawings) // columns) * SIDE))
    where: dict[str, list[list[int]]] = {}
    for i, (entity, image) in enumerate(drawings):
        left, top = i % columns * SIDE, i // columns * SIDE
        sheet.paste(image, (left, top))
        where.setdefault(entity, []).append([left, top, *image.size])
    return sheet, where


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--packages", type=Path, required=True, help="folder of unpacked npm packages")
    root: Path = parser.parse_args().packages

    def packages(name: str) -> Path:
        found = sorted(root.glob(f"{name}-[0-9]*"))
        if not found:
            raise SystemExit(f"render_art: no package {name} under {root}")
        return found[-1] / "package"

    styles: dict[str, list[tuple[str, Image.Image]]] = {}
    for source in (emoji_styles, flag_styles, own_styles):
        for style, entity, svg in source(packages):
            try:
                styles.setdefault(style, []).append((entity, render(svg)))
            except ValueError as error:
                print(f"skipped {style} {entity}: {error}")
    index = {}
    for style, drawings in sorted(styles.items()):
        sheet, index[style] = pack(drawings)
        sheet.save(ART / f"{style}.webp", quality=88, alpha_quality=95, method=6)
        print(
            f"{style}: {len(drawings)} drawings of {len(index[style])} entities, "
            f"{(ART / f'{style}.webp').stat().st_size:,} bytes"
        )
    (ART / "index.json").write_text(json.dumps(index, sort_keys=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
