"""Interpreters of other environments, with programs that exports are compared with."""

import os
import subprocess
import sys

from mmchat.errors import UserError
from mmchat.extras import installed


def find_python(module: str, variable: str, script: str) -> str | None:
    """An interpreter that has a program, or None.

    Args:
        module: The program's module.
        variable: Environment variable that may name an interpreter. Without it, the running one is used if it has the
            module.
        script: Script of a checkout that makes an environment.

    Raises:
        UserError: The variable names an interpreter without the module.
    """
    named = os.environ.get(variable)
    if not named:
        return sys.executable if installed(module) else None
    found = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        done = subprocess.run([named, "-c", found], capture_output=True, text=True)
    except OSError as error:
        raise UserError(f"{variable} is {named}, which cannot be run: {error}") from None
    if done.returncode:
        raise UserError(
            f"{variable} is {named}, which cannot import {module}; in a checkout of mmchat, `bash {script} DIR` makes "
            "an environment that can"
        )
    return named
