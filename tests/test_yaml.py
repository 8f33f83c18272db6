"""YAML of strangers: read in bounded time and memory, or refused in one message."""

import time

import pytest

from mmchat.errors import UserError
from mmchat.files import MAX_YAML_CHARACTERS, parse_yaml
from mmchat.front_matter import read_front_matter
from mmchat.settings import parse_overrides, read_yaml


def nested(levels, merged=False):
    """Each level names the one before ten times."""
    first = "a0: &a0 {k: 1}\n" if merged else "a0: &a0 [x]\n"
    before, after = ("{<<: [", "]}") if merged else ("[", "]")
    names = [", ".join([f"*a{level}"] * 10) for level in range(levels)]
    return first + "".join(f"a{level + 1}: &a{level + 1} {before}{ten}{after}\n" for level, ten in enumerate(names))


REFUSED = {
    "deep": ("a: " + "[" * 20_000, "nested too deeply"),
    "deep blocks": ("".join(" " * level + "a:\n" for level in range(900)), "nested too deeply"),
    "aliases": (nested(9), "aliases expand to more than"),
    "merged aliases": (nested(9, merged=True), "aliases expand to more than"),
    "an alias inside itself": ("a: &a [*a]", "inside of what it names"),
    "a long number": (f"a: {'1' * 5000}", "a number of 5,000 characters"),
    "a number of base 60": (f"a: 1{':1' * 200_000}", "a number of 400,001 characters"),
    "an impossible date": ("a: 2001-99-99", "month must be in 1..12"),
    "an object": ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    "a control character": ("a: \0", "special characters are not allowed"),
    "too long": ("a: 1\n" * (MAX_YAML_CHARACTERS // 5 + 1), "has more than 524,288 characters"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_yaml_is_refused_soon(name, tmp_path):
    text, message = REFUSED[name]
    config, card, started = tmp_path / "config.yaml", tmp_path / "README.md", time.process_time()
    config.write_text(text)
    with pytest.raises(UserError, match=message) as refused:
        read_yaml(config)
    assert str(refused.value).startswith(f"config {config} is not valid YAML: ")
    card.write_text(f"---\n{text}\n---\n")
    assert read_front_matter(card) == {}
    with pytest.raises(UserError, match="is not a valid YAML value"):
        parse_overrides(["--data", text])
    assert time.process_time() - started < 5


def test_aliases_and_merges_mean_what_they_say():
    assert parse_yaml("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}") == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}
    assert parse_yaml("") is None
