#!/usr/bin/env bash
# Copies this checkout to every worker of a TPU and installs it there.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'USAGE'
Copies this checkout, as it is now, to every worker of a TPU, installs it there in a virtual
environment of its own, and lets all workers find each other once. Run it again after changes.

usage: tpu_scripts/setup.sh --name=NAME --zone=ZONE [options]

  --name=NAME          name of the TPU
  --zone=ZONE          its zone
  --project=PROJECT    Google Cloud project; by default gcloud's own
  --dir=DIR            directory on the workers, absolute or relative to the home directory (jaxlab)
  --python=VERSION     Python on the workers, 3.11 or later (3.11)
  --dry-run            print the commands and do nothing
  --help               print this
USAGE
}

directory="jaxlab"
python="3.11"

while [ "$#" -gt 0 ]; do
  take_common_option "$@"
  if [ "$taken" -eq 0 ]; then
    case "$1" in
      --dir | --dir=*)
        take_value "$@"
        directory="$value"
        ;;
      --python | --python=*)
        take_value "$@"
        python="$value"
        ;;
      *) unknown_option "$1" ;;
    esac
  fi
  shift "$taken"
done

check_options
check_directory "$directory"
check "$python" '3\.(1[1-9]|[2-9][0-9])' "--python=$(quote "$python") is not 3.11 or later"
need_gcloud

archive="jaxlab-$name.tar.gz"
local_archive="$repository/build/$archive"
quoted="$(quote "$directory")"

# What every worker does. uv brings the Python version where the image has an older one.
install="set -e
mkdir -p $quoted
rm -rf $quoted/jaxlab $quoted/experiments $quoted/configs
tar -xzf $archive -C $quoted
rm $archive
cd $quoted
python3 -m pip install --quiet --user uv || python3 -m pip install --quiet --user --break-system-packages uv
test -x .venv/bin/python || python3 -m uv venv --quiet --python $python .venv
python3 -m uv pip install --quiet --python .venv/bin/python -e '.[tpu]'"
greet="cd $quoted && .venv/bin/python -c 'import logging; logging.basicConfig(level=logging.INFO); from jaxlab import parallel; parallel.start_processes()'"

if ! "$dry_run"; then
  mkdir -p "$repository/build"
  trap 'rm -f "$local_archive"' EXIT
fi
run tar -czf "$local_archive" -C "$repository" --exclude=./.git --exclude=./.venv \
  --exclude=./.ci/envs --exclude=./build --exclude=./dist --exclude=./runs \
  --exclude=__pycache__ --exclude='*.egg-info' .
tpu_vm scp "$local_archive" "$name:$archive" --worker=all
tpu_vm ssh "$name" --worker=all "--command=$install"
tpu_vm ssh "$name" --worker=all "--command=$greet"
