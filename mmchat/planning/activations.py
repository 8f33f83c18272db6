"""Memory of one step besides model states: measured on fake tensors, not estimated.

The objective's own code runs with fake tensors (`planning.fake_model`). A dispatch mode below autograd sees every
tensor that is created, and autograd's hooks see what is saved for the backward.
"""

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary
from transformers import PreTrainedModel

from mmchat.contrastive.all_gather import planned_ranks
from mmchat.data.collate import Batch
from mmchat.training.deepspeed_internals import zero3_linear_wrap
from mmchat.training.objectives.base import Objective


@dataclass(frozen=True)
class Activations:
    """Bytes on one rank.

    Attributes:
        kept: activations saved for the backward, and the batch.
        weight_copies: weights rounded by autocast, which keeps them to the end of the forward or of the backward.
        logits: scores over the vocabulary and what is computed from them, at their peak.
        working: everything else that is alive at the peak of forward and backward: gradients in flight, recomputed
            activations, similarities of a contrastive loss.
    """

    kept: int
    weight_copies: int
    logits: int
    working: int

    @property
    def total(self) -> int:
        return self.kept + self.weight_copies + self.logits + self.working


def measure_activations(
    objective: Objective, batch: Batch, micro_batches: int, ranks: int, bf16: bool, zero_stage: int
) -> Activations:
    """Forward and backward of `batch`, one of `micro_batches` equal ones of a rank's step.

    A loss over the whole step (gradient caching) is computed over all of them and over all ranks. A gradient is freed
    as soon as it is complete, because parameters and gradients are counted elsewhere.
    """
    model = objective.model.train()
    live = LiveTensors(objective, batch)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hooks = [parameter.register_post_accumulate_grad_hook(_drop_gradient) for parameter in trained]
    module = _EngineForward(model, bf16)
    images_anywhere = batch.images > 0 or zero_stage >= 2
    with planned_ranks(ranks), live, zero3_linear_layers(model) if zero_stage == 3 else nullcontext():
        with saved_tensors_hooks(live.save, lambda tensor: tensor):
            losses = objective.losses(
                module, [batch] * micro_batches, [images_anywhere] * micro_batches, torch.device("cpu")
            )
            loss = next(losses)  # the others repeat this one
        kept = live.saved["activation"] + batch_bytes(batch)
        loss.backward()
    for hook in hooks:
        hook.remove()
    logits = live.peak["logits"]
    return Activations(kept, live.peak["weight"], logits, working=max(0, live.peak["others"] - kept - logits))


def batch_bytes(batch: Batch) -> int:
    """Size of a batch on the device."""
    return sum(tensor.nbytes for tensor in _tensors(batch))


def _tensors(batch: Batch) -> list[torch.Tensor]:
    slot_map = [tensor for tensor in (batch.slot_indices, batch.slot_weights) if tensor is not None]
    return [batch.input_ids, batch.attention_mask, batch.labels, *(batch.pixel_values or ()), *slot_map]


def _vocabulary(model: nn.Module) -> int:
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return 0 if head is None else head.out_features


def _drop_gradient(parameter: nn.Parameter) -> None:
    parameter.grad = None


@contextmanager
def zero3_linear_layers(model: nn.Module) -> Iterator[None]:
    """Inside the `with`, linear layers compute as under ZeRO 3, where DeepSpeed replaces `F.linear`.

    It saves the input as it came and the parameter itself, not the copies that autocast has rounded.
    """
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    for layer in layers:
        vars(layer)["forward"] = partial(_zero3_forward, layer)  # hides the method of the class
    yield
    for layer in layers:
        del vars(layer)["forward"]


def _zero3_forward(layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    return zero3_linear_wrap(inputs, layer.weight, layer.bias)


class _EngineForward(nn.Module):
    """The forward of DeepSpeed's engine: the model under autocast.

    Gradient caching first runs all micro-batches of a step without gradients. They are equal here, so only the first
    runs; the outputs of the others are empty tensors of the same size.
    """

    def __init__(self, model: nn.Module, bf16: bool) -> None:
        super().__init__()
        self.model, self.bf16 = model, bf16
        self._outputs: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled() and self._outputs is not None:
            return tree_map(torch.empty_like, self._outputs)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            outputs = self.model(*args, **kwargs)
        if not torch.is_grad_enabled():
            self._outputs = outputs
        return outputs


class LiveTensors(TorchDispatchMode):
    """Bytes of live tensors by kind: weight (a rounded copy), logits, activation; and others: all but weight.

    A storage is counted once, however many tensors share it. Parameters, buffers and the batch exist beforehand and
    are not counted, except the batch under others.

    Attributes:
        now, peak: live bytes, and their maximum.
        saved: live bytes that autograd has saved for a backward.
    """

    def __init__(self, objective: Objective, batch: Batch) -> None:
        super().__init__()
        models = [model for model in (objective.model, objective.teacher) if model is not None]
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.saved: Counter[str | None] = Counter()
        self.now["others"] = self.peak["others"] = batch_bytes(batch)
        self._vocabulary = _vocabulary(objective.model)
        self._kinds, self._saved_storages = WeakIdKeyDictionary(), WeakIdKeyDictionary()
        for tensor in (*_tensors(batch), *(buffer for model in models for buffer in model.buffers())):
            self._kinds[tensor.untyped_storage()] = "existing"
        for parameter in (parameter for model in models for parameter in model.parameters()):
            self._kinds[parameter.untyped_storage()] = "parameter"

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        copies_weight = function is torch.ops.aten._to_copy.default and self._kind(args[0]) == "parameter"
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and self._kind(tensor) is None:
                logits = self._vocabulary and tensor.dim() and tensor.shape[-1] == self._vocabulary
                self._created(tensor, "weight" if copies_weight else "logits" if logits else "activation")
        return result

    def save(self, tensor: torch.Tensor) -> torch.Tensor:
        """Hook of autograd: `tensor` is saved for the backward."""
        storage = tensor.untyped_storage()
        if storage not in self._saved_storages:
            self._saved_storages[storage] = True
            kind = self._kind(tensor)
            self.saved[kind] += storage.nbytes()
            # A contrastive loss of the whole step has its own backward, after which its activations are freed.
            weakref.finalize(storage, self._freed, kind, storage.nbytes())
        return tensor

    def _kind(self, tensor: torch.Tensor) -> str | None:
        return self._kinds.get(tensor.untyped_storage())

    def _created(self, tensor: torch.Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        self._kinds[storage] = kind
        self._count(kind, storage.nbytes())
        weakref.finalize(storage, self._count, kind, -storage.nbytes())

    def _freed(self, kind: str | None, size: int) -> None:
        self.saved[kind] -= size

    def _count(self, kind: str, change: int) -> None:
        for name in (kind,) if kind == "weight" else (kind, "others"):
            self.now[name] += change
            self.peak[name] = max(self.peak[name], self.now[name])
