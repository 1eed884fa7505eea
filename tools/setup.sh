#!/usr/bin/env bash
# Set the workspace up: virtual environment, wheels, message build. Safe to repeat and to interrupt:
# each stage leaves a stamp only when it is whole, and a stage whose inputs are unchanged is skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ROOT=$PWD
VENV=$ROOT/.venv
STAMPS=$VENV/.stamps
mkdir -p log

say()  { printf '\033[1m[setup]\033[0m %s\n' "$*"; }
fail() { printf '\033[1;31m[setup] %s\033[0m\n' "$*" >&2; exit 1; }
trap 'fail "interrupted; the same command goes on from here"' INT TERM  # not "pip failed"

# --- what only the system can provide ------------------------------------------------------------
fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }
first_that_fits() { for one in "$@"; do if fits "$one"; then echo "$one"; return; fi; done; }
if [ -n "${AMENT_PREFIX_PATH:-}" ] && [ -n "${ROS_DISTRO:-}" ]; then
  ROS_SOURCE=sourced          # a ROS 2 installation is sourced: use its rclpy, rosidl and colcon
  PYTHON=${PYTHON:-python3}
else
  ROS_SOURCE=wheels
  PYTHON=${PYTHON:-$(first_that_fits python3.11 python3.12 python3.13 python3)}
fi
missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }
if ! fits "$PYTHON"; then
  missing+=(python3.11 python3.11-venv python3.11-dev)
elif ! "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null; then
  missing+=("python$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv")
elif ! "$PYTHON" -c 'import sysconfig, pathlib, sys; sys.exit(not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").exists())'; then
  missing+=("python$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-dev")
fi
need gcc gcc
need g++ g++
need cmake cmake
need make make
has_library() { "$PYTHON" -c "import ctypes; ctypes.CDLL('$1')" 2>/dev/null; }
if fits "$PYTHON"; then  # without one, libraries are looked for in the next run
  if [ "${MUJOCO_GL:-egl}" = osmesa ]; then
    has_library libOSMesa.so.8 || has_library libOSMesa.so.6 || missing+=(libosmesa6)
  else
    has_library libEGL.so.1 || missing+=(libegl1 libegl-mesa0 libgl1-mesa-dri)
    has_library libGL.so.1 || missing+=(libgl1)
  fi
fi
if [ ${#missing[@]} -gt 0 ]; then
  if [ "${WORLDVLA_APT:-}" = 1 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null \
      && [ "${missing[*]}" != "${WORLDVLA_APT_TRIED:-}" ]; then
    say "installing ${missing[*]} with apt-get, as WORLDVLA_APT=1 asks"
    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q "${missing[@]}"
    WORLDVLA_APT_TRIED="${missing[*]}" exec bash "$ROOT/tools/setup.sh" "$@"
  fi
  [ -z "${WORLDVLA_APT_TRIED:-}" ] || fail "missing still, after apt-get: ${missing[*]}"
  fail "missing on this machine: ${missing[*]}
        Install with:  sudo apt-get update && sudo apt-get install -y ${missing[*]}
        (as root, WORLDVLA_APT=1 make setup does it for you)"
fi

# --- stages --------------------------------------------------------------------------------------
if command -v flock >/dev/null; then  # `make demo` in one terminal and `make test` in another
  exec 9> log/setup.lock
  flock -n 9 || { say 'another set-up runs here; waiting for it'; flock 9; }
fi
hash_of() { cat "$@" | sha256sum | cut -c1-16; }
done_already() { [ "$(cat "$STAMPS/$1" 2>/dev/null)" = "$2" ]; }
mark_done() { mkdir -p "$STAMPS"; printf '%s' "$2" > "$STAMPS/$1.part"; mv "$STAMPS/$1.part" "$STAMPS/$1"; }

python_id="$("$PYTHON" -c 'import sys; print(sys.version_info[:3], sys.base_prefix)') $ROS_SOURCE ${ROS_DISTRO:-}"
if ! done_already venv "$python_id"; then
  [ ! -f "$STAMPS/venv" ] || say 'another Python or ROS than before: making the virtual environment anew'
  rm -rf "$VENV"
  say "virtual environment in .venv, with $("$PYTHON" --version), ROS 2 from $ROS_SOURCE"
  if [ "$ROS_SOURCE" = sourced ]; then
    "$PYTHON" -m venv --system-site-packages "$VENV"
  else
    "$PYTHON" -m venv "$VENV"
  fi
  mark_done venv "$python_id"
fi
# shellcheck disable=SC1091
. "$VENV/bin/activate"

wheels_id=$(hash_of requirements/*.txt)
if ! done_already wheels "$wheels_id"; then
  pip_install() {
    pip install -q --disable-pip-version-check "$@" >> log/setup-pip.log 2>&1 && return
    grep -v '^WARNING' log/setup-pip.log | tail -n 15 >&2
    fail 'pip could not install the wheels; the whole log is log/setup-pip.log. Once it is mended, the same command goes on from here.'
  }
  : > log/setup-pip.log
  pip_install 'setuptools==79.0.1' 'wheel==0.46.3'
  sets=(-r requirements/core.txt -r requirements/sim.txt -r requirements/dev.txt)
  if [ "$ROS_SOURCE" = wheels ]; then
    sets+=(-r requirements/numpy2.txt -r requirements/ros.txt)
  else
    sets+=(-r requirements/numpy1.txt)
    command -v colcon >/dev/null || fail 'ROS 2 is sourced but colcon is missing. Install with:  sudo apt-get install -y python3-colcon-common-extensions'
  fi
  say 'wheels from PyPI (about 2 GB on disk, several more where torch comes with CUDA; a minute or two)'
  pip_install "${sets[@]}"
  pip_install --no-deps --no-build-isolation -r requirements/sim-no-deps.txt
  mark_done wheels "$wheels_id"
fi

if [ "$ROS_SOURCE" = wheels ] && ! done_already cmake_exports "$wheels_id"; then
  python tools/repair_cmake_exports.py "$VENV/share"
  mark_done cmake_exports "$wheels_id"
fi

build_id=$(hash_of CMakeLists.txt package.xml cmake/* msg/* srv/* action/* \
  <(find worldvla_ros sim/worldvla_sim launch config -type f -not -path '*/__pycache__/*' | LC_ALL=C sort) \
  <(echo "$wheels_id $ROOT"))
if ! done_already build "$build_id" || [ ! -f install/local_setup.bash ]; then  # or `make clean`
  say 'messages and programs (colcon build --symlink-install)'
  prefixes=$VENV
  [ "$ROS_SOURCE" = wheels ] || prefixes=$AMENT_PREFIX_PATH
  # A CMake cache remembers its Python and its wheels: with others, start afresh.
  done_already build_base "$wheels_id $python_id" || rm -rf build install
  mark_done build_base "$wheels_id $python_id"
  if ! AMENT_PREFIX_PATH=$prefixes CMAKE_PREFIX_PATH=$prefixes colcon build --merge-install --symlink-install \
      --base-paths . --cmake-args -DPython3_EXECUTABLE="$VENV/bin/python" -Wno-dev \
      > log/setup-build.log 2>&1; then
    tail -n 30 log/setup-build.log >&2
    fail 'colcon build failed; the whole log is log/setup-build.log'
  fi
  mark_done build "$build_id"
fi
