# shellcheck shell=bash
# Shared by create.sh, setup.sh, launch.sh and delete.sh: options, checks, and running gcloud.
# Works with bash 3.2 (macOS) and later.

set -euo pipefail

program="$(basename "$0")"
# shellcheck disable=SC2034  # used by the scripts that source this file
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

name=""
zone=""
project=""
dry_run=false

# Ends the script. Exit status 2 means that the command line was wrong and nothing was done.
die() {
  printf '%s: %s\n' "$program" "$1" >&2
  exit 2
}

# One word as a POSIX shell reads it back, in single quotes when it needs them.
quote() {
  local LC_ALL=C
  case "$1" in
    "" | *[!A-Za-z0-9_./=:@%+,-]*)
      local rest="$1" quoted="" apostrophe="'"
      while [ "$rest" != "${rest#*"$apostrophe"}" ]; do
        quoted="$quoted${rest%%"$apostrophe"*}'\\''"
        rest="${rest#*"$apostrophe"}"
      done
      printf "'%s'" "$quoted$rest"
      ;;
    *) printf '%s' "$1" ;;
  esac
}

# Several words as one command line.
quote_all() {
  local separator="" word
  for word in "$@"; do
    printf '%s' "$separator"
    quote "$word"
    separator=" "
  done
}

# Runs a command after showing it; with --dry-run only prints it.
run() {
  if "$dry_run"; then
    quote_all "$@"
    printf '\n'
    return
  fi
  printf '+ %s\n' "$(quote_all "$@")" >&2
  "$@"
}

# run gcloud compute tpus tpu-vm VERB ... with the zone and the project.
tpu_vm() {
  local verb="$1"
  shift
  set -- gcloud compute tpus tpu-vm "$verb" "$@" "--zone=$zone"
  if [ -n "$project" ]; then
    set -- "$@" "--project=$project"
  fi
  run "$@"
}

# Takes one option that all scripts have. $1 and $2 are the next two words of the command line;
# `taken` becomes the number of words used, 0 if the option is another one.
taken=0
take_common_option() {
  taken=0
  case "$1" in
    --help | -h)
      usage
      exit 0
      ;;
    --dry-run)
      dry_run=true
      taken=1
      ;;
    --name | --name=* | --zone | --zone=* | --project | --project=*)
      take_value "$@"
      case "$1" in
        --name*) name="$value" ;;
        --zone*) zone="$value" ;;
        --project*) project="$value" ;;
      esac
      ;;
  esac
}

# The value of `--option=value` or `--option value`, in `value`; sets `taken`.
value=""
take_value() {
  case "$1" in
    *=*)
      value="${1#*=}"
      taken=1
      ;;
    *)
      if [ "$#" -lt 2 ]; then
        die "$1 needs a value; see $program --help"
      fi
      value="$2"
      # shellcheck disable=SC2034  # read by the loops that call this
      taken=2
      ;;
  esac
  if [ -z "$value" ]; then
    die "${1%%=*} is empty; see $program --help"
  fi
}

unknown_option() {
  die "unknown argument $(quote "$1"); see $program --help"
}

# check VALUE REGEX MESSAGE: ends the script unless the whole value fits.
check() {
  local LC_ALL=C
  if ! [[ "$1" =~ ^($2)$ ]]; then
    die "$3"
  fi
}

# Names every missing option at once, then checks the ones that all scripts have.
# Arguments: pairs of option and value that must not be empty.
check_options() {
  local missing=""
  set -- --name "$name" --zone "$zone" "$@"
  while [ "$#" -gt 0 ]; do
    if [ -z "$2" ]; then
      missing="$missing $1"
    fi
    shift 2
  done
  if [ -n "$missing" ]; then
    die "missing$missing; see $program --help"
  fi
  check "$name" '[a-z]([-a-z0-9]{0,61}[a-z0-9])?' \
    "--name=$(quote "$name") is no TPU name: up to 63 lower-case letters, digits and hyphens, a letter first, no hyphen last"
  check "$zone" '[a-z]+-[a-z]+[0-9]+-[a-z0-9]+' \
    "--zone=$(quote "$zone") is no zone; zones look like us-central2-b"
  if [ -n "$project" ]; then
    check "$project" '[a-z][-a-z0-9.:]*[a-z0-9]' \
      "--project=$(quote "$project") is no project id; ids look like my-project-123"
  fi
}

# Ends the script with a sentence when there is no gcloud to run.
need_gcloud() {
  if ! "$dry_run" && ! command -v gcloud >/dev/null 2>&1; then
    die "gcloud is not in PATH; install the Google Cloud CLI and run 'gcloud auth login', or add --dry-run to see the commands"
  fi
}

# Directories on the workers: absolute, or relative to the home directory.
check_directory() {
  case "$1" in
    "~"* | -*) die "--dir=$(quote "$1"): give a path relative to the home directory (jaxlab) or an absolute one" ;;
    / | . | .. | ../* | */.. | */../*) die "--dir=$(quote "$1") is no directory for a checkout" ;;
  esac
}
