# What should the environment of every process of a run hold? Sourced by all launchers; each line has its reason.
# shellcheck shell=bash

_root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)

# The environment's programs first.
if [[ -d "$_root/.venv/bin" ]]; then
    export PATH="$_root/.venv/bin:$PATH"
fi

# No GPU: say so, or DeepSpeed guesses, with a warning from every process.
if [[ -z "${DS_ACCELERATOR:-}" ]] && ! nvidia-smi -L >/dev/null 2>&1; then
    export DS_ACCELERATOR=cpu
fi

# Where LOCAL_SIZE equals WORLD_SIZE, DeepSpeed's CPU collectives go through kernels that need AVX2 or AVX-512 and
# fault or hang without. torchrun and srun leave it unset, and so does this: gloo does the reductions.
unset LOCAL_SIZE

# As many threads as this process's share of the cores; more make processes of one node fight for them.
# NPROC is the number of processes on this node.
if [[ -z "${OMP_NUM_THREADS:-}" ]]; then
    _threads=$(($(nproc) / ${NPROC:-1}))
    export OMP_NUM_THREADS=$((_threads > 0 ? _threads : 1))
fi

# Chunks of logits come and go every step. glibc gives what is so large back to the kernel each time, and has it zeroed
# anew: a tenth of a CPU step.
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-4294967296}"
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-4294967296}"

# `tokenizers` forks a thread pool and warns when processes fork after it; preparation uses processes of its own.
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"

# Logs as they are written: a buffered line is lost with a killed process.
export PYTHONUNBUFFERED=1

# Network use is the user's to say: HF_HUB_OFFLINE, HF_HOME and proxies pass through untouched.
unset _root _threads
