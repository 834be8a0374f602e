#!/usr/bin/env bash
# What is distillation worth on tasks? Pretrains a teacher and its students, teaches them tasks, and records the scores:
#
#   bash tools/evidence.sh FOLDER [--only NAME ...]
#
# FOLDER holds wikipedia/, books/, glue/, imdb/ and squad*/. Hours on 2 CPU cores; what is done is not done again.
set -euo pipefail
data=$(cd "${1:?the folder of the data}" && pwd)
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
# shellcheck source=launch/env.sh
source launch/env.sh
python tools/evidence.py --data "$data" run "$@"
python tools/results.py table
