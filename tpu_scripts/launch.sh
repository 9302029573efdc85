#!/usr/bin/env bash
# Runs the same experiment on every worker of a TPU.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'USAGE'
Runs one experiment, the same command on every worker of a TPU at once. setup.sh comes first.

usage: tpu_scripts/launch.sh --name=NAME --zone=ZONE [options] -- MODULE [arguments]

  MODULE               experiments.SYSTEM.VERB; a leading 'python -m' is accepted
  --name=NAME          name of the TPU
  --zone=ZONE          its zone
  --project=PROJECT    Google Cloud project; by default gcloud's own
  --dir=DIR            directory that setup.sh used (jaxlab)
  --env=KEY=VALUE      environment variable for the experiment; may be repeated
  --detach             start it in the background and return: it goes on when the connection ends;
                       its output is in DIR/launch.log on every worker
  --dry-run            print the commands and do nothing
  --help               print this

example: tpu_scripts/launch.sh --name=clip --zone=us-central2-b -- \
  python -m experiments.chinese_clip.train \
  --config=configs/chinese_clip/tiny.py --workdir=gs://my-bucket/runs/1
USAGE
}

directory="jaxlab"
detach=false
environment=""

while [ "$#" -gt 0 ]; do
  take_common_option "$@"
  if [ "$taken" -eq 0 ]; then
    case "$1" in
      --)
        shift
        break
        ;;
      --detach)
        detach=true
        taken=1
        ;;
      --dir | --dir=*)
        take_value "$@"
        directory="$value"
        ;;
      --env | --env=*)
        take_value "$@"
        check "${value%%=*}" '[A-Za-z_][A-Za-z0-9_]*' "--env=$(quote "$value") is not KEY=VALUE"
        if [ "$value" = "${value%%=*}" ]; then
          die "--env=$(quote "$value") is not KEY=VALUE"
        fi
        environment="$environment ${value%%=*}=$(quote "${value#*=}")"
        ;;
      *) unknown_option "$1" ;;
    esac
  fi
  shift "$taken"
done

if [ "$#" -ge 2 ] && [ "$2" = "-m" ]; then
  case "$1" in
    python | python3) shift 2 ;;
  esac
fi
module="${1-}"
check_options "'-- MODULE'" "$module"
check_directory "$directory"
check "$module" 'experiments(\.[a-z0-9_]+)+' \
  "$(quote "$module") is no experiment; give experiments.SYSTEM.VERB, such as experiments.chinese_clip.train"
if ! [ -f "$repository/$(printf '%s' "$module" | tr . /).py" ]; then
  die "there is no $(printf '%s' "$module" | tr . /).py in this checkout"
fi
need_gcloud

command=".venv/bin/python -m $(quote_all "$@")"
if [ -n "$environment" ]; then
  command="env$environment $command"
fi
if "$detach"; then
  command="{ nohup $command > launch.log 2>&1 < /dev/null & echo \"started on \$(hostname), process \$!\"; }"
fi
tpu_vm ssh "$name" --worker=all "--command=cd $(quote "$directory") && $command"
