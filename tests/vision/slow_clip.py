"""What original weights look like, and what they compute: key by key, step by step, as papers and layouts tell it.

Independent of mmchat and of transformers. States are `{key: tensor}`, shapes `{key: tuple}`, both without `visual.`.
"""

import torch
from torch.nn import functional as F


def random_state(shapes, seed=0):
    """Small around nothing; but gains, and what norms divide by, around one."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator)
        if key.endswith("running_var"):
            state[key] = 0.5 + drawn.abs()
        elif len(shape) > 1:
            fan_in = drawn[0].numel()
            state[key] = drawn * (2 / fan_in) ** 0.5
        else:
            state[key] = 0.1 * drawn + (1.0 if key.endswith("weight") else 0.0)
    return state


# Shapes


def blocks_shapes(width, blocks):
    shapes = {}
    for number in range(blocks):
        block = f"transformer.resblocks.{number}."
        shapes |= {f"{block}attn.in_proj_weight": (3 * width, width), f"{block}attn.in_proj_bias": (3 * width,)}
        shapes |= linear(f"{block}attn.out_proj.", width, width)
        shapes |= norm(f"{block}ln_1.", width) | norm(f"{block}ln_2.", width)
        shapes |= linear(f"{block}mlp.c_fc.", width, 4 * width) | linear(f"{block}mlp.c_proj.", 4 * width, width)
    return shapes


def vit_shapes(width, blocks, patch, size):
    shapes = {
        "class_embedding": (width,),
        "positional_embedding": ((size // patch) ** 2 + 1, width),
        "conv1.weight": (width, 3, patch, patch),
    }
    return shapes | norm("ln_pre.", width) | norm("ln_post.", width) | blocks_shapes(width, blocks)


def text_shapes(width, blocks, length, vocabulary, common):
    """Of the half that is no tower; `logit_scale` is with it."""
    shapes = {
        "token_embedding.weight": (vocabulary, width),
        "positional_embedding": (length, width),
        "text_projection": (width, common),
        "logit_scale": (),
    }
    return shapes | norm("ln_final.", width) | blocks_shapes(width, blocks)


def resnet_shapes(layers, width, size, output):
    shapes = convolution("", 1, 3, width // 2, 3) | convolution("", 2, width // 2, width // 2, 3)
    shapes |= convolution("", 3, width // 2, width, 3)
    channels = width
    for stage, blocks in enumerate(layers):
        narrow = width * 2**stage
        for number in range(blocks):
            block = f"layer{stage + 1}.{number}."
            shapes |= convolution(block, 1, channels, narrow, 1) | convolution(block, 2, narrow, narrow, 3)
            shapes |= convolution(block, 3, narrow, 4 * narrow, 1)
            if number == 0:
                shapes[f"{block}downsample.0.weight"] = (4 * narrow, channels, 1, 1)
                shapes |= batch_norm(f"{block}downsample.1.", 4 * narrow)
            channels = 4 * narrow
    shapes["attnpool.positional_embedding"] = ((size // 32) ** 2 + 1, channels)
    for name in "qkv":
        shapes |= linear(f"attnpool.{name}_proj.", channels, channels)
    return shapes | linear("attnpool.c_proj.", channels, output)


def siglip_shapes(width, inner, blocks, patch, size):
    """timm's. inner: width inside the MLPs."""
    shapes = {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    shapes |= {"pos_embed": (1, (size // patch) ** 2, width), "attn_pool.latent": (1, 1, width)}
    for number in range(blocks):
        block = f"blocks.{number}."
        shapes |= norm(f"{block}norm1.", width) | norm(f"{block}norm2.", width)
        shapes |= linear(f"{block}attn.qkv.", width, 3 * width) | linear(f"{block}attn.proj.", width, width)
        shapes |= linear(f"{block}mlp.fc1.", width, inner) | linear(f"{block}mlp.fc2.", inner, width)
    pool = "attn_pool."
    shapes |= norm("norm.", width) | norm(f"{pool}norm.", width) | linear(f"{pool}q.", width, width)
    shapes |= linear(f"{pool}kv.", width, 2 * width) | linear(f"{pool}proj.", width, width)
    return shapes | linear(f"{pool}mlp.fc1.", width, inner) | linear(f"{pool}mlp.fc2.", inner, width)


def linear(name, inputs, outputs):
    return {f"{name}weight": (outputs, inputs), f"{name}bias": (outputs,)}


def norm(name, width):
    return {f"{name}weight": (width,), f"{name}bias": (width,)}


def batch_norm(name, channels):
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}{one}": (channels,) for one in names} | {f"{name}num_batches_tracked": ()}


def convolution(block, number, inputs, outputs, side):
    shapes = {f"{block}conv{number}.weight": (outputs, inputs, side, side)}
    return shapes | batch_norm(f"{block}bn{number}.", outputs)


# Computations


def vit(state, pixels, heads, activation):
    """Hidden states [B, 1 + N, width], the embeddings' first, and the normed class token."""
    patch = state["conv1.weight"].shape[-1]
    patches = F.conv2d(pixels, state["conv1.weight"], stride=patch).flatten(2).transpose(1, 2)
    first = state["class_embedding"].expand(len(pixels), 1, -1)
    hidden = torch.cat([first, patches], dim=1) + state["positional_embedding"]
    states = [layer_norm(state, "ln_pre.", hidden, 1e-5)]
    while f"transformer.resblocks.{len(states) - 1}.ln_1.weight" in state:
        block, hidden = f"transformer.resblocks.{len(states) - 1}.", states[-1]
        seen = layer_norm(state, f"{block}ln_1.", hidden, 1e-5)
        fused = seen @ state[f"{block}attn.in_proj_weight"].T + state[f"{block}attn.in_proj_bias"]
        hidden = hidden + apply(state, f"{block}attn.out_proj.", attention(*fused.chunk(3, dim=-1), heads))
        inner = apply(state, f"{block}mlp.c_fc.", layer_norm(state, f"{block}ln_2.", hidden, 1e-5))
        states.append(hidden + apply(state, f"{block}mlp.c_proj.", activation(inner)))
    return states, layer_norm(state, "ln_post.", states[-1][:, 0], 1e-5)


def text(state, ids, heads, activation, causal, eps=1e-5):
    """The normed last hidden states [B, L, width] of a text half."""
    hidden = state["token_embedding.weight"][ids] + state["positional_embedding"][: ids.shape[1]]
    number = 0
    while f"transformer.resblocks.{number}.ln_1.weight" in state:
        block, number = f"transformer.resblocks.{number}.", number + 1
        seen = layer_norm(state, f"{block}ln_1.", hidden, eps)
        fused = seen @ state[f"{block}attn.in_proj_weight"].T + state[f"{block}attn.in_proj_bias"]
        gathered = attention(*fused.chunk(3, dim=-1), heads, causal)
        hidden = hidden + apply(state, f"{block}attn.out_proj.", gathered)
        inner = apply(state, f"{block}mlp.c_fc.", layer_norm(state, f"{block}ln_2.", hidden, eps))
        hidden = hidden + apply(state, f"{block}mlp.c_proj.", activation(inner))
    return layer_norm(state, "ln_final.", hidden, eps)


def siglip(state, pixels, heads):
    """Hidden states [B, N, width], the embeddings' first, and what the pool gathers."""

    def mlp(name, hidden):
        inner = F.gelu(apply(state, f"{name}fc1.", hidden), approximate="tanh")
        return apply(state, f"{name}fc2.", inner)

    patch = state["patch_embed.proj.weight"].shape[-1]
    patches = F.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch)
    states = [patches.flatten(2).transpose(1, 2) + state["pos_embed"]]
    while f"blocks.{len(states) - 1}.norm1.weight" in state:
        block, hidden = f"blocks.{len(states) - 1}.", states[-1]
        fused = apply(state, f"{block}attn.qkv.", layer_norm(state, f"{block}norm1.", hidden, 1e-6))
        hidden = hidden + apply(state, f"{block}attn.proj.", attention(*fused.chunk(3, dim=-1), heads))
        states.append(hidden + mlp(f"{block}mlp.", layer_norm(state, f"{block}norm2.", hidden, 1e-6)))
    normed = layer_norm(state, "norm.", states[-1], 1e-6)
    query = apply(state, "attn_pool.q.", state["attn_pool.latent"].expand(len(pixels), -1, -1))
    gathered = attention(query, *apply(state, "attn_pool.kv.", normed).chunk(2, dim=-1), heads)
    pooled = apply(state, "attn_pool.proj.", gathered)
    return states, (pooled + mlp("attn_pool.mlp.", layer_norm(state, "attn_pool.norm.", pooled, 1e-6)))[:, 0]


def resnet(state, pixels):
    """The grid after the stem and after each stage, [B, C, H, W], and what the attention pool gives."""

    def convolved(block, number, grid, **how):
        grid = F.conv2d(grid, state[f"{block}conv{number}.weight"], **how)
        return normed(f"{block}bn{number}.", grid)

    def normed(name, grid):
        mean, variance, gain, bias = (
            state[f"{name}{one}"][:, None, None] for one in ("running_mean", "running_var", "weight", "bias")
        )
        return (grid - mean) / (variance + 1e-5).sqrt() * gain + bias

    def averaged(grid):
        return (grid[..., ::2, ::2] + grid[..., 1::2, ::2] + grid[..., ::2, 1::2] + grid[..., 1::2, 1::2]) / 4

    grid = convolved("", 1, pixels, stride=2, padding=1).relu()
    grid = convolved("", 2, grid, padding=1).relu()
    grids = [averaged(convolved("", 3, grid, padding=1).relu())]
    for stage in range(1, 5):
        grid, number = grids[-1], 0
        while f"layer{stage}.{number}.conv1.weight" in state:
            block = f"layer{stage}.{number}."
            inner = convolved(block, 1, grid).relu()
            inner = convolved(block, 2, inner, padding=1).relu()
            if number == 0:
                if stage > 1:
                    inner, grid = averaged(inner), averaged(grid)
                grid = normed(f"{block}downsample.1.", F.conv2d(grid, state[f"{block}downsample.0.weight"]))
            grid, number = (grid + convolved(block, 3, inner)).relu(), number + 1
        grids.append(grid)
    tokens = grids[-1].flatten(2).transpose(1, 2)
    tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + state["attnpool.positional_embedding"]
    query, key, value = (apply(state, f"attnpool.{name}_proj.", tokens) for name in "qkv")
    gathered = attention(query, key, value, heads=tokens.shape[-1] // 64)
    return grids, apply(state, "attnpool.c_proj.", gathered[:, 0])


def attention(query, key, value, heads, causal=False):
    """[B, Q, width], [B, K, width] twice -> [B, Q, width], one head after another."""
    parts = []
    for q, k, v in zip(*(one.chunk(heads, dim=-1) for one in (query, key, value)), strict=True):
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores).triu(1) > 0, float("-inf"))
        parts.append(scores.softmax(dim=-1) @ v)
    return torch.cat(parts, dim=-1)


def layer_norm(state, name, hidden, eps):
    centred = hidden - hidden.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return centred / (variance + eps).sqrt() * state[f"{name}weight"] + state[f"{name}bias"]


def apply(state, name, hidden):
    return hidden @ state[f"{name}weight"].T + state[f"{name}bias"]


def quick_gelu(hidden):
    return hidden * torch.sigmoid(1.702 * hidden)
