"""Fetch an image from a public http(s) address, and from no other.

A server that fetches what strangers name could be used to reach what only the server reaches (OWASP: server-side
request forgery). So a host is resolved once, every address that it has must be public, and the connection goes to the
address that was checked. The same holds for every redirect. Proxies of the environment are not used.
"""

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from urllib.parse import SplitResult, urljoin, urlsplit

from mmchat.data.image_refs import FETCH_SECONDS, MAX_FETCHED_BYTES
from mmchat.errors import UserError

MOST_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
CHUNK = 1 << 16

Resolve = Callable[[str, int], list[str]]
"""Host and port to the addresses that it has now."""


def resolve(host: str, port: int) -> list[str]:
    """All addresses of a host. Raises OSError if it has none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(one[4][0]) for one in found))


def is_public(address: str) -> bool:
    """Whether an address belongs to the Internet. One that carries another address is judged by that, too."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        carried = ip.ipv4_mapped or _of_nat64(ip)
        if carried is not None:
            return is_public(str(carried))
        if ip.teredo or (ip.sixtofour and not is_public(str(ip.sixtofour))):
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _of_nat64(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address in 64:ff9b::/96 (RFC 6052)."""
    return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in ipaddress.ip_network("64:ff9b::/96") else None


def fetch_public(
    url: str, max_bytes: int = MAX_FETCHED_BYTES, seconds: float = FETCH_SECONDS, resolve: Resolve = resolve
) -> bytes:
    """The body at an address.

    Args:
        url: http(s), with a host that has public addresses only.
        max_bytes: A larger body is refused.
        seconds: For everything, redirects included.
        resolve: Looks up a host, once for each address.

    Raises:
        UserError: The address is not allowed, or nothing could be fetched from it.
    """
    deadline = time.monotonic() + seconds
    try:
        for _ in range(MOST_REDIRECTS + 1):
            body, target = _get(url, max_bytes, deadline, resolve)
            if target is None:
                return body
            url = urljoin(url, target)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"image {url[:200]} could not be fetched: {type(error).__name__}") from None
    raise UserError(f"image {url[:200]} could not be fetched: more than {MOST_REDIRECTS} redirects")


def _get(url: str, max_bytes: int, deadline: float, resolve: Resolve) -> tuple[bytes, str | None]:
    """The body, and where a redirect leads."""
    parts = urlsplit(url)
    host, port = _target(parts, url)
    address = _public_address(host, port, resolve)
    connection = _connect(parts.scheme, host, port, address, deadline)
    try:
        path = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
        connection.request("GET", path, headers={"Accept": "image/*", "User-Agent": "mmchat"})
        answer = connection.getresponse()
        if answer.status in REDIRECTS and (target := answer.getheader("Location")):
            return b"", target
        if answer.status != 200:
            raise UserError(f"image {url[:200]} could not be fetched: HTTP status {answer.status}")
        return _read(answer, connection, url, max_bytes, deadline), None
    finally:
        connection.close()


def _target(parts: SplitResult, url: str) -> tuple[str, int]:
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"image {url[:200]} is not an http(s) address")
    if parts.username or parts.password:
        raise UserError("the address of an image must not hold a user name or password")
    return parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _public_address(host: str, port: int, resolve: Resolve) -> str:
    """The address to connect to. One that is not public makes all suspicious, so none is used then."""
    addresses = resolve(host, port)
    if not addresses or not all(map(is_public, addresses)):
        raise UserError(f"image address {host[:100]} does not lead to a public host; send the image as a data URI")
    return addresses[0]


def _connect(scheme: str, host: str, port: int, address: str, deadline: float) -> http.client.HTTPConnection:
    """A connection to a checked address. TLS still verifies the host's name."""
    connection = http.client.HTTPConnection(host, port, timeout=_left(deadline))
    plain = socket.create_connection((address, port), timeout=_left(deadline))
    try:
        tls = ssl.create_default_context().wrap_socket(plain, server_hostname=host) if scheme == "https" else plain
    except BaseException:
        plain.close()
        raise
    connection.sock = tls
    return connection


def _read(
    answer: http.client.HTTPResponse, connection: http.client.HTTPConnection, url: str, max_bytes: int, deadline: float
) -> bytes:
    data = bytearray()
    while True:
        if connection.sock is not None:
            connection.sock.settimeout(_left(deadline))
        chunk = answer.read1(CHUNK)
        if not chunk:
            return bytes(data)
        data += chunk
        if len(data) > max_bytes:
            raise UserError(f"image {url[:200]} is larger than {max_bytes:,} bytes")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
