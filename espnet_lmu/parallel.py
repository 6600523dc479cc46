"""Work in pieces, by processes of this machine or as jobs of a Slurm cluster (through submitit).

A piece's result is a file of its own, which appears when the piece is complete. Whoever runs the same work again, after
a kill say, gets what is there and computes the rest.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path

from espnet_lmu.data.files import read_yaml, shorten
from espnet_lmu.errors import UserError

_ATTEMPTS = 2
_POLL_SECONDS = 5.0  # each time squeue is asked


def slurm_settings(config: str | Path, work: str) -> dict[str, str]:
    """Options of sbatch and srun for one kind of work.

    Args:
        config: YAML; its section `work` goes before its section `all`.

    Raises:
        UserError: the file cannot be read or has other than sections of NAME: VALUE.
    """
    sections = read_yaml(Path(config))
    if not all(isinstance(section or {}, dict) for section in sections.values()):
        raise UserError(f"{config}: expected sections (all, pieces, training) of lines NAME: VALUE")
    settings = (sections.get("all") or {}) | (sections.get(work) or {})
    for name, value in settings.items():
        if isinstance(value, int) and name == "time":
            # YAML reads 4:00:00 as a number of seconds.
            raise UserError(f"{config}: time: quote it, such as '4:00:00'")
    return {name.replace("_", "-"): str(value) for name, value in settings.items()}


class _Piece:
    """One call, with the files that it leaves in `directory`."""

    def __init__(self, function: Callable, name: str, arguments: tuple, directory: Path):
        self.function, self.name, self.arguments = function, name, arguments
        stem = re.sub(r"[^\w.-]", "_", name)
        self.result = directory / f"{stem}.pickle"
        self.failure = directory / f"{stem}.failed"
        self.log = directory / f"{stem}.log"
        self.killed = True  # unless its process ended by itself

    def run(self) -> None:
        """Compute the result, or leave the reason why there is none; both are written at once."""
        self.failure.unlink(missing_ok=True)
        path = self.result
        try:
            content = self.function(*self.arguments)
        except Exception as error:
            if not isinstance(error, (UserError, OSError)):
                traceback.print_exc()
            path, content = self.failure, (isinstance(error, UserError), f"{error}" or type(error).__name__)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(pickle.dumps(content))
        os.replace(temporary, path)

    def ended(self) -> bool:
        return self.result.exists() or self.failure.exists()

    def why(self) -> tuple[bool, str]:
        """Whether the input is at fault, and what happened, of a piece without a result."""
        if self.failure.exists():
            return pickle.loads(self.failure.read_bytes())
        if self.killed:
            return False, "its process was killed (out of memory, out of time?)"
        return False, f"its result could not be written to {self.result.parent} (disk full?)"


_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def _end_with_the_parent() -> None:
    """Let this process be killed when its parent is, or it would go on writing what the next run clears away."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != multiprocessing.parent_process().pid:  # killed before that
        os.kill(os.getpid(), signal.SIGKILL)


