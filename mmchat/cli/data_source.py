"""How the `mmchat data` commands are told what to look at: a data set, or the YAML file of a training run."""

import argparse
from pathlib import Path
from typing import Any

from mmchat.data.config import DataConfig
from mmchat.errors import UserError
from mmchat.settings import load_settings
from mmchat.vision import Fit


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="data file, folder, pattern, address; or a run's .yaml")
    parser.add_argument("--model", help="model directory, whose template and tokenizer are used")
    parser.add_argument("--image-root", help="folder of the images; not given: the data's own")
    parser.add_argument("--template", help="conversation template; not given: the model's own")
    parser.add_argument("--max-length", type=int, help="tokens per sample; not given: the run's, or 2048")
    parser.add_argument("--allow-http", action="store_true", help="fetch images and sources over http(s)")


def read_source_arguments(arguments: argparse.Namespace) -> tuple[DataConfig, str | None, Fit | None]:
    """The sources to look at, the model directory where there is one, and how a run says that images are fitted.

    Raises:
        UserError: the YAML file is no run's, or an option belongs to the sources inside it.
    """
    own = {"image_root": arguments.image_root, "template": arguments.template, "allow_http": arguments.allow_http}
    if Path(arguments.source).suffix not in (".yaml", ".yml"):
        length = {} if arguments.max_length is None else {"max_length": arguments.max_length}
        return DataConfig(path=arguments.source, **own, **length), arguments.model, None
    if given := [f"--{key.replace('_', '-')}" for key, value in own.items() if value]:
        raise UserError(f"{', '.join(given)}: the sources in {arguments.source} say this themselves")
    from mmchat.training.config import RunConfig

    words = [] if arguments.max_length is None else ["--data.max_length", str(arguments.max_length)]
    config = load_settings(RunConfig, Path(arguments.source), words)
    model = arguments.model or (config.model if config.objective == "assistant" else None)
    return config.data, model, config.fit


def open_processor(model: str | None, fit: Fit | None) -> Any:
    """The processor of a model directory, as a run with `fit` has it; UserError where no model was named."""
    if model is None:
        raise UserError("name the model whose tokenizer and template to use: --model DIR (`mmchat init` makes one)")
    from mmchat.model.directory import load_processor

    return load_processor(model, fit)
