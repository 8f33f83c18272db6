"""A reference of nanoVLM's computation, and tiny random checkpoints of it as its `save_pretrained` writes them.

Written after huggingface/nanoVLM: models/vision_transformer.py, models/language_model.py, models/modality_projector.py
and models/vision_language_model.py for names and computation, models/config.py for config.json, data/processors.py and
data/custom_transforms.py for the inputs.
"""

import json
import math
from types import SimpleNamespace

import torch
from safetensors.torch import save_model
from torch import nn
from torch.nn import functional as F
from transformers import AutoTokenizer

from tests.conftest import DATA

SIDE, PATCH, FACTOR = 28, 7, 2
SLOTS = 4
PLACES = {f"r{row}c{column}": f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)}
TOKENS = {"image_token": "<|image|>", "global_image_token": "<|global_image|>", **PLACES}
JINJA = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONFIG = {
    "vit_hidden_dim": 32,
    "vit_inter_dim": 64,
    "vit_patch_size": PATCH,
    "vit_img_size": SIDE,
    "vit_n_heads": 4,
    "vit_dropout": 0.0,
    "vit_n_blocks": 2,
    "vit_ln_eps": 1e-6,
    "vit_cls_flag": False,
    "vit_model_type": "google/siglip2-base-patch16-512",
    "lm_hidden_dim": 64,
    "lm_inter_dim": 96,
    "lm_rms_eps": 1e-5,
    "lm_re_base": 100000,
    "lm_max_position_embeddings": 1024,
    "lm_n_heads": 4,
    "lm_n_kv_heads": 2,
    "lm_dropout": 0.0,
    "lm_n_blocks": 2,
    "lm_attn_scaling": 1.0,
    "lm_max_length": 4096,
    "lm_use_tokens": False,
    "lm_tie_weights": True,
    "lm_model_type": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "lm_tokenizer": "tokenizer",
    "lm_chat_template": JINJA,
    "mp_pixel_shuffle_factor": FACTOR,
    "mp_image_token_length": SLOTS,
    "vlm_load_backbone_weights": True,
    "vlm_checkpoint_path": "checkpoints",
    "hf_repo_name": "nanoVLM",
}
SPLIT = {"max_img_size": 3 * SIDE, "resize_to_max_side_len": False}


def make_nanovlm(folder, tokens=TOKENS, seed=0, **changes):
    """Write a checkpoint, the tokenizer of its language model in a directory of its own; returns the reference."""
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tokenizers" / "qwen_like")
    tokenizer.save_pretrained(folder / "tokenizer")
    sizes = {"lm_base_vocab_size": len(tokenizer), "extra_token_amount": len(tokens)}
    sizes["lm_vocab_size"] = sum(sizes.values())
    config = CONFIG | sizes | {"vlm_extra_tokens": tokens} | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    torch.manual_seed(seed)
    model = Model(SimpleNamespace(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2 + (0.5 if parameter.ndim == 1 else 0))
    save_model(model, str(folder / "model.safetensors"))
    return model


def open_tokenizer(folder, tokens=TOKENS):
    """As `get_tokenizer` of data/processors.py opens it."""
    return AutoTokenizer.from_pretrained(folder / "tokenizer", extra_special_tokens=tokens, chat_template=JINJA)


def image_text(grids, tokens=TOKENS):
    """`get_image_string` of data/processors.py, for grids of rows and columns; None is one square without markers."""
    slots = tokens["image_token"] * SLOTS
    texts = []
    for number, grid in enumerate(grids):
        text = f"<image: {number}>" if grid and len(grids) > 1 else ""
        whole = tokens.get("global_image_token")
        if grid is None:
            text += slots
        elif whole:
            text += whole + slots
        if grid and (grid != (1, 1) or not whole):
            places = [(row, column) for row in range(1, grid[0] + 1) for column in range(1, grid[1] + 1)]
            text += "".join(tokens[f"r{row}c{column}"] + slots for row, column in places)
        texts.append(text)
    return "".join(texts)


class Model(nn.Module):
    """`VisionLanguageModel`; `cfg` has the values of config.json."""

    def __init__(self, cfg):
        super().__init__()
        self.vision_encoder = Encoder(cfg)
        self.MP = Projector(cfg)
        self.decoder = Decoder(cfg)

    def forward(self, input_ids, views, image_id):
        embeddings = self.decoder.token_embedding(input_ids)
        if views is not None:
            features = self.MP(self.vision_encoder(views))
            embeddings = embeddings.masked_scatter((input_ids == image_id)[..., None], features)
        return self.decoder(embeddings)

    @torch.no_grad()
    def greedy(self, input_ids, views, image_id, count):
        for _ in range(count):
            best = self(input_ids, views, image_id)[:, -1].argmax(-1, keepdim=True)
            input_ids = torch.cat([input_ids, best], 1)
        return input_ids[0, -count:].tolist()


class Encoder(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        width, count = cfg.vit_hidden_dim, (cfg.vit_img_size // cfg.vit_patch_size) ** 2
        self.patch_embedding = nn.Module()
        self.patch_embedding.conv = nn.Conv2d(3, width, cfg.vit_patch_size, cfg.vit_patch_size)
        self.patch_embedding.position_embedding = nn.Parameter(torch.zeros(1, count, width))
        self.blocks = nn.ModuleList(EncoderBlock(cfg) for _ in range(cfg.vit_n_blocks))
        self.layer_norm = nn.LayerNorm(width, cfg.vit_ln_eps)

    def forward(self, views):
        patches = self.patch_embedding.conv(views).flatten(2).transpose(1, 2)
        hidden = patches + self.patch_embedding.position_embedding
        for block in self.blocks:
            hidden = block(hidden)
        return self.layer_norm(hidden)


class EncoderBlock(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        width, self.heads = cfg.vit_hidden_dim, cfg.vit_n_heads
        self.ln1, self.ln2 = nn.LayerNorm(width, cfg.vit_ln_eps), nn.LayerNorm(width, cfg.vit_ln_eps)
        self.attn = nn.ModuleDict({"qkv_proj": nn.Linear(width, 3 * width), "out_proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, cfg.vit_inter_dim), "fc2": nn.Linear(cfg.vit_inter_dim, width)}
        )

    def forward(self, hidden):
        queries, keys, values = (
            in_heads(part, self.heads) for part in self.attn["qkv_proj"](self.ln1(hidden)).chunk(3, -1)
        )
        weights = (queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])).softmax(-1)
        hidden = hidden + self.attn["out_proj"]((weights @ values).transpose(1, 2).flatten(2))
        return hidden + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.ln2(hidden)), approximate="tanh"))


