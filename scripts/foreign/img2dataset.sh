#!/usr/bin/env bash
# Makes a virtual environment with img2dataset and downloads a few images with it, from a server on this machine.
#
#   bash scripts/foreign/img2dataset.sh            writes tests/fixtures/img2dataset, with .venv-img2dataset
#   bash scripts/foreign/img2dataset.sh DIR OUT    environment in DIR, fixtures into OUT
#
# The results are committed: what the tests read is what img2dataset wrote. An existing environment is kept. PYTHON names
# the interpreter that a new one is made with. It takes about 0.8 GB of disk.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/environment.sh
. "$ROOT/scripts/environment.sh"

foreign_environment "${1:-}" .venv-img2dataset
out=${2:-$ROOT/tests/fixtures/img2dataset}
version=1.47.0

"$python" -c 'import img2dataset' 2>/dev/null || "$python" -m pip install --quiet --disable-pip-version-check img2dataset==$version
NO_ALBUMENTATIONS_UPDATE=1 "$python" "$ROOT/scripts/foreign/img2dataset_fixtures.py" "$out"
