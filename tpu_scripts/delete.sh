#!/usr/bin/env bash
# Deletes a TPU VM or pod slice, with everything on its disks.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'USAGE'
Deletes a TPU VM or pod slice with everything on its disks. gcloud asks first.

usage: tpu_scripts/delete.sh --name=NAME --zone=ZONE [options]

  --name=NAME          name of the TPU
  --zone=ZONE          its zone
  --project=PROJECT    Google Cloud project; by default gcloud's own
  --yes                do not ask
  --dry-run            print the commands and do nothing
  --help               print this
USAGE
}

yes=false

while [ "$#" -gt 0 ]; do
  take_common_option "$@"
  if [ "$taken" -eq 0 ]; then
    case "$1" in
      --yes)
        yes=true
        taken=1
        ;;
      *) unknown_option "$1" ;;
    esac
  fi
  shift "$taken"
done

check_options
need_gcloud

set -- "$name"
if "$yes"; then
  set -- "$@" --quiet
fi
tpu_vm delete "$@"
