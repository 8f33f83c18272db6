"""The masked write equals a slow loop over samples, in values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmchat.model.splice import check_slots, splice

SLOT, PAD, DIM = 7, 0, 3


def slow_splice(embeddings, input_ids, features):
    """A slow reference: loops over rows and positions."""
    waiting = list(features.reshape(-1, DIM))
    rows = []
    for row, ids in zip(embeddings, input_ids.tolist(), strict=True):
        rows.append(torch.stack([waiting.pop(0) if id_ == SLOT else row[at] for at, id_ in enumerate(ids)]))
    assert not waiting
    return torch.stack(rows)


@st.composite
def batches(draw):
    """Rows of text tokens and images (each a run of slots), padded on one side."""
    tokens_per_image = draw(st.integers(1, 4))
    words = st.lists(st.integers(8, 20), max_size=3)
    rows, images = [], 0
    for _ in range(draw(st.integers(1, 4))):
        row = [1, *draw(words)]
        for _ in range(draw(st.integers(0, 3))):
            row += [SLOT] * tokens_per_image + draw(words)
            images += 1
        rows.append(row)
    length = max(map(len, rows))
    left = draw(st.booleans())
    padding = [[PAD] * (length - len(row)) for row in rows]
    padded = [p + row if left else row + p for p, row in zip(padding, rows, strict=True)]
    return torch.tensor(padded), images, tokens_per_image


@settings(max_examples=60, deadline=None)
@given(batch=batches(), seed=st.integers(0, 1000))
def test_equals_a_slow_reference(batch, seed):
    input_ids, images, tokens = batch
    check_slots(input_ids, SLOT, images, tokens)
    torch.manual_seed(seed)
    inputs = [torch.randn(*input_ids.shape, DIM), torch.randn(images, tokens, DIM)]
    weight = torch.randn(*input_ids.shape, DIM)
    results = []
    for way in (lambda e, f: splice(e, input_ids, f, SLOT), lambda e, f: slow_splice(e, input_ids, f)):
        embeddings, features = (tensor.clone().requires_grad_() for tensor in inputs)
        out = way(embeddings, features)
        (out * weight).sum().backward()
        gradient = torch.zeros_like(features) if features.grad is None else features.grad
        results.append((out, embeddings.grad, gradient))
    for mine, slow in zip(*results, strict=True):
        assert torch.equal(mine, slow)


def test_flat_features_and_another_dtype():
    input_ids = torch.tensor([[1, SLOT, SLOT, 2]])
    features = torch.arange(6.0).reshape(2, DIM)
    out = splice(torch.zeros(1, 4, DIM, dtype=torch.bfloat16), input_ids, features, SLOT)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out[0, 1:3].float(), features)


@pytest.mark.parametrize(("images", "features"), [(1, 3), (3, 9), (0, 0)])
def test_a_mismatch_names_both_numbers(images, features):
    input_ids = torch.tensor([[1, SLOT, SLOT, SLOT, 2], [1, SLOT, SLOT, SLOT, 2]])
    check_slots(input_ids, SLOT, views=2, tokens_per_view=3)
    text = rf"6 image slots but {images} views x 3 features = {features}; slots per row: \[3, 3\]"
    with pytest.raises(ValueError, match=text):
        check_slots(input_ids, SLOT, views=images, tokens_per_view=3)