def follow_parent() -> None:
    """Let this forked process end with its parent, and leave Ctrl-C, which goes to all processes, to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_the_parent()


@contextlib.contextmanager
def interrupted_later() -> Iterator[None]:
    """Put Ctrl-C off to the end of the block, in which processes are forked: they take it as this one does until
    `follow_parent`."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield  # a job in the background, or a thread that gets no Ctrl-C
        return
    interrupts = []
    signal.signal(signal.SIGINT, lambda *_: interrupts.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if interrupts:
        raise KeyboardInterrupt


def _run_logged(piece: _Piece) -> None:
    follow_parent()
    with open(piece.log, "w", encoding="utf-8") as log:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ["OMP_NUM_THREADS"] = "1"  # for a torch that the process imports itself
    if "torch" in sys.modules:
        # The processes already fill the cores; threads inside them would only compete.
        sys.modules["torch"].set_num_threads(1)
    piece.run()


def _run_locally(pieces: list[_Piece], nj: int, done: Callable[[_Piece], None]) -> None:
    context = multiprocessing.get_context("fork")  # what this process has imported, the pieces have
    waiting, running = list(reversed(pieces)), {}
    try:
        while waiting or running:
            while waiting and len(running) < nj:
                piece = waiting.pop()
                process = context.Process(target=_run_logged, args=(piece,))
                with interrupted_later():
                    process.start()
                    running[process.sentinel] = (process, piece)
            for sentinel in wait(list(running)):
                process, piece = running.pop(sentinel)
                process.join()
                piece.killed = process.exitcode < 0
                done(piece)
    finally:
        for process, _ in running.values():
            process.terminate()
            process.join()


def _run_job(prepare: Callable[[], None], pieces: list[_Piece]) -> None:
    """What one job does; a piece that is killed leaves the others alone."""
    prepare()
    _run_locally(pieces, 1, lambda piece: None)


def _active_jobs() -> set[str] | None:
    """The user's jobs that wait or run; None if Slurm does not answer now."""
    # sacct, which submitit would ask, knows nothing on clusters without accounting.
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    answer = subprocess.run(command, capture_output=True, text=True)
    return None if answer.returncode else set(answer.stdout.split())


def _run_on_slurm(
    prepare: Callable[[], None],
    pieces: list[_Piece],
    nj: int,
    done: Callable[[_Piece], None],
    config: Path,
    folder: Path,
) -> None:
    try:
        import submitit
    except ImportError:
        raise UserError("--cmd slurm needs submitit: pip install 'espnet_lmu[slurm]'") from None
    if not shutil.which("sbatch"):
        raise UserError("--cmd slurm: there is no sbatch here; start this where Slurm is, or use --cmd local")
    settings = slurm_settings(config, "pieces")
    executor = submitit.SlurmExecutor(folder)
    executor.update_parameters(stderr_to_stdout=True, additional_parameters={"job-name": "pieces"} | settings)
    # Neighbours go to different jobs: pieces are often ordered by length.
    groups = [pieces[job::nj] for job in range(min(nj, len(pieces)))]
    try:
        with executor.batch():
            jobs = [executor.submit(_run_job, prepare, group) for group in groups]
    except submitit.core.utils.FailedJobError as error:
        raise UserError(f"sbatch refused the jobs ({' '.join(str(error).split())}); see {config}") from None
    running = {job: list(group) for job, group in zip(jobs, groups, strict=True)}
    ended: set = set()
    try:
        while running:
            time.sleep(_POLL_SECONDS)
            for group in running.values():
                for piece in [piece for piece in group if piece.ended()]:
                    group.remove(piece)
                    done(piece)
            # A job that was killed leaves pieces. It is given a second look: a shared file system takes its time.
            lost = ended
            active = _active_jobs()
            ended = {job for job in running if active is not None and job.job_id not in active}
            running = {job: group for job, group in running.items() if group and job not in lost & ended}
    finally:
        for job in running:
            job.cancel()


def _nothing() -> None:
    pass


def map_pieces(
    function: Callable,
    pieces: dict[str, tuple],
    *,
    directory: str | Path,
    nj: int,
    cmd: str = "local",
    slurm_config: Path | None = None,
    prepare: Callable[[], None] = _nothing,
    advance: Callable[[str], None] = lambda name: None,
) -> dict[str, object]:
    """``{name: function(*arguments)}`` for all ``{name: arguments}`` of `pieces`, `nj` of them at a time.

    Args:
        function: of a module (jobs of a cluster import it); on a UserError the piece is not tried again.
        pieces: each with a name that can be a file's; arguments and results are pickled.
        directory: for results and logs, on a file system that all machines share. Results that it holds are taken as
            they are: the caller names it after what they depend on, and removes it when it has used them.
        cmd: ``local``, or ``slurm`` for at most `nj` jobs, with the settings of `slurm_config`.
        prepare: called once in the process whose forks the pieces are, for imports.
        advance: called with the name of each piece that ends well.

    Raises:
        UserError: pieces that failed, were tried again and failed again; other results stay.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    todo = [_Piece(function, name, arguments, directory) for name, arguments in pieces.items()]
    results = {piece.name: piece.result for piece in todo}
    todo = [piece for piece in todo if not piece.result.exists()]

    def done(piece: _Piece) -> None:
        if piece.result.exists():
            advance(piece.name)

    hopeless: list[_Piece] = []
    for attempt in range(_ATTEMPTS):
        for piece in todo:
            piece.failure.unlink(missing_ok=True)
        if not todo:
            break
        if attempt:
            print(f"{len(todo)} pieces failed and are tried again: {shorten([piece.name for piece in todo])}")
        if cmd == "slurm":
            _run_on_slurm(prepare, todo, nj, done, slurm_config, directory / "jobs")
        else:
            prepare()
            _run_locally(todo, nj, done)
        todo = [piece for piece in todo if not piece.result.exists()]
        hopeless += [piece for piece in todo if piece.why()[0]]
        todo = [piece for piece in todo if piece not in hopeless]
    if failed := hopeless + todo:
        reasons: dict[str, list[str]] = {}
        for piece in failed:
            reasons.setdefault(piece.why()[1], []).append(piece.name)
        what = shorten([f"{shorten(names)}: {reason}" for reason, names in reasons.items()])
        raise UserError(f"{len(failed)} of {len(pieces)} pieces failed: {what} (logs: {directory})")
    return {name: pickle.loads(path.read_bytes()) for name, path in results.items()}
