"""Decode steps: what is masked has no influence, however much of a slot is read."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mmchat.inference.engine.cache import layer_shapes
from mmchat.inference.engine.cache_size import CacheSize
from mmchat.inference.engine.decoder import Decoder
from tests.language_kinds import KINDS, SHAPE


@torch.inference_mode()
@pytest.mark.parametrize("length", [10, 16, 64])
@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_older_keys_and_values_of_a_slot_are_not_seen_in_bf16(kind, length):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=200, max_position_embeddings=128, **{**SHAPE, **KINDS[kind]})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    ids = torch.randint(4, 200, (2, 9))

    def decoded(filled):
        decoder = Decoder(model, layer_shapes(model))
        decoder.cache.resize(CacheSize(2, length))
        for layer in decoder.cache.layers:
            layer.keys.fill_(filled), layer.values.fill_(filled)
        decoder.prefill([0, 1], [decoder.embed(ids[0, :8]), decoder.embed(ids[1, :5])])
        return decoder.decode(0, [int(ids[0, 8]), int(ids[1, 5])], [8, 5], 9)

    logits = decoded(30.0)
    torch.testing.assert_close(logits, decoded(0.0), rtol=0, atol=0)
    whole = torch.stack([model(row[None]).logits[0, -1] for row in (ids[0], ids[1, :6])])
    torch.testing.assert_close(logits, whole, rtol=0.02, atol=0.02 * whole.abs().max().item())
