#!/usr/bin/env bash
# A pretrained model learns a part of TOFU and forgets some of it, by every method; the plan is in pretrained.md.
#   results/pretrained.sh MODEL tune     three settings of every method on seed 100, and what the rules choose
#   results/pretrained.sh MODEL          the runs of seeds 0 to 2, tables, claims and pictures
#   results/pretrained.sh MODEL later    besides, the claims of the losses that came after SimNPO; the plan is in lens.md
#   results/pretrained.sh MODEL twins    MUSE's and WMDP's twins (running text; four-choice questions), one seed
# MODEL is a folder or a Hub id: HuggingFaceTB/SmolLM2-135M-Instruct. TOFU=FOLDER reads a copy of the data. Two runs at a
# time (JOBS), one thread each. A run that is there is not made again; of those that nothing starts from no weights stay.
# On a GPU all of TOFU: DATA=locuslab/TOFU FORGET=forget10 RETAIN=retain90 HALF=retain95 UNSEEN=200 SEEDS="0 1 2 3 4"
# BATCH=32 LEARN_BATCH=32 JOBS=1. DTYPE=bfloat16, a GPU's default, is faster on a processor that has it too (amx_bf16).
set -euo pipefail
cd "$(dirname "$0")/.."
model=$1
python=${PYTHON:-.venv/bin/python}
forget=${FORGET:-forget40}  # two authors of five
retain=${RETAIN:-retain60}
half=${HALF:-retain80}      # what a third model learns: all but the last half of the forget set,
unseen=${UNSEEN:-5}         # which has so many rows
batch=${BATCH:-4}
learn_batch=${LEARN_BATCH:-2}
seeds=${SEEDS:-0 1 2}
at=${AT:-runs/pretrained}
data=${DATA:-$at/tofu}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mkdir -p "$at"
[ -n "${DATA:-}" ] || [ -d "$data" ] ||
  "$python" results/some_tofu.py "$data" --authors 5 --rows 5 --data "${TOFU:-locuslab/TOFU}"

run() { [ -f "$1/run.png" ] || echo "--overwrite ${DTYPE:+--dtype $DTYPE} --out $*"; }
train() { xargs -r -P "${JOBS:-2}" -L 1 "$python" train.py >> "$at/log.txt" 2>&1; }
learn() {  # seed, split, flags
  run "$at/$2-$1" --task tofu --data "$data" --method finetune --model "$model" --split "$2" --seed "$1" \
      --forget-split "$forget" --retain none --lr 1e-4 --epochs 8 --batch-size "$learn_batch" "${@:3}"
}
unlearn() {  # folder, Original, seed, method, flags
  run "$at/$1" --task tofu --data "$data" --split "$forget" --model "$at/$2-$3" --retrain "$at/$retain-$3" \
      --seed "$3" --method "${@:4}" --batch-size "$batch" --epochs 6
}
settings_of() {  # method, flags of a setting, flags of the next …
  for flags in "${@:2}"; do unlearn "tune/$1$(tr -d ' ' <<< "$flags")" full 100 "$1" $flags; done
}
drop_weights() { find "$at/$1" -name model.safetensors -delete; }

