"""`/v1/completions`, log probabilities and JSON answers, through OpenAI's client."""

import json
import math

import openai
import pytest
import torch

from mmchat.conversation.safe_tokenizer import safe_tokenizer_for
from mmchat.inference import Generator
from mmchat.inference.engine import EngineSettings
from mmchat.inference.reply import ScoredToken
from mmchat.serving.assistant import ServedAssistant
from mmchat.serving.logprobs import chat_logprobs, completion_logprobs
from tests.serving.live import MODEL, running


def connect(live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def client(live) -> openai.OpenAI:
    return connect(live)


@pytest.fixture(scope="module")
def served(assistant_dir):
    with running(ServedAssistant(assistant_dir, EngineSettings(slots=4), device="cpu")) as live:
        yield live


@pytest.fixture(scope="module")
def generator(assistant_dir):
    with Generator(assistant_dir, device="cpu") as generator:
        yield generator


def test_texts_are_continued_in_order(client):
    answer = client.completions.create(model=MODEL, prompt=["one", "two two"], n=2, max_tokens=50)
    assert [choice.text for choice in answer.choices] == ["one", "one", "two two", "two two"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert (answer.object, answer.id[:5], answer.choices[0].finish_reason) == ("text_completion", "cmpl-", "stop")
    assert answer.usage.prompt_tokens == 2 * 7


def test_without_a_limit_there_are_sixteen_tokens(client):
    answer = client.completions.create(model=MODEL, prompt="abc" * 20)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("abc" * 16, "length")


def test_a_stream_of_several_texts(client):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = client.completions.create(model=MODEL, prompt=["abcdef", "xyz"], **options)
    texts, ends = ["", ""], {}
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].text
        ends[chunk.choices[0].index] = chunk.choices[0].finish_reason
    assert (texts, ends) == (["abcdef", "xyz"], {0: "stop", 1: "stop"})
    assert (last.choices, last.usage.prompt_tokens, last.usage.completion_tokens) == ([], 14, 3)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"prompt": ["a", "b", "c"], "n": 3}, "n"),
        ({"messages": []}, "messages"),
        ({"max_completion_tokens": 3}, "max_completion_tokens"),
    ],
)
def test_what_is_not_done_is_refused_by_name(live, options, param):
    response = live.client.post("/v1/completions", json={"model": MODEL, "prompt": "a", **options})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(param)


# With a model


def greedy(generator, ids: list[int], count: int) -> list[int]:
    """What transformers' own `generate` adds."""
    model = generator.model.language_model
    made = model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False, eos_token_id=-1)
    return made[0, len(ids) :].tolist()


def test_a_continuation_is_the_language_models(served, generator):
    tokenizer = generator.tokenizer
    for text in ("Once upon a time", "a </s> b <img>"):
        safe = safe_tokenizer_for(tokenizer)
        ids = [*safe.prefix, *safe.encode(text).ids]
        assert tokenizer.eos_token_id not in ids
        new = greedy(generator, ids, 8)
        expected = tokenizer.decode(ids + new, skip_special_tokens=True)
        expected = expected.removeprefix(tokenizer.decode(ids, skip_special_tokens=True))
        answer = connect(served).completions.create(model=MODEL, prompt=text, max_tokens=8, temperature=0)
        assert answer.choices[0].text == expected
        assert answer.usage.prompt_tokens == len(ids)


def test_log_probabilities_are_the_models(served, generator):
    tokenizer = generator.tokenizer
    safe = safe_tokenizer_for(tokenizer)
    ids = [*safe.prefix, *safe.encode("Once upon").ids]
    answer = connect(served).completions.create(model=MODEL, prompt="Once upon", max_tokens=5, logprobs=3)
    found = answer.choices[0].logprobs
    new = greedy(generator, ids, 5)
    with torch.inference_mode():
        logits = generator.model.language_model(torch.tensor([ids + new])).logits[0, len(ids) - 1 : -1]
    expected = logits.log_softmax(-1)[torch.arange(5), new]
    assert found.token_logprobs == pytest.approx(expected.tolist(), abs=1e-4)
    assert [max(top.values()) for top in found.top_logprobs] == pytest.approx(expected.tolist(), abs=1e-4)
    assert found.text_offset == [len("".join(found.tokens[:place])) for place in range(5)]
    assert "".join(found.tokens) == answer.choices[0].text  # whose first character is a space that decoding could lose


