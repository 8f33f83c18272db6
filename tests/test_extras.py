"""Optional packages: a missing one is named with the extra that installs it."""

import json
import subprocess
import sys

import pytest

from mmchat.errors import UserError
from mmchat.extras import EXTRA_OF, require
from tests.launching import ROOT


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
    require(*(set(EXTRA_OF) - {"liger_kernel"}))  # not among the tests' packages: it needs Triton
    assert set(sys.modules) - before <= {"importlib.util"}


def test_the_demo_as_a_program_names_its_extra():
    code = "import runpy, sys; sys.modules['gradio'] = None; runpy.run_path('demo/app.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: gradio is not installed; run pip install 'mmchat[demo]'\n")


IMPORT_EVERYTHING = """
import importlib, json, pkgutil, sys
from importlib.machinery import PathFinder

extras = set(json.loads(sys.argv[1]))

class WithoutExtras(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in extras else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutExtras
import mmchat
for module in pkgutil.walk_packages(mmchat.__path__, "mmchat."):
    if not module.name.startswith("mmchat._bundled"):
        importlib.import_module(module.name)
"""


def test_a_core_install_imports_every_module():
    extras = json.dumps(sorted(set(EXTRA_OF) - {"fontTools"}))  # matplotlib, which is core, brings fontTools
    done = subprocess.run([sys.executable, "-c", IMPORT_EVERYTHING, extras], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
