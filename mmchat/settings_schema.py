"""Reads the schema of settings dataclasses: which keys there are, and which key an error of pydantic is about.

A field may hold a nested dataclass, one by name (`dict[str, X]`), or one of several dataclasses that their field
`kind` tells apart (a discriminated union).
"""

from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo
from pydantic_core import core_schema

DISCRIMINATOR = "kind"
NAME = "NAME"
"""Stands in a path for the name that the user gives to an entry of a mapping."""


@dataclass(frozen=True)
class Shorthand:
    """Annotation of a field that holds a mapping: a bare string stands for {key: string}.

    default: value of `key` in a mapping that lacks it.
    """

    key: str
    default: str | None = None

    def spell_out(self, value: Any) -> Any:
        if isinstance(value, str):
            return {self.key: value}
        if isinstance(value, dict) and self.default is not None:
            return {self.key: self.default, **value}
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self.spell_out, handler(source))


@dataclass(frozen=True)
class Key:
    """One key of a schema.

    Args:
        path: its names; `NAME` for one that the user chooses.
        type: readable, as `integer or null`; "group" for a key that holds keys.
        default: as YAML; "required" if there is none.
        meaning: its description.
        kinds: the kinds of its union that have it; empty: all, or there is no union.
    """

    path: tuple[str, ...]
    type: str
    default: str
    meaning: str
    kinds: tuple[str, ...] = ()

    @property
    def is_group(self) -> bool:
        return self.type == "group"


@dataclass(frozen=True)
class Place:
    """The key that an error is about.

    Args:
        path: its names.
        owner: the dataclass that should have it.
        variants: the dataclasses of the union that `owner` belongs to; empty if there is none.
    """

    path: tuple[str, ...]
    owner: Any
    variants: tuple[type, ...]


def describe(schema: type) -> list[Key]:
    """Every key of a schema, depth first, each group before its keys; what `--help` prints."""
    found = []
    for item in fields(schema):
        info = field_infos(schema)[item.name]
        default = "required" if info.is_required() else _default(info)
        meaning = info.description or ""
        inner = dataclasses_in(item.type)
        if not inner:
            found.append(Key((item.name,), type_text(item.type), default, meaning))
            continue
        prefix = (item.name, NAME) if _is_mapping(item.type) else (item.name,)
        found.append(Key(prefix, "group", default, meaning))
        found += [replace(key, path=prefix + key.path) for key in _of_variants(inner)]
    return found


def _of_variants(variants: tuple[type, ...]) -> list[Key]:
    """Keys of one dataclass, or of all in a union: what several kinds have alike is listed once."""
    if len(variants) == 1:
        return describe(variants[0])
    kinds = tuple(map(kind_of, variants))
    meaning = "; ".join(f"{kind_of(v)}: {field_infos(v)[DISCRIMINATOR].description}" for v in variants)
    owners: dict[Key, tuple[str, ...]] = {}
    for variant in variants:
        for key in describe(variant):
            if key.path != (DISCRIMINATOR,):
                owners[key] = (*owners.get(key, ()), kind_of(variant))
    found = [replace(key, kinds=() if those == kinds else those) for key, those in owners.items()]
    return [Key((DISCRIMINATOR,), " | ".join(kinds), kinds[0], meaning), *found]


def all_paths(schema: type) -> set[str]:
    """Dotted names of all keys, groups included."""
    return {".".join(key.path) for key in describe(schema)}


def field_infos(schema: Any) -> dict[str, FieldInfo]:
    """pydantic's description of each field of a settings dataclass."""
    return schema.__pydantic_fields__


def field_types(schema: Any) -> dict[str, Any]:
    return {item.name: item.type for item in fields(schema)} if is_dataclass(schema) else {}


def kind_of(variant: Any) -> str:
    """The value of the discriminator that a dataclass of a union has."""
    return get_args(field_types(variant)[DISCRIMINATOR])[0]


def dataclasses_in(annotation: Any) -> tuple[type, ...]:
    """The settings dataclasses that a field of this type can hold."""
    if isinstance(annotation, type) and is_dataclass(annotation):
        return (annotation,)
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return dataclasses_in(inner[0])
    if origin is dict:
        return dataclasses_in(inner[1])
    if origin in (Union, UnionType):
        return tuple(found for one in inner for found in dataclasses_in(one))
    return ()


def shorthand(annotation: Any) -> Shorthand | None:
    """The shorthand that a field's annotation declares, if it does."""
    return next((extra for extra in getattr(annotation, "__metadata__", ()) if isinstance(extra, Shorthand)), None)


def follow(annotation: Any, name: str) -> Any:
    """The annotation of a key inside what `annotation` holds; None if there is no such key."""
    if _is_mapping(annotation):
        return get_args(_stripped(annotation))[1]
    return next((field_types(one)[name] for one in dataclasses_in(annotation) if name in field_types(one)), None)


def locate(schema: type, location: tuple[str | int, ...]) -> Place:
    """The key at an error's location, in which pydantic also names the kind of a union's variant."""
    path: list[str] = []
    annotation: Any = schema
    owner: Any = None
    variants: tuple[type, ...] = ()
    for element in location:
        if element == "[key]":  # pydantic's name for the key, as opposed to the value, of the entry before
            continue
        inner = dataclasses_in(annotation)
        if len(inner) > 1 and not _is_mapping(annotation):
            annotation = next((one for one in inner if kind_of(one) == element), None)
            owner, variants = annotation, inner
            continue
        if inner and not _is_mapping(annotation) and inner[0] is not owner:
            owner, variants = inner[0], ()
        path.append(str(element))
        annotation = follow(annotation, str(element))
    return Place(tuple(path), owner, variants)


IN_WORDS: dict[Any, str] = {
    NoneType: "null",
    bool: "true | false",
    float: "number",
    int: "integer",
    Path: "path",
    str: "text",
}


def type_text(annotation: Any) -> str:
    """A type in a user's words: `number or null`, `stop | skip`, `list of integer`."""
    if annotation in IN_WORDS:
        return IN_WORDS[annotation]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(inner[0])
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin in (Union, UnionType):
        return " or ".join(map(type_text, inner))
    if origin is list:
        return f"list of {type_text(inner[0])}"
    if origin is tuple:
        return f"[{', '.join(map(type_text, inner))}]"
    if origin is dict:
        return f"{{{type_text(inner[0])}: {type_text(inner[1])}}}"
    return annotation.__name__


def _stripped(annotation: Any) -> Any:
    """Without `Annotated` and `| None`."""
    if get_origin(annotation) is Annotated:
        return _stripped(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        inner = [one for one in get_args(annotation) if one is not NoneType]
        return _stripped(inner[0]) if len(inner) == 1 else annotation
    return annotation


def _is_mapping(annotation: Any) -> bool:
    return get_origin(_stripped(annotation)) is dict


def _default(info: Any) -> str:
    value = info.get_default(call_default_factory=True)
    if value is MISSING or is_dataclass(value):
        return ""
    return yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("\n...")
