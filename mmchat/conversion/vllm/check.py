"""Compare an exported directory with the assistant that it was written from, by running vLLM on it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from mmchat.auto import MMChatConfig, MMChatProcessor
from mmchat.conversion.chat_requests import as_request
from mmchat.conversion.checks import (
    NEW_TOKENS,
    SAME_INPUTS,
    Inputs,
    Sample,
    answered_by,
    load_class,
    refuse_other_answer,
    refuse_other_inputs,
)
from mmchat.conversion.vllm.vllm_process import ask_vllm
from mmchat.vision import AnyRes, TowerConfig

TIE = 0.005
"""Margin between the best two logits, for the same pixels, below which vLLM may choose either."""

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
    transformers_class: str,
    foreign_inputs: Callable[[Sample], Inputs] = lambda sample: sample.inputs,
) -> list[str]:
    """Compare processor, prompts and greedy answers.

    Args:
        python: An interpreter with vLLM.
        directory: What was exported.
        samples: What mmchat computes.
        processor: The assistant's processor.
        transformers_class: The class of transformers that opens the directory.
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
    answered, notes = list(zip(samples, made, reply["answers"], strict=True)), []
    if reads_several_otherwise(processor):
        answered = [(sample, *rest) for sample, *rest in answered if len(sample.images) < 2]
        notes = ["answers to several images were NOT compared: vLLM gives each all its views, LLaVA-OneVision one"]

    def answer_for(sample: Sample, inputs: Mapping[str, torch.Tensor]) -> Sample:
        theirs = load_class(directory, transformers_class)
        return answered_by(theirs, sample, {name: inputs[name] for name in foreign_inputs(sample)})

    return [*lines, compare_answers(f"vLLM {reply['version']}", answered, answer_for), *notes]


def compare_answers(
    program: str,
    answered: Sequence[tuple[Sample, Mapping[str, torch.Tensor], Mapping[str, list[int]]]],
    answer_for: Callable[[Sample, Mapping[str, torch.Tensor]], Sample],
) -> str:
    """Compare what vLLM was asked and what it answered.

    Its processor resizes with torchvision, so a few pixels differ by rounding, and an answer may then differ too. Such
    an answer must be the one for its own pixels.

    Args:
        program: Its name and version.
        answered: What mmchat computes, the inputs of vLLM's processor, and `prompt` and `tokens` of vLLM's answer.
        answer_for: Gives a sample the answer for other inputs.

    Returns:
        One line about what was compared.

    Raises:
        RuntimeError: A prompt differs, or a token where the choice is clear (`TIE`).
    """
    same = rounded = 0
    for sample, inputs, answer in answered:
        expected = sample.inputs["input_ids"][0].tolist()
        if answer["prompt"] != expected:
            raise RuntimeError(f"{program}'s prompt for {sample.name} is {answer['prompt']}, expected {expected}")
        if answer["tokens"] != sample.answer:
            sample = answer_for(sample, inputs)
            rounded += 1
        refuse_other_answer(sample, answer["tokens"], program, TIE)
        same += answer["tokens"] == sample.answer
    line = f"{program} gives {same} of {len(answered)} answers of {NEW_TOKENS} greedy tokens"
    if rounded:
        line += f", {rounded} compared for the pixels of its own processor, which differ by rounding"
    left = "" if same == len(answered) else f"; the others leave where the best two logits are {TIE:g} apart at most"
    return line + left
