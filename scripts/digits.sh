#!/usr/bin/env bash
# CLIP from nothing on scikit-learn's real handwritten digits: grown, asked in words, probed. A few minutes on 2 CPU cores.
#
#   bash scripts/digits.sh           finished steps are skipped, an interrupted one is resumed
#   bash scripts/digits.sh --fresh   delete data/digits and runs/digits first
#
# The first 1,500 scans are for learning and for every choice; all scores are of the last 297. Result: runs/digits/scores.md.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

DATA=data/digits RUN=runs/digits CONFIGS=configs/clip
case "${1:-}" in
  "") ;;
  --fresh) rm -rf "$DATA" "$RUN" ;;
  -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
  *) die "unknown argument '$1'; expected nothing or --fresh" ;;
esac

prepare_environment data
export OMP_WAIT_POLICY=passive

started=$SECONDS
step "1/7 the digits as pictures" "$DATA/captions.json" \
  python data_tools/real_digits.py --out "$DATA"
step "2/7 training the tokenizer" "$RUN/tokenizer" \
  python data_tools/train_tokenizer.py "$DATA/captions.json" --out "$RUN/tokenizer"
step "3/7 a dual encoder with random weights" "$RUN/clip-init" \
  mmchat clip init --vision "$CONFIGS/digits_tower.json" --text "$CONFIGS/digits_text.json" \
  --tokenizer "$RUN/tokenizer" --projection-dim 64 --out "$RUN/clip-init"
step "4/7 it learns from pictures and captions" "$RUN/clip/model" \
  mmchat train "$CONFIGS/digits.yaml" --ranks 1 --resume
step "5/7 zero-shot: classes told in words" "$RUN/zero-shot/scores.json" \
  mmchat clip eval "$RUN/clip/model" "$DATA/test" --out "$RUN/zero-shot" \
  --prompts "a handwritten {}" --prompts "the number {}" --prompts "a scan of a {}"
step "6/7 pictures found by captions" "$RUN/retrieval/scores.json" \
  mmchat clip eval "$RUN/clip/model" "$DATA/test.json" --retrieval --out "$RUN/retrieval"
step "7/7 linear probes" "$RUN/probes.json" \
  mmchat clip probe "$RUN/clip/model" --train "$DATA/train" --test "$DATA/test" --json "$RUN/probes.json"
python - "$RUN" <<'PYTHON' | tee "$RUN/scores.md"
import json, sys
from pathlib import Path

run = Path(sys.argv[1])
zero_shot, retrieval = (json.loads((run / name / "scores.json").read_text()) for name in ("zero-shot", "retrieval"))
rows = [("zero-shot top-1, 3 prompts", *(zero_shot[f"top1{end}"] for end in ("", "/low", "/high")))]
name = "text_to_image/recall@1"
rows += [("text to image, recall@1", *(retrieval[f"{name}{end}"] for end in ("", "/low", "/high")))]
rows += [(f"probe: {r['features']}", r["accuracy"], *r["interval"]) for r in json.loads((run / "probes.json").read_text())]
print("| last 297 digits | % | 95 % interval |\n|---|---|---|")
for what, value, low, high in rows:
    print(f"| {what} | {100 * value:.1f} | {100 * low:.1f} to {100 * high:.1f} |")
PYTHON
say "finished in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s"
echo "  table   $RUN/scores.md"
echo "  picture $RUN/zero-shot/confusion.png (what each digit was taken for)"
