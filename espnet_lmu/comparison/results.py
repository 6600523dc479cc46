"""Error rates, training time and speed of the finished runs of a comparison, as one table."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_lmu.comparison.plan import Run
from espnet_lmu.errors import UserError
from espnet_lmu.scoring.bootstrap import bootstrap_interval
from espnet_lmu.scoring.error_rate import (
    Split,
    align,
    count_errors,
    count_marks,
    read_texts,
    split_characters,
    split_words,
)
from espnet_lmu.training.history import read_history

SPLITS: dict[str, Split] = {"WER": split_words, "CER": split_characters}


@dataclass
class Result:
    """What a finished run gave.

    errors[set, unit] has two rows of one column per utterance (in the order of their ids): errors and reference units.
    """

    run: Run
    parameters: int
    training_seconds: float
    errors: dict[tuple[str, str], np.ndarray]

    def rate(self, dataset: str, unit: str) -> float:
        """Error rate in percent, `unit` WER or CER."""
        errors, units = self.errors[dataset, unit].sum(axis=1)
        return float(100 * errors / units)


def read_result(run: Run, data_feats: Path, datasets: list[str], parameters: int) -> Result:
    """Read what stages 11 to 13 left in the directory of a run."""
    errors = {}
    for dataset in datasets:
        found = sorted(run.directory.glob(f"*/{dataset}/text"))
        if len(found) != 1:
            raise UserError(f"{run.directory}: {len(found)} decodings of {dataset}, expected one; remove the others")
        references, hypotheses = read_texts(data_feats / dataset / "text", found[0])
        for unit, split in SPLITS.items():
            errors[dataset, unit] = count_errors(count_marks(align(references, hypotheses, split)))
    return Result(run, parameters, read_history(run.directory).seconds, errors)


def _mean(values: list[float]) -> str:
    """Mean, and the sample standard deviation of several."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def table(results: list[list[Result]], datasets: list[str], real_time: dict[str, float]) -> str:
    """A Markdown table with a row for each encoder, whose runs (one per seed, at its best learning rate) are a list.

    Args:
        results: of each encoder the runs.
        datasets: columns; of the last one the WER has a bootstrap interval.
        real_time: real-time factor of greedy decoding by encoder.
    """
    columns = [f"{dataset} {unit} %" for dataset in datasets for unit in SPLITS]
    heads = ["encoder", "parameters", "learning rate", "seeds", *columns]
    heads += [f"95 % of {datasets[-1]} WER", "training min", "real-time factor"]
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for runs in results:
        first = runs[0].run
        rates = [_mean([result.rate(dataset, unit) for result in runs]) for dataset in datasets for unit in SPLITS]
        low, high = bootstrap_interval(sum(result.errors[datasets[-1], "WER"] for result in runs))
        minutes = statistics.mean(result.training_seconds for result in runs) / 60
        rows.append(
            [first.encoder, f"{runs[0].parameters:,}", f"{first.learning_rate:g}"]
            + [" ".join(str(result.run.seed) for result in runs), *rates]
            + [f"{low:.1f} to {high:.1f}", f"{minutes:.1f}", f"{real_time[first.encoder]:.4f}"]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def learning_rate_table(tried: dict[str, dict[float, Result]], dataset: str) -> str:
    """WER on `dataset` of each encoder (row) at each learning rate (column), first seed."""
    rates = sorted({rate for results in tried.values() for rate in results})
    rows = [["encoder", *(f"{rate:g}" for rate in rates)], ["---", *["---:"] * len(rates)]]
    rows += [
        [name, *(f"{results[rate].rate(dataset, 'WER'):.1f}" for rate in rates)] for name, results in tried.items()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
