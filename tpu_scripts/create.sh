#!/usr/bin/env bash
# Creates a TPU VM or a pod slice.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'USAGE'
Creates a TPU VM (one host) or a pod slice (several), and waits until it runs. It costs money from
then on until delete.sh.

usage: tpu_scripts/create.sh --name=NAME --zone=ZONE --type=TYPE [options]

  --name=NAME          name of the TPU
  --zone=ZONE          zone, such as us-central2-b
  --type=TYPE          accelerator type, such as v4-8, v5litepod-16, v5p-32 or v6e-8
  --version=VERSION    TPU software version; by default the one for the type
  --project=PROJECT    Google Cloud project; by default gcloud's own
  --spot               cheaper, and may be taken away at any time
  --network=NETWORK    VPC network
  --subnetwork=NAME    subnetwork of it
  --dry-run            print the commands and do nothing
  --help               print this

'gcloud compute tpus accelerator-types list --zone=ZONE' lists the types of a zone.
USAGE
}

type=""
version=""
network=""
subnetwork=""
spot=false

# The software version that JAX runs on, by accelerator type.
default_version() {
  case "$1" in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
  esac
}

while [ "$#" -gt 0 ]; do
  take_common_option "$@"
  if [ "$taken" -eq 0 ]; then
    case "$1" in
      --spot)
        spot=true
        taken=1
        ;;
      --type | --type=*)
        take_value "$@"
        type="$value"
        ;;
      --version | --version=*)
        take_value "$@"
        version="$value"
        ;;
      --network | --network=*)
        take_value "$@"
        network="$value"
        ;;
      --subnetwork | --subnetwork=*)
        take_value "$@"
        subnetwork="$value"
        ;;
      *) unknown_option "$1" ;;
    esac
  fi
  shift "$taken"
done

check_options --type "$type"
check "$type" 'v[0-9]+[a-z]*-[1-9][0-9]*' \
  "--type=$(quote "$type") is no accelerator type; types look like v4-8, v5litepod-16 or v6e-8"
if [ -z "$version" ]; then
  version="$(default_version "$type")"
fi
if [ -z "$version" ]; then
  die "no software version is known for --type=$type; give --version ('gcloud compute tpus tpu-vm versions list --zone=$zone' lists them)"
fi
for word in "$version" "$network" "$subnetwork"; do
  check "$word" '([a-z0-9][-a-z0-9._/]*)?' \
    "$(quote "$word") is no name of a software version, network or subnetwork"
done
need_gcloud

set -- "$name" "--accelerator-type=$type" "--version=$version"
if "$spot"; then
  set -- "$@" --spot
fi
if [ -n "$network" ]; then
  set -- "$@" "--network=$network"
fi
if [ -n "$subnetwork" ]; then
  set -- "$@" "--subnetwork=$subnetwork"
fi
tpu_vm create "$@"
