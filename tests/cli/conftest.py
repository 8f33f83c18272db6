"""The command line, in process."""

import pytest

from mmchat.cli.main import main


@pytest.fixture
def run(capsys):
    """run(*arguments) -> (exit status, stdout, stderr)"""

    def run(*arguments):
        capsys.readouterr()
        try:
            status = main([str(word) for word in arguments])
        except SystemExit as stop:
            status = stop.code
        return (status, *capsys.readouterr())

    return run
