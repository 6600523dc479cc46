"""Trainings flush denormal numbers, in all threads."""

import os
import subprocess
import sys

# 2 MB are computed by several threads
PRODUCT = "print('flushed' if (torch.full((1 << 19,), 1e-39) * 0.9).count_nonzero() == 0 else 'denormal')"
LAUNCH = """
import sys, types
train = types.ModuleType("espnet2.bin.asr_train")
train.main = lambda arguments: exec("import torch; " + {product!r})
sys.modules["espnet2.bin.asr_train"] = train
from espnet_lmu.training.launch import _train
_train(0, 0, {{}}, False, [])
"""


def printed(tmp_path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "2"}
    run = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_the_recipes_training_flushes_denormals(tmp_path):
    assert printed(tmp_path, "-c", f"import torch; {PRODUCT}") == "denormal"
    assert printed(tmp_path, "-c", LAUNCH.format(product=PRODUCT)) == "flushed"


def test_espnets_commands_flush_denormals(tmp_path):
    (tmp_path / "probe.py").write_text(f"import espnet2.tasks.abs_task, torch\n{PRODUCT}\n")
    assert printed(tmp_path, "-m", "espnet_lmu.run", "-m", "probe") == "flushed"
