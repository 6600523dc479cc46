"""What training on LibriSpeech's 960 hours takes: hours, GPUs and storage, from a throughput that was measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from espnet_lmu.data.format import FRAME_SHIFT_MS, MEL_BINS
from espnet_lmu.encoder.parameters import build_encoder, count_parameters
from espnet_lmu.errors import UserError

_GB = 1e9
_CORPUS_HOURS = 960.9
_CORPUS_BYTES = 60.6e9  # archives of all parts, as openslr.org/12 lists them; unpacked FLAC is as large
_CORPUS_ALL_HOURS = 982.1  # with the development and test parts that those archives hold
_EFFICIENCY = 0.9


@dataclass
class Throughput:
    """Seconds of audio that one device trains on in a second, where that is from, and its peak memory in bytes."""

    speed: float
    source: str
    peak_bytes: int | None = None


def read_bench(path: Path) -> dict[str, Throughput]:
    """Throughputs by configuration, from the case `training` of ``espnet-lmu bench --json``.

    Raises:
        UserError: not such a file.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        device = report["machine"]["device"]
        found = {}
        for comparison in report["comparisons"]:
            for entry in comparison["entries"]:
                if entry.get("audio_seconds"):
                    name, speed = entry["name"], entry["audio_seconds"] / entry["median"]
                    batch = next((note for note in comparison["notes"] if note.startswith(f"{name}: ")), name)
                    found[name] = Throughput(speed, f"{device}, {batch}", entry["peak_bytes"])
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not what espnet-lmu bench --json prints") from None
    if not found:
        raise UserError(f"{path}: no training step in it; run espnet-lmu bench --case training --json")
    return found


def format_costs(
    configs: list[Path], throughputs: list[Throughput], gpus: list[int], factors: list[float], vocab_size: int
) -> str:
    """The page, in Markdown.

    Args:
        configs: training configurations.
        throughputs: of each.
        gpus: numbers of devices to give the hours for.
        factors: speeds of the training audio, 1 among them or not.
        vocab_size: tokens of the CTC layer.
    """
    audio = _CORPUS_HOURS * sum(1 / factor for factor in factors)
    heads = ["configuration", "parameters", "epochs", "audio, h", "audio s / s", "device hours"]
    heads += [f"hours, {number} device{'s' if number > 1 else ''}" for number in gpus]
    heads += ["peak of a step, GB", "models on disk, GB"]
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for config, throughput in zip(configs, throughputs, strict=True):
        settings = build_encoder(config)[1]
        epochs, parameters = _epochs(config, settings), count_parameters(config, vocab_size)["total"]
        device_hours = epochs * audio / throughput.speed
        peak = "not measured" if throughput.peak_bytes is None else f"{throughput.peak_bytes / _GB:.1f}"
        rows.append(
            [config.stem, f"{parameters:,}", f"{epochs}", f"{epochs * audio:,.0f}", f"{throughput.speed:,.4g}"]
            + [f"{device_hours:,.1f}"]
            + [f"{device_hours / (1 if n == 1 else n * _EFFICIENCY):,.1f}" for n in gpus]
            + [peak, f"{_models(settings, parameters) / _GB:.2f}"]
        )
    # FLAC of the copies at other speeds is as long as they are; filterbanks have a byte a value.
    flac = _CORPUS_BYTES / _CORPUS_ALL_HOURS * audio
    frames_per_hour = 3600 * 1000 / FRAME_SHIFT_MS
    storage = {
        "archives, to be removed after unpacking": _CORPUS_BYTES,
        "corpus": _CORPUS_BYTES,
        "training audio as FLAC (`--feats_type raw`)": flac,
        "or as filterbanks (`--feats_type fbank`)": frames_per_hour * MEL_BINS * audio,
    }
    sources = {throughput.source: None for throughput in throughputs}
    lines = ["## Training on LibriSpeech 960 h", "", *(f"| {' | '.join(row)} |" for row in rows)]
    lines += ["", "| storage of the data | GB |", "| --- | ---: |"]
    lines += [f"| {name} | {size / _GB:,.0f} |" for name, size in storage.items()]
    lines += ["", "Assumptions", ""]
    speeds = " ".join(f"{factor:g}" for factor in factors)
    lines += [
        f"- Throughput: {'; '.join(sources)}. Measured figures are training steps of encoder, CTC and AdamW in the "
        "batch named, of utterances of one length; reading data, validation and saving come on top.",
        f"- {_CORPUS_HOURS} h of audio at the speeds {speeds} are {audio:,.0f} h an epoch; epochs are the "
        "configuration's max_epoch.",
        f"- Several devices give {_EFFICIENCY:.0%} of their sum: assumed, not measured.",
        "- Models on disk: keep_nbest_models, their average and the last one in FP32, and the state to resume from "
        "(weights and two moments of Adam).",
        f"- {vocab_size} tokens. Sizes of the corpus are those of its archives (openslr.org/12). 1 GB = 10^9 bytes.",
    ]
    return "\n".join(lines)


def _epochs(config: Path, settings: dict) -> int:
    epochs = settings.get("max_epoch")
    if not isinstance(epochs, int) or epochs < 1:
        raise UserError(f"{config}: max_epoch: {epochs}: give a whole number")
    if settings.get("num_iters_per_epoch"):
        raise UserError(f"{config}: num_iters_per_epoch: an epoch is then not one pass over the data; leave it out")
    return epochs


def _models(settings: dict, parameters: int) -> float:
    """Bytes of the models that a training leaves."""
    kept = settings.get("keep_nbest_models", 10)
    kept = max(kept) if isinstance(kept, list) else kept
    return 4.0 * parameters * (kept + 2 + 3)
