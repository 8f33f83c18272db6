#!/usr/bin/env bash
# From nothing to an assistant that answers questions about images it has never seen, on a CPU.
#
#   bash scripts/quickstart.sh           finished steps are skipped, an interrupted one is resumed
#   bash scripts/quickstart.sh --fresh   delete data/quickstart and runs/quickstart first
#   bash scripts/quickstart.sh --compare the same, then what stage 1 bought: an assistant whose tower never saw captions,
#                                        trained longer by the time that stage 1 takes; its scores beside the others'
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

DATA=data/quickstart RUN=runs/quickstart CONFIGS=configs/quickstart
case "${1:-}" in
  "") ;;
  --fresh) rm -rf "$DATA" "$RUN" ;;
  --compare) ;;
  -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
  *) die "unknown argument '$1'; expected nothing, --fresh or --compare" ;;
esac

prepare_environment all

# glibc gives large tensors back to the system and faults them in again at every step; keeping them
# doubles the speed of training on a CPU (docs/lab_log.md).
# Threads that wait by spinning starve each other wherever another process is busy.
export OMP_WAIT_POLICY=passive
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=17179869184:glibc.malloc.trim_threshold=34359738368

free_port() { python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
# train RANKS CONFIG [--key value ...]. Two ranks of half the threads do about half as much again as one rank of all; InfoNCE, which
# compares all images of a batch, needs one.
train() {
  local cores
  local ranks=$1
  shift
  cores=$(getconf _NPROCESSORS_ONLN)
  OMP_NUM_THREADS=$((cores > ranks ? cores / ranks : 1)) \
    deepspeed --quiet --num_accelerators "$ranks" --master_port "$(free_port)" scripts/train.py "$@" --resume
}

# assistant TOWER OUT: that tower, a new projector and a new language model.
assistant() {
  mmchat init --language "$CONFIGS/language.json" --tokenizer "$RUN/tokenizer" --vision "$1" \
    --projector pixel_shuffle_2d --template vicuna_v1 --system "" --out "$2"
}

started=$SECONDS
step "1/9 drawing images from real handwritten digits" "$DATA/heldout.json" \
  python data_tools/digit_scenes.py --out "$DATA" --verify "$CONFIGS/heldout.json"
step "2/9 training the tokenizer" "$RUN/tokenizer" \
  python data_tools/train_tokenizer.py "$DATA/statements.json" "$DATA/train.json" --out "$RUN/tokenizer"
step "3/9 a vision tower with random weights" "$RUN/tower-init" \
  mmchat clip init --vision "$CONFIGS/tower.json" --text "$CONFIGS/text.json" --tokenizer "$RUN/tokenizer" \
  --pool max --projection-dim 128 --out "$RUN/tower-init"
step "4/9 stage 1: the tower learns to see, from images and captions" "$RUN/tower/model" \
  train 1 "$CONFIGS/tower.yaml"
step "5/9 an assistant: that tower, a new projector, a new language model" "$RUN/init" \
  assistant "$RUN/tower/model" "$RUN/init"
step "6/9 stage 2: the projector and the language model learn to describe" "$RUN/projector/model" \
  train 2 "$CONFIGS/projector.yaml"
step "7/9 stage 3: conversations" "$RUN/model" \
  train 2 "$CONFIGS/sft.yaml"
step "8/9 questions about held-out handwriting" "$RUN/scores.json" \
  mmchat eval "$RUN/model" "$DATA/heldout.json" --out "$RUN"
step "9/9 captions of held-out images" "$RUN/captions.jsonl" \
  mmchat caption "$RUN/model" "$DATA/heldout" --out "$RUN/captions.jsonl" --batch-size 32
head -n 5 "$RUN/captions.jsonl"

beside=()
if [ "${1:-}" = --compare ]; then
  # Stage 1 takes a third of the time of stage 3's 2,700 steps. A tower that is new learns as fast as the other new parts.
  WITHOUT=$RUN/without_stage_1
  step "compare 1/4 an assistant with a tower of random weights" "$WITHOUT/init" \
    assistant "$RUN/tower-init" "$WITHOUT/init"
  step "compare 2/4 stage 2 of that" "$WITHOUT/projector/model" \
    train 2 "$CONFIGS/projector.yaml" --model "$WITHOUT/init" --run_dir "$WITHOUT/projector" --trainable.towers full
  step "compare 3/4 stage 3 of that, a third longer" "$WITHOUT/assistant/model" \
    train 2 "$CONFIGS/sft.yaml" --model "$WITHOUT/projector/model" --run_dir "$WITHOUT/assistant" --trainable.towers full \
    --steps 3600
  step "compare 4/4 the same questions" "$WITHOUT/assistant/scores.json" \
    mmchat eval "$WITHOUT/assistant/model" "$DATA/heldout.json" --out "$WITHOUT/assistant"
fi
if [ -e "$RUN/without_stage_1/assistant/scores.json" ]; then
  beside=(--beside "without stage 1=$RUN/without_stage_1/assistant")
fi
mmchat report "$RUN" --stage "$RUN/tower" --stage "$RUN/projector" "${beside[@]}" >/dev/null

say "finished in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s"
cat <<EOF
  report    $RUN/report.html   (curves, scores, held-out images with answers)
  scores    $RUN/scores.json
  model     $RUN/model

  bash scripts/quickstart.sh --compare   adds what stage 1 bought to the report (about as long again)

Try next (. .venv/bin/activate first):
  mmchat chat $RUN/model --image $DATA/heldout/000000.png "How many digits are there?"
  python demo/app.py                                  chat about images in the browser
  mmchat train configs/quickstart/sft.yaml --help     every key of a run
EOF
