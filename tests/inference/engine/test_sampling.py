"""Tokens of several rows: greedy, sampled and broken ones do not influence each other."""

import torch
from transformers import GenerationConfig

from mmchat.errors import UserError
from mmchat.inference.engine.request import Prompt, Request
from mmchat.inference.engine.sampling import Sampler, choose_tokens


def sampler(**settings):
    request = Request(Prompt([1, 2]), **settings).with_defaults(GenerationConfig())
    return Sampler(request, [1, 2], torch.device("cpu"))


def test_each_row_has_its_own_rules():
    logits = torch.tensor([[0.0, 1, 3, 2]]).repeat(4, 1)
    logits[2, 0] = torch.nan
    samplers = [sampler(), sampler(repetition_penalty=2.0), sampler(), None]
    tokens = choose_tokens(logits, samplers, [[], [], [], []])
    assert tokens[0] == 2  # the largest
    assert tokens[1] == 3  # 2 is in the prompt: 3 / 2 < 2
    assert isinstance(tokens[2], UserError) and "weights are damaged" in str(tokens[2])
    assert tokens[3] == 2


def test_new_tokens_count_for_the_penalty():
    logits = torch.tensor([[0.0, 1, 3, 2]])
    assert choose_tokens(logits, [sampler(repetition_penalty=2.0)], [[3]]) == [2]


def test_draws_depend_on_the_seed_alone():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))

    def draws(rows):
        samplers = [sampler(do_sample=True, seed=row) for row in rows]
        ids = [[] for _ in rows]
        for _ in range(20):
            for new, token in zip(ids, choose_tokens(logits[rows], samplers, ids), strict=True):
                new.append(token)
        return ids

    together = draws([0, 1, 2])
    assert [draws([row])[0] for row in range(3)] == together
    assert len({tuple(one) for one in together}) == 3


def test_without_settings_the_defaults_are_those_of_generate():
    request = Request(Prompt([1])).with_defaults(GenerationConfig(eos_token_id=[5, 6], temperature=0.5))
    assert (request.do_sample, request.temperature, request.top_k, request.top_p) == (False, 0.5, 50, 1.0)
    assert request.eos_token_id == (5, 6)
    assert Request(Prompt([1]), eos_token_id=()).with_defaults(GenerationConfig(eos_token_id=3)).eos_token_id == ()
