"""Vary with Qwen-1: Vary-base and Vary-toy, which read with CLIP and the vision vocabulary (arXiv:2312.06109).

The original class is `varyQwenForCausalLM` (Ucas-HaoranWei/Vary, vary/model/).
"""

from mmchat.conversion import qwen1
from mmchat.conversion.clip_tower import clip_config
from mmchat.conversion.formats.base import (
    ImportedAssistant,
    check_token_ids,
    open_tokenizer,
    require_config,
    tower_state,
)
from mmchat.conversion.formats.vary_opt import QWEN_TOWER, slot_ids
from mmchat.model.assembly import build_config
from mmchat.vision.checkpoint_formats.base import rename_key, with_backbone_prefix
from mmchat.vision.checkpoint_formats.vary import Vary, encoder_prefix
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles

CLIP_TOWER = "transformer.vision_tower.vision_model."
_PROJECTORS = {"transformer.mm_projector.": "projectors.0.", "transformer.mm_projector_vary.": "projectors.1."}


class VaryQwen:
    name = "vary-qwen"
    description = "Vary's Qwen (transformer.vision_tower and transformer.vision_tower_high beside transformer.h.*)"

    def recognises(self, source: WeightFiles) -> bool:
        return encoder_prefix(source) == QWEN_TOWER

    def open(self, source: WeightFiles, tokenizer: str | None) -> ImportedAssistant:
        values = require_config(source, *qwen1.NEEDED)
        vocabulary = Vary().open(source, weights=True)
        # As in `varyQwenModel.forward`: the hidden layer that the config names, without the class token.
        clip = clip_config(source, CLIP_TOWER, layer=values.get("vision_select_layer", -1))
        # Older versions of transformers also saved position_ids, which is a buffer and not a weight.
        clip_state = {key: t for key, t in source.tensors(CLIP_TOWER).items() if key != "embeddings.position_ids"}
        others = {
            rename_key(key, _PROJECTORS, {}): tensor
            for key, tensor in source.tensors().items()
            if not key.startswith((QWEN_TOWER, CLIP_TOWER))
        }
        ranks = source.path / qwen1.RANKS_FILE
        use_ranks = tokenizer is None and ranks.exists()
        opened = qwen1.tokenizer_from_ranks(ranks) if use_ranks else open_tokenizer(source, tokenizer)
        check_token_ids(opened, qwen1.SLOT_IDS | slot_ids(values), source)
        towers = [clip, vocabulary.config]
        config = build_config(qwen1.language_config(values), towers, ["linear"] * 2, opened, "vary_qwen")
        state = qwen1.language_state(others) | tower_state(0, with_backbone_prefix(clip_state))
        return ImportedAssistant(config, opened, state | tower_state(1, vocabulary.state))
