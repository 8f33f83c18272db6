"""`listen`: the socket of a command that serves pages or requests."""

import socket
from collections.abc import Iterable

from mmchat.errors import UserError


def listen(host: str, port: int, options: Iterable[tuple[int, int, int]] = ()) -> socket.socket:
    """A socket that listens. Who connects before the server runs waits for it.

    Open it before the model: a port in use is then found at once.

    Args:
        host: Name or address to listen at.
        port: From 0, which is any free port, to 65535.
        options: Level, name and value of further socket options. Accepted connections inherit them (tcp(7)).

    Raises:
        UserError: The address cannot be used.
    """
    if not 0 <= port < 1 << 16:  # getaddrinfo would take the rest of a division
        raise UserError(f"cannot listen on port {port}; ports are from 0 to 65535, set another --port")
    listening = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        for option in ((socket.SOL_SOCKET, socket.SO_REUSEADDR, 1), *options):
            listening.setsockopt(*option)
        listening.bind(address)
        listening.listen(1024)
    except (OSError, OverflowError, UnicodeError) as error:
        if listening is not None:
            listening.close()
        raise UserError(f"cannot listen on {host}:{port} ({error}); set another --port or --host") from None
    return listening
