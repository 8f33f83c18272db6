#!/usr/bin/env bash
# Makes a virtual environment with llama.cpp (xllamacpp, built for the CPU), which GGUF exports are compared with.
#
#   bash scripts/foreign/llamacpp.sh         into .venv-llamacpp of this checkout, where the tests look for it
#   bash scripts/foreign/llamacpp.sh DIR     into DIR; then: export MMCHAT_LLAMACPP_PYTHON=DIR/bin/python
#
# A second run keeps what is there. About 10 seconds and 150 MB.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/environment.sh
. "$ROOT/scripts/environment.sh"

case "${1:-}" in
  -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; exit 0 ;;
  -*) die "unknown argument '$1'; expected a directory or nothing" ;;
esac
venv=${1:-$ROOT/.venv-llamacpp}
python=$(find_python) || exit 2
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check xllamacpp==2026.10.11549
"$venv/bin/python" -c 'import xllamacpp; print("xllamacpp", xllamacpp.__version__)'
echo "$venv/bin/python"
