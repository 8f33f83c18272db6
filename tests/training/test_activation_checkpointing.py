"""What a block does not keep it computes again: the same gradients for less memory; selectively, no product twice."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mmchat.errors import UserError
from mmchat.settings import validate
from mmchat.training.config import RunConfig, as_dict
from mmchat.training.distributed.activation_checkpointing import CHECKPOINTING
from tests.training_fixtures import run_values


class Kept(TorchDispatchMode):
    """Counts the bytes that were made inside it and still are there."""

    def __init__(self):
        super().__init__()
        self._made = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._made[storage.data_ptr(), storage.nbytes()] = StorageWeakRef(storage)
        return made

    def bytes(self):
        return sum(size for (_, size), storage in self._made.items() if not storage.expired())


def step(model, recomputed):
    """(gradients, bytes kept for the backward, operations of the backward) in bf16 autocast."""
    if recomputed:
        for module in (model.language_model, model.towers[0].backbone):
            module.activation_checkpointing_enable(CHECKPOINTING[recomputed])
    model.train().zero_grad()
    ids = torch.full((1, 300), 7)
    ids[0, : model.image_tokens] = model.config.image_token_id
    pixels = torch.linspace(-1, 1, 3 * 28 * 28).view(1, 3, 28, 28)
    with torch.autocast("cpu", torch.bfloat16), Kept() as kept:
        # One label, so that logits and their gradient do not hide what blocks keep.
        loss = model(input_ids=ids, pixel_values=pixels, logits_to_keep=1, use_cache=False).logits.logsumexp(-1).sum()
    held = kept.bytes()
    with FlopCounterMode(display=False) as operations:
        loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return gradients, held, operations.get_total_flops()


@pytest.mark.parametrize("kind", ["llama", "opt", "qwen2"])
def test_the_same_gradients_for_less_memory(make_assistant, kind):
    plain, all_kept, needed = step(make_assistant(kind)[0], None)
    selective, some_kept, no_product_twice = step(make_assistant(kind)[0], "selective")
    whole, least_kept, twice = step(make_assistant(kind)[0], "all")
    assert plain.keys() == selective.keys() == whole.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, selective[name]) and torch.equal(gradient, whole[name]), name
    assert least_kept < 0.7 * some_kept and some_kept < 0.8 * all_kept
    assert no_product_twice == needed < 0.8 * twice


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (["towers"], {"towers": "all"}),
        ([], {}),
        ({"towers": "all", "language_model": "selective"}, {"towers": "all", "language_model": "selective"}),
    ],
)
def test_a_list_of_parts_means_all(tmp_path, written, meant):
    values = run_values(tmp_path, tmp_path, tmp_path, distributed={"activation_checkpointing": written})
    config = validate(RunConfig, values, "run.yaml")
    assert as_dict(config)["distributed"]["activation_checkpointing"] == meant


@pytest.mark.parametrize(
    ("written", "fault"),
    [
        (["tower"], "activation_checkpointing.tower.*'towers', 'language_model' or 'text_encoder'"),
        ({"towers": "some"}, "activation_checkpointing.towers: .*'all' or 'selective', found 'some'"),
        ("towers", "distributed.activation_checkpointing must hold key: value pairs, found 'towers'"),
    ],
)
def test_what_is_no_part_or_no_way_is_refused(tmp_path, written, fault):
    values = run_values(tmp_path, tmp_path, tmp_path, distributed={"activation_checkpointing": written})
    with pytest.raises(UserError, match=fault):
        validate(RunConfig, values, "run.yaml")
