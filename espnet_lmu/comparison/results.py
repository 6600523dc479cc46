"""Error rates, training time and speed of the finished runs of a comparison, as one table."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_lmu.comparison.plan import Run
from espnet_lmu.errors import UserError
from espnet_lmu.scoring.error_rate import Split, count_errors, read_texts, split_characters, split_words

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


def training_seconds(experiment: Path) -> float:
    """Time of all epochs of an experiment, validation included; of interrupted ones only the last attempt counts."""
    import torch

    # The reporter's times are timedelta objects; the file is the user's own training state.
    state = torch.load(experiment / "checkpoint.pth", map_location="cpu", weights_only=False)
    epochs = state["reporter"]["stats"].values()
    return sum(phase["time"].total_seconds() for epoch in epochs for phase in epoch.values() if "time" in phase)


def learning_curve(experiment: Path) -> tuple[list[float], list[float]]:
    """Minutes of training after each epoch, and the CER of the validation set (greedy, in percent) then."""
    import torch

    state = torch.load(experiment / "checkpoint.pth", map_location="cpu", weights_only=False)
    minutes, rates, passed = [], [], 0.0
    for _, epoch in sorted(state["reporter"]["stats"].items()):
        passed += sum(phase["time"].total_seconds() for phase in epoch.values() if "time" in phase)
        minutes.append(passed / 60)
        rates.append(100 * float(epoch["valid"]["cer_ctc"]))
    return minutes, rates


def read_result(run: Run, data_feats: Path, datasets: list[str], parameters: int) -> Result:
    """Read what stages 11 to 13 left in the directory of a run."""
    errors = {}
    for dataset in datasets:
        found = sorted(run.directory.glob(f"*/{dataset}/text"))
        if len(found) != 1:
            raise UserError(f"{run.directory}: {len(found)} decodings of {dataset}, expected one; remove the others")
        references, hypotheses = read_texts(data_feats / dataset / "text", found[0])
        for unit, split in SPLITS.items():
            errors[dataset, unit] = count_errors(references, hypotheses, split)
    return Result(run, parameters, training_seconds(run.directory), errors)


def bootstrap_interval(counts: np.ndarray, confidence: float = 0.95, samples: int = 10_000) -> tuple[float, float]:
    """Interval of an error rate in percent when the test set is drawn anew from its own utterances.

    Bisani & Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004.

    Args:
        counts: (2, N) errors and reference units of N utterances; of several runs, summed over them.
        confidence: probability of the interval.
        samples: draws.
    """
    generator = np.random.default_rng(0)
    size = counts.shape[1]
    rates = []
    for start in range(0, samples, 1000):
        drawn = generator.integers(size, size=(min(1000, samples - start), size))
        errors, units = counts[0][drawn].sum(axis=1), counts[1][drawn].sum(axis=1)
        rates.append(100 * errors / np.maximum(units, 1))
    low, high = np.quantile(np.concatenate(rates), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


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
