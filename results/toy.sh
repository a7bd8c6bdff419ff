#!/usr/bin/env bash
# The paper's TOFU study on the toy: makes the runs, prints the tables of README.md, draws its pictures.
# Two runs at a time (JOBS), one thread each; half an hour at most on 2 CPU cores. A run that is there is not made again.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=1
mkdir -p runs

run() { [ -f "$1/metrics.json" ] || echo "--overwrite --out $*"; }  # a folder, and the flags of its run
train() { xargs -r -P "${JOBS:-2}" -L 1 "$python" train.py >> runs/toy.txt; }

for seed in 0 1 2 3 4; do
  for method in ga graddiff wgraddiff idk dpo; do run runs/toy/$method-$seed --method $method --seed $seed; done
  for method in npo simnpo; do run runs/toy/$method-$seed --method $method --seed $seed --eval epoch; done
done | train
# The recipes that tuning on one seed chose: npo and simnpo again.
for seed in 0 1 2 3 4; do
  run runs/oneseed/npo-$seed --method npo --seed $seed --eval epoch --forget-coeff 0.1 --beta 0.2
  run runs/oneseed/simnpo-$seed --method simnpo --seed $seed --eval epoch --forget-coeff 10
done | train
for study in toy oneseed; do for seed in 0 1 2 3 4; do for method in npo simnpo; do for part in shortest random; do
  again=$([ $study = toy ] && echo runs/relearn || echo runs/oneseed-relearn)  # a fifth of the forget set
  run $again/$method-$part-$seed --method finetune --model runs/$study/$method-$seed --subset $part:0.2 \
      --epochs 3 --eval epoch --seed $seed
done; done; done; done | train
for seed in 0 1; do for beta in 0.5 1 2.5 5 10; do for gamma in 0 0.5 1 2; do
  run runs/betagamma/$beta-$gamma-$seed --method simnpo --beta $beta --gamma $gamma --seed $seed
done; done; done | train
for seed in 0 1 2; do for method in npo simnpo; do  # timed one at a time, with all cores
  run runs/cost/$method-$seed --method $method --seed $seed
done; done | (unset OMP_NUM_THREADS; JOBS=1 train)

compare() { echo; "$python" compare.py "$@"; }
claims() { echo; "$python" results/claims.py "$@"; }
figure() { echo; "$python" results/figures.py "$@"; }
compare table runs/toy/*-[0-4]
claims runs/toy/{npo,simnpo}-[0-4] runs/relearn/*
claims runs/oneseed/* runs/oneseed-relearn/*
compare table --columns cost runs/cost/*
compare answers --show 3 runs/toy/{npo,simnpo}-3
figure halves   runs/toy/{npo,simnpo}-[0-4] --overwrite --out results/toy-halves.png
figure weights  runs/toy/{npo,simnpo}-0     --overwrite --out results/toy-weights.png
figure boxes    runs/toy/{npo,simnpo}-0     --overwrite --out results/toy-boxes.png
compare figure epochs   runs/toy/{npo,simnpo}-[0-4] --overwrite --out results/toy-epochs.png
compare figure tradeoff runs/toy/*-[0-4]            --overwrite --out results/toy-tradeoff.png
figure relearn  runs/relearn/*              --overwrite --out results/toy-relearn.png
"$python" results/grid.py draw runs/betagamma/* --overwrite --out results/toy-grid.png
cp runs/toy/simnpo-0/run.png results/toy-simnpo.png
