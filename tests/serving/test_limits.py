"""Keys, rates and sizes: what is too much is refused with its name, and the server answers on."""

import gc
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from mmchat.errors import UserError
from mmchat.serving.errors import ApiError
from mmchat.serving.keys import check_reach, read_keys
from mmchat.serving.limits import Budget, RateLimit
from mmchat.serving.metrics import Throughput
from mmchat.serving.settings import Limits
from tests.serving.fakes import FakeAssistant, until
from tests.serving.live import MODEL, data_uri, image_part, running, text_part

KEY, OTHER = "a" * 20, "b" * 20
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}


def refusal(response: httpx.Response) -> tuple[int, str]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["code"]


@pytest.fixture(scope="module")
def small():
    """A server whose limits are easily exceeded."""
    limits = Limits(
        body_bytes=20_000, body_seconds=0.5, buffered_bytes=30_000, images=2, pixels=1000, text_characters=1000
    )
    with running(limits=limits) as live:
        yield live


# Keys


def test_a_key_is_needed_where_there_are_keys():
    with running(keys=(KEY, OTHER)) as live:
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": KEY},
            {"authorization": f"Basic {KEY}"},
        ):
            for path in ("/v1/models", "/metrics", "/v1/nothing"):
                assert refusal(live.client.get(path, headers=headers)) == (401, "invalid_api_key")
            assert refusal(live.chat(headers=headers)) == (401, "invalid_api_key")
        for key in (KEY, OTHER):
            assert live.chat(headers={"authorization": f"Bearer {key}"}).status_code == 200
        assert live.client.get("/health").status_code == live.client.get("/ready").status_code == 200
        assert live.client.get("/health", headers={"host": "example.org"}).status_code == 200


def test_without_keys_only_names_of_this_machine_are_answered(live):
    for host in ("127.0.0.1:80", "localhost", "[::1]:8000", "127.0.0.2"):
        assert live.client.get("/v1/models", headers={"host": host}).status_code == 200
    for host in ("example.org", "example.org:8000", "192.168.0.1", "127.0.0.1.example.org"):
        assert refusal(live.client.get("/v1/models", headers={"host": host})) == (403, "bad_host")


def test_only_loopback_needs_no_key():
    for host in ("127.0.0.1", "::1", "localhost", "127.1.2.3"):
        check_reach(host, ())
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.org", ""):
        with pytest.raises(UserError, match="needs API keys"):
            check_reach(host, ())
        check_reach(host, (KEY,))


def test_keys_are_read_from_file_and_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text(f"# of the team\n\n{KEY}\n  {OTHER} \n{KEY}\n")
    assert read_keys(file) == (KEY, OTHER)
    monkeypatch.setenv("MMCHAT_API_KEYS", f"{'c' * 16},{'d' * 16} {KEY}")
    assert read_keys(file) == ("c" * 16, "d" * 16, KEY, OTHER)
    monkeypatch.delenv("MMCHAT_API_KEYS")
    assert read_keys(None) == ()


@pytest.mark.parametrize("text", ["", "# nothing\n", "short\n", "with space in the key\n", "\u00e4" * 20 + "\n"])
def test_an_unusable_key_is_refused_without_being_printed(tmp_path, text):
    file = tmp_path / "keys"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="keys") as error:
        read_keys(file)
    assert not text.strip() or text.strip() not in str(error.value)


# Rate


