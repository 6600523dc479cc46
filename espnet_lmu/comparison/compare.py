"""Train encoders under one protocol and write one table: ``python -m espnet_lmu.comparison.compare``.

The recipe prepares the data once. Each encoder is trained with the first seed at every learning rate; the best rate on
the validation set is its own, and the other seeds are trained with that. Data, tokens, augmentation, batches, epochs,
averaging and decoding are the same for all. A killed comparison goes on where it stopped; what is finished is kept.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

import yaml

from espnet_lmu.comparison.plan import Run, make_run, read_encoder, training_settings, write_settings
from espnet_lmu.comparison.results import Result, learning_rate_table, read_result, table
from espnet_lmu.data.features import check_features, read_features
from espnet_lmu.data.files import atomic_open, command_line, read_yaml
from espnet_lmu.errors import UserError
from espnet_lmu.training.history import History, read_history
from espnet_lmu.training.statistics import DATA_DIGEST

_CONF = Path(__file__).resolve().parents[2] / "conf"


class Comparison:
    """A comparison in `args.dir`; see `main` for the arguments."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.root: Path = args.dir
        self.training = read_yaml(args.training)
        self.encoders = {path.stem: read_encoder(path) for path in args.encoders}
        if len(self.encoders) < len(args.encoders):
            raise UserError("two encoders have one name; give their files different names")
        self.datasets = [args.valid_set, args.test_set]

    def recipe(self, *arguments: str) -> list[str]:
        sets = ["--valid_set", self.args.valid_set, "--test_sets", " ".join(self.datasets)]
        return ["./run.sh", *arguments, *sets, *shlex.split(self.args.recipe_args)]

    def check_recipe(self) -> None:
        """Keep the options of the recipe, for runs on other data or tokens do not compare.

        Raises:
            UserError: the comparison has begun with others.
        """
        names = ("valid_set", "test_set", "recipe_args", "data_feats")
        recipe = {name: str(getattr(self.args, name)) for name in names}
        path = self.root / "recipe.yaml"
        if not path.exists():
            with atomic_open(path) as stream:
                yaml.safe_dump(recipe, stream, sort_keys=False)
        for name, value in read_yaml(path).items():
            if value != recipe.get(name):
                raise UserError(
                    f"--{name} {recipe.get(name)!r}: {self.root} has begun with {value!r}; give that, or another --dir"
                )

    def prepare(self) -> None:
        """Stages 1 to 5, and the statistics; features do not depend on the encoder."""
        stats = self.root / "stats"
        if (stats / DATA_DIGEST).exists():
            return
        first = next(iter(self.encoders.values()))
        run = Run("statistics", self.args.learning_rates[0], self.args.seeds[0], self.root / "statistics")
        config = write_settings(run, training_settings(self.training, first, run.learning_rate, run.seed))
        self._call(
            self.recipe("--stop_stage", "10", "--asr_config", str(config), "--asr_stats_dir", str(stats)),
            self.root / "prepare.log",
        )

    def _call(self, command: list[str], log: Path) -> None:
        with open(log, "a", encoding="utf-8") as stream:
            print(shlex.join(command), file=stream, flush=True)
            status = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode
        if status:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise UserError(f"{lines[-1].removeprefix('error: ')} (all of it in {log}; start again to go on)")

    def train(self, run: Run) -> None:
        """Stages 11 to 13 of a run, unless they are done."""
        settings = training_settings(self.training, self.encoders[run.encoder], run.learning_rate, run.seed)
        config = write_settings(run, settings)
        done = run.directory / "done"
        if done.exists():
            data_dir = self.args.data_feats / self.args.valid_set
            check_features(str(run.directory), read_features(run.directory), read_features(data_dir), str(data_dir))
            return
        print(f"{run.directory.name}: training", flush=True)
        # One process and thread for each run: the times of encoders are comparable, and runs fill the machine.
        command = self.recipe(
            *("--stage", "11", "--stop_stage", "13", "--asr_config", str(config), "--asr_exp", str(run.directory)),
            *("--asr_stats_dir", str(self.root / "stats"), "--train_nj", "1", "--inference_nj", "1"),
        )
        self._call(command, run.directory / "run.log")
        done.touch()
        result = self.result(run)
        rates = ", ".join(f"{dataset} WER {result.rate(dataset, 'WER'):.1f} %" for dataset in self.datasets)
        print(f"{run.directory.name}: {rates}, {result.training_seconds / 60:.1f} min of training", flush=True)

    def train_all(self, runs: list[Run]) -> None:
        """Train several runs at a time; after a failure the ones that have begun are finished."""
        with ThreadPoolExecutor(self.args.jobs) as pool:
            futures = [pool.submit(self.train, run) for run in runs]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def result(self, run: Run) -> Result:
        return read_result(run, self.args.data_feats, self.datasets, parameters=0)

    def run(self) -> None:
        from espnet_lmu.encoder.parameters import build_encoder

        for path, content in zip(self.args.encoders, self.encoders.values(), strict=True):
            if content["encoder"] == "lmu":
                build_encoder(path)  # an option that cannot work is named before the hours that the others take
        self.root.mkdir(parents=True, exist_ok=True)
        self.check_recipe()
        self.prepare()
        first, *others = self.args.seeds
        tried = {
            name: {rate: make_run(self.root, name, rate, first) for rate in self.args.learning_rates}
            for name in self.encoders
        }
        self.train_all([run for rates in tried.values() for run in rates.values()])
        found = {name: {rate: self.result(run) for rate, run in runs.items()} for name, runs in tried.items()}
        valid = self.args.valid_set
        best = {
            name: min(results, key=lambda rate: (results[rate].rate(valid, "WER"), results[rate].rate(valid, "CER")))
            for name, results in found.items()
        }
        runs = {name: [make_run(self.root, name, rate, seed) for seed in others] for name, rate in best.items()}
        self.train_all([run for several in runs.values() for run in several])
        chosen = {name: [found[name][rate], *(self.result(run) for run in runs[name])] for name, rate in best.items()}
        self.report(found, chosen)

    def report(self, found: dict[str, dict[float, Result]], chosen: dict[str, list[Result]]) -> None:
        """Write RESULTS.md and curves.png."""
        from espnet_lmu.comparison.speed import measure

        real_time = {}
        speeds = measure({name: results[0].run.directory for name, results in chosen.items()}, self.args)
        for name, (parameters, factor) in speeds.items():
            real_time[name] = factor
            for result in chosen[name]:
                result.parameters = parameters
        rows = sorted(
            chosen.values(),
            key=lambda results: sum(result.rate(self.args.valid_set, "WER") for result in results),  # as many of each
        )
        lines = [
            table(rows, self.datasets, real_time),
            "",
            f"{self.args.valid_set} WER of seed {self.args.seeds[0]} at each learning rate:",
            "",
            learning_rate_table(found, self.args.valid_set),
            "",
            "Learning rates were chosen by it. Mean ± standard deviation over the seeds; the interval is a bootstrap "
            f"over the test utterances. Trainings of one process of one thread, {self.args.jobs} at a time; greedy "
            "decoding, no language model.",
            "",
            f"Command: `{command(self.args)}`",
            "",
        ]
        with atomic_open(self.root / "RESULTS.md") as stream:
            stream.write("\n".join(lines))
        print("\n".join(lines))
        histories = {name: read_history(results[0].run.directory) for name, results in chosen.items()}
        plot_curves(histories, self.args.valid_set, self.root / "curves.png")
        print(f"Written to {self.root}/RESULTS.md; learning curves in {self.root}/curves.png")


