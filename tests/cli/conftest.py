"""The command line, in process."""

import pytest

from mmchat.cli.main import main


@pytest.fixture
def run(capsys):
    """run(*words) -> (exit status, stdout, stderr)"""

    def run(*words):
        capsys.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:
            status = stop.code
        return (status, *capsys.readouterr())

    return run
