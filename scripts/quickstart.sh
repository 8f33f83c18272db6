#!/usr/bin/env bash
# Trains an assistant from random weights on a CPU. It answers questions about images that are not in its training data.
#
#   bash scripts/quickstart.sh             skips finished steps and resumes an interrupted one
#   bash scripts/quickstart.sh --fresh     deletes data/quickstart and the run first
#   bash scripts/quickstart.sh --compare   also measures the benefit of stage 1: trains an assistant whose tower has not
#                                          seen captions, longer by the time of stage 1, and reports both scores
#   bash scripts/quickstart.sh --seed 3    another seed for all random weights and orders, in runs/quickstart-3
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

DATA=data/quickstart RUN=runs/quickstart CONFIGS=configs/quickstart SEED=0 FRESH= COMPARE=
while [ $# -gt 0 ]; do
  case "$1" in
    --fresh) FRESH=yes ;;
    --compare) COMPARE=yes ;;
    --seed)
      [[ "${2:-}" =~ ^[0-9]+$ ]] || die "--seed needs a number from 0, found '${2:-}'"
      SEED=$2
      shift
      ;;
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) die "unknown argument '$1'; expected nothing, --fresh, --compare or --seed NUMBER" ;;
  esac
  shift
done
AGAIN="bash scripts/quickstart.sh"
if [ "$SEED" != 0 ]; then RUN=$RUN-$SEED AGAIN="$AGAIN --seed $SEED"; fi
resume_with "$AGAIN${COMPARE:+ --compare}"
if [ -n "$FRESH" ]; then rm -rf "$DATA" "$RUN"; fi

prepare_environment all

choose_precision

# train RANKS CONFIG [--key value ...]. Two ranks with half the threads each are about 1.5 times as fast as one rank.
# InfoNCE compares all images of a batch, so stage 1 uses one rank.
train() {
  local ranks=$1
  shift
  mmchat train "$@" --ranks "$ranks" --seed "$SEED" "${precision[@]}" --resume
}

# assistant TOWER OUT: an assistant of the tower, a new projector and a new language model.
assistant() {
  mmchat init --language "$CONFIGS/language.json" --tokenizer "$RUN/tokenizer" --vision "$1" \
    --projector pixel_shuffle_2d --template vicuna_v1 --system "" --seed "$SEED" --out "$2"
}

started=$SECONDS
step "1/10 draw images of real handwritten digits" "$DATA/heldout.json" \
  python data_tools/digit_scenes.py --out "$DATA" --verify "$CONFIGS/heldout.json"
step "2/10 train the tokenizer" "$RUN/tokenizer" \
  python data_tools/train_tokenizer.py "$DATA/statements.json" "$DATA/train.json" --out "$RUN/tokenizer"
step "3/10 create a vision tower with random weights" "$RUN/tower-init" \
  mmchat clip init --vision "$CONFIGS/tower.json" --text "$CONFIGS/text.json" --tokenizer "$RUN/tokenizer" \
  --pool max --projection-dim 128 --seed "$SEED" --out "$RUN/tower-init"
step "4/10 stage 1: train the tower on images and captions" "$RUN/tower/model" \
  train 1 "$CONFIGS/tower.yaml" --model "$RUN/tower-init" --run_dir "$RUN/tower"
step "5/10 create an assistant: that tower, a new projector, a new language model" "$RUN/init" \
  assistant "$RUN/tower/model" "$RUN/init"
step "6/10 stage 2: train the projector and the language model on descriptions" "$RUN/projector/model" \
  train 2 "$CONFIGS/projector.yaml" --model "$RUN/init" --run_dir "$RUN/projector"
step "7/10 stage 3: teach it to find a digit by its value" "$RUN/lookups/model" \
  train 2 "$CONFIGS/lookups.yaml" --model "$RUN/projector/model" --run_dir "$RUN/lookups"
step "8/10 stage 4: train the assistant on conversations" "$RUN/model" \
  train 2 "$CONFIGS/sft.yaml" --model "$RUN/lookups/model" --run_dir "$RUN"
step "9/10 evaluate on questions about held-out handwriting" "$RUN/scores.json" \
  mmchat eval "$RUN/model" "$DATA/heldout.json" --out "$RUN"
say "10/10 caption held-out images"  # an interrupted one continues, a finished one is skipped
mmchat caption "$RUN/model" "$DATA/heldout" --out "$RUN/captions.jsonl" --batch-size 32
head -n 5 "$RUN/captions.jsonl"

beside=()
if [ -n "$COMPARE" ]; then
  # Stage 1 takes about half of the time of stage 4. The new tower is trained at the rate of the other new parts.
  WITHOUT=$RUN/without_stage_1
  step "compare 1/5 create an assistant with a random tower" "$WITHOUT/init" \
    assistant "$RUN/tower-init" "$WITHOUT/init"
  step "compare 2/5 stage 2 of this assistant" "$WITHOUT/projector/model" \
    train 2 "$CONFIGS/projector.yaml" --model "$WITHOUT/init" --run_dir "$WITHOUT/projector" --trainable.towers full
  step "compare 3/5 stage 3 of this assistant" "$WITHOUT/lookups/model" \
    train 2 "$CONFIGS/lookups.yaml" --model "$WITHOUT/projector/model" --run_dir "$WITHOUT/lookups" \
    --trainable.towers full
  step "compare 4/5 stage 4 of this assistant, half as long again" "$WITHOUT/assistant/model" \
    train 2 "$CONFIGS/sft.yaml" --model "$WITHOUT/lookups/model" --run_dir "$WITHOUT/assistant" --trainable.towers full \
    --steps 4500
  step "compare 5/5 evaluate on the same questions" "$WITHOUT/assistant/scores.json" \
    mmchat eval "$WITHOUT/assistant/model" "$DATA/heldout.json" --out "$WITHOUT/assistant"
fi
if [ -e "$RUN/without_stage_1/assistant/scores.json" ]; then
  beside=(--beside "without stage 1=$RUN/without_stage_1/assistant")
fi
mmchat report "$RUN" --stage "$RUN/tower" --stage "$RUN/projector" --stage "$RUN/lookups" \
  "${beside[@]}" >/dev/null

say "finished in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s"
cat <<EOF
  report    $RUN/report.html   (curves, scores, held-out images with answers)
  scores    $RUN/scores.json
  model     $RUN/model

  $AGAIN --compare   adds the benefit of stage 1 to the report (takes about as long again)

Try next (. .venv/bin/activate first):
  mmchat chat $RUN/model --image $DATA/heldout/000000.png "How many digits are there?"
  mmchat demo --model $RUN/model   chat about images in the browser
  mmchat train configs/quickstart/sft.yaml --help     all config keys
EOF
