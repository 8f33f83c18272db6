"""Import of Vary's assistants: the logits of the originals, strict loading and error messages."""

import base64
import json
import shutil
from itertools import pairwise

import pytest
import regex
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Tokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from mmchat.cli.main import main
from mmchat.conversion import import_model, importing
from mmchat.conversion.qwen1 import tokenizer_from_ranks
from mmchat.errors import UserError
from mmchat.files import read_json
from mmchat.inference import Generator
from mmchat.vision import load_tower
from mmchat.vision.checkpoint_formats.vary import PREPROCESSING
from tests.docstring_examples import run_examples

TOLERANCE = {"atol": 1e-4, "rtol": 0}
OPT_PLACE = "model.vision_tower_2."
CLIP = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 1,
    "image_size": 28,
    "patch_size": 7,
    "hidden_act": "quick_gelu",
}
QWEN = {
    "model_type": "vary",
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "kv_channels": 8,
    "layer_norm_epsilon": 1e-6,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "seq_length": 64,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "no_bias": True,
    "tie_word_embeddings": False,
    "vision_select_layer": -2,
}


@pytest.fixture(scope="module")
def original(data_dir, tmp_path_factory):
    """The oracle's directory with a tokenizer of as many tokens as its vocabulary had before the slots."""
    folder = tmp_path_factory.mktemp("original")
    for name in ("config.json", "pytorch_model.bin"):
        shutil.copy(data_dir / "vary_opt_tiny" / name, folder)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())][:117]
    special = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    GPT2Tokenizer(vocab={word: number for number, word in enumerate(tokens)}, merges=[], **special).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def expected(data_dir):
    return load_file(data_dir / "vary_opt_tiny" / "io.safetensors")


def weights(folder):
    return torch.load(folder / "pytorch_model.bin", weights_only=True)


def run(model, expected):
    """The second row has no image."""
    inputs = {name: expected[name] for name in ("input_ids", "labels")}
    return model(**inputs, pixel_values=expected["images_high"][:, 0])


