"""InfoNCE against the original loss (open_clip's ClipLoss) and its gradients."""

import pytest
import torch
from safetensors.torch import load_file

from mmchat.contrastive import info_nce


@pytest.fixture
def oracle(data_dir):
    return load_file(data_dir / "contrastive_losses.safetensors")


def test_loss_and_gradients_of_the_original(oracle):
    images, texts, scale = (oracle[f"clip_{name}"].requires_grad_() for name in ("image", "text", "scale"))
    losses = info_nce(images, texts, scale)
    assert losses.shape == (8,)
    torch.testing.assert_close(losses.mean(), oracle["clip_loss"], atol=1e-5, rtol=0)
    losses.mean().backward()
    for tensor, name in ((images, "image"), (texts, "text"), (scale, "scale")):
        torch.testing.assert_close(tensor.grad, oracle[f"clip_grad_{name}"], atol=1e-5, rtol=0)


def test_by_hand():
    """Two orthogonal pairs at scale ln 3: each softmax gives its own pair 3/4."""
    losses = info_nce(torch.eye(2), torch.eye(2), torch.tensor(3.0).log())
    torch.testing.assert_close(losses, torch.tensor([4 / 3, 4 / 3]).log())
