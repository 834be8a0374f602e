#!/usr/bin/env bash
# What holds, and how fast, on a GPU? `bash tools/gpu_suite.sh [FOLDER] [kernels|step]` runs tests natively, then
# benchmarks, in under 9 minutes on one GPU, and leaves machine-readable results in FOLDER (default: tools/results/gpu).
# kernels (the default) needs Python with torch 2.11, triton 3.6 and pytest only: no deepspeed, no pydantic; without nvcc
# the CUDA C++ rows are left out, and PEERS names a folder with the benchmark's peers, if there is one. step is of whole
# runs, and needs megadistill installed; its record for the README, cuda.json, goes to tools/results/step/.
# Exits 1 if a part failed; the other parts run all the same.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
results=${1:-tools/results/gpu}
what=${2:-kernels}
[[ $what == kernels || $what == step ]] || { echo "usage: bash tools/gpu_suite.sh [FOLDER] [kernels|step]" >&2; exit 2; }
python=${PYTHON:-python3}
mkdir -p "$results"
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
failed=0

part() { # NAME SECONDS COMMAND...: its output goes to NAME.log, and its JSON line, if it ends in one, to NAME.json
    local name=$1 limit=$2 started=$SECONDS
    shift 2
    echo "== $name (at most $limit s)"
    timeout "$limit" "$@" 2>&1 | tee "$results/$name.log"
    local code=${PIPESTATUS[0]}
    if tail -n 1 "$results/$name.log" | "$python" -m json.tool --compact >"$results/$name.json" 2>/dev/null; then
        :
    else
        rm -f "$results/$name.json"
    fi
    echo "{\"part\": \"$name\", \"exit_code\": $code, \"seconds\": $((SECONDS - started))}" >>"$results/parts.jsonl"
    ((code == 0)) || failed=1
}

rm -f "$results/parts.jsonl"
part machine 20 "$python" - <<'PYTHON'
import json, platform, subprocess, sys
import torch

if not torch.cuda.is_available():
    sys.exit("no CUDA device: this suite measures one")
import triton

driver = subprocess.run(
    ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
).stdout.split("\n")[0]
print(json.dumps({"gpu": torch.cuda.get_device_name(), "driver": driver, "torch": torch.__version__,
                  "cuda": torch.version.cuda, "triton": triton.__version__, "python": platform.python_version()}))
PYTHON
((failed == 0)) || exit 1
if [[ $what == kernels ]]; then
    # what only a GPU tells comes first; what compiles for one, and needs none, is left out
    part tests_gpu 100 "$python" -m pytest -q -p no:cacheprovider tests/kernels/test_gpu.py --junitxml "$results/tests_gpu.xml"
    part tests 150 "$python" -m pytest -q -p no:cacheprovider tests/kernels --ignore tests/kernels/test_gpu.py \
        --ignore tests/kernels/test_triton_compiles.py --ignore tests/kernels/test_one_read.py \
        --ignore tests/kernels/test_workspace.py --junitxml "$results/tests.xml"
    [[ -n "${PEERS:-}" ]] || echo "PEERS is not set: Liger and the other peers are not measured"
    part bench_head 170 "$python" tools/bench_head.py --device cuda --json ${PEERS:+--peers "$PEERS"}
    part bench_rows 90 "$python" tools/bench_rows.py --json
else
    part tests_step 270 "$python" -m pytest -q -p no:cacheprovider tests/train/test_gpu.py --junitxml "$results/tests_step.xml"
    part bench_step 220 "$python" tools/results.py measure step/cuda "$python" tools/bench_step.py --device cuda --json
    cp tools/results/step/cuda.json "$results/cuda.json" || failed=1
fi
cat "$results/parts.jsonl"
exit "$failed"
