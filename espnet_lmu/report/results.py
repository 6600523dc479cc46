"""``RESULTS.md``: ESPnet's tables, then what the figures come from, down to the commands."""

from __future__ import annotations

from espnet_lmu.data.files import atomic_open
from espnet_lmu.report.experiment import TITLES, DataSet, Decoding, Experiment
from espnet_lmu.scoring.error_rate import HEADER

NOT_RECORDED = "not recorded"


def write_results(experiment: Experiment, decoding: Decoding) -> None:
    """Write ``RESULTS.md`` of one decoding into its directory, and that of all decodings into the experiment's."""
    for directory, decodings in ((decoding.directory, [decoding]), (experiment.directory, experiment.decodings)):
        with atomic_open(directory / "RESULTS.md") as stream:
            stream.write(format_results(experiment, decodings))


def format_results(experiment: Experiment, decodings: list[Decoding]) -> str:
    """The Markdown of some of the experiment's decodings."""
    lines = [f"## {experiment.name}"]
    for kind, title in TITLES.items():
        rows = [
            rate.total.row(f"{decoding.name}/{name}")
            for decoding in decodings
            for name, rate in decoding.rates.get(kind, {}).items()
        ]
        lines += ["", f"### {title}", "", HEADER, *rows] if rows else []
    kind = decodings[0].kind
    title = TITLES[kind]
    lines += ["", f"### {title} with its 95 % interval", "", f"|dataset|{title}|from|to|", "|---|---:|---:|---:|"]
    for decoding in decodings:
        for name, rate in decoding.rates[kind].items():
            low, high = rate.interval
            lines.append(f"|{decoding.name}/{name}|{rate.total.rate:.1f}|{low:.1f}|{high:.1f}|")
    lines += ["", "Bootstrap over the utterances of the set (Bisani and Ney, ICASSP 2004), 10,000 draws."]
    lines += ["", "### Model and training", "", "|||", "|---|---|"]
    lines += [f"|{name}|{_cell(value)}|" for name, value in facts(experiment).items()]
    lines += ["", "### Data", "", "|set|for|hours|utterances|speakers|", "|---|---|---:|---:|---:|"]
    lines += [
        f"|{own.name}|{purpose}|{hours(own)}|{own.utterances:,}|{own.speakers:,}|" for purpose, own in experiment.data
    ]
    lines += ["", "### Commands", "", "```sh"]
    for purpose, command in commands(experiment, decodings):
        lines += [f"# {purpose}" if command else f"# {purpose}: {NOT_RECORDED}", *filter(None, [command])]
    return "\n".join([*lines, "```", ""])


def facts(experiment: Experiment) -> dict[str, str]:
    """Model size, seed, hardware and hours of an experiment, by name, as text."""
    config, history = experiment.config, experiment.history
    found = {"encoder": config.get("encoder") or NOT_RECORDED}
    if history and history.parameters:
        found["parameters"] = f"{history.parameters:,} ({4 * history.parameters / 2**20:.2f} MB in FP32)"
    found["configuration"] = config.get("config") or NOT_RECORDED
    found["seed"] = str(config.get("seed", NOT_RECORDED))
    found["hardware"] = "; ".join(dict.fromkeys(start.hardware for start in experiment.starts)) or NOT_RECORDED
    if history and history.epochs:
        found["training"] = f"{len(history.epochs)} epochs in {duration(history.seconds)}"
        if speed := training_speed(experiment):
            found["speed"] = f"{speed:,.1f} s of audio per second of training"
    if "version" in config:
        found["ESPnet"] = str(config["version"])
    return found


def training_speed(experiment: Experiment) -> float | None:
    """Seconds of training audio that a second of training passed through, validation and pauses included."""
    trained = next((own for purpose, own in experiment.data if purpose == "training"), None)
    history = experiment.history
    if trained is None or not trained.hours or history is None or not history.seconds:
        return None
    if experiment.config.get("num_iters_per_epoch"):
        return None  # an epoch is then not one pass over the data
    return 3600 * trained.hours * len(history.epochs) / history.seconds


def commands(experiment: Experiment, decodings: list[Decoding]) -> list[tuple[str, str | None]]:
    """Purpose and command line of the training, each way it was started, and of every decoding; None: not recorded."""
    starts = dict.fromkeys(start.command for start in experiment.starts) or [None]
    lines = [("training", command) for command in starts]
    for decoding in decodings:
        lines.append((f"decoding {decoding.name}", decoding.start.command if decoding.start else None))
    return lines


def hours(data: DataSet) -> str:
    """Hours of audio, and how many speeds they count."""
    speeds = f" (at {data.speeds} speeds)" if data.speeds > 1 else ""
    return NOT_RECORDED if data.hours is None else f"{data.hours:.2f}{speeds}"


def duration(seconds: float) -> str:
    """Minutes, or hours where there are many."""
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
