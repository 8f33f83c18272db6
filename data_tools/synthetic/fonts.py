"""Finds fonts, the characters that each can draw, and the width of text."""

import functools
import hashlib
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
from PIL import ImageFont

from mmchat.errors import UserError
from mmchat.extras import require

SHIPPED, SYSTEM = "shipped", "system"
"""Names of font locations: matplotlib's fonts, which are the same on every machine, and the fonts of fontconfig."""
FONTS_HELP = f"folders of fonts, `{SHIPPED}` (matplotlib's fonts) or `{SYSTEM}` (all fonts that fontconfig lists)"
SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
ASCII = frozenset(map(chr, range(32, 127)))
_SYMBOLS = ("STIXSiz", "STIXNonUni", "LastResort", "cm", "DejaVuSansDisplay", "DejaVuSerifDisplay")
"""Fonts of matplotlib that are for formulas or whose glyphs are not at the usual code points."""
_FAMILY, _STYLE, _TYPOGRAPHIC_FAMILY, _TYPOGRAPHIC_STYLE = 1, 2, 16, 17
"""Name ids in a font's `name` table (OpenType 1.9, "name")."""


@dataclass(frozen=True)
class Face:
    """One style of a font family. index: position in a font collection (.ttc)."""

    path: str
    index: int
    family: str
    style: str
    characters: frozenset[str] = field(repr=False)

    def covers(self, text: Iterable[str]) -> bool:
        return self.characters.issuperset(text)

    def at(self, size: int) -> ImageFont.FreeTypeFont:
        """The font at a size in pixels."""
        return _opened(self.path, self.index, size)

    def __hash__(self) -> int:
        return hash((self.path, self.index))


@functools.lru_cache(maxsize=512)
def _opened(path: str, index: int, size: int) -> ImageFont.FreeTypeFont:
    # Basic layout draws one glyph per character. Latin and Chinese need no shaping, which is several times slower.
    return ImageFont.truetype(path, size, index, layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=200_000)
def width(face: Face, size: int, text: str) -> float:
    """Advance width of the text in pixels."""
    return face.at(size).getlength(text)


def find_faces(places: Sequence[str]) -> list[Face]:
    """Faces that cover ASCII, one per family and style (the first found), sorted by name.

    Args:
        places: folders, `shipped` or `system`.

    Raises:
        UserError: a place is not a folder, or no face covers ASCII.
    """
    faces: dict[tuple[str, str], Face] = {}
    for path in (path for place in places for path in _files(place)):
        for face in _read(path):
            if face.covers(ASCII):
                faces.setdefault((face.family, face.style), face)
    if not faces:
        raise UserError(
            f"no font that covers ASCII in {', '.join(places)}; give a folder of {', '.join(SUFFIXES)}, "
            f"`{SHIPPED}` or `{SYSTEM}`"
        )
    return [faces[name] for name in sorted(faces)]


def families(faces: Iterable[Face]) -> list[str]:
    return sorted({face.family for face in faces})


def digest(faces: Iterable[Face]) -> str:
    """SHA-256 of the font files. The same seed draws other images with other fonts."""
    total = hashlib.sha256()
    for path in sorted({face.path for face in faces}, key=lambda path: Path(path).name):
        total.update(hashlib.sha256(Path(path).read_bytes()).digest())
    return total.hexdigest()


def _files(place: str) -> list[Path]:
    if place == SHIPPED:
        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        return sorted(path for path in folder.glob("*.ttf") if not path.name.startswith(_SYMBOLS))
    if place == SYSTEM:
        try:
            listed = subprocess.run(["fc-list", "--format", "%{file}\n"], capture_output=True, text=True, check=True)
        except FileNotFoundError:
            raise UserError("`system` fonts need fontconfig's fc-list, which is not installed; give a folder") from None
        paths = set(map(Path, listed.stdout.splitlines()))
    elif Path(place).is_dir():
        paths = set(Path(place).rglob("*"))
    else:
        raise UserError(f"--fonts {place} is not a folder; give a folder, `{SHIPPED}` or `{SYSTEM}`")
    return sorted(path for path in paths if path.suffix.lower() in SUFFIXES)


def _read(path: Path) -> list[Face]:
    """Every face in a file; none if the file is damaged, has only bitmaps, or has no character map."""
    require("fontTools")
    from fontTools.ttLib import TTCollection, TTFont, TTLibError

    try:
        collection = path.suffix.lower() in (".ttc", ".otc")
        fonts = TTCollection(path, lazy=True).fonts if collection else [TTFont(path, lazy=True)]
        return [_face(path, index, font) for index, font in enumerate(fonts) if font.getBestCmap()]
    except (TTLibError, KeyError, OSError):
        return []


def _face(path: Path, index: int, font: Any) -> Face:
    names = font["name"]
    family = names.getDebugName(_TYPOGRAPHIC_FAMILY) or names.getDebugName(_FAMILY) or path.stem
    style = names.getDebugName(_TYPOGRAPHIC_STYLE) or names.getDebugName(_STYLE) or "Regular"
    return Face(str(path), index, family, style, frozenset(map(chr, font.getBestCmap())))
