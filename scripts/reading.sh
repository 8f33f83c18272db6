#!/usr/bin/env bash
# Trains a small Vary from random weights to read lines of up to 24 characters: less than 30 minutes on 2 CPU cores.
#
#   bash scripts/reading.sh           skips finished steps and resumes an interrupted one
#   bash scripts/reading.sh --fresh   deletes data/reading and runs/reading first
#
# Pages grow from 32 to 256 pixels with the same font size. Scores are on lines and on a font family that no training
# page has; half of the lines are shuffled words or random letters. Result: runs/reading/256/report.html and
# runs/reading/scores.md.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

DATA=data/reading RUN=runs/reading CONFIGS=configs/vary
begin "${1:-}" "$DATA" "$RUN"

prepare_environment all

# draw SIDE PAGES OPTION...: pages of SIDE pixels with a line of up to SIDE / 32 * 3 characters in every 32 pixels.
draw() {
  local side=$1 pages=$2
  step "    $side x $side pixels" "$DATA/$side/preview.png" \
    python data_tools/make_lines.py --out "$DATA/$side" --width "$side" --rows $((side / 32)) \
    --characters $((side * 3 / 32)) --count "$pages" --freedom 0.25 --prompt "Read this." "${@:3}"
}

# stage SIDE BATCH_SIZE STEPS: trains a stage, starting from SIDE-init.
stage() {
  step "    $1 x $1 pixels" "$RUN/$1/model" \
    mmchat train "$CONFIGS/small.yaml" --ranks 2 --resume --run_dir "$RUN/$1" --model "$RUN/$1-init" \
    --data.path "$DATA/$1/train.jsonl" --validation.path "$DATA/$1/dev.jsonl" --batch_size "$2" --steps "$3"
}

# resize FROM TO: converts the model of stage FROM to pages of TO pixels.
resize() {
  step "    from $1 to $2 pixels" "$RUN/$2-init" \
    mmchat resize "$RUN/$1/model" --image-size "$2" --keep-positions --out "$RUN/$2-init"
}

started=$SECONDS
say "1/5 draw pages"
draw 256 20000 --heldout 1000
for pages in "32 60000" "64 26000" "128 16000"; do
  # shellcheck disable=SC2086
  draw $pages --heldout 500 --avoid "$DATA/256/heldout.jsonl"
done
step "2/5 train the tokenizer" "$RUN/tokenizer" \
  python data_tools/train_tokenizer.py "$DATA/256/train.jsonl" --vocab-size 340 --out "$RUN/tokenizer"
step "3/5 create the assistant" "$RUN/32-init" \
  mmchat init --language "$CONFIGS/small_language.json" --tokenizer "$RUN/tokenizer" \
  --vision "$CONFIGS/small_tower.json" --projector mlp2x_gelu --template vary_opt --out "$RUN/32-init"
say "4/5 train it to read"
stage 32 256 300
resize 32 64
stage 64 64 400
resize 64 128
stage 128 32 500
resize 128 256
stage 256 16 1200
step "5/5 evaluate on held-out lines" "$RUN/256/scores.json" \
  mmchat eval "$RUN/256/model" "$DATA/256/heldout.jsonl" --metric ned --blind blank --max-new-tokens 48 --out "$RUN/256"
mmchat report "$RUN/256" --stage "$RUN/32" --stage "$RUN/64" --stage "$RUN/128" >/dev/null
python - "$RUN" <<'PYTHON' | tee "$RUN/scores.md"
import json, sys
from pathlib import Path

scores = json.loads((Path(sys.argv[1]) / "256" / "scores.json").read_text())
families = ("", ", unseen family")


def row(name, kinds):
    """A row for several kinds, weighted by their numbers of lines."""
    lines = [scores[f"kind/{kind}/questions"] for kind in kinds]
    means = []
    for metric in ("ned", "ned/blind"):
        means.append(sum(n * scores[f"kind/{kind}/{metric}"] for n, kind in zip(lines, kinds)) / sum(lines))
    return f"| {name} | {sum(lines)} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |"


print("| held-out lines | number | edit distance / longer text | on a blank page |\n|---|---|---|---|")
for family, where in zip(families, (", fonts as in training", ", unseen font family")):
    for kind in ("english", "shuffled", "letters"):
        print(row(kind + where, [kind + family]))
print(row("**english**", ["english" + family for family in families]))
print(row("**shuffled words and random letters**", [kind + family for kind in ("shuffled", "letters") for family in families]))
PYTHON
say "finished in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s"
echo "  table    $RUN/scores.md
  report   $RUN/256/report.html   (curves of all stages, held-out pages with the model's output)
  try next . .venv/bin/activate
           mmchat ocr $RUN/256/model $DATA/256/heldout --prompt \"Read this.\" --out read.jsonl"
