"""What every sample is asked before it is written: is what was drawn what is said, and is all of it on the image?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels; right and bottom lie just outside."""


class DefectError(AssertionError):
    """A sample that does not show what its record says. It is the engine's mistake, not the user's."""


@dataclass(frozen=True)
class Piece:
    """One run of text as it stands on the image.

    box: of the ink. room: where it may stand, a column for instance. glue: what stands between it and the piece before.
    """

    text: str
    box: Box
    room: Box
    glue: str = ""


def check(pieces: Sequence[Piece], said: str, image: Box, where: str) -> None:
    """Raises DefectError if ink leaves its room or the image, or if the pieces in their order are not `said`."""
    for piece in pieces:
        for name, room in (("its room", piece.room), ("the image", image)):
            if not _inside(piece.box, room):
                raise DefectError(
                    f"{where}: {piece.text!r} covers {_shown(piece.box)} and leaves {name}, {_shown(room)}"
                )
    drawn = "".join(piece.glue + piece.text for piece in pieces)
    if drawn != said:
        place = next(
            (at for at, (a, b) in enumerate(zip(drawn, said, strict=False)) if a != b), min(len(drawn), len(said))
        )
        raise DefectError(
            f"{where}: from character {place + 1} on, {drawn[place : place + 40]!r} is drawn "
            f"and {said[place : place + 40]!r} said"
        )


def _inside(box: Box, room: Box) -> bool:
    return box[0] >= room[0] and box[1] >= room[1] and box[2] <= room[2] and box[3] <= room[3]


def _shown(box: Box) -> str:
    return "({:.0f}, {:.0f}, {:.0f}, {:.0f})".format(*box)


def check_turned(pieces: Sequence[Piece], degrees: float, side: int, where: str) -> None:
    """Raises DefectError if a page that is turned about its middle loses a corner of any ink."""
    if not degrees:
        return
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    for piece in pieces:
        for x, y in ((x, y) for x in piece.box[::2] for y in piece.box[1::2]):
            across, down = x - side / 2, y - side / 2
            if max(abs(cosine * across + sine * down), abs(cosine * down - sine * across)) > side / 2:
                raise DefectError(f"{where}: turned by {degrees:.2f} degrees, {piece.text!r} leaves the page")
