#!/bin/bash
# Runs the file that CONFIGER_PATH names; its folder's name is the phase. Arguments override its keys:
#   CONFIGER_PATH=./pretrain/simclr.ini ./run_script.sh epochs=5 ssl_args.lr=0.3
set -eu
: "${CONFIGER_PATH:?names no file; for example: export CONFIGER_PATH=./pretrain/simclr.ini}"
here="$(cd "$(dirname "$0")/.." && pwd)"
PATH="$here/.venv/bin:$PATH" exec selfsight run "$CONFIGER_PATH" "$@"
