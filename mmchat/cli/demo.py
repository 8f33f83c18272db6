"""`mmchat demo`: demo/app.py."""

from mmchat.bundled import folder
from mmchat.command_line.programs import run_program
from mmchat.extras import require


def main(argv: list[str]) -> int:
    require("gradio")
    return run_program(folder("demo") / "app.py", "mmchat demo", argv)