def test_opt_gives_the_logits_of_the_original(original, expected):
    model, processor = import_model(original)
    output = run(model, expected)
    torch.testing.assert_close(output.logits, expected["logits"], **TOLERANCE)
    torch.testing.assert_close(output.loss, expected["loss"], **TOLERANCE)
    output.loss.backward()
    norms = {theirs(name): p.grad.norm() for name, p in model.named_parameters()}
    wanted = {name.removeprefix("grad_norm."): norm for name, norm in expected.items() if name.startswith("grad_norm")}
    assert norms.keys() == wanted.keys()
    for name, norm in wanted.items():
        torch.testing.assert_close(norms[name], norm, **TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")
    (spec,) = processor.image_processor.specs
    assert (spec.image_size, spec.tokens, spec.preprocessing) == (256, 16, PREPROCESSING)
    assert (processor.template, processor.tokenizer.convert_tokens_to_ids(["<imgpad>", "<img>", "</img>"])) == (
        "vary_opt",
        [117, 118, 119],
    )
    assert model.generation_config.eos_token_id == [2]


def theirs(name):
    """The original's name of one of our weights."""
    renamed = {"layers": "blocks", "patch_embed.projection": "patch_embed.proj"}
    renamed |= {"layer_norm1": "norm1", "layer_norm2": "norm2"}
    if name.startswith("towers.0."):
        name = name.removeprefix("towers.0.").removeprefix("backbone.vision_encoder.")
        neck = {
            "neck.conv1": "neck.0",
            "neck.layer_norm1": "neck.1",
            "neck.conv2": "neck.2",
            "neck.layer_norm2": "neck.3",
        }
        for old, new in ({"compressor.0": "net_2", "compressor.1": "net_3"} | neck | renamed).items():
            name = name.replace(old, new)
        return OPT_PLACE + name
    return name.replace("projectors.0.", "model.mm_projector.").removeprefix("language_model.")


@pytest.mark.parametrize("release", ["model.vision_tower.", "visual_encoder."])
def test_key_prefixes_of_other_releases(original, expected, tmp_path, release):
    shutil.copytree(original, tmp_path / "model")
    state = {key.replace(OPT_PLACE, release): tensor for key, tensor in weights(original).items()}
    if release == "visual_encoder.":
        names = {
            "model.mm_projector.": "opt_proj.",
            "model.decoder.": "opt_model.model.decoder.",
            "lm_head": "opt_model.lm_head",
        }
        for old, new in names.items():
            state = {new + key.removeprefix(old) if key.startswith(old) else key: t for key, t in state.items()}
    torch.save(state, tmp_path / "model" / "pytorch_model.bin")
    model, _ = import_model(tmp_path / "model")
    with torch.no_grad():
        torch.testing.assert_close(run(model, expected).logits, expected["logits"], **TOLERANCE)


def test_the_imported_model_opens_with_transformers_alone(original, expected, tmp_path):
    assert main(["import", str(original), str(tmp_path / "out")]) == 0
    assert AutoConfig.from_pretrained(tmp_path / "out").template == "vary_opt"
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(run(model, expected).logits, expected["logits"], **TOLERANCE)
    assert processor.image_tokens == 16


def test_the_example_in_the_docstring(original, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "vary").symlink_to(original)
    monkeypatch.chdir(tmp_path)
    run_examples(importing, "import_model")


def test_half_precision_weights_keep_their_dtype(original, expected, tmp_path):
    """Releases are in half precision. The imported model keeps it."""

    def round_all(state):
        state.update({key: tensor.to(torch.bfloat16) for key, tensor in state.items()})

    main(["import", str(changed(original, tmp_path / "model", round_all)), str(tmp_path / "out")])
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        torch.testing.assert_close(run(model, expected).logits.float(), expected["logits"], atol=0.2, rtol=0)


def changed(original, folder, change):
    """A copy whose weights `change` edits in place."""
    shutil.copytree(original, folder)
    state = weights(original)
    change(state)
    torch.save(state, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("model.mm_projector.bias"), r"missing: projectors\.0\.bias$"),
        (lambda state: state.pop(f"{OPT_PLACE}net_3.weight"), r"missing: towers\.0\.compressor\.1\.weight$"),
        (lambda state: state.update({"model.extra": torch.zeros(2)}), "left over: model.extra$"),
        (
            lambda state: state.update({"model.mm_projector.bias": torch.zeros(2)}),
            r"another shape: .*projectors\.0\.bias",
        ),
        (lambda state: state.update({"lm_head.weight": torch.zeros(120, 64)}), "differs from the embeddings"),
    ],
    ids=["missing", "missing of the tower", "left over", "misshapen", "untied"],
)
def test_weights_that_do_not_fit_are_named(original, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        import_model(changed(original, tmp_path / "model", change))


def test_unknown_or_incomplete_sources_are_refused(original, data_dir, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["import", str(data_dir / "clip_vit_tiny_hf4"), str(tmp_path / "out")])
    message = capsys.readouterr().err
    assert (
        "does not hold an assistant of a known format" in message
        and "Vary's OPT" in message
        and "Vary's Qwen" in message
    )
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="is not a directory"):
        import_model(original / "pytorch_model.bin")
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(original / "pytorch_model.bin", bare)
    with pytest.raises(UserError, match=r"config\.json does not say num_attention_heads, ffn_dim"):
        import_model(bare)
    shutil.copy(original / "config.json", bare)
    with pytest.raises(UserError, match=r"holds no tokenizer .* --tokenizer"):
        import_model(bare)
    with pytest.raises(UserError, match=r"<imgpad> is 1500 instead of 117"):
        import_model(bare, tokenizer=str(data_dir / "tokenizers" / "opt_like"))
    torch.save({"model": torch.nn.Linear(2, 2)}, bare / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be opened as plain tensors"):
        import_model(bare)


@pytest.fixture(scope="module")
def qwen(data_dir, tmp_path_factory):
    """(directory, weights): a random varyQwen with the oracle's vision vocabulary as its second tower."""
    folder = tmp_path_factory.mktemp("qwen")
    generator = torch.Generator().manual_seed(0)

    def random(*shape, spread=0.3):
        return torch.randn(shape, generator=generator) * spread

    width, inner = QWEN["hidden_size"], QWEN["intermediate_size"] // 2
    state = {"transformer.wte.weight": random(512, width), "lm_head.weight": random(512, width)}
    state["transformer.ln_f.weight"] = 1 + random(width)
    for block in range(QWEN["num_hidden_layers"]):
        shapes = {"ln_1.weight": (width,), "ln_2.weight": (width,)}
        shapes |= {"attn.c_attn.weight": (3 * width, width), "attn.c_attn.bias": (3 * width,)}
        shapes |= {"attn.c_proj.weight": (width, width), "mlp.w1.weight": (inner, width)}
        shapes |= {"mlp.w2.weight": (inner, width), "mlp.c_proj.weight": (width, inner)}
        state |= {f"transformer.h.{block}.{name}": random(*shape) for name, shape in shapes.items()}
    torch.manual_seed(0)
    clip = CLIPVisionModel(CLIPVisionConfig(**CLIP)).state_dict()
    state |= {f"transformer.vision_tower.vision_model.{key}": random(*tensor.shape) for key, tensor in clip.items()}
    state["transformer.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    vary = load_file(data_dir / "vary_sam_tiny" / "state.safetensors")
    vary |= enlarged(vary)
    state |= {f"transformer.vision_tower_high.{key}": tensor for key, tensor in vary.items()}
    for name, dim in (("mm_projector", CLIP["hidden_size"]), ("mm_projector_vary", 128)):
        state |= {f"transformer.{name}.weight": random(width // 2, dim), f"transformer.{name}.bias": random(width // 2)}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(QWEN | slot_ids(folder)))
    return folder, state


def enlarged(vary):
    """Position tables for 256 pixels. The oracle takes 128 and gives 4 tokens, but CLIP's grid here is 4 x 4."""
    generator = torch.Generator().manual_seed(1)
    tables = {"pos_embed": (1, 16, 16, vary["pos_embed"].shape[-1])}
    for block in (1, 3):
        for side in ("rel_pos_h", "rel_pos_w"):
            tables[f"blocks.{block}.attn.{side}"] = (31, vary[f"blocks.{block}.attn.{side}"].shape[-1])
    return {key: torch.randn(shape, generator=generator) * 0.1 for key, shape in tables.items()}


def slot_ids(folder):
    """Write `qwen.tiktoken` with all bytes and some merges; returns the config's slot ids."""
    tokens = [bytes([value]) for value in range(256)] + [b"th", b"he", b"the", b" t", b" the", b"in"]
    lines = (f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens))
    (folder / "qwen.tiktoken").write_text("\n".join(lines))
    first = len(tokens) + 3 + 205 + 6
    return {"im_start_token": first, "im_end_token": first + 1, "im_patch_token": first + 2}


def test_qwen_gives_the_logits_of_a_slow_reference(qwen):
    folder, state = qwen
    model, processor = import_model(folder)
    generator = torch.Generator().manual_seed(2)
    pixels = [torch.randn(1, 3, size, size, generator=generator) for size in (28, 256)]
    pad = model.config.image_token_id
    ids = torch.tensor([[3, pad - 2, *[pad] * 16, pad - 1, *range(30, 45)]])
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=pixels).logits
        expected = slow_vary_qwen(state, folder, ids[0], pixels)
    torch.testing.assert_close(logits[0], expected, **TOLERANCE)
    clip, vary = (tower.config for tower in model.towers)
    assert (clip.layer, clip.class_token, clip.preprocessing.fit) == (-2, False, "shortest-edge-crop")
    assert (vary.family, vary.preprocessing) == ("vary_sam", PREPROCESSING)
    assert (processor.template, processor.image_tokens) == ("vary_qwen", 16)
    assert processor.tokenizer.decode(model.generation_config.eos_token_id) == "<|endoftext|><|im_end|>"


def test_qwen_is_asked_as_in_the_demo(qwen, tmp_path):
    """run_qwen_vary.py asks directly after the image; so do the data's records and the saved chat template."""
    folder, _ = qwen
    assert main(["import", str(folder), str(tmp_path / "out")]) == 0
    question = "Provide the ocr results of this image."
    system = "You should follow the instructions carefully and explain your answers in detail."
    image = "<img>" + "<imgpad>" * 16 + "</img>"
    demo = f"<|im_start|>system\n{system}<|im_end|><|im_start|>user\n{image}{question}<|im_end|><|im_start|>assistant\n"
    generator = Generator(tmp_path / "out")
    processor = generator.processor
    expected = processor.tokenizer(demo).input_ids
    assert len(expected) > 100 and processor.tokenizer.decode(expected) == demo
    pixels = Image.new("RGB", (30, 20))
    assert generator.prompt(*generator.conversation(question, [pixels], ())).input_ids == expected
    record = [{"from": "human", "value": f"<image>\n{question}"}]
    assert processor.render(record, add_generation_prompt=True).input_ids == expected
    for text in (question, f"\n{question}"):
        content = [{"type": "image", "image": pixels}, {"type": "text", "text": text}]
        asked = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
        inputs = processor.apply_chat_template([{"role": "user", "content": content}], **asked)
        assert inputs["input_ids"][0].tolist() == expected


def slow_vary_qwen(state, folder, ids, pixels):
    """vary_qwen_vary.py and modeling_qwen.py for one row with one image, computed per head and position."""
    part = {key.removeprefix("transformer."): tensor for key, tensor in state.items()}
    clip = CLIPVisionModel(CLIPVisionConfig(**CLIP)).eval()
    place = "vision_tower.vision_model."
    clip.load_state_dict({k.removeprefix(place): t for k, t in part.items() if k.startswith(place) and "_ids" not in k})
    seen = [clip(pixels[0], output_hidden_states=True).hidden_states[-2][0, 1:]]
    seen.append(load_tower(folder).eval()(pixels[1]).patches[0])
    names = ("mm_projector", "mm_projector_vary")
    projected = [F.linear(f, part[f"{n}.weight"], part[f"{n}.bias"]) for f, n in zip(seen, names, strict=True)]
    hidden = part["wte.weight"][ids]
    hidden[2:18] = torch.cat(projected, dim=-1)
    for block in range(QWEN["num_hidden_layers"]):
        own = {k.removeprefix(f"h.{block}."): t for k, t in part.items() if k.startswith(f"h.{block}.")}
        mixed = F.linear(rms(hidden, own["ln_1.weight"]), own["attn.c_attn.weight"], own["attn.c_attn.bias"])
        query, key, value = (half.unflatten(1, (4, 8)) for half in mixed.split(32, dim=1))
        query, key = rotated(query), rotated(key)
        out = torch.zeros_like(query)
        for head in range(4):
            for place_of_query in range(len(ids)):
                scores = key[: place_of_query + 1, head] @ query[place_of_query, head] / 8**0.5
                out[place_of_query, head] = scores.softmax(0) @ value[: place_of_query + 1, head]
        hidden = hidden + out.flatten(1) @ own["attn.c_proj.weight"].T
        normed = rms(hidden, own["ln_2.weight"])
        gated = (normed @ own["mlp.w1.weight"].T) * F.silu(normed @ own["mlp.w2.weight"].T)
        hidden = hidden + gated @ own["mlp.c_proj.weight"].T
    return rms(hidden, part["ln_f.weight"]) @ state["lm_head.weight"].T


def rms(hidden, gain):
    return hidden * (hidden.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * gain


def rotated(vectors):
    """float[L, heads, 8]: pairs (i, i + 4) turn by position / 10000^(i / 4)."""
    turned = torch.empty_like(vectors)
    for position in range(len(vectors)):
        for pair in range(4):
            angle = torch.tensor(position / 10000 ** (pair / 4))
            first, second = vectors[position, :, pair], vectors[position, :, pair + 4]
            turned[position, :, pair] = first * angle.cos() - second * angle.sin()
            turned[position, :, pair + 4] = second * angle.cos() + first * angle.sin()
    return turned


def test_qwen_is_loaded_strictly(qwen, tmp_path):
    folder, state = qwen
    for kept, message in (("w2", r"missing: .*layers\.1\.mlp\.gate_proj"), ("c_attn.b", r"missing: .*q_proj\.bias")):
        shutil.copytree(folder, tmp_path / kept)
        short = {
            key: tensor for key, tensor in state.items() if f"h.1.{'mlp' if kept == 'w2' else 'attn'}.{kept}" not in key
        }
        save_file(short, tmp_path / kept / "model.safetensors")
        with pytest.raises(UserError, match=message):
            import_model(tmp_path / kept)
    config = read_json(folder / "config.json")
    (tmp_path / "w2" / "config.json").write_text(json.dumps(config | {"kv_channels": 128}))
    with pytest.raises(UserError, match="4 heads of kv_channels 128 for a hidden size of 32"):
        import_model(tmp_path / "w2")


def test_qwens_own_tokenizer(data_dir, tmp_path):
    """A trained vocabulary. Text is split and merged as in the original: the pair of lowest rank first."""
    letters = {letter: value for value, letter in bytes_to_unicode().items()}
    vocabulary = read_json(data_dir / "tokenizers" / "qwen_like" / "tokenizer.json")["model"]["vocab"]
    ranks = {bytes(letters[letter] for letter in token): rank for token, rank in vocabulary.items()}
    lines = (f"{base64.b64encode(token).decode()} {rank}" for token, rank in ranks.items())
    (tmp_path / "qwen.tiktoken").write_text("\n".join(lines))
    tokenizer = tokenizer_from_ranks(tmp_path / "qwen.tiktoken")
    pattern = (  # tokenization_qwen.py PAT_STR
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    for text in ("The weather isn't there; 1234 in  these  pages.\n\n  And more!", "Größe 页面 über\tthe"):
        assert tokenizer(text).input_ids == [
            number for piece in regex.findall(pattern, text) for number in slow_bpe(piece, ranks)
        ]
    first = len(ranks)
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>", "<|extra_0|>"]) == [
        first,
        first + 2,
        first + 3,
    ]
    # 151,643 tokens in the released file, so its <img> is 151857.
    assert tokenizer.convert_tokens_to_ids(["<img>", "</img>", "<imgpad>"]) == [first + n for n in (214, 215, 216)]
    assert 151_643 + 214 == 151_857
    (tmp_path / "qwen.tiktoken").write_text("no base64\n")
    with pytest.raises(UserError, match="is not a list of base64 tokens"):
        tokenizer_from_ranks(tmp_path / "qwen.tiktoken")


def slow_bpe(piece, ranks):
    parts = [bytes([value]) for value in piece.encode()]
    while pairs := [(ranks[a + b], n) for n, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]:
        _, n = min(pairs)
        parts[n : n + 2] = [parts[n] + parts[n + 1]]
    return [ranks[part] for part in parts]
