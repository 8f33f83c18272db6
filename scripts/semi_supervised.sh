#!/usr/bin/env bash
# Semi-supervised learning on scikit-learn's real handwritten digits: SimCLR without labels, fine-tuned with 1 %, 10 %
# and all of them, then distilled over all images. Each is compared with training on those labels alone (SimCLR v2,
# arXiv:2006.10029).
#
#   bash scripts/semi_supervised.sh           skips finished steps and resumes an interrupted one
#   bash scripts/semi_supervised.sh --fresh   deletes runs/digits/simclr and runs/semi_supervised first
#
# Training and all choices of hyperparameters use the first 1,500 scans; scores are on the last 297. Result: table and
# image in runs/semi_supervised. Two runs are trained at the same time.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

DATA=data/digits SIMCLR=runs/digits/simclr RUN=runs/semi_supervised
begin "${1:-}" "$SIMCLR" "$RUN"

prepare_environment all
export OMP_NUM_THREADS=1

# start NAME TOWER: creates a classifier from a tower and a new head, from which runs start.
start() {
  step "2/4 create the classifier of the $1 tower" "$RUN/$1" \
    mmchat vision init "$2" --classes "$DATA/train" --pool max --out "$RUN/$1"
}

# classify NAME MODEL DATA SEED KEYS...: one training run.
classify() {
  local name=$1 model=$2 data=$3 seed=$4
  shift 4
  step "3/4 $name" "$RUN/$name/model" mmchat train configs/vision/digits.yaml --ranks 1 --resume --run_dir "$RUN/$name" \
    --model "$model" --data.path "$data" --seed "$seed" "$@"
}

# compare COUNT SEED LABELS KEYS...: trains on labels alone, fine-tunes SimCLR with them, and distils the result into a
# student on all images without labels.
compare() {
  local name=$1/$2 seed=$2 labels=$3
  shift 3
  classify "$name/alone" "$RUN/random" "$labels" "$seed" "$@"
  classify "$name/tuned" "$RUN/simclr" "$labels" "$seed" "$@"
  classify "$name/student" "$RUN/simclr" "$DATA/train" "$seed" --steps 150 \
    --objective.distillation.teacher "$RUN/$name/tuned/model" --objective.distillation.weight 1 --objective.distillation.temperature 1
}

# few COUNT SEED KEYS...: the same with COUNT labels, drawn with the seed.
few() {
  local labels=$RUN/labels/$1-$2.jsonl
  step "3/4 $1 labels, drawn with seed $2" "$labels" \
    python data_tools/labelled_subset.py "$DATA/train" --count "$1" --seed "$2" --out "$labels"
  compare "$1" "$2" "$labels" "${@:3}"
}

started=$SECONDS
step "1/4 write the digits as images" "$DATA/captions.json" python data_tools/real_digits.py --out "$DATA"
step "2/4 train SimCLR, a tower without labels" "$SIMCLR/model" \
  mmchat train configs/clip/digits_simclr.yaml --ranks 1 --resume
start random configs/clip/digits_simclr_tower.json
start simclr "$SIMCLR/model"
# Two runs at the same time, one thread each. The batch size is at most the number of labels.
say "3/4 15 labels, in the background: progress is in $RUN/15.log"
(for seed in 0 1 2; do few 15 "$seed" --batch_size 15 --steps 150; done) >"$RUN/15.log" 2>&1 &
fewest=$!
few 150 0
compare 1500 0 "$DATA/train"
few 150 1
few 150 2
wait "$fewest" || die "a run with 15 labels failed; see the end of $RUN/15.log"
say "4/4 the table"
python - "$RUN" <<'PYTHON'
import json, sys
from pathlib import Path
from statistics import mean

from matplotlib import pyplot as plt
from mmchat.evaluation.metrics import share_interval

run, total = Path(sys.argv[1]), 297
shares = {"15": "1 % (15)", "150": "10 % (150)", "1500": "100 % (1,500)"}
columns = {"alone": "labels alone", "tuned": "SimCLR, fine-tuned", "student": "and distilled"}
lines = ["| labels | " + " | ".join(columns.values()) + " |", "|---" * 4 + "|"]
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for place, (share, name) in enumerate(shares.items()):
    cells = []
    for number, column in enumerate(columns):
        files = sorted(run.glob(f"{share}/*/{column}/metrics.jsonl"))
        found = [json.loads(file.read_text().splitlines()[-1])["validation_top1"] for file in files]
        middle, (low, high) = mean(found), share_interval(round(mean(found) * total), total)
        cells.append(f"{100 * middle:.1f} ({100 * low:.1f} to {100 * high:.1f})")
        if len(found) > 1:
            cells[-1] += f"; {100 * min(found):.1f} to {100 * max(found):.1f}"
        x = place + 0.27 * (number - 1)
        axes.bar(x, 100 * middle, 0.25, color=f"C{number}", label=columns[column] if place == 0 else None)
        axes.errorbar(x, 100 * middle, [[100 * (middle - low)], [100 * (high - middle)]], color="black", capsize=3)
        axes.plot([x] * len(found), [100 * one for one in found], "o", color="black", markersize=3)
    lines.append(f"| {name} | " + " | ".join(cells) + " |")
axes.set(xticks=range(3), xticklabels=[f"{name} labels" for name in shares.values()], ylabel="accuracy on 297 digits, %")
axes.set_ylim(0, 100)
figure.legend(loc="outside upper center", ncols=3, frameon=False)
figure.savefig(run / "scores.png", dpi=130)
lines += ["", "Accuracy on the last 297 digits in % (95 % interval). For several draws of the labels: mean, then lowest to highest."]
(run / "scores.md").write_text("\n".join(lines) + "\n")
print("\n".join(lines))
PYTHON
say "finished in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s"
echo "  table   $RUN/scores.md"
echo "  image   $RUN/scores.png"
