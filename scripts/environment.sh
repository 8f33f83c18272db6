# Sourced by the scripts beside it, for `begin`, `step` and `prepare_environment EXTRA`, which leaves .venv active with mmchat[EXTRA] in it.
# Works on a bare machine with Python >= 3.11; the second time it only activates.

say() { printf '\033[1m%s\033[0m\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 2; }

# begin ARGUMENT FOLDER...: of a script with one option: --fresh deletes the folders, --help prints the script's head.
begin() {
  local argument=$1
  shift
  case "$argument" in
    "") ;;
    --fresh) rm -rf "$@" ;;
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) die "unknown argument '$argument'; expected nothing or --fresh" ;;
  esac
}

# step TITLE RESULT COMMAND...: runs the command unless RESULT exists already.
step() {
  local title=$1 result=$2
  shift 2
  if [ -e "$result" ]; then
    say "$title: done before ($result)"
  else
    say "$title"
    "$@"
  fi
}

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  die "Python 3.11 or newer is needed and was not found. Install it, or name one: PYTHON=/path/to/python3.11 $0"
}

prepare_environment() {
  local extra=$1 python venv=$ROOT/.venv stamp
  stamp=$venv/.installed-$extra-$(cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt" | cksum | tr ' ' -)
  if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python) || exit 2
    say "making $venv with $("$python" --version)"
    "$python" -m venv "$venv" || {
      rm -rf "$venv"
      die "$python could not make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"
    }
  fi
  # shellcheck disable=SC1091
  . "$venv/bin/activate"
  if [ ! -e "$stamp" ]; then
    say "installing mmchat[$extra] into $venv (once; a few minutes)"
    # torch first and pinned: asked for by range, pip may fetch another build with gigabytes of CUDA packages.
    pip install --quiet --constraint "$ROOT/constraints.txt" "${MMCHAT_TORCH:-torch==2.13.0}" ||
      die "torch could not be installed; MMCHAT_TORCH names another build, for example MMCHAT_TORCH=torch==2.13.0+cu130"
    pip install --quiet --constraint "$ROOT/constraints.txt" --editable "$ROOT[$extra]" ||
      die "mmchat could not be installed; the lines above say why"
    touch "$stamp"
  fi
  # Without a GPU DeepSpeed finds this out by itself, but says so several times.
  if [ -z "${DS_ACCELERATOR:-}" ] && ! command -v nvidia-smi >/dev/null 2>&1; then
    export DS_ACCELERATOR=cpu
  fi
}
