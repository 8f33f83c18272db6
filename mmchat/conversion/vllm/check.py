"""Compare an exported directory with the assistant that it was written from, by running vLLM on it."""

from collections.abc import Callable, Sequence
from pathlib import Path

from mmchat.auto import MMChatConfig, MMChatProcessor
from mmchat.conversion.chat_requests import as_request
from mmchat.conversion.checks import NEW_TOKENS, SAME_INPUTS, Inputs, Sample, refuse_other_answer, refuse_other_inputs
from mmchat.conversion.vllm.vllm_process import ask_vllm
from mmchat.vision import AnyRes, TowerConfig

TIE = 0.02
"""Margin between the best two logits below which vLLM may choose either: its processor resizes with torchvision, so
pixels differ by rounding."""

LLAMA_ALONE = ("Idefics3ForConditionalGeneration",)
"""Classes whose language model is a Llama in vLLM (vllm/model_executor/models/idefics3.py). Others load without an
error and answer otherwise."""


def vllm_refusals(config: MMChatConfig, transformers_class: str | None) -> list[str]:
    """Why vLLM (0.32) does not compute what a class of transformers does for an assistant.

    Args:
        config: The assistant's config.
        transformers_class: The class.
    """
    # Its projector has the width of one layer: an AssertionError when the weights are loaded.
    layers = [TowerConfig.from_dict(values).layer for values in config.towers]
    reasons = [f"its features are those of several layers, {layer}" for layer in layers if not isinstance(layer, int)]
    language = config.text_config.model_type
    if transformers_class in LLAMA_ALONE and language != "llama":
        reasons.append(f"vLLM's {transformers_class} runs every language model as a Llama, and this one is {language}")
    return reasons


def reads_several_otherwise(processor: MMChatProcessor) -> bool:
    """Whether vLLM (0.32) gives each of several images all its views, where LLaVA-OneVision gives it one."""
    tilings = [spec.preprocessing.tiling for spec in processor.image_processor.specs]
    return any(isinstance(tiling, AnyRes) and tiling.one_view_if_several for tiling in tilings)


def compare_with_vllm(
    python: str,
    directory: Path,
    samples: Sequence[Sample],
    processor: MMChatProcessor,
    foreign_inputs: Callable[[Sample], Inputs] = lambda sample: sample.inputs,
) -> list[str]:
    """Compare processor, prompts and greedy answers.

    Args:
        python: An interpreter with vLLM.
        directory: What was exported.
        samples: What mmchat computes.
        processor: The assistant's processor.
        foreign_inputs: Inputs of the class of transformers for a sample, where they differ from mmchat's.

    Returns:
        What was compared, one line each.

    Raises:
        RuntimeError: The processor makes other inputs, or vLLM has another prompt or chooses another token.
        UserError: vLLM does not open the directory.
    """
    reply, made = ask_vllm(
        python,
        directory,
        [as_request(sample.messages, sample.images)["messages"] for sample in samples],
        NEW_TOKENS,
        context=max(sample.inputs["input_ids"].shape[1] for sample in samples) + NEW_TOKENS,
        images=max(len(sample.images) for sample in samples),
    )
    for sample, inputs in zip(samples, made, strict=True):
        refuse_other_inputs(sample, inputs, foreign_inputs(sample), directory)
    lines = [f"{reply['processor']}, in vLLM's environment: {SAME_INPUTS}"]
    answered, notes = list(zip(samples, reply["answers"], strict=True)), []
    if reads_several_otherwise(processor):
        answered = [(sample, answer) for sample, answer in answered if len(sample.images) < 2]
        notes = ["answers to several images were NOT compared: vLLM gives each all its views, LLaVA-OneVision one"]
    return [*lines, compare_answers(f"vLLM {reply['version']}", answered), *notes]


def compare_answers(program: str, answered: Sequence[tuple[Sample, dict[str, list[int]]]]) -> str:
    """Compare what vLLM was asked and what it answered.

    Args:
        program: Its name and version.
        answered: What mmchat computes, and `prompt` and `tokens` of vLLM's answer.

    Returns:
        One line about what was compared.

    Raises:
        RuntimeError: A prompt differs, or a token where mmchat's choice is clear (`TIE`).
    """
    same = 0
    for sample, answer in answered:
        expected = sample.inputs["input_ids"][0].tolist()
        if answer["prompt"] != expected:
            raise RuntimeError(f"{program}'s prompt for {sample.name} is {answer['prompt']}, expected {expected}")
        refuse_other_answer(sample, answer["tokens"], program, TIE)
        same += answer["tokens"] == sample.answer
    left = "" if same == len(answered) else f"; the others leave where the best two logits are {TIE:g} apart at most"
    return f"{program} gives {same} of {len(answered)} answers of {NEW_TOKENS} greedy tokens{left}"
