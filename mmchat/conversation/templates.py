"""The conversation templates, as data.

template.py documents the fields; docs/guides/templates.md says which models each template fits. User text is
written unchanged, although some published Jinja templates (Llama 3, Gemma) trim it.
"""

from dataclasses import replace

from mmchat.conversation.template import Template
from mmchat.errors import UserError, nearest

_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_VICUNA_V0_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_LLAVA_LLAMA_2_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language."
)
_MPT_SYSTEM = (
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."
)
_VARY_QWEN_SYSTEM = "You should follow the instructions carefully and explain your answers in detail."

# ChatML as in MPT and Vary: no line break after the end of a turn.
_TIGHT_CHATML = Template(
    "",
    system=("<|im_start|>system\n", "<|im_end|>"),
    user=("<|im_start|>user\n", "<|im_end|>"),
    header="<|im_start|>assistant\n",
    answer=("", "<|im_end|>"),
    control=("<|im_start|>", "<|im_end|>"),
)

# ChatML as in Qwen2 and most other models: every role in its own block.
_CHATML = Template(
    "chatml",
    system=("<|im_start|>system\n", "<|im_end|>\n"),
    default_system="You are a helpful assistant.",
    user=("<|im_start|>user\n", "<|im_end|>\n"),
    header="<|im_start|>assistant\n",
    answer=("", "<|im_end|>"),
    after_answer="\n",
    tool=("<|im_start|>tool\n", "<|im_end|>\n"),
    control=("<|im_start|>", "<|im_end|>"),
)

# Qwen/Qwen2.5-7B-Instruct tokenizer_config.json: tool results are in one block of the user.
_QWEN_2_5 = replace(
    _CHATML,
    name="qwen_2_5",
    default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    tools=("<|im_start|>user", "<|im_end|>\n"),
    tool=("\n<tool_response>\n", "\n</tool_response>"),
)

# HuggingFaceM4/Idefics3-8B-Llama3. Its Jinja writes a space after "User:" unless an image comes first.
_IDEFICS3 = Template(
    "idefics3",
    system=("System: ", "<end_of_utterance>\n"),
    user=("User: ", "<end_of_utterance>\n"),
    header="Assistant:",
    answer=(" ", "<end_of_utterance>"),
    after_answer="\n",
    control=("<end_of_utterance>",),
    strip_around_images=True,
)