def test_a_rate_is_of_each_key():
    headers = [{"authorization": f"Bearer {key}"} for key in (KEY, OTHER)]
    with running(keys=(KEY, OTHER), limits=Limits(requests_per_minute=3)) as live:
        answers = [live.chat(headers=headers[0]) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert refusal(answers[-1]) == (429, "rate_limit_exceeded")
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 21
        assert live.chat(headers=headers[1]).status_code == 200
        assert live.client.get("/v1/models", headers=headers[0]).status_code == 200


def test_a_minute_fills_the_bucket():
    now = [0.0]
    rate = RateLimit(60, clock=lambda: now[0])
    for _ in range(60):
        rate.take("a")
    with pytest.raises(ApiError) as error:
        rate.take("a")
    assert error.value.retry_after == pytest.approx(1)
    now[0] = 2.5
    rate.take("a"), rate.take("a")
    with pytest.raises(ApiError):
        rate.take("a")


def test_a_budget_holds_nothing_of_what_does_not_fit():
    budget = Budget(3, lambda: ApiError(429, "full", "full"))
    budget.take(2)
    with pytest.raises(ApiError):
        budget.take(2)
    assert budget.held == 2
    budget.give(2)
    budget.take(3)


# Sizes


def test_a_large_body_is_refused_before_it_is_read(small):
    assert refusal(small.chat("a" * 30_000)) == (413, "body_too_large")

    def chunks():
        for _ in range(30):
            yield b" " * 1000

    response = small.client.post("/v1/chat/completions", content=chunks(), headers={"content-type": "application/json"})
    assert refusal(response) == (413, "body_too_large")
    assert until(lambda: small.service.bodies.held == 0)
    assert small.chat("a").status_code == 200


def test_a_body_of_many_values_is_refused(small):
    body = {**CHAT, "messages": [[]] * 1500}
    assert refusal(small.client.post("/v1/chat/completions", json=body)) == (413, "body_too_complex")


def test_text_is_limited_over_all_messages(small):
    messages = [{"role": "user", "content": "a" * 600}, {"role": "user", "content": [text_part("b" * 500)]}]
    response = small.client.post("/v1/chat/completions", json={"model": MODEL, "messages": messages})
    assert refusal(response) == (400, "text_too_long")


def test_images_are_limited_by_number_and_pixels_in_all(small):
    one = image_part(data_uri("red", (20, 20)))
    assert small.chat([one, one, text_part("a")]).status_code == 200
    assert refusal(small.chat([one, one, one])) == (400, "too_many_images")
    two = image_part(data_uri("red", (20, 31)))
    assert refusal(small.chat([one, two])) == (400, "too_many_pixels")
    assert refusal(small.chat([image_part(data_uri("red", (1, 1001)))])) == (400, "too_many_pixels")


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://127.0.0.1/a.png", "image_url_not_allowed"),
        ("HTTP://127.0.0.1/a.png", "image_url_not_allowed"),
        ("file:///etc/passwd", "invalid_image"),
        ("/etc/passwd", "invalid_image"),
        ("", "invalid_image"),
        ("data:image/png;base64,AAAA", "invalid_image"),
        ("data:image/png;base64,not base64", "invalid_image"),
        ("data:image/png,plain", "invalid_image"),
        ("data:image/svg+xml;base64,PHN2Zy8+", "invalid_image"),
    ],
)
def test_what_is_not_an_image_is_refused(live, url, code):
    response = live.chat([image_part(url), text_part("a")])
    assert refusal(response) == (400, code)
    assert response.json()["error"]["param"] == "messages[0].content[0].image_url.url"
    assert "root:" not in response.text


def test_a_broken_image_is_refused(live):
    whole = data_uri("red", (64, 64), "PNG")
    response = live.chat([image_part(whole[: len(whole) // 2 // 4 * 4 + 2]), text_part("a")])
    assert response.status_code == 400


def test_an_image_in_another_turn_is_refused(live):
    messages = [{"role": "assistant", "content": [image_part(data_uri("red"))]}]
    response = live.client.post("/v1/chat/completions", json={"model": MODEL, "messages": messages})
    assert refusal(response) == (400, "invalid_value")


def test_too_many_at_once_are_refused_and_the_others_answered():
    with running(FakeAssistant(pace=0.05), limits=Limits(in_flight=4)) as live:
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda _: live.chat("a" * 12), range(12)))
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 429} and statuses.count(200) >= 4
        assert refusal(next(one for one in answers if one.status_code == 429)) == (429, "too_many_in_flight")
        assert until(lambda: live.service.answers.held == 0)
        assert live.chat(n=4).status_code == 200
        assert refusal(live.chat(n=5)) == (429, "too_many_in_flight")


def send(live, data: bytes) -> socket.socket:
    host, port = live.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=5)
    connection.sendall(data)
    return connection


