#!/usr/bin/env bash
# Scores tests/fixtures/coco_captions.json with the COCO caption evaluation (pycocoevalcap), which the scores of
# mmchat/evaluation/tasks are compared with. The sentences and captions stay; tokens and scores are written again.
#
#   bash scripts/foreign/coco_captions.sh         makes its environment in .venv-coco of this checkout
#   bash scripts/foreign/coco_captions.sh DIR     in DIR
#
# Needs Java (apt-get install default-jre-headless). About 10 seconds and 250 MB.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/environment.sh
. "$ROOT/scripts/environment.sh"

foreign_environment "${1:-}" .venv-coco
command -v java >/dev/null || die "java is not installed; apt-get install default-jre-headless"
# Without pycocotools and matplotlib, which only its plots need.
"$python" -m pip install --quiet --disable-pip-version-check --no-deps pycocoevalcap==1.2 'numpy<2.3'
"$python" "$ROOT/scripts/foreign/coco_captions_fixture.py" "$ROOT/tests/fixtures/coco_captions.json"
