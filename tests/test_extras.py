"""Optional packages: a missing one is named with the extra that installs it."""

import sys

import pytest

from mmchat.errors import UserError
from mmchat.extras import EXTRA_OF, require


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(UserError, match=r"^nltk is not installed; run pip install 'mmchat\[eval\]'$"):
        require("nltk")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"^nltk, wandb are not installed; run pip install 'mmchat\[eval,tracking\]'$"):
        require("nltk", "wandb")
    with pytest.raises(UserError, match=r"pip install 'mmchat\[tools\]'$"):
        require("nltk", extra="tools")


def test_an_installed_package_is_not_imported():
    before = set(sys.modules)
    require(*EXTRA_OF)
    assert set(sys.modules) - before <= {"importlib.util"}
