"""Started by the launcher, not by pytest: how much memory of its own each rank needs to open a model for ZeRO 3.

    memory_of_opening.py CONFIG OUT

OUT/N gets, for rank N, bytes of RssAnon above those before, at the highest and in the end. Files that are only mapped
do not count.
"""

import re
import sys
import time
from pathlib import Path
from threading import Event, Thread

from mmchat.settings import load_settings
from mmchat.training.build_model import build_model
from mmchat.training.config import RunConfig
from mmchat.training.distributed import process_group

samples: list[int] = []
stop = Event()


def own_bytes() -> int:
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def watch() -> None:
    while not stop.is_set():
        samples.append(own_bytes())
        time.sleep(0.001)


if __name__ == "__main__":
    path, out = map(Path, (word for word in sys.argv[1:] if not word.startswith("--local_rank")))
    process_group.start()
    config = load_settings(RunConfig, path, [])
    before, watcher = own_bytes(), Thread(target=watch)
    watcher.start()
    kept = build_model(config, sharded=True)
    stop.set()
    watcher.join()
    (out / str(process_group.rank())).write_text(f"{max(samples) - before} {own_bytes() - before}")
    process_group.stop()
