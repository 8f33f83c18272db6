"""The engine: each request gets what it gets alone, whatever else is in the batch."""

import random
import threading

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mmchat.errors import UserError
from mmchat.inference.engine import Engine, EngineSettings, Prompt, Request, Status
from mmchat.inference.engine.prefixes import content_key
from tests.language_kinds import KINDS, SHAPE

MARGIN = 1e-4
"""Where the two best logits are closer, rounding may decide."""
WORDS = ("what", "is", "this", "a red digit", "on the left", "and how many", "are there", "please", "say it")


@pytest.fixture(scope="module", params=["llama", "qwen2", "opt"])
def assistant(request, make_assistant):
    """A tiny assistant, and a function that makes prompts for it."""
    model, processor = make_assistant(request.param)

    def prompt(text, images=()):
        messages = [{"role": "user", "content": [{"type": "image"}] * len(images) + [{"type": "text", "text": text}]}]
        layouts = processor.layouts([image.size for image in images])
        ids = processor.render(messages, layouts, add_generation_prompt=True).input_ids
        keys = [(content_key(image.tobytes()), layout.slots) for image, layout in zip(images, layouts, strict=True)]
        return Prompt(ids, processor.image_inputs([images]) if images else {}, keys)

    return model, processor, prompt


@pytest.fixture(scope="module")
def language_model():
    """A tiny language model of its own."""
    return make_language_model("llama")


def make_language_model(kind, **changes):
    torch.manual_seed(0)
    ids = {"vocab_size": 200, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 3}
    config = AutoConfig.for_model(kind, **{**ids, **SHAPE, **KINDS[kind], **changes})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    return model.eval()


def random_prompts(*lengths):
    generator = torch.Generator().manual_seed(1)
    return [Prompt(torch.randint(4, 200, (length,), generator=generator).tolist()) for length in lengths]


def alone(model, prompt, length, **sampling):
    """What `generate` makes of one request: ids, and at each the margin to the second best."""
    ids = torch.tensor([prompt.input_ids])
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=length,
        output_logits=True,
        return_dict_in_generate=True,
        **{"do_sample": False, **sampling},
        **prompt.images,
    )
    best = torch.cat(output.logits).topk(2, dim=-1).values
    return output.sequences[0, ids.shape[1] :].tolist(), (best[:, 0] - best[:, 1]).tolist()


def ties(found, expected, margins):
    """1 if the ids differ after a tie, 0 if they do not differ; fails at any other difference."""
    for one, other, margin in zip(found, expected, margins, strict=False):
        if one != other:
            assert margin < MARGIN, f"{found} instead of {expected}"
            return 1
    return 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_language_model_gives_the_ids_of_generate(kind):
    """Prompts of 1 to 40 tokens in chunks of 16, four slots; windows of 8 tokens where the kind has them."""
    model = make_language_model(kind)
    prompts = random_prompts(3, 20, 7, 40, 5, 1)
    with Engine(model, EngineSettings(slots=4, prefill_tokens=16, max_length=64)) as engine:
        handles = [engine.submit(Request(prompt, max_new_tokens=12)) for prompt in prompts]
        found = [list(handle.result(60).ids) for handle in handles]
    expected = [alone(model, prompt, 12) for prompt in prompts]
    assert sum(ties(one, *other) for one, other in zip(found, expected, strict=True)) == 0
    assert [len(one) for one in found] == [len(ids) for ids, _ in expected]
    assert len({tuple(one) for one in found}) > 3


