"""``python -m espnet_lmu.training.launch N ARGUMENT ...``: ESPnet's asr_train in N processes on the CPU.

The processes share each batch and average their gradients (torch's DistributedDataParallel over gloo), so that a step
learns from the batch that one process would have. ESPnet starts processes itself for GPUs alone.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

import torch

import espnet_lmu  # noqa: F401  (registers the encoder, in each process)
from espnet_lmu.hook import ignore_espnets_warnings
from espnet_lmu.lmu.products import use_fast_products


def _train(rank: int, processes: int, port: int, arguments: list[str]) -> None:
    # torch ends this process by SIGINT when the starting one dies, but a shell's background jobs ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A spawned process would spawn its data loader's workers too: 13 s of imports before each epoch.
    torch.multiprocessing.set_start_method("fork", force=True)
    ignore_espnets_warnings()
    use_fast_products()
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    sys.argv = ["asr_train", *arguments]  # ESPnet writes it into the log
    from espnet2.bin.asr_train import main as train

    train(arguments)


def main() -> None:
    processes, *arguments = sys.argv[1:]
    arguments += ["--ngpu", "0", "--multiprocessing_distributed", "false", "--dist_backend", "gloo"]
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    # A process that fails stops the others; all of them end with this one, however it ends.
    torch.multiprocessing.spawn(_train, (int(processes), port, arguments), int(processes))


if __name__ == "__main__":
    main()
