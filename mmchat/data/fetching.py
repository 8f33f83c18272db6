"""Fetch an image from an http(s) address, within limits of bytes and time.

Addresses come from records and requests, so they are untrusted. A program that fetches them could be used to reach
what only its machine reaches (OWASP: server-side request forgery). Unless private addresses are allowed, a host is
resolved once, every address that it has must be public, and the connection goes to the address that was checked. The
same holds for every redirect.

A server may send a byte a second, also in headers. So one deadline holds for everything.
"""

import base64
import http.client
import io
import ipaddress
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from mmchat.errors import UserError

FETCH_SECONDS = 30.0
MAX_FETCHED_BYTES = 64 << 20
MOST_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
CHUNK = 1 << 16
PORTS = {"http": 80, "https": 443}

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


def fetch(
    url: str,
    max_bytes: int = MAX_FETCHED_BYTES,
    seconds: float = FETCH_SECONDS,
    *,
    private: bool = False,
    resolve: Resolve = resolve,
) -> bytes:
    """The body at an address.

    Args:
        url: An http(s) address.
        max_bytes: A larger body is refused.
        seconds: For everything, redirects included.
        private: Allow hosts that are not public, and use the proxy that the environment names (`http_proxy`,
            `no_proxy`); a proxy resolves hosts itself, so nothing could be checked.
        resolve: Looks up a host, once for each address.

    Raises:
        UserError: The address is not allowed, or nothing could be fetched from it.
    """
    name, deadline = f"image {url[:200]}", time.monotonic() + seconds
    try:
        for _ in range(MOST_REDIRECTS + 1):
            body, target = _get(url, max_bytes, deadline, private, resolve)
            if target is None:
                return body
            url = urljoin(url, target)
    except UserError:
        raise
    except TimeoutError:
        raise UserError(f"{name} could not be fetched within {seconds:g} s") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"{name} could not be fetched: {str(error)[:200] or type(error).__name__}") from None
    raise UserError(f"{name} could not be fetched: more than {MOST_REDIRECTS} redirects")


def _get(url: str, max_bytes: int, deadline: float, private: bool, resolve: Resolve) -> tuple[bytes, str | None]:
    """The body, and where a redirect leads."""
    parts = urlsplit(url)
    host, port = _target(parts, url)
    path = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
    headers: dict[str, str] = {}
    proxy = _proxy(parts.scheme, host) if private else None
    if proxy is None:
        connection = _connect(parts.scheme, host, port, _address(host, port, private, resolve), deadline)
    else:
        connection, path, headers = _connect_by_proxy(proxy, parts.scheme, host, port, path, deadline)
    try:
        connection.request("GET", path, headers={"Accept": "image/*", "User-Agent": "mmchat", **headers})
        assert connection.sock is not None
        with http.client.HTTPResponse(_TimedReads(connection.sock, deadline), method="GET") as answer:  # type: ignore[arg-type]
            answer.begin()
            if answer.status in REDIRECTS and (target := answer.getheader("Location")):
                return b"", target
            if answer.status != 200:
                raise UserError(f"image {url[:200]} could not be fetched: HTTP status {answer.status}")
            return _read(answer, url, max_bytes), None
    finally:
        connection.close()


def _target(parts: SplitResult, url: str) -> tuple[str, int]:
    if parts.scheme not in PORTS or not parts.hostname:
        raise UserError(f"image {url[:200]} is not an http(s) address")
    if parts.username or parts.password:
        raise UserError("the address of an image must not hold a user name or password")
    return parts.hostname, parts.port or PORTS[parts.scheme]


def _address(host: str, port: int, private: bool, resolve: Resolve) -> str:
    """The address to connect to. One that is not public makes all suspicious, so none is used then."""
    addresses = resolve(host, port)
    if not addresses or not (private or all(map(is_public, addresses))):
        raise UserError(f"image address {host[:100]} does not lead to a public host; give the image itself")
    return addresses[0]


def _connect(scheme: str, host: str, port: int, address: str, deadline: float) -> http.client.HTTPConnection:
    """A connection to a checked address. TLS still verifies the host's name."""
    connection = http.client.HTTPConnection(host, port)
    plain = socket.create_connection((address, port), timeout=_left(deadline))
    try:
        tls = ssl.create_default_context().wrap_socket(plain, server_hostname=host) if scheme == "https" else plain
    except BaseException:
        plain.close()
        raise
    connection.sock = tls
    return connection


def _proxy(scheme: str, host: str) -> SplitResult | None:
    """The proxy that the environment names for a host, as urllib reads it."""
    found = urllib.request.getproxies().get(scheme)
    if not found or urllib.request.proxy_bypass(host):
        return None
    return urlsplit(found if "://" in found else f"http://{found}")


def _connect_by_proxy(
    proxy: SplitResult, scheme: str, host: str, port: int, path: str, deadline: float
) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
    """A connection to the proxy, what to ask it for, and with which headers: a tunnel for https, else the address."""
    login = f"{unquote(proxy.username or '')}:{unquote(proxy.password or '')}"
    headers = {"Proxy-Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if proxy.username else {}
    kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
    connection = kind(proxy.hostname or "", proxy.port or PORTS["http"], timeout=_left(deadline))
    if scheme == "https":
        connection.set_tunnel(host, port, headers)
        headers = {}
    else:
        named = f"[{host}]" if ":" in host else host
        path = f"http://{named}:{port}{path}"
    connection.connect()
    return connection, path, headers


class _TimedReads(io.RawIOBase):
    """What an `HTTPResponse` reads: a socket whose reads all end at one deadline, however few bytes each brings."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._deadline = sock, deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        """What a response calls on a socket."""
        return io.BufferedReader(self, CHUNK)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        self._sock.settimeout(_left(self._deadline))
        return self._sock.recv_into(buffer)


def _read(answer: http.client.HTTPResponse, url: str, max_bytes: int) -> bytes:
    data = bytearray()
    while chunk := answer.read1(CHUNK):
        data += chunk
        if len(data) > max_bytes:
            raise UserError(f"image {url[:200]} is larger than {max_bytes:,} bytes")
    return bytes(data)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
