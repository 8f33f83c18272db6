"""`mmchat eval tasks`: the named benchmarks, and what one of them is."""

import argparse

EXAMPLE = "mmchat eval tasks pope"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", nargs="?", metavar="NAME", help="print the file of this task, to copy and change")


def run(arguments: argparse.Namespace) -> None:
    from mmchat.evaluation.tasks.definition import NAMED, open_task, task_names

    if arguments.task:
        name, _ = open_task(arguments.task)
        print((NAMED / f"{name}.yaml").read_text(encoding="utf-8"), end="")
        return
    names = task_names()
    for name in names:
        print(f"{name:{max(map(len, names)) + 2}}{open_task(name)[1].title}")
