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
from mmchat.hub import resolve
from mmchat.model_kinds import ASSISTANT, CLASSIFIER, DUAL_ENCODER
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
    check_inputs(config, ranks)


def check_inputs(config: RunConfig, ranks: int, weights: bool = True) -> None:
    """Check what a run reads, and its split over ranks.

    Args:
        config: The resolved config.
        ranks: Their number.
        weights: Whether weights and validation data will be read; a plan does without.

    Raises:
        UserError: A path does not exist, or the batch cannot be split.
    """
    if config.objective.packing is None:
        split_batch(config.batch_size, config.micro_batch_size, ranks)
    (check_model if weights else check_planned_model)(config)
    for group in filter(None, (config.data, config.validation if weights else None)):
        for source in group.by_name().values():
            check_source(source)
    if config.distributed.deepspeed is not None:
        read_json(config.distributed.deepspeed)


def check_model(config: RunConfig) -> None:
    """Check the model that a run starts from, and its teacher, without reading weights.

    Raises:
        UserError: One does not exist, is of another kind, or lacks a file.
    """
    if config.objective.kind in KINDS:
        KINDS[config.objective.kind].check_complete(config.model)
    elif not resolve(config.model).exists():
        raise UserError(f"model {config.model} does not exist; expected a directory or file of a tower")
    if config.objective.distillation is not None:
        CLASSIFIER.check_complete(config.objective.distillation.teacher)


def check_planned_model(config: RunConfig) -> None:
    """Check that there is a model whose shapes can be planned.

    Raises:
        UserError: Its directory does not exist.
    """
    if not config.objective.takes_any_tower and not resolve(config.model, weights=False).is_dir():
        remedy = "; `mmchat init --without-weights` makes it in seconds" if config.objective.is_assistant else ""
        raise UserError(
            f"model directory {config.model} does not exist. If an earlier stage will write it, name one of the same "
            f"architecture with --model{remedy}"
        )


def check_source(source: SourceConfig) -> None:
    """Check the paths of a source. What is at an address is asked by the ranks, once.

    Raises:
        UserError: One does not exist.
    """
    if not storage.is_remote(source.path):
        find_files(source.path)
    root = source.image_root
    if root is not None and not storage.is_remote(root) and not Path(root).is_dir():
        raise UserError(f"image_root {root} of {source.path} is not a folder; name that of the images")
    if source.index is not None and not source.index.is_file():
        raise UserError(f"index {source.index} of {source.path} does not exist; `mmchat data check` writes it")
