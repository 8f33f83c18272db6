"""`mmchat serve`: OpenAI's dialect over HTTP."""

import argparse
from pathlib import Path

from mmchat.command_line.arguments import OneLineParser, number_from, positive
from mmchat.command_line.options import add_model_directory, add_placement, placement
from mmchat.command_line.quick_imports import quick_imports
from mmchat.model_kinds import ASSISTANT
from mmchat.serving.keys import KEYS_VARIABLE, check_reach, read_keys
from mmchat.serving.settings import MIB, Limits, ServeSettings

EXAMPLE = "mmchat serve runs/quickstart/model --port 8000"


def add_arguments(parser: OneLineParser) -> None:
    parser.add_details(
        "Routes: /v1/chat/completions, /v1/completions, /v1/models, /health, /ready, /metrics, /openapi.json. SIGTERM "
        "and Ctrl-C end the server when running requests are answered."
    )
    add_model_directory(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; others than loopback need API keys")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="port to listen on; 0: any free one")
    parser.add_argument("--name", help="what requests call the model; default: the name of its directory")
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help=f"API keys, one a line; those of ${KEYS_VARIABLE} count too"
    )
    parser.add_argument(
        "--allow-image-urls", action="store_true", help="fetch images from public http(s) addresses, not only data URIs"
    )
    parser.add_argument(
        "--temperature", type=number_from(0), default=0.0, metavar="T", help="of requests that name none; 0: greedy"
    )
    add_placement(parser)
    _add_limits(parser)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    limits = Limits()
    group = parser.add_argument_group("limits")
    for option, default, meaning in (
        ("--max-new-tokens", limits.new_tokens, "longest answer, in tokens; also the default of requests"),
        ("--max-choices", limits.choices, "answers to one request"),
        ("--max-in-flight", limits.in_flight, "answers that are queued or being made; more are answered with 429"),
        ("--max-images", limits.images, "images of one request"),
        ("--max-pixels", limits.pixels, "pixels of all images of one request together"),
        ("--max-text", limits.text_characters, "characters of text of one request"),
        ("--max-body-mib", limits.body_bytes // MIB, "size of one request"),
        ("--max-buffered-mib", limits.buffered_bytes // MIB, "size of all requests that are held at once"),
        ("--max-connections", limits.connections, "open connections"),
    ):
        group.add_argument(option, type=positive, default=default, metavar="N", help=meaning)
    group.add_argument(
        "--rate", type=number_from(0.001), metavar="N", help="requests a minute for each key; default: no limit"
    )
    group.add_argument(
        "--drain-seconds",
        type=number_from(0),
        default=limits.drain_seconds,
        metavar="S",
        help="after SIGTERM: longest time for running requests",
    )
    group.add_argument("--slots", type=positive, default=16, metavar="N", help="requests in one decode step")
    group.add_argument(
        "--max-length", type=positive, metavar="N", help="tokens of prompt and answer; default: the model's context"
    )
    group.add_argument(
        "--cache-mib", type=positive, metavar="N", help="memory of the key-value cache; default: half of what is free"
    )


def run(arguments: argparse.Namespace) -> None:
    settings = settings_of(arguments)
    directory = ASSISTANT.check_complete(arguments.checkpoint)
    from mmchat.serving.server import serve

    def open_assistant():
        with quick_imports():
            from mmchat.inference.engine import EngineSettings
            from mmchat.serving.assistant import ServedAssistant

        cache = arguments.cache_mib and arguments.cache_mib * MIB
        engine = EngineSettings(slots=arguments.slots, max_length=arguments.max_length, cache_bytes=cache)
        return ServedAssistant(directory, engine, **placement(arguments))

    serve(settings, open_assistant, say=lambda line: print(line, flush=True))


def settings_of(arguments: argparse.Namespace) -> ServeSettings:
    """The settings that the options describe.

    Raises:
        UserError: A key is missing or unusable.
    """
    keys = read_keys(arguments.api_key_file)
    check_reach(arguments.host, keys)
    limits = Limits(
        body_bytes=arguments.max_body_mib * MIB,
        buffered_bytes=arguments.max_buffered_mib * MIB,
        images=arguments.max_images,
        pixels=arguments.max_pixels,
        text_characters=arguments.max_text,
        new_tokens=arguments.max_new_tokens,
        choices=arguments.max_choices,
        in_flight=arguments.max_in_flight,
        connections=arguments.max_connections,
        requests_per_minute=arguments.rate,
        drain_seconds=arguments.drain_seconds,
    )
    return ServeSettings(
        name=arguments.name or model_name(arguments.checkpoint),
        host=arguments.host,
        port=arguments.port,
        keys=keys,
        allow_image_urls=arguments.allow_image_urls,
        temperature=arguments.temperature,
        limits=limits,
    )


def model_name(checkpoint: Path) -> str:
    """What a model is called if nobody says it: `quickstart` for `runs/quickstart/model`."""
    path = checkpoint.expanduser().absolute()
    return path.parent.name if path.name == "model" and path.parent.name else path.name
