"""What `mmchat caption` and `mmchat ocr` share: where images come from, and what answers them."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmchat.command_line.arguments import positive
from mmchat.command_line.options import add_model_directory, add_placement, placement
from mmchat.command_line.quick_imports import quick_imports
from mmchat.command_line.quiet import quiet_libraries
from mmchat.errors import UserError
from mmchat.model_kinds import ASSISTANT

if TYPE_CHECKING:
    from mmchat.inference.generator import Generator
    from mmchat.inference.jobs.items import Line, Task
    from mmchat.inference.jobs.job import Engine
    from mmchat.inference.jobs.origin import Origin
    from mmchat.inference.jobs.vllm_model import VllmModel

ENGINES = (
    "what answers: mmchat; ray, a Ray Data job of --ranks actors, on the cluster of RAY_ADDRESS if it is set; vllm, an "
    "exported model in vLLM, at MMCHAT_VLLM_PYTHON"
)
RESUME = (
    "Run it again after an interruption, of any kind: {} that were done are skipped, others are tried again. A file "
    "beside the output records what made it; another model, prompt or limit is refused."
)


def add_sources(parser: argparse.ArgumentParser, what: str) -> None:
    add_model_directory(parser)
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="+",
        help=f"{what}; folders, which are searched recursively; patterns in quotes; tables (.tar, .parquet, .jsonl, "
        ".json, .csv, .tsv); .txt files with a path or a record per line, - for such lines from standard input",
    )
    parser.add_argument(
        "--allow-http", action="store_true", help="allow images to be fetched from public http(s) addresses"
    )
    parser.add_argument(
        "--image-root", metavar="DIR", help="folder that image paths in tables are relative to; default: the table's"
    )


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start again an output that another model, prompt or limit made; without it such an output is refused",
    )


def fetcher(arguments: argparse.Namespace) -> Callable[[str], bytes] | None:
    """What fetches images from addresses, if they are allowed: public ones only, as for `mmchat serve`."""
    from mmchat.data.fetching import fetch

    return fetch if arguments.allow_http else None


def add_workers(parser: argparse.ArgumentParser, batch_size: int, what: str, engines: tuple[str, ...]) -> None:
    parser.add_argument("--engine", default="mmchat", choices=["mmchat", *engines], help=ENGINES)
    parser.add_argument(
        "--batch-size", type=positive, default=batch_size, metavar="N", help=f"{what} in the model at a time"
    )
    parser.add_argument(
        "--ranks", type=positive, default=1, metavar="N", help="processes, each with a model of its own, on its own GPU"
    )
    add_placement(parser)


def open_generator(checkpoint: Path, batch_size: int, where: dict[str, Any], rank: int = 0) -> "Generator":
    """The model of a rank. Ranks are placed on the CUDA devices in turn, unless a device is named."""
    quiet_libraries()
    with quick_imports():
        import torch

        from mmchat.inference.engine import EngineSettings
        from mmchat.inference.generator import Generator
    if where["device"] is None and torch.cuda.is_available():
        where = where | {"device": f"cuda:{rank % torch.cuda.device_count()}"}
    return Generator(checkpoint, **where, settings=EngineSettings(slots=batch_size))


@contextmanager
def open_engine(arguments: argparse.Namespace, task: "Task", journal: Path) -> Iterator["Engine"]:
    """What answers the images of a job, as the options say."""
    from mmchat.inference.jobs.job import workers
    from mmchat.inference.jobs.ranks import rank_workers
    from mmchat.inference.jobs.ray_job import ray_engine
    from mmchat.inference.jobs.workers import ThreadWorker

    slots, ranks = arguments.batch_size, arguments.ranks
    if arguments.engine == "mmchat":  # a cluster may have what is not here
        ASSISTANT.check_complete(arguments.checkpoint)
    opening = partial(open_generator, arguments.checkpoint, slots, placement(arguments))
    if arguments.engine == "ray":
        yield ray_engine(opening, task, slots, ranks, journal)
    elif arguments.engine == "vllm":
        with open_vllm(arguments) as model:
            yield workers(lambda events: [ThreadWorker(model, task, slots, events)])
    elif ranks > 1:
        yield workers(lambda events: rank_workers(opening, task, slots, ranks, events))
    else:
        with opening() as generator:
            yield workers(lambda events: [ThreadWorker(generator, task, slots, events)])


def claim_output(arguments: argparse.Namespace, journal: Path, settings: dict[str, Any]) -> "Origin":
    """What the answers depend on; refuses an output that was made otherwise, unless it may be overwritten.

    Args:
        arguments: Those of the command.
        journal: The JSON lines.
        settings: Prompt and limits.

    Raises:
        UserError: See `refuse_other_origin`.
    """
    from mmchat.inference.jobs.origin import origin_of, refuse_other_origin

    origin = origin_of(arguments.checkpoint, settings)
    if not arguments.overwrite:
        refuse_other_origin(journal, origin)
    return origin


@contextmanager
def writing(
    arguments: argparse.Namespace, journal: Path, origin: "Origin", forget: "Callable[[Line], None]" = lambda line: None
) -> Iterator[None]:
    """While a job writes its journal: what made it is beside it, and an output to be overwritten is gone.

    Args:
        arguments: Those of the command.
        journal: The JSON lines.
        origin: What `claim_output` returned.
        forget: Called with every line that is removed.
    """
    from mmchat.inference.jobs.journal import remove_journal
    from mmchat.inference.jobs.origin import noted_origin

    if arguments.overwrite:
        remove_journal(journal, forget)
    with noted_origin(journal, origin):
        yield


@contextmanager
def open_vllm(arguments: argparse.Namespace) -> Iterator["VllmModel"]:
    """vLLM with an exported model. Its end is the end of the job."""
    from mmchat.conversion.vllm.vllm_process import require_python
    from mmchat.inference.jobs.vllm_model import VllmEndedError, VllmModel

    if arguments.ranks > 1 or arguments.device or arguments.quantize:
        raise UserError("--engine vllm takes no --ranks, --device or --quantize: vLLM places its weights itself")
    try:
        with VllmModel(require_python(), arguments.checkpoint, arguments.batch_size, arguments.dtype) as model:
            yield model
    except VllmEndedError as error:
        raise UserError(f"{error}\nthe same command resumes") from None


@contextmanager
def saying_how_to_resume(journal: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print(f"stopped; what was done is in {journal}, and the same command resumes", file=sys.stderr)
        raise
