"""Rows to try unlearning on your own data with: questions on invented authors, or articles on them, as files.

    python results/own_rows.py FOLDER --forget 20 --retain 60 [--holdout 40] [--text]

Writes forget.jsonl, retain.jsonl and holdout.jsonl: ten rows an author, with --text an article each, and each author in
one of the files. Every question also stands in other words, as `paraphrase`. The authors are those of the toy task, and
of further worlds like it.
"""

import itertools
import json
import random
from pathlib import Path

from common import OneLineParser, check_new

from benchmarks import toy
from machinery.command import number, run_command
from machinery.inputs import InputError

PER_AUTHOR = len(toy.QUESTIONS)
MOST = toy.AUTHORS**2  # authors: names are of as many first as last ones


def people():
    """({field: fact}, ten rows) of authors, each of another name, of which there are MOST."""
    names = set()
    for seed in itertools.count():
        for fact, rows in toy.authors(random.Random(seed)):
            if fact["name"] not in names:
                names.add(fact["name"])
                yield fact, rows


def rows_of(fact, rows, as_text, draw):
    if as_text:
        return [{"text": toy.article(fact, draw)}]
    return [
        {"question": row["question"], "answer": row["answer"], "paraphrase": row["paraphrased_question"]}
        for row in rows
    ]


def run(args):
    counts = {"forget": args.forget, "retain": args.retain, "holdout": args.holdout}
    size = 1 if args.text else PER_AUTHOR
    for name, count in counts.items():
        if count % size:
            raise InputError(f"--{name} {count}: an author has {size} questions; give a multiple of that")
    if sum(counts.values()) > MOST * size:
        raise InputError(f"there are {MOST} names, so at most {MOST * size} rows in all; give less")
    check_new(args.out)

    args.out.mkdir(parents=True, exist_ok=True)
    everybody, draw = people(), random.Random(0)
    for name, count in counts.items():
        rows = [rows_of(*author, args.text, draw) for author in itertools.islice(everybody, count // size)]
        lines = [json.dumps(row) + "\n" for row in itertools.chain(*rows)]
        (args.out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"written: {args.out}/" + ", ".join(f"{name}.jsonl ({count} rows)" for name, count in counts.items()))


def main(argv=None):
    parser = OneLineParser(prog="own_rows.py", description=__doc__)
    parser.add_argument("out", type=Path, metavar="FOLDER")
    for name, count in (("forget", 20), ("retain", 60), ("holdout", 40)):
        parser.add_argument(f"--{name}", type=number(int, 0), default=count, help="rows (default: %(default)s)")
    parser.add_argument("--text", action="store_true", help="articles in place of questions")
    run_command(parser, run, argv=argv)


if __name__ == "__main__":
    main()
