"""Maps of keys in both directions."""

import pytest

from mmchat.conversion import key_map
from mmchat.conversion.key_map import KeyMap
from mmchat.errors import UserError
from tests.docstring_examples import run_examples

KEYS = KeyMap(
    ("*.position_ids", None),
    ("vision_tower.vision_model.*", "towers.0.backbone.*"),
    ("model.vision_tower.*", "towers.0.backbone.*"),
    ("layers.#.attn.*", "blocks.#.attention.*"),
    ("norm", "last_norm"),
)


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        ("vision_tower.vision_model.pre.weight", "towers.0.backbone.pre.weight"),
        ("layers.11.attn.q.bias", "blocks.11.attention.q.bias"),
        ("norm", "last_norm"),
    ],
)
def test_both_directions(foreign, ours):
    assert KEYS.ours(foreign) == ours
    assert KEYS.foreign(ours) == foreign


def test_the_first_of_several_foreign_names_is_written():
    assert KEYS.ours("model.vision_tower.a") == KEYS.ours("vision_tower.vision_model.a") == "towers.0.backbone.a"
    assert KEYS.foreign("towers.0.backbone.a") == "vision_tower.vision_model.a"


def test_unknown_keys_stay_for_the_strict_load_and_are_refused_in_export():
    assert KEYS.import_state({"layers.x.attn.q": 1, "a.position_ids": 2, "norm": 3, "normal": 4}) == {
        "layers.x.attn.q": 1,
        "last_norm": 3,
        "normal": 4,
    }
    with pytest.raises(KeyError, match=r"towers\.1\.backbone\.a"):
        KEYS.export_state({"towers.1.backbone.a": 1})


def test_two_weights_of_one_name_are_refused():
    with pytest.raises(UserError, match=r"towers\.0\.backbone\.a"):
        KEYS.import_state({"vision_tower.vision_model.a": 1, "model.vision_tower.a": 2})


def test_examples():
    run_examples(key_map, "KeyMap")
