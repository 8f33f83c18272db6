"""The losses and their gradients against the originals' (open_clip's, SigLIP's, SimCLR's), alone and on ranks."""

import math
import os

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.nn import functional as F

from mmchat.contrastive import info_nce, nt_xent, pairwise_sigmoid
from mmchat.training.distributed.launch import free_port


@pytest.fixture
def oracle(data_dir):
    return load_file(data_dir / "contrastive_losses.safetensors")


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_softmax_of_the_original(oracle):
    images, texts, scale = (oracle[f"clip_{name}"].requires_grad_() for name in ("image", "text", "scale"))
    losses = info_nce(images, texts, scale)
    assert losses.shape == (8,)
    close(losses.mean(), oracle["clip_loss"])
    losses.mean().backward()
    for tensor, name in ((images, "image"), (texts, "text"), (scale, "scale")):
        close(tensor.grad, oracle[f"clip_grad_{name}"])


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_sigmoid_of_the_original(oracle, chunk):
    images, texts = (oracle[f"clip_{name}"].requires_grad_() for name in ("image", "text"))
    scale, bias = (oracle[f"siglip_{name}"].requires_grad_() for name in ("scale", "bias"))
    losses = pairwise_sigmoid(images, texts, scale, bias, chunk)
    assert losses.shape == (8,)
    close(losses.mean(), oracle["siglip_loss"])
    losses.mean().backward()
    for tensor, name in ((images, "image"), (texts, "text"), (scale, "scale"), (bias, "bias")):
        close(tensor.grad, oracle[f"siglip_grad_{name}"])


def test_views_of_the_original(oracle):
    """Its first views stand before all second ones, and it normalises inside."""
    features = oracle["simclr_features"].requires_grad_()
    views = F.normalize(features, dim=1).split(6)
    close(nt_xent(*views, temperature=0.5).mean(), oracle["simclr_loss_t05"])
    loss = nt_xent(*views, temperature=0.07).mean()
    close(loss, oracle["simclr_loss_t007"])
    loss.backward()
    close(features.grad, oracle["simclr_grad"])


def test_by_hand():
    """Two orthogonal pairs at scale ln 3. Softmax gives the own pair 3/4; sigmoid 3/4 to the own and 1/2 to the other;
    among three other views each view gives its own 3/5."""
    scale = torch.tensor(3.0).log()
    close(info_nce(torch.eye(2), torch.eye(2), scale), torch.full((2,), math.log(4 / 3)))
    sigmoid = pairwise_sigmoid(torch.eye(2), torch.eye(2), scale, torch.zeros(()))
    close(sigmoid, torch.full((2,), math.log(4 / 3) + math.log(2)))
    close(nt_xent(torch.eye(2), torch.eye(2), 1 / scale.item()), torch.full((2,), math.log(5 / 3)))


def losses(images, texts, scalars):
    return {
        "softmax": info_nce(images, texts, scalars[0]),
        "sigmoid": pairwise_sigmoid(images, texts, *scalars, chunk=2),
        "views": nt_xent(images, texts, 0.2) * scalars.prod(),
    }


def inputs():
    torch.manual_seed(0)
    pairs = F.normalize(torch.randn(6, 2, 5), dim=-1)
    return pairs.requires_grad_(), torch.tensor([4.0, -2.0], requires_grad=True)


def sums_and_gradients(rows=slice(None)):
    """Of each loss: its sum over the rows, and gradients of all pairs and of the scalars."""
    found = {}
    for name in ("softmax", "sigmoid", "views"):
        pairs, scalars = inputs()
        loss = losses(*pairs[rows].unbind(dim=1), scalars)[name].sum()
        loss.backward()
        found[name] = [loss.detach(), pairs.grad, scalars.grad]
    return found


SHARES = [[slice(0, 4), slice(4, 6)], [slice(0, 6), slice(6, 6)]]
"""Of two ranks, unequally many rows: one may have none."""


def on_a_rank(rank, port, out):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save([sums_and_gradients(share[rank]) for share in SHARES], out / f"{rank}.pt")
    dist.destroy_process_group()
    os._exit(0)  # a process that was in a gloo group has been seen to abort (SIGABRT) while Python exits


def test_on_ranks_as_on_one(tmp_path):
    """Losses and gradients of the ranks add up to those of all rows on one."""
    torch.multiprocessing.spawn(on_a_rank, (free_port(), tmp_path), nprocs=2)
    expected = sums_and_gradients()
    for shares in zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True):
        for name, whole in expected.items():
            for parts in zip(*(share[name] for share in shares), whole, strict=True):
                close(sum(parts[:-1]), parts[-1])
