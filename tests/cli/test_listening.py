"""Where the demo and the server listen."""

import socket

import pytest

from mmchat.command_line.listening import listen
from mmchat.errors import UserError


def test_who_connects_before_the_page_is_served_waits():
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()[:2], timeout=5):
        pass


@pytest.mark.parametrize("port", [-1, 65536])
def test_no_port(port):
    with pytest.raises(UserError, match=f"cannot listen on port {port}; ports are from 0 to 65535"):
        listen("127.0.0.1", port)


def test_an_address_in_use_or_of_another_machine_is_named():
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match="set another --port or --host"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match=r"cannot listen on 192\.0\.2\.1:0"):
        listen("192.0.2.1", 0)
