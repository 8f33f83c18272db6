"""YAML plus `--key value` overrides -> frozen, typed dataclasses. Importable without torch.

pydantic validates. This file reads the text, merges the overrides, and turns pydantic's findings into one line each,
which names the source, the key and the nearest valid key.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import ErrorDetails

from mmchat.errors import UserError, nearest
from mmchat.files import MAX_YAML_CHARACTERS, parse_yaml, refuse_special
from mmchat.settings_schema import (
    Key,
    Place,
    Shorthand,
    all_paths,
    describe,
    field_types,
    follow,
    kind_of,
    locate,
    shorthand,
)

__all__ = ["Elsewhere", "Key", "Shorthand", "describe", "load_settings", "parse_overrides", "settings", "validate"]

Settings = TypeVar("Settings")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(schema: type[Settings]) -> type[Settings]:
    """Decorator of every configuration dataclass: immutable, keyword only, unknown keys forbidden."""
    return pydantic_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))(schema)  # type: ignore[return-value]  # `schema`


@dataclass(frozen=True)
class Elsewhere:
    """Keys that a schema does not have, although somebody may write them.

    moved: old dotted key -> new dotted key.
    foreign: key of another program -> what to write instead. The last part of an unknown key is looked up.
    """

    moved: Mapping[str, str] = field(default_factory=dict)
    foreign: Mapping[str, str] = field(default_factory=dict)


COMMAND_LINE = "command line"
NOT_A_MAPPING = ("dataclass_type", "dict_type", "model_attributes_type")


@dataclass(frozen=True)
class _Origin:
    """Where values came from: a file, and keys that the command line overrode."""

    file: str
    overridden: tuple[str, ...] = ()

    def of(self, key: str) -> str:
        related = (key == name or key.startswith(f"{name}.") or name.startswith(f"{key}.") for name in self.overridden)
        return COMMAND_LINE if key and any(related) else self.file


def load_settings(
    schema: type[Settings], path: Path, overrides: list[str], elsewhere: Elsewhere | None = None
) -> Settings:
    """Read a YAML file, apply overrides, validate.

    Args:
        schema: a dataclass decorated with `settings`.
        path: the YAML file.
        overrides: `--key value` arguments; nested keys with a dot.
        elsewhere: keys that are refused by saying what is written instead.

    Raises:
        UserError: the file is missing or not a YAML mapping, or keys or values do not fit the schema.
    """
    values = read_yaml(path)
    replaced = parse_overrides(overrides)
    for key, value in replaced.items():
        _set(schema, values, key.split("."), value)
    return _validated(schema, values, _Origin(str(path), tuple(replaced)), elsewhere or Elsewhere())


def read_yaml(path: Path) -> dict[str, Any]:
    """Raises UserError if the file is missing or not a YAML mapping."""
    try:
        refuse_special(path)
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_YAML_CHARACTERS + 1)
    except FileNotFoundError:
        raise UserError(f"config {path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"config {path} is a folder, expected a YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"config {path} is not valid YAML: {error}") from None
    try:
        values = parse_yaml(text)
    except UserError as error:
        raise UserError(f"config {path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"config {path} must hold key: value pairs, found {type(values).__name__}")
    return values


def parse_overrides(arguments: list[str]) -> dict[str, Any]:
    """`["--optimizer.lr", "1e-4", "--resume"]` -> `{"optimizer.lr": "1e-4", "resume": True}`.

    Values are YAML; a key without a value is True. `--local_rank=N`, which launchers insert, is dropped: the rank
    comes from the environment.

    Raises:
        UserError: an argument without a key, or a value that is not YAML.
    """
    found: dict[str, Any] = {}
    remaining = [argument for argument in arguments if not argument.startswith(("--local_rank=", "--local-rank="))]
    while remaining:
        argument = remaining.pop(0)
        if not argument.startswith("--"):
            raise UserError(f"unexpected argument {argument!r}; overrides are written --key value")
        key, equals, text = argument[2:].partition("=")
        if not equals and remaining and not remaining[0].startswith("--"):
            equals, text = "=", remaining.pop(0)
        try:
            found[key] = parse_yaml(text) if equals else True
        except UserError:
            raise UserError(f"--{key}: {text!r:.80} is not a valid YAML value") from None
    return found


def validate(
    schema: type[Settings], values: dict[str, Any], source: str, elsewhere: Elsewhere | None = None
) -> Settings:
    """Raises UserError with one line per finding, each beginning with `source`."""
    return _validated(schema, values, _Origin(source), elsewhere or Elsewhere())


def _validated(schema: type[Settings], values: dict[str, Any], origin: _Origin, elsewhere: Elsewhere) -> Settings:
    try:
        return TypeAdapter(schema).validate_python(values)
    except ValidationError as error:
        lines = [line for finding in error.errors() for line in _sentences(schema, finding, origin, elsewhere)]
        raise UserError("\n".join(dict.fromkeys(lines))) from None


def _set(schema: type, values: dict[str, Any], path: list[str], value: Any) -> None:
    """Set a nested key. A bare string on the way is spelled out first, so that its meaning is kept.

    Raises:
        UserError: another value on the way, such as a list, would be lost.
    """
    annotation: Any = schema
    for depth, part in enumerate(path[:-1], 1):
        annotation = follow(annotation, part)
        inner = values.get(part)
        if (short := shorthand(annotation)) is not None:
            inner = short.spell_out(inner)
        if inner is not None and not isinstance(inner, dict):
            outer = ".".join(path[:depth])
            raise UserError(
                f"{COMMAND_LINE}: --{'.'.join(path)}: {outer} has no keys in the config, where it is {inner!r:.80}; "
                f"give --{outer} as a whole"
            )
        values[part] = inner = {} if inner is None else inner
        values = inner
    values[path[-1]] = value


def _sentences(schema: type, finding: ErrorDetails, origin: _Origin, elsewhere: Elsewhere) -> list[str]:
    place = locate(schema, finding["loc"])
    key = ".".join(place.path)
    source = origin.of(key)
    if finding["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        moved = _moved(key, finding["input"], elsewhere.moved)
        return [f"{source}: {line}" for line in moved or [_unknown(schema, place, elsewhere.foreign)]]
    if finding["type"] in ("missing", "missing_argument"):
        return [f"{source}: key {key!r} is missing"]
    if finding["type"] == "union_tag_invalid":
        kinds = finding["ctx"]["expected_tags"].replace("'", "")
        return [f"{source}: {key}.kind must be one of {kinds}, found {finding['ctx']['tag']!r}"]
    if finding["type"] in NOT_A_MAPPING:
        return [f"{source}: {key} must hold key: value pairs, found {finding['input']!r:.80}"]
    if finding["type"] == "value_error":
        return [f"{source}: {f'{key}: ' if key else ''}{finding['ctx']['error']}"]
    return [f"{source}: {key}: {finding['msg']}, found {finding['input']!r:.80}"]


def _moved(key: str, value: Any, moved: Mapping[str, str]) -> list[str]:
    """Where an unknown key is now, or the keys inside of it."""
    present = {key, *(f"{key}.{inner}" for inner in value)} if isinstance(value, dict) else {key}
    if new_places := {old: new for old, new in moved.items() if old in present}:
        return [f"key {old!r} has moved to {new!r}" for old, new in new_places.items()]
    groups = {new.rpartition(".")[0] for old, new in moved.items() if old.startswith(f"{key}.")}
    return [f"the keys of {key!r} have moved to {min(groups)!r}"] if groups else []


def _unknown(schema: type, place: Place, foreign: Mapping[str, str]) -> str:
    """What is wrong with an unknown key: it belongs to another kind, program or group, or is mistyped."""
    path, owner = place.path, place.owner
    key, last = ".".join(path), path[-1]
    if owners := [kind_of(variant) for variant in place.variants if last in field_types(variant)]:
        kinds = f"kind {owners[0]}" if len(owners) == 1 else f"kinds {', '.join(owners)}"
        union = ".".join(path[:-1])
        return f"key {key!r} belongs to {kinds}, but {union}.kind is {kind_of(owner)}"
    if last in foreign:
        return f"unknown key {key!r}; {foreign[last]}"
    elsewhere = [known for known in sorted(all_paths(schema)) if known.endswith(f".{key}")]  # `lr`: `optimizer.lr`
    sibling = nearest(last, field_types(owner))
    if near := next(iter(elsewhere), None) or (sibling and ".".join((*path[:-1], sibling))):
        return f"unknown key {key!r}; the nearest valid key is {near!r}"
    return f"unknown key {key!r}; the keys here are {', '.join(field_types(owner))}"
