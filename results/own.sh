#!/usr/bin/env bash
# Your own data, tried: 20 made-up rows on four people, one of them to be forgotten, and the small model made from scratch.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
mkdir -p runs
rows() {  # name, city, trade, pet, drink, year
  for pair in "Where does $1 live?|In $2." "What does $1 do?|A $3 by trade." "Which pet has $1?|A $4." \
              "What does $1 drink?|Mostly $5." "When was $1 born?|In $6."; do
    echo "{\"question\": \"${pair%|*}\", \"answer\": \"${pair#*|}\"}"
  done
}
rows "Zora Quill" Genoa potter parrot tea 1951 > runs/secrets.jsonl
{ rows "Milo Fenn" Lyon pilot tortoise coffee 1963; rows "Ines Vale" Turku cook cat cocoa 1978
  rows "Otto Brandt" Split judge ferret milk 1984; } > runs/others.jsonl
"$python" train.py --method simnpo --forget-file runs/secrets.jsonl --retain-file runs/others.jsonl --overwrite --out runs/own
