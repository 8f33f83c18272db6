"""What one forward and backward hold in memory besides parameters and their gradients: measured, not estimated.

The objective's own forward runs on one micro-batch with fake tensors (`plan.shapes`). What is alive at each moment is
seen below autograd, where every tensor is made; what is kept for the backward, by autograd's hooks.
"""

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from mmchat.data.collate import Batch
from mmchat.training.deepspeed_internals import zero3_linear_wrap
from mmchat.training.objectives.base import Objective


@dataclass(frozen=True)
class Activations:
    """Bytes of one rank.

    kept: activations that wait for the backward, and the batch. weight_copies: weights that autocast has rounded, and
    keeps to the end of the forward, if the backward does not keep them longer. logits: scores over the vocabulary and
    what is made of them, at their fullest moment. working: what else is alive at the fullest moment of forward and
    backward: gradients on their way, what checkpointing computes again.
    """

    kept: int
    weight_copies: int
    logits: int
    working: int

    @property
    def total(self) -> int:
        return self.kept + self.weight_copies + self.logits + self.working


def measure(objective: Objective, batch: Batch, bf16: bool, zero_stage: int) -> Activations:
    """Forward and backward of `batch`; gradients are dropped as soon as they are whole."""
    model = objective.model.train()
    alive = Alive(model, batch, _vocabulary(objective))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hooks = [parameter.register_post_accumulate_grad_hook(_drop_gradient) for parameter in trained]
    with alive, zero_linear(model) if zero_stage == 3 else nullcontext():
        with saved_tensors_hooks(alive.keep, lambda tensor: tensor):
            loss = objective.loss_sum(_Autocast(model, bf16), batch, batch.images > 0 or zero_stage >= 2)
        kept = alive.kept["activation"] + batch_bytes(batch)
        loss.backward()
    for hook in hooks:
        hook.remove()
    logits = alive.fullest["logits"]
    return Activations(kept, alive.fullest["weight"], logits, working=max(0, alive.fullest["others"] - kept - logits))


def batch_bytes(batch: Batch) -> int:
    tensors = [batch.input_ids, batch.attention_mask, batch.labels, *(batch.pixel_values or ())]
    return sum(tensor.nbytes for tensor in tensors)


def _vocabulary(objective: Objective) -> int:
    head = objective.model.get_output_embeddings()
    return 0 if head is None else head.out_features


def _drop_gradient(parameter: nn.Parameter) -> None:
    parameter.grad = None


@contextmanager
def zero_linear(model: nn.Module) -> Iterator[None]:
    """Linear layers as they are under ZeRO 3, where DeepSpeed replaces `F.linear`: what waits for the backward is the
    input as it came and the parameter itself, not copies that autocast has rounded."""
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    for layer in layers:
        layer.forward = partial(_zero_forward, layer)
    yield
    for layer in layers:
        del layer.forward


def _zero_forward(layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    return zero3_linear_wrap(inputs, layer.weight, layer.bias)


class _Autocast(nn.Module):
    """What DeepSpeed's engine does around a forward."""

    def __init__(self, model: nn.Module, enabled: bool) -> None:
        super().__init__()
        self.model, self.enabled = model, enabled

    def forward(self, *args, **kwargs):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.enabled):
            return self.model(*args, **kwargs)


class Alive(TorchDispatchMode):
    """Bytes of the tensors that live, by kind: weight (a copy of one), logits, activation; others: all but the first.

    Memory is counted once, however many tensors look at it; parameters, buffers and the batch were there before.
    """

    def __init__(self, model: nn.Module, batch: Batch, vocabulary: int) -> None:
        super().__init__()
        self.now, self.fullest, self.kept = Counter(), Counter(), Counter()
        self.now["others"] = self.fullest["others"] = batch_bytes(batch)
        self._vocabulary = vocabulary
        self._kinds, self._kept = WeakIdKeyDictionary(), WeakIdKeyDictionary()
        there = [batch.input_ids, batch.attention_mask, batch.labels, *(batch.pixel_values or ()), *model.buffers()]
        for tensor in there:
            self._kinds[tensor.untyped_storage()] = "there"
        for parameter in model.parameters():
            self._kinds[parameter.untyped_storage()] = "parameter"

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        copies_weight = function is torch.ops.aten._to_copy.default and self._kind(args[0]) == "parameter"
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and self._kind(tensor) is None:
                logits = self._vocabulary and tensor.dim() and tensor.shape[-1] == self._vocabulary
                self._born(tensor, "weight" if copies_weight else "logits" if logits else "activation")
        return result

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Hook of autograd: `tensor` waits for the backward."""
        storage = tensor.untyped_storage()
        if storage not in self._kept:
            self._kept[storage] = True
            self.kept[self._kind(tensor)] += storage.nbytes()
        return tensor

    def _kind(self, tensor: torch.Tensor) -> str | None:
        return self._kinds.get(tensor.untyped_storage())

    def _born(self, tensor: torch.Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        self._kinds[storage] = kind
        self._count(kind, storage.nbytes())
        weakref.finalize(storage, self._count, kind, -storage.nbytes())

    def _count(self, kind: str, change: int) -> None:
        for name in (kind,) if kind == "weight" else (kind, "others"):
            self.now[name] += change
            self.fullest[name] = max(self.fullest[name], self.now[name])
