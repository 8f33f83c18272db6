"""Floating-point operations of a training step, counted from the shapes of the model before any step runs.

The convention is that of model FLOPs utilisation (Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B): count
what the result requires, regardless of how it is computed.

- Matrix products count, 2 operations per weight and position: linear layers, convolutions, LoRA factors and the two
  products of attention. Norms, activations, embeddings, rotary angles, the loss and the optimizer do not count.
- Real positions count, padding does not. A token attends within its own sample; in a language model, to itself and
  earlier tokens within the layer's window (PaLM counts causal attention as full attention).
- The LM head runs at supervised positions. Towers run on the images of a batch, up to the feature layer. A sample
  without images counts as if its backward were as long as that of the others.
- In the backward a layer costs its forward once for the gradient of its weight, if that is trained, and once for the
  gradient of its input, if anything before the layer is trained. What is recomputed to save memory counts once:
  activations, and the second forward of gradient caching.

Modules are visited in the order in which they run: norms and embeddings first, then layers as they are registered. All
layers of a module but the last (query, key, value; gate, up) read the same input. Where this is wrong (other
registration orders, only some of query, key and value trained), the error is within the first trained block.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn
from transformers import CLIPTextConfig, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from mmchat.contrastive.dual_encoder import DualEncoder
from mmchat.contrastive.simclr_model import SimCLR
from mmchat.data.collate import Batch
from mmchat.model.lora_adapter import lora_layer_types
from mmchat.model.modeling import MMChatForConditionalGeneration
from mmchat.model.projectors import slots_per_tower
from mmchat.model.projectors.resampler import Resampler
from mmchat.vision import VisionTower
from mmchat.vision.block_tower import BlockTower
from mmchat.vision.classifier import ImageClassifier

LANGUAGE_MODELS = {"gpt2", "gpt_neox", "llama", "mistral", "opt", "phi3", "qwen2", "qwen3"}
"""transformers' model types whose count is tested against torch's. Mixtures of experts would be counted wrong."""

LAYERS = (nn.Linear, Conv1D)


@dataclass(frozen=True)
class ModelFlops:
    """Operations of forward and backward per unit of a batch.

    Attributes:
        view: per view of an image.
        token: per real token.
        supervised: per supervised position.
        pair: per pair of a token and one it attends to (including itself); key: window of the layer, None if unlimited.
    """

    view: int
    token: int
    supervised: int
    pair: dict[int | None, int]

    def of(self, batch: Batch) -> int:
        """Operations of a batch."""
        return self.count(batch.views, batch.lengths, batch.supervised)

    def count(self, views: int, lengths: Iterable[int], supervised: int) -> int:
        """Operations for numbers of views and supervised positions.

        Args:
            lengths: tokens of each sample.
        """
        lengths = list(lengths)
        pairs = sum(causal_pairs(length, window) * cost for window, cost in self.pair.items() for length in lengths)
        return self.view * views + self.token * sum(lengths) + self.supervised * supervised + pairs


def causal_pairs(length: int, window: int | None) -> int:
    """Pairs (token, token it attends to) in a causal sample: itself and earlier tokens, at most `window` each."""
    most = length if window is None else min(window, length)
    return most * (most + 1) // 2 + (length - most) * most


def model_flops(model: nn.Module, towers_run: bool = True, teacher: ImageClassifier | None = None) -> ModelFlops | None:
    """Operations per unit of a batch, given which parameters are trained (`requires_grad`).

    Shapes are taken from modules and configs, because under ZeRO 3 parameters are empty.

    Args:
        towers_run: False if an assistant's towers do not run, because features are read from the cache.
        teacher: a frozen classifier that runs forward on the same images.

    Returns:
        None for a kind of model that cannot be counted.
    """
    if teacher is not None:
        counts = [model_flops(one) for one in (model, teacher)]
        return None if None in counts else ModelFlops(sum(count.view for count in counts), 0, 0, {})
    known = (MMChatForConditionalGeneration, DualEncoder, SimCLR, ImageClassifier)
    if not (isinstance(model, known) and all(isinstance(tower, BlockTower) for tower in model.towers)):
        return None
    if any(tower.spec.native for tower in model.towers):  # a view is one patch, attention spans the image
        return None
    if isinstance(model, MMChatForConditionalGeneration):
        return _assistant(model, towers_run) if model.config.text_config.model_type in LANGUAGE_MODELS else None
    pools_by_head = (
        not isinstance(model, SimCLR) and model.config.pool == "pooled" and model.towers[0].pooling is not None
    )
    if pools_by_head:
        return None
    if isinstance(model, DualEncoder):
        projects = model.config.image_projection and model.config.text_projection
        return _dual_encoder(model) if isinstance(model.config.text_config, CLIPTextConfig) and projects else None
    return _tower_with_head(model, pooled=isinstance(model, ImageClassifier) and model.config.pool == "pooled")


def _tower_with_head(model: SimCLR | ImageClassifier, pooled: bool) -> ModelFlops:
    (tower,) = model.towers
    per_view, trained = _tower(tower, len(tower.blocks) if pooled else tower.blocks_to_run)
    head, _ = _passed(model.head, trained)
    return ModelFlops(per_view + head, 0, 0, {})


def tower_flops(towers: Iterable[VisionTower]) -> int:
    """Operations per view of towers of a model that `model_flops` can count."""
    return sum(_tower(tower, tower.blocks_to_run)[0] for tower in towers)


def _assistant(model: MMChatForConditionalGeneration, towers_run: bool) -> ModelFlops:
    image, below = 0, False
    slots = slots_per_tower([tower.spec for tower in model.towers], model.config.projectors)
    for tower, projector, count in zip(model.towers, model.projectors, slots, strict=True):
        per_image, trained = _tower(tower, tower.blocks_to_run)
        projected, trained = _projector(projector, tower.spec.tokens, count, trained)
        image += towers_run * per_image + projected
        below |= trained
    decoder, config = model.language_model.base_model, model.config.text_config
    (blocks,) = (m for m in decoder.modules() if isinstance(m, nn.ModuleList))
    token, head_below = _passed(decoder, below)
    pair: Counter[int | None] = Counter()
    costs = _attention(blocks, _attention_width(config), below or _trained(decoder, but=blocks))
    for window, cost in zip(_windows(config), costs, strict=True):
        pair[window] += cost
    return ModelFlops(image, token, _layer(model.get_output_embeddings(), head_below), dict(pair))


def _dual_encoder(model: DualEncoder) -> ModelFlops:
    """Without the similarity matrix, which is small compared with the encoders."""
    (tower,) = model.towers
    blocks = len(tower.blocks) if model.config.pool == "pooled" else tower.blocks_to_run
    per_image, trained = _tower(tower, blocks)
    per_image += _layer(model.image_projection, trained or _trained(model.image_norm))
    text = model.text_encoder
    token, trained = _passed(text, below=False)
    per_image += _layer(model.text_projection, trained)  # at one position of a caption; each image has one caption
    (blocks,) = (m for m in text.modules() if isinstance(m, nn.ModuleList))
    costs = _attention(blocks, text.config.hidden_size, _trained(text, but=blocks))
    return ModelFlops(per_image, token, 0, {None: sum(costs)})


def _tower(tower: BlockTower, blocks: int) -> tuple[int, bool]:
    """Operations of one view through the embeddings and `blocks` blocks; and whether any of this is trained."""
    patches = (tower.spec.image_size // tower.spec.patch_size) ** 2
    positions = tower.patches_kept(patches) + tower.class_tokens + tower.registers
    later = [part for part in (tower.blocks, tower.last_norm, tower.pooling) if part is not None]
    below = _trained(tower.backbone, but=later)
    run = tower.blocks[:blocks]
    pairs = sum(_attention(run, tower.backbone.config.hidden_size, below))
    per_position, trained = _passed(run, below)
    stem = _stem(_leaves(tower.backbone, later), tower.spec.image_size, patches)
    return stem + positions * per_position + positions**2 * pairs, trained


def _stem(leaves: Iterable[nn.Module], side: int, patches: int) -> int:
    """Operations of consecutive square convolutions on `side` x `side` pixels, and of linear layers on the patches.

    Parameters outside of layers (class token, positions) are added to patches after these.
    """
    total, below = 0, False
    for leaf in leaves:
        if isinstance(leaf, nn.Conv2d):
            padding = 0 if leaf.padding == "valid" else leaf.padding[0]
            side = (side + 2 * padding - leaf.kernel_size[0]) // leaf.stride[0] + 1
            weights = leaf.in_channels * leaf.out_channels * leaf.kernel_size[0] ** 2
            total += 2 * weights * side**2 * _passes(leaf, below)
        elif _is_layer(leaf):
            total += patches * _layer(leaf, below)
        below |= _trained(leaf)
    return total


def _leaves(module: nn.Module, but: list[nn.Module]) -> Iterator[nn.Module]:
    """Leaf modules in order; a LoRA layer counts as a leaf."""
    for child in module.children():
        if not any(child is other for other in but):
            if _is_layer(child) or not any(child.children()):
                yield child
            else:
                yield from _leaves(child, but)


def _projector(projector: nn.Module, patches: int, slots: int, below: bool) -> tuple[int, bool]:
    """Operations of one view; and whether the projector, or anything below it, is trained.

    All projectors except the resampler compute their matrix products per slot, after patches are merged.
    """
    if isinstance(projector, Resampler):
        return _resampler(projector, patches, slots, below)
    per_slot, trained = _passed(projector, below)
    return slots * per_slot, trained


def _resampler(resampler: Resampler, patches: int, slots: int, below: bool) -> tuple[int, bool]:
    """Without the queries' projection, which runs once per forward, regardless of the number of images."""
    normed = below or _trained(resampler.enter) or _trained(resampler.patch_norm)
    placed = normed or _trained(resampler.patch_positions)
    after = (resampler.out_proj, resampler.out_norm, resampler.leave)
    attended = below or _trained(resampler, but=after)
    per_patch = _layer(resampler.enter, below) + _layer(resampler.k_proj, placed) + _layer(resampler.v_proj, normed)
    per_slot = _layer(resampler.out_proj, attended)
    per_slot += _layer(resampler.leave, attended or any(map(_trained, after[:2])))
    width = resampler.out_norm.normalized_shape[0]
    pairs = patches * slots * _pair(width, attended)
    return patches * per_patch + slots * per_slot + pairs, below or _trained(resampler)


