#!/usr/bin/env bash
# Lint, types and tests, in .venv, which is made if needed.
#
#   bash scripts/test.sh              the default suite, under 10 minutes on 2 cores
#   bash scripts/test.sh --slow       only the tests marked slow, about 40 minutes
#   bash scripts/test.sh --coverage   the default suite, then lines of mmchat that it did not run (slower)
#   bash scripts/test.sh --latest     the default suite with the newest versions that pyproject.toml admits
#   bash scripts/test.sh ARGS...      anything else goes to pytest
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

which=${1:-}
case "$which" in
  -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; exit 0 ;;
  --slow | --coverage | --latest) shift ;;
esac
prepare_environment dev "${which#--}"

# The demo is tested in a real browser. This script installs one if it may; otherwise the test is skipped with a reason.
if ! command -v chromedriver >/dev/null 2>&1 && command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
  say "installing chromium for the demo's test"
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium chromium-driver; } \
    >/dev/null 2>&1 || echo "chromium could not be installed; the demo's browser test is skipped" >&2
fi

if [ "$which" != --latest ]; then # the linters' versions are pinned
  say "lint"
  ruff check .
  ruff format --check .
  codespell
  say "types"
  mypy
fi
say "tests"
chosen="not slow" coverage=()
[ "$which" = --slow ] && chosen=slow
[ "$which" = --coverage ] && coverage=(--cov --cov-report=term)
# One thread each: two processes with two threads on two cores wait for each other, ten times as long if threads spin.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
# Two processes, since tests wait for launchers half of the time. The tests of a file stay together: they share runs.
exec python -m pytest -m "$chosen" -n 2 --dist loadfile --no-loadscope-reorder "${coverage[@]}" "$@"
