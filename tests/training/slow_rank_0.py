"""Started by the launcher, not by pytest: a run whose rank 0 works alone for longer than the default limits allow.

    slow_rank_0.py CONFIG

Where no other limit is given, torch's groups wait for `LIMIT` and DeepSpeed's (DEEPSPEED_TIMEOUT=0) not at all.
"""

import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import distributed_c10d

from mmchat.training import micro_batches, save_model
from mmchat.training.config import load_run_config
from mmchat.training.distributed import process_group
from mmchat.training.distributed.signals import StopSignals
from mmchat.training.trainer import run

LIMIT, ALONE = 10, 15
"""Seconds."""


def slowly(work: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*arguments: Any) -> Any:
        time.sleep(ALONE)
        return work(*arguments)

    return slow


if __name__ == "__main__":
    distributed_c10d._get_default_timeout = lambda backend: timedelta(seconds=LIMIT)
    micro_batches._tokens_and_views = slowly(micro_batches._tokens_and_views)
    save_model.write_model = slowly(save_model.write_model)
    process_group.start()
    config = next(word for word in sys.argv[1:] if not word.startswith("--"))
    status = run(load_run_config(Path(config), []), StopSignals())
    process_group.stop()
    sys.exit(status)
