"""The search for β that App. B mentions: chooses each method's β from `markov.py --grid`, and draws all of them.

python markov.py --seeds 3 --grid --out runs/markov-grid
python results/markov_grid.py runs/markov-grid
"""

import json
import math
import sys
from pathlib import Path

import matplotlib
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import markov
from compare import add_picture_flags, check_picture
from machinery.command import OneLineParser, run_command
from machinery.inputs import InputError

COLOURMAPS = {"npo": "Blues", "simnpo": "Oranges"}


def seen_of(panel, panels):
    """The forget chains that pretraining saw."""
    return [name for name in markov.FORGET if name in panels[panel][1]]


def choose_betas(results, panels):
    """{panel: {method: β}} with the least mean retain distance at the retrained model's KL; ties to the first.

    Mean over the forget chains that pretraining saw. A β that does not get there in every seed is out,
    unless none does.
    """

    def cost(panel, method, beta):
        values = []
        for result in results:
            path, retrained = result[panel][f"{method} {beta:g}"], result["retrained"][panel]
            values += [markov.reading(path, name, retrained[name]) for name in seen_of(panel, panels)]
        return math.inf if None in values else float(np.mean(values))

    chosen = {panel: {} for panel in panels}
    for panel in panels:
        for method in markov.METHODS:
            costs = {beta: cost(panel, method, beta) for beta in markov.GRID[method]}
            chosen[panel][method] = min(costs, key=costs.get)
    return chosen


def draw_grid(results, panels, path):
    """The tradeoff of every β: retain distance against the mean KL of the forget chains that were learnt."""

    def draw_panel(axis, panel):
        seen = seen_of(panel, panels)
        for method, betas in markov.GRID.items():
            colours = matplotlib.colormaps[COLOURMAPS[method]](np.linspace(0.4, 1, len(betas)))
            for beta, colour in zip(betas, colours, strict=True):
                paths = [result[panel][f"{method} {beta:g}"] for result in results]
                x = np.mean([[path[name] for name in seen] for path in paths], axis=(0, 1))
                y = np.mean([path["retain"] for path in paths], axis=0)
                axis.plot(x, y, label=f"{markov.NAMES[method]} β={beta:g}", color=colour)
        axis.set(xlabel="forget quality, mean over learnt chains and seeds", xlim=(0, 1.5), ylim=(0, 0.4))

    markov.figure(path, panels, "retain distance", draw_panel, fontsize=6, ncols=2)


def run(args):
    try:
        content = json.loads((args.folder / "markov.json").read_text(encoding="utf-8"))
        panels, results = content["settings"]["panels"], content["seeds"]
        chosen = choose_betas(results, panels)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{args.folder} holds no markov.json of `markov.py --grid` ({error!r})") from None
    out = check_picture(args.out or "markov-grid.png", args.overwrite)
    print("chosen β:", json.dumps(chosen))
    draw_grid(results, panels, out)
    print(f"drawn: {out}")


def main(argv=None):
    parser = OneLineParser(prog="markov_grid.py", description=__doc__)
    parser.add_argument("folder", type=Path, help="what --out of `markov.py --grid` was")
    add_picture_flags(parser, "markov-grid.png")
    run_command(parser, run, argv=argv)


if __name__ == "__main__":
    main()
