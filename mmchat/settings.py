"""YAML plus `--key value` overrides into typed dataclasses; a mistyped key is an error that names its neighbour.

pydantic validates; this file finds the text, merges the overrides and turns pydantic's findings into
sentences that name the file, the key and the nearest valid one.
"""

import difflib
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from mmchat.errors import UserError

Settings = TypeVar("Settings")

settings = pydantic_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
"""Decorator of every configuration dataclass: immutable, keyword only, unknown keys forbidden."""


def load_settings(schema: type[Settings], path: Path, overrides: list[str]) -> Settings:
    """Read `path`, apply the `--key value` words in `overrides`, validate.

    Raises:
        UserError: the file is missing or no YAML mapping, or keys or values do not fit the schema.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"config {path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"config {path} is a folder, expected a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config {path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"config {path} must hold key: value pairs, found {type(values).__name__}")
    for key, value in parse_overrides(overrides).items():
        _set(values, key.split("."), value)
    return validate(schema, values, str(path))


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """`["--optimizer.lr", "1e-4", "--resume"]` -> `{"optimizer.lr": "1e-4", "resume": True}`.

    Values are YAML; a key without a value is a switch. `--local_rank=N`, which launchers put in front, is
    dropped: the rank comes from the environment.

    Raises:
        UserError: a word that belongs to no key.
    """
    found: dict[str, Any] = {}
    words = [word for word in words if not word.startswith(("--local_rank=", "--local-rank="))]
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UserError(f"unexpected argument {word!r}; overrides are written --key value")
        key, equals, text = word[2:].partition("=")
        if not equals and words and not words[0].startswith("--"):
            equals, text = "=", words.pop(0)
        try:
            found[key] = yaml.safe_load(text) if equals else True
        except yaml.YAMLError:
            raise UserError(f"--{key}: {text!r} is not a valid YAML value") from None
    return found


def validate(schema: type[Settings], values: dict[str, Any], source: str) -> Settings:
    """Raises UserError with one line per finding, each beginning with `source`."""
    try:
        return TypeAdapter(schema).validate_python(values)
    except ValidationError as error:
        leaves = [path for path, *_ in describe(schema)]
        known = {".".join(path[:depth]) for path in leaves for depth in range(1, len(path) + 1)}
        raise UserError("\n".join(_sentence(finding, known, source) for finding in error.errors())) from None


def describe(schema: type) -> list[tuple[tuple[str, ...], str, str, str]]:
    """Every key of a schema: (path, type, default, meaning), depth first; what `--help` prints."""
    rows = []
    for item in fields(schema):
        info = schema.__pydantic_fields__[item.name]
        nested = next((t for t in map(_plain, (item.type, *get_args(item.type))) if is_dataclass(t)), None)
        if nested is not None:
            named = ("NAME",) if get_origin(item.type) is dict else ()
            rows += [((item.name, *named, *path), *rest) for path, *rest in describe(nested)]
            continue
        default = "required" if info.is_required() else _default(item, info)
        kind = item.type.__name__ if isinstance(item.type, type) else str(item.type).replace("typing.", "")
        rows.append(((item.name,), kind, default, info.description or ""))
    return rows


def _plain(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _default(item: Any, info: Any) -> str:
    value = info.get_default(call_default_factory=True)
    return "" if value is MISSING else yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("\n...")


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        inner = values.get(part)
        values[part] = inner = inner if isinstance(inner, dict) else {}
        values = inner
    values[path[-1]] = value


def _sentence(finding: dict[str, Any], known: set[str], source: str) -> str:
    key = ".".join(map(str, finding["loc"]))
    if finding["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        elsewhere = [k for k in sorted(known) if k.endswith(f".{key}")]  # `lr` for `optimizer.lr`
        siblings = [k for k in sorted(known) if k.count(".") == key.count(".")] or sorted(known)
        near = elsewhere or difflib.get_close_matches(key, siblings, n=1, cutoff=0.0)
        return f"{source}: unknown key {key!r}; the nearest valid key is {near[0]!r}"
    if finding["type"] in ("missing", "missing_argument"):
        return f"{source}: key {key!r} is missing"
    if finding["type"] == "value_error":
        return f"{source}: {f'{key}: ' if key else ''}{finding['ctx']['error']}"
    return f"{source}: {key}: {finding['msg']}, found {finding['input']!r:.80}"