def test_a_chat_has_log_probabilities(served):
    messages = [{"role": "user", "content": "Hello"}]
    options = {"messages": messages, "max_tokens": 6, "logprobs": True, "top_logprobs": 2, "seed": 1}
    answer = connect(served).chat.completions.create(model=MODEL, **options)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens == 6
    assert "".join(one.token for one in content).strip() == answer.choices[0].message.content
    for one in content:
        assert one.top_logprobs[0].token == one.token  # greedy
        assert one.top_logprobs[0].logprob == one.logprob >= one.top_logprobs[1].logprob
    without = connect(served).chat.completions.create(model=MODEL, messages=messages, max_tokens=6)
    assert without.choices[0].logprobs is None


def test_a_streamed_chat_has_the_same_log_probabilities(served):
    options = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "n": 2, "seed": 1}
    options |= {"logprobs": True, "top_logprobs": 2, "temperature": 1.5}
    whole = connect(served).chat.completions.create(**options)
    content = {0: [], 1: []}
    for chunk in connect(served).chat.completions.create(**options, stream=True):
        choice = chunk.choices[0]
        content[choice.index] += choice.logprobs.content if choice.logprobs else []
    for choice in whole.choices:
        expected, streamed = choice.logprobs.content, content[choice.index]
        assert [one.token for one in streamed] == [one.token for one in expected] and len(expected) == 8
        assert [one.logprob for one in streamed] == pytest.approx([one.logprob for one in expected], abs=1e-4)
        assert [len(one.top_logprobs) for one in streamed] == [2] * 8


def test_a_streamed_continuation_has_the_same_log_probabilities(served):
    options = {"model": MODEL, "prompt": ["Once upon", "a b"], "max_tokens": 6, "logprobs": 2}
    whole = connect(served).completions.create(**options)
    found = [{"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []} for _ in whole.choices]
    for chunk in connect(served).completions.create(**options, stream=True):
        choice = chunk.choices[0]
        for name, values in found[choice.index].items():
            values += getattr(choice.logprobs, name) if choice.logprobs else []
    for streamed, choice in zip(found, whole.choices, strict=True):
        assert "".join(streamed["tokens"]) == choice.text
        assert (streamed["tokens"], streamed["text_offset"]) == (choice.logprobs.tokens, choice.logprobs.text_offset)
        assert streamed["token_logprobs"] == pytest.approx(choice.logprobs.token_logprobs, abs=1e-4)
        assert list(map(set, streamed["top_logprobs"])) == list(map(set, choice.logprobs.top_logprobs))


def test_an_answer_fits_a_schema(served):
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 2, 3]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    response_format = {"type": "json_schema", "json_schema": {"name": "number", "schema": schema}}
    answer = served.chat("Count.", response_format=response_format, max_tokens=60).json()["choices"][0]
    assert answer["finish_reason"] == "stop"
    assert json.loads(answer["message"]["content"])["n"] in (1, 2, 3)
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    refused = served.chat("Count.", response_format=bad)
    assert refused.status_code == 400
    assert "JSON schema" in refused.json()["error"]["message"]
    assert served.chat("Hello", max_tokens=2).status_code == 200


# The shapes alone


def test_tokens_have_bytes_unless_they_are_parts_of_a_character():
    top = ((" b", -1.0), ("\ufffd", -math.inf))
    tokens = [ScoredToken(text, -1.0, top) for text in (" b", "", "é")]
    content = chat_logprobs(tokens)["content"]
    assert [(one["token"], one["bytes"]) for one in content] == [(" b", [32, 98]), ("", None), ("é", [195, 169])]
    assert content[0]["top_logprobs"][1] == {"token": "\ufffd", "logprob": -9999.0, "bytes": None}
    legacy = completion_logprobs(tokens, 5)
    assert (legacy["tokens"], legacy["text_offset"]) == ([" b", "", "é"], [5, 7, 7])
    assert legacy["top_logprobs"][0] == {" b": -1.0, "\ufffd": -9999.0}
