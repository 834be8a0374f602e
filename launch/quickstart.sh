#!/usr/bin/env bash
# Does distillation pay, and does a killed run lose nothing? Installs, then shows both in a few minutes on two cores.
#
#   [SEED=1] [NAME=quickstart] bash launch/quickstart.sh [key=value ...]
#
# 1. prepare prose that every Python installation carries; 2. distil a shipped teacher in two processes, kill one of
# them with SIGKILL in the middle; 3. the same command again: it continues from the last checkpoint and repeats the
# lost steps bit for bit; 4. the same student without the teacher; 5. scores, export, report, runs/$NAME/summary.json.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
export NPROC=2
export DS_ACCELERATOR=cpu # two processes and equal bits everywhere, GPU or not
# shellcheck source=launch/env.sh
source launch/env.sh

name=${NAME:-quickstart}
out=runs/$name
settings=("directory=$out" "seed=${SEED:-1}" "$@")
config=configs/quickstart.yaml
past_checkpoint=25 # steps that the first process goes beyond its checkpoint, and the resumed one repeats
started=$SECONDS

say() { printf '\n== %s (%d s)\n' "$*" $((SECONDS - started)); }

# The newest step in metrics.jsonl, 0 before there is one.
last_step() {
    { grep -o '"step": [0-9]*' "$out/distilled/metrics.jsonl" 2>/dev/null || true; } | tail -n 1 | grep -o '[0-9]*' || echo 0
}

if [[ -e "$out" ]]; then
    mv "$out" "$out.old-$(date +%s)"
fi
every=$(megadistill validate "$config" "${settings[@]}" --show | sed -n '/^checkpoint:/,/^[a-z]/s/^  every_steps: \([0-9]*\).*/\1/p')

say "prepare"
megadistill prepare "$config" "${settings[@]}" | sed '/^next: /d' # this script goes on

say "distil in two processes; rank 0 will be killed after step $((every + past_checkpoint))"
bash launch/local.sh "$config" "${settings[@]}" >"/tmp/$name.$$.log" 2>&1 &
launcher=$!
while (($(last_step) < every + past_checkpoint)); do
    if ! kill -0 "$launcher" 2>/dev/null; then
        cat "/tmp/$name.$$.log" >&2
        exit 1
    fi
    sleep 0.1
done
kill -KILL "$(sed -n 's/.*"pid": \([0-9]*\).*/\1/p' "$out/distilled/attempts/000001.json")"
wait "$launcher" || true # torchrun reports the killed rank
grep -v -e '^\[' -e Traceback "/tmp/$name.$$.log" | grep -e '^step' -e 'held out' || true
rm -f "/tmp/$name.$$.log"

say "killed; the same command continues"
bash launch/local.sh "$config" "${settings[@]}"

say "the same student without its teacher"
bash launch/local.sh configs/quickstart_plain.yaml "${settings[@]}"

say "scores, export, report"
export OMP_NUM_THREADS=2
for run in distilled plain; do
    megadistill evaluate "$out/$run" >/dev/null
done
megadistill export "$out/distilled" --to hf
megadistill report "$out/distilled" "$out/plain" >/dev/null
python tools/quickstart_summary.py "$out" --seconds $((SECONDS - started))
