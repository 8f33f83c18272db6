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
case "${1:-}" in
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) echo "error: unknown argument '$1'; expected a directory or nothing" >&2; exit 2 ;;
esac
venv=${1:-$ROOT/.venv-img2dataset}
out=${2:-$ROOT/tests/fixtures/img2dataset}
version=1.47.0
python=$venv/bin/python

[ -x "$python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$python" -c 'import img2dataset' 2>/dev/null || "$python" -m pip install --quiet --disable-pip-version-check img2dataset==$version
NO_ALBUMENTATIONS_UPDATE=1 "$python" "$ROOT/scripts/foreign/img2dataset_fixtures.py" "$out"
