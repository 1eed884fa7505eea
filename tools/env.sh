# Source this to get the built workspace into a bash shell: `. tools/env.sh`.
if [ -z "${BASH_VERSION:-}" ]; then
  echo "tools/env.sh is for bash, and this shell is another one: type bash, then source it again" >&2
  return 1
fi
_worldvla_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
. "$_worldvla_root/.venv/bin/activate"
# Without a sourced ROS, the wheels in the virtual environment are the underlay.
if [ -z "${ROS_DISTRO:-}" ]; then
  export AMENT_PREFIX_PATH="$VIRTUAL_ENV${AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}"
fi
. "$_worldvla_root/install/local_setup.bash"
export PYTHONPATH="$_worldvla_root:$_worldvla_root/sim${PYTHONPATH:+:$PYTHONPATH}"
export MUJOCO_GL="${MUJOCO_GL:-egl}"
unset _worldvla_root
