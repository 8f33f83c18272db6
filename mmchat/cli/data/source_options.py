"""Options of the `mmchat data` commands: a data set, or the YAML config of a run with its sources."""

import argparse
from pathlib import Path
from typing import Any

from mmchat.command_line.quick_imports import quick_imports
from mmchat.command_line.quiet import quiet_libraries
from mmchat.conversation import get_template
from mmchat.data.config import DataConfig
from mmchat.data.sources import find_files
from mmchat.data.storage import is_remote
from mmchat.errors import UserError
from mmchat.model_kinds import ASSISTANT
from mmchat.vision import Fit


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE", help="data file, folder, glob pattern or URL; or the .yaml of a run"
    )
    parser.add_argument("--model", metavar="DIR", help="model directory, for its template and tokenizer")
    parser.add_argument("--image-root", metavar="DIR", help="folder of the images; default: that of the data")
    parser.add_argument("--template", metavar="NAME", help="conversation template; default: the model's own")
    parser.add_argument(
        "--max-length", type=int, metavar="N", help="most tokens of a sample; default: that of the run, or 2048"
    )
    parser.add_argument("--allow-http", action="store_true", help="allow images and sources to be fetched over http(s)")


def add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=int, metavar="N", help="worker processes, 0 for this process alone; default: one per core"
    )


def read_source_arguments(arguments: argparse.Namespace) -> tuple[DataConfig, str | None, Fit | None]:
    """The sources, the model directory if there is one, and `fit` of a run.

    Raises:
        UserError: the YAML file is not a config of a run, or an option belongs to the sources inside it.
    """
    options = {"image_root": arguments.image_root, "template": arguments.template, "allow_http": arguments.allow_http}
    if arguments.template is not None:
        get_template(arguments.template)  # refuses an unknown name
    if arguments.model is not None:
        ASSISTANT.check(arguments.model, *ASSISTANT.files)
    if Path(arguments.source).suffix not in (".yaml", ".yml"):
        length = {} if arguments.max_length is None else {"max_length": arguments.max_length}
        _check_paths(config := DataConfig(path=arguments.source, **options, **length))
        return config, arguments.model, None
    if given := [f"--{key.replace('_', '-')}" for key, value in options.items() if value]:
        raise UserError(f"{', '.join(given)}: the sources in {arguments.source} say this themselves")
    from mmchat.training.config import load_run_config

    overrides = [] if arguments.max_length is None else ["--data.max_length", str(arguments.max_length)]
    run = load_run_config(Path(arguments.source), overrides)
    _check_paths(run.data)
    model = arguments.model or (run.model if run.objective.is_assistant else None)
    return run.data, model, run.objective.fit


def _check_paths(config: DataConfig) -> None:
    """Where images are is left to the commands, which look for them elsewhere."""
    for source in config.by_name().values():
        if not is_remote(source.path):
            find_files(source.path)


def open_processor(model: str | None, fit: Fit | None) -> Any:
    """The processor of a model directory, as a run with `fit` uses it.

    Raises:
        UserError: no model was named, or it has no processor.
    """
    if model is None:
        raise UserError("name the model whose tokenizer and template to use: --model DIR (`mmchat init` makes one)")
    ASSISTANT.check(model, *ASSISTANT.files)
    quiet_libraries()
    with quick_imports():  # mistakes have been found
        from mmchat.model.directory import load_processor

    return load_processor(model, fit)
