"""The template is chosen by what the tokenizer writes and has; one that does not fit is refused before any weight."""

import pytest
from transformers import AutoTokenizer

from mmchat.conversation import TEMPLATES, render
from mmchat.conversation.template_choice import OF_TYPE, check_template, choose_template
from mmchat.errors import UserError
from tests.conversation.conftest import TOKENIZERS

LLAMA_3 = TEMPLATES["llama_3"].control


@pytest.fixture
def tokenizer_with():
    def make(name, *tokens, jinja=None):
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZERS / name)
        tokenizer.add_tokens(list(tokens), special_tokens=True)
        tokenizer.chat_template = jinja
        return tokenizer

    return make


def chatml(system="", each="", begin=""):
    """A chat template like Qwen2.5's: a default system message, and one block for each turn."""
    first = f"{begin}{{%- if messages[0].role != 'system' and '{system}' -%}}"
    first += f"{{{{- '<|im_start|>system\n{system}<|im_end|>\n' -}}}}{{%- endif -%}}"
    turns = f"{{%- for m in messages -%}}{each}{{{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}}}"
    return (
        first + turns + "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
    )


QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
REWRITES = "{%- if m.role == 'assistant' and not loop.last -%}{{- 'thought' -}}{%- endif -%}"
SAME, BUT_SYSTEM = "own chat template writes", "but for the default system message"


@pytest.mark.parametrize(
    ("jinja", "model_type", "name", "reason"),
    [
        (chatml(QWEN), "qwen2", "qwen_2_5", SAME),
        (chatml(QWEN), "llama", "qwen_2_5", SAME),  # what the tokenizer writes counts, not the type
        (chatml("You are a helpful assistant."), "qwen2", "chatml", SAME),
        (chatml(), "qwen3", "qwen_3", SAME),
        (chatml("You are SmolLM."), "llama", "chatml", BUT_SYSTEM),
        (chatml("You are Other."), "qwen2", "qwen_2_5", BUT_SYSTEM),
        (chatml(begin="{{- 'Talk. ' -}}"), "qwen2", "auto", "no named template equals"),
        (chatml(each=REWRITES, begin="{{- 'Talk. ' -}}"), "qwen2", "chatml", "does not show where answers are"),
    ],
)
def test_what_the_tokenizer_writes_decides(tokenizer_with, jinja, model_type, name, reason):
    choice = choose_template(tokenizer_with("qwen_like", jinja=jinja), model_type)
    assert choice.name == name and reason in choice.reason


@pytest.mark.parametrize(
    ("tokenizer", "tokens", "model_type", "name", "reason"),
    [
        ("qwen_like", (), "qwen2", "qwen_2_5", "type qwen2, and the tokenizer has <|im_start|> and <|im_end|>"),
        ("qwen_like", (), "llama", "chatml", "no chat template, but has <|im_start|> and <|im_end|>"),
        ("llama_like_legacy_false", LLAMA_3, "llama", "llama_3", "type llama, and the tokenizer has"),
        ("llama_like_legacy_false", (), "llama", "vicuna_v1", "neither a chat template nor chat tokens"),
        ("llama_like_legacy_false", (), "qwen2", "vicuna_v1", "neither a chat template nor chat tokens"),
        ("llama_like_legacy_false", (), "mistral", "mistral", "type mistral"),
        ("opt_like", (), "opt", "vicuna_v1", "neither a chat template nor chat tokens"),
    ],
)
def test_without_a_chat_template_type_and_tokens_decide(tokenizer_with, tokenizer, tokens, model_type, name, reason):
    choice = choose_template(tokenizer_with(tokenizer, *tokens), model_type)
    assert choice.name == name and reason in choice.reason


@pytest.mark.parametrize("model_type", ["unheard_of", *OF_TYPE])
def test_what_is_chosen_can_be_rendered(tokenizer_with, model_type):
    for jinja in (None, chatml(QWEN), chatml(each=REWRITES)):
        tokenizer = tokenizer_with("qwen_like", jinja=jinja)
        choice = choose_template(tokenizer, model_type)
        check_template(choice.name, tokenizer)
        render([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], choice.name, tokenizer)


def test_a_template_that_does_not_fit_is_refused(tokenizer_with):
    tokenizer = tokenizer_with("llama_like_legacy_false")
    expected = (
        "template chatml needs <|im_start|>, <|im_end|>, which the tokenizer does not have as single tokens; "
        "templates that fit: mistral, llama_2, vicuna_v1"
    )
    with pytest.raises(UserError) as refused:
        check_template("chatml", tokenizer)
    assert str(refused.value) == expected
    check_template("vicuna_v1", tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="template vicuna_v1 needs eos_token, which the tokenizer does not have"):
        choose_template(tokenizer, "llama")
    tokenizer.chat_template = "{{ messages[0].content }}"  # says nothing about answers, and no template fits
    with pytest.raises(UserError, match="template vicuna_v1 needs eos_token, which the tokenizer does not have"):
        choose_template(tokenizer, "llama")
