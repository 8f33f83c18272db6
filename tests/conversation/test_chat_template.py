"""The saved Jinja and `encode_prompt`: cases that random conversations do not cover."""

import pytest
from jinja2 import TemplateError

from mmchat.conversation import (
    TEMPLATES,
    SlotTokens,
    control_tokens,
    encode_prompt,
    merge_text_parts,
    render,
    to_jinja,
)
from mmchat.errors import UserError
from mmchat.model.image_processor import MMChatImageProcessor
from mmchat.model.processor import MMChatProcessor
from tests.conversation.conftest import PLAIN_JINJA

SLOTS = SlotTokens("<imgpad>", "<img>", "</img>")
IMAGE = {"type": "image"}
TOOL = {"role": "tool", "content": "t"}
YOURS = {"role": "system", "content": "Yours."}


def user(*parts):
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def answer(text):
    return {"role": "assistant", "content": text}


def write(tokenizer, key, messages, **kwargs):
    jinja = to_jinja(key, SLOTS, tokenizer)
    return tokenizer.apply_chat_template(messages, chat_template=jinja, tokenize=False, **kwargs)


def test_vicuna_prompt_as_text(llama):
    text = write(llama, "vicuna_v1", [user(IMAGE, "\nWhat?")], add_generation_prompt=True)
    assert text == (
        "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <img><imgpad></img>\nWhat? ASSISTANT:"
    )
    # BOS is put in front once, whether the text brings it or not.
    with_bos, without = (encode_prompt(t, llama, SLOTS, 3) for t in (text, text.removeprefix("<s>")))
    prompt = render([user(IMAGE, "\nWhat?")], "vicuna_v1", llama, 3, add_generation_prompt=True)
    assert with_bos == without == prompt.input_ids
    assert with_bos.count(llama.bos_token_id) == 1


def test_vary_writes_no_white_space_beside_an_image(opt):
    messages = [user("look"), answer("where? \n"), user("dropped", IMAGE, "dropped"), answer(" \n Title")]
    assert write(opt, "vary_opt", messages) == "</s>look\nwhere?<img><imgpad></img>Title\n</s>"


@pytest.mark.parametrize("sanitized", [False, True])
def test_only_marked_text_is_text(qwen, sanitized):
    """A typed token is text if transformers marked it, and a token in a hand-written prompt."""
    messages = [user("<|im_end|> <plain-added>" + " <imgpad>" * sanitized)]
    if sanitized:
        jinja = to_jinja("chatml", SLOTS, qwen)
        (messages,), *_ = qwen._mark_chat_inputs(jinja, [messages], None, None, {}, True, False)
    ids = encode_prompt(write(qwen, "chatml", messages), qwen, SLOTS, 3, sanitize_control_tokens=sanitized)
    end, added = qwen.convert_tokens_to_ids(["<|im_end|>", "<plain-added>"])
    assert (ids.count(end), ids.count(added)) == ((2, 0) if sanitized else (3, 1))


def test_a_token_typed_across_two_parts_is_text(qwen):
    messages = [user("<img><img", "pad></img>", IMAGE, "<|im_", "end|>")]
    assert [part.get("text") for part in merge_text_parts(messages)[0]["content"]] == [
        "<img><imgpad></img>",
        None,
        "<|im_end|>",
    ]
    assert messages == [user("<img><img", "pad></img>", IMAGE, "<|im_", "end|>")]
    jinja = to_jinja("chatml", SLOTS, qwen)
    (marked,), *_ = qwen._mark_chat_inputs(jinja, [merge_text_parts(messages)], None, None, {}, True, False)
    ids = encode_prompt(write(qwen, "chatml", marked), qwen, SLOTS, 3, sanitize_control_tokens=True)
    assert ids == render([*messages, answer("")], "chatml", qwen, 3).input_ids[: len(ids)]


def test_the_longest_matching_token_wins(bare):
    tokenizer = bare("opt_like")
    tokenizer.add_tokens(["<|im", "<|im_start|>", "<|im_end|>", "<|im_end|>>"])
    ids = encode_prompt("a<|im_end|>b<|im_end|>>c<|im", tokenizer, SLOTS, [])
    assert ids == tokenizer("a<|im_end|>b<|im_end|>>c<|im").input_ids
    assert len(set(ids) & set(tokenizer.convert_tokens_to_ids(["<|im", "<|im_end|>", "<|im_end|>>"]))) == 3


def test_control_tokens_are_all_added_tokens(qwen):
    assert set(control_tokens(qwen)) == set(qwen.get_added_vocab())


@pytest.mark.parametrize("text", ["<imgpad>", "<img>", "<img><imgpad><imgpad></img>", "</img>"])
def test_a_slot_token_outside_a_group_is_refused(qwen, text):
    with pytest.raises(UserError, match="stands alone at character 3"):
        encode_prompt("abc" + text, qwen, SLOTS, 2)


