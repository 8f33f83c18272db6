#!/usr/bin/env bash
# Lint and tests, in .venv, which is made if needed.
#
#   bash scripts/test.sh            the default suite, under 8 minutes on 2 cores
#   bash scripts/test.sh --slow     only the long ones
#   bash scripts/test.sh ARGS...    anything else goes to pytest
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
# shellcheck source=scripts/environment.sh
. scripts/environment.sh
prepare_environment dev

# The demo is tested in a real browser. Where this script may install one it does; elsewhere the test skips and says so.
if ! command -v chromedriver >/dev/null 2>&1 && command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
  say "installing chromium for the demo's test"
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium chromium-driver; } \
    >/dev/null 2>&1 || echo "chromium could not be installed; the demo's browser test cannot run" >&2
fi

say "lint"
ruff check .
ruff format --check .
say "tests"
if [ "${1:-}" = --slow ]; then
  shift
  exec python -m pytest -m slow "$@"
fi
# Two processes, because half the time tests wait for launchers; a file's tests stay together, as they share runs.
exec python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder "$@"
