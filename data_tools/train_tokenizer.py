"""Train a small SentencePiece model on conversations, and save it as a fast Llama tokenizer.

    python data_tools/train_tokenizer.py data/digits/train.json data/digits/captions.json --out data/tokenizer

BPE with byte fallback and split digits, as in Llama: any text can be encoded, and each digit is one token. `<s>` is
BOS, `</s>` is EOS, and `<unk>`, which is never produced because of byte fallback, is the padding token. The same files
give the same tokenizer.
"""

import argparse
import io
import json
import tempfile
from pathlib import Path

import sentencepiece
from transformers import AutoTokenizer, LlamaTokenizer

from mmchat.command_line.errors import reporting
from mmchat.errors import UserError
from mmchat.files import read_json_lines
from mmchat.progress import track

# Text that conversation templates add around the turns.
TEMPLATE_WORDS = "USER: ASSISTANT: SYSTEM: Human: Assistant: A chat between a user and an assistant."


def texts(files: list[Path]) -> list[str]:
    """Texts of all turns, without the image placeholder."""
    turns = []
    for file in files:
        records = read_json_lines(file) if file.suffix == ".jsonl" else json.loads(file.read_text())
        for record in track(records, f"reading {file.name}"):
            if "conversations" not in record:
                raise UserError(
                    f"{file}: record {record.get('id')!r} has no `conversations`; LLaVA's JSON format is expected."
                )
            turns += [turn["value"].replace("<image>", "").strip() for turn in record["conversations"]]
    return turns


def train(sentences: list[str], vocab_size: int, out: Path) -> None:
    """Write `out/tokenizer.json` and its config; AutoTokenizer loads the folder as a fast tokenizer."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences + [TEMPLATE_WORDS] * (len(sentences) // 4 + 1)),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.model").write_bytes(model.getvalue())
        tokenizer = LlamaTokenizer.from_pretrained(
            folder, unk_token="<unk>", bos_token="<s>", eos_token="</s>", add_bos_token=True
        )
    tokenizer.pad_token = tokenizer.unk_token
    tokenizer.save_pretrained(out)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help=".json or .jsonl files in LLaVA's format")
    parser.add_argument("--out", type=Path, required=True, help="output folder of the tokenizer")
    parser.add_argument("--vocab-size", type=int, default=512, help="maximum vocabulary size (default: 512)")
    arguments = parser.parse_args(argv)
    train(texts(arguments.files), arguments.vocab_size, arguments.out)
    tokenizer = AutoTokenizer.from_pretrained(arguments.out)
    assert tokenizer.is_fast
    print(f"{len(tokenizer)} tokens in {arguments.out}")


if __name__ == "__main__":
    with reporting():
        main()