def test_images_are_counted(qwen):
    with pytest.raises(UserError, match=r"hold 1 image, image_tokens is given for 2"):
        encode_prompt("<img><imgpad></img>", qwen, SLOTS, [2, 2])


@pytest.mark.parametrize("messages", [[answer("a")], [user("a"), user("b")], [user("a"), answer("b"), answer("c")]])
def test_order_of_turns_is_checked(qwen, messages):
    with pytest.raises(TemplateError, match="take turns"):
        write(qwen, "chatml", messages)


@pytest.mark.parametrize(
    ("key", "messages", "message"),
    [
        ("vary_opt", [{"role": "system", "content": "a"}, user("b")], "no place for a system message"),
        ("vary_opt", [{"role": "tool", "content": "a"}], "role tool"),
        ("chatml", [user({"type": "video"})], "unknown content part video"),
        ("chatml", [user("a"), {"role": "assistant", "content": [IMAGE]}], "only a user message may hold images"),
        ("plain", [user("no image")], "at least one image"),
        ("plain", [user(IMAGE), answer("a"), user(IMAGE), answer("a")], "at least one image"),
    ],
)
def test_what_render_refuses_is_refused(opt, key, messages, message):
    with pytest.raises(UserError):
        render(messages, key, opt)
    with pytest.raises(TemplateError, match=message):
        write(opt, key, messages)


@pytest.mark.parametrize("messages", [[user("a"), TOOL], [user("a"), answer("b"), TOOL, user("c")], [TOOL]])
def test_order_of_tools_is_checked(qwen, messages):
    with pytest.raises(UserError):
        render([*messages, answer("d")], "qwen_3", qwen)
    with pytest.raises(TemplateError, match="tools follow the assistant"):
        write(qwen, "qwen_3", messages)
    with pytest.raises(TemplateError, match="role tool is not allowed here, expected user or assistant"):
        write(qwen, "gemma", [user("a"), answer("b"), TOOL])


# -- the processor, whose Jinja must follow its system message


@pytest.fixture
def processor(bare):
    def make(template, system, **settings):
        tokenizer = bare("qwen_like")
        tokenizer.add_tokens(["<imgpad>", "<img>", "</img>"], special_tokens=True)
        tokenizer.chat_template = PLAIN_JINJA
        seen = MMChatImageProcessor([])
        return MMChatProcessor(seen, tokenizer, template=template, system=system, image_tokens=2, **settings)

    return make


@pytest.mark.parametrize("system", [None, "", "Mine.", "Mine: <|im_end|> <ref>"])
@pytest.mark.parametrize("key", ["vicuna_v1", "chatml", "qwen_3", "auto"])
def test_the_saved_jinja_follows_the_processors_system(processor, key, system, tmp_path):
    made = processor(key, system)
    made.save_pretrained(tmp_path)
    for one in (made, MMChatProcessor.from_pretrained(tmp_path)):
        for messages in (
            [user("a <ref>")],
            [{"role": "system", "content": "Yours."}, user("a"), answer("b"), user("c")],
        ):
            expected = one.render(messages, add_generation_prompt=True).input_ids
            inputs = one.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True)
            assert inputs["input_ids"].tolist() == [expected]
            read = one.tokenizer.decode(expected)
            assert ("Yours." in read) == (len(messages) > 1)
            assert ("Mine" in read) == (len(messages) == 1 and "Mine" in (system or ""))


def test_a_system_message_without_a_place_is_refused_at_once(processor):
    with pytest.raises(UserError, match="'vary_opt' has no place for a system message"):
        processor("vary_opt", "Mine.")


def test_a_saved_jinja_is_kept(processor):
    assert processor("chatml", None, chat_template="{{ 1 }}").chat_template == "{{ 1 }}"


def test_no_generation_prompt_after_an_answer(qwen):
    with pytest.raises(TemplateError, match="must follow a user turn"):
        write(qwen, "chatml", [user("a"), answer("b")], add_generation_prompt=True)


@pytest.mark.parametrize("key", TEMPLATES)
def test_the_template_is_saved_and_loaded(llama, key, tmp_path):
    jinja = to_jinja(key, SLOTS, llama)
    saved = type(llama).from_pretrained(_save(llama, jinja, tmp_path))
    messages = [user(IMAGE, "a"), answer("b")]
    assert saved.apply_chat_template(messages, tokenize=False) == write(llama, key, messages)


def _save(tokenizer, jinja, path):
    before = tokenizer.chat_template
    tokenizer.chat_template = jinja
    tokenizer.save_pretrained(path)
    tokenizer.chat_template = before
    return path
