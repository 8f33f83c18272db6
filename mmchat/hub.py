"""Where a model comes from: a path, the directory of a run, or a name on the Hugging Face hub. Imports no torch."""

import os
import re
import sys
from functools import lru_cache
from pathlib import Path

from mmchat.errors import UserError

WEIGHTS = "*.safetensors"
HUB_NAME = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w.-][\w./-]*))?")
"""`user/name`, or `user/name@revision` with a branch, tag or commit."""
SAFE_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.md")
"""Patterns of the files that are fetched from the hub besides weights. Code is never fetched."""
FILE_SUFFIXES = (".json", ".safetensors", ".bin", ".pt", ".pth")
"""A source that ends so is a file."""


def hub_name(source: str | Path) -> re.Match[str] | None:
    """The match of HUB_NAME if a source is a name on the hub.

    What exists is a path; so is what lies below a folder that exists (`runs/missing`), what starts with `./`, `../`,
    `/` or `~`, and what ends like a file. A mistyped path is not looked up on the network.
    """
    name = HUB_NAME.fullmatch(str(source))
    is_path = Path(source).parts[:1] and Path(Path(source).parts[0]).is_dir()
    return None if name is None or is_path or str(source).endswith(FILE_SUFFIXES) else name


def hub_repos(*sources: str | Path | None) -> list[str]:
    """`user/name` of the sources that are hub names, each once, for a model card."""
    names = [hub_name(source) for source in sources if source is not None]
    return list(dict.fromkeys(name["repo"] for name in names if name is not None))


RUN_CONFIG = "config.yaml"
"""File by which the directory of a training run is known; model/ and adapter/ inside are what it made."""


def part_of_run(directory: Path, part: str = "model") -> Path:
    """The model that a training run made, if a path is a run directory; any other path as it is.

    A user who names a run means its result. A line on stderr says which directory was taken.

    Args:
        directory: The path.
        part: The directory in the run: "model" or "adapter".

    Raises:
        UserError: It is a run that has not made this yet.
    """
    if not (directory / RUN_CONFIG).is_file() or (directory / "config.json").exists():
        return directory
    found = directory / part
    if not found.is_dir() and (directory / "model").is_dir():
        raise UserError(f"{directory} is a run without LoRA: it has no {part}/, and model/ is its whole model")
    if not found.is_dir():
        command = f"mmchat train {directory / RUN_CONFIG} --resume"
        raise UserError(f"{directory} is a run that has not finished, so it has no {part}/; `{command}` finishes it")
    _say_once(f"{directory} is a run; taking its {part}: {found}")
    return found


@lru_cache(maxsize=64)
def _say_once(line: str) -> None:
    """Print to stderr, once for a process that opens the same model several times, and on one rank of a run."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)


def resolve(source: str | Path, what: str = "model directory", weights: bool = True, part: str = "model") -> Path:
    """The directory or file of a source; a hub name is downloaded to the hub's cache.

    A download resumes where it stopped. What is in the cache already needs no network.

    Args:
        source: A path, or `user/name` or `user/name@revision` on the Hugging Face hub.
        what: What messages call it.
        weights: Whether to fetch weights: safetensors, or `pytorch_model*.bin` if there are none.
        part: What is meant if the path is the directory of a run (`part_of_run`).

    Returns:
        The path, which may not exist if `source` is no hub name (`hub_name`).

    Raises:
        UserError: The hub does not have it, or cannot be reached and the cache does not have it; or a run has not
            finished.
    """
    name = hub_name(source)
    if name is None:
        return part_of_run(Path(source).expanduser(), part)
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    def fetch(*patterns: str) -> Path:
        patterns = (*SAFE_FILES, *patterns)
        return Path(snapshot_download(name["repo"], revision=name["revision"], allow_patterns=list(patterns)))

    try:
        found = fetch(*[WEIGHTS] * weights)
        return fetch("pytorch_model*.bin") if weights and not any(found.glob(WEIGHTS)) else found
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise UserError(
            f"{what} {str(source)!r} is no path here, {why}, and the hub's cache does not have it; download it where "
            "there is a network, or give a directory"
        ) from None
    except (HTTPError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{what} {str(source)!r} is no path here, and the hub did not give it: {reason}") from None


def pin(source: str, what: str = "model directory") -> str:
    """A hub name with the commit that is its revision now, so that a run keeps its weights when a branch moves.

    Args:
        source: As in `resolve`; the model is downloaded if it is a hub name.
        what: What messages call it.

    Returns:
        `user/name@commit`; a path as it is.

    Raises:
        UserError: See `resolve`.
    """
    name = hub_name(source)
    return source if name is None else f"{name['repo']}@{resolve(source, what).name}"


def check_exists(source: str | Path, what: str) -> None:
    """Check that a path exists, before anything heavy is imported. A hub name is looked up when it is opened.

    Args:
        source: Path or hub name.
        what: What messages call it.

    Raises:
        UserError: It is neither.
    """
    if hub_name(source) is None and not Path(source).expanduser().exists():
        raise UserError(
            f"{what} {str(source)!r} does not exist; give a directory, or `user/name` of the Hugging Face hub"
        )
