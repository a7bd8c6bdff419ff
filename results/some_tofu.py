"""TOFU cut to a few authors, as a folder in the layout of the Hub's: what a CPU can learn and forget in minutes.

    python results/some_tofu.py FOLDER --authors 5 [--rows 8]
    python train.py --task tofu --data FOLDER --split forget40 …

TOFU's last two authors are to be forgotten, with the smaller of the two splits only the last. The others are retained:
TOFU's first, which alone have perturbed rows. Beside them a share of the real authors and world facts.
"""

import json
from pathlib import Path

from common import OneLineParser, check_new

from benchmarks.tofu import BASE_KNOWLEDGE, TOFU, load_rows
from machinery.command import number, run_command
from machinery.inputs import InputError

OF_ONE = 20  # rows of an author in TOFU
SIZES = 5, 10, 20  # of which one and two are shares with a split's name; no more have perturbed rows


def questions(rows):
    return {row["question"] for row in rows}


def cut(data, authors, rows):
    """{configuration: rows}, of so many authors, the first so many rows of each."""
    full = load_rows(data, "full")
    by_author = [full[start : start + OF_ONE][:rows] for start in range(0, len(full), OF_ONE)]
    people = by_author[: authors - 2] + by_author[-2:]

    # two forget sets, and what stays beside each
    configs = {"full": sum(people, [])}
    for count in (2, 1):
        share = 100 * count // authors
        configs[f"forget{share:02d}"] = sum(people[-count:], [])
        configs[f"retain{100 - share:02d}"] = sum(people[:-count], [])

        # what is asked of it
        asked = questions(configs[f"forget{share:02d}"])
        configs[f"forget{share:02d}_perturbed"] = [
            row for row in load_rows(data, "forget10_perturbed") if row["question"] in asked
        ]

    # what is asked of all the rest
    asked = questions(sum(people[:-2], []))
    configs["retain_perturbed"] = [row for row in load_rows(data, "retain_perturbed") if row["question"] in asked]
    for name in BASE_KNOWLEDGE:
        perturbed = load_rows(data, f"{name}_perturbed")
        configs[f"{name}_perturbed"] = perturbed[:: max(1, len(perturbed) // (2 * authors))]
        configs[name] = [
            {field: row[field] for field in ("question", "answer")} for row in configs[f"{name}_perturbed"]
        ]
    return configs


def card_of(configs):
    """README.md of a data set, which tells the library its configurations."""
    lines = ["---", "license: mit", "configs:"]
    for name in configs:
        lines += [f"- config_name: {name}", f"  data_files: {name}.json"]
    return "\n".join([*lines, "---", "A part of TOFU (Maini et al. 2024), cut by results/some_tofu.py.", ""])


def run(args):
    if args.authors not in SIZES:
        raise InputError(f"--authors {args.authors}: give one of {', '.join(map(str, SIZES))}")
    check_new(args.out)
    configs = cut(args.data, args.authors, args.rows)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in configs.items():
        lines = [json.dumps(row) + "\n" for row in rows]
        (args.out / f"{name}.json").write_text("".join(lines), encoding="utf-8")
    (args.out / "README.md").write_text(card_of(configs), encoding="utf-8")
    sizes = ", ".join(f"{name} {len(rows)}" for name, rows in configs.items())
    print(f"written: {args.out} ({sizes})")


def main(argv=None):
    parser = OneLineParser(prog="some_tofu.py", description=__doc__)
    parser.add_argument("out", type=Path, metavar="FOLDER")
    parser.add_argument("--authors", type=number(int, 5), default=5, help="of TOFU's 200 (default: %(default)s)")
    parser.add_argument("--rows", type=number(int, 2, high=OF_ONE), default=OF_ONE, help="of each (default: all)")
    parser.add_argument("--data", default=TOFU.data, help="TOFU: a Hub id or a folder (default: %(default)s)")
    run_command(parser, run, argv=argv)


if __name__ == "__main__":
    main()
