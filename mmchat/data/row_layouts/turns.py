"""One spelling for the turns of a conversation: LLaVA's from and value, or role and content.

    from + value                   LLaVA, ShareGPT; Qwen-VL with user and assistant as speakers
    role + content                 OpenAI, Hugging Face
    from + content, role + value   mixtures of the two, in any case ("Human", "GPT")

Where any turn says `from`, `<image>` in the text marks an image, as in LLaVA's files.
"""

from collections.abc import Mapping
from typing import Any

from mmchat.conversation.messages import Dialect
from mmchat.errors import UserError

SPEAKERS = {
    **dict.fromkeys(("human", "user", "prompter"), "human"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bard", "bing", "model", "bot", "function_call"), "gpt"),
    **dict.fromkeys(("tool", "observation", "function", "function_response"), "tool"),
    **dict.fromkeys(("system", "developer"), "system"),
}
"""Speakers in lower case -> LLaVA's names. developer is OpenAI's later name of system, prompter is OpenAssistant's."""
ROLES = {"human": "user", "gpt": "assistant"}
"""LLaVA's names -> roles, where they differ."""


def spelled_turns(turns: list[Any]) -> tuple[list[dict[str, Any]], Dialect]:
    """The turns, all in one dialect: {"from", "value"} or {"role", "content"}, with the speaker under its usual name.

    Raises:
        UserError: A turn without speaker or text, with two of either, or of an unknown speaker.
    """
    read = [_read(turn, number) for number, turn in enumerate(turns, 1)]
    chat = any(isinstance(text, list) for _, text, _ in read) or not any("from" in turn for turn in turns)
    if chat:
        return [{**rest, "role": ROLES.get(speaker, speaker), "content": text} for speaker, text, rest in read], "chat"
    return [{**rest, "from": speaker, "value": text} for speaker, text, rest in read], "data"


def _read(turn: Any, number: int) -> tuple[str, str | list[Any], dict[str, Any]]:
    """Speaker, text or parts, and the other keys of a turn."""
    named = isinstance(turn, Mapping) and turn.get("role") is not None and turn.get("from") is None
    expected = '{"role": ..., "content": text or parts}' if named else '{"from": ..., "value": text}'
    speakers = [turn[key] for key in ("from", "role") if turn.get(key) is not None] if isinstance(turn, Mapping) else []
    texts = [turn[key] for key in ("value", "content") if turn.get(key) is not None] if speakers else []
    if not texts or any(text != texts[0] for text in texts) or not isinstance(texts[0], str | list):
        raise UserError(f"turn {number} must be {expected}, found {turn!r:.80}")
    names = [SPEAKERS.get(speaker.lower()) if isinstance(speaker, str) else None for speaker in speakers]
    if names[0] is None or names[-1] != names[0]:
        verb = "has the role" if named else "is from"
        problem = f"turn {number} {verb} {speakers[0]!r:.80}; expected one of {', '.join(SPEAKERS)}"
        raise UserError(problem, kind="role_order")
    rest = {key: value for key, value in turn.items() if key not in ("from", "role", "value", "content")}
    return names[0], texts[0], rest
