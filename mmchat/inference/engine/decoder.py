"""`Decoder`: prefill and decode steps of a language model over a `SlotCache`, each one forward."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from mmchat.errors import UserError
from mmchat.inference.engine.cache import LayerShape, SlotCache, View
from mmchat.inference.engine.cache_size import CacheSize
from mmchat.model.attention import NAME, PACKABLE, packed_inputs, use_fast_attention
from mmchat.model.decode_attention import is_faster

PROBE_TOLERANCE = 1e-2
"""Largest difference of logits in the probe of an untested kind of model, as a share of their largest magnitude."""

FLAT_MASKS = frozenset({"bloom"})
"""Models that compute positions (ALiBi) from a mask of [B, keys], and take no other."""


class Decoder:
    """A language model and its cache. Each slot holds one request from position 0 on.

    Args:
        language_model: Any `AutoModelForCausalLM` with full or sliding-window attention.
        layers: What its layers keep.

    Raises:
        UserError: It has layers of another type.
    """

    def __init__(self, language_model: PreTrainedModel, layers: tuple[LayerShape, ...]) -> None:
        self.model = language_model
        self.device = language_model.device
        self.dtype = language_model.dtype
        self.cache = SlotCache(layers, self.dtype)
        self.embed: Any = language_model.get_input_embeddings()
        self._windows = _windows(language_model.config)
        if language_model.config._attn_implementation == "sdpa":  # another was chosen for a reason
            use_fast_attention(language_model)
        self.packs = language_model.config.model_type in PACKABLE and language_model.config._attn_implementation == NAME
        """Whether several prompts are one row without padding, each attending to itself."""

    def prefill(self, slots: Sequence[int], rows: Sequence[torch.Tensor], past: int = 0) -> torch.Tensor:
        """Process a piece of the prompt of each row.

        Args:
            slots: The slot of each row; one alone if `past` is not 0.
            rows: float[length, D]: embeddings of each row's piece.
            past: Tokens of the prompt that are in the cache.

        Returns:
            float[B, V]: logits of the last token of each piece.
        """
        assert past == 0 or len(slots) == 1
        if self.packs and not past:
            return self._prefill_packed(slots, rows)
        lengths = [len(row) for row in rows]
        longest = max(lengths)
        # Padding is on the right, where the causal mask hides it.
        embeddings = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        offsets = torch.arange(longest)
        ends = torch.tensor(lengths)
        real = None if min(lengths) == longest else (offsets < ends[:, None]).flatten()
        self.cache.look_at(
            View(
                slots=torch.tensor(slots).repeat_interleave(ends).to(self.device),
                positions=torch.cat([offsets[:length] for length in lengths]).add(past).to(self.device),
                real=None if real is None else real.to(self.device),
                past=past,
                window=(slots[0], slots[0] + 1, past + longest) if past else None,
            )
        )
        output = self.model(
            inputs_embeds=embeddings,
            position_ids=(offsets + past).expand(len(slots), -1).to(self.device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=(ends - 1)[:, None].to(self.device) if len(slots) > 1 else 1,
        )
        return output.logits[:, 0]

    def _prefill_packed(self, slots: Sequence[int], rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """As `prefill` from the beginning, for all prompts in one row."""
        lengths = [len(row) for row in rows]
        packed = packed_inputs(lengths, self.device)
        ends = torch.tensor(lengths)
        owners = torch.tensor(slots).repeat_interleave(ends).to(self.device)
        self.cache.look_at(View(owners, packed["position_ids"][0], real=None, past=0, window=None))
        output = self.model(
            inputs_embeds=torch.cat(list(rows))[None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=(ends.cumsum(0) - 1).to(self.device),
            **packed,
        )
        return output.logits[0]

    def decode(self, first: int, tokens: Sequence[int], positions: Sequence[int], width: int) -> torch.Tensor:
        """Process one token in each of several consecutive slots.

        Args:
            first: The first slot.
            tokens: The token of each slot.
            positions: Its position.
            width: Positions to attend to: those up to the highest of a row whose result is of use.

        Returns:
            float[B, V]: logits of the next token.
        """
        at = torch.tensor([*positions], device=self.device)
        stop = first + len(positions)
        width = self._dense(width)
        slots = torch.arange(first, stop, device=self.device)
        self.cache.look_at(View(slots, at, None, past=width - 1, window=(first, stop, width)))
        output = self.model(
            inputs_embeds=self.embed(torch.tensor([*tokens], device=self.device)[:, None]),
            attention_mask=self._masks(at, width),
            position_ids=at[:, None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, 0]

    def _dense(self, width: int) -> int:
        """Positions to read, so that those up to `width` are seen.

        The products of `decode_attention` copy keys and values that are a part of their slots, and prepare themselves
        again for each width. To read whole slots takes less time, unless most of them is masked.
        """
        length = self.cache.size.length
        products = is_faster(self.dtype, self.device)
        return length if products and length <= 2 * width else width

    def _masks(self, positions: torch.Tensor, width: int) -> Any:
        """Additive masks float[B, 1, 1, width] by type of layer, or one where all layers have the same; long[B, width]
        for `FLAT_MASKS`."""
        keys = torch.arange(width, device=self.device)
        if self.model.config.model_type in FLAT_MASKS:
            return (keys <= positions[:, None]).long()
        masks = {}
        for kind, window in self._windows.items():
            hidden = keys > positions[:, None]
            if window is not None:
                hidden |= keys <= positions[:, None] - window
            mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
            # In the model's type, so that no layer casts it.
            masks[kind] = mask.masked_fill_(hidden, torch.finfo(self.dtype).min)[:, None, None]
        return next(iter(masks.values())) if len(masks) == 1 else masks


def refuse_untrue(language_model: PreTrainedModel, layers: tuple[LayerShape, ...]) -> None:
    """Compare logits of two requests side by side with those of each alone, for kinds of models that no test covers.

    Raises:
        UserError: They differ, for example because positions come from the attention mask.
    """
    kind = language_model.config.model_type
    if kind in PACKABLE:
        return
    try:
        difference = _difference(language_model, layers)
    except Exception as error:
        raise UserError(f"language model {kind} does not run over a cache of slots: {error}") from error
    limit = PROBE_TOLERANCE if language_model.dtype == torch.float32 else 10 * PROBE_TOLERANCE
    if not difference <= limit:
        raise UserError(
            f"language model {kind} computes other logits beside another request than alone, so the engine does not "
            "run it"
        )


def _difference(language_model: PreTrainedModel, layers: tuple[LayerShape, ...]) -> float:
    """Largest difference of logits between two requests side by side and each alone, relative to the largest."""
    decoder = Decoder(language_model, layers)
    decoder.cache.resize(CacheSize(2, 8))
    ids = torch.arange(1, 9, device=decoder.device) % decoder.embed.num_embeddings
    rows = [ids[:3], ids[2:]]
    expected = torch.cat([language_model(input_ids=row[None]).logits[:, -1] for row in rows])
    decoder.prefill([0, 1], [decoder.embed(row[:-1]) for row in rows])
    found = decoder.decode(0, [int(row[-1]) for row in rows], [len(row) - 1 for row in rows], 6)
    return float((found - expected).abs().max() / expected.abs().max())


def _windows(config: Any) -> dict[str, int | None]:
    """The window of each type of layer, in tokens; None if a token attends to all before it.

    Raises:
        UserError: A type of layer is neither full nor sliding-window attention.
    """
    types = set(getattr(config, "layer_types", None) or ())
    size = getattr(config, "sliding_window", None)
    if unknown := types - {"full_attention", "sliding_attention"}:
        raise UserError(
            f"language model {config.model_type} has layers of type {', '.join(sorted(unknown))}; the engine runs "
            "full and sliding-window attention"
        )
    if not types:
        types = {"full_attention" if size is None else "sliding_attention"}
    return {kind: size if kind == "sliding_attention" else None for kind in sorted(types)}
