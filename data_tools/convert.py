"""Convert published data sets to LLaVA's format as JSONL, one record per line.

    python data_tools/convert.py KIND --input FILE ... --out OUT.jsonl [--image-root FOLDER]

Files are streamed. After an interruption the same command resumes. With --image-root, every image must exist. Items
that cannot be converted are skipped, counted, and listed with the reason in OUT.jsonl.skipped. Images are not moved;
paths are relative to the image root (only `hf` writes images, below it).
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from convert_readers import captions, hugging_face, llava, questions
from convert_readers.interface import ConversionJob, Converted, Skipped
from convert_writer import summary, write_records

from mmchat.command_line.arguments import OneLineParser
from mmchat.command_line.errors import reporting
from mmchat.errors import UserError, nearest
from mmchat.progress import progress_bar

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Kind:
    """A published data format.

    Attributes:
        wants: the expected files.
        example: example arguments.
        options: names in `OPTIONS` that it accepts.
        passes: how often it reads its input.
    """

    read: Callable[[ConversionJob], Iterator[Converted | Skipped]]
    wants: str
    example: str
    options: tuple[str, ...] = ()
    passes: int = 1


_QUESTIONS = ("--max-turns", "--prompt")
_COLUMNS = ("--image-column", "--caption-column")
KINDS = {
    "llava_pretrain": Kind(
        llava.with_images,
        "LLaVA-Pretrain 558K: blip_laion_cc_sbu_558k.json",
        "--input blip_laion_cc_sbu_558k.json --image-root LLaVA-Pretrain/images",
    ),
    "llava_instruct": Kind(
        llava.mixed,
        "LLaVA-1.5's mix: llava_v1_5_mix665k.json, over coco/, gqa/, ocr_vqa/, textvqa/ and vg/",
        "--input llava_v1_5_mix665k.json --image-root playground/data",
    ),
    "sharegpt4v": Kind(
        llava.with_images,
        "ShareGPT4V: sharegpt4v_instruct_gpt4-vision_cap100k.json, share-captioner_coco_lcs_sam_1246k_1107.json",
        "--input sharegpt4v_instruct_gpt4-vision_cap100k.json --image-root ShareGPT4V/data",
    ),
    "coco_captions": Kind(
        captions.coco,
        "COCO: captions_train2017.json, or of 2014",
        "--input annotations/captions_train2017.json --image-root coco/train2017",
        ("--prompt",),
        passes=2,
    ),
    "vqav2": Kind(
        questions.vqav2,
        "VQAv2: v2_OpenEnded_mscoco_train2014_questions.json and v2_mscoco_train2014_annotations.json",
        "--input v2_OpenEnded_mscoco_train2014_questions.json v2_mscoco_train2014_annotations.json "
        "--image-root coco/train2014",
        _QUESTIONS,
    ),
    "gqa": Kind(
        questions.gqa,
        "GQA: train_balanced_questions.json",
        "--input train_balanced_questions.json --image-root gqa/images",
        _QUESTIONS,
    ),
    "textvqa": Kind(
        questions.textvqa,
        "TextVQA: TextVQA_0.5.1_train.json",
        "--input TextVQA_0.5.1_train.json --image-root textvqa/train_images",
        _QUESTIONS,
    ),
    "ocrvqa": Kind(
        questions.ocrvqa,
        "OCR-VQA: dataset.json",
        "--input dataset.json --split train --image-root ocr_vqa/images",
        (*_QUESTIONS, "--split"),
    ),
    "docvqa": Kind(
        questions.docvqa,
        "DocVQA: train_v1.0.json or train_v1.0_withQT.json",
        "--input train_v1.0_withQT.json --image-root docvqa/train",
        _QUESTIONS,
    ),
    "chartqa": Kind(
        questions.chartqa,
        "ChartQA: train_human.json, train_augmented.json, next to png/",
        '--input "ChartQA Dataset/train/train_human.json" --image-root "ChartQA Dataset/train"',
        _QUESTIONS,
    ),
    "csv": Kind(
        captions.table,
        "any .csv or .tsv with a header and columns for image path and caption",
        "--input captions.csv --image-column photo --caption-column alt --image-root photos",
        ("--prompt", *_COLUMNS),
    ),
    "hf": Kind(
        hugging_face.rows,
        "a Hugging Face data set: a folder of save_to_disk, or parquet files; images go below --image-root",
        "--input the_cauldron/ai2d --image-root images",
        ("--prompt", "--split", *_COLUMNS),
    ),
}
OPTIONS = {
    "--max-turns": {"type": int, "metavar": "N", "help": "maximum questions in a record; default: all consecutive ones"
                    " about one image, as in LLaVA's 665K"},
    "--prompt": {"metavar": "TEXT", "help": 'instruction instead of LLaVA\'s; "" for none'},
    "--split": {"default": "train", "metavar": "NAME", "help": "split to convert (default: train)"},
    "--image-column": {"metavar": "NAME", "help": "image column; by default found by common names"},
    "--caption-column": {"metavar": "NAME", "help": "text column; by default found by common names"},
}  # fmt: skip


def _parser(prog: str) -> OneLineParser:
    kinds = "\n".join(f"  {name:15} {kind.wants}\n{'':18}e.g. {name} {kind.example}" for name, kind in KINDS.items())
    epilog = f"kinds (KIND --help for its options):\n{kinds}"
    raw = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(prog=prog, description=__doc__, epilog=epilog, formatter_class=raw)
    commands = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for name, kind in KINDS.items():
        about = f"{kind.wants}\n\n  python data_tools/convert.py {name} {kind.example} --out OUT.jsonl"
        command = commands.add_parser(name, description=about, formatter_class=raw)
        command.add_argument("--input", type=Path, nargs="+", required=True, help="input file or files")
        command.add_argument("--out", type=Path, required=True, help=".jsonl file to write")
        command.add_argument("--image-root", type=Path, help="folder of the images; each must exist")
        command.add_argument("--strict", action="store_true", help="stop at the first item that cannot be converted")
        for option in kind.options:
            command.add_argument(option, **OPTIONS[option])
    return parser


def _parse_arguments(argv: list[str], prog: str) -> argparse.Namespace:
    if argv and not argv[0].startswith("-") and argv[0] not in KINDS:
        closest = nearest(argv[0].lower(), KINDS)
        hint = f"the closest is {closest!r} (see `{prog} --help`)" if closest else f"there are {', '.join(KINDS)}"
        raise UserError(f"there is no kind {argv[0]!r}; {hint}")
    arguments = _parser(prog).parse_args(argv)
    if arguments.out.suffix != ".jsonl":
        raise UserError(f"--out {arguments.out}: expected a name that ends in .jsonl")
    if arguments.image_root and arguments.kind != "hf" and not arguments.image_root.is_dir():
        raise UserError(f"--image-root {arguments.image_root} is not a folder")
    if getattr(arguments, "max_turns", None) is not None and arguments.max_turns < 1:
        raise UserError(f"--max-turns {arguments.max_turns}: expected 1 or more")
    return arguments


@contextmanager
def _progress(name: str, inputs: list[Path], passes: int) -> Iterator[tuple[Callable, Callable]]:
    """Two callbacks: one takes the number of bytes read, one a status line."""
    for path in inputs:
        if not path.exists():
            raise UserError(f"{path} does not exist")
    total = passes * sum(path.stat().st_size for path in inputs)
    read = 0
    with progress_bar(f"converting {name}, MB", total=-(-total // MEGABYTE)) as bar:

        def advance(number: int) -> None:
            nonlocal read
            before, read = read, read + number
            bar.advance(-(-read // MEGABYTE) + (-before // MEGABYTE))

        yield advance, lambda note: bar.advance(0, note)


def main(argv: list[str] | None = None, prog: str = "convert.py") -> None:
    options = vars(_parse_arguments(sys.argv[1:] if argv is None else argv, prog))
    name, inputs, strict = options.pop("kind"), options.pop("input"), options.pop("strict")
    kind = KINDS[name]
    if name == "hf":
        inputs = hugging_face.data_files(inputs, options["split"])
    with _progress(name, inputs, kind.passes) as (advance, report):
        job = ConversionJob(inputs, advance=advance, **options)
        tally = write_records(kind.read(job), job.out, job.image_root, strict, report)
    print(summary(tally, job.out, job.image_root))


if __name__ == "__main__":
    with reporting():
        main()
