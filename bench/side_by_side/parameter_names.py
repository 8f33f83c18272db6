"""Maps parameter names of transformers' LLaVA to ours."""

OUR_PREFIXES = {
    "model.vision_tower.": "towers.0.backbone.",
    "model.multi_modal_projector.linear_1.": "projectors.0.0.",
    "model.multi_modal_projector.linear_2.": "projectors.0.2.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}


def our_name(theirs: str) -> str:
    prefix = next(prefix for prefix in OUR_PREFIXES if theirs.startswith(prefix))
    return OUR_PREFIXES[prefix] + theirs.removeprefix(prefix)
