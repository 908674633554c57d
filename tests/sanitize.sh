#!/usr/bin/env bash
# Builds the CPU operators with AddressSanitizer and UndefinedBehaviorSanitizer, apart from the usual build, and runs
# their tests on it. Usage: tests/sanitize.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")/.."
python="$(cd "$(dirname "$1")" && pwd)/$(basename "$1")"
target=build/sanitize
mkdir -p "$target"
export PATH="$(dirname "$python"):$PATH"
flags="-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined"
DMMLKD_BUILD=cpu DMMLKD_CXXFLAGS="$flags" DMMLKD_LDFLAGS="-fsanitize=address,undefined" \
  "$python" setup.py --quiet build_ext --build-lib "$target" --build-temp "$target/objects"
# The Python files of the tree, with the extension of the other build.
rm -rf "$target.tree"
mkdir -p "$target.tree"
cp -r dmmlkd_ext tests csrc pyproject.toml "$target.tree"
rm -f "$target.tree"/dmmlkd_ext/_*.so
cp "$target"/dmmlkd_ext/_ops.so "$target.tree/dmmlkd_ext/"
cd "$target.tree"
# Python itself leaks on purpose and loads the sanitized library late, so that the runtime must come first.
LD_PRELOAD="$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libubsan.so)" \
  ASAN_OPTIONS=detect_leaks=0:abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=1 DMMLKD_BACKEND=native \
  PYTHONPATH=. "$python" -m pytest -q -p no:cacheprovider -m "not compile" tests/ops tests/model \
  tests/training/learn tests/training/guide/test_formulas.py tests/training/measure/test_consensus.py \
  tests/training/measure/test_evaluation.py
