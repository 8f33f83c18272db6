"""Opens damaged and hostile files in bounded numbers, and reports what failed.

    python -m tests.fuzzing --images 50000 --tables 10000 --directories 500

A failure is a traceback, the death of the process, more than 5 s of CPU time or more than 1 GB of memory. Its number
repeats it: `--first NUMBER --directories 1`, with the same seed.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from mmchat.command_line.quiet import quiet_libraries
from tests.fuzzing.directories import directory_case
from tests.fuzzing.images import image_case
from tests.fuzzing.tables import table_case
from tests.fuzzing.worker import Report, run_cases


def run(images: int = 0, tables: int = 0, directories: int = 0, seed: int = 0, first: int = 0) -> list[Report]:
    """The reports of so many cases of each kind."""
    torch.set_num_threads(1)  # a forked process has no others
    quiet_libraries()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds = {
            "images": (images, lambda: image_case(seed)),
            "tables": (tables, lambda: table_case(seed, folder / "tables")),
            "directories": (directories, lambda: directory_case(seed, folder / "directories")),
        }
        return [run_cases(kind, make(), count, first) for kind, (count, make) in kinds.items() if count]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in ("images", "tables", "directories"):
        parser.add_argument(f"--{kind}", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER")
    parser.add_argument("--messages", action="store_true", help="also print what was said, and how often")
    arguments = vars(parser.parse_args())
    shows, started = arguments.pop("messages"), time.monotonic()
    reports = run(**arguments)
    for report in reports:
        print(report.line())
        for text, count in report.said.most_common() if shows else ():
            print(f"  {count:5} {text}")
    print(f"{time.monotonic() - started:.0f} s")
    return int(any(report.failures for report in reports))


if __name__ == "__main__":
    sys.exit(main())
