"""Samples in the terminal: in colour, or with brackets if the terminal has no colour."""

import math
from collections.abc import Iterable, Iterator
from itertools import groupby

import numpy as np
from PIL import Image
from rich.columns import Columns
from rich.console import Console, Group
from rich.padding import Padding
from rich.rule import Rule
from rich.text import Text

from mmchat.data.preview.pieces import runs
from mmchat.data.preview.preview import ImagePreview, RecordPreview, contact_sheet
from mmchat.data.preview.printable import printable
from mmchat.data.records import Rejected

IMAGE_COLUMNS = 32
"""Width of an image in characters. A character shows two pixels, one above the other."""

STYLES = {
    ("text", False): "grey54",
    ("text", True): "bold green",
    ("control", False): "grey93 on grey35",
    ("control", True): "bold black on green",
    ("image", False): "white on purple4",
    ("broken", False): "red on grey35",
    ("broken", True): "bold red on green",
}
"""(kind, supervised) -> style. A background marks a single token that the template writes."""


def print_samples(console: Console, samples: Iterable[RecordPreview | Rejected], tokens: bool = False) -> None:
    """Print a legend and the samples. `tokens` adds every token id."""
    plain = console.no_color or console.color_system is None
    console.print(legend(plain))
    for sample in samples:
        console.print()
        console.print(Rule(Text(printable(sample.where), "bold"), align="left", style="grey54"))
        if isinstance(sample, Rejected):
            reason = Text.assemble(("rejected", "bold white on red"), " ", printable(sample.reason, "\n"))
            console.print(reason, soft_wrap=plain)
            continue
        console.print(Text("  ".join(sample.facts()), "cyan"), soft_wrap=plain)
        console.print()
        if sample.images and not plain and console.is_terminal:
            console.print(Padding(Columns(list(_images(sample.images)), padding=(0, 3)), (0, 0, 1, 0)))
        console.print(conversation(sample, plain, tokens), soft_wrap=plain)


def legend(plain: bool) -> Text:
    """The legend, in the notation that it explains."""
    entries = [
        ("supervised", "text", True),
        ("ignored", "text", False),
        ("control token", "control", False),
        ("supervised control token", "control", True),
        ("image 1: 256 slots", "image", False),
    ]
    gap = Text("  ")
    shown = [_mark_supervised(_piece(*entry, plain), entry[2], plain) for entry in entries]
    return gap.join([*shown, Text("↵ break  · space  ⇥ tab", STYLES["text", False])])


def conversation(sample: RecordPreview, plain: bool, tokens: bool = False) -> Text:
    """The conversation. With `tokens`, ids follow each piece, and every second piece is underlined."""
    whole = Text(overflow="fold")
    number = 0
    for supervised, group in groupby(runs(sample.pieces), lambda run: run[1]):
        text = Text()
        for kind, _, pieces in group:
            if not tokens:
                text.append_text(_piece("".join(visible for _, visible in pieces), kind, supervised, plain))
                continue
            for piece, visible in pieces:
                text_only, line_break = visible.removesuffix("\n"), visible[len(visible.removesuffix("\n")) :]
                shown = _piece(text_only, kind, supervised, plain)
                shown.stylize("underline" if number % 2 else "")
                ids = str(piece.ids[0]) if kind == "image" else ",".join(map(str, piece.ids))
                text.append_text(shown).append(f"/{ids}/", "blue").append(line_break)
                number += 1
        whole.append_text(_mark_supervised(text, supervised, plain))
    return whole


def _piece(text: str, kind: str, supervised: bool, plain: bool) -> Text:
    if kind == "image":
        text = f"[{text}]"
    elif kind != "text":
        text = f"⟨{text}⟩"  # no spaces: lines would break there
    return Text(text, "" if plain else STYLES[kind, supervised])


def _mark_supervised(text: Text, supervised: bool, plain: bool) -> Text:
    return Text.assemble("⟦", text, "⟧") if supervised and plain else text


def _images(images: list[ImagePreview]) -> Iterator[Group]:
    for number, image in enumerate(images, 1):
        for description, views in image.towers:
            yield Group(half_blocks(contact_sheet(views)), Text(f"image {number}: {description}", "cyan"))


def half_blocks(pixels: np.ndarray, columns: int = IMAGE_COLUMNS) -> Text:
    """uint8[3, H, W] as lines of upper half blocks: the foreground is the upper pixel, the background the lower."""
    rows = 2 * math.ceil(columns * pixels.shape[1] / pixels.shape[2] / 2)
    small = np.asarray(Image.fromarray(pixels.transpose(1, 2, 0)).resize((columns, rows), Image.Resampling.BOX))
    text = Text(no_wrap=True)
    for number, (above, below) in enumerate(zip(small[::2], small[1::2], strict=True)):
        text.append("\n" if number else "")
        for top, bottom in zip(above.tolist(), below.tolist(), strict=True):
            text.append("▀", "rgb({},{},{}) on rgb({},{},{})".format(*top, *bottom))
    return text
