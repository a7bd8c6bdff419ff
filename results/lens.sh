#!/usr/bin/env bash
# The losses that came after SimNPO at equal forgetting on the toy, tuned and read as in paths.sh; the plan is in lens.md.
#   results/lens.sh tune     twelve settings of each on seeds 100 to 102, grids moved once, and what the rule looks at
#   results/lens.sh          the runs of seeds 0 to 19, verdicts, where they end
# Two runs at a time (JOBS), one thread each. A run that is there is not made again.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
at=${AT:-runs/lens}
seeds=${SEEDS:-$(seq 0 19)}
export OMP_NUM_THREADS=1
mkdir -p "$at"

run() { [ -f "$1/metrics.json" ] || echo "--overwrite --out $* --lr 5e-4 --retain-coeff 1 --batch-size 8 --micro-batch-size 8 --epochs 16"; }
# hybrids.py: train.py, with npo-mean besides
train() { xargs -r -P "${JOBS:-2}" -L 1 "$python" results/hybrids.py >> "$at/log.txt"; }
tune() {  # method, seed, coefficient, flags
  run "$at/tune/$1-$2-$3$(tr -d ' ' <<< "${*:4}")" --method "$1" --seed "$2" --forget-coeff "$3" "${@:4}"
}

if [ "${1:-}" = tune ]; then
  for seed in 100 101 102; do
    for coeff in 0.03 0.1 0.3; do
      for beta in 0.25 0.5 1 2; do tune wga $seed $coeff --beta $beta; done
      for beta in 0.5 1 2.5 5; do tune tnpo $seed $coeff --beta $beta; done
      for beta in 2 5 10 20; do tune undial $seed $coeff --beta $beta; done
    done
    for coeff in 1 3 10; do
      for betas in "5 --beta2 1" "2 --beta2 1" "1 --beta2 1" "1 --beta2 0.1"; do tune satimp $seed $coeff --beta $betas; done
    done
    for coeff in 0.001 0.002 0.003 0.005 0.007 0.01 0.02 0.03 0.05 0.07 0.1 0.3; do tune ceu $seed $coeff; done
    # moved: WGA's and TNPO's choice lay on an edge; UNDIAL got there too early, then too late, hence the three between
    for beta in 0.5 1 2 4; do tune wga $seed 1 --beta $beta; done
    for coeff in 0.1 0.3; do tune wga $seed $coeff --beta 4; done
    for beta in 0.5 1 2.5 5; do tune tnpo $seed 1 --beta $beta; done
    for coeff in 0.003 0.01; do
      for beta in 7 10 14 20; do tune undial $seed $coeff --beta $beta; done
    done
    for beta in 10 14 20; do tune undial $seed 0.02 --beta $beta; done
  done | train
  "$python" results/grid.py paths "$at"/tune/*/
  exit
fi

# What the rule chose; SimNPO's, NPO's and Weighted-GradDiff's are those of paths.sh.
declare -A setting=(
  [simnpo]="--forget-coeff 0.1 --beta 1" [npo]="--forget-coeff 0.01 --beta 0.1" [wgraddiff]="--forget-coeff 0.07"
  [wga]="--forget-coeff 0.3 --beta 2" [satimp]="--forget-coeff 3 --beta 1 --beta2 1" [tnpo]="--forget-coeff 0.3 --beta 2.5"
  [ceu]="--forget-coeff 0.007" [undial]="--forget-coeff 0.02 --beta 10")
for seed in $seeds; do for setup in known half; do
  share=$([ $setup = known ] || echo "--never-learnt 0.5")
  for method in simnpo npo wgraddiff wga satimp tnpo ceu undial; do
    run "$at/$setup/$method-$seed" --seed "$seed" $share --method $method ${setting[$method]}
  done
done; done | train
for seed in $seeds; do for method in simnpo npo-mean; do  # is it the weight of single tokens, or that it dies sooner?
  run "$at/sooner/$method-$seed" --seed "$seed" --never-learnt 0.5 --method $method --forget-coeff 0.3 --beta 2.5
done; done | train

for setup in known half; do
  echo; "$python" results/paths.py "$at/$setup"/simnpo-*/ "$at/$setup"/{npo,wgraddiff,wga,satimp,tnpo,ceu,undial}-*/ \
    --overwrite --out "results/lens-paths-$setup.png"
done
for method in simnpo npo-mean; do
  echo; "$python" results/paths.py "$at"/sooner/$method-*/ "$at"/half/{simnpo,wga,satimp,tnpo,ceu,undial}-*/
done
echo; "$python" compare.py table --columns all "$at"/known/*/
