#!/usr/bin/env bash
# What Vary's graft buys, in small, on a CPU: the tower that learned to read set beside a CLIP-style one, against that one alone.
# Both frozen; a new language model learns to read with them in the same steps, samples and slots; three seeds. About 18 minutes.
#
#   bash scripts/graft.sh           finished steps are skipped, an interrupted one is resumed
#   bash scripts/graft.sh --fresh   delete runs/graft first
#
# Takes pages and tower from the third stage of scripts/reading.sh, which must have run. Scores are of lines and of a family of
# fonts that no training page has. Result: runs/graft/scores.md.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

DATA=data/reading/128 READING=runs/reading RUN=runs/graft CONFIGS=configs/vary
begin "${1:-}" "$RUN"
[ -e "$READING/128/model" ] || die "$READING/128/model does not exist; run this first: bash scripts/reading.sh"

prepare_environment all
# Two runs at once, on one core each.
export OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1

started=$SECONDS
mkdir -p "$RUN"
step "1/3 a CLIP-style tower begins" "$RUN/clip-init" \
  mmchat clip init --vision "$CONFIGS/graft_clip_tower.json" --text configs/clip/digits_text.json --pool max \
  --tokenizer "$READING/tokenizer" --projection-dim 64 --out "$RUN/clip-init"
step "    it learns from pages and what they say" "$RUN/clip/model" \
  mmchat train "$CONFIGS/graft_clip.yaml" --ranks 1 --resume

# grown NAME SEED TOWERS: one of the six assistants.
grown() {
  local name=$1-$2
  step "    $name begins" "$RUN/$name-init" \
    mmchat init --language "$CONFIGS/small_language.json" --tokenizer "$READING/tokenizer" "${@:3}" --template vary_opt \
    --seed "$2" --out "$RUN/$name-init"
  step "    $name learns to read" "$RUN/$name/model" \
    mmchat train "$CONFIGS/graft.yaml" --ranks 1 --resume --run_dir "$RUN/$name" --model "$RUN/$name-init" --seed "$2" \
    --objective.feature_cache "$RUN/features-$1"
  step "    $name on held-out lines" "$RUN/$name/scores.json" \
    mmchat eval "$RUN/$name/model" "$DATA/heldout.jsonl" --metric ned --blind blank --max-new-tokens 24 --out "$RUN/$name"
}

say "2/3 six assistants; those with CLIP's tower alone beside the others: $RUN/alone.log tells how they go"
(for seed in 0 1 2; do grown alone "$seed" --vision "$RUN/clip/model"; done) >"$RUN/alone.log" 2>&1 &
alone=$!
trap 'kill "$alone" 2>/dev/null || true' EXIT
for seed in 0 1 2; do
  grown both "$seed" --vision "$RUN/clip/model" --vision "$READING/128/model" --fusion channels
done
wait "$alone" || die "a run with CLIP's tower alone failed; the end of $RUN/alone.log says why"

say "3/3 the table"
python - "$RUN" <<'PYTHON' | tee "$RUN/scores.md"
import json, sys
from pathlib import Path
from statistics import mean, stdev

run = Path(sys.argv[1])
print(
    "| towers, both frozen (mean of three seeds, in brackets their standard deviation) | edit distance / longer text "
    "| about a blank page | read exactly, % |\n|---|---|---|---|"
)
for name, what in (("alone", "CLIP-style, 32 x 32 pixels"), ("both", "the same and the grafted one, 128 x 128 pixels")):
    scores = [json.loads((run / f"{name}-{seed}" / "scores.json").read_text()) for seed in range(3)]
    cells = []
    for key, factor, digits in (("ned", 1, 3), ("ned/blind", 1, 3), ("overall", 100, 1)):
        found = [factor * score[key] for score in scores]
        cells.append(f"{mean(found):.{digits}f} ({stdev(found):.{digits}f})")
    print(f"| {what} | " + " | ".join(cells) + " |")
PYTHON
say "finished in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s"
echo "  table   $RUN/scores.md"
