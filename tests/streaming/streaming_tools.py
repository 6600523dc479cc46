"""Small random models in the files that a training leaves, and audio for them."""

import random
from pathlib import Path

import numpy as np
import torch
import yaml
from weights import draw_weights

from espnet_lmu.data.features import write_features
from espnet_lmu.data.format import feature_settings

RATE = 16000
LETTERS = ["<blank>", "<unk>", "<space>", *"ABCDEFGHIJ", "<sos/eos>"]
ENCODER = {
    "output_size": 32,
    "num_blocks": 2,
    "memory_size": 8,
    "theta": 12.0,
    "attention_heads": 2,
    "attention_context": [12, [4, 8, 2]],
    "input_layer": "dw_striding",
    # what ESPnet's asr_inference_streaming insists on
    "block_size": None,
    "hop_size": 8,
    "look_ahead": 0,
}


def write_model(directory: Path, encoder_options: dict | None = None, **options) -> tuple[Path, Path]:
    """``config.yaml`` and weights of a model that says something in most frames: (config_file, model_file)."""
    from espnet2.tasks.asr import ASRTask

    directory.mkdir(parents=True, exist_ok=True)
    random_state = np.random.default_rng(0)
    size = options.get("input_size") or 80
    stats = {"count": 1000, "sum": random_state.normal(-1, 1, size) * 1000, "sum_square": np.full(size, 25.0) * 1000}
    np.savez(directory / "stats.npz", **stats)
    settings = {
        "encoder": "lmu",
        "encoder_conf": {**ENCODER, **(encoder_options or {})},
        "model_conf": {"ctc_weight": 1.0},
        "best_model_criterion": [["valid", "loss", "min"]],
        "token_type": "char",
        "token_list": LETTERS,
        "normalize": "global_mvn",
        "normalize_conf": {"stats_file": str(directory / "stats.npz")},
        **options,
    }
    (directory / "tokens.txt").write_text("".join(f"{token}\n" for token in settings.pop("token_list")))
    (directory / "train.yaml").write_text(yaml.safe_dump(settings))
    torch.manual_seed(11)
    files = {"config": "train.yaml", "token_list": "tokens.txt", "output_dir": "."}
    command = [word for option, name in files.items() for word in (f"--{option}", str(directory / name))]
    args = ASRTask.get_parser().parse_args(command)
    model = draw_weights(ASRTask.build_model(args))
    model.ctc.ctc_lo.weight.data.mul_(4)
    model.ctc.ctc_lo.bias.data[LETTERS.index("<space>")] += 2
    model.ctc.ctc_lo.bias.data[LETTERS.index("<sos/eos>")] -= 100  # which no transcript has
    torch.save(model.state_dict(), directory / "valid.loss.ave.pth")
    (directory / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    if settings.get("input_size") == 80:
        write_features(directory, feature_settings(RATE))
    return directory / "config.yaml", directory / "valid.loss.ave.pth"


def make_audio(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise whose spectrum and level change all the time, with pauses of silence."""
    generator = np.random.default_rng(seed)
    samples = generator.standard_normal(round(seconds * RATE)) * np.exp(generator.normal(-2, 1))
    time = np.arange(len(samples)) / RATE
    for _ in range(4):
        pitch, speed = generator.uniform(100, 4000), generator.uniform(0.5, 4)
        samples += 0.2 * np.sin(2 * np.pi * pitch * time) * (np.sin(2 * np.pi * speed * time) > 0)
    return np.clip(samples * (np.sin(2 * np.pi * 0.4 * time) > -0.9) * 0.3, -1, 1).astype(np.float32)


def random_pieces(length: int, generator: random.Random, longest: float = 10.0) -> list[int]:
    """Sizes that add up to `length` samples, from one sample to `longest` seconds, small as likely as large."""
    sizes = []
    while length:
        sizes.append(min(length, round((longest * RATE) ** generator.uniform(0, 1))))
        length -= sizes[-1]
    return sizes


def cut(samples: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    return np.split(samples, np.cumsum(sizes)[:-1])
