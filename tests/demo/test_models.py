"""Models are opened when asked and closed when others need the room, never while they answer."""

import threading
from pathlib import Path

import pytest
from web_chat.models import Models, short_names

from mmchat.errors import UserError


class Opened:
    def __init__(self, path):
        self.path, self.closed = path, False

    def close(self):
        self.closed = True


@pytest.fixture
def models(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
    return Models([tmp_path / name for name in "abc"], Opened, keep=2)


def test_the_one_not_used_for_longest_is_closed(models):
    with models.use("a") as a, models.use("b") as b:
        pass
    with models.use("a") as again:
        assert again is a
    with models.use("c"):
        assert b.closed and not a.closed
    with models.use("b") as reopened:
        assert reopened is not b and a.closed


def test_a_model_that_answers_is_not_closed(models):
    entered = threading.Event()
    with models.use("a") as a, models.use("b") as b:

        def third():
            with models.use("c"):
                entered.set()

        thread = threading.Thread(target=third)
        thread.start()
        assert not entered.wait(0.2) and not a.closed and not b.closed
    thread.join(5)
    assert entered.is_set() and a.closed + b.closed == 1


def test_mistakes_are_named(models, tmp_path):
    with pytest.raises(UserError, match="there is no model x; choose one of a, b, c"), models.use("x"):
        pass
    with pytest.raises(UserError, match="none does not exist"):
        Models([tmp_path / "none"], Opened)


def test_short_names():
    paths = [Path("runs/quickstart/model"), Path("runs/big/model"), Path("x/big"), Path("alone")]
    assert short_names(paths) == ["quickstart", "runs/big/model", "x/big", "alone"]
