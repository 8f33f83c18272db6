"""Optional packages: what a core install lacks is named in one line, with the extra that installs it."""

import importlib.util

from mmchat.errors import UserError

EXTRA_OF = {
    "datasets": "data",
    "pyarrow": "data",
    "nltk": "eval",
    "rapidfuzz": "eval",
    "scipy": "eval",
    "sklearn": "eval",
    "pypdfium2": "pdf",
    "pillow_heif": "heif",
    "fontTools": "tools",
    "ijson": "tools",
    "tensorboard": "tracking",
    "wandb": "tracking",
    "gradio": "demo",
    "gguf": "gguf",
    "ray": "ray",
    "llguidance": "json",
    "fastapi": "serve",
    "prometheus_client": "serve",
    "uvicorn": "serve",
    "bitsandbytes": "quantize",
    "liger_kernel": "liger",
}
"""Top-level module -> the extra of pyproject.toml that installs it."""


def require(*modules: str, extra: str | None = None) -> None:
    """Check that optional packages are installed. Call it right before they are imported.

    Args:
        modules: top-level modules, keys of `EXTRA_OF`.
        extra: the extra to recommend instead of the modules' own.

    Raises:
        UserError: some are missing; names them and the command that installs them.
    """
    missing = [module for module in modules if not installed(module)]
    if missing:
        extras = extra or ",".join(dict.fromkeys(EXTRA_OF[module] for module in missing))
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(f"{', '.join(missing)} {verb} not installed; run pip install 'mmchat[{extras}]'")


def installed(module: str) -> bool:
    """Whether a top-level module can be imported. It is not imported."""
    return importlib.util.find_spec(module) is not None
