#!/usr/bin/env bash
# All that is measured on a GPU, in one go: bash benchmarks/gpu/run.sh DATA ENCODER OUT
# Each program goes on if another fails; what they print is in OUT.
set -uo pipefail
data=$1 encoder=$2 out=$3
cd "$(dirname "$0")/.."
mkdir -p "$out"
python gpu/check.py "$encoder" 2>&1 | tee "$out/check.log"
python speed.py "$data" "$encoder" "$out/speed.json" --device cuda --rounds 3 2>&1 | tee "$out/speed.log"
