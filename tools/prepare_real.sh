#!/usr/bin/env bash
# Do real corpora prepare with each kind of tokenizer? Wikipedia and books become shards with bert-base-uncased, with
# gpt2, and with a sentencepiece model trained on them, under prepared/real/:
#
#   bash tools/prepare_real.sh FOLDER [key=value ...]
#
# FOLDER holds wikipedia/*.parquet, books/*.parquet and tokenizers/{bert-base-uncased,gpt2}/. With "" for FOLDER made-up
# text and the shipped tokenizer take their places, to see that the commands work. The last line is one JSON object: the
# seconds that each took, and what came of it.
set -euo pipefail

if (($# == 0)); then
    echo 'usage: bash tools/prepare_real.sh FOLDER|"" [key=value ...]' >&2
    exit 2
fi
data=$1
shift
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/env.sh
source "$here/../launch/env.sh"

if [[ -n "$data" ]]; then
    corpora="[{kind: parquet, name: wikipedia, files: ['$data/wikipedia/*.parquet']}, {kind: parquet, name: books, files: ['$data/books/*.parquet'], join_rows: 32}]"
    bert=$data/tokenizers/bert-base-uncased gpt2=$data/tokenizers/gpt2
else
    echo "prepare_real: no folder given: made-up text takes the place of Wikipedia and books"
    corpora="[{kind: synthetic, name: wikipedia, num_documents: 300}, {kind: synthetic, name: books, num_documents: 100}]"
    bert=megadistill/assets/quickstart_teacher gpt2=$bert
fi
common=("data.corpora=$corpora" data.sequence_length=128 "data.held_out={fraction: 0.01}" "$@")
made=()

one() { # NAME TOKENIZER PACKING [key=value ...]
    local began=$SECONDS
    megadistill prepare quickstart "data.tokenizer=$2" "data.dir=prepared/real/$1" "data.packing=$3" "${common[@]}" "${@:4}"
    made+=("$1" "$3" $((SECONDS - began)))
}

one bert "$bert" split
one gpt2 "$gpt2" concat
one unigram prepared/real/unigram-16000 best_fit "data.train_tokenizer={kind: unigram, vocabulary: 16000, megabytes: 20}"

python - "${made[@]}" <<'END'
import json, pathlib, sys

made = zip(*[iter(sys.argv[1:])] * 3)
files = {name: sorted(pathlib.Path("prepared/real", name).glob("*/stats.json")) for name in sys.argv[1::3]}
stats = {name: [json.loads(file.read_text()) for file in found] for name, found in files.items()}
print(json.dumps({n: {"packing": p, "seconds": int(s), "corpora": stats[n]} for n, p, s in made}))
END
