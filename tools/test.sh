#!/usr/bin/env bash
# Does everything hold? `bash tools/test.sh [pytest arguments]`: style, types, layers, tests, in that order.
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
python -m pytest --numprocesses "$NPROC" --dist loadfile "$@"
