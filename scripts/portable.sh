#!/usr/bin/env bash
# Trains an assistant of the quickstart's data whose shape other programs have, exports it, and compares their answers:
# transformers, vLLM and llama.cpp beside mmchat, all on a CPU, in fp32.
#
#   bash scripts/portable.sh           skips finished steps and resumes an interrupted one
#   bash scripts/portable.sh --fresh   deletes runs/portable first
#
# Makes .venv-vllm (3 GB) and .venv-llamacpp beside .venv. Takes about 70 minutes on 2 cores with AVX-512. Result:
# runs/portable/answers.md.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

DATA=data/quickstart RUN=runs/portable CONFIGS=configs/quickstart/portable
begin "${1:-}" "$RUN"

prepare_environment all

# stage NAME: one training run, on two ranks.
stage() { mmchat train "$CONFIGS/$1.yaml" --ranks 2 --resume; }

started=$SECONDS
step "1/11 draw images of real handwritten digits" "$DATA/heldout.json" \
  python data_tools/digit_scenes.py --out "$DATA" --verify configs/quickstart/heldout.json
step "2/11 draw close-ups of digits" "$DATA/closeups.json" \
  python data_tools/digit_scenes.py --out "$DATA" --only closeups
step "3/11 train the tokenizer" "$RUN/tokenizer" \
  python data_tools/train_tokenizer.py "$DATA/statements.json" "$DATA/train.json" --out "$RUN/tokenizer"
step "4/11 create a SigLIP tower for close-ups, with random weights" "$RUN/closeups-init" \
  mmchat vision init "$CONFIGS/tower.json" --classes "$DATA/closeups.json" --pool max --out "$RUN/closeups-init"
step "     stage 1: train it to classify close-ups" "$RUN/closeups/model" \
  stage closeups
step "5/11 enlarge the tower's images" "$RUN/tower-init" \
  mmchat vision init "$RUN/closeups/model" --classes "$DATA/closeups.json" --pool max --image-size 64 \
  --out "$RUN/tower-init"
step "     stage 2: train it to classify digits anywhere in an image" "$RUN/tower/model" \
  stage tower
step "6/11 create an assistant: that tower, a new projector, a new language model" "$RUN/init" \
  mmchat init --language "$CONFIGS/language.json" --tokenizer "$RUN/tokenizer" --vision "$RUN/tower/model" \
  --projector mlp2x_gelu --template vicuna_v1 --system "" --out "$RUN/init"
step "7/11 stage 3: train the projector and the language model on descriptions" "$RUN/projector/model" \
  stage projector
step "8/11 stage 4: train the assistant on conversations" "$RUN/model" \
  stage sft
step "9/11 evaluate on questions about held-out handwriting" "$RUN/scores.json" \
  mmchat eval "$RUN/model" "$DATA/heldout.json" --out "$RUN"

say "10/11 environments of vLLM and llama.cpp"
bash scripts/foreign/vllm.sh .venv-vllm
bash scripts/foreign/llamacpp.sh .venv-llamacpp
export MMCHAT_VLLM_PYTHON=$ROOT/.venv-vllm/bin/python MMCHAT_LLAMACPP_PYTHON=$ROOT/.venv-llamacpp/bin/python
step "     export for transformers and vLLM" "$RUN/hf" \
  mmchat export "$RUN/model" --to hf --out "$RUN/hf"
step "     export for llama.cpp" "$RUN/gguf" \
  mmchat export "$RUN/model" --to gguf --out "$RUN/gguf"
step "11/11 ask all of them the first 50 held-out questions" "$RUN/answers.md" \
  python bench/compare_answers.py "$RUN/model" "$DATA/heldout.json" --limit 50 \
  --transformers "$RUN/hf" --vllm "$RUN/hf" --llamacpp "$RUN/gguf" --out "$RUN/answers.md"

say "finished in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s"
cat <<EOF
  scores    $RUN/scores.json
  table     $RUN/answers.md
  exports   $RUN/hf (transformers, vLLM) and $RUN/gguf (llama.cpp)
EOF
