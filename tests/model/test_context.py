"""The context length of a language model, whatever its config calls it."""

import pytest
import transformers

from mmchat.model.context import context_length


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("LlamaConfig", {"max_position_embeddings": 512}, 512),
        ("MptConfig", {"max_seq_len": 300}, 300),
        ("BloomConfig", {}, None),
        ("BloomConfig", {"seq_length": 2048}, 2048),
        ("GPT2Config", {"n_positions": 128}, 128),
    ],
)
def test_context_length(name, settings, expected):
    assert context_length(getattr(transformers, name)(**settings)) == expected
