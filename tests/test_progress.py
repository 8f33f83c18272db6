"""Progress is readable on a narrow terminal."""

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from mmchat.progress import WIDE, bar_columns

NOTE = "loss 0.1234  123,435 tokens/s  MFU 41%  wait 60%"


@pytest.mark.parametrize("width", [80, WIDE, 160])
def test_name_count_eta_and_note_fit_one_line(width):
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    with Progress(*bar_columns(width), console=console, auto_refresh=False) as progress:
        progress.add_task("pretrain", total=2181, completed=1200, note=NOTE)
        (line,) = console.render_lines(progress.get_renderable(), console.options)
    text = "".join(segment.text for segment in line)
    assert len(text) <= width
    for part in ("pretrain", "1200/2181", "ETA", NOTE):
        assert part in text
    assert ("━" in text) == (width >= WIDE)
