"""`/v1/chat/completions` through a socket, as OpenAI's client and curl use it."""

import json
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from mmchat.serving.settings import Limits
from tests.serving.fakes import FakeAssistant, until
from tests.serving.live import MODEL, data_uri, image_part, running, text_part


@pytest.fixture(scope="module")
def client(live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)


def test_a_text_is_answered(client):
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hello there"}])
    assert answer.choices[0].message.content == "Hello there"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.object, answer.model) == ("chat.completion", MODEL)
    assert answer.usage.model_dump()["total_tokens"] == 7 + len(range(0, 11, 3))
    assert answer.id.startswith("chatcmpl-")


def test_images_arrive_in_order(client):
    content = [image_part(data_uri("red")), text_part("What"), image_part(data_uri("lime", kind="BMP")), text_part("?")]
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}])
    assert answer.choices[0].message.content == "What?|ff0000|00ff00"


def test_a_stream_has_role_pieces_reason_and_usage(client):
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "One two"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    first, *pieces, end, usage = list(stream)
    assert first.choices[0].delta.role == "assistant"
    assert [piece.choices[0].delta.content for piece in pieces] == ["One", " tw", "o"]
    assert end.choices[0].finish_reason == "stop"
    assert (usage.choices, usage.usage.completion_tokens) == ([], 3)
    assert len({chunk.id for chunk in (first, *pieces, end, usage)}) == 1


def test_a_stream_ends_with_done_and_has_no_usage_unasked(live):
    response = live.chat(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done = response.text.strip().split("\n\n")
    assert done == "data: [DONE]"
    assert all("usage" not in json.loads(event.removeprefix("data: ")) for event in events)


def test_several_choices(client, live):
    live.assistant.options.clear()
    messages = [{"role": "user", "content": [image_part(data_uri("blue")), text_part("n")]}]
    answer = client.chat.completions.create(model=MODEL, messages=messages, n=3, seed=2**63 - 2, temperature=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {"n|0000ff"}
    assert [one["seed"] for one in live.assistant.options] == [2**63 - 2, 2**63 - 1, 0]
    assert answer.usage.prompt_tokens == 7

    stream = client.chat.completions.create(model=MODEL, messages=messages, n=2, stream=True)
    texts = ["", ""]
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["n|0000ff"] * 2


def test_options_reach_the_engine(live):
    live.assistant.options.clear()
    options = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.1, "seed": -1, "stop": "x"}
    assert live.chat(max_completion_tokens=9, **options).status_code == 200
    (seen,) = live.assistant.options
    expected = {**options, "seed": 2**63 - 1, "stop": ("x",), "max_new_tokens": 9}
    assert {name: seen[name] for name in expected} == expected
    live.assistant.options.clear()
    assert live.chat(stop=["a", "b"]).status_code == 200
    (seen,) = live.assistant.options
    assert (seen["temperature"], seen["max_new_tokens"], seen["stop"]) == (0.0, 1024, ("a", "b"))


def test_length_is_a_reason(client):
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "abcdef"}], max_tokens=1)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("abc", "length")


def test_a_developer_is_a_system_and_an_answer_can_be_sent_back(client, live):
    live.assistant.options.clear()
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "a"}])
    history = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": "a"},
        answer.choices[0].message.model_dump(),
        {"role": "user", "content": "b"},
    ]
    client.chat.completions.create(model=MODEL, messages=history)
    assert live.assistant.options[-1]["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "b"},
    ]


def test_what_changes_nothing_may_be_said(live):
    options = {
        "user": "someone",
        "metadata": {"a": "b"},
        "n": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "logprobs": False,
        "tools": [],
        "tool_choice": "none",
        "store": False,
        "seed": None,
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "service_tier": "auto",
    }
    assert live.chat(**options).status_code == 200


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"logprobs": 2}, "logprobs", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter"),
        ({"logit_bias": {"50": 1}}, "logit_bias", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"response_format": {"type": "grammar"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "invalid_value"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "unknown_parameter"),
        ({"temperatures": 0}, "temperatures", "unknown_parameter"),
        ({"temperature": "0"}, "temperature", "invalid_value"),
        ({"temperature": 2.5}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 5000}, "max_tokens", "invalid_value"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "invalid_value"),
        ({"n": 9}, "n", "invalid_value"),
        ({"stop": [""]}, "stop", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hello"}, "messages", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages[0].name", "unsupported_parameter"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "x"}]}]}, "messages[0].content[0].type", "invalid_value"),
    ],
)
def test_what_is_not_done_is_refused_by_name(live, options, param, code):
    response = live.client.post(
        "/v1/chat/completions",
        content=json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "a"}], **options}),
        headers={"content-type": "application/json"},
    )
    error = response.json()["error"]
    assert response.status_code == 400, response.text
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert error["param"].startswith(param)
    assert param.rpartition(".")[2].rpartition("]")[2] in error["message"]


def test_another_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError, match="the model is 'tiny'"):
        client.chat.completions.create(model="gpt", messages=[{"role": "user", "content": "a"}])


def test_models(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "mmchat"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_of_the_model_has_a_status(live, stream):
    response = live.chat("too long", stream=stream)
    assert response.status_code == 400
    assert "context is 512" in response.json()["error"]["message"]
    assert until(lambda: live.service.answers.held == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_who_leaves_frees_the_slot(stream):
    with running(FakeAssistant(pace=0.05)) as live:
        with (
            live.client.stream(
                "POST",
                "/v1/chat/completions",
                json={"model": MODEL, "messages": [{"role": "user", "content": "a" * 3000}], "stream": True},
            )
            if stream
            else pytest.raises(Exception, match="timed out") as response
        ):
            if stream:
                assert until(lambda: live.assistant.running == 1)
                next(response.iter_bytes())
            else:
                live.client.timeout = 0.3
                live.chat("a" * 3000)
        service = live.service  # the whole answer would take 50 s
        assert until(lambda: live.assistant.running == service.answers.held == service.bodies.held == 0)
        assert until(lambda: service.open_requests == 0)
        assert live.chat("b" * 3).status_code == 200


def test_a_slow_reader_holds_nobody_up():
    """It reads nothing of a long answer; the answer is made all the same, and others are answered meanwhile."""
    limits = Limits(new_tokens=1000, text_characters=20_000_000)
    with running(FakeAssistant(size=50_000), limits=limits) as live:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 15_000_000}], "stream": True}
        with live.client.stream("POST", "/v1/chat/completions", json=body) as slow:
            pieces = slow.iter_bytes()
            next(pieces)
            # The answer is larger than what the kernel's buffers take. It is made, and holds no slot.
            assert until(lambda: live.service.answers.held == 0)
            with ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(lambda number: live.chat(f"n{number}"), range(32)))
            assert all(answer.status_code == 200 for answer in answers)
            assert live.service.open_requests == 1
            rest = b"".join(pieces)
        assert rest.endswith(b"data: [DONE]\n\n")
        assert rest.count(b"x") > 14_900_000


def test_answers_do_not_cross(live):
    colours = ["red", "lime", "blue", "white", "black", "gray"]
    codes = ["ff0000", "00ff00", "0000ff", "ffffff", "000000", "808080"]

    def ask(number):
        colour = number % 6
        content = [image_part(data_uri(colours[colour])), text_part(f"Question {number}")]
        text = live.chat(content).json()["choices"][0]["message"]["content"]
        return text == f"Question {number}|{codes[colour]}"

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(100)))
