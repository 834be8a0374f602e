#!/usr/bin/env bash
# What would `srun --ntasks N COMMAND` start? N tasks on this host, with the variables that Slurm sets; their worst code.
set -euo pipefail
[[ "$1" == --ntasks ]] || exit 64
tasks=$2
shift 2
export SLURM_JOB_ID=$$ SLURM_STEP_ID=0 SLURM_NTASKS=$tasks SLURM_TASKS_PER_NODE=$tasks SLURM_JOB_NODELIST=localhost
pids=()
for ((task = 0; task < tasks; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
    pids+=($!)
done
code=0
for pid in "${pids[@]}"; do
    wait "$pid" || code=$?
done
exit "$code"
