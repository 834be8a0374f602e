#!/usr/bin/env bash
# How does one machine run a config? `NPROC=2 bash launch/local.sh FILE [key=value ...] [--fresh]`
#
# NPROC processes: as many as there are GPUs, or 1, when not given. One process is started plainly: signals and
# exit codes (85: stopped after a checkpoint, start me again) are the run's own. Several are started by torchrun,
# with these limits: it forwards the signals named below and then waits SHUTDOWN_SECONDS for the checkpoint before
# it kills; a signal outside the list kills torchrun alone and leaves the ranks behind; and torchrun's own code is 1
# whatever the ranks ended with, so look into the run's STATUS. Under Slurm, start ranks with srun instead (launch/node.sh).
set -euo pipefail

if (($# == 0)); then
    echo "usage: [NPROC=n] bash launch/local.sh FILE [key=value ...] [--fresh]" >&2
    exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ -z "${NPROC:-}" ]]; then
    NPROC=$( (nvidia-smi -L 2>/dev/null || true) | grep -c '^GPU' || true)
    ((NPROC > 0)) || NPROC=1
fi
export NPROC
# shellcheck source=launch/env.sh
source "$here/env.sh"

if ((NPROC == 1)); then
    exec python -m megadistill train "$@"
fi
# One process says what is wrong with the config, with exit code 2, before several are started to say it.
assignments=()
for argument in "${@:2}"; do
    [[ "$argument" == --* ]] || assignments+=("$argument")
done
python -m megadistill validate "$1" ${assignments[@]+"${assignments[@]}"} >/dev/null
exec torchrun --standalone --nproc-per-node "$NPROC" \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2 \
    --shutdown-timeout "${SHUTDOWN_SECONDS:-300}" \
    --module megadistill train "$@"
