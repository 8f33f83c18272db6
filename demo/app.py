"""A chat about images in the browser. This file reads the arguments and serves the page; see `web_chat/`."""

import argparse
import os
import tempfile
from pathlib import Path

from mmchat.command_line.arguments import HelpFormatter, OneLineParser
from mmchat.command_line.errors import reporting
from mmchat.command_line.listening import listen
from mmchat.command_line.quiet import quiet_libraries
from mmchat.cpu_settings import restart_with_settings
from mmchat.errors import UserError
from mmchat.extras import require
from mmchat.model_kinds import ASSISTANT

if __name__ == "__main__":
    restart_with_settings()
    with reporting():
        require("gradio")

# Gradio reads these on import. They turn off requests to other servers and the log of calls.
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}

QUICKSTART, QUICKSTART_IMAGES = Path("runs/quickstart/model"), Path("data/quickstart/heldout")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(arguments: argparse.Namespace) -> None:
    """Open the first model and serve the page until interrupted.

    Raises:
        UserError: A model directory, the examples or the address cannot be used.
    """
    from web_chat.limits import Limits
    from web_chat.models import Models
    from web_chat.process import end_on_signals

    models = Models(arguments.model or [QUICKSTART], _open_model, arguments.keep_open)
    for directory in models.directories.values():
        ASSISTANT.check_complete(directory)
    users = read_users(arguments.auth)
    examples = examples_of(arguments)
    limits = Limits(file_mb=arguments.max_file_mb, new_tokens=arguments.max_new_tokens)
    listening = listen(arguments.host, arguments.port)  # before opening the model, which may take a while
    with tempfile.TemporaryDirectory(prefix="mmchat-demo-", dir=os.environ.get("GRADIO_TEMP_DIR")) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # read when Gradio is imported
        end_on_signals(Path(folder))
        _serve(arguments, models, limits, listening, Path(folder), users, examples)


def _serve(arguments: argparse.Namespace, models, limits, listening, folder: Path, users, examples) -> None:
    from web_chat.desk import Desk
    from web_chat.examples import read_examples
    from web_chat.feedback import Feedback
    from web_chat.page import build
    from web_chat.server import serve_page
    from web_chat.widgets import facts_html

    quiet_libraries()
    feedback = None if arguments.feedback is None else Feedback(arguments.feedback)
    with models.use(models.names[0]) as generator:
        facts = facts_html(generator)
    page = build(Desk(models, limits, folder, read_examples(examples), feedback), facts)
    serve_page(page, listening, folder, limits, users, lambda: _say_where(arguments, listening.getsockname()[1]))


def _say_where(arguments: argparse.Namespace, port: int) -> None:
    shown = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    print(f"mmchat demo: http://{shown}:{port} (stop with Ctrl-C)", flush=True)
    if arguments.host not in LOOPBACK and arguments.auth is None:
        print("Everyone who reaches this address can use it; --auth FILE asks for a name and a password.", flush=True)


def _open_model(directory: Path):
    from mmchat.inference import Generator

    return Generator(directory)


def read_users(file: Path | None) -> list[tuple[str, str]] | None:
    """Names and passwords of a file with a line `name:password` for each; None without a file.

    Raises:
        UserError: The file cannot be read or holds no users.
    """
    if file is None:
        return None
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"--auth {file} cannot be read ({error.strerror}); expected lines name:password") from None
    users = [(name, password) for name, _, password in (line.partition(":") for line in lines)]
    if not users or not all(name and password for name, password in users):
        raise UserError(f"--auth {file}: expected at least one line, each name:password")
    return users


def examples_of(arguments: argparse.Namespace) -> Path | None:
    """The folder of examples: the one given, else the quickstart's held-out images for the quickstart's own model.

    Raises:
        UserError: The folder does not exist.
    """
    if arguments.examples is not None:
        if not arguments.examples.is_dir():
            raise UserError(f"--examples {arguments.examples} is not a folder; expected one with images")
        return arguments.examples
    first = (arguments.model or [QUICKSTART])[0]
    own = first.resolve() == QUICKSTART.resolve() and QUICKSTART_IMAGES.is_dir()
    return QUICKSTART_IMAGES if own else None


def main(argv: list[str] | None = None, prog: str = "app.py") -> None:
    example = "example:\n  python demo/app.py --model runs/quickstart/model --port 7860"
    parser = OneLineParser(prog=prog, description="Chat about images.", epilog=example, formatter_class=HelpFormatter)
    add = parser.add_argument
    add(
        "--model",
        type=Path,
        action="append",
        metavar="DIR",
        help="model directory (default: runs/quickstart/model); repeat to let visitors choose and compare",
    )
    add("--keep-open", type=int, default=2, metavar="N", help="most models in memory at a time")
    add("--examples", type=Path, metavar="DIR", help="images to start with, each with its question in a .txt file")
    add("--feedback", type=Path, metavar="DIR", help="keep ratings and corrections here, with their images")
    add("--port", type=int, default=7860, metavar="N", help="port to listen on; 0: any free one")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 accepts other machines")
    add("--auth", type=Path, metavar="FILE", help="ask for a name and password; lines name:password")
    add("--max-file-mb", type=int, default=20, metavar="N", help="largest upload")
    add("--max-new-tokens", type=int, default=1024, metavar="N", help="longest answer that visitors may ask for")
    arguments = parser.parse_args(argv)
    with reporting():
        serve(arguments)


if __name__ == "__main__":
    main()
