#!/usr/bin/env bash
# Does everything hold? `bash tools/test.sh [pytest arguments]`: style, types, layers, tests, in that order.
# `bash tools/test.sh --slow [files]` runs the tests that take minutes each instead, one after another: every command of
# the README, kills, faults on a real Slurm, cut networks, full disks. What all of them found goes to
# tools/results/slow_tests.json.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
export NPROC=2 # two test processes, so half of the cores' threads for each
# shellcheck source=launch/env.sh
source launch/env.sh

ruff check .
ruff format --check .
mypy
lint-imports
if [[ "${1:-}" != --slow ]]; then
    # in order of names, not of the number of tests: a file of one long test must not come last
    exec python -m pytest -m "not soak" --numprocesses "$NPROC" --dist loadfile --no-loadscope-reorder "$@"
fi
found=$(mktemp)
python -m pytest -m soak --junitxml "$found" "${@:2}" && code=0 || code=$?
if [[ $# == 1 ]]; then
    python tools/results.py tests "$found" slow_tests
fi
rm -f "$found"
exit "$code"
