#!/usr/bin/env bash
# MUSE's and WMDP's twins, and the toy's two further methods: all methods, five seeds, and how they were tuned.
#   results/twins.sh tune     grids on seeds 100 to 102, and the best setting of each method
#   results/twins.sh          the tables, with the recipes chosen so, and Fig. A2
# Two runs at a time (JOBS), one thread each. A run that is there is not made again.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=1
mkdir -p runs

combinations() {  # of flag=value,value… arguments: every one, as flags
  [ $# = 0 ] && { echo; return; }
  for value in $(tr , ' ' <<< "${1#*=}"); do combinations "${@:2}" | sed "s/^/--${1%%=*} $value /"; done
}
grid() {  # task, method, flag=value,value…
  combinations "${@:3}" | while read -r flags; do for seed in 100 101 102; do
    out=runs/tuning-$1/$2-$seed-$(tr -d ' ' <<< "$flags")
    [ -f "$out/metrics.json" ] || echo "--overwrite --out $out --task $1 --method $2 --seed $seed $flags"
  done; done
}
train() { sed 's/ *$//' | xargs -r -P "${JOBS:-2}" -L 1 "$python" train.py >> runs/twins.txt; }

if [ "${1:-}" = tune ]; then
  for task in ${TASKS:-toy-muse toy-wmdp}; do
    grid $task ga lr=3e-5,1e-4,3e-4 epochs=10,20
    grid $task graddiff lr=3e-4,1e-3 forget-coeff=0.001,0.003,0.01,0.03
    grid $task wgraddiff lr=3e-4,1e-3 forget-coeff=0.03,0.1,0.3,1
    grid $task npo lr=3e-4,1e-3 forget-coeff=0.03,0.1,0.3 beta=0.05,0.2
    grid $task simnpo lr=3e-4,1e-3 forget-coeff=0.1,0.3,1 beta=1,2.5
    grid $task task-vector lr=3e-4,1e-3 alpha=0.5,1,2,4
    grid $task rmu lr=1e-3,3e-3 steer=10,30 alpha=1,10
  done | train
  { grid toy task-vector lr=3e-4,1e-3 alpha=0.5,1,2,4; grid toy rmu lr=1e-3,3e-3 steer=10,30 alpha=1,10; } | train
  # The second step, after a look at the first: beyond the edges on which the best settings lay.
  {
    grid toy-muse graddiff lr=3e-4 forget-coeff=0.0003
    grid toy-muse graddiff lr=1e-4 forget-coeff=0.003
    grid toy-muse wgraddiff lr=1e-3 forget-coeff=0.01
    grid toy-muse wgraddiff lr=1e-4 forget-coeff=0.3
    grid toy-muse npo lr=3e-4,1e-3 forget-coeff=0.03,0.1 beta=0.01,0.02
    grid toy-muse simnpo lr=3e-4 forget-coeff=0.3 beta=0.5
    grid toy-muse simnpo lr=1e-4 forget-coeff=1 beta=1
    grid toy-wmdp graddiff lr=3e-3 forget-coeff=0.001,0.003
    grid toy-wmdp wgraddiff lr=3e-3 forget-coeff=0.03,0.1
    grid toy-wmdp npo lr=3e-3 forget-coeff=0.03,0.1 beta=0.02,0.05
    grid toy-wmdp npo lr=1e-3 forget-coeff=0.03,0.1 beta=0.02
    grid toy-wmdp simnpo lr=3e-3 forget-coeff=0.1,0.3 beta=0.5,1
    grid toy-wmdp simnpo lr=1e-3 forget-coeff=0.3,1 beta=0.5
    grid toy-wmdp rmu lr=1e-2 steer=10 alpha=10
  } | train
  for task in toy-muse toy-wmdp toy; do echo "== $task"; "$python" results/grid.py choose runs/tuning-$task/*; done
  exit
fi

for seed in 0 1 2 3 4; do
  for task in toy-muse toy-wmdp; do for method in ga graddiff wgraddiff npo simnpo task-vector rmu; do
    [ -f runs/$task/$method-$seed/metrics.json ] ||
      echo "--overwrite --out runs/$task/$method-$seed --task $task --method $method --seed $seed"
  done; done
  for method in task-vector rmu; do  # toy.sh makes the others
    [ -f runs/toy/$method-$seed/metrics.json ] || echo "--overwrite --out runs/toy/$method-$seed --method $method --seed $seed"
  done
done | train
for task in toy-muse toy-wmdp toy; do echo; "$python" compare.py table runs/$task/*-[0-4]; done
"$python" results/figures.py mink runs/toy-muse/{npo,simnpo}-[0-4] --overwrite --out results/muse-mink.png
for task in toy-muse toy-wmdp; do
  "$python" compare.py figure tradeoff runs/$task/*-[0-4] --overwrite --out results/$task-tradeoff.png
done
