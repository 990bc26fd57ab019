#!/usr/bin/env bash
# All that is measured on a GPU, in one go: bash benchmarks/gpu/run.sh DATA ENCODER OUT
# Each program goes on if another fails; what they print is in OUT.
set -uo pipefail
data=$1 encoder=$2 out=$3
cd "$(dirname "$0")/.."
mkdir -p "$out"
python gpu/check.py "$encoder" 2>&1 | tee "$out/check.log"
python speed.py "$data" "$encoder" --device cuda --rounds 3 --tasks ner,textcat,nli,qa,train,joint,overhead \
  --json "$out/speed.json" --plot "$out/speed.png" 2>&1 | tee "$out/speed.log"
python pretraining.py "$data/raw_covid_papers/papers.jsonl" "$encoder" --device cuda --precision bf16 --lengths 128,512 \
  --pieces 65536 --json "$out/pretraining.json" 2>&1 | tee "$out/pretraining.log"
