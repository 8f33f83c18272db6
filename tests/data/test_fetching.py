"""Images from addresses: only public hosts, at every redirect, and never more than allowed."""

import socket
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import pytest

from mmchat.data import fetching
from mmchat.data.fetching import MOST_REDIRECTS, fetch, is_public
from mmchat.data.image_refs import ImageUrl
from mmchat.errors import UserError

PUBLIC = "93.184.215.14"
CONNECT = socket.create_connection


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
        ),
        *(
            "224.0.0.1",
            "255.255.255.255",
            "192.0.2.1",
            "198.18.0.1",
            "240.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "fe80::1%eth0",
        ),
        *(
            "fc00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "2002:7f00:1::",
            "64:ff9b::7f00:1",
            "2001:db8::1",
        ),
        *("64:ff9b::a9fe:a9fe", "2001:0:7f00:1::", "nonsense", ""),
    ],
)
def test_what_is_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_what_is_public(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1/", "http://localhost/", "http://[::1]:8000/", "http://0x7f000001/", "http://2130706433/"),
        *("http://169.254.169.254/latest/meta-data", "http://127.1/", "http://[::ffff:127.0.0.1]/", "http://0/"),
    ],
)
def test_private_hosts_are_refused_before_a_connection(monkeypatch, url):
    monkeypatch.setattr(socket, "create_connection", lambda *args, **options: pytest.fail("connected"))
    with pytest.raises(UserError, match=r"does not lead to a public host|could not be fetched"):
        fetch(url)


@pytest.mark.parametrize("url", ["ftp://a/b", "file:///etc/passwd", "http://", "http://user:word@example.org/", "x"])
def test_other_addresses_are_refused(url):
    with pytest.raises(UserError):
        fetch(url, resolve=lambda host, port: pytest.fail("resolved"))


def test_one_private_address_among_several_refuses_all():
    with pytest.raises(UserError, match="public host"):
        fetch("http://example.org/", resolve=lambda host, port: [PUBLIC, "10.0.0.1"])


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):  # http.server's name
        self.server.seen.append((self.headers["Host"], self.path))
        self.server.logins.append(self.headers["Proxy-Authorization"])
        status, headers, body = self.server.pages.get(self.path, (404, {}, b""))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextmanager
def site(monkeypatch, pages):
    """A local site that all connections reach, in place of the address that was resolved."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.pages, server.seen, server.asked, server.logins = pages, [], [], []
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def redirect(address, timeout, source=None):
        server.asked.append(address)
        return CONNECT(server.server_address, timeout)

    monkeypatch.setattr(fetching.socket, "create_connection", redirect)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def resolving(table):
    asked = []

    def resolve(host, port):
        asked.append(host)
        return table[host]

    resolve.asked = asked
    return resolve


def test_a_public_image_is_fetched_from_the_address_that_was_checked(monkeypatch):
    resolve = resolving({"example.org": [PUBLIC]})
    with site(monkeypatch, {"/a.png?b=c": (200, {}, b"bytes")}) as server:
        assert fetch("http://example.org/a.png?b=c#d", resolve=resolve) == b"bytes"
    assert server.asked == [(PUBLIC, 80)]
    assert server.seen == [("example.org", "/a.png?b=c")]
    assert resolve.asked == ["example.org"]  # once: a second look-up could give another address


def test_a_redirect_to_a_private_host_is_refused(monkeypatch):
    resolve = resolving({"example.org": [PUBLIC], "inside.example.org": ["10.0.0.5"], "127.0.0.1": ["127.0.0.1"]})
    for target in ("http://inside.example.org/", "http://127.0.0.1/", "file:///etc/passwd"):
        with site(monkeypatch, {"/": (302, {"Location": target}, b"")}) as server:
            with pytest.raises(UserError):
                fetch("http://example.org/", resolve=resolve)
            assert len(server.seen) == 1


def test_redirects_are_followed_a_few_times(monkeypatch):
    resolve = resolving({"example.org": [PUBLIC], "cdn.example.org": [PUBLIC]})
    pages = {"/a": (301, {"Location": "http://cdn.example.org/b"}, b""), "/b": (307, {"Location": "c"}, b"")}
    with site(monkeypatch, {**pages, "/c": (200, {}, b"there")}) as server:
        assert fetch("http://example.org/a", resolve=resolve) == b"there"
        assert [host for host, _ in server.seen] == ["example.org", "cdn.example.org", "cdn.example.org"]
    with site(monkeypatch, {"/a": (302, {"Location": "/a"}, b"")}) as server:
        with pytest.raises(UserError, match="redirects"):
            fetch("http://example.org/a", resolve=resolve)
        assert len(server.seen) == 1 + MOST_REDIRECTS


def test_what_is_large_slow_or_missing_is_refused(monkeypatch):
    resolve = resolving({"example.org": [PUBLIC]})
    with site(monkeypatch, {"/large": (200, {}, b"a" * 200_000)}):
        with pytest.raises(UserError, match="larger than 100,000 bytes"):
            fetch("http://example.org/large", 100_000, resolve=resolve)
        with pytest.raises(UserError, match="HTTP status 404"):
            fetch("http://example.org/nothing", resolve=resolve)
        with pytest.raises(UserError, match="within 0 s"):
            fetch("http://example.org/large", seconds=0, resolve=resolve)


@contextmanager
def dripping(before: bytes):
    """A local server that sends a byte after the other and never ends. Its address."""
    listening, stop = socket.create_server(("127.0.0.1", 0)), Event()

    def drip():
        connection, _ = listening.accept()
        with connection:
            connection.sendall(before)
            while not stop.wait(0.02):
                connection.sendall(b"x")

    thread = Thread(target=drip, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/a.png"
    finally:
        stop.set()
        thread.join(5)
        listening.close()


@pytest.mark.parametrize(
    "before",
    [b"", b"HTTP/1.1 200 OK\r\nX-Header: ", b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"],
    ids=["status", "header", "body"],
)
def test_a_byte_now_and_then_holds_nobody(before):
    begun = time.monotonic()
    with dripping(before) as url, pytest.raises(UserError, match=r"could not be fetched within 0\.2 s"):
        fetch(url, seconds=0.2, private=True)
    assert time.monotonic() - begun < 5


def test_private_hosts_are_reached_only_if_they_may(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with site(monkeypatch, {"/": (302, {"Location": "http://127.0.0.1/b"}, b""), "/b": (200, {}, b"there")}):
        assert fetch("http://localhost/", private=True) == ImageUrl("http://localhost/").read() == b"there"
        with pytest.raises(UserError, match="does not lead to a public host"):
            fetch("http://localhost/")


def test_a_proxy_of_the_environment_is_used_only_for_addresses_that_need_not_be_public(monkeypatch):
    resolve = resolving({"example.org": [PUBLIC]})
    monkeypatch.setenv("http_proxy", "http://name:w%20rd@proxy.example.org:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    pages = {"/a": (200, {}, b"direct"), "http://example.org:80/a": (200, {}, b"through the proxy")}
    with site(monkeypatch, pages) as server:
        assert fetch("http://example.org/a", resolve=resolve) == b"direct"
        assert fetch("http://example.org/a", private=True, resolve=resolve) == b"through the proxy"
    assert server.asked == [(PUBLIC, 80), ("proxy.example.org", 3128)]
    assert resolve.asked == ["example.org"]
    assert server.logins == [None, "Basic bmFtZTp3IHJk"]
