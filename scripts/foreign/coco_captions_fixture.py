"""Writes what pycocoevalcap makes of the sentences and captions of a fixture back into it. Imports no mmchat."""

import json
import sys
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer


def tokenized(groups):
    return PTBTokenizer().tokenize({key: [{"caption": text} for text in texts] for key, texts in enumerate(groups)})


def main(path):
    fixture = json.loads(path.read_text(encoding="utf-8"))
    sentences = [sentence for sentence, _ in fixture["tokens"]]
    tokens = tokenized([[sentence] for sentence in sentences])
    fixture["tokens"] = [[sentence, tokens[number][0]] for number, sentence in enumerate(sentences)]
    right = tokenized([one["references"] for one in fixture["corpus"]])
    found = tokenized([[one["prediction"]] for one in fixture["corpus"]])
    cider, each = Cider().compute_score(right, found)
    bleu, _ = Bleu(4).compute_score(right, found, verbose=0)
    fixture |= {"cider": float(cider), "cider_of_each": each.tolist(), "bleu": list(map(float, bleu))}
    path.write_text(json.dumps(fixture, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"{path}: CIDEr-D {cider:.6f}, BLEU {bleu}")


main(Path(sys.argv[1]))
