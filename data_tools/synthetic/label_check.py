"""Checks of every sample before it is written: the drawn text equals the label, and all of it is inside the image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels; right and bottom are exclusive."""


class DefectError(AssertionError):
    """An image does not show what its label says. This is a bug of the generator, not of the user."""


@dataclass(frozen=True)
class Piece:
    """One run of text on the image.

    Attributes:
        box: bounding box of the ink.
        room: area in which the ink must be, such as a column.
        glue: text between the previous piece and this one.
    """

    text: str
    box: Box
    room: Box
    glue: str = ""


def check_label(pieces: Sequence[Piece], label: str, image: Box, where: str) -> None:
    """Check the pieces of an image against its label.

    Args:
        pieces: in reading order.
        where: name of the sample, for error messages.

    Raises:
        DefectError: ink is outside its room or the image, or the pieces do not spell `label`.
    """
    for piece in pieces:
        for name, room in (("its room", piece.room), ("the image", image)):
            if not _inside(piece.box, room):
                raise DefectError(
                    f"{where}: {piece.text!r} covers {_format(piece.box)} and leaves {name}, {_format(room)}"
                )
    drawn = "".join(piece.glue + piece.text for piece in pieces)
    if drawn != label:
        place = next(
            (at for at, (a, b) in enumerate(zip(drawn, label, strict=False)) if a != b), min(len(drawn), len(label))
        )
        raise DefectError(
            f"{where}: from character {place + 1} on, {drawn[place : place + 40]!r} is drawn "
            f"and the label is {label[place : place + 40]!r}"
        )


def _inside(box: Box, room: Box) -> bool:
    return box[0] >= room[0] and box[1] >= room[1] and box[2] <= room[2] and box[3] <= room[3]


def _format(box: Box) -> str:
    return "({:.0f}, {:.0f}, {:.0f}, {:.0f})".format(*box)


def check_rotation(pieces: Sequence[Piece], degrees: float, side: int, where: str) -> None:
    """Check that all ink stays on a square page rotated about its centre.

    Args:
        degrees: rotation.
        side: of the page, in pixels.
        where: name of the sample, for error messages.

    Raises:
        DefectError: a corner of a piece is outside the page.
    """
    if not degrees:
        return
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    for piece in pieces:
        for x, y in ((x, y) for x in piece.box[::2] for y in piece.box[1::2]):
            across, down = x - side / 2, y - side / 2
            if max(abs(cosine * across + sine * down), abs(cosine * down - sine * across)) > side / 2:
                raise DefectError(f"{where}: turned by {degrees:.2f} degrees, {piece.text!r} leaves the page")