def _passed(module: nn.Module, below: bool) -> tuple[int, bool]:
    """Operations of the layers in `module` for one position; and whether it, or anything below it, is trained."""
    if _is_layer(module):
        return _layer(module, below), below or _trained(module)
    parts = [part for part in module.children() if any(_is_layer(inner) for inner in part.modules())]
    others = [part for part in module.children() if part not in parts]
    below |= any(p.requires_grad for p in module.parameters(recurse=False)) or any(map(_trained, others))
    layers = [part for part in parts if _is_layer(part)]
    beside = [] if isinstance(module, nn.Sequential) else layers[:-1]
    total, trained = 0, below
    for part in parts:
        cost, after = _passed(part, below if part in beside else trained)
        total, trained = total + cost, trained or after
        below = below if part in beside else trained
    return total, trained


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (*LAYERS, *lora_layer_types()))


def _layer(layer: nn.Module, below: bool) -> int:
    """Operations of a linear layer for one position."""
    if isinstance(layer, lora_layer_types()):
        base, down, up = layer.get_base_layer(), layer.lora_A["default"], layer.lora_B["default"]
        # DoRA scales the base's output; with dropout it needs that of the dropped input as well.
        products = 2 if layer.lora_magnitude_vector and isinstance(layer.lora_dropout["default"], nn.Dropout) else 1
        return products * _layer(base, below) + _layer(down, below) + _layer(up, below or _trained(down))
    inputs, outputs = (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)
    return 2 * inputs * outputs * _passes(layer, below)


def _passes(layer: nn.Module, below: bool) -> int:
    """1 for the forward, 1 for the gradient of the weight, 1 for the gradient of the input."""
    return 1 + layer.weight.requires_grad + below


def _attention(blocks: Iterable[nn.Module], width: int, below: bool) -> Iterator[int]:
    """Per block: operations for one pair of positions. Both products have two inputs: twice as many in the backward."""
    for block in blocks:
        below |= _trained(block)
        yield _pair(width, below)


def _pair(width: int, below: bool) -> int:
    return 2 * 2 * width * (1 + 2 * below)


def _attention_width(config: PreTrainedConfig) -> int:
    """Width of all query heads together, which differs from the hidden size in some models."""
    stated = getattr(config, "head_dim", None)
    return config.num_attention_heads * stated if stated else config.hidden_size


def _windows(config: PreTrainedConfig) -> list[int | None]:
    """Per block: how many tokens a token attends to; None for all. Models without windows lack these config keys."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _trained(module: nn.Module, but: Iterable[nn.Module] = ()) -> bool:
    left_out = {id(parameter) for part in but for parameter in part.parameters()}
    return any(p.requires_grad and id(p) not in left_out for p in module.parameters())
