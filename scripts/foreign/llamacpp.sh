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

foreign_environment "${1:-}" .venv-llamacpp
"$python" -m pip install --quiet --disable-pip-version-check xllamacpp==2026.10.11549
"$python" -c 'import xllamacpp; print("xllamacpp", xllamacpp.__version__)'
echo "$python"
