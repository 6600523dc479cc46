"""An experiment in a recipe's directory, as stage 11 leaves it, without ESPnet and with weights that are none."""

from pathlib import Path

import numpy as np
import yaml

CONFIG = {
    "config": "conf/train.yaml",
    "output_dir": "exp/asr_tiny",
    "best_model_criterion": [["valid", "acc", "max"], ["valid", "loss", "min"]],
    "train_shape_file": ["exp/asr_stats/train/speech_shape"],
    "train_data_path_and_name_and_type": [["dump/raw/train/wav.scp", "speech", "sound"]],
    "init_param": ["exp/other/1epoch.pth"],
    "token_list": ["<blank>", "<unk>", "▁A", "B", "<sos/eos>"],
    "token_type": "bpe",
    "bpemodel": "data/token_list/bpe.model",
    "frontend": "default",
    "frontend_conf": {"fs": "8k"},
    "normalize": "global_mvn",
    "normalize_conf": {"stats_file": "exp/asr_stats/train/feats_stats.npz"},
    "encoder": "lmu",
    "encoder_conf": {"output_size": 16},
    "model": "espnet",
}


def make_experiment(recipe: Path, config: dict | None = None) -> Path:
    """``RECIPE/exp/asr_tiny`` and the files that its configuration names; returns the experiment's folder."""
    experiment = recipe / "exp" / "asr_tiny"
    for folder in (experiment, recipe / "exp/asr_stats/train", recipe / "data/token_list"):
        folder.mkdir(parents=True)
    (experiment / "config.yaml").write_text(yaml.safe_dump(CONFIG if config is None else config, allow_unicode=True))
    (experiment / "valid.acc.ave_1best.pth").write_bytes(b"weights" * 5000)
    (experiment / "valid.acc.ave.pth").symlink_to("valid.acc.ave_1best.pth")
    (recipe / "data/token_list/bpe.model").write_bytes(b"pieces")
    np.savez(recipe / "exp/asr_stats/train/feats_stats.npz", count=1, sum=np.zeros(80), sum_square=np.ones(80))
    return experiment
