"""The YAML head of a model card (README.md): read, written, and asked for licences. Imports no torch."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mmchat.errors import UserError
from mmchat.files import parse_yaml
from mmchat.hub import HUB_NAME

CARD = "README.md"
LICENCE_KEYS = ("license", "license_name", "license_link")
"""Keys of the hub's model cards that say what the licence is."""
_HEAD = re.compile(r"\A---\r?\n(.*?)\r?\n---\s*$", re.DOTALL | re.MULTILINE)


def read_front_matter(card: Path) -> dict[str, Any]:
    """The values in the head of a model card; empty if there is no card, no head, or one that is not YAML."""
    try:
        found = _HEAD.search(card.read_text(encoding="utf-8"))
        values = parse_yaml(found[1]) if found else None
    except (OSError, UnicodeDecodeError, UserError):
        return {}
    return values if isinstance(values, dict) else {}


def front_matter(values: Mapping[str, Any]) -> str:
    """The head of a model card. Empty values are left out."""
    kept = {key: value for key, value in values.items() if value}
    return f"---\n{yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, default_flow_style=None)}---\n"


def licence(card: Path) -> dict[str, Any]:
    """The values that say what the licence is, if the card names it."""
    values = read_front_matter(card)
    return {key: values[key] for key in LICENCE_KEYS if values.get(key)}


def named_licence(repo: str) -> str | None:
    """The licence that a model's card on the hub names; None if it names none, or the hub's cache has no card of it.

    Args:
        repo: `user/name` on the hub. The network is not asked.
    """
    from huggingface_hub import try_to_load_from_cache

    if not HUB_NAME.fullmatch(repo):
        return None
    card = try_to_load_from_cache(repo, CARD)
    if not isinstance(card, str):
        return None
    values = licence(Path(card))
    found = values.get("license_name") or values.get("license")
    return str(found) if found else None


def with_licences(repos: Iterable[str]) -> str:
    """Names of models on the hub for a table, each with the licence that its card names."""
    found = {repo: named_licence(repo) for repo in repos}
    return ", ".join(f"`{repo}` ({name})" if name else f"`{repo}`" for repo, name in found.items())
