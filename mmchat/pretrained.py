"""Model directories in Hugging Face layout: strict loading, verified saving. Imports no torch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from safetensors import SafetensorError

from mmchat.errors import UserError
from mmchat.files import read_json_object, staged_directory
from mmchat.hub import WEIGHTS, check_exists, resolve
from mmchat.opening import CONFIG, check_generation_config, check_tokenizer, opening, read_model_config, rehearse

if TYPE_CHECKING:
    from mmchat.model_kinds import ModelKind

Model = TypeVar("Model")
Shapes = Mapping[str, tuple[int, ...]]
"""Name of a tensor -> its shape."""
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model")
"""Patterns of the files of a tokenizer, of which there is at least one."""


@dataclass(frozen=True)
class ModelDirectory(Generic[Model]):
    """How models of one kind are read, written and verified.

    Attributes:
        kind: What identifies a directory.
        model_class: Its transformers class.
        tolerance: Largest absolute difference between the outputs of a model and of its reloaded copy (fp32).
    """

    kind: "ModelKind"
    model_class: type[Model]
    tolerance: float

    def load(self, source: str | Path, dtype: str = "auto", **options: Any) -> Model:
        """Load a model strictly.

        Args:
            source: The directory.
            dtype: Of the weights in memory, as torch names it; "auto" is the dtype on disk.
            **options: Of `load_strictly`.

        Returns:
            The model in evaluation mode.

        Raises:
            UserError: See `ModelKind.check`; or weights are damaged, missing, left over or of another shape.
        """
        return load_strictly(self.model_class, self.kind.check_complete(source), dtype, **options)

    def from_config(self, source: str | Path) -> Model:
        """Build the model that a directory describes without reading weights.

        Its weights are random. On the meta device or under fake tensors none are allocated. The directory needs no
        weights.

        Raises:
            UserError: See `ModelKind.check`; or the files are damaged.
        """
        directory = self.kind.check(source)
        with opening(directory):
            config = self.model_class.config_class.from_pretrained(directory)
            rehearse(lambda: self.model_class(config), directory)
            return self.model_class(config)

    def save(
        self, model: Model, others: Sequence[Any], directory: Path, outputs: Callable[[Model], Sequence[Any]]
    ) -> None:
        """Write a directory and verify it; see `save_verified`."""
        save_verified(model, others, directory, self.load, outputs, self.tolerance)


def refuse_quantized(config: dict[str, Any], where: str | Path) -> None:
    """Raise UserError if a `config.json` says that its weights are quantized, at the top or in the config of a part.

    Args:
        config: The values of `config.json`.
        where: Its directory or name, for the message.
    """
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    if found := [part["quantization_config"] for part in parts if part.get("quantization_config")]:
        method = found[0].get("quant_method") if isinstance(found[0], dict) else found[0]
        if method is None and any(key in found[0] for key in ("load_in_4bit", "load_in_8bit")):
            method = "bitsandbytes"  # as transformers wrote it before it named the method
        raise UserError(
            f"the weights in {where} are quantized (quantization_config in config.json: {method!r}), and mmchat "
            "reads fp32, bf16 and fp16; open the release that was quantized"
        )


def load_strictly(model_class: Any, directory: Path, dtype: str = "auto", **options: Any) -> Any:
    """`model_class.from_pretrained` that accepts neither missing nor unexpected weights.

    Args:
        model_class: A transformers model class.
        directory: Directory with a config and safetensors.
        dtype: Of the weights in memory, as torch names it; "auto" is the dtype on disk.
        **options: More options of `from_pretrained`: where weights are, and how they are quantized.

    Returns:
        The model in evaluation mode.

    Raises:
        UserError: There are no safetensors, they are damaged, or keys are missing, left over or of another shape.
    """
    if not any(directory.glob(WEIGHTS)):
        raise UserError(f"{directory} holds no {WEIGHTS}, so no weights that can be opened safely")
    for index in directory.glob(f"{WEIGHTS}.index.json"):
        files_in_index(index)  # transformers would open files outside the directory
    with opening(directory, weights=True):
        check_generation_config(directory)
        try:
            return _from_pretrained(model_class, directory, directory, use_safetensors=True, dtype=dtype, **options)
        except SafetensorError as error:
            raise UserError(f"the weights in {directory} are damaged or cut off: {error}") from None


def load_state_strictly(model_class: Any, config: Any, state: dict[str, Any], where: Path) -> Any:
    """A model with weights from memory, as strict as `load_strictly`.

    Args:
        model_class: A transformers model class.
        config: Its config.
        state: Key -> tensor.
        where: Origin of the weights, for messages.

    Returns:
        The model in evaluation mode.

    Raises:
        UserError: Keys are missing, left over or of another shape.
    """
    held = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    with opening(where, held=held):
        return _from_pretrained(model_class, None, where, config=config, state_dict=state, dtype="auto")


def _from_pretrained(model_class: Any, source: Path | None, where: Path, **options: Any) -> Any:
    # Ignored by transformers, so that other shapes are in its report and are refused below with the other problems.
    options["ignore_mismatched_sizes"] = True
    model, report = model_class.from_pretrained(source, output_loading_info=True, **options)
    refuse_misfit(where, report["missing_keys"], report["unexpected_keys"], map(str, report["mismatched_keys"]))
    return model


def files_in_index(index: Path) -> list[Path]:
    """The files that an index of shards names.

    Args:
        index: `model.safetensors.index.json` or a file like it.

    Raises:
        UserError: It names none, or one that is not in its directory.
    """
    here = {file.name: file for file in index.parent.iterdir()}
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{index} has no weight_map from names of tensors to names of files; copy it again")
    named = sorted(set(weight_map.values()))
    if missing := [name for name in named if name not in here]:
        raise UserError(f"{index} names files that are not beside it: {', '.join(missing)}; copy them there")
    return [here[name] for name in named]


def fill_module(module: Any, state: Mapping[str, Any], where: Path) -> None:
    """Replace a module's tensors by those of `state`, in their own dtype.

    Args:
        module: A torch module.
        state: Key -> tensor.
        where: Origin of the weights, for messages.

    Raises:
        UserError: Keys are missing, left over or of another shape.
    """
    expected, found = ({k: tuple(t.shape) for k, t in tensors.items()} for tensors in (module.state_dict(), state))
    shared = expected.keys() & found.keys()
    misshapen = [f"{key} {found[key]} for {expected[key]}" for key in shared if found[key] != expected[key]]
    refuse_misfit(where, expected.keys() - found.keys(), found.keys() - expected.keys(), misshapen)
    module.load_state_dict(state, assign=True)


def refuse_misfit(
    where: Path, missing: Iterable[str] = (), left_over: Iterable[str] = (), misshapen: Iterable[str] = ()
) -> None:
    """Raise UserError that lists all keys, unless there are none.

    Args:
        where: Origin of the weights.
        missing: Keys that the config requires and the weights lack.
        left_over: Keys that the weights hold and the config does not have.
        misshapen: Keys of another shape, with both shapes.
    """
    problems = {"missing": sorted(missing), "left over": sorted(left_over), "of another shape": sorted(misshapen)}
    if any(problems.values()):
        found = "; ".join(f"{problem}: {', '.join(keys)}" for problem, keys in problems.items() if keys)
        raise UserError(f"the weights in {where} do not fit its config: {found}")


def open_pretrained(auto_class: Any, source: str, what: str, weights: bool = False) -> Any:
    """`auto_class.from_pretrained(source)` with one-line errors. No code in the files is run.

    Args:
        auto_class: A transformers class.
        source: Directory or hub name (`resolve`).
        what: What messages call it.
        weights: Whether it has weights. They are loaded strictly.

    Raises:
        UserError: It cannot be opened, or keys of its weights are missing, left over or of another shape.
    """
    found = resolve(source, what, weights)
    check_exists(source, what)  # or transformers would take it for a hub name
    for index in found.glob("*.index.json") if weights else ():
        files_in_index(index)  # transformers would open files outside the directory
    is_tokenizer = auto_class.__name__ == "AutoTokenizer"
    names = TOKENIZER_FILES if is_tokenizer else (CONFIG,)
    if not any(file for name in names for file in found.glob(name)):
        raise UserError(
            f"{what} {source!r} is neither a directory with one nor a name that the hub gave: it holds no "
            f"{' or '.join(names)}"
        )
    if (found / CONFIG).exists():
        read_model_config(found)
    with opening(found, weights, what=f"{what} {source!r}"):
        if is_tokenizer:
            check_tokenizer(found)
        # Without the option, transformers asks on the terminal whether to run code that the files name.
        options = {"trust_remote_code": False}
        if weights:
            return _from_pretrained(auto_class, found, found, **options)
        opened = auto_class.from_pretrained(found, **options)
        if is_tokenizer and not opened.get_vocab().keys() - set(opened.all_special_tokens):
            raise UserError(f"{what} {source!r} has no tokens: tokenizer.json or another file of it is missing")
        return opened


def save_verified(
    model: Any,
    others: Sequence[Any],
    directory: Path,
    reload: Callable[[Path], Any],
    outputs: Callable[[Any], Sequence[Any]],
    tolerance: float,
) -> None:
    """Write a model aside, reload it strictly, compare outputs, rename into place.

    Args:
        model: A model with `save_pretrained`.
        others: What else belongs in the directory (processor, tokenizer); also with `save_pretrained`.
        directory: Destination; replaced if it exists.
        reload: Directory -> model.
        outputs: Model -> tensors computed without gradients from a fixed input.
        tolerance: Largest absolute difference between them.

    Raises:
        UserError: The model computes NaN or infinity.
        RuntimeError: The reloaded model computes something else. `directory` is then unchanged, in both cases.
    """
    with staged_directory(directory) as aside:
        # Under this version's module names, not those of older transformers: single towers are found by them.
        model.save_pretrained(aside, save_original_format=False)
        for part in others:
            part.save_pretrained(aside)
        copy = reload(aside).to(model.device)
        _match_attention(model, copy)
        was_training = model.training
        model.eval()
        pairs = list(zip(outputs(model), outputs(copy.eval()), strict=True))
        if any(not original.isfinite().all() for original, _ in pairs):
            raise UserError(
                f"the model for {directory} computes NaN or infinity, so it is not written; a value in the config or "
                "the weights that it is made of is damaged, copy or download them again"
            )
        differences = [(original - copied).abs().max().item() for original, copied in pairs]
        model.train(was_training)
        # Negated, so that NaN fails too.
        if failed := [difference for difference in differences if not difference <= tolerance]:
            raise RuntimeError(
                f"the model written to {aside} differs from the one in memory by {failed[0]:g} in its outputs"
            )


def _match_attention(model: Any, copy: Any) -> None:
    """Use the same attention kernels in both. Rounded weights show kernel differences, which are not compared here."""
    from transformers import PreTrainedModel

    originals = dict(model.named_modules())
    for name, part in copy.named_modules():
        # PEFT puts modules that were trained in full one level deeper in the copy; they stay as they are.
        if name in originals and name and isinstance(part, PreTrainedModel):
            part.set_attn_implementation(originals[name].config._attn_implementation)
