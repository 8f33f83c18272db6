"""How many floating-point operations a step needs, from the shapes of the model and before any step.

The convention is that of model FLOPs utilisation (Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B): what
the result needs is counted, however it is computed.

- Matrix products count, 2 operations for each weight and position: linear layers, convolutions, LoRA's factors and
  attention's two products; not norms, activations, embeddings, rotary angles, the loss, the optimizer.
- Real positions count, padding does not. A token attends to its own sample, in a language model to what came before
  it and within the layer's window (PaLM counts causal attention as if it were full).
- The LM head runs at supervised positions. Towers run for the pictures that are there, up to the feature layer; a
  sample without pictures counts as if it had the same way back as the others.
- Backward, a layer costs its forward again for the gradient of its weight, if that is trained, and once more for that
  of its input, if anything before the layer is trained. What is recomputed to save memory counts once.

Modules are taken in the order in which they run: norms and embeddings first, then layers as they are registered, of
which all but the last of a module (query, key, value; gate, up) read the same input. What this gets wrong (a module
registered otherwise, only some of query, key and value trained) lies in the first trained block, where nothing before
it is trained.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from mmchat.contrastive.dual_encoder import DualEncoder
from mmchat.data.collate import Batch
from mmchat.model.modeling import MMChatForConditionalGeneration
from mmchat.model.projectors import slots_per_tower
from mmchat.vision.families.clip_vit import CLIPViT

LANGUAGE_MODELS = {"gpt2", "gpt_neox", "llama", "mistral", "opt", "phi3", "qwen2", "qwen3"}
"""transformers' types whose count the tests compare with what torch sees. Experts, for one, would be counted wrong."""

LAYERS = (nn.Linear, Conv1D, LoraLayer)


@dataclass(frozen=True)
class Operations:
    """Forward and backward, for one view of an image, one real token, one supervised position.

    pair: for a token and one that it sees (itself is one), keyed by how many a layer lets it see (None: all before).
    """

    view: int
    token: int
    supervised: int
    pair: dict[int | None, int]

    def of(self, batch: Batch) -> int:
        return self.count(batch.views, batch.lengths, batch.supervised)

    def count(self, views: int, lengths: Iterable[int], supervised: int) -> int:
        """lengths: tokens of each sample."""
        lengths = list(lengths)
        pairs = sum(causal_pairs(length, window) * cost for window, cost in self.pair.items() for length in lengths)
        return self.view * views + self.token * sum(lengths) + self.supervised * supervised + pairs


def causal_pairs(length: int, window: int | None) -> int:
    """How many tokens the tokens of a sample see, all together: each itself and those before it, at most `window`."""
    most = length if window is None else min(window, length)
    return most * (most + 1) // 2 + (length - most) * most


def operations(model: nn.Module, towers_run: bool = True) -> Operations | None:
    """What steps of `model` cost, given what is trained (`requires_grad`); None for a kind that is not known here.

    towers_run: False where an assistant's towers do not, because their features are read.

    Shapes come from modules and configs, because ZeRO 3 leaves parameters empty.
    """
    known = (MMChatForConditionalGeneration, DualEncoder)
    if not (isinstance(model, known) and all(isinstance(tower, CLIPViT) for tower in model.towers)):
        return None
    if isinstance(model, DualEncoder):
        return _dual_encoder(model)
    return _assistant(model, towers_run) if model.config.text_config.model_type in LANGUAGE_MODELS else None


def frozen_tower_operations(model: MMChatForConditionalGeneration) -> int:
    """Of one image, what goes through towers of which nothing is trained: what cached features would save."""
    frozen = [tower for tower in model.towers if not _trained(tower)]
    return sum(_tower(tower, _blocks_to_feature(tower))[0] for tower in frozen)


def _assistant(model: MMChatForConditionalGeneration, towers_run: bool) -> Operations:
    image, below = 0, False
    slots = slots_per_tower([tower.spec for tower in model.towers], model.config.projectors)
    for tower, projector, count in zip(model.towers, model.projectors, slots, strict=True):
        per_image, trained = _tower(tower, _blocks_to_feature(tower))
        per_slot, trained = _passed(projector, trained)
        image += towers_run * per_image + count * per_slot
        below |= trained
    decoder, config = model.language_model.base_model, model.config.text_config
    (blocks,) = (m for m in decoder.modules() if isinstance(m, nn.ModuleList))
    token, head_below = _passed(decoder, below)
    pair: Counter[int | None] = Counter()
    costs = _attention(blocks, _attention_width(config), below or _trained(decoder, but=blocks))
    for window, cost in zip(_windows(config), costs, strict=True):
        pair[window] += cost
    return Operations(image, token, _layer(model.get_output_embeddings(), head_below), dict(pair))


