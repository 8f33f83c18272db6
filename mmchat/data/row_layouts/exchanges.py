"""Rows whose columns are a question and its answer: they become LLaVA's turns.

Images go before the first question unless the text says where (`<image>`). LLaMA-Factory asks for the mark, ms-swift,
TRL and VLMEvalKit put images there; with one question there is no other place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmchat.constants import IMAGE_PLACEHOLDER
from mmchat.data.row_layouts.image_column import IMAGES
from mmchat.errors import UserError


@dataclass(frozen=True)
class ExchangeRule:
    """The columns of one layout.

    Attributes:
        project: Whose layout it is.
        question: Columns of the question, joined by line breaks; the first must be there.
        answer: The column of the answer.
        before: A column that goes before the question.
        options: Whether columns A, B, C ... are the options of the question.
    """

    project: str
    question: tuple[str, ...]
    answer: str
    before: str = ""
    options: bool = False


RULES = (
    # data/README.md of LLaMA-Factory: "the instruction column will be concatenated with the input column"
    ExchangeRule("alpaca (Stanford Alpaca, LLaMA-Factory)", ("instruction", "input"), "output"),
    # Databricks' dolly-15k; LLaMA-Factory's data/dataset_info.json reads context as alpaca's input
    ExchangeRule("Dolly", ("instruction", "context"), "response"),
    # MMInstruction/M3IT on Hugging Face
    ExchangeRule("M3IT", ("instruction", "inputs"), "outputs"),
    # docs/source_en/Customization/Custom-dataset.md of ms-swift
    ExchangeRule("ms-swift", ("query",), "response"),
    # HuggingFaceM4/ChartQA on Hugging Face; its label is a list of one text
    ExchangeRule("ChartQA", ("query",), "label"),
    # docs/source/dataset_formats.md of TRL, "Prompt-completion"
    ExchangeRule("TRL", ("prompt",), "completion"),
    # vlmeval/dataset/image_mcq.py and image_vqa.py of VLMEvalKit; the options are written as in LLaVA's
    # llava/eval/model_vqa_mmbench.py
    ExchangeRule("VLMEvalKit, and questions with one answer", ("question",), "answer", before="hint", options=True),
)
UNREAD_OPTIONS = ("choices", "options", "multiple_choices")
OPTION_NAMES = "ABCDEFGHIJ"


def read_exchange(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with `conversations` or `messages` in place of its question and answer; other rows as they are.

    Raises:
        UserError: It fits two layouts, or a column of the layout has another type.
    """
    fitting = [rule for rule in RULES if _is_filled(row, rule.question[0]) and _is_filled(row, rule.answer)]
    if not fitting:
        return dict(row)
    if len(fitting) > 1:
        raise UserError(f"fits two layouts: {' and '.join(rule.project for rule in fitting)}; keep the columns of one")
    (rule,) = fitting
    if row.get("caption"):
        raise UserError(f'has both "caption" and "{rule.question[0]}"; expected one of them')
    if unread := [key for key in UNREAD_OPTIONS if row.get(key)]:
        raise UserError(f'"{unread[0]}" beside a question is not read; write the options into "{rule.question[0]}"')
    read = _columns(rule, row)
    rest = {key: value for key, value in row.items() if key not in (*read, "history")}
    if rule.project == "TRL" and isinstance(row[rule.question[0]], list):
        return {**rest, "messages": _messages(rule, row)}
    turns = [*_history(row), (_question(rule, row), _text(row, rule.answer))]
    return {**rest, "conversations": _turns(turns, row)}


def is_conversation(row: Mapping[str, Any]) -> bool:
    """Whether the row is a question with its answer, apart from a label: of ms-swift's preference data, say."""
    return any(_is_filled(row, r.question[0]) and _is_filled(row, r.answer) for r in RULES if r.answer != "label")


def _columns(rule: ExchangeRule, row: Mapping[str, Any]) -> list[str]:
    options = list(_options(row)) if rule.options else []
    return [key for key in (*rule.question, rule.answer, rule.before, *options) if row.get(key) is not None]


def _is_filled(row: Mapping[str, Any], key: str) -> bool:
    return row.get(key) not in (None, "", [])


def _text(row: Mapping[str, Any], key: str) -> str:
    """A text, alone or in a list of one, or a number as a table stores it."""
    value = row[key][0] if isinstance(row[key], list) and len(row[key]) == 1 else row[key]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f'"{key}" must be a text, found {value!r:.80}')
    return str(value)


def _question(rule: ExchangeRule, row: Mapping[str, Any]) -> str:
    keys = [key for key in (rule.before, *rule.question) if key and _is_filled(row, key)]
    options = [f"{name}. {_text(row, name)}" for name in _options(row)] if rule.options else []
    return "\n".join([*(_text(row, key) for key in keys), *options])


def _options(row: Mapping[str, Any]) -> list[str]:
    """The option columns, from A up to the first that is empty."""
    names = [name for name in OPTION_NAMES if _is_filled(row, name)]
    if len(names) > 1 and names != list(OPTION_NAMES[: len(names)]):
        raise UserError(f"has the options {', '.join(names)}; expected them from A without a gap")
    return names if len(names) > 1 else []


def _history(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Earlier exchanges: pairs of question and answer, as LLaMA-Factory and ms-swift store them."""
    history = row.get("history") or []
    pairs = history if isinstance(history, list) else [history]
    if not all(isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair) for pair in pairs):
        raise UserError(f'"history" must be a list of [question, answer], found {history!r:.80}')
    return [(question, answer) for question, answer in pairs]


def _turns(exchanges: list[tuple[str, str]], row: Mapping[str, Any]) -> list[dict[str, str]]:
    if not any(IMAGE_PLACEHOLDER in question for question, _ in exchanges):
        question, answer = exchanges[0]
        exchanges[0] = (f"{IMAGE_PLACEHOLDER}\n" * len(row[IMAGES]) + question, answer)
    turns = []
    for question, answer in exchanges:
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return turns


def _messages(rule: ExchangeRule, row: Mapping[str, Any]) -> list[Any]:
    """TRL's conversational form: the prompt's own answers are not trained on (SFTConfig.completion_only_loss)."""
    prompt, completion = row[rule.question[0]], row[rule.answer]
    if not isinstance(completion, list):
        raise UserError(f'"prompt" is a list of messages and "completion" is not, found {completion!r:.80}')
    earlier = [
        {**turn, "train": False} if isinstance(turn, Mapping) and turn.get("role") == "assistant" else turn
        for turn in prompt
    ]
    return [*_with_images_in_front(earlier, len(row[IMAGES])), *completion]


def _with_images_in_front(messages: list[Any], images: int) -> list[Any]:
    """Images before the text of the first user turn, unless the messages have places for them."""
    users = [n for n, turn in enumerate(messages) if isinstance(turn, Mapping) and turn.get("role") == "user"]
    text = messages[users[0]].get("content") if users else None
    if not images or not isinstance(text, str) or IMAGE_PLACEHOLDER in str(messages):
        return messages
    if any(isinstance(messages[n].get("content"), list) for n in users):
        return messages
    content = [*([{"type": "image"}] * images), {"type": "text", "text": text}]
    return [*messages[: users[0]], {**messages[users[0]], "content": content}, *messages[users[0] + 1 :]]
