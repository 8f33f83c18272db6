"""What is wrong with a run and shows without torch: its paths, its split over ranks, its run directory.

`mmchat train` checks this before it starts a rank, which takes seconds. Ranks of other launchers find the same later.
"""

from pathlib import Path

from mmchat.data import storage
from mmchat.data.config import SourceConfig
from mmchat.data.order import split_batch
from mmchat.data.sources import find_files
from mmchat.errors import UserError
from mmchat.files import read_json
from mmchat.model_kinds import ASSISTANT, CLASSIFIER, DUAL_ENCODER
from mmchat.pretrained import resolve
from mmchat.training.config import RunConfig, check_run_dir
from mmchat.training.monitoring.trackers import check_installed

KINDS = {"assistant": ASSISTANT, "contrastive": DUAL_ENCODER, "classify": CLASSIFIER}
"""Objective -> the kind of model that it trains. SimCLR trains any tower, which only opening it can tell."""


def check_run(config: RunConfig, ranks: int) -> None:
    """Check what a run needs before it starts.

    Args:
        config: The resolved config.
        ranks: Their number.

    Raises:
        UserError: A path does not exist, the batch cannot be split, or the run directory holds another run.
    """
    check_installed(config.monitoring.trackers)
    check_run_dir(config)
    if config.objective.packing is None:
        split_batch(config.batch_size, config.micro_batch_size, ranks)
    _check_model(config)
    for group in filter(None, (config.data, config.validation)):
        for source in group.by_name().values():
            _check_source(source)
    if config.distributed.deepspeed is not None:
        read_json(config.distributed.deepspeed)


def _check_model(config: RunConfig) -> None:
    if config.objective.kind in KINDS:
        KINDS[config.objective.kind].check_complete(config.model)
    elif not resolve(config.model).exists():
        raise UserError(f"model {config.model} does not exist; expected a directory or file of a tower")
    if config.objective.distillation is not None:
        CLASSIFIER.check_complete(config.objective.distillation.teacher)


def _check_source(source: SourceConfig) -> None:
    """What is at an address is asked by the ranks, once."""
    if not storage.is_remote(source.path):
        find_files(source.path)
    root = source.image_root
    if root is not None and not storage.is_remote(root) and not Path(root).is_dir():
        raise UserError(f"image_root {root} of {source.path} is not a folder; name that of the images")
    if source.index is not None and not source.index.is_file():
        raise UserError(f"index {source.index} of {source.path} does not exist; `mmchat data check` writes it")
