"""One thread steps the model on all cores. Every other thread computes on one, so that there is one OpenMP pool."""

from threading import Thread

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mmchat.inference.engine import Engine, Prompt, Request
from mmchat.inference.one_thread import compute_alone, one_thread
from tests.language_kinds import SHAPE


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def seen_in_a_thread(*first):
    seen = []
    thread = Thread(target=lambda: [*(step() for step in first), seen.append(torch.get_num_threads())])
    thread.start()
    thread.join()
    return seen[0]


def test_one_thread_ends_with_its_context():
    with pytest.raises(ValueError, match="x"), one_thread():
        assert torch.get_num_threads() == 1
        raise ValueError("x")
    assert torch.get_num_threads() == 3


def test_a_worker_computes_alone_and_changes_no_other_thread():
    assert seen_in_a_thread(compute_alone) == 1
    assert torch.get_num_threads() == 3
    assert seen_in_a_thread() == 3


def test_the_engine_steps_with_all_threads_and_prepares_with_one():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=20, **SHAPE)).eval()
    seen = {"prompt": [], "forward": []}
    model.register_forward_hook(lambda *_: seen["forward"].append(torch.get_num_threads()))

    def prompt():
        seen["prompt"].append(torch.get_num_threads())
        return Prompt([1, 2, 3])

    with Engine(model) as engine:
        probes = len(seen["forward"])
        for handle in [engine.submit(Request(prompt, max_new_tokens=3)) for _ in range(4)]:
            handle.result()
    assert set(seen["forward"][:probes]) == {1} and set(seen["forward"][probes:]) == {3}
    assert seen["prompt"] == [1] * 4
    assert torch.get_num_threads() == 3
