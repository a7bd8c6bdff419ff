#!/usr/bin/env bash
# How the toy's recipes were chosen: grids of runs on seeds that no table uses, and the best setting of each method.
#   results/tuning.sh one-seed       all methods on seed 100, the first protocol
#   results/tuning.sh three-seeds    NPO, SimNPO and Weighted-GradDiff on seeds 100 to 102, the second one
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=1

grid() {  # method, seeds, learning rates, forget coefficients, epochs, betas (- for none)
  for seed in $2; do for lr in $3; do for coeff in $4; do for epochs in $5; do for beta in $6; do
    out=runs/tuning-$protocol/$1-$seed-$lr-$coeff-$epochs-$beta
    temperature=$([ "$beta" = - ] || echo "--beta $beta ")
    [ -f $out/metrics.json ] || echo "--overwrite --out $out --method $1 $temperature--seed $seed --lr $lr" \
      "--forget-coeff $coeff --epochs $epochs"
  done; done; done; done; done
}
protocol=${1:-three-seeds}
mkdir -p runs
case $protocol in
  one-seed)
    grid ga        100 "1e-4 3e-4"      1                   "5 10 20" -
    grid graddiff  100 "3e-4 1e-3"      "0.03 0.1 0.3 1"    "10 20"   -
    grid wgraddiff 100 "3e-4 1e-3 3e-3" "0.03 0.1 0.3 1 3"  "10 20"   -
    for method in idk dpo; do grid $method 100 "3e-4 1e-3" "0.03 0.1 0.3 1" "5 10 20" "$([ $method = dpo ] && echo 0.1 || echo -)"; done
    grid npo       100 "3e-4 1e-3 3e-3" "0.03 0.1 0.3 1 3"  "10 20"   "0.05 0.1 0.2 0.5"
    grid simnpo    100 "3e-4 1e-3 3e-3" "0.03 0.1 0.3 1 3 10 30 100" "10 20" "0.5 1 2.5 5" ;;
  three-seeds)
    grid wgraddiff "100 101 102" 1e-3 "0.03 0.1 0.3" "10 20" -
    grid npo       "100 101 102" 1e-3 "0.03 0.1 0.3" "10 20" "0.1 0.2"
    grid simnpo    "100 101 102" 1e-3 "0.3 1 3 10"   "10 20" "1 2.5" ;;
esac | xargs -r -P "${JOBS:-2}" -L 1 "$python" train.py >> runs/tuning.txt
"$python" results/grid.py choose runs/tuning-$protocol/*
