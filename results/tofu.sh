#!/usr/bin/env bash
# Real TOFU, forget05, with a small model made from scratch: needs a GPU, and the dataset (Hub id or folder in DATA).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
mkdir -p runs
for seed in ${SEEDS:-0 1 2}; do for method in finetune ga graddiff wgraddiff idk dpo npo simnpo; do
  out=runs/tofu/$method-$seed
  [ -f $out/metrics.json ] || echo "--overwrite --out $out --task tofu --data ${DATA:-locuslab/TOFU} --model tiny" \
    "--method $method --seed $seed --eval epoch"
done; done | xargs -r -P "${JOBS:-4}" -L 1 "$python" train.py >> runs/tofu.txt
"$python" compare.py table runs/tofu/*
cp runs/tofu/simnpo-0/run.png results/tofu-simnpo.png
