#!/usr/bin/env bash
# Does a published preset run on real text with a small teacher? Prepares, pretrains the teacher, distils it with one
# SIGTERM and resume in the middle, scores on WikiText-2, exports, and records the evidence under tools/results/.
#
#   bash tools/run_presets.sh distilbert|distilgpt2 FOLDER [key=value ...]
#
# FOLDER holds wikipedia/*.parquet, books/*.parquet, wikitext-2-raw/test.txt and tokenizers/{bert-base-uncased,gpt2}/.
set -euo pipefail

preset=${1:?distilbert or distilgpt2} data=$(cd "${2:?the folder of the data}" && pwd)
shift 2
export MEGADISTILL_DATA=$data # a record names the folder so
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
export NPROC=2
# shellcheck source=launch/env.sh
source launch/env.sh

corpora="[{kind: parquet, name: wikipedia, files: ['$data/wikipedia/*.parquet']}, {kind: parquet, name: books, files: ['$data/books/*.parquet'], join_rows: 32}]"
common=("data.corpora=$corpora" "data.dir=prepared/$preset" "data.sequence_length=128" "directory=runs/presets" "$@")
case $preset in
    distilbert)
        teacher=small_bert tokenizer=bert-base-uncased
        student="{n_layers: 3, dim: 128, n_heads: 4, hidden_dim: 512, max_position_embeddings: 128}"
        ;;
    distilgpt2)
        teacher=small_gpt2 tokenizer=gpt2
        student="{n_layer: 3, n_embd: 128, n_head: 4, n_positions: 128}"
        ;;
    *)
        echo "run_presets: no preset $preset; there are distilbert and distilgpt2" >&2
        exit 2
        ;;
esac
common+=("data.tokenizer=$data/tokenizers/$tokenizer")
distil=("configs/$preset.yaml" "${common[@]}" "data.held_out={fraction: 0.01, max_rows: 1000}" "engine.precision=fp32"
    "teacher.path=runs/presets/$teacher/export/hf" "teacher.guard={max_loss: null}" # minutes old: hardly a teacher yet
     "student.config=$student" "student.init.layers=[0, 2, 4]"
    "batch={global_size: 16, micro_size: 8}" "train.steps=320" "checkpoint={every_steps: 100}"
    "evaluate={every_steps: 100, rows: 256}" "log.every_steps=10")

megadistill prepare "configs/$teacher.yaml" "${common[@]}"
bash launch/local.sh "configs/$teacher.yaml" "${common[@]}"
megadistill export "runs/presets/$teacher" --to hf

bash launch/local.sh "${distil[@]}" &
launcher=$!
run=runs/presets/$preset
until grep -qs '"step": 150' "$run/metrics.jsonl"; do
    kill -0 "$launcher" # or end here with its failure
    sleep 1
done
kill -TERM "$launcher"
wait "$launcher" || true
bash launch/local.sh "${distil[@]}"

for name in "$teacher" "$preset"; do
    megadistill evaluate "runs/presets/$name" --tasks heldout,wikitext --wikitext "$data/wikitext-2-raw"
    megadistill export "runs/presets/$name" --to hf
    python tools/results.py record "runs/presets/$name" "$name"
done
