"""The search for β that App. B mentions: chooses each method's β from `markov.py --grid`, and draws all of them.

python markov.py --seeds 3 --grid --out runs/markov-grid
python results/markov_grid.py runs/markov-grid
"""

import argparse
import json
import math
import sys
from pathlib import Path

import matplotlib
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import markov


def choose_betas(results, panels):
    """{panel: {method: β}} with the least mean retain distance at the retrained model's KL; ties to the first.

    Mean over the forget chains that pretraining saw. A β that does not get there in every seed is out,
    unless none does.
    """

    def cost(panel, method, beta):
        values = [
            markov.crossing(result[panel][f"{method} {beta:g}"], name, result["retrained"][panel][name])
            for result in results
            for name in markov.FORGET
            if name in panels[panel][1]
        ]
        return math.inf if None in values else float(np.mean(values))

    return {
        panel: {
            method: min(markov.GRID[method], key=lambda beta: cost(panel, method, beta)) for method in markov.METHODS
        }
        for panel in panels
    }


def draw_grid(results, panels, path):
    """The tradeoff of every β: retain distance against the mean KL of the forget chains that were learnt."""

    def panel_of(axis, panel):
        seen = [name for name in markov.FORGET if name in panels[panel][1]]
        for method, colours in (("npo", "Blues"), ("simnpo", "Oranges")):
            for beta, strength in zip(markov.GRID[method], np.linspace(0.4, 1, len(markov.GRID[method]))):
                paths = [result[panel][f"{method} {beta:g}"] for result in results]
                axis.plot(
                    np.mean([[p[name] for name in seen] for p in paths], axis=(0, 1)),
                    np.mean([p["retain"] for p in paths], axis=0),
                    label=f"{markov.NAMES[method]} β={beta:g}",
                    color=matplotlib.colormaps[colours](strength),
                )
        axis.set(xlabel="forget quality, mean over learnt chains and seeds", xlim=(0, 1.5), ylim=(0, 0.4))

    markov.figure(path, panels, "retain distance", panel_of, fontsize=6, ncols=2)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="markov_grid.py", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="what --out of `markov.py --grid` was")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("markov-grid.png"), help="a PNG")
    args = parser.parse_args(argv)
    try:
        content = json.loads((args.folder / "markov.json").read_text(encoding="utf-8"))
        panels, results = content["settings"]["panels"], content["seeds"]
        print("chosen β:", json.dumps(choose_betas(results, panels)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.exit(2, f"markov_grid.py: {args.folder} holds no markov.json of `markov.py --grid` ({error!r})\n")
    try:
        draw_grid(results, panels, args.out)
    except (OSError, ValueError) as error:
        parser.exit(2, f"markov_grid.py: cannot write {args.out} ({error}); give --out a PNG in a writable folder\n")
    print(f"drawn: {args.out}")


if __name__ == "__main__":
    main()
