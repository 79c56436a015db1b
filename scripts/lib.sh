# Shared by the scripts; sourced, not run. All of them work from the repository's root.
# shellcheck shell=bash

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

have_any() {
  local name
  for name in "$@"; do
    if command -v "$name" >/dev/null; then return 0; fi
  done
  return 1
}

# Stop with the one line to type if something that pip cannot install is missing.
need_tools() {
  local missing=()
  if ! command -v python3 >/dev/null; then
    missing+=(python3 python3-venv python3-dev)
  else
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
      die "python3 is $(python3 -V 2>&1 | cut -d' ' -f2): expected 3.10 or newer"
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    python3 -c 'import os, sysconfig, sys
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || missing+=(python3-dev)
  fi
  have_any "${CXX:-c++}" g++ clang++ && have_any "${CC:-cc}" gcc clang || missing+=(g++)
  command -v git >/dev/null || missing+=(git)
  if ((${#missing[@]})); then
    local sudo=
    ((EUID)) && sudo="sudo "
    die "missing: ${missing[*]}. On Debian or Ubuntu type:
  ${sudo}apt-get update && ${sudo}apt-get install -y ${missing[*]}"
  fi
}

# make_venv DIR: a virtual environment; one that belongs to a Python that has gone is made anew.
make_venv() {
  if ! "$1/bin/python" -m pip --version >/dev/null 2>&1; then
    say "creating $1"
    rm -rf "$1"
    python3 -m venv "$1"
  fi
}

# use_test_venv PROGRAM...: $venv becomes the environment that scripts/test makes, or the one that VENV names; stops if one
# of these programs is missing there.
use_test_venv() {
  local program
  venv=${VENV:-.venv-test}
  for program in "$@"; do
    if [[ ! -x $venv/bin/$program ]]; then
      die "there is no $venv/bin/$program: run scripts/test first"
    fi
  done
}

# use_source_tree FOLDER...: after use_test_venv; Python imports this tree's own package, not the one that was installed
# from it some time ago, and the modules in these folders. cmake and ninja are on PATH.
use_source_tree() {
  local folder
  PATH=$(cd "$venv/bin" && pwd):$PATH
  if ! have_any cmake || ! have_any ninja; then
    say "installing cmake and ninja into $venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check cmake ninja
  fi
  export PYTHONPATH=$PWD/src PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1
  for folder in "$@"; do
    PYTHONPATH+=:$PWD/$folder
  done
}

# What decides whether the installed package is the one of this tree.
fingerprint() {
  local inputs=(pyproject.toml README.md LICENSE CMakeLists.txt cmake cpp overlay src)
  {
    printf '%s\n' "$PWD" "${TURBOPREFILL_CUDA:-}" "${TURBOPREFILL_SOURCE:-}"
    find "${inputs[@]}" -type f ! -name '*.pyc' -print0 2>/dev/null | LC_ALL=C sort -z | xargs -0 sha256sum
  } | sha256sum | cut -d' ' -f1
}

# install_package VENV LOG [PIP ARGUMENT...]: build and install this tree, with what draws PNG files; quickly if nothing
# changed.
install_package() {
  local venv=$1 log=$2 stamp=$1/.turboprefill-installed now
  shift 2
  now="$(fingerprint) $*"
  if [[ -f $stamp && $(<"$stamp") == "$now" ]]; then
    return
  fi
  rm -f "$stamp"
  mkdir -p "$(dirname "$log")"
  say "installing into $venv; the first time llama.cpp is built, which takes minutes (log: $log)"
  export CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}"
  with_live_line "$log" "$venv/bin/python" -m pip install -v --disable-pip-version-check "$@" '.[plots]'
  printf '%s' "$now" >"$stamp"
}

# with_live_line LOG COMMAND...: output goes to LOG; a terminal shows the time and the latest step in one line.
with_live_line() {
  local log=$1 began=$SECONDS code=0 width shown=0
  shift
  # a process group of its own, so that Ctrl-C can end all of it: pip, cmake and the compilers
  set -m
  "$@" >"$log" 2>&1 </dev/null &
  local job=$!
  set +m
  # shellcheck disable=SC2064 # the job of now
  trap "kill -- -$job 2>/dev/null; echo >&2; exit 130" INT TERM
  while kill -0 "$job" 2>/dev/null; do
    if [[ -t 2 ]]; then
      width=$(tput cols 2>/dev/null || echo 80)
      printf '\r\033[K%.*s' "$((width - 1))" "$(live_text "$log" $((SECONDS - began)))" >&2
      sleep 1
    else
      if ((SECONDS - began >= shown)); then
        printf '%s\n' "$(live_text "$log" $((SECONDS - began)))" >&2
        shown=$((SECONDS - began + 30))
      fi
      sleep 1
    fi
  done
  [[ -t 2 ]] && printf '\r\033[K' >&2
  wait "$job" || code=$?
  trap - INT TERM
  if ((code)); then
    printf 'last lines of %s:\n' "$log" >&2
    tail -n 25 "$log" | sed 's/^/  | /' >&2
    die "this failed (exit code $code): $*"
  fi
}

# live_text LOG SECONDS: what a build is doing, from the end of its log.
live_text() {
  local step
  step=$(tail -c 8000 "$1" 2>/dev/null | tr '\r' '\n' | sed 's/\x1b\[[0-9;]*[A-Za-z]//g; s/^ *//' |
    grep -E '^\[|^--|^\*\*\*|^(Collecting|Downloading|Installing|Building|Processing|turboprefill)|[Cc]lon|[Pp]atch' | tail -n 1) || true
  printf '    %d:%02d  %s' $(($2 / 60)) $(($2 % 60)) "${step:-starting}"
}
