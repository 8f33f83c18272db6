#!/usr/bin/env bash
# Measures the benefit of Vary's grafted tower at a small scale on a CPU: a CLIP-style tower alone, compared with the
# same tower next to the tower that learned to read. Towers are frozen. A new language model learns to read with the
# same steps, samples and image slots; three seeds. About 18 minutes.
#
#   bash scripts/graft.sh           skips finished steps and resumes an interrupted one
#   bash scripts/graft.sh --fresh   deletes runs/graft first
#
# Uses the pages and the tower of the third stage of scripts/reading.sh, which must have run. Scores are on lines and on
# a font family that no training page has. Result: runs/graft/scores.md.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

DATA=data/reading/128 READING=runs/reading RUN=runs/graft CONFIGS=configs/vary
begin "${1:-}" "$RUN"
[ -e "$READING/128/model" ] || die "$READING/128/model does not exist; run this first: bash scripts/reading.sh"

prepare_environment all
# Two runs at the same time, on one core each.
export OMP_NUM_THREADS=1

started=$SECONDS
mkdir -p "$RUN"
step "1/3 create a CLIP-style tower" "$RUN/clip-init" \
  mmchat clip init --vision "$CONFIGS/graft_clip_tower.json" --text configs/clip/digits_text.json --pool max \
  --tokenizer "$READING/tokenizer" --projection-dim 64 --out "$RUN/clip-init"
step "    train it on pages and their text" "$RUN/clip/model" \
  mmchat train "$CONFIGS/graft_clip.yaml" --ranks 1 --resume

# assistant NAME SEED TOWERS: creates, trains and evaluates one of the six assistants.
assistant() {
  local name=$1-$2
  step "    create $name" "$RUN/$name-init" \
    mmchat init --language "$CONFIGS/small_language.json" --tokenizer "$READING/tokenizer" "${@:3}" --template vary_opt \
    --seed "$2" --out "$RUN/$name-init"
  step "    train $name" "$RUN/$name/model" \
    mmchat train "$CONFIGS/graft.yaml" --ranks 1 --resume --run_dir "$RUN/$name" --model "$RUN/$name-init" --seed "$2" \
    --objective.feature_cache "$RUN/features-$1"
  step "    evaluate $name on held-out lines" "$RUN/$name/scores.json" \
    mmchat eval "$RUN/$name/model" "$DATA/heldout.jsonl" --metric ned --blind blank --max-new-tokens 24 \
    --out "$RUN/$name"
}

say "2/3 six assistants; those with CLIP's tower alone run in the background: progress is in $RUN/alone.log"
(for seed in 0 1 2; do assistant alone "$seed" --vision "$RUN/clip/model"; done) >"$RUN/alone.log" 2>&1 &
alone=$!
trap 'say_how_to_resume $?; kill "$alone" 2>/dev/null || true' EXIT
for seed in 0 1 2; do
  assistant both "$seed" --vision "$RUN/clip/model" --vision "$READING/128/model" --fusion channels
done
wait "$alone" || die "a run with CLIP's tower alone failed; see the end of $RUN/alone.log"

say "3/3 the table"
python - "$RUN" <<'PYTHON' | tee "$RUN/scores.md"
import json, sys
from pathlib import Path
from statistics import mean, stdev

run = Path(sys.argv[1])
print(
    "| frozen towers (mean of three seeds, standard deviation in brackets) | edit distance / longer text "
    "| on a blank page | exact match, % |\n|---|---|---|---|"
)
for name, what in (("alone", "CLIP-style, 32 x 32 pixels"), ("both", "the same and the grafted tower, 128 x 128 pixels")):
    scores = [json.loads((run / f"{name}-{seed}" / "scores.json").read_text()) for seed in range(3)]
    cells = []
    for key, factor, digits in (("ned", 1, 3), ("ned/blind", 1, 3), ("overall", 100, 1)):
        found = [factor * score[key] for score in scores]
        cells.append(f"{mean(found):.{digits}f} ({stdev(found):.{digits}f})")
    print(f"| {what} | " + " | ".join(cells) + " |")
PYTHON
say "finished in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s"
echo "  table   $RUN/scores.md"
