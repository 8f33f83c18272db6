"""`mmchat clip init`, `convert`, `export`: dual encoders begun, taken over, handed on."""

import argparse
from pathlib import Path

from mmchat.cli.init import claim
from mmchat.vision.spec import FITS


def add_commands(add) -> None:
    clip = add(
        "clip init",
        "join a tower and a text encoder into a dual encoder, to be grown by a contrastive run",
        "mmchat clip init --vision configs/quickstart/tower.json --text configs/quickstart/text.json "
        "--tokenizer runs/quickstart/tokenizer --out runs/clip-init",
    )
    clip.add_argument("--vision", required=True, help="tower config .json, or a directory with a tower")
    clip.add_argument(
        "--fit",
        choices=[fit for fit in FITS if fit != "native"],
        help="how images come to the tower; not given: its own",
    )
    clip.add_argument(
        "--text",
        required=True,
        help=".json with values of CLIPTextConfig or, with a model_type, of another text config of transformers; or a "
        "directory or hub name with a text encoder, which keeps its weights",
    )
    clip.add_argument("--tokenizer", required=True, help="directory, hub name, or CLIP's bpe_simple_vocab_16e6.txt.gz")
    clip.add_argument("--projection-dim", type=int, default=512, help="width of the common space")
    clip.add_argument("--pool", default="pooled", choices=["pooled", "max"], help="class token, or maximum of patches")
    clip.add_argument(
        "--text-pool",
        default="last",
        choices=["last", "first", "mean", "padded"],
        help="which tokens stand for a caption; padded: as SigLIP, by the head of its text encoder",
    )
    clip.add_argument("--sigmoid", action="store_true", help="SigLIP's kind, with a bias beside the temperature")
    clip.add_argument(
        "--context-length", type=int, help="tokens a caption may have; not given: the encoder's positions"
    )
    clip.add_argument("--seed", type=int, default=0, help="of new weights")
    clip.add_argument("--out", type=Path, required=True, help="directory to write")
    clip.set_defaults(run=run_clip_init)

    convert = add(
        "clip convert",
        "write a CLIP or SigLIP that others published as a directory of ours, to be trained or used",
        "mmchat clip convert ViT-B-32.pt --tokenizer bpe_simple_vocab_16e6.txt.gz --out runs/clip",
    )
    convert.add_argument(
        "source",
        help="OpenAI's archive or state dict, open_clip's directory or file, transformers' directory or hub name",
    )
    convert.add_argument(
        "--tokenizer", help="directory, hub name, or CLIP's bpe_simple_vocab_16e6.txt.gz; not given: the source's own"
    )
    convert.add_argument(
        "--trust-torchscript", action="store_true", help="open a TorchScript archive, which is a program"
    )
    convert.add_argument("--out", type=Path, required=True, help="directory to write")
    convert.set_defaults(run=run_clip_convert)

    export = add(
        "clip export",
        "write a dual encoder as transformers' CLIP or SigLIP, for programs that know nothing of mmchat",
        "mmchat clip export runs/clip/model --out runs/clip-transformers",
    )
    export.add_argument("source", help="a dual encoder: mmchat's, or what `mmchat clip convert` takes")
    export.add_argument("--out", type=Path, required=True, help="directory to write")
    export.set_defaults(run=run_clip_export)


def run_clip_init(arguments: argparse.Namespace) -> None:
    claim(arguments.out)
    import torch

    from mmchat.contrastive.directory import init_clip, open_text_encoder
    from mmchat.vision import load_tower

    torch.manual_seed(arguments.seed)
    model = init_clip(
        load_tower(arguments.vision, fit=arguments.fit),
        open_text_encoder(arguments.text),
        arguments.tokenizer,
        arguments.projection_dim,
        arguments.pool,
        arguments.out,
        text_pool=arguments.text_pool,
        sigmoid=arguments.sigmoid,
        context_length=arguments.context_length,
    )
    print(f"{arguments.out}: {sum(p.numel() for p in model.parameters()):,} parameters, pool {arguments.pool}")


def run_clip_convert(arguments: argparse.Namespace) -> None:
    claim(arguments.out)
    from mmchat.contrastive.directory import load_clip, load_tokenizer, save_clip

    model = load_clip(arguments.source, trust_torchscript=arguments.trust_torchscript)
    tokenizer = load_tokenizer(arguments.tokenizer or arguments.source, model)
    save_clip(model, tokenizer, arguments.out)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{arguments.out}: {parameters:,} parameters, {len(tokenizer):,} tokens, texts of at most "
        f"{model.config.context_length}"
    )


def run_clip_export(arguments: argparse.Namespace) -> None:
    claim(arguments.out)
    from mmchat.contrastive.directory import load_clip, load_tokenizer
    from mmchat.contrastive.export import export_clip

    model = load_clip(arguments.source, dtype="float32")
    kind = export_clip(model, load_tokenizer(arguments.source, model), arguments.out)
    print(f"{arguments.out}: transformers' {kind.__name__}, its vectors compared with those of {arguments.source}")
