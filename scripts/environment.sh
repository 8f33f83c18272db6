# Sourced by the scripts in this folder. Gives them `begin`, `resume_with`, `step` and `prepare_environment EXTRA
# [latest]`, which activates a virtual environment with mmchat[EXTRA] in it: .venv with the pinned versions of
# constraints.txt, or .venv-latest with the newest versions that pyproject.toml admits. Needs only Python >= 3.11. A
# second call activates.

# Scripts set ROOT, the folder of the repository. A shell that sources this file may leave it to us.
ROOT=${ROOT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}

say() { printf '\033[1m%s\033[0m\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 2; }

# resume_with COMMAND: a script that Ctrl-C or a signal has stopped says that COMMAND resumes.
resume_with() {
  RESUME=$*
  trap 'say_how_to_resume $?' EXIT
}

# say_how_to_resume STATUS: for a trap on EXIT, which a script may set again.
say_how_to_resume() {
  case $1 in 130 | 143) say "stopped; what is done is kept, resume with: $RESUME" >&2 ;; esac
}

# begin ARGUMENT FOLDER...: for a script with one option. --fresh deletes the folders, --help prints the script's head.
begin() {
  local argument=$1
  shift
  resume_with bash "$0"
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

# choose_precision: sets `precision`, options of `mmchat train`. Without instructions for bf16 a CPU emulates them and is 20
# times slower (docs/lab_log.md).
choose_precision() {
  precision=()
  if [ -r /proc/cpuinfo ] && ! grep -qwE 'avx512_bf16|amx_bf16|bf16' /proc/cpuinfo; then
    say "this processor has no instructions for bf16: training in fp32"
    # shellcheck disable=SC2034
    precision=(--precision fp32)
  fi
}

# foreign_environment ARGUMENT FOLDER: for a script of foreign/, whose argument is a directory, by default FOLDER of this
# checkout. Makes a virtual environment there if needed; sets `venv` and `python`, its interpreter.
foreign_environment() {
  local base
  case "$1" in
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) die "unknown argument '$1'; expected a directory or nothing" ;;
  esac
  venv=${1:-$ROOT/$2}
  python=$venv/bin/python
  if [ ! -x "$python" ]; then
    base=$(find_python) || exit 2
    "$base" -m venv "$venv"
  fi
}

find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
      die "PYTHON=$PYTHON does not run or is older than Python 3.11"
    echo "$PYTHON"
    return
  fi
  for candidate in python3 python3.13 python3.12 python3.11 python; do
    command -v "$candidate" >/dev/null 2>&1 || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  die "Python 3.11 or newer was not found. Install it, or name one: PYTHON=/path/to/python3.11 $0"
}

prepare_environment() {
  local extra=$1 latest=${2:-} python venv=$ROOT/.venv stamp torch=${MMCHAT_TORCH:-torch==2.13.0}
  local pins=(--constraint "$ROOT/constraints.txt")
  if [ "$latest" = latest ]; then
    venv=$ROOT/.venv-latest
    torch=${MMCHAT_TORCH:-torch>=2.13,<3}
    pins=(--upgrade --upgrade-strategy eager)
  fi
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
    # torch first: as a dependency of another package, pip may take another build with gigabytes of CUDA packages.
    pip install --quiet "${pins[@]}" "$torch" ||
      die "torch could not be installed; MMCHAT_TORCH names another build, for example MMCHAT_TORCH=torch==2.13.0+cu130"
    pip install --quiet "${pins[@]}" "$torch" --editable "$ROOT[$extra]" ||
      die "mmchat could not be installed; the lines above give the reason"
    touch "$stamp"
  fi
  # DeepSpeed detects a missing GPU itself, but warns about it several times.
  if [ -z "${DS_ACCELERATOR:-}" ] && ! command -v nvidia-smi >/dev/null 2>&1; then
    export DS_ACCELERATOR=cpu
  fi
}
