#!/usr/bin/env bash
# A pretrained model learns a part of TOFU and forgets some of it, by every method; the plan is in pretrained.md.
#   results/pretrained.sh MODEL learn    Original, Retrain, and one that never learnt half of what is to be forgotten
#   results/pretrained.sh MODEL tune     four settings of every method on seed 100, and what the rules choose
#   results/pretrained.sh MODEL          the runs of the other seeds, tables, claims and pictures
# MODEL is a folder or a Hub id: HuggingFaceTB/SmolLM2-135M-Instruct. Two runs at a time (JOBS), one thread each; three to
# five hours on 2 CPU cores. A run that is there is not made again; of those of seed 100 no weights stay.
# On a GPU all of TOFU: DATA=locuslab/TOFU SPLIT=forget10 HALF=retain95 UNSEEN=200 SEEDS="0 1 2 3 4" JOBS=1.
set -euo pipefail
cd "$(dirname "$0")/.."
model=$1
python=${PYTHON:-.venv/bin/python}
split=${SPLIT:-forget40}        # what is forgotten: two authors of five
retain=retain$((100 - 10#${split#forget}))
half=${HALF:-retain80}          # what the third model learns: all but the last half of that
unseen=${UNSEEN:-8}             # rows of that half
seeds=${SEEDS:-0 1 2}
at=runs/pretrained
data=${DATA:-$at/tofu}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mkdir -p $at
[ -n "${DATA:-}" ] || [ -d $data ] || "$python" results/some_tofu.py $data --authors 5 --rows 8 --data "${TOFU:-locuslab/TOFU}"

run() { [ -f "$1/run.png" ] || echo "--overwrite --out $* --task tofu --data $data ${FLAGS:-}"; }
train() { xargs -r -P "${JOBS:-2}" -L 1 "$python" train.py >> $at/log.txt; }
seed_of() { echo "${1:-$seeds}"; }

learn() {  # seeds
  for seed in "$@"; do for part in $retain $half full; do
    run $at/$part-$seed --method finetune --model "$model" --split $part --lr 1e-4 --epochs 8 --batch-size 4 \
        --retain none --eval none --seed $seed
  done; done | train
}
unlearn() {  # folder, start, seed, method, flags
  run "$1" --split $split --model $at/$2-$3 --retrain $at/$retain-$3 --seed $3 --batch-size 4 --epochs 6 --method "${@:4}"
}
