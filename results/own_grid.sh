#!/usr/bin/env bash
# The starting recipe for a pretrained model on your own data: a small grid, and how far its choice reaches.
#   results/own_grid.sh MODEL         the grid, on 20 questions, and how far its choice reaches
#   results/own_grid.sh MODEL reach   only how far
# MODEL is a folder or a Hub id: HuggingFaceTB/SmolLM2-135M-Instruct.
# Questions and texts on invented authors (own_rows.py). Two runs at a time (JOBS), one thread each; several hours on 2
# CPU cores; REACH="t10 q60" leaves out what a GPU is better at, DTYPE=bfloat16 is faster where the processor has it
# (amx_bf16); SEED=1 teaches and unlearns the same rows by another seed. A run that is there is not made again.
set -euo pipefail
cd "$(dirname "$0")/.."
model=$1
python=${PYTHON:-.venv/bin/python}
at=${AT:-runs/own-grid${SEED:+-$SEED}}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mkdir -p $at

run() { [ -f "$1/run.png" ] || echo "--overwrite --seed ${SEED:-0} ${DTYPE:+--dtype $DTYPE} --out $*"; }
train() { xargs -r -P "${JOBS:-2}" -L 1 "$python" train.py >> $at/log.txt 2>&1; }
rows() {  # name, flags of own_rows.py: the files, and the runs that learn them
  [ -d $at/$1 ] || "$python" results/own_rows.py $at/$1 "${@:2}"
}
declare -A learning=(  # where not by the defaults
  [q20-full]="--batch-size 4" [q20-retain]="--batch-size 4" [q60-full]="--batch-size 10"
  [q200-full]="--batch-size 32" [q200-retain]="--batch-size 16" [s400-full]="--epochs 5" [s400-retain]="--epochs 5"
)
learn() {  # name
  for part in full retain; do
    run $at/$1-$part --method finetune --model "$model" --split $part --forget-file $at/$1/forget.jsonl \
        --retain-file $at/$1/retain.jsonl --retain none --lr 1e-4 --epochs 8 ${learning[$1-$part]:-}
  done | train
}
unlearn() {  # name, method, flags
  run $at/$1/$2"$(tr -d ' ' <<< "${*:3}")" --method $2 --model $at/$1-full --retrain $at/$1-retain \
      --forget-file $at/$1/forget.jsonl --retain-file $at/$1/retain.jsonl --holdout-file $at/$1/holdout.jsonl \
      --forget-until end "${@:3}"
}

if [ "${2:-}" != reach ]; then  # rate, β, coefficient and retain rows a step, on 20 questions to forget and 60 to keep
  rows q20 --forget 20 --retain 60
  learn q20
  for rows in 4 12; do
    unlearn q20 simnpo --batch-size 4 --epochs 6 --lr 3e-5 --beta 1.25 --retain-batch-size $rows
    unlearn q20 npo --batch-size 4 --epochs 6 --lr 3e-5 --beta 0.1 --forget-coeff 1 --retain-batch-size $rows
  done | train
  {
    unlearn q20 simnpo --batch-size 4 --epochs 6 --lr 5e-5 --beta 0.7 --retain-batch-size 4
    unlearn q20 npo --batch-size 4 --epochs 6 --lr 5e-5 --beta 0.1 --forget-coeff 1 --retain-batch-size 4
    for rate in 2e-5 2.5e-5; do
      unlearn q20 simnpo --batch-size 4 --epochs 6 --lr $rate --beta 1.25 --retain-batch-size 12
      unlearn q20 npo --batch-size 4 --epochs 6 --lr $rate --beta 0.1 --forget-coeff 0.05 --retain-batch-size 12
    done
  } | train
  "$python" results/grid.py choose $at/q20/*/
fi

# How far the defaults reach without a target, and with one, Retrain's loss, where forgetting is held; q200 is taught by
# fewer steps than s200, on the same rows.
rows r20 --forget 20 --retain 60 --holdout 40
rows t10 --text --forget 10 --retain 20 --holdout 10
rows q60 --forget 60 --retain 60
for name in q200 s200; do rows $name --forget 200 --retain 200; done
rows s400 --forget 400 --retain 400
for name in ${REACH:-r20 t10 q60 q200 s200 s400}; do
  learn $name
  for method in simnpo npo; do
    unlearn $name $method
    unlearn $name $method --forget-until target
  done | train
  case $name in  # fewer rows a step, and another β
    t10)
      for size in 2 3; do unlearn t10 simnpo --batch-size $size; done
      unlearn t10 npo --batch-size 3
      unlearn t10 npo --batch-size 2 --beta 0.02
      ;;
    q60) for method in simnpo npo; do unlearn q60 $method --batch-size 8; done ;;
    q200) for beta in 1.25 2.6; do unlearn q200 simnpo --batch-size 14 --beta $beta; done ;;
  esac | train
  "$python" compare.py table $at/$name/*/
done
