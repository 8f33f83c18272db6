"""Segments become ids and labels, with one encoding of everything between two images.

The trick is a private copy of the tokenizer's fast backend in which every added token is spelled by a secret.
Control segments are written in that spelling and text as it is, so one call gives the tokenizer's own
behaviour around control tokens (lstrip, rstrip, prefix spaces), exact offsets, and no typed text can match.
"""

import json
import re
import secrets
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from tokenizers import Encoding, Tokenizer

from mmchat.constants import IGNORE_INDEX
from mmchat.conversation.segments import Image, Segment, SlotTokens, Text, strip_around_images
from mmchat.errors import UserError


class AddedToken(NamedTuple):
    id: int
    lstrip: bool
    rstrip: bool
    spelling: str
    """How the private copy of the backend spells it."""
    typable: bool
    """The model itself makes this id from ordinary text, so it cannot be reserved."""


class Codec:
    """What encoding needs of one tokenizer; holds no reference to it."""

    def __init__(self, tokenizer):
        backend = tokenizer.backend_tokenizer
        state = json.loads(backend.to_str())
        secret = secrets.token_hex(8)
        # Lower-case ASCII, which no normalizer changes; none of these is the beginning of another.
        spellings = {
            added["content"]: f"q{secret}n{number}z"
            for number, added in enumerate(state["added_tokens"])
            if not added["content"].isspace()  # runs of spaces (GPT-NeoX, Gemma) are text for everyone
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
        # The longest first, as the tokenizers library matches them.
        longest_first = sorted(self.added, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        """Finds every added token in a text."""
        self.prefix = _prefix_ids(backend, self.encode("a"))
        content_of = {added.id: content for content, added in self.added.items()}
        self.prefix_tokens = [content_of[id_] for id_ in self.prefix]
        self.bos, self.eos = tokenizer.bos_token, tokenizer.eos_token
        self.read_literals: dict[tuple, list[Segment]] = {}
        """What templates write, once read: kept by writing.py."""
        for content, added in self.added.items():
            if self._backend.token_to_id(added.spelling) != added.id:
                raise UserError(
                    f"the tokenizer gives {content!r} the id {added.id}, but its file gives another: "
                    "save it with save_pretrained and load it again"
                )

    def encode(self, text: str) -> Encoding:
        return self._backend.encode(text, add_special_tokens=False)

    def fill(self, literal: str) -> str:
        """What a template writes, with the tokenizer's own BOS and EOS.

        Raises:
            UserError: it has none, or typed text could not be told from it.
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
        """The ids of what a template writes by itself."""
        text = self.pattern.sub(lambda match: self.added[match[0]].spelling, self.fill(literal))
        return self.encode(text).ids

    def require(self, content: str) -> AddedToken:
        """A token that the template or the slots cannot do without.

        Raises:
            UserError: the tokenizer has no such token, or typed text could not be told from it.
        """
        if content not in self.added:
            raise UserError(
                f"the tokenizer has no token {content!r}, which the template or the image slots need; add it "
                f"with tokenizer.add_tokens([{content!r}], special_tokens=True) and resize the model's "
                "embeddings (`mmchat init` does both), or choose a template that fits this tokenizer"
            )
        if self.added[content].typable:
            raise UserError(
                f"the tokenizer makes the token {content!r} from ordinary text, so typed text could not be "
                "told from it; choose another token for this purpose"
            )
        return self.added[content]


_codecs: "WeakKeyDictionary[Any, tuple[tuple, Codec]]" = WeakKeyDictionary()


def codec_for(tokenizer) -> Codec:
    """The codec of a tokenizer, built on first use in a process and again when tokens were added since.

    Raises:
        UserError: the tokenizer is not a fast one.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} is a slow tokenizer: it gives no character offsets, where labels "
            "come from. Load the fast one (AutoTokenizer does), or convert it to tokenizer.json"
        )
    backend = tokenizer.backend_tokenizer
    specials = backend.num_special_tokens_to_add(False), tokenizer.bos_token, tokenizer.eos_token
    state = (len(tokenizer), *specials)
    known = _codecs.get(tokenizer)
    if known is None or known[0] != state:
        known = _codecs[tokenizer] = (state, Codec(tokenizer))
    return known[1]


def control_tokens(tokenizer) -> list[str]:
    """Every added token that typed text must not become: the value for `tokenizer.chat_control_tokens`.

    transformers marks only special tokens and those that a template names unless this is set, so without it a
    typed non-special added token would pass `sanitize_control_tokens=True`.
    """
    return list(codec_for(tokenizer).added)


class EncodedConversation(NamedTuple):
    ids: list[int]
    labels: list[int]
    image_spans: list[tuple[int, int]]
    """Where each image's pads stand, [start, stop)."""


