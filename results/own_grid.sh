#!/usr/bin/env bash
# The starting recipe for a pretrained model on your own data: a small grid, and how far its choice reaches.
#   results/own_grid.sh MODEL     MODEL is a folder or a Hub id: HuggingFaceTB/SmolLM2-135M-Instruct
# Questions and texts on invented authors (own_rows.py). Two runs at a time (JOBS), one thread each; about three hours on
# 2 CPU cores. A run that is there is not made again.
set -euo pipefail
cd "$(dirname "$0")/.."
model=$1
python=${PYTHON:-.venv/bin/python}
at=${AT:-runs/own-grid}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mkdir -p $at

run() { [ -f "$1/run.png" ] || echo "--overwrite --out $*"; }
train() { xargs -r -P "${JOBS:-2}" -L 1 "$python" train.py >> $at/log.txt 2>&1; }
rows() {  # name, flags of own_rows.py: the files, and the runs that learn them
  [ -d $at/$1 ] || "$python" results/own_rows.py $at/$1 "${@:2}"
}
learn() {  # name
  for part in full retain; do
    run $at/$1-$part --method finetune --model "$model" --split $part --forget-file $at/$1/forget.jsonl \
        --retain-file $at/$1/retain.jsonl --retain none --lr 1e-4 --batch-size 4 --epochs 8
  done
}
unlearn() {  # name, method, flags
  run $at/$1/$2"$(tr -d ' ' <<< "${*:3}")" --method $2 --model $at/$1-full --retrain $at/$1-retain \
      --forget-file $at/$1/forget.jsonl --retain-file $at/$1/retain.jsonl "${@:3}"
}

rows q20 --forget 20 --retain 60
learn q20 | train
for lr in 3e-5 5e-5 1e-4; do
  for beta in 0.7 2.5; do unlearn q20 simnpo --lr $lr --batch-size 4 --epochs 8 --forget-coeff 1 --beta $beta; done
  for beta in 0.1 0.5; do unlearn q20 npo --lr $lr --batch-size 4 --epochs 8 --forget-coeff 1 --beta $beta; done
done | train
"$python" results/grid.py choose $at/q20/*/
