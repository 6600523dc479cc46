"""Parameter counts of an encoder configuration, part by part, with its size and training memory."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from torch import nn

from espnet_lmu.errors import UserError

_MB, _GB = 2**20, 2**30
DEFAULT_FEATURES = 80


def published_configurations() -> list[Path]:
    """The training configurations of the three published sizes, the smallest first; none in an installed package."""
    folder = Path(__file__).resolve().parents[2] / "conf"
    paths = [folder / f"train_asr_lmu_{size}.yaml" for size in ("demo", "base", "large")]
    return [path for path in paths if path.exists()]


def feature_size(settings: dict) -> int:
    """Features of a frame, as a training configuration has them."""
    return settings.get("input_size") or (settings.get("frontend_conf") or {}).get("n_mels", DEFAULT_FEATURES)


def build_encoder(config: Path, device: str | torch.device = "meta") -> tuple[nn.Module, dict]:
    """The encoder of an ESPnet training configuration, and the YAML.

    Args:
        config: ESPnet training configuration.
        device: where its weights are; on the meta device it has none, and takes no memory.

    Raises:
        UserError: the file is missing or not YAML, is not for `encoder: lmu`, or has an option that cannot work.
    """
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{config}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{config}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(settings, dict) or str(settings.get("encoder")).lower() != "lmu":
        found = settings.get("encoder") if isinstance(settings, dict) else None
        raise UserError(f"{config}: needs `encoder: lmu`, found encoder {found!r}")
    for section in ("encoder_conf", "frontend_conf"):
        if not isinstance(settings.get(section) or {}, dict):
            raise UserError(f"{config}: {section}: expected lines of NAME: VALUE")

    features = feature_size(settings)
    if not isinstance(features, int) or features < 1:
        raise UserError(f"{config}: input_size or n_mels {features!r}: expected a whole number of at least 1")

    from espnet_lmu.encoder.lmu_encoder import LMUEncoder

    try:
        with torch.device(device):
            return LMUEncoder(features, **(settings.get("encoder_conf") or {})), settings
    except (TypeError, ValueError) as error:
        message = str(error).replace("LMUEncoder.__init__() ", "").replace("keyword argument", "option")
        raise UserError(f"{config}: encoder_conf: {' '.join(message.split())}") from None


def _count(*modules: nn.Module | None) -> int:
    return sum(parameter.numel() for module in modules if module is not None for parameter in module.parameters())


def count_parameters(config: Path, vocab_size: int) -> dict:
    """Count the parameters of the encoder in `config` and of its CTC layer.

    Args:
        config: ESPnet training configuration.
        vocab_size: tokens of the CTC layer, blank included.

    Returns:
        `parts`: list of {name, parameters, layers, per_layer, share}; `total`; `size_mb` {fp32, fp16}, with
        1 MB = 2^20 bytes; `training_memory_gb`, with 1 GB = 2^30 bytes. Memory counts what depends on the
        parameters alone (weights, gradients, two Adam moments, 4 bytes each; with mixed precision 2-byte
        gradients); activations, which depend on the batch, are put at as much again.
    """
    if vocab_size < 2:
        raise UserError(f"--vocab_size {vocab_size}: needs at least the blank and one token")
    encoder, _ = build_encoder(config)
    layers, size = encoder.layers, encoder.output_size()
    parts = [
        ("input projection", _count(encoder.embed), 1),
        ("LMU layers", _count(*(layer.lmu for layer in layers)), len(layers)),
        ("attention layers", _count(*(layer.attention for layer in layers)), len(layers)),
        ("cross-attention layers", _count(*(layer.cross_attention for layer in layers)), len(layers)),
        ("feed-forward layers", _count(*(layer.feed_forward for layer in layers)), len(layers)),
        ("layer normalization", _count(*(layer.norm for layer in layers)), len(layers)),
        ("output projection", _count(encoder.out), 1),
        ("CTC conditioning", vocab_size * size + size if encoder.interctc_use_conditioning else 0, 1),
        ("CTC", size * vocab_size + vocab_size, 1),
    ]
    total = sum(count for _, count, _ in parts)
    weights = 4 * total / _GB
    return {
        "config": str(config),
        "vocab_size": vocab_size,
        "parts": [
            {"name": name, "parameters": count, "layers": number, "per_layer": count // number, "share": count / total}
            for name, count, number in parts
            if count
        ],
        "total": total,
        "size_mb": {"fp32": 4 * total / _MB, "fp16": 2 * total / _MB},
        "training_memory_gb": {
            "weights": weights,
            "gradients": weights,
            "adam_states": 2 * weights,
            "total": 4 * weights,
            "with_activations": 8 * weights,
            "mixed_precision": 3.5 * weights,
        },
    }


def format_table(report: dict) -> str:
    """The report of `count_parameters` as text."""
    lines = [f"{'part':<22}{'parameters':>14}{'per layer':>14}{'share':>9}"]
    for part in report["parts"]:
        per_layer = f"{part['per_layer']:,}" if part["layers"] > 1 else ""
        lines.append(f"{part['name']:<22}{part['parameters']:>14,}{per_layer:>14}{part['share']:>9.1%}")
    size, memory = report["size_mb"], report["training_memory_gb"]
    lines += [
        f"{'total':<22}{report['total']:>14,}",
        "",
        f"size: FP32 {size['fp32']:.2f} MB, FP16 {size['fp16']:.2f} MB (vocabulary of {report['vocab_size']} tokens)",
        f"training memory: weights {memory['weights']:.2f} GB, gradients {memory['gradients']:.2f} GB, "
        f"Adam states {memory['adam_states']:.2f} GB, total {memory['total']:.2f} GB;",
        f"  about {memory['with_activations']:.2f} GB with activations, about {memory['mixed_precision']:.2f} GB "
        "without them in mixed precision",
    ]
    if batch := report.get("batch"):
        how = [name for name in ("mixed_precision", "gradient_checkpointing") if batch[name]]
        lines += [
            f"a batch of {batch['batch_size']} x {batch['frames']} frames"
            + (f", {' and '.join(how).replace('_', ' ')}" if how else "")
            + f": {batch['activations_gb']:.2f} GB of activations,",
            f"  {batch['total_gb']:.2f} GB in total; buffers of a moment, frontend and CUDA context come on top",
        ]
    return "\n".join(lines)