def encode_segments(
    segments: list[Segment], codec: Codec, slots: SlotTokens, image_tokens: int | Sequence[int]
) -> EncodedConversation:
    """Encode segments, each image as its slots; the tokenizer's own BOS once, in front.

    The text between two images is one string of its own, as in LLaVA's tokenizer_image_token: with a
    Llama tokenizer the piece after an image starts with its own "▁".
    """
    counts = _image_counts(image_tokens, sum(isinstance(segment, Image) for segment in segments))
    ids, spans = list(codec.prefix), []
    labels = [IGNORE_INDEX] * len(ids)
    if not counts:
        _encode_piece(segments, codec, ids, labels)
        return EncodedConversation(ids, labels, spans)

    pad = codec.require(slots.pad)
    start = codec.require(slots.start) if slots.start is not None else None
    end = codec.require(slots.end) if slots.end is not None else None
    before, after = (start or pad).lstrip, (end or pad).rstrip
    if before or after:
        segments = strip_around_images(segments, before, after)

    piece: list[Segment] = []
    remaining = iter(counts)
    for segment in segments:
        if not isinstance(segment, Image):
            piece.append(segment)
            continue
        _encode_piece(piece, codec, ids, labels)
        piece = []
        count = next(remaining)
        if start:
            ids.append(start.id)
        spans.append((len(ids), len(ids) + count))
        ids += [pad.id] * count
        if end:
            ids.append(end.id)
        labels += [IGNORE_INDEX] * (len(ids) - len(labels))
    _encode_piece(piece, codec, ids, labels)
    return EncodedConversation(ids, labels, spans)


def _encode_piece(segments: list[Segment], codec: Codec, ids: list[int], labels: list[int]) -> None:
    strings: list[str] = []
    answers: list[list[int]] = []  # character spans of supervised text
    ends: list[int] = []  # where supervised control tokens are written
    position = 0
    for segment in segments:
        if isinstance(segment, Text):
            string = segment.text
            if segment.supervised:
                if answers and answers[-1][1] == position:
                    answers[-1][1] += len(string)
                else:
                    answers.append([position, position + len(string)])
        else:
            string = codec.added[segment.token].spelling
            if segment.supervised:
                ends.append(position)
        strings.append(string)
        position += len(string)
    if not position:
        return

    encoding = codec.encode("".join(strings))
    piece_ids = encoding.ids
    piece_labels = [IGNORE_INDEX] * len(piece_ids)
    if answers or ends:
        offsets = encoding.offsets
        for start, stop in answers:
            # Only tokens wholly inside: one that also holds a character of the prompt is not supervised, as
            # in the originals. The bytes of one character share its offsets: they are in or out together.
            first, last = bisect_left(offsets, (start,)), bisect_left(offsets, (stop,))
            while last > first and offsets[last - 1][1] > stop:
                last -= 1
            piece_labels[first:last] = piece_ids[first:last]
        for start in ends:
            # By where it is written: with lstrip or rstrip its offsets hold its neighbours' white space too.
            index = bisect_right(offsets, (start, position)) - 1
            piece_labels[index] = piece_ids[index]
    ids += piece_ids
    labels += piece_labels


def _image_counts(image_tokens: int | Sequence[int], images: int) -> list[int]:
    counts = [image_tokens] * images if isinstance(image_tokens, int) else list(image_tokens)
    if len(counts) != images:
        raise UserError(
            f"the messages hold {images} image(s), image_tokens is given for {len(counts)}: give one number per image"
        )
    if any(count < 1 for count in counts):
        raise UserError(f"image_tokens must be at least 1 for every image, found {counts}")
    return counts


def _private_copy(state: dict[str, Any], spellings: dict[str, str]) -> Tokenizer:
    """The backend with every added token renamed, its id kept; without post-processing, which only adds
    tokens and trims offsets."""
    state = {**state, "truncation": None, "padding": None, "post_processor": None}
    state["added_tokens"] = [
        {**added, "content": spellings.get(added["content"], added["content"]), "single_word": False}
        for added in state["added_tokens"]
    ]
    model = state["model"] = dict(state["model"])
    ids = {added["content"]: added["id"] for added in state["added_tokens"]}
    if isinstance(model["vocab"], list):  # Unigram: an id is a place in the list
        model["vocab"] = [[spellings.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        vocab = model["vocab"] = dict(model["vocab"])
        merged = _names_in_merges(model.get("merges", ()), spellings.keys() & vocab.keys())
        for content, spelling in spellings.items():
            if content not in merged:  # an ordinary word too: the merges need its name
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
    """What the tokenizer puts in front of a text, which is BOS or nothing. What it would put behind is left
    out: the template says how a conversation ends."""
    if backend.post_processor is None:
        return []
    ids = backend.post_processor.process(body).ids
    return ids[: next(i for i in range(len(ids)) if ids[i : i + len(body.ids)] == body.ids)]
