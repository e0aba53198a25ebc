#!/bin/sh
# MLX on CUDA against mlx-vlm on CUDA and transformers on CUDA: PaliGemma 2 3B of random weights, 448 pixels, bfloat16.
# For a Linux machine with an NVIDIA GPU (24 GB), CUDA 13 drivers and Python 3.11 to 3.14; downloads about 5 GB of wheels.
# Rows of a batch each have a picture of their own; mlx-vlm answers all of them about the first, so it has no batch to compare.
set -eu
cd "$(dirname "$0")/.."
BENCH=${BENCH:-.venv-bench/cuda}
RESULT=${1:-benchmarks/results/comparison-$(date +%Y-%m-%d)-cuda.json}

environment() { # name, what to install...
    name=$1; shift
    [ -e "$BENCH/$name/made" ] && return
    python3 -m venv "$BENCH/$name"
    "$BENCH/$name/bin/pip" install --quiet "$@"
    touch "$BENCH/$name/made"
}
environment ours 'mlx[cuda13]==0.32.4' torch==2.13.0 -e .
environment mlx-vlm 'mlx[cuda13]==0.32.4' mlx-vlm==0.7.10
environment transformers torch==2.13.0 transformers==5.23.0

compare() { "$BENCH/ours/bin/python" benchmarks/compare.py --environments "$BENCH" --no-host --tokens 100 "$@"; }
compare --case pg2-3b:448:bfloat16 --arm mlx-vlm --arm transformers --output "$RESULT"
compare --case pg2-3b:448:bfloat16:8 --arm transformers --output "${RESULT%.json}-8-rows.json"
