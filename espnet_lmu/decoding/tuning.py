"""Weight of the language model and insertion score with the fewest word errors on the validation set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_lmu.data.files import atomic_open


@dataclass(frozen=True)
class Tuning:
    """Word error rates over a grid.

    Args:
        lm_weights: (W,), ascending.
        insertion_scores: (S,), ascending.
        rates: (W, S) word error rates in percent.
    """

    lm_weights: list[float]
    insertion_scores: list[float]
    rates: np.ndarray

    @classmethod
    def of(cls, lm_weights: list[float], insertion_scores: list[float], rates: list[float]) -> Tuning:
        """The grid from `rates` in the order of `itertools.product`."""
        return cls(lm_weights, insertion_scores, np.reshape(rates, (len(lm_weights), len(insertion_scores))))

    @property
    def best(self) -> tuple[float, float]:
        """lm_weight and insertion_score with the lowest rate; of equal ones those nearest to the middle of them."""
        candidates = np.argwhere(self.rates == self.rates.min())
        middle = np.median(candidates, axis=0)
        i, j = min(candidates, key=lambda pair: (np.abs(pair - middle).sum(), *pair))
        return self.lm_weights[i], self.insertion_scores[j]

    def at_the_end(self) -> list[str]:
        """Settings whose best value is the first or last of several: others beyond may be better."""
        sides = {"lm_weight": self.lm_weights, "insertion_score": self.insertion_scores}
        return [
            name
            for (name, values), best in zip(sides.items(), self.best, strict=True)
            if len(values) > 1 and best in (values[0], values[-1]) and best != 0
        ]

    def table(self) -> str:
        """The rates as Markdown, the best one in bold."""
        header = "|lm_weight|" + "".join(f"insertion_score {score:g}|" for score in self.insertion_scores)
        lines = [header, "|---" * (1 + len(self.insertion_scores)) + "|"]
        for i, weight in enumerate(self.lm_weights):
            cells = []
            for j, score in enumerate(self.insertion_scores):
                cell = f"{self.rates[i, j]:.2f}"
                cells.append(f"**{cell}**" if (weight, score) == self.best else cell)
            lines.append(f"|{weight:g}|" + "".join(f"{cell}|" for cell in cells))
        return "\n".join(lines) + "\n"


def write_tuning(directory: Path, name: str, tuning: Tuning) -> None:
    """Write ``tuning.md`` and ``tuning.png``: word error rate of set `name` over the weight, a line for each score."""
    from matplotlib.figure import Figure

    weight, score = tuning.best
    with atomic_open(directory / "tuning.md") as stream:
        stream.write(f"WER in percent on {name}; best: lm_weight {weight:g}, insertion_score {score:g}\n\n")
        stream.write(tuning.table())
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    over_weights = len(tuning.lm_weights) > 1 or len(tuning.insertion_scores) == 1
    if over_weights:
        for values, line in zip(tuning.rates.T, tuning.insertion_scores, strict=True):
            axes.plot(tuning.lm_weights, values, marker=".", label=f"{line:g}")
        axes.set_xlabel("lm_weight")
        axes.legend(title="insertion_score")
    else:
        axes.plot(tuning.insertion_scores, tuning.rates[0], marker=".")
        axes.set_xlabel("insertion_score")
    axes.plot(
        weight if over_weights else score, tuning.rates.min(), "o", markersize=12, fillstyle="none", color="black"
    )
    axes.set_ylabel("WER (%)")
    axes.set_title(f"{name}: {tuning.rates.min():.2f} % with lm_weight {weight:g}, insertion_score {score:g}")
    axes.grid(alpha=0.3)
    temporary = directory / ".tuning.tmp.png"
    figure.savefig(temporary, dpi=120)
    temporary.replace(directory / "tuning.png")
