#!/usr/bin/env bash
# The methods at equal forgetting on the toy; the plan is in paths.md.
#   results/paths.sh tune     the settings of every method on seeds 100 to 102, and what the rule looks at
#   results/paths.sh          the runs of seeds 0 to 19, verdicts and pictures
# Two runs at a time (JOBS), one thread each. A run that is there is not made again. TASK=tofu SEEDS="0 1 2 3 4"
# does the same on TOFU, where one GPU needs it.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
task=${TASK:-toy}
seeds=${SEEDS:-$(seq 0 19)}
export OMP_NUM_THREADS=1
mkdir -p runs

run() { [ -f "$1/metrics.json" ] || echo "--overwrite --out $* --task $task --batch-size 8 --micro-batch-size 8 --epochs 16"; }
train() { xargs -r -P "${JOBS:-2}" -L 1 "$python" results/hybrids.py >> runs/paths.txt; }

if [ "${1:-}" = tune ]; then
  for seed in 100 101 102; do
    for coeff in 0.003 0.01 0.03; do for beta in 0.05 0.1 0.2 0.5; do
      run runs/tune/npo-$seed-$coeff-$beta --method npo --forget-coeff $coeff --beta $beta --lr 5e-4 --seed $seed
    done; done
    for coeff in 0.03 0.1 0.3; do for beta in 0.5 1 2.5 5; do
      run runs/tune/simnpo-$seed-$coeff-$beta --method simnpo --forget-coeff $coeff --beta $beta --lr 5e-4 --seed $seed
    done; done
    for coeff in 0.01 0.015 0.02 0.03 0.05 0.07 0.1 0.15 0.2 0.3 0.5 1; do
      run runs/tune/wgraddiff-$seed-$coeff --method wgraddiff --forget-coeff $coeff --lr 5e-4 --seed $seed
    done
    for coeff in 0.0005 0.001 0.0015 0.002 0.003 0.005 0.007 0.01 0.015 0.02 0.03 0.05; do
      run runs/tune/graddiff-$seed-$coeff --method graddiff --forget-coeff $coeff --lr 5e-4 --seed $seed
    done
  done | train
  "$python" results/grid.py paths runs/tune/*
  exit
fi

# What the rule chose.
declare -A setting=(
  [simnpo]="--forget-coeff 0.1 --beta 1" [npo]="--forget-coeff 0.01 --beta 0.1"
  [wgraddiff]="--forget-coeff 0.07" [graddiff]="--forget-coeff 0.005"
  [npo-mean]="--forget-coeff 0.1 --beta 1" [simnpo-sum]="--forget-coeff 0.01 --beta 0.1")  # SimNPO's, and NPO's
unlearn() {  # name, set-up, split, lr, seed, flags
  share=$([ "$2" = known ] || echo "--never-learnt 0.5")
  run "runs/paths-$task/$2-$3-$4/$1-$5" --split "$3" --lr "$4" --seed "$5" $share "${@:6}"
}
for seed in $seeds; do for setup in known half; do
  for split in forget10 forget05; do for method in simnpo npo wgraddiff graddiff; do
    unlearn $method $setup $split 5e-4 $seed --method $method ${setting[$method]}
  done; done
done; done | train
for lr in 2.5e-4 1e-3; do for seed in $seeds; do for setup in known half; do for split in forget10 forget05; do
  for method in simnpo npo; do unlearn $method $setup $split $lr $seed --method $method ${setting[$method]}; done
done; done; done; done | train
for seed in $seeds; do for setup in known half; do  # which part of the weight does it, and what the margin does
  for method in npo-mean simnpo-sum; do
    unlearn $method $setup forget10 5e-4 $seed --method $method ${setting[$method]}
  done
  for gamma in 1 2; do
    unlearn simnpo-gamma$gamma $setup forget10 5e-4 $seed --method simnpo ${setting[simnpo]} --gamma $gamma
  done
  unlearn simnpo-beta0 $setup forget10 5e-4 $seed --method simnpo ${setting[simnpo]} --beta 0
done; done | train

paths() { echo; echo "== $*" | cut -c1-120; "$python" results/paths.py "$@"; }
for lr in 5e-4 2.5e-4 1e-3; do for setup in known half; do for split in forget10 forget05; do
  at=runs/paths-$task/$setup-$split-$lr
  paths $at/simnpo-[0-9]* $at/npo-[0-9]* $([ $lr = 5e-4 ] && echo $at/{wgraddiff,graddiff}-*)
done; done; done
for setup in known half; do
  at=runs/paths-$task/$setup-forget10-5e-4
  for other in npo-mean simnpo-sum simnpo-gamma1 simnpo-gamma2 simnpo-beta0; do
    paths $at/simnpo-[0-9]* $at/$other-*
  done
  paths $at/{simnpo,npo}-[0-9]* $at/{wgraddiff,graddiff}-* --overwrite --out results/$task-paths-$setup.png
done

# A constant in the truth ratio: runs that forget too much, and SimNPO with the published coefficients for forget10.
for seed in 0 1 2; do
  over() { run "runs/over/$1-$seed" "${@:2}" --seed $seed | sed 's/ --batch-size.*//'; }
  for lr in 3e-4 1e-3 3e-3; do
    over simnpo-published-$lr --method simnpo --beta 4.5 --forget-coeff 0.125 --epochs 10 --lr $lr
  done
  for coeff in 1 10; do over simnpo-$coeff --method simnpo --beta 0.1 --forget-coeff $coeff; done
  for coeff in 0.1 1; do over npo-$coeff --method npo --beta 0.01 --forget-coeff $coeff; done
  for coeff in 0.3 1 3 10; do over wgraddiff-$coeff --method wgraddiff --forget-coeff $coeff; done
done | train
"$python" results/constant.py runs runs/over/* --overwrite --out results/constant.png
