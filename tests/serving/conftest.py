"""A live server for all tests of a file."""

from collections.abc import Iterator

import pytest

from tests.serving.live import Live, running


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    """One server for all tests of a file."""
    with running() as live:
        yield live
