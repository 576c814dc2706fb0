# shellcheck shell=bash
# Read by each shell of a rule, because BASH_ENV names it: `python` is a program of the preloading server (see `stub.py`).
python() { "$PRELOAD_PYTHON" -I -S "$PRELOAD_STUB" "$PRELOAD_ADDRESS" "$@"; }
