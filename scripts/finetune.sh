#!/usr/bin/env bash
# Fine-tunes an assistant of the quickstart on three kinds of question that it has not seen: all weights, LoRA and DoRA.
#
#   bash scripts/finetune.sh             skips finished steps and resumes an interrupted one
#   bash scripts/finetune.sh --seed 3    another seed for orders and adapters, from runs/quickstart-3, in runs/finetune-3
#   bash scripts/finetune.sh --steps 4   so many steps of each training, to try the script out
#
# Needs data and stage 2 of `bash scripts/quickstart.sh` (with the same seed). The start is stages 3 and 4 without the
# three kinds; its scores stand beside those of the three trainings. Result: scores.md and runs.html in the folder.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

DATA=data/quickstart BASE=runs/quickstart RUN=runs/finetune CONFIGS=configs/quickstart/finetune SEED=0 STEPS=()
while [ $# -gt 0 ]; do
  case "$1" in
    --seed | --steps)
      [[ "${2:-}" =~ ^[0-9]+$ ]] || die "$1 needs a number, found '${2:-}'"
      if [ "$1" = --seed ]; then SEED=$2; else STEPS=(--steps "$2"); fi
      shift
      ;;
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) die "unknown argument '$1'; expected nothing, --seed NUMBER or --steps NUMBER" ;;
  esac
  shift
done
if [ "$SEED" != 0 ]; then BASE=$BASE-$SEED RUN=$RUN-$SEED; fi
for needed in "$DATA/heldout.json" "$BASE/projector/model"; do
  [ -e "$needed" ] || die "$needed does not exist; run bash scripts/quickstart.sh first (with the same --seed)"
done

prepare_environment all

choose_precision

# train NAME MODEL: the config NAME from MODEL, into $RUN/NAME.
train() {
  mmchat train "$CONFIGS/$1.yaml" --model "$2" --run_dir "$RUN/$1" --ranks 2 --seed "$SEED" "${precision[@]}" \
    "${STEPS[@]}" --resume
}

step "1/9 stage 3 without one of the kinds" "$RUN/lookups/model" \
  train lookups "$BASE/projector/model"
step "2/9 stage 4 without the three kinds: the start" "$RUN/start/model" \
  train start "$RUN/lookups/model"
step "3/9 evaluate the start" "$RUN/start/scores.json" \
  mmchat eval "$RUN/start/model" "$DATA/heldout.json" --out "$RUN/start"
number=4
for name in full lora dora; do
  step "$number/9 train on the three kinds: $name" "$RUN/$name/model" \
    train "$name" "$RUN/start/model"
  step "$((number + 1))/9 evaluate" "$RUN/$name/scores.json" \
    mmchat eval "$RUN/$name/model" "$DATA/heldout.json" --out "$RUN/$name"
  number=$((number + 2))
done
mmchat report "$RUN/start" "$RUN/full" "$RUN/lora" "$RUN/dora" --out "$RUN/runs.html" >/dev/null
python - "$RUN" <<'PYTHON' | tee "$RUN/scores.md"
import json, math, sys
from pathlib import Path

import yaml
from safetensors import safe_open

run = Path(sys.argv[1])
names = ["start", "full", "lora", "dora"]
scores = {name: json.loads((run / name / "scores.json").read_text()) for name in names}
task = yaml.safe_load((run / "lora" / "config.yaml").read_text())["data"]["kinds"]
kinds = [key for key in scores["start"] if key.startswith("kind/") and key.count("/") == 1]


def count(file):
    with safe_open(file, "pt") as opened:
        return sum(math.prod(opened.get_slice(key).get_shape()) for key in opened.keys())


def mean(of, chosen):
    asked = sum(of[f"{key}/questions"] for key in chosen)
    return 100 * sum(of[key] * of[f"{key}/questions"] for key in chosen) / asked


whole = count(run / "start" / "model" / "model.safetensors")
print("| exact match, % | trained | the three kinds | other kinds | " + " | ".join(task) + " |")
print("|---" * (4 + len(task)) + "|")
for name in names:
    adapter = run / name / "adapter" / "adapter_model.safetensors"
    share = f"{100 * count(adapter) / whole:.1f} %" if adapter.exists() else "all" if name == "full" else "-"
    of, chosen = scores[name], [f"kind/{kind}" for kind in task]
    means = (mean(of, chosen), mean(of, [key for key in kinds if key not in chosen]))
    print(f"| {name} | {share} | " + " | ".join(f"{value:.1f}" for value in (*means, *(100 * of[k] for k in chosen))) + " |")
PYTHON
say "table $RUN/scores.md, page $RUN/runs.html"
