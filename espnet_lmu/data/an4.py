"""The CMU AN4 corpus (948 training and 130 test utterances of spelled words, dates and commands).

Sets as in ESPnet's recipe ``egs2/an4/asr1``: utterance ids are SPEAKER-RECORDING-CHANNEL, the first 100
training utterances in sorted order are ``train_dev``, the other 848 ``train_nodev``, and ``test`` has 130.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import shutil
import tarfile
import urllib.request
import zlib
from pathlib import Path

from espnet_lmu.data.files import command_line
from espnet_lmu.data.kaldi_dir import write_data_dir
from espnet_lmu.errors import UserError
from espnet_lmu.progress import progress

URL = "http://www.speech.cs.cmu.edu/databases/an4/an4_sphere.tar.gz"
DEVELOPMENT_UTTERANCES = 100
_AUDIO_FOLDERS = {"train": "an4_clstk", "test": "an4test_clstk"}
_LINE = re.compile(r"(?:<s>\s+)?(?P<words>.*?)(?:\s+</s>)?\s*\((?P<file>[^-()]+-(?P<speaker>[^-()]+)-[^-()]+)\)")


def download(target: Path) -> None:
    """Fetch the official archive to `target`, with a progress bar."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    try:
        with urllib.request.urlopen(URL, timeout=60) as response, open(partial, "wb") as stream:
            size = int(response.headers.get("Content-Length") or 0)
            with progress(desc="download AN4", total=size or None, unit="B", unit_scale=True) as bar:
                while block := response.read(1 << 18):
                    stream.write(block)
                    bar.update(len(block))
        if size and partial.stat().st_size != size:
            raise OSError(f"received {partial.stat().st_size} of {size} bytes")
        os.replace(partial, target)
    except OSError as error:
        raise UserError(
            f"{URL}: download failed ({error}); fetch the archive by other means and give it with AN4=PATH ./run.sh"
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the archive to `folder`/an4 (kept if it is there) and return that path."""
    root = folder / "an4"
    if root.is_dir():
        return root
    temporary = folder / f".an4.{os.getpid()}.tmp"
    try:
        with tarfile.open(archive) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extractall(temporary, filter="data")
            else:  # Python before 3.10.12 and 3.11.4
                for member in tar:
                    name = Path(member.name)
                    if not (member.isfile() or member.isdir()) or name.is_absolute() or ".." in name.parts:
                        raise tarfile.TarError(f"unsafe member {member.name}")
                    tar.extract(member, temporary)
        os.replace(temporary / "an4", root)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno and error.errno != errno.ENOENT:
            error.filename = error.filename or str(temporary)
            raise  # the disk's fault, not the archive's (which may be whole and have no folder an4: ENOENT)
        raise UserError(f"{archive}: not a complete AN4 archive ({error}); delete it and fetch it again") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return root


def read_part(root: Path, part: str) -> dict[str, dict[str, str]]:
    """Tables of a part, ``train`` or ``test``, of the unpacked corpus at `root`."""
    transcription = root / "etc" / f"an4_{part}.transcription"
    if not transcription.is_file():
        raise UserError(f"{root}: not the AN4 corpus: {transcription} is missing; give the archive or its folder an4")
    tables: dict[str, dict[str, str]] = {"wav.scp": {}, "text": {}, "utt2spk": {}}
    for line in transcription.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise UserError(f"{transcription}: cannot read the line: {line.strip()}")
        recording, speaker, channel = match["file"].split("-")
        utterance = f"{speaker}-{recording}-{channel}"
        tables["wav.scp"][utterance] = str(root / "wav" / _AUDIO_FOLDERS[part] / speaker / f"{match['file']}.sph")
        tables["text"][utterance] = " ".join(match["words"].split())
        tables["utt2spk"][utterance] = speaker
    return tables


def prepare(root: Path, output: Path) -> None:
    """Write `output`/{train_nodev,train_dev,test} from the unpacked corpus at `root`."""
    train, test = read_part(root, "train"), read_part(root, "test")
    order = sorted(train["text"])
    subsets = {"train_dev": order[:DEVELOPMENT_UTTERANCES], "train_nodev": order[DEVELOPMENT_UTTERANCES:]}
    for name, utterances in subsets.items():
        subset = {file: {key: table[key] for key in utterances} for file, table in train.items()}
        write_data_dir(output / name, subset)
    write_data_dir(output / "test", test)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m espnet_lmu.data.an4", description="Make data/{train_nodev,train_dev,test} of the AN4 corpus."
    )
    parser.add_argument(
        "--an4",
        metavar="PATH",
        default=os.environ.get("AN4") or None,
        help="an4_sphere.tar.gz, or the folder an4 unpacked from it (default: the variable AN4, else download)",
    )
    parser.add_argument("--downloads", metavar="DIR", default="downloads", help="where archives go (%(default)s)")
    parser.add_argument("--output", metavar="DIR", default="data", help="where data directories go (%(default)s)")
    args = parser.parse_args()

    downloads = Path(args.downloads)
    source = Path(args.an4) if args.an4 else downloads / "an4_sphere.tar.gz"
    if args.an4 and not source.exists():
        raise UserError(f"{source}: no such file or folder; give the archive an4_sphere.tar.gz or its folder an4")
    if not source.exists():
        download(source)
    prepare(source if source.is_dir() else unpack(source, downloads), Path(args.output))


if __name__ == "__main__":
    command_line(main)
