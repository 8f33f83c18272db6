"""A copy of the tokenizer in which typed text cannot become a control token.

The copy is made from the tokenizer's fast backend. Every added token is respelled with a random secret. Control tokens
are written in that spelling and text is written unchanged, so one call to `encode` keeps the tokenizer's own behaviour
around control tokens (lstrip, rstrip, prefix spaces) and gives exact offsets, while typed text never matches.
"""

import json
import re
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from tokenizers import Encoding, Tokenizer

from mmchat.conversation.segments import Segment
from mmchat.errors import UserError


class AddedToken(NamedTuple):
    id: int
    lstrip: bool
    rstrip: bool
    spelling: str
    """Its spelling in the private copy."""
    typable: bool
    """Ordinary text gives this id even in the private copy, so the token cannot be reserved."""


class SafeTokenizer:
    """Encodes text and control tokens of one tokenizer. Holds no reference to the tokenizer."""

    def __init__(self, tokenizer):
        backend = tokenizer.backend_tokenizer
        state = json.loads(backend.to_str())
        secret = secrets.token_hex(8)
        # Lower-case ASCII, which no normalizer changes. No spelling is a prefix of another.
        spellings = {
            added["content"]: f"q{secret}n{number}z"
            for number, added in enumerate(state["added_tokens"])
            if not added["content"].isspace()  # runs of spaces (GPT-NeoX, Gemma) are always text
        }
        self._backend = _private_copy(state, spellings)
        self.added = {
            added["content"]: AddedToken(
                id=added["id"],
                lstrip=added["lstrip"],
                rstrip=added["rstrip"],
                spelling=spellings[added["content"]],
                typable=added["id"] in self.encode(added["content"]).ids,
            )
            for added in state["added_tokens"]
            if added["content"] in spellings
        }
        # Longest first, as the tokenizers library matches them.
        longest_first = sorted(self.added, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        """Matches every added token."""
        self.prefix = _prefix_ids(backend, self.encode("a"))
        content_of = {added.id: content for content, added in self.added.items()}
        self.prefix_tokens = [content_of[id_] for id_ in self.prefix]
        self.bos, self.eos = tokenizer.bos_token, tokenizer.eos_token
        self.read_literals: dict[tuple, list[Segment]] = {}
        """Cache of `apply_template`: the segments of what templates write."""
        for content, added in self.added.items():
            if self._backend.token_to_id(added.spelling) != added.id:
                raise UserError(
                    f"the tokenizer gives {content!r} the id {added.id}, but tokenizer.json gives another: "
                    "save the tokenizer with save_pretrained and load it again"
                )

    def encode(self, text: str) -> Encoding:
        """Encode text in the private spelling, without BOS and EOS."""
        return self._backend.encode(text, add_special_tokens=False)

    def fill(self, literal: str) -> str:
        """Replace `{bos}` and `{eos}` in a template's literal by the tokenizer's own.

        Raises:
            UserError: The tokenizer has no such token, or typed text gives the same id.
        """
        for name, content in (("bos", self.bos), ("eos", self.eos)):
            placeholder = f"{{{name}}}"
            if placeholder not in literal:
                continue
            if content is None:
                raise UserError(f"the template writes {name}, but tokenizer.{name}_token is not set: set it")
            self.require(content)
            literal = literal.replace(placeholder, content)
        return literal

    def encode_literal(self, literal: str) -> list[int]:
        """Token ids of a template's literal. Added tokens in it are control tokens."""
        text = self.pattern.sub(lambda match: self.added[match[0]].spelling, self.fill(literal))
        return self.encode(text).ids

    def require(self, content: str) -> AddedToken:
        """Look up an added token that the template or the image slots need.

        Raises:
            UserError: The tokenizer has no such token, or typed text gives the same id.
        """
        if content not in self.added:
            raise UserError(
                f"the tokenizer has no token {content!r}, which the template or the image slots need; add it "
                f"with tokenizer.add_tokens([{content!r}], special_tokens=True) and resize the model's "
                "embeddings, or choose a template that fits this tokenizer"
            )
        if self.added[content].typable:
            raise UserError(
                f"the tokenizer makes the token {content!r} from ordinary text, so it cannot be distinguished from "
                "typed text; choose another token"
            )
        return self.added[content]


_safe_tokenizers: "WeakKeyDictionary[Any, tuple[tuple, SafeTokenizer]]" = WeakKeyDictionary()


def safe_tokenizer_for(tokenizer) -> SafeTokenizer:
    """The safe copy of a tokenizer. Built on first use in a process, and rebuilt after tokens were added.

    Raises:
        UserError: The tokenizer is not a fast one.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} is a slow tokenizer: it gives no character offsets, which labels "
            "are computed from. Load the fast one (AutoTokenizer does), or convert it to tokenizer.json"
        )
    backend = tokenizer.backend_tokenizer
    specials = backend.num_special_tokens_to_add(False), tokenizer.bos_token, tokenizer.eos_token
    state = (len(tokenizer), *specials)
    cached = _safe_tokenizers.get(tokenizer)
    if cached is None or cached[0] != state:
        cached = _safe_tokenizers[tokenizer] = (state, SafeTokenizer(tokenizer))
    return cached[1]


def control_tokens(tokenizer) -> list[str]:
    """Every added token of a tokenizer: the value for `tokenizer.chat_control_tokens`.

    If this is not set, transformers marks only special tokens and those that a template names, so a typed non-special
    added token would pass `sanitize_control_tokens=True`.
    """
    return list(safe_tokenizer_for(tokenizer).added)


def _private_copy(state: dict[str, Any], spellings: dict[str, str]) -> Tokenizer:
    """The backend with every added token respelled and its id kept.

    Post-processing is left out: it only adds tokens and trims offsets.
    """
    state = {**state, "truncation": None, "padding": None, "post_processor": None}
    state["added_tokens"] = [
        {**added, "content": spellings.get(added["content"], added["content"]), "single_word": False}
        for added in state["added_tokens"]
    ]
    model = state["model"] = dict(state["model"])
    ids = {added["content"]: added["id"] for added in state["added_tokens"]}
    if isinstance(model["vocab"], list):  # Unigram: the id is the index
        model["vocab"] = [[spellings.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        vocab = model["vocab"] = dict(model["vocab"])
        merge_pieces = _names_in_merges(model.get("merges", ()), spellings.keys() & vocab.keys())
        for content, spelling in spellings.items():
            if content not in merge_pieces:  # if it is an ordinary piece too, the merges need its name
                vocab.pop(content, None)
            vocab[spelling] = ids[spelling]
        unknown = model.get("unk_token")
        if unknown in spellings and unknown not in vocab:
            model["unk_token"] = spellings[unknown]
    return Tokenizer.from_str(json.dumps(state))


def _names_in_merges(merges: Sequence[Any], names: set[str]) -> set[str]:
    found: set[str] = set()
    if names:
        for merge in merges:
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            found |= names.intersection((left, right, left + right))
    return found


def _prefix_ids(backend: Tokenizer, body: Encoding) -> list[int]:
    """What the tokenizer puts before a text: BOS or nothing.

    What it would append is left out, because the template decides how a conversation ends.
    """
    if backend.post_processor is None:
        return []
    ids = backend.post_processor.process(body).ids
    return ids[: next(i for i in range(len(ids)) if ids[i : i + len(body.ids)] == body.ids)]
