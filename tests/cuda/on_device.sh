#!/usr/bin/env bash
# One command for a bare machine with a GPU, torch and nvcc: builds for its own architecture, measures, tests and
# sanitizes; needs no network and installs nothing. `--dry-run` does on a CPU what a CPU can do. $PYTHON is the Python
# that holds torch, $OUT where results go (build/gpu-check).
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"
exec "${PYTHON:-python3}" -m tests.cuda.on_device --output "${OUT:-build/gpu-check}" "$@"
