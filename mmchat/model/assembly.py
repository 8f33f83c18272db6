"""Build an assistant from a language model and vision towers (`mmchat init`)."""

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from mmchat.auto import MMChatConfig, MMChatForConditionalGeneration, MMChatImageProcessor, MMChatProcessor
from mmchat.conversation import DEFAULT_SLOTS, SlotTokens, get_template, stop_tokens
from mmchat.conversation.template_choice import check_template, choose_template
from mmchat.errors import UserError
from mmchat.files import read_json_object
from mmchat.opening import check_sizes, opening, rehearse
from mmchat.pretrained import open_pretrained, refuse_quantized
from mmchat.vision import Split, TowerConfig, VisionTower


class Language(NamedTuple):
    """A language model with its weights, its tokenizer and the template that it was trained with, if that is known."""

    model: PreTrainedModel
    tokenizer: Any
    template: str | None = None


def assemble(
    language: str | Language,
    towers: list[VisionTower],
    projector: str | Sequence[str],
    template: str | None = None,
    system: str | None = None,
    tokenizer: str | None = None,
    slots: SlotTokens | None = None,
    fusion: str = "channels",
    seed: int = 0,
    weights: bool = True,
    max_positions: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[MMChatForConditionalGeneration, MMChatProcessor]:
    """Join a language model and vision towers with new projectors.

    Slot tokens, and marker tokens of fit split, are added if the tokenizer lacks them; their embeddings start as the
    mean of those of its other tokens.

    Args:
        language: Directory or hub name of a causal language model, or a `.json` file with a transformers config. The
            latter gives random weights and needs `tokenizer`. Or a model that is open already; it is changed in place.
        towers: The vision towers, in the order of the config.
        projector: One name for all towers, or one for each (`mmchat.model.projectors.PROJECTORS`).
        template: Name of a conversation template. None chooses one (`choose_template`).
        system: Default system message. None uses the template's own, "" none.
        tokenizer: Directory or hub name. None uses the language model's own.
        slots: Slot tokens. None uses `DEFAULT_SLOTS`.
        fusion: "channels" or "sequence", as in `MMChatConfig`.
        seed: Seed of all random weights.
        weights: False reads no weights and initializes them on torch's current device. Use it with the meta device
            or fake tensors, when only shapes are needed.
        max_positions: Context length to extend an OPT to. None keeps the language model's.
        report: Called with a line about the template.

    Returns:
        The model and its processor.

    Raises:
        UserError: A name is unknown, a part cannot be opened, or the parts do not fit together.
    """
    slots = slots or DEFAULT_SLOTS
    if template is not None:
        get_template(template)  # refuses an unknown name before anything is loaded
    opened_tokenizer, model_config = _open_language(language, tokenizer, weights)
    template = _fitting_template(template, language, opened_tokenizer, report)
    real = set(opened_tokenizer.get_vocab().values())
    opened_tokenizer.add_tokens([*slots.tokens, *_marker_tokens(towers)], special_tokens=True)
    torch.manual_seed(seed)
    if isinstance(language, Language) or model_config is None:
        is_open = isinstance(language, Language)
        language_model = (
            language.model if is_open else open_pretrained(AutoModelForCausalLM, language, "language model", True)
        )
        _start_embeddings(language_model, real, set(opened_tokenizer.get_vocab().values()) - real)
    else:
        # A published model may have more embeddings than its tokenizer has tokens. It keeps them.
        rows = 0 if language.endswith(".json") else model_config["vocab_size"]
        model_config["vocab_size"] = max(len(opened_tokenizer), rows)
        with opening(Path(language)):
            language_config = AutoConfig.for_model(**model_config)
            rehearse(lambda: AutoModelForCausalLM.from_config(language_config), Path(language))
            language_model = AutoModelForCausalLM.from_config(language_config)
    if max_positions is not None:
        extend_positions(language_model, max_positions)
    config = build_config(
        language_model.config,
        [tower.config for tower in towers],
        [projector] * len(towers) if isinstance(projector, str) else projector,
        opened_tokenizer,
        template,
        slots,
        system,
        fusion,
    )
    model = MMChatForConditionalGeneration(config)
    model.language_model = language_model
    for index, tower in enumerate(towers):
        model.towers[index] = tower
    return model, build_processor(model, opened_tokenizer)


def _fitting_template(
    template: str | None, language: str | Language, tokenizer: Any, report: Callable[[str], None]
) -> str:
    """The template that was named or that of the assistant the language model comes from, checked, or a chosen one.

    Raises:
        UserError: The tokenizer lacks a token that it needs.
    """
    if template is None and isinstance(language, Language) and language.template is not None:
        template = language.template
        report(f"template {template}: that of the assistant whose language model this is")
    if template is not None:
        check_template(template, tokenizer)
        return template
    choice = choose_template(tokenizer, _model_type(language))
    report(f"template {choice.name}: {choice.reason} (--template names another)")
    return choice.name


def _model_type(language: str | Language) -> str:
    if isinstance(language, Language):
        return language.model.config.model_type
    if language.endswith(".json"):
        return read_language_config(Path(language)).get("model_type", "")
    return open_pretrained(AutoConfig, language, "language model").model_type


def _marker_tokens(towers: Sequence[VisionTower]) -> list[str]:
    tilings = [(tower.spec.preprocessing.tiling, tower.spec.image_size) for tower in towers]
    tokens = [tiling.marker_tokens(side) for tiling, side in tilings if isinstance(tiling, Split)]
    return list(dict.fromkeys(chain(*tokens)))


def build_config(
    language: PreTrainedConfig,
    towers: Sequence[TowerConfig],
    projectors: Sequence[str],
    tokenizer: Any,
    template: str,
    slots: SlotTokens = DEFAULT_SLOTS,
    system: str | None = None,
    fusion: str = "channels",
) -> MMChatConfig:
    """The config of an assistant. `tokenizer` has the slot tokens already; other arguments are those of `assemble`."""
    return MMChatConfig(
        text_config=language,
        towers=[tower.to_dict() for tower in towers],
        projectors=list(projectors),
        fusion=fusion,
        image_token_id=tokenizer.convert_tokens_to_ids(slots.pad),
        slots=slots.to_dict(),
        template=template,
        system=system,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def build_processor(model: MMChatForConditionalGeneration, tokenizer: Any) -> MMChatProcessor:
    """The processor of a model and its tokenizer. Also sets stop and pad tokens in the generation config."""
    config = model.config
    stops = dict.fromkeys(
        (tokenizer.eos_token_id, *stop_tokens(config.template, tokenizer, SlotTokens(**config.slots)))
    )
    model.generation_config.eos_token_id = [stop for stop in stops if stop is not None] or None
    pad = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.eos_token_id if pad is None else pad
    return MMChatProcessor(
        MMChatImageProcessor([spec.to_dict() for spec in model.specs]),
        tokenizer,
        template=config.template,
        system=config.system,
        slots=config.slots,
        image_tokens=model.image_tokens,
    )


def extend_positions(language_model: PreTrainedModel, positions: int) -> None:
    """Extend an OPT, in place, to a longer context.

    Learned positions are interpolated linearly; the first and the last keep their embeddings.

    Args:
        language_model: An OPT.
        positions: The new context length in tokens.

    Raises:
        UserError: The model is not an OPT, or it has more positions already.
    """
    config = language_model.config
    if config.model_type != "opt":
        raise UserError(
            f"--max-positions extends the learned positions of an OPT, found a {config.model_type}; rotary positions "
            "need no extension, their limit is max_position_embeddings in the config"
        )
    if positions < config.max_position_embeddings:
        raise UserError(f"--max-positions is {positions}, but the model has {config.max_position_embeddings} already")
    decoder = language_model.model.decoder
    old = decoder.embed_positions
    extended = type(old)(positions, old.embedding_dim).to(old.weight.dtype)
    offset_rows, learned = old.weight.detach().split([old.offset, config.max_position_embeddings])
    interpolated = F.interpolate(learned.T[None].float(), positions, mode="linear", align_corners=True)[0].T
    extended.weight.data = torch.cat([offset_rows, interpolated.to(old.weight.dtype)])
    decoder.embed_positions = extended
    config.max_position_embeddings = positions


def _open_language(language: str | Language, tokenizer: str | None, weights: bool) -> tuple[Any, dict[str, Any] | None]:
    """The tokenizer, and the values of the config if the language model is created without reading weights."""
    if isinstance(language, Language):
        opened = language.tokenizer if tokenizer is None else open_pretrained(AutoTokenizer, tokenizer, "tokenizer")
        return opened, None
    if not language.endswith(".json"):
        opened = open_pretrained(AutoTokenizer, tokenizer or language, "tokenizer")
        config = open_pretrained(AutoConfig, language, "language model").to_dict()
        refuse_quantized(config, language)
        return opened, None if weights else config
    if tokenizer is None:
        raise UserError(f"--language {language} is a config without a tokenizer; name one with --tokenizer")
    config = read_language_config(Path(language))
    refuse_quantized(config, language)
    return open_pretrained(AutoTokenizer, tokenizer, "tokenizer"), config


def read_language_config(path: Path) -> dict[str, Any]:
    """The values of a language model's config.

    Raises:
        UserError: The file is missing or damaged, or has an impossible size.
    """
    check_sizes(values := read_json_object(path), path)
    return values


def _start_embeddings(language_model: Any, real: set[int], new: set[int]) -> None:
    """Set the input and output embeddings of new tokens to the mean of the real rows.

    A published vocabulary may be padded (Qwen2.5: 151,936 rows, 151,665 tokens). Its spare rows were never trained, so
    they are left out of the mean, and a new token that falls on one does not keep it.

    Args:
        language_model: Changed in place. It grows if new tokens lie above its rows.
        real: The ids of the tokenizer before tokens were added.
        new: The ids that were added.
    """
    old_size = language_model.get_input_embeddings().weight.shape[0]
    size = max(old_size, *(token + 1 for token in real | new))
    if size > old_size:
        language_model.resize_token_embeddings(size, mean_resizing=False)
    trained = sorted(token for token in real if token < old_size)
    fresh = sorted(new.union(range(old_size, size)))
    head = language_model.get_output_embeddings()
    with torch.no_grad():
        for rows in (language_model.get_input_embeddings().weight, head.weight, head.bias):
            if rows is not None:
                # In fp32, because a sum of many bf16 rows loses digits. Tied rows are set twice to the same.
                rows[fresh] = rows[trained].mean(dim=0, dtype=torch.float32).to(rows.dtype)