def command(args: argparse.Namespace) -> str:
    """What a user types in the recipe's directory for a comparison."""

    def as_text(value) -> str:
        if isinstance(value, Path) and value.is_relative_to(_CONF.parent):
            return os.path.relpath(value)  # the same on other machines
        return " ".join(f"{number:g}" for number in value) if isinstance(value, list) else str(value)

    words = ["./compare.sh"]
    for name in (
        "training",
        "valid_set",
        "test_set",
        "learning_rates",
        "seeds",
        "jobs",
        "dir",
        "data_feats",
        "recipe_args",
    ):
        if value := as_text(getattr(args, name)):
            words += [f"--{name}", value]
    words += map(as_text, args.encoders if args.encoders != _all_encoders() else [])
    return shlex.join(words)


def _all_encoders() -> list[Path]:
    return [path for folder in ("encoders", "peers") for path in sorted((_CONF / folder).glob("*.yaml"))]


def plot_curves(histories: dict[str, History], dataset: str, path: Path) -> None:
    """Draw the CER of the validation set over the time of training, a line for each encoder, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, history in histories.items():
        minutes = list(accumulate(epoch.seconds / 60 for epoch in history.epochs))
        axes.plot(minutes, [epoch.valid_cer for epoch in history.epochs], label=name)
    axes.set(xlabel="minutes of training", ylabel=f"CER of {dataset}, greedy, %", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)
    temporary.replace(path)


def _numbers(kind):
    def parse(text: str) -> list:
        values = [kind(word) for word in text.split()]
        if not values or len(set(values)) < len(values):
            raise ValueError
        return values

    parse.__name__ = "list"  # argparse names it in its message
    return parse


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_lmu.comparison.compare", description=__doc__)
    parser.add_argument("--training", type=Path, required=True, metavar="YAML", help="training settings of all")
    parser.add_argument("--learning_rates", type=_numbers(float), default=[0.001, 0.002, 0.004], help='"0.001 0.002"')
    parser.add_argument("--seeds", type=_numbers(int), default=[1, 2, 3], help='"1 2 3"')
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time (%(default)s)")
    parser.add_argument("--dir", type=Path, default=Path("exp/comparison"), help="where all goes (%(default)s)")
    parser.add_argument("--recipe_args", default="", help="further options of ./run.sh")
    parser.add_argument("--data_feats", type=Path, default=Path("dump/fbank"), help="formatted data (%(default)s)")
    parser.add_argument("--valid_set", required=True, metavar="SET", help="chooses the learning rates")
    parser.add_argument("--test_set", required=True, metavar="SET")
    parser.add_argument(
        "encoders",
        type=Path,
        nargs="*",
        metavar="ENCODER",
        help="YAML of encoder and encoder_conf (default: all of conf/encoders and conf/peers)",
    )
    args = parser.parse_args()
    args.encoders = args.encoders or _all_encoders()
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: give at least 1")
    Comparison(args).run()


if __name__ == "__main__":
    command_line(main)
