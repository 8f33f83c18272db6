"""`render` gives exactly the ids and labels of the original programs.

tests/fixtures/labels holds the outputs of LLaVA's preprocess_* and Vary's CaptionDataset and ConversationDataset for
our conversations, with the tokenizers of tests/fixtures/tokenizers.
"""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from mmchat.constants import IGNORE_INDEX
from mmchat.conversation import SlotTokens, render

DATA = Path(__file__).parents[1] / "fixtures"
LLAVA_TEMPLATES = {"v1": "vicuna_v1", "llava_llama_2": "llama_2", "mpt": "mpt", "plain": "plain"}
VARY_TEMPLATES = {"vary_opt": "vary_opt", "vary_qwen_mpt": "vary_qwen"}
LLAVA_IMAGE = -200

# In LLaVA's plain two <image> of one turn collapse to one, so an image is lost: known wrong, not imitated.
COLLAPSED = ("plain", "two_images_one_turn")


def cases(file):
    for case in json.loads((DATA / "labels" / file).read_text()):
        kind = case.get("template") or case["pipeline"]
        yield pytest.param(case, id=f"{kind}-{case['id']}")


def tokenizer_with(name, *tokens):
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tokenizers" / name)
    tokenizer.add_tokens([token for token in tokens if str(token) not in tokenizer.get_added_vocab()])
    return tokenizer


def llava_ids(ids, pad):
    """Each run of `pad` as LLaVA's one id -200."""
    firsts = [id_ for before, id_ in zip([None, *ids], ids, strict=False) if not before == id_ == pad]
    return [LLAVA_IMAGE if id_ == pad else id_ for id_ in firsts]


@pytest.mark.parametrize("image_tokens", [1, 7])
@pytest.mark.parametrize("case", list(cases("llava.json")))
def test_llava(case, image_tokens):
    tokenizer = tokenizer_with(case["tokenizer"], AddedToken("<imgpad>", special=True))
    pad = tokenizer.convert_tokens_to_ids("<imgpad>")
    rendered = render(
        case["conversations"],
        LLAVA_TEMPLATES[case["template"]],
        tokenizer,
        image_tokens,
        system=case["system"],
        slots=SlotTokens("<imgpad>"),
    )
    expected = case["input_ids"]
    if (case["template"], case["id"]) == COLLAPSED:
        # Both images are kept; the labels behind them are the original's.
        assert rendered.input_ids.count(pad) == 2 * image_tokens
        assert [i for i in rendered.input_ids if i != pad] == [i for i in expected if i != LLAVA_IMAGE]
        answer = [i for i in case["labels"] if i != IGNORE_INDEX]
        assert rendered.labels == [IGNORE_INDEX] * (len(rendered.labels) - len(answer)) + answer
        return
    assert llava_ids(rendered.input_ids, pad) == expected
    extra = {i for start, stop in rendered.image_spans for i in range(start + 1, stop)}
    assert [label for i, label in enumerate(rendered.labels) if i not in extra] == case["labels"]


# Vary's slow tokenizer strips white space around its three tokens. The template brings that where the
# tokenizer's added tokens do not, and a tokenizer that does it itself must give the same.
@pytest.mark.parametrize("strips", [False, True])
@pytest.mark.parametrize("case", list(cases("vary.json")))
def test_vary(case, strips):
    order = ("<imgpad>", "<img>", "</img>")
    tokens = [AddedToken(token, lstrip=strips, rstrip=strips, special=True) for token in order]
    rendered = render(
        case["conversations"],
        VARY_TEMPLATES[case["pipeline"]],
        tokenizer_with(case["tokenizer"], *tokens),
        system=case["system"],
        max_length=case["model_max_length"],
    )
    assert rendered.input_ids == case["input_ids"]
    assert rendered.labels == case["labels"]