_ALL = (
    # LLaVA conversation.py conv_llava_plain and train.py preprocess_plain: image, caption, line break.
    Template("plain", answer=("", "\n"), user_text="drop", one_exchange=True),
    # LLaVA conv_vicuna_v1. The space after "ASSISTANT:" belongs to the answer: the model generates it.
    Template(
        "vicuna_v1",
        system=("", " "),
        default_system=_VICUNA_SYSTEM,
        user=("USER: ", " "),
        header="ASSISTANT:",
        answer=(" ", "{eos}"),
    ),
    # LLaVA conv_llava_llama_2.
    Template(
        "llama_2",
        system=("<<SYS>>\n", "\n<</SYS>>\n\n"),
        default_system=_LLAVA_LLAMA_2_SYSTEM,
        system_in_user=True,
        user=("[INST] ", " [/INST]"),
        answer=(" ", " {eos}"),
        next_user="{bos}",
    ),
    # LLaVA conv_mpt.
    replace(_TIGHT_CHATML, name="mpt", default_system=_MPT_SYSTEM),
    _CHATML,
    # Vary caption_opt.py CaptionDataset: one line per value, one end token for the conversation. A turn with an
    # image is only the image. Vary's slow tokenizer strips white space around the slots. In a truncated sample the
    # last token is overwritten by </s>, which is supervised.
    Template(
        "vary_opt",
        user=("", "\n"),
        answer=("", "\n"),
        end="{eos}",
        user_text="drop_beside_images",
        alternating=False,
        strip_around_images=True,
        end_when_cut=True,
    ),
    # Vary conversation_dataset_qwen.py ConversationDataset, conversation.py conv_mpt.
    replace(_TIGHT_CHATML, name="vary_qwen", default_system=_VARY_QWEN_SYSTEM),
    # meta-llama/Meta-Llama-3-8B-Instruct; the tool role is that of Llama-3.1-8B-Instruct, whose Jinja
    # writes it as JSON. The date that 3.1's Jinja adds to the system message is left out.
    Template(
        "llama_3",
        system=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
        user=("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
        header="<|start_header_id|>assistant<|end_header_id|>\n\n",
        answer=("", "<|eot_id|>"),
        tool=("<|start_header_id|>ipython<|end_header_id|>\n\n", "<|eot_id|>"),
        control=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    # mistralai/Mistral-7B-Instruct-v0.2. Newer versions of its Jinja, with system messages, write one more space
    # before "[INST]".
    Template(
        "mistral",
        system=("", "\n\n"),
        system_in_user=True,
        user=("[INST] ", " [/INST]"),
        answer=(" ", "{eos}"),
    ),
    # Qwen/Qwen2-7B-Instruct: tools have their own role.
    replace(_CHATML, name="qwen_2"),
    _QWEN_2_5,
    # Qwen/Qwen3-4B-Instruct-2507 and Qwen3-VL-Instruct: no default system message, no thinking.
    replace(_QWEN_2_5, name="qwen_3", default_system=""),
    # google/gemma-3-4b-it, and Gemma 1 and 2 without a system message.
    Template(
        "gemma",
        system=("", "\n\n"),
        system_in_user=True,
        user=("<start_of_turn>user\n", "<end_of_turn>\n"),
        header="<start_of_turn>model\n",
        answer=("", "<end_of_turn>"),
        after_answer="\n",
        control=("<start_of_turn>", "<end_of_turn>"),
    ),
    # microsoft/Phi-3.5-mini-instruct, which ends the conversation with EOS.
    Template(
        "phi",
        system=("<|system|>\n", "<|end|>\n"),
        user=("<|user|>\n", "<|end|>\n"),
        header="<|assistant|>\n",
        answer=("", "<|end|>"),
        after_answer="\n",
        end="{eos}",
        control=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
    # LLaVA train.py _add_speaker_and_signal with conv_vicuna_v0's system message. In LLaVA an answer ends with a line
    # break. Here a supervised EOS precedes it, because generation stops at EOS.
    Template(
        "human_assistant",
        system=("", "\n\n"),
        default_system=_VICUNA_V0_SYSTEM,
        user=("### Human: ", "\n"),
        header="### Assistant:",
        answer=(" ", "{eos}"),
        after_answer="\n",
    ),
    _IDEFICS3,
    # HuggingFaceTB/SmolVLM-Instruct and SmolVLM2, whose tokenizer adds no BOS; the Jinja writes it.
    replace(_IDEFICS3, name="smolvlm", start="<|im_start|>", control=("<|im_start|>", "<end_of_utterance>")),
    # huggingface/nanoVLM models/config.py lm_chat_template; data/datasets.py puts images directly before the text. It
    # learns the line break after an answer too, where generation has stopped.
    replace(_CHATML, name="nanovlm", default_system="", strip_after_images=True),
    # The tokenizer's own Jinja: tokenizer_template.py.
    Template("auto", from_tokenizer=True),
)

TEMPLATES: dict[str, Template] = {template.name: template for template in _ALL}


def get_template(name: str) -> Template:
    """Look up a template by its exact name.

    Raises:
        UserError: There is no such template; the message names the nearest one, if one is near, and all.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    near = nearest(str(name), TEMPLATES)
    hint = f"did you mean {near!r}? " if near else ""
    raise UserError(f"unknown conversation template {name!r}; {hint}Known: {', '.join(sorted(TEMPLATES))}")
