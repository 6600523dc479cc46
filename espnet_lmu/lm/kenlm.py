"""KenLM's programs (Heafield 2011): found on the PATH, or built from the source that the package index has.

``python -m espnet_lmu.lm.kenlm DIR`` builds them into DIR; stage 9 does so when it needs them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tarfile
import tempfile
import venv
import zlib
from pathlib import Path

from espnet_lmu.data.files import command_line
from espnet_lmu.errors import UserError

VERSION = "0.3.0"
PROGRAMS = ("lmplz", "build_binary", "query")
MAX_ORDER = 6

_PACKAGES = (
    "cmake g++ make libboost-program-options-dev libboost-system-dev libboost-thread-dev libboost-test-dev "
    "zlib1g-dev libbz2-dev liblzma-dev"
)


def _run(command: list[str], log: Path) -> None:
    with open(log, "a", encoding="utf-8") as stream:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT)
    if result.returncode:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        reason = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no message").strip()
        kept = Path(tempfile.gettempdir()) / "kenlm_build.log"
        shutil.copyfile(log, kept)
        raise UserError(f"KenLM cannot be built: {reason} (log: {kept}); its Debian packages: {_PACKAGES}")


def _download(directory: Path, log: Path) -> Path:
    """The source archive, by pip: the index that the user's pip is set to, with its checks."""
    # This interpreter's environment may have no pip.
    python = directory / "pip" / "bin" / "python"
    venv.create(directory / "pip", with_pip=True)
    download = ["-m", "pip", "download", "--no-deps", "--no-binary", "kenlm", "--dest", str(directory)]
    _run([str(python), *download, f"kenlm=={VERSION}"], log)
    return directory / f"kenlm-{VERSION}.tar.gz"


def build(target: Path, archive: Path | None = None) -> None:
    """Build the programs into `target`, which appears when all are there (about a minute and a half on one core).

    Raises:
        UserError: a compiler or library is missing; the message names Debian's packages.
    """
    missing = [name for name in ("cmake", "g++", "make") if not shutil.which(name)]
    if missing:
        raise UserError(f"KenLM is built from source and needs {', '.join(missing)}; Debian: apt install {_PACKAGES}")
    print(f"building KenLM {VERSION} into {target} (once)", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
        temporary = Path(name)
        log = temporary / "build.log"
        archive = archive or _download(temporary, log)
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(temporary)
        except (tarfile.TarError, EOFError, zlib.error):
            raise UserError(f"{archive}: not a complete archive of KenLM's source; fetch it again") from None
        source, objects, programs = temporary / f"kenlm-{VERSION}", temporary / "build", temporary / "programs"
        settings = ["-DCMAKE_BUILD_TYPE=Release", f"-DKENLM_MAX_ORDER={MAX_ORDER}"]
        _run(["cmake", "-S", str(source), "-B", str(objects), *settings], log)
        jobs = f"-j{len(os.sched_getaffinity(0))}"
        _run(["cmake", "--build", str(objects), "--target", *PROGRAMS, jobs], log)
        programs.mkdir()
        for program in PROGRAMS:
            shutil.copy2(objects / "bin" / program, programs)
        shutil.rmtree(target, ignore_errors=True)
        programs.rename(target)


def find_programs(directory: Path) -> dict[str, str]:
    """Paths of `PROGRAMS`: those on the PATH, else those in `directory`, which are built where missing."""
    found = {name: shutil.which(name) for name in PROGRAMS}
    if all(found.values()):
        return found
    if not all((directory / name).exists() for name in PROGRAMS):
        build(directory)
    return {name: str(directory / name) for name in PROGRAMS}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_lmu.lm.kenlm", description=__doc__)
    parser.add_argument(
        "--source", type=Path, metavar="FILE", help=f"your own kenlm-{VERSION}.tar.gz (default: by pip)"
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="where lmplz, build_binary and query go")
    args = parser.parse_args()
    build(args.directory, args.source)


if __name__ == "__main__":
    command_line(main)
