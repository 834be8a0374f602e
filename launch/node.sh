#!/usr/bin/env bash
# What does each task of `srun` run? `srun bash launch/node.sh FILE [key=value ...]`, one task a GPU (or CPU process).
#
# srun starts every rank itself, so a signal (scancel --signal=USR1 JOB.STEP) reaches the ranks and their exit code
# reaches the batch script: nothing in between can eat either. Rank and size come from SLURM_PROCID and SLURM_NTASKS.
set -euo pipefail

if (($# == 0)) || [[ -z "${SLURM_PROCID:-}" ]]; then
    echo "usage: srun bash launch/node.sh FILE [key=value ...]" >&2
    exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Where all ranks meet: the first host of the step's node list, and a port that jobs sharing a host do not share.
if [[ -z "${MASTER_ADDR:-}" ]]; then
    MASTER_ADDR=$(scontrol show hostnames "${SLURM_STEP_NODELIST:-$SLURM_JOB_NODELIST}" | head -n 1)
    if ! getent hosts "$MASTER_ADDR" >/dev/null; then # Slurm's names of nodes need not be the network's
        MASTER_ADDR=$(scontrol show node "$MASTER_ADDR" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
    fi
fi
export MASTER_ADDR
# Another port after a requeue: ranks that a dead node's daemon left behind may still hold the old one.
export MASTER_PORT="${MASTER_PORT:-$((20000 + (SLURM_JOB_ID + 6007 * ${SLURM_RESTART_COUNT:-0}) % 20000))}"

# The tasks of this node share its cores; SLURM_STEP_TASKS_PER_NODE reads like `4` or `4(x2),3`.
tasks=${SLURM_STEP_TASKS_PER_NODE:-${SLURM_TASKS_PER_NODE:-1}}
NPROC=${NPROC:-${tasks%%[!0-9]*}}
[[ -z "${SLURM_CPUS_PER_TASK:-}" ]] || OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}
export NPROC ${OMP_NUM_THREADS:+OMP_NUM_THREADS}
# shellcheck source=launch/env.sh
source "$here/env.sh"

if [[ "$1" == --preflight ]]; then
    exec python -m megadistill doctor --ranks "${@:2}"
fi
exec python -m megadistill train "$@" # exec: the signal must find Python, not a waiting shell