def head(length: int) -> bytes:
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def test_a_slow_body_ends_and_holds_nobody_up(small):
    slow = [send(small, head(1000) + b'{"model"') for _ in range(20)]
    assert small.chat("a").status_code == 200
    for connection in slow:
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
        connection.close()


def test_a_body_that_drips_ends_too():
    with running(limits=Limits(body_seconds=0.1)) as live:
        connection = send(live, head(1000))
        started = time.monotonic()
        with pytest.raises((BrokenPipeError, ConnectionResetError, AssertionError)):
            while time.monotonic() - started < 5:
                connection.sendall(b" ")
                time.sleep(0.05)
                live.client.get("/health").raise_for_status()
            pytest.fail("the body never ended")
        assert 0.5 < time.monotonic() - started < 4
        connection.close()


def test_nothing_of_a_request_outlives_it(live):
    """Without the garbage collector: references in a circle would keep images for minutes."""

    def alive() -> int:
        return sum(type(one).__name__ in ("Visit", "Work", "AnswerGroup", "FakeAnswer") for one in gc.get_objects())

    gc.collect()
    before = alive()
    gc.disable()
    try:
        for stream in (False, True):
            for _ in range(5):
                assert live.chat([image_part(data_uri("red")), text_part("a")], stream=stream).status_code == 200
        assert live.chat([image_part(data_uri("red"))] * 9).status_code == 400
        assert until(lambda: alive() <= before)
    finally:
        gc.enable()


def test_bodies_held_by_all_are_limited(small):
    held = [send(small, head(15_000) + b" " * 14_000) for _ in range(2)]
    assert until(lambda: small.service.bodies.held == 28_000)
    assert refusal(small.chat("a" * 900, metadata={"a": "b" * 5000})) == (429, "too_many_bytes")
    for connection in held:
        connection.close()
    assert until(lambda: small.service.bodies.held == 0)
    assert small.chat("a").status_code == 200


def test_another_media_type_is_refused(live):
    response = live.client.post(
        "/v1/chat/completions", content=json.dumps(CHAT), headers={"content-type": "text/plain"}
    )
    assert refusal(response) == (415, "unsupported_media_type")


def test_limits_must_be_positive():
    with pytest.raises(UserError, match="the limit images must be above 0, found 0"):
        Limits(images=0)
    assert Limits(drain_seconds=0).drain_seconds == 0


# Metrics


def test_metrics_count_requests_and_refusals(small):
    def value(name: str) -> float:
        lines = small.client.get("/metrics").text.splitlines()
        return float(next((line.rpartition(" ")[2] for line in lines if line.startswith(name + " ")), 0))

    names = [
        'mmchat_requests_total{route="/v1/chat/completions",status="413"}',
        'mmchat_refused_total{code="body_too_large"}',
        'mmchat_requests_total{route="other",status="404"}',
    ]
    before = [value(name) for name in names]
    small.chat("a" * 30_000)
    assert small.client.get("/some/path").json()["error"]["type"] == "invalid_request_error"
    assert [value(name) for name in names] == [one + 1 for one in before]


def test_throughput_is_of_the_last_seconds():
    now = [0.0]
    throughput = Throughput(clock=lambda: now[0])
    assert throughput.per_second == 0
    for second in range(60):
        now[0] = second
        throughput.sample(100 * second if second < 40 else 4000)
    assert throughput.per_second == 0
    now[0] = 60
    throughput.sample(5000)
    assert throughput.per_second == pytest.approx(100)


def test_the_server_fetches_only_if_it_may(monkeypatch):
    found, real = [(2, 1, 6, "", ("10.0.0.1", 80))], socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **o: found if host == "example.org" else real(host, *a, **o)
    )
    with running(allow_image_urls=True) as live:
        response = live.chat([image_part("http://example.org/a.png"), text_part("a")])
    assert response.status_code == 400
    assert "does not lead to a public host" in response.json()["error"]["message"]