def _dual_encoder(model: DualEncoder) -> Operations:
    """Without the matrix of similarities, which is small beside the encoders."""
    (tower,) = model.towers
    blocks = len(tower.backbone.encoder.layers) if model.config.pool == "pooled" else _blocks_to_feature(tower)
    per_image, trained = _tower(tower, blocks)
    per_image += _layer(model.image_projection, trained or _trained(model.image_norm))
    text = model.text_encoder
    token, trained = _passed(text, below=False)
    per_image += _layer(model.text_projection, trained)  # at one position of a caption; each image has one caption
    (blocks,) = (m for m in text.modules() if isinstance(m, nn.ModuleList))
    costs = _attention(blocks, text.config.hidden_size, _trained(text, but=blocks))
    return Operations(per_image, token, 0, {None: sum(costs)})


def _tower(tower: CLIPViT, blocks: int) -> tuple[int, bool]:
    """Operations of one image through the stem and so many blocks; whether any of this is trained."""
    backbone, spec = tower.backbone, tower.spec
    positions = (spec.image_size // spec.patch_size) ** 2 + 1  # patches and the class token
    below = _trained(backbone.embeddings) or _trained(backbone.pre_layrnorm)
    run = backbone.encoder.layers[:blocks]
    pairs = sum(_attention(run, spec.dim, below))
    per_position, trained = _passed(run, below)
    stem = _convolutions(backbone.embeddings.patch_embedding, spec.image_size)
    return stem + positions * per_position + positions**2 * pairs, trained


def _blocks_to_feature(tower: CLIPViT) -> int:
    idle = {id(parameter) for parameter in tower.idle_parameters()}
    return sum(not all(id(p) in idle for p in block.parameters()) for block in tower.backbone.encoder.layers)


def _convolutions(stem: nn.Module, side: int) -> int:
    """Operations of square convolutions, one after another, on an image of `side` x `side` pixels."""
    total, below = 0, False
    for part in stem.modules():
        if isinstance(part, nn.Conv2d):
            side = (side + 2 * part.padding[0] - part.kernel_size[0]) // part.stride[0] + 1
            weights = part.in_channels * part.out_channels * part.kernel_size[0] ** 2
            total += 2 * weights * side**2 * _passes(part, below)
        below |= any(p.requires_grad for p in part.parameters(recurse=False))
    return total


def _passed(module: nn.Module, below: bool) -> tuple[int, bool]:
    """Operations of the layers in `module` for one position; whether it, or what is below it, is trained."""
    if isinstance(module, LAYERS):
        return _layer(module, below), below or _trained(module)
    parts = [part for part in module.children() if any(isinstance(inner, LAYERS) for inner in part.modules())]
    others = [part for part in module.children() if part not in parts]
    below |= any(p.requires_grad for p in module.parameters(recurse=False)) or any(map(_trained, others))
    layers = [part for part in parts if isinstance(part, LAYERS)]
    beside = [] if isinstance(module, nn.Sequential) else layers[:-1]
    total, trained = 0, below
    for part in parts:
        cost, after = _passed(part, below if part in beside else trained)
        total, trained = total + cost, trained or after
        below = below if part in beside else trained
    return total, trained


def _layer(layer: nn.Module, below: bool) -> int:
    """Operations of a linear layer for one position."""
    if isinstance(layer, LoraLayer):
        base, down, up = layer.get_base_layer(), layer.lora_A["default"], layer.lora_B["default"]
        return _layer(base, below) + _layer(down, below) + _layer(up, below or _trained(down))
    inputs, outputs = (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)
    return 2 * inputs * outputs * _passes(layer, below)


def _passes(layer: nn.Module, below: bool) -> int:
    """Forward, the gradient of the weight, the gradient of the input."""
    return 1 + layer.weight.requires_grad + below


def _attention(blocks: Iterable[nn.Module], width: int, below: bool) -> Iterator[int]:
    """Per block: operations for one pair of positions. Both products have two inputs, hence twice as many backward."""
    for block in blocks:
        below |= _trained(block)
        yield 2 * 2 * width * (1 + 2 * below)


def _attention_width(config: PreTrainedConfig) -> int:
    """Of all heads' queries together, which is not the model's width everywhere."""
    stated = getattr(config, "head_dim", None)
    return config.num_attention_heads * stated if stated else config.hidden_size


def _windows(config: PreTrainedConfig) -> list[int | None]:
    """Per block: how many tokens a token sees, None for all before it. Models without windows lack these keys."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _trained(module: nn.Module, but: nn.Module | None = None) -> bool:
    left_out = {id(parameter) for parameter in but.parameters()} if but is not None else set()
    return any(p.requires_grad and id(p) not in left_out for p in module.parameters())
