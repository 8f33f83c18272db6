"""Opening model directories that may be damaged or hostile: one message, in bounded time and memory.

Configs of other programs hold values of any type and size, and reach code here and in transformers that trusts them.
"""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mmchat.errors import UserError
from mmchat.files import CANNOT_WRITE, read_json, read_json_object, refuse_special

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
SHOWN_REASON = 300
"""How many characters of another program's error a message shows."""
MAX_SIZE = 2**31 - 1
MAX_COUNT = 10_000
MAX_TOKENS = 10_000_000
"""Bound of token ids. tokenizers takes four bytes for every id up to the largest."""
UNUSED_TOKENS = 65_536
"""Ids without a token that a vocabulary may have beside as many as it has tokens. Embeddings have a row for each."""
MAX_GROWTH = 10**6
"""Most characters by which a tokenizer's normalizers replace one. Each is counted by the length of its texts."""
MAX_IMAGE_SIZE = 8192
"""Largest side of the squares that a tower sees, in pixels."""
SIZES = {
    *("hidden_size", "intermediate_size", "ffn_dim", "mlp_dim", "d_model", "n_embd", "embed_dim", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "n_head", "num_heads", "vocab_size", "max_position_embeddings"),
    *("n_positions", "word_embed_proj_dim", "num_channels", "output_channels", "temporal_patch_size"),
}
"""Keys of configs whose values are sizes."""
COUNTS = {
    *("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "depth"),
    *("num_experts", "num_local_experts", "n_routed_experts", "num_nextn_predict_layers"),
}
"""Keys whose values say how often something is built."""
NAMES = ("model_type", "tokenizer_class", "processor_class", "image_processor_type")
"""Keys whose values are names."""
LIMITS = {
    **dict.fromkeys(SIZES, MAX_SIZE),
    **dict.fromkeys(COUNTS, MAX_COUNT),
    **dict.fromkeys(("image_size", "patch_size"), MAX_IMAGE_SIZE),
    "num_labels": 1_000_000,
}
"""Key -> its largest value. Values are whole numbers from 1, or lists or objects of them."""
PARAMETERS_PER_BYTE = 8
"""Most parameters that are built for each byte of weights. Two fit into one with 4 bits. A model is built on the meta
device and then for real, and a tied parameter counts twice."""
SMALL_MODEL = 2**26
"""Parameters that are always allowed: what they take is bearable."""
MAX_PARTS = 200_000
"""Most modules and parameters of a model, counted as often as they are built. Building these takes seconds."""
SMALL_PARTS, BYTES_PER_PART = 5_000, 1_000
"""Parts that are always allowed, and bytes of weights for each one above."""


def read_model_config(directory: Path) -> dict[str, Any]:
    """The values of a directory's config.json, with sizes that a model can have.

    Raises:
        UserError: The file is missing or damaged, or a size, a count or a name in it is impossible.
    """
    path = directory / CONFIG
    values = read_json_object(path)
    check_sizes(values, path)
    return values


def check_sizes(values: Any, path: Path, place: str = "") -> None:
    """Refuse sizes that are 0, negative, not whole numbers or absurd, anywhere in the values of a config.

    Args:
        values: The values.
        path: Their file, for messages.
        place: Dotted key of the values in the file.

    Raises:
        UserError: A key of LIMITS or NAMES has an impossible value.
    """
    if isinstance(values, list):
        for number, inner in enumerate(values):
            check_sizes(inner, path, f"{place}.{number}" if place else str(number))
    if not isinstance(values, dict):
        return
    for key, value in values.items():
        name = f"{place}.{key}" if place else key
        most = LIMITS.get(key)
        # A tower of convolutions (conv_vit) may have no block above its stem; the quickstart's has none.
        only_stem = key == "num_hidden_layers" and value == 0 and "stem_depth" in values
        if most is not None and not only_stem and not _is_size(value, most):
            raise UserError(
                f"{path} has {name} {value!r:.80}, expected a whole number from 1 to {most:,}; copy or download the "
                "file again, or correct it"
            )
        if key in NAMES and not isinstance(value, str | None):
            raise UserError(f"{path} has {name} {value!r:.80}, expected a name; copy or download the file again")
        check_sizes(value, path, name)


def _is_size(value: Any, most: int) -> bool:
    if isinstance(value, dict | list):
        return all(_is_size(one, most) for one in (value.values() if isinstance(value, dict) else value))
    return value is None or (type(value) is int and 1 <= value <= most)


def check_tokenizer(directory: Path) -> None:
    """Refuse a tokenizer.json by which tokenizers, a library, takes memory without bounds, or loses tokens by chance.

    Args:
        directory: The directory, which may have no such file.

    Raises:
        UserError: An id of a token is too large or belongs to another token, too; texts are padded or replaced by too
            long ones; or tokenizer_config.json holds text that no file can have.
    """
    stated = directory / TOKENIZER_CONFIG
    if os.path.lexists(stated):
        try:
            json.dumps(read_json_object(stated), ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"{stated} holds half a character ({error.reason}); copy it again") from None
    path = directory / TOKENIZER
    if not os.path.lexists(path):
        return
    values = read_json_object(path)
    model = values.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    added = values.get("added_tokens")
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    ids += [token.get("id") for token in (added if isinstance(added, list) else ()) if isinstance(token, dict)]
    if wrong := [one for one in ids if not (type(one) is int and 0 <= one < MAX_TOKENS)]:
        raise UserError(f"{path} has the token id {wrong[0]!r:.80}, expected 0 to {MAX_TOKENS - 1:,}; copy it again")
    if isinstance(vocabulary, dict) and len(set(vocabulary.values())) < len(vocabulary):
        raise UserError(f"{path} gives several tokens of the vocabulary the same id; copy it again")
    count = max(len(ids), len(vocabulary) if isinstance(vocabulary, list) else 0)
    if max(ids, default=0) > 2 * count + UNUSED_TOKENS:
        raise UserError(f"{path} has {count:,} tokens, but the id {max(ids):,}; copy it again")
    padding, normalizer = values.get("padding"), values.get("normalizer")
    if max(_integers(padding), default=0) > MAX_TOKENS:
        raise UserError(f"{path} pads every text to {max(_integers(padding)):.3g} tokens; copy it again")
    if _growth(normalizer) > MAX_GROWTH:
        raise UserError(f"{path} replaces text by more than {MAX_GROWTH:,} times as much; copy it again")


def check_generation_config(directory: Path) -> None:
    """Refuse a damaged generation_config.json, for which transformers would take its defaults without a word.

    Args:
        directory: The directory, which may have no such file.

    Raises:
        UserError: The file is damaged, or an id of a token in it is impossible.
    """
    path = directory / GENERATION_CONFIG
    if not os.path.lexists(path):
        return
    values = read_json_object(path)
    for key in ("eos_token_id", "pad_token_id", "bos_token_id"):
        ids = value if isinstance(value := values.get(key), list) else [] if value is None else [value]
        if not all(type(one) is int and 0 <= one < MAX_TOKENS for one in ids):
            raise UserError(f"{path} has {key} {value!r:.80}, expected the id of a token, or a list; copy it again")


def _integers(values: Any) -> Iterator[int]:
    if isinstance(values, int):
        yield values
    for inner in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        yield from _integers(inner)


def _growth(normalizer: Any) -> float:
    """By how much a normalizer of tokenizers lengthens text, at most."""
    if isinstance(normalizer, list):
        return prod(map(_growth, normalizer))
    if not isinstance(normalizer, dict):
        return 1
    own = max((len(text) for text in normalizer.values() if isinstance(text, str)), default=1)
    is_replacing = normalizer.get("type") in ("Replace", "Prepend")
    return max(1, own if is_replacing else 1) * _growth(normalizer.get("normalizers"))


@contextmanager
def opening(where: Path, weights: bool = False, held: int | None = None, what: str = "") -> Iterator[None]:
    """Inside the `with`, a model directory is opened: what damaged or hostile files raise becomes a `UserError`.

    Modules that are built inside are bounded, too: their number, and with `weights` or `held` their parameters by the
    weights that there are.

    Args:
        where: The directory or file.
        weights: Whether its weights are all that the model has.
        held: Bytes of the weights, if these are not those of `where`.
        what: What messages call it; "": its path.

    Raises:
        UserError: The block raised, or built a model that is too large, or a file is a pipe or device. The message
            names the file and the cause.
    """
    for path in where.iterdir() if where.is_dir() else ():
        with suppress(OSError):  # links to nowhere may never be read
            refuse_special(path)
    if held is None and weights:
        held = weight_bytes(where)
    try:
        with _bounded_building(where, held, counts_meta=held is not None):
            yield
    except UserError:
        raise
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"  # of tokenizers and safetensors, which are in Rust
        if not (is_panic or isinstance(error, Exception)):
            raise
        if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
            raise
        raise UserError(
            f"{what or where} cannot be opened: {_cause(where, error)}; copy or download it again"
        ) from error


def weight_bytes(where: Path) -> int:
    """Size of the weight files of a directory, or of one file."""
    return sum(file.stat().st_size for file in weight_files(where))


def weight_files(where: Path) -> list[Path]:
    """The files of a directory that may hold weights, sorted; or the one file, if it may."""
    files = sorted(where.iterdir()) if where.is_dir() else [where]
    return [file for file in files if file.suffix in WEIGHT_SUFFIXES and file.is_file()]


def _cause(where: Path, error: BaseException) -> str:
    """The file that is damaged, if one shows it by itself; else what the error says."""
    for path in sorted(where.glob("*.json")) if where.is_dir() else ():
        try:
            read_json(path)
        except UserError as damage:
            return str(damage)
    for path in sorted(where.glob("*.safetensors")) if where.is_dir() else ():
        try:
            with safe_open(path, "np"):
                pass
        except (SafetensorError, OSError) as damage:
            return f"{path.name} is damaged or cut off: {damage}"
    reason = " ".join(str(error).split())[:SHOWN_REASON]
    return (
        "a value in its config or its other files is not one that such a model has "
        f"({type(error).__name__}{': ' * bool(reason)}{reason})"
    )


def rehearse(build: Callable[[], Any], where: Path, held: int | None = None) -> None:
    """Build a model on the meta device, where it takes no memory, to refuse one that is too large to be built for real.

    Args:
        build: Builds it.
        where: Origin of its config, for messages.
        held: Bytes of its weights; None: it gets random weights, for which the machine needs memory.

    Raises:
        UserError: It has more parameters than the weights, or the machine, can hold. Else what `build` raises.
    """
    import torch

    if torch.get_default_device().type == "meta":
        return  # it is not built for real
    with torch.device("meta"), _bounded_building(where, held, counts_meta=True):
        build()


@contextmanager
def _bounded_building(where: Path, held: int | None, counts_meta: bool) -> Iterator[None]:
    """Count the modules and parameters that this thread builds."""
    from torch.nn.modules import module as hooks

    thread = threading.get_ident()
    most_parts, most_parameters, limit = MAX_PARTS, _memory(), "the memory of this machine"
    if held is not None:
        most_parts = min(MAX_PARTS, SMALL_PARTS + held // BYTES_PER_PART)
        most_parameters = SMALL_MODEL + PARAMETERS_PER_BYTE * held
        limit = f"its weights, which have {held:,} bytes"
    parts = parameters = 0

    def count(amount: int) -> None:
        nonlocal parts, parameters
        if threading.get_ident() != thread:
            return
        parts += 1
        parameters += amount
        if parts > most_parts or parameters > most_parameters:
            found = f"{parts:,} modules and tensors" if parts > most_parts else f"{parameters:,} parameters"
            raise UserError(
                f"{where} is not opened: its config describes a model of at least {found}, too many for {limit}; the "
                "config or the weights are damaged or do not belong together, copy or download them again"
            )

    def count_module(module: Any, name: str, inner: Any) -> None:
        count(0)

    def count_parameter(module: Any, name: str, parameter: Any) -> None:
        if parameter is not None:
            count(parameter.numel() if counts_meta or not parameter.is_meta else 0)

    handles = [
        hooks.register_module_module_registration_hook(count_module),
        hooks.register_module_parameter_registration_hook(count_parameter),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
