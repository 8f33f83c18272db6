"""Four tokenizers with slot tokens and with every kind of added token that text may spell."""

from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from mmchat.conversation import TEMPLATES, control_tokens

TOKENIZERS = Path(__file__).parents[1] / "fixtures" / "tokenizers"
NAMES = ("llama_like_legacy_false", "neox_like", "opt_like", "qwen_like")
SLOTS = ["<imgpad>", "<img>", "</img>"]
WRITTEN = list(dict.fromkeys([*SLOTS, *(token for template in TEMPLATES.values() for token in template.control)]))

# Two chat templates for `auto`: one that says what is learned, and one that does not.
GENERATION_JINJA = """\
{{- bos_token -}}
{%- for message in messages -%}
  {%- if message['role'] == 'assistant' -%}
    {{- 'ASSISTANT:' -}}{% generation %}{{- ' ' + message['content'] + eos_token -}}{% endgeneration %}{{- '\\n' -}}
  {%- else -%}
    {{- message['role'] + ': ' + message['content'] | trim + '\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""
PLAIN_JINJA = """\
{{- bos_token -}}
{%- for message in messages -%}
  {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


@pytest.fixture(scope="session")
def tokenizers():
    """Each able to write every template."""
    loaded = {}
    for name in NAMES:
        tokenizer = loaded[name] = AutoTokenizer.from_pretrained(TOKENIZERS / name)
        missing = [token for token in WRITTEN if token not in tokenizer.get_added_vocab()]
        tokenizer.add_tokens(missing, special_tokens=True)
        tokenizer.add_tokens(["<plain-added>"])  # neither special nor in any template
        tokenizer.add_tokens([AddedToken("<|lone|>", lstrip=True, rstrip=True, single_word=True)])
        tokenizer.chat_template = PLAIN_JINJA
        tokenizer.chat_control_tokens = control_tokens(tokenizer)
    return loaded


@pytest.fixture(scope="session", params=NAMES)
def tokenizer(request, tokenizers):
    return tokenizers[request.param]


@pytest.fixture(scope="session")
def qwen(tokenizers):
    return tokenizers["qwen_like"]


@pytest.fixture(scope="session")
def llama(tokenizers):
    return tokenizers["llama_like_legacy_false"]


@pytest.fixture(scope="session")
def opt(tokenizers):
    return tokenizers["opt_like"]


@pytest.fixture(scope="session")
def neox(tokenizers):
    return tokenizers["neox_like"]


@pytest.fixture
def bare():
    """An unmodified tokenizer by name. Tests may change it."""
    return lambda name: AutoTokenizer.from_pretrained(TOKENIZERS / name)