if [ "${2:-}" = twins ]; then  # a fifth of the forget set a step, as on your own data
  declare -A twin=(
    [simnpo]="--lr 2e-5 --beta 1.25 --forget-coeff 1" [npo]="--lr 2e-5 --beta 0.1 --forget-coeff 0.02" [rmu]="--lr 1e-3")
  for task in toy-muse toy-wmdp; do
    kept=$([ $task = toy-muse ] && echo retain1 || echo retain)
    for part in full $kept; do
      run "$at/$task-$part" --task $task --method finetune --model "$model" --split $part --retain none \
          --lr 1e-4 --epochs 8 --batch-size 8
    done | train
    for method in simnpo npo rmu; do
      run "$at/$task/$method" --task $task --method $method --model "$at/$task-full" --retrain "$at/$task-$kept" \
          --epochs 6 --batch-size 5 --retain-batch-size 15 ${twin[$method]}
    done | train
    echo; "$python" compare.py table "$at/$task"/*/
  done
  exit
fi

for seed in $([ "${2:-}" = tune ] && echo 100 || echo "$seeds"); do
  for part in full "$retain"; do learn "$seed" "$part"; done
  [ "${2:-}" = tune ] || learn "$seed" "$half" --eval none
done | train

if [ "${2:-}" = tune ]; then
  {
    settings_of simnpo "--lr 4e-5 --forget-coeff 1 --beta 1.25" "--lr 1e-4 --forget-coeff 1 --beta 1.25" "--lr 1e-4 --forget-coeff 0.1 --beta 1.25"
    settings_of npo "--lr 4e-5 --forget-coeff 0.3 --beta 0.1" "--lr 1e-4 --forget-coeff 0.3 --beta 0.1" "--lr 1e-4 --forget-coeff 0.03 --beta 0.1"
    settings_of wgraddiff "--lr 4e-5 --forget-coeff 1" "--lr 1e-4 --forget-coeff 1" "--lr 1e-4 --forget-coeff 0.1"
    settings_of graddiff "--lr 4e-5 --forget-coeff 0.03" "--lr 1e-4 --forget-coeff 0.03" "--lr 1e-4 --forget-coeff 0.003"
    settings_of idk "--lr 4e-5 --forget-coeff 1" "--lr 1e-4 --forget-coeff 1" "--lr 1e-4 --forget-coeff 0.1"
    settings_of dpo "--lr 4e-5 --forget-coeff 1" "--lr 1e-4 --forget-coeff 1" "--lr 1e-4 --forget-coeff 0.1"
    settings_of task-vector "--lr 4e-5 --alpha 1" "--lr 1e-4 --alpha 1" "--lr 1e-4 --alpha 3"
    settings_of rmu "--lr 1e-4 --steer 6.5 --alpha 100" "--lr 1e-3 --steer 6.5 --alpha 100" "--lr 1e-3 --steer 30 --alpha 100"
    # the losses that came after SimNPO, for the claims only
    settings_of wga "--lr 1e-4 --forget-coeff 0.3 --beta 2" "--lr 1e-4 --forget-coeff 1 --beta 2" "--lr 1e-4 --forget-coeff 3 --beta 2"
    settings_of satimp "--lr 1e-4 --forget-coeff 3 --beta 1 --beta2 1" "--lr 1e-4 --forget-coeff 10 --beta 1 --beta2 1" "--lr 1e-4 --forget-coeff 30 --beta 1 --beta2 1"
    settings_of satimp "--lr 1e-4 --forget-coeff 1 --beta 1 --beta2 1" "--lr 1e-4 --forget-coeff 0.3 --beta 1 --beta2 1"  # moved
    settings_of tnpo "--lr 1e-4 --forget-coeff 0.3 --beta 2.5" "--lr 1e-4 --forget-coeff 1 --beta 2.5" "--lr 1e-4 --forget-coeff 3 --beta 2.5"
    settings_of ceu "--lr 1e-4 --forget-coeff 0.01" "--lr 1e-4 --forget-coeff 0.03" "--lr 1e-4 --forget-coeff 0.1"
    settings_of ceu "--lr 1e-4 --forget-coeff 0.003" "--lr 1e-4 --forget-coeff 0.006"  # moved
    settings_of undial "--lr 1e-4 --forget-coeff 0.03 --beta 10" "--lr 1e-4 --forget-coeff 0.1 --beta 10" "--lr 1e-4 --forget-coeff 0.3 --beta 10"
    settings_of undial "--lr 1e-4 --forget-coeff 0.03 --beta 14" "--lr 1e-4 --forget-coeff 0.1 --beta 14"  # moved
  } | train
  drop_weights tune
  "$python" results/grid.py choose --nearest "forget probability" "$at"/tune/*/
  "$python" results/grid.py paths --until 1 "$at"/tune/{npo,simnpo,graddiff,wgraddiff,wga,satimp,tnpo,ceu,undial}-*/
  exit
fi

# What the rules chose: for the tables, and at equal forgetting.
declare -A setting=(
  [graddiff]="--lr 1e-4 --forget-coeff 0.03" [wgraddiff]="--lr 4e-5 --forget-coeff 1"
  [npo]="--lr 4e-5 --forget-coeff 0.3 --beta 0.1" [simnpo]="--lr 4e-5 --forget-coeff 1 --beta 1.25"
  [idk]="--lr 1e-4 --forget-coeff 0.1" [dpo]="--lr 1e-4 --forget-coeff 0.1"
  [task-vector]="--lr 1e-4 --alpha 1" [rmu]="--lr 1e-3 --steer 6.5 --alpha 100")
declare -A way=(
  [simnpo]="--lr 1e-4 --forget-coeff 1 --beta 1.25" [npo]="--lr 1e-4 --forget-coeff 0.03 --beta 0.1"
  [wgraddiff]="--lr 1e-4 --forget-coeff 1" [wga]="--lr 1e-4 --forget-coeff 1 --beta 2"
  [satimp]="--lr 1e-4 --forget-coeff 1 --beta 1 --beta2 1" [tnpo]="--lr 1e-4 --forget-coeff 1 --beta 2.5"
  [ceu]="--lr 1e-4 --forget-coeff 0.01" [undial]="--lr 1e-4 --forget-coeff 0.1 --beta 14")
methods="simnpo npo wgraddiff"
[ "${2:-}" != later ] || methods+=" wga satimp tnpo ceu undial"

for seed in $seeds; do
  for method in $methods; do
    unlearn "known/$method-$seed" full "$seed" $method ${way[$method]}
    unlearn "half/$method-$seed" "$half" "$seed" $method ${way[$method]}
  done
done | train
drop_weights known
drop_weights half

compare() { echo; "$python" compare.py "$@"; }
paths() {  # known or half, picture, flags
  echo; "$python" results/paths.py $(for method in $methods; do echo "$at/$1/$method"-*/; done) \
    --overwrite --out "results/$2-paths-$1.png" "${@:3}"
}

if [ "${2:-}" = later ]; then
  paths known lens-pretrained
  paths half lens-pretrained --never-learnt "$unseen"
  compare table "$at"/known/*/
  exit
fi

for seed in $seeds; do
  for method in graddiff wgraddiff npo simnpo idk dpo task-vector rmu; do
    unlearn "table/$method-$seed" full "$seed" $method ${setting[$method]}
  done
done | train

compare table "$at"/table/*/
compare table --columns cost "$at"/table/*/
compare answers --show 3 "$at"/table/*-0/
paths known pretrained
paths half pretrained --never-learnt "$unseen"
