"""docs/guides/towers.md names what there is, and its table of training works."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

from mmchat.model.projectors import PROJECTORS
from mmchat.training.optim.lora import add_adapters
from mmchat.training.optim.param_groups import apply_rules
from mmchat.training.optim.trainable import Trainable
from mmchat.vision.families import FAMILIES

PAGE = (Path(__file__).parents[1] / "docs" / "guides" / "towers.md").read_text()


@pytest.mark.parametrize("name", [*sorted(FAMILIES), *PROJECTORS])
def test_everything_has_its_row(name):
    assert re.search(rf"^\| .*`{re.escape(name)}`.* \|$", PAGE, re.MULTILINE)


def test_the_table_of_training_works(make_assistant, make_tower):
    shown = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])["trainable"]
    rules = TypeAdapter(Trainable).validate_python(shown)
    model, _ = make_assistant(towers=[make_tower(backbone={"num_hidden_layers": 6}, layer=-2)])
    add_adapters(model, rules)
    apply_rules(model, rules)
    trained = [any(p.requires_grad for p in block.parameters()) for block in model.towers[0].blocks]
    assert trained == [False, True, True, True, True, False]
