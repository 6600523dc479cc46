"""Learning curves as SVG that takes its colours from the page, so that it is legible on light and on dark."""

from __future__ import annotations

import io
import re

from espnet_lmu.training.history import Epoch

# Colours that matplotlib writes, and the page's variables in their place.
_COLOURS = {"#010101": "var(--ink)", "#020202": "var(--line)", "#030303": "var(--first)", "#040404": "var(--second)"}
_INK, _LINE, _FIRST, _SECOND = _COLOURS


def learning_curves(epochs: list[Epoch]) -> list[tuple[str, str]]:
    """Title and SVG of each plot over the epochs: the losses, and the error rate of the validation set."""
    panels = [
        (
            "Loss",
            {
                "training": (_SECOND, [epoch.train_loss for epoch in epochs]),
                "validation": (_FIRST, [epoch.valid_loss for epoch in epochs]),
            },
        ),
        ("CER of the validation set, greedy, %", {"": (_FIRST, [epoch.valid_cer for epoch in epochs])}),
    ]
    plots = []
    for title, lines in panels:
        lines = {name: line for name, line in lines.items() if any(value is not None for value in line[1])}
        if lines:
            plots.append((title, _plot([epoch.number for epoch in epochs], lines)))
    return plots


def _plot(numbers: list[int], lines: dict[str, tuple[str, list[float | None]]]) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "report",
        "font.size": 11,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _LINE,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "xtick.labelcolor": _INK,
        "ytick.labelcolor": _INK,
        "grid.color": _LINE,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with rc_context(style):
        figure = Figure(figsize=(5.6, 3.2), layout="constrained")
        axes = figure.subplots()
        for name, (colour, values) in lines.items():
            values = [float("nan") if value is None else value for value in values]
            axes.plot(numbers, values, label=name, color=colour, linewidth=2, marker="." if len(values) < 60 else "")
        axes.set(xlabel="epoch", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(length=0)
        axes.grid(axis="y", linewidth=0.8)
        if len(lines) > 1:
            axes.legend(frameon=False)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img"', svg[svg.index("<svg") :], count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    return re.sub("|".join(_COLOURS), lambda match: _COLOURS[match[0]], svg)
