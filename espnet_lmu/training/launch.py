"""``python -m espnet_lmu.training.launch N ARGUMENT ...``: ESPnet's asr_train in N processes on this machine.

The processes share each batch and average their gradients (torch's DistributedDataParallel), so that a step learns from
the batch that one process would have: over NCCL with ``--ngpu`` above 0, where each process has its GPU, and over gloo
on the CPU. They end together, and one line tells which of them failed.

Several launches train together, N processes each. Slurm tells them of each other (``srun``, one task for each machine);
elsewhere the environment does, with the names that torchrun sets: MASTER_ADDR and MASTER_PORT, WORLD_SIZE (launches)
and RANK (of this one). ``--slurm_config`` starts the launches, on ``--num_nodes`` machines, by ``srun``.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import espnet_lmu  # noqa: F401  (registers the encoder, in each process)
from espnet_lmu.data.features import check_features, read_features, write_features
from espnet_lmu.data.files import command_line
from espnet_lmu.errors import UserError
from espnet_lmu.hook import ignore_espnets_warnings, import_asr_train
from espnet_lmu.training.checkpoint import claim
from espnet_lmu.training.pretrained import check_pretrained
from espnet_lmu.training.settings import check_training


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _slurm_address(nodes: str) -> str:
    """Where the first of a step's machines is reached, of Slurm's list such as ``gpu-[3-4,7]``.

    ESPnet's own reading of the list takes ``gpu`` for the name of the first.
    """

    def scontrol(*arguments: str) -> str:
        return subprocess.run(["scontrol", "show", *arguments], check=True, capture_output=True, text=True).stdout

    first = scontrol("hostnames", nodes).split()[0]
    node = dict(field.split("=", 1) for field in scontrol("--oneliner", "node", first).split() if "=" in field)
    return node["NodeAddr"]


def _launches(num_nodes: int) -> tuple[int, int, str, int]:
    """How many launches train together, the rank of this one, and the address and port at which they meet.

    Raises:
        UserError: launches that cannot find each other.
    """
    environment = os.environ
    if int(environment.get("WORLD_SIZE", 1)) > 1:
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
        if missing:
            raise UserError(f"WORLD_SIZE is set, {missing[0]} is not; set it, or start this by torchrun")
        launches, launch = int(environment["WORLD_SIZE"]), int(environment["RANK"])
        address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    elif int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        address = _slurm_address(environment["SLURM_STEP_NODELIST"])
        # Equal on all machines, another one for another job; below the ports that systems give to whoever asks.
        step = int(environment["SLURM_JOB_ID"]) + 1009 * int(environment["SLURM_STEP_ID"])
        port = int(environment.get("MASTER_PORT", 12000 + step % 20000))
        launches, launch = int(environment["SLURM_STEP_NUM_TASKS"]), int(environment["SLURM_PROCID"])
    else:
        launches, launch, address, port = 1, 0, "127.0.0.1", _free_port()
    if launches < num_nodes:
        raise UserError(
            f"--num_nodes {num_nodes}: give --cmd slurm, or start the same command on each machine with MASTER_ADDR, "
            f"MASTER_PORT, WORLD_SIZE={num_nodes} and RANK=0 to {num_nodes - 1} in its environment"
        )
    return launches, launch, address, port


def _output_dir(arguments: list[str]) -> Path | None:
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--output_dir", type=Path)
    return parser.parse_known_args(arguments)[0].output_dir


def _record_features(arguments: list[str]) -> None:
    """Write down, in a new experiment, how the features that it is trained on were computed.

    Raises:
        UserError: the experiment has begun with others, or the statistics or a pretrained model are of others.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--valid_data_path_and_name_and_type", action="append")  # stays one directory with num_splits
    parser.add_argument("--valid_shape_file", type=Path, action="append")
    known, _ = parser.parse_known_args(arguments)
    experiment = _output_dir(arguments)
    if experiment is None or None in vars(known).values():
        return  # asr_train will say so
    data_dir = Path(known.valid_data_path_and_name_and_type[0]).parent
    statistics = known.valid_shape_file[0].parents[1]
    features = read_features(data_dir)
    check_features(str(statistics), read_features(statistics), features, str(data_dir))
    check_pretrained(arguments, data_dir)
    if (experiment / "checkpoint.pth").exists():
        check_features(str(experiment), read_features(experiment), features, str(data_dir))
    else:
        write_features(experiment, features)


def _srun(processes: int, on_gpus: bool, num_nodes: int, config: Path, arguments: list[str]) -> None:
    """Replace this process by ``srun`` of one launch on each of `num_nodes` machines."""
    from espnet_lmu.parallel import slurm_settings

    command = ["srun", "--job-name=train", f"--nodes={num_nodes}", f"--ntasks={num_nodes}", "--ntasks-per-node=1"]
    # If one launch fails, the others end.
    command += ["--kill-on-bad-exit=1", "--export=ALL"]
    defaults = {"gpus-per-node": processes} if on_gpus else {"cpus-per-task": processes}
    settings = defaults | slurm_settings(config, "training")
    command += [f"--{name}={value}" for name, value in settings.items()]
    try:
        os.execvp("srun", [*command, sys.executable, "-m", "espnet_lmu.training.launch", str(processes), *arguments])
    except FileNotFoundError:
        raise UserError("--cmd slurm: there is no srun here; start this where Slurm is, or use --cmd local") from None