def random_requests(seed, count, prompt, make_image):
    """(prompt, length, tokens after which it is cancelled or None); text alone or 1 to 3 images."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        sizes = [(rng.choice((8, 30, 59)), 40) for _ in range(rng.choice((0, 0, 1, 1, 2, 3)))]
        images = [make_image(rng.randrange(2), *size) for size in sizes]
        text = " ".join(rng.choices(WORDS, k=rng.randrange(1, 12)))
        length = rng.randrange(8, 24)
        made.append((prompt(text, images), length, rng.randrange(length) if rng.random() < 0.2 else None))
    return made


def run_at_random(engine, requests, seed):
    """Submit requests, some only after another has made a token. Returns results in order."""
    rng = random.Random(seed)
    handles, streams, stoppers = [], [], []
    for prompt, length, cancelled in requests:
        if len(handles) >= engine.limits.slots and rng.random() < 0.5:
            next(rng.choice(streams[-engine.limits.slots :]), None)
        handle = engine.submit(Request(prompt, max_new_tokens=length, priority=rng.randrange(2)))
        handles.append(handle)
        streams.append(iter(handle))
        if cancelled is not None:
            stoppers.append(threading.Thread(target=cancel_after, args=(handle, cancelled)))
            stoppers[-1].start()
    results = [handle.result(120) for handle in handles]
    for stopper in stoppers:
        stopper.join()
    return results


def cancel_after(handle, tokens):
    for _ in zip(range(tokens), handle, strict=False):
        pass
    handle.cancel()


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_random_requests_get_the_ids_that_they_get_alone(assistant, make_image, count):
    """Joins, cancellations and priorities at random; ties count at most once in 1,000 tokens."""
    model, _, prompt = assistant
    requests = random_requests(count, count, prompt, make_image)
    with Engine(model, EngineSettings(slots=8, prefill_tokens=300, max_length=256)) as engine:
        results = run_at_random(engine, requests, count)
        assert engine.counters.mean_batch > 4
        assert engine.counters.most_running == 8
        assert engine.counters.shared > 0
    tokens = tied = 0
    for (one, length, cancelled), result in zip(requests, results, strict=True):
        ids, margins = alone(model, one, length)
        tied += ties(result.ids, ids, margins)
        tokens += len(result.ids)
        assert result.reason in ("end", "length", *(["cancelled"] if cancelled is not None else []))
        if result.reason != "cancelled":
            assert len(result.ids) == len(ids)
    assert tied <= tokens / 1000
    assert sum(result.reason == "cancelled" for result in results) > 0


def test_a_second_question_costs_only_its_own_tokens(assistant, make_image, monkeypatch):
    """Same images and text up to there; the tower does not run again. Another image shares nothing."""
    model, processor, prompt = assistant
    images = [make_image(1), make_image(2)]
    first = prompt("what is this", images)
    runs = []
    features = type(model).get_image_features
    monkeypatch.setattr(type(model), "get_image_features", lambda *a, **k: runs.append(1) or features(*a, **k))
    with Engine(model, EngineSettings(slots=4)) as engine:
        answer = engine.submit(Request(first, 8)).result(60).ids
        text = processor.tokenizer(" and how many are there", add_special_tokens=False).input_ids
        turn = [*first.input_ids, *answer, *text]
        second = Prompt(turn, first.images, first.image_keys)
        prefilled = engine.counters.prefilled
        handle = engine.submit(Request(second, 8))
        found = handle.result(60).ids
        assert len(runs) == 1
        assert handle.shared_tokens == len(first.input_ids) + len(answer) - 1
        assert engine.counters.prefilled - prefilled == len(turn) - handle.shared_tokens
        other = prompt("what is this", [make_image(1), make_image(3)])
        strange = engine.submit(Request(Prompt(turn, other.images, other.image_keys), 8))
        assert strange.result(60).ids is not None and strange.shared_tokens < len(first.input_ids)
    assert list(found) == alone(model, second, 8)[0]
    assert list(strange.result().ids) == alone(model, Prompt(turn, other.images), 8)[0]


SAMPLING = {"do_sample": True, "temperature": 1.3, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.2}


def test_a_seed_gives_the_same_sample_alone_beside_others_and_in_generate(language_model):
    prompts = random_prompts(9, 4, 15, 6, 11)
    requests = [Request(prompt, 12, seed=number, **SAMPLING) for number, prompt in enumerate(prompts)]
    with Engine(language_model, EngineSettings(slots=4)) as engine:
        by_itself = [engine.submit(request).result(60).ids for request in requests]
        greedy = [engine.submit(Request(prompt, 20)) for prompt in random_prompts(5, 30)]
        together = [engine.submit(request) for request in requests]
        assert [handle.result(60).ids for handle in together] == by_itself
        assert [list(handle.result(60).ids) for handle in greedy] == [
            alone(language_model, prompt, 20)[0] for prompt in random_prompts(5, 30)
        ]
        other = engine.submit(Request(prompts[0], 12, seed=99, **SAMPLING)).result(60).ids
    assert other != by_itself[0]
    for number, prompt in enumerate(prompts):
        torch.manual_seed(number)
        assert tuple(alone(language_model, prompt, 12, **SAMPLING)[0]) == by_itself[number]


def test_settings_come_from_the_generation_config(language_model):
    (prompt,) = random_prompts(8)
    plain = alone(language_model, prompt, 12)[0]
    try:
        language_model.generation_config.repetition_penalty = 1.8
        expected = alone(language_model, prompt, 12)[0]
        with Engine(language_model, EngineSettings(slots=2)) as engine:
            assert list(engine.submit(Request(prompt, 12)).result(60).ids) == expected
            assert list(engine.submit(Request(prompt, 12, repetition_penalty=1.0)).result(60).ids) == plain
    finally:
        language_model.generation_config.repetition_penalty = None
    assert plain != expected


@torch.no_grad()
def test_log_probabilities_are_those_of_the_model(language_model):
    prompts = random_prompts(6, 9)
    with Engine(language_model, EngineSettings(slots=2)) as engine:
        asked = [Request(prompt, 8, top_logprobs=3, temperature=2.0, do_sample=True, seed=1) for prompt in prompts]
        results = [handle.result(60) for handle in [engine.submit(request) for request in asked]]
        assert engine.submit(Request(prompts[0], 8)).result(60).logprobs == ()
    for prompt, result in zip(prompts, results, strict=True):
        ids = torch.tensor([[*prompt.input_ids, *result.ids]])
        scores = language_model(ids).logits[0, len(prompt.input_ids) - 1 : -1].log_softmax(-1)
        for row, token, found in zip(scores, result.ids, result.logprobs, strict=True):
            assert found.token == pytest.approx(float(row[token]), abs=1e-4)
            values, indices = row.topk(3)
            assert [one for one, _ in found.top] == indices.tolist()
            assert [value for _, value in found.top] == pytest.approx(values.tolist(), abs=1e-4)


def failing_prompt():
    raise UserError("no image there")


def failing_stop(ids):
    raise ZeroDivisionError


def test_a_failing_request_harms_no_other(assistant, make_image):
    """Images that do not open, pixels of another size, NaN, and an own function that raises, all at once."""
    model, _, prompt = assistant
    good = [prompt(text, [make_image(number)] * number) for number, text in enumerate(("what is this", "and this"))]
    bad_pixels = Prompt(good[1].input_ids, {"pixel_values": torch.zeros(1, 3, 14, 14)})
    nan = torch.full((5, 32), torch.nan)
    bad = {
        "no image": Request(failing_prompt, 8),
        "pixels": Request(bad_pixels, 8),
        "NaN": Request(Prompt([5] * 5, embeddings=nan), 8),
        "own function": Request(good[0], 8, stop_when=failing_stop),
    }
    with Engine(model, EngineSettings(slots=4, max_length=128)) as engine:
        handles = []
        failing = {}
        for _ in range(2):  # the second round takes the slots of the first
            for name, request in bad.items():
                failing[name] = engine.submit(request)
                handles += [engine.submit(Request(one, 8)) for one in good]
        results = [list(handle.result(60).ids) for handle in handles]
        messages = {}
        for name, handle in failing.items():
            with pytest.raises(Exception) as raised:
                handle.result(60)
            messages[name] = raised.value
    assert results == [alone(model, one, 8)[0] for one in good] * 8
    assert "no image there" in str(messages["no image"]) and "NaN" in str(messages["NaN"])
    assert isinstance(messages["own function"], ZeroDivisionError)


def test_a_slot_that_held_nan_gives_the_next_request_what_it_gets_alone(language_model):
    """Its cache is read beyond its length, because its neighbour is longer; what is masked there must be finite."""
    long, short = random_prompts(70, 3)
    nan = Prompt([5] * 60, embeddings=torch.full((60, 32), torch.nan))
    requests = [Request(long, 50, eos_token_id=()), Request(nan), Request(short, 10)]
    with Engine(language_model, EngineSettings(slots=2)) as engine:
        with engine._changed:  # they arrive together
            handles = [engine.submit(request) for request in requests]
        with pytest.raises(UserError, match="NaN"):
            handles[1].result(60)
        assert list(handles[2].result(60).ids) == alone(language_model, short, 10)[0]
        assert len(handles[0].result(60).ids) == 50


def test_a_failing_decode_step_is_repeated_row_by_row(language_model, monkeypatch):
    prompts = random_prompts(5, 6, 7)
    with Engine(language_model, EngineSettings(slots=3)) as engine:
        decode = engine._decoder.decode

        def fails_with_the_second(first, tokens, positions, width):
            if any(position == 8 and first + row == 1 for row, position in enumerate(positions)):
                raise RuntimeError("this request")
            return decode(first, tokens, positions, width)

        monkeypatch.setattr(engine._decoder, "decode", fails_with_the_second)
        handles = [engine.submit(Request(prompt, 10)) for prompt in prompts]
        assert [list(handles[row].result(60).ids) for row in (0, 2)] == [
            alone(language_model, prompts[row], 10)[0] for row in (0, 2)
        ]
        with pytest.raises(RuntimeError, match="this request"):
            handles[1].result(60)


def test_a_function_makes_its_prompt_in_a_worker(language_model):
    (prompt,) = random_prompts(6)
    names = []

    def make():
        names.append(threading.current_thread().name)
        return prompt

    with Engine(language_model, EngineSettings(slots=2)) as engine:
        handles = [engine.submit(Request(make, 5)) for _ in range(12)]
        assert {handle.result(60).ids for handle in handles} == {tuple(alone(language_model, prompt, 5)[0])}
    assert len(names) == 12 and all(name.startswith("mmchat-prepare") for name in names)


def test_stop_strings_end_with_the_token_that_completes_them(assistant):
    model, processor, prompt = assistant
    one = prompt("say something")
    expected = alone(model, one, 12)[0]
    text = processor.tokenizer.decode(expected[:6])
    stop = text[-3:]
    first = next(end for end in range(1, 7) if stop in processor.tokenizer.decode(expected[:end]))
    with Engine(model, EngineSettings(slots=2, max_length=128), processor.tokenizer) as engine:
        result = engine.submit(Request(one, 12, stop_strings=[stop])).result(60)
    assert (list(result.ids), result.reason) == (expected[:first], "stop")


def test_own_stop_end_of_text_and_limits(language_model):
    (prompt,) = random_prompts(10)
    ids = alone(language_model, prompt, 10)[0]
    with Engine(language_model, EngineSettings(slots=2, max_length=16)) as engine:
        stopped = engine.submit(Request(prompt, 6, stop_when=lambda new: len(new) == 2)).result(60)
        ended = engine.submit(Request(prompt, 6, eos_token_id=ids[3])).result(60)
        full = engine.submit(Request(prompt, 100, eos_token_id=())).result(60)
        with pytest.raises(UserError, match="16 tokens with its images, but max_length of the engine is 16"):
            engine.submit(Request(random_prompts(16)[0]))
    assert (list(stopped.ids), stopped.reason) == (ids[:2], "stop")
    assert (list(ended.ids), ended.reason) == (ids[: ids.index(ids[3]) + 1], "end")
    assert (list(full.ids), full.reason) == (ids[:6], "length")


def test_cancelled_requests_free_their_slots(language_model):
    prompts = random_prompts(5, 6, 7)
    with Engine(language_model, EngineSettings(slots=1)) as engine:
        running, waiting, last = (engine.submit(Request(prompt, 100, eos_token_id=())) for prompt in prompts)
        next(iter(running))
        waiting.cancel()
        running.cancel()
        assert waiting.result(60).ids == () and waiting.result().reason == "cancelled"
        assert 1 <= len(running.result(60).ids) < 100
        assert len(last.result(60).ids) == 100


def test_closing_cancels_and_refuses(language_model):
    engine = Engine(language_model, EngineSettings(slots=1))
    handles = [engine.submit(Request(prompt, 100, eos_token_id=())) for prompt in random_prompts(5, 6)]
    next(iter(handles[0]))
    engine.close()
    engine.close()
    assert [handle.result(1).reason for handle in handles] == ["cancelled"] * 2
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(Request(random_prompts(3)[0]))


@pytest.mark.parametrize("crashes", [False, True])
def test_closing_ends_requests_whose_prompts_are_being_prepared(language_model, monkeypatch, crashes):
    engine = Engine(language_model, EngineSettings(slots=4, workers=1))
    started, go_on = threading.Event(), threading.Event()

    def prepare():
        started.set()
        assert go_on.wait(60)
        return random_prompts(5)[0]

    # One in its worker, seven that wait for it, and two for which there is no room yet.
    handles = [engine.submit(Request(prepare, 100)) for _ in range(10)]
    assert started.wait(60)
    if crashes:
        monkeypatch.setattr(engine._scheduler, "next_chunk", lambda: 1 / 0)
        engine.submit(Request(random_prompts(3)[0]))
        engine._thread.join(60)
    closing = threading.Thread(target=engine.close)
    closing.start()
    engine._thread.join(60)
    go_on.set()
    closing.join(60)
    for handle in handles:
        if crashes:
            with pytest.raises(ZeroDivisionError):
                handle.result(1)
        else:
            assert handle.result(1).reason == "cancelled"


def test_a_defect_of_the_engine_reaches_every_caller(language_model, monkeypatch):
    engine = Engine(language_model, EngineSettings(slots=2))
    monkeypatch.setattr(engine._scheduler, "next_chunk", lambda: 1 / 0)
    handles = []
    with pytest.raises(RuntimeError, match="closed"):
        for _ in range(10_000):
            handles.append(engine.submit(Request(random_prompts(3)[0])))
    for handle in handles:
        with pytest.raises(ZeroDivisionError):
            handle.result(60)
    engine.close()


def test_prompts_that_the_model_cannot_take_are_refused(assistant, make_image):
    model, _, prompt = assistant
    one = prompt("what", [make_image(0)])
    cases = {
        "is empty": Prompt([]),
        "token ids must be from 0": Prompt([5, 10**6]),
        "has 16 image slots, but its images fill 0": Prompt(one.input_ids),
        "has 0 image slots, but its images fill 16": Prompt([5], one.images),
        r"embeddings must be float\[2, 32\]": Prompt([5, 6], embeddings=torch.zeros(3, 32)),
    }
    with Engine(model, EngineSettings(slots=2, max_length=64)) as engine:
        for message, bad in cases.items():
            with pytest.raises(UserError, match=message):
                engine.submit(Request(bad))
        with pytest.raises(UserError, match="need an engine with a tokenizer"):
            engine.submit(Request(one, stop_strings=["x"]))


def test_a_model_that_keeps_something_else_is_refused_by_name():
    shape = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 64}
    mamba = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **shape))
    with pytest.raises(UserError, match="language model mamba keeps"):
        Engine(mamba)


def test_the_cache_stays_within_its_budget(language_model):
    """2 layers x 2 heads x 2 x 8 values x 4 bytes = 256 bytes per token. Lengths are rounded up to 128 tokens."""
    budget = 3 * 128 * 256 + 5
    with Engine(language_model, EngineSettings(slots=16, cache_bytes=budget)) as engine:
        assert engine._decoder.cache.bytes == 0
        handles = [engine.submit(Request(prompt, 8)) for prompt in random_prompts(*range(1, 12))]
        for handle in handles:
            handle.result(60)
        assert engine.status == Status(0, 0, 3, 128, 3 * 128 * 256)
        assert engine.counters.most_running == 3
    settings = EngineSettings(cache_bytes=32 * 256)
    with Engine(language_model, settings) as engine:
        assert len(engine.submit(Request(random_prompts(30)[0], 8, eos_token_id=())).result(60).ids) == 2
        with pytest.raises(UserError, match=r"40 tokens .*, but what the cache's budget of 0.0 MiB holds is 32"):
            engine.submit(Request(random_prompts(40)[0], 8))


@pytest.mark.parametrize(
    "changes",
    [
        {"max_new_tokens": 0},
        {"temperature": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"seed": -1},
        {"top_logprobs": 21},
        {"stop_strings": "x"},
    ],
)
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        Request(Prompt([1]), **changes)
