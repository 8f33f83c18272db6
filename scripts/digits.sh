#!/usr/bin/env bash
# Trains a CLIP from random weights on scikit-learn's real handwritten digits, and evaluates it zero-shot, by retrieval
# and by linear probes. Also trains a SimCLR tower, which uses no text. Less than 10 minutes on 2 CPU cores.
#
#   bash scripts/digits.sh           skips finished steps and resumes an interrupted one
#   bash scripts/digits.sh --fresh   deletes data/digits and runs/digits first
#
# Training and all choices of hyperparameters use the first 1,500 scans; scores are on the last 297. Result:
# runs/digits/scores.md.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

DATA=data/digits RUN=runs/digits SIMCLR=runs/digits/simclr CONFIGS=configs/clip
begin "${1:-}" "$DATA" "$RUN"

prepare_environment all
# Both towers are trained at the same time, on one core each.
export OMP_NUM_THREADS=1

started=$SECONDS
step "1/7 write the digits as images" "$DATA/captions.json" \
  python data_tools/real_digits.py --out "$DATA"
if [ ! -e "$SIMCLR/model" ]; then
  mkdir -p "$RUN"
  say "SimCLR, a tower trained without text, runs in the background: progress is in $RUN/simclr.log"
  mmchat train "$CONFIGS/digits_simclr.yaml" --ranks 1 --resume >"$RUN/simclr.log" 2>&1 &
  simclr=$!
  trap 'say_how_to_resume $?; kill "$simclr" 2>/dev/null || true' EXIT
fi
step "2/7 train the tokenizer" "$RUN/tokenizer" \
  python data_tools/train_tokenizer.py "$DATA/captions.json" --out "$RUN/tokenizer"
step "3/7 create a dual encoder with random weights" "$RUN/clip-init" \
  mmchat clip init --vision "$CONFIGS/digits_tower.json" --text "$CONFIGS/digits_text.json" \
  --tokenizer "$RUN/tokenizer" --projection-dim 64 --out "$RUN/clip-init"
step "4/7 train it on images and captions" "$RUN/clip/model" \
  mmchat train "$CONFIGS/digits.yaml" --ranks 1 --resume
step "5/7 evaluate zero-shot classification" "$RUN/zero-shot/scores.json" \
  mmchat clip eval "$RUN/clip/model" "$DATA/test" --out "$RUN/zero-shot" \
  --prompts "a handwritten {}" --prompts "the number {}" --prompts "a scan of a {}"
step "6/7 evaluate text-to-image retrieval" "$RUN/retrieval/scores.json" \
  mmchat clip eval "$RUN/clip/model" "$DATA/test.json" --retrieval --out "$RUN/retrieval"
[ -z "${simclr:-}" ] || wait "$simclr" || die "SimCLR failed; see the end of $RUN/simclr.log"
step "7/7 train linear probes" "$RUN/probes.json" \
  mmchat clip probe "$RUN/clip/model" --train "$DATA/train" --test "$DATA/test" --json "$RUN/probes.json"
step "    of SimCLR's tower, max-pooled patches" "$RUN/probes_simclr.json" \
  mmchat clip probe "$SIMCLR/model" --pool max --train "$DATA/train" --test "$DATA/test" \
  --json "$RUN/probes_simclr.json"
python - "$RUN" <<'PYTHON' | tee "$RUN/scores.md"
import json, sys
from pathlib import Path

run = Path(sys.argv[1])
zero_shot, retrieval = (json.loads((run / name / "scores.json").read_text()) for name in ("zero-shot", "retrieval"))
rows = [("zero-shot top-1, 3 prompts", *(zero_shot[f"top1{end}"] for end in ("", "/low", "/high")))]
name = "text_to_image/recall@1"
rows += [("text to image, recall@1", *(retrieval[f"{name}{end}"] for end in ("", "/low", "/high")))]
probes = [probe for name in ("probes", "probes_simclr") for probe in json.loads((run / f"{name}.json").read_text())]
# Both commands probe raw pixels; dict.fromkeys keeps one row.
rows += dict.fromkeys((f"probe: {probe['features']}", probe["accuracy"], *probe["interval"]) for probe in probes)
print("| last 297 digits | % | 95 % interval |\n|---|---|---|")
for what, value, low, high in rows:
    print(f"| {what} | {100 * value:.1f} | {100 * low:.1f} to {100 * high:.1f} |")
PYTHON
say "finished in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s"
echo "  table   $RUN/scores.md"
echo "  image   $RUN/zero-shot/confusion.png (confusion matrix)"
