#!/usr/bin/env bash
# How does a run on two Slurm nodes survive preemption? `bash tools/slurm_demo.sh` starts a Slurm of its own on this
# machine (two node daemons; Debian: apt-get install slurm-wlm), submits a tiny run to it with one command, preempts it
# by a job of higher priority, and shows it requeued, resumed and done, bit for bit as a run that nobody disturbed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
export NPROC=2
# shellcheck source=launch/env.sh
source launch/env.sh
exec python tools/slurm_demo.py "$@"
