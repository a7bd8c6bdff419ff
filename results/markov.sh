#!/usr/bin/env bash
# The synthetic study: Fig. 6, the search for β, and what the initialization does. A GPU takes minutes, 2 CPU cores hours.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
study() { echo "== $*"; "$python" markov.py "$@"; }

study --seeds 10 --out runs/markov
cp runs/markov/fig6.png results/markov-fig6.png
cp runs/markov/power.png results/markov-power.png
study --seeds 10 --init gpt2 --out runs/markov-gpt2
study --seeds 3 --grid --out runs/markov-grid
"$python" results/markov_grid.py runs/markov-grid --overwrite --out results/markov-grid.png

# The size of the token embeddings, all else at GPT-2's scale, at the full and at a quarter of the learning rate.
left="--quick --panel left --init gpt2 --jobs 2 --probes 1"
quarter="--unlearn-lr 1.25e-4 --iterations 160 --eval-every 4"
study $left --seeds 8 --embedding-std 1 --out runs/markov-embed-1
study $left --seeds 8 $quarter --out runs/markov-quarter-tied
study $left --seeds 6 $quarter --embedding-std 0.02 --out runs/markov-quarter-0.02
study $left --seeds 4 $quarter --embedding-std 0.3 --out runs/markov-quarter-0.3
study $left --seeds 8 $quarter --embedding-std 1 --out runs/markov-quarter-1
