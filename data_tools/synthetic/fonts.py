"""Which fonts there are, which characters each of them can draw, and how wide text is in them."""

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
"""Words for places of fonts: what matplotlib brings, so that it is the same on every machine; what fontconfig lists."""
FONTS_HELP = f"where fonts are: folders, `{SHIPPED}` (matplotlib's own), `{SYSTEM}` (all that fontconfig lists)"
SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
ASCII = frozenset(map(chr, range(32, 127)))
_SYMBOLS = ("STIXSiz", "STIXNonUni", "LastResort", "cm", "DejaVuSansDisplay", "DejaVuSerifDisplay")
"""Files among matplotlib's own that are there for formulas, or whose characters stand in places of their own."""
_FAMILY, _STYLE, _TYPOGRAPHIC_FAMILY, _TYPOGRAPHIC_STYLE = 1, 2, 16, 17
"""Numbers of names in a font's `name` table (OpenType 1.9, "name")."""


@dataclass(frozen=True)
class Face:
    """One style of a family. index: its place in a collection of several (.ttc)."""

    path: str
    index: int
    family: str
    style: str
    characters: frozenset[str] = field(repr=False)

    def covers(self, text: Iterable[str]) -> bool:
        return self.characters.issuperset(text)

    def at(self, size: int) -> ImageFont.FreeTypeFont:
        """The face at a size in pixels."""
        return _opened(self.path, self.index, size)

    def __hash__(self) -> int:
        return hash((self.path, self.index))


@functools.lru_cache(maxsize=512)
def _opened(path: str, index: int, size: int) -> ImageFont.FreeTypeFont:
    # Basic: one glyph a character, which is all that Latin and Chinese need, and several times as fast as shaping.
    return ImageFont.truetype(path, size, index, layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=200_000)
def width(face: Face, size: int, text: str) -> float:
    """Pixels from the first glyph's origin to where the next would begin."""
    return face.at(size).getlength(text)


def find_faces(places: Sequence[str]) -> list[Face]:
    """The faces of all places, each family and style once (the first found), sorted by name.

    Args:
        places: folders, or the words `shipped` and `system`.

    Raises:
        UserError: a place is no folder, or there is no face that has the letters of English.
    """
    faces: dict[tuple[str, str], Face] = {}
    for path in (path for place in places for path in _files(place)):
        for face in _read(path):
            if face.covers(ASCII):
                faces.setdefault((face.family, face.style), face)
    if not faces:
        raise UserError(
            f"no font with the letters of English in {', '.join(places)}; name a folder of {', '.join(SUFFIXES)}, "
            f"`{SHIPPED}` or `{SYSTEM}`"
        )
    return [faces[name] for name in sorted(faces)]


def families(faces: Iterable[Face]) -> list[str]:
    return sorted({face.family for face in faces})


def digest(faces: Iterable[Face]) -> str:
    """SHA-256 of the fonts' bytes: with others the same seed would draw other images."""
    whole = hashlib.sha256()
    for path in sorted({face.path for face in faces}, key=lambda path: Path(path).name):
        whole.update(hashlib.sha256(Path(path).read_bytes()).digest())
    return whole.hexdigest()


def _files(place: str) -> list[Path]:
    if place == SHIPPED:
        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        return sorted(path for path in folder.glob("*.ttf") if not path.name.startswith(_SYMBOLS))
    if place == SYSTEM:
        try:
            listed = subprocess.run(["fc-list", "--format", "%{file}\n"], capture_output=True, text=True, check=True)
        except FileNotFoundError:
            raise UserError("`system` fonts need fontconfig's fc-list, which is not installed; name a folder") from None
        paths = set(map(Path, listed.stdout.splitlines()))
    elif Path(place).is_dir():
        paths = set(Path(place).rglob("*"))
    else:
        raise UserError(f"--fonts {place} is no folder; name one, `{SHIPPED}` or `{SYSTEM}`")
    return sorted(path for path in paths if path.suffix.lower() in SUFFIXES)


def _read(path: Path) -> list[Face]:
    """Every face in a file; none where it is damaged, has only bitmaps, or says nothing of characters."""
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
