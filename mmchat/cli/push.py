"""`mmchat push`: upload a model directory to the Hugging Face hub."""

import argparse
import fnmatch
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmchat.errors import UserError
from mmchat.files import format_megabytes, read_json
from mmchat.front_matter import CARD, read_front_matter
from mmchat.hub import HUB_NAME, SAFE_FILES, WEIGHTS, part_of_run
from mmchat.opening import CONFIG, read_model_config

EXAMPLE = "mmchat push runs/quickstart/model someone/quickstart"
KINDS = {
    "mmchat": ("assistant", 'mmchat chat {name} --image image.png "What is this?"'),
    "mmchat_clip": ("dual encoder", "mmchat clip classify --help"),
    "mmchat_classifier": ("classifier", "mmchat vision inspect {name}"),
    "mmchat_tower": ("vision tower", "mmchat vision inspect {name}"),
}
"""`model_type` of a config -> what it is, and a command that uses it."""
ADAPTER = ("LoRA adapter", "mmchat merge {name} --out merged")
EXPORTED = ("exported model", "the code in its README.md")
TAG = "mmchat"
"""Tag in the model card of what `mmchat export` wrote."""
GGUF = "*.gguf"
STALE = [WEIGHTS, f"{WEIGHTS}.index.json", GGUF]
"""Files of an earlier push that are deleted: weights in another number of files would be opened with the new ones."""
ABSOLUTE = re.compile(r"(?:/|~/|[A-Za-z]:\\)[^/\\\s<>]+[/\\][^\s<>]*")
"""An absolute path of two or more components."""
VOCABULARIES = ("tokenizer.json", "vocab.json")
"""Their strings are tokens."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details(
        "The repository is created if it does not exist, private unless --public is given. An interrupted push is\n"
        "continued by the same command. `hf auth login` stores the token that is needed."
    )
    parser.add_argument("checkpoint", metavar="CKPT", type=Path, help="model directory or adapter/, written by mmchat")
    parser.add_argument("name", metavar="USER/NAME", help="repository on the hub")
    parser.add_argument("--public", action="store_true", help="let everybody read it")
    parser.add_argument("--dry-run", action="store_true", help="only show what would be uploaded; asks no network")


def run(arguments: argparse.Namespace) -> None:
    directory, name = part_of_run(arguments.checkpoint), arguments.name
    match = HUB_NAME.fullmatch(name)
    if match is None or match["revision"]:
        raise UserError(f"{name!r} is no name of a repository; expected user/name, such as someone/quickstart")
    what, command = kind_of(directory)
    files = travelling_files(directory)
    from huggingface_hub import constants

    address = f"{constants.ENDPOINT}/{name}"
    for file in files:
        print(f"  {file.relative_to(directory).as_posix():32} {format_megabytes(file.stat().st_size):>14}")
    size = format_megabytes(sum(file.stat().st_size for file in files))
    visibility = "public" if arguments.public else "private"
    print(f"{what}, {len(files)} files, {size} -> {address} ({visibility})", flush=True)
    if not arguments.dry_run:
        upload(directory, files, name, arguments.public)
        print(f"done: {address}\nuse it with: {command.format(name=name)}")


def kind_of(directory: Path) -> tuple[str, str]:
    """What a directory holds, and the command that uses it, with `{name}`.

    Raises:
        UserError: it does not exist, or mmchat did not write it.
    """
    if not directory.is_dir():
        raise UserError(f"model directory {directory} does not exist")
    if all((directory / file).is_file() for file in ("base.json", "adapter_config.json")):
        return ADAPTER
    kind = read_model_config(directory).get("model_type") if (directory / CONFIG).is_file() else None
    if kind in KINDS:
        return KINDS[kind]
    if is_exported(directory):
        return EXPORTED
    raise UserError(
        f"{directory} is no model that mmchat wrote (config.json: model_type {kind!r}); give model/ or adapter/ of a "
        f"run, or a directory of `mmchat init`, `merge` or `export`"
    )


def is_exported(directory: Path) -> bool:
    """Whether the model card in a directory has the tag of `mmchat export`."""
    return TAG in (read_front_matter(directory / CARD).get("tags") or [])


def travelling_files(directory: Path) -> list[Path]:
    """The files to upload: all of them. An exported model may hold another in a folder, such as its tower.

    Raises:
        UserError: there are no weights, or something that should not travel: another kind of file, a folder, or JSON
            that names an absolute path.
    """
    found = sorted(directory.iterdir())
    if is_exported(directory):
        parts = [path for path in found if (path / "config.json").is_file()]
        inner = [file for part in parts for file in travelling_files(part)]
        found = [path for path in found if path not in parts] + inner
    allowed = (*SAFE_FILES, WEIGHTS, GGUF)
    strange = [
        path.name for path in found if not path.is_file() or not any(fnmatch.fnmatch(path.name, p) for p in allowed)
    ]
    if strange:
        raise UserError(
            f"{directory} holds what does not belong to a model: {', '.join(strange)}; move it elsewhere "
            f"(a model is {', '.join(allowed)})"
        )
    if not any(path.match(pattern) for path in found for pattern in (WEIGHTS, GGUF)):
        raise UserError(f"{directory} holds no weights ({WEIGHTS}, {GGUF})")
    for path in found:
        if path.suffix == ".json" and path.name not in VOCABULARIES:
            for key, value in _strings(read_json(path)):
                if ABSOLUTE.fullmatch(value):
                    raise UserError(f"{path} names a path of this machine, {key}: {value!r}; remove it before you push")
    return found


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string in a JSON value, with the dotted key where it lies."""
    if isinstance(value, str):
        yield key, value
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in pairs:
        yield from _strings(inner, f"{key}.{name}" if key else str(name))


def upload(directory: Path, files: list[Path], name: str, public: bool) -> None:
    """Create the repository if need be and upload; what the hub has already is not sent again.

    Raises:
        UserError: the hub cannot be reached or refuses; or the repository exists with another visibility.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{name} cannot be pushed: HF_HUB_OFFLINE is set")
    hub = HfApi()
    try:
        hub.create_repo(name, private=not public, exist_ok=True)
        if hub.repo_info(name).private == public:
            found, option = ("private", "leave out --public") if public else ("public", "add --public")
            raise UserError(f"{name} exists already and is {found}; {option}, or change it on the hub first")
        hub.upload_folder(
            repo_id=name,
            folder_path=directory,
            allow_patterns=[file.relative_to(directory).as_posix() for file in files],
            delete_patterns=STALE,
            commit_message="Upload with mmchat",
        )
    except UserError:
        raise
    except HfHubHTTPError as error:
        advice = "; log in with `hf auth login`" if error.response.status_code in (401, 403) else ""
        raise UserError(f"the hub refused {name}: {' '.join(str(error).split())}{advice}") from None
    except ValueError as error:  # the hub does not accept README.md
        raise UserError(f"{name} was not pushed: {' '.join(str(error).split())}") from None
    except (HTTPError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{name} was not pushed: the hub cannot be reached, or the upload broke off ({reason}); the same command "
            "continues it"
        ) from None