class Projector(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.factor = cfg.mp_pixel_shuffle_factor
        self.proj = nn.Linear(cfg.vit_hidden_dim * self.factor**2, cfg.lm_hidden_dim, bias=False)

    def forward(self, patches):
        """A slot is a square of patches: of its rows from the top, and in a row from the left, all channels."""
        side, factor = math.isqrt(patches.shape[1]), self.factor
        grid = patches.unflatten(1, (side, side))
        corners = range(0, side, factor)
        squares = [grid[:, y : y + factor, x : x + factor].flatten(1) for y in corners for x in corners]
        return self.proj(torch.stack(squares, 1))


class Decoder(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.token_embedding = nn.Embedding(cfg.lm_vocab_size, cfg.lm_hidden_dim)
        self.rotary_embd = nn.Module()
        head_dim = cfg.lm_hidden_dim // cfg.lm_n_heads
        self.rotary_embd.register_buffer("inv_freq", cfg.lm_re_base ** (-torch.arange(0, head_dim, 2) / head_dim))
        self.blocks = nn.ModuleList(DecoderBlock(cfg) for _ in range(cfg.lm_n_blocks))
        self.norm = nn.RMSNorm(cfg.lm_hidden_dim, cfg.lm_rms_eps)
        self.head = nn.Linear(cfg.lm_hidden_dim, cfg.lm_vocab_size, bias=False)
        if cfg.lm_tie_weights:
            self.head.weight = self.token_embedding.weight

    def forward(self, hidden):
        angles = torch.arange(hidden.shape[1])[:, None] * self.rotary_embd.inv_freq.repeat(2)
        for block in self.blocks:
            hidden = block(hidden, angles)
        return self.head(self.norm(hidden))


class DecoderBlock(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        width, self.heads, self.groups = cfg.lm_hidden_dim, cfg.lm_n_heads, cfg.lm_n_kv_heads
        narrow = width // self.heads * self.groups
        self.norm1, self.norm2 = nn.RMSNorm(width, cfg.lm_rms_eps), nn.RMSNorm(width, cfg.lm_rms_eps)
        widths = {"q_proj": width, "k_proj": narrow, "v_proj": narrow, "out_proj": width}
        self.attn = nn.ModuleDict({name: nn.Linear(width, out, bias=False) for name, out in widths.items()})
        gate = {name: nn.Linear(width, cfg.lm_inter_dim, bias=False) for name in ("gate_proj", "up_proj")}
        self.mlp = nn.ModuleDict(gate | {"down_proj": nn.Linear(cfg.lm_inter_dim, width, bias=False)})

    def forward(self, hidden, angles):
        normed = self.norm1(hidden)
        queries = rotate(in_heads(self.attn["q_proj"](normed), self.heads), angles)
        keys = rotate(in_heads(self.attn["k_proj"](normed), self.groups), angles)
        values = in_heads(self.attn["v_proj"](normed), self.groups)
        keys, values = (part.repeat_interleave(self.heads // self.groups, 1) for part in (keys, values))
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        hidden = hidden + self.attn["out_proj"]((weights @ values).transpose(1, 2).flatten(2))
        normed = self.norm2(hidden)
        return hidden + self.mlp["down_proj"](F.silu(self.mlp["gate_proj"](normed)) * self.mlp["up_proj"](normed))


def in_heads(hidden, heads):
    return hidden.unflatten(-1, (heads, -1)).transpose(1, 2)


def rotate(hidden, angles):
    first, second = hidden.chunk(2, -1)
    return hidden * angles.cos() + torch.cat([-second, first], -1) * angles.sin()