def _train(index: int, first_rank: int, environment: dict[str, str], on_gpus: bool, arguments: list[str]) -> None:
    # torch ends this process by SIGINT when the starting one dies. A shell's background jobs ignore SIGINT, and Python
    # would react to it only when torch has stopped waiting for other processes.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    import torch

    from espnet_lmu.training.arithmetic import use_fast_arithmetic

    # A spawned process would spawn its data loader's workers too: 13 s of imports before each epoch.
    torch.multiprocessing.set_start_method("fork", force=True)
    os.environ.update(environment, RANK=str(first_rank + index))
    if on_gpus:
        os.environ.setdefault("LOCAL_RANK", str(index))
    else:
        # ESPnet would take them for the number of a GPU.
        for name in ("LOCAL_RANK", "CUDA_VISIBLE_DEVICES"):
            os.environ.pop(name, None)
    ignore_espnets_warnings()
    if not on_gpus:
        use_fast_arithmetic()
    sys.argv = ["asr_train", *arguments]  # ESPnet writes it into the log
    from espnet2.bin.asr_train import main as train

    train(arguments)


def _reason(error: Exception, processes: list, first_rank: int) -> str:
    """What ended the training, in one line."""
    index = error.error_index
    # The loss of one process makes the others fail, perhaps before it is noticed.
    for i, process in enumerate(processes):
        if process.exitcode < 0 and process.exitcode != -signal.SIGTERM:
            name = signal.Signals(-process.exitcode).name
            memory = " (out of memory?)" if name == "SIGKILL" else ""
            return f"training process {first_rank + i} was ended by {name}{memory}; run stage 11 again to resume"
    last_line = str(error).strip().splitlines()[-1]
    if "batch-size must be equal or more than world_size" in last_line:
        last_line += "; some batches have fewer utterances than there are processes: train in fewer, or larger batches"
    return f"training process {first_rank + index}: {last_line}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m espnet_lmu.training.launch",
        usage="%(prog)s N [OPTION ...] [ARGUMENT OF asr_train ...]",
        description=__doc__,
        allow_abbrev=False,  # what it does not know is asr_train's
    )
    parser.add_argument("processes", metavar="N", type=int, help="number of processes on each machine")
    parser.add_argument("--ngpu", type=int, default=0, help="0: CPU, otherwise a GPU for each process (%(default)s)")
    parser.add_argument("--num_nodes", type=int, default=1, help="number of machines (%(default)s)")
    parser.add_argument("--slurm_config", type=Path, metavar="YAML", help="start by srun with these settings")
    args, arguments = parser.parse_known_args()
    on_gpus = args.ngpu > 0
    if args.processes < 1:
        raise UserError(f"--train_nj {args.processes}: give at least 1")
    if args.slurm_config:
        forwarded = ["--ngpu", str(args.ngpu), "--num_nodes", str(args.num_nodes), *arguments]
        _srun(args.processes, on_gpus, args.num_nodes, args.slurm_config, forwarded)
    launches, launch, address, port = _launches(args.num_nodes)
    environment = {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(launches * args.processes),
    }
    arguments += ["--multiprocessing_distributed", "false"]
    arguments += ["--ngpu", "1", "--dist_backend", "nccl"] if on_gpus else ["--ngpu", "0", "--dist_backend", "gloo"]

    # The large tensors of a step lie in memory that is new to the process each time: with pages of 2 MB, a step on a
    # CPU takes an eighth less.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    import torch

    if on_gpus and torch.cuda.device_count() < args.processes:
        raise UserError(
            f"--ngpu {args.processes}: this machine has {torch.cuda.device_count()} GPUs that torch can use; with "
            "--ngpu 0 it trains on the CPU"
        )
    if launch == 0:
        if experiment := _output_dir(arguments):
            claim(experiment)
        _record_features(arguments)
        check_training(arguments)
    if not on_gpus:
        import_asr_train()  # once: the processes are forks, which CUDA does not survive
    if args.processes > 1:
        os.environ.pop("LOCAL_RANK", None)  # torchrun's, of this launch: each of its processes has a GPU of its own
    first_rank = launch * args.processes
    context = torch.multiprocessing.start_processes(
        _train,
        (first_rank, environment, on_gpus, arguments),
        args.processes,
        join=False,
        start_method="spawn" if on_gpus else "fork",
    )
    try:
        # A process that fails stops the others; all of them end with this one, however it ends.
        while not context.join():
            pass
    except torch.multiprocessing.ProcessRaisedException as error:
        print(error, file=sys.stderr)  # with its traceback
        raise UserError(_reason(error, context.processes, first_rank)) from None
    except torch.multiprocessing.ProcessExitedException as error:
        if any(process.exitcode == -signal.SIGINT for process in context.processes):
            raise KeyboardInterrupt from None
        if error.exit_code > 0:
            sys.exit(error.exit_code)  # it has said why: a mistyped option
        raise UserError(_reason(error, context.processes, first_rank)) from None


if __name__ == "__main__":
    command_line(main)
