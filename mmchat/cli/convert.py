"""`mmchat convert`: data_tools/convert.py."""

from mmchat.bundled import folder
from mmchat.command_line.programs import run_program


def main(argv: list[str]) -> int:
    return run_program(folder("data_tools") / "convert.py", "mmchat convert", argv)
