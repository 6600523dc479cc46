"""Stage 1: what is wrong with a data directory, what is done about it, and a report of it (``DIR/check.json``).

Every kind of finding has a policy: ``stop`` the recipe, ``drop`` the utterances, ``fix`` them or ``keep`` them as they
are. The audio is read once: what was measured of a file stays in ``DIR/.audio.jsonl``, with the file's size and time
of change, and holds while those hold. Afterwards the directory is sorted and has a ``spk2utt``.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from espnet_lmu.data.audio import audio_length
from espnet_lmu.data.files import atomic_open, command_line, parse_rate, shorten
from espnet_lmu.data.filter import read_durations
from espnet_lmu.data.kaldi_dir import excerpts, read_lines, read_table, refuse_pipe, write_data_dir
from espnet_lmu.data.segments import Excerpt, parse_segment, read_excerpt, sample_range
from espnet_lmu.data.transcripts import check_transcripts, frames_per_second, make_tokenizer, read_vocabulary
from espnet_lmu.errors import UserError
from espnet_lmu.parallel import map_pieces
from espnet_lmu.progress import progress

FULL_SCALE = 0.999  # of the largest sample value
CLIPPED_SHARE = 0.001  # of an utterance's samples that are at full scale
SILENT_PEAK = 0.001  # -60 dB of full scale
_PIECE_SIZE = 64  # utterances that a process reads
_OFFENDERS = 3  # named in the table; the report has all


class Kind(NamedTuple):
    """A kind of finding; of its possible policies the first is that of training sets."""

    meaning: str
    policies: tuple[str, ...]
    test_policy: str | None = None  # of test sets, where it is another one: dropping changes what is measured


KINDS = {
    "duplicate": Kind("id given twice (fix: the first line counts)", ("stop", "fix", "drop")),
    "incomplete": Kind("not in every table", ("stop", "drop")),
    "segment": Kind("segment that is no part of a recording", ("stop", "drop")),
    "overshoot": Kind("segment that ends after its recording (fix: ends with it)", ("stop", "fix", "drop")),
    "missing": Kind("no such audio file", ("stop", "drop")),
    "unreadable": Kind("audio that cannot be read or is cut off", ("stop", "drop")),
    "empty": Kind("audio without samples", ("stop", "drop")),
    "sample_rate": Kind("other sampling rate (fix: stage 3 resamples)", ("fix", "stop", "drop")),
    "channels": Kind("several channels (fix: stage 3 takes their mean)", ("fix", "stop", "drop")),
    "clipped": Kind(f"{CLIPPED_SHARE:.1%} of the samples or more at full scale", ("keep", "stop", "drop")),
    "silent": Kind("silence: below -60 dB of full scale", ("drop", "stop", "keep"), "keep"),
    "no_transcript": Kind("empty transcript", ("drop", "stop", "keep"), "keep"),
    "unknown_characters": Kind("characters or pieces not in the token list", ("keep", "stop")),
    "too_long": Kind("transcript longer than CTC can align with the audio", ("drop", "stop", "keep"), "keep"),
}
Findings = dict[str, dict[str, str]]  # kind -> utterance -> what it is, "" where the kind says it all


def parse_policies(text: str) -> dict[str, str]:
    """Policies of ``"silent=stop clipped=drop"``."""
    policies = {}
    for word in text.split():
        kind, _, policy = word.partition("=")
        if kind not in KINDS:
            raise UserError(f"--check_policy {word}: give KIND=POLICY, the kind one of: {' '.join(KINDS)}")
        if policy not in KINDS[kind].policies:
            raise UserError(f"--check_policy {word}: the policy of {kind} is one of: {' '.join(KINDS[kind].policies)}")
        policies[kind] = policy
    return policies


def default_policies(test: bool) -> dict[str, str]:
    """The policy of every kind for a test set or a training set."""
    return {name: (kind.test_policy if test else None) or kind.policies[0] for name, kind in KINDS.items()}


def read_tables(directory: Path, findings: Findings) -> dict[str, dict[str, str]]:
    """Tables of a data directory as they are; ids given twice and ids that a table lacks go to `findings`."""
    if not directory.is_dir():
        raise UserError(f"{directory}: no such data directory; local/data.sh makes it, or check the set's name")
    tables: dict[str, dict[str, str]] = {}
    repeated: dict[str, str] = {}
    for name in ("wav.scp", "text", "utt2spk", *(["segments"] if (directory / "segments").exists() else [])):
        tables[name] = {}
        for _, key, value in read_lines(directory / name):
            if key in tables[name]:
                repeated[key] = name
            else:
                tables[name][key] = value
    audio = "segments" if "segments" in tables else "wav.scp"
    if not tables[audio]:
        raise UserError(f"{directory}/{audio}: no utterances")
    utterances = set(tables[audio]) | set(tables["text"]) | set(tables["utt2spk"])
    for key in sorted(utterances):
        lacking = [name for name in (audio, "text", "utt2spk") if key not in tables[name]]
        if tables["utt2spk"].get(key) == "":
            lacking.append("utt2spk (no speaker)")
        if lacking:
            findings["incomplete"][key] = f"not in {', '.join(lacking)}"
    for key, value in tables.get("segments", {}).items():
        try:
            recording = parse_segment(value)[0]
        except UserError as error:
            findings["segment"][key] = str(error)
            continue
        if recording not in tables["wav.scp"]:
            findings["segment"][key] = f"no recording {recording} in wav.scp"
        if recording in repeated:
            findings["duplicate"][key] = f"{recording} in wav.scp"
    findings["duplicate"] |= {key: f"in {name}" for key, name in repeated.items() if key in utterances}
    return tables


def measure(audio: Excerpt) -> dict:
    """Header, peak and clipping of the audio of an utterance.

    Returns:
        ``{"error": KIND, "message": ...}``, or ``rate`` (Hz), ``channels``, ``seconds``, ``peak`` (half the distance
        of the largest to the smallest sample, full scale 1) and ``clipped`` (share of the samples at full scale); with
        ``end`` (seconds) where a segment ends after its recording, of which the rest is measured.
    """
    import numpy as np
    import soundfile

    result = {}
    try:
        with soundfile.SoundFile(audio.path) as sound:
            channels, empty = sound.channels, sound.frames == 0
        if empty:
            return {"error": "empty", "message": ""}
        if audio != Excerpt(audio.path):
            frames, rate = audio_length(audio.path)
            first, last = sample_range(audio, frames, rate)
            if first >= frames or first == last:
                return {
                    "error": "segment",
                    "message": f"from {audio.start:g} s; the recording has {frames / rate:.3f} s",
                }
            if last > frames:
                result["end"] = frames / rate
                audio = audio._replace(end=frames / rate)
        samples, rate = read_excerpt(audio)
    except (UserError, soundfile.SoundFileError, OSError) as error:
        return {"error": "unreadable", "message": " ".join(str(error).split())}
    peak = float(samples.max() - samples.min()) / 2
    clipped = float(np.mean(np.abs(samples) >= FULL_SCALE))
    return {
        **result,
        "rate": rate,
        "channels": channels,
        "seconds": len(samples) / rate,
        "peak": peak,
        "clipped": clipped,
    }


def _measure_piece(piece: list[Excerpt]) -> list[dict]:
    return [measure(audio) for audio in piece]


def measure_all(directory: Path, audio: dict[str, Excerpt], **parallel) -> dict[str, dict]:
    """`measure` of every utterance, in pieces, where no earlier run has read the same file."""
    cache = directory / ".audio.jsonl"
    known: dict[tuple, dict] = {}
    with contextlib.suppress(OSError, ValueError):  # what cannot be read is measured again
        for line in cache.read_text(encoding="utf-8").splitlines():
            *key, result = json.loads(line)
            known[tuple(key)] = result
    status = {path: os.stat(path) for path in {excerpt.path for excerpt in audio.values()}}
    keys = {
        excerpt: (*excerpt, status[excerpt.path].st_size, status[excerpt.path].st_mtime_ns)
        for excerpt in sorted(audio.values(), key=lambda excerpt: (excerpt.path, excerpt.start))
    }
    measured = {excerpt: known[key] for excerpt, key in keys.items() if key in known}
    new = [excerpt for excerpt in keys if excerpt not in measured]
    if new:
        import soundfile  # noqa: F401  # once, not in every piece

        # After a kill the same files are new, and the pieces that were complete are in the folder of the same name.
        stamp = hashlib.sha256(json.dumps([keys[excerpt] for excerpt in new]).encode()).hexdigest()[:16]
        folder = directory / f".audio.{stamp}"
        for other in set(directory.glob(".audio.*/")) - {folder}:
            shutil.rmtree(other)
        pieces = {f"audio.{i // _PIECE_SIZE + 1}": (new[i : i + _PIECE_SIZE],) for i in range(0, len(new), _PIECE_SIZE)}
        with progress(desc=f"check {directory}", total=len(new), unit="utt") as bar:
            results = map_pieces(
                _measure_piece,
                pieces,
                directory=folder,
                advance=lambda name: bar.update(len(pieces[name][0])),
                **parallel,
            )
        for name, (piece,) in pieces.items():
            measured.update(zip(piece, results[name], strict=True))
        with atomic_open(cache) as stream:
            stream.writelines(json.dumps([*key, measured[excerpt]]) + "\n" for excerpt, key in keys.items())
        shutil.rmtree(folder)
    return {key: measured[excerpt] for key, excerpt in audio.items()}


def judge_audio(measured: dict[str, dict], fs: int, findings: Findings) -> None:
    """Sort what was measured into `findings`."""
    for key, result in measured.items():
        if "error" in result:
            findings[result["error"]][key] = result["message"]
            continue
        if "end" in result:
            findings["overshoot"][key] = f"the recording ends at {result['end']:.3f} s"
        if result["rate"] != fs:
            findings["sample_rate"][key] = f"{result['rate']} Hz"
        if result["channels"] > 1:
            findings["channels"][key] = f"{result['channels']} channels"
        if result["clipped"] >= CLIPPED_SHARE:
            findings["clipped"][key] = f"{result['clipped']:.1%}"
        if result["peak"] < SILENT_PEAK:
            findings["silent"][key] = ""


class Transcripts(NamedTuple):
    """What transcripts are compared with."""

    token_type: str
    token_list: Path
    bpemodel: Path
    frame_rate: float  # encoder frames per second

    def check(self, texts: dict[str, str], seconds: dict[str, float]) -> Findings:
        tokenize = make_tokenizer(self.token_type, self.bpemodel)
        return check_transcripts(texts, seconds, tokenize, read_vocabulary(self.token_list), self.frame_rate)


def check_data_dir(
    directory: Path, fs: int, policies: dict[str, str], transcripts: Transcripts, **parallel
) -> Findings:
    """Check a data directory, write its report and, where no policy says stop, do what the policies say.

    Args:
        parallel: `nj` and what else `map_pieces` needs to know of processes and jobs.

    Returns:
        findings whose policy is stop.

    Raises:
        UserError: tables that are missing or damaged, pipes in ``wav.scp``, no utterance left.
    """
    findings: Findings = {kind: {} for kind in KINDS}
    tables = read_tables(directory, findings)
    for key, path in tables["wav.scp"].items():
        refuse_pipe(directory, key, path)
    bad = findings["segment"].keys()
    sound = {key: value for key, value in tables.get("segments", {}).items() if key not in bad}
    audio = excerpts({**tables, "segments": sound} if "segments" in tables else tables)
    exists = {path: Path(path).is_file() for path in {excerpt.path for excerpt in audio.values()}}
    findings["missing"] = {key: excerpt.path for key, excerpt in audio.items() if not exists[excerpt.path]}
    measured = measure_all(
        directory, {key: excerpt for key, excerpt in audio.items() if exists[excerpt.path]}, **parallel
    )
    judge_audio(measured, fs, findings)
    seconds = {key: result["seconds"] for key, result in measured.items() if "seconds" in result}
    findings["no_transcript"] = {key: "" for key, text in tables["text"].items() if not text}
    findings |= transcripts.check(tables["text"], seconds)

    stopping = {kind: found for kind, found in findings.items() if found and policies[kind] == "stop"}
    dropped = {key for kind, found in findings.items() if policies[kind] == "drop" for key in found}
    kept = [key for key in sorted(audio) if key in seconds and key not in dropped]
    earlier = dropped_earlier(directory, set().union(*tables.values()))
    report(directory, findings, policies, {key: seconds[key] for key in kept}, fs, earlier)
    if stopping:
        return stopping
    if not kept:
        raise UserError(f"{directory}: no utterance is left; {directory}/check.json says why")
    for key in findings["overshoot"]:
        recording, start, _ = parse_segment(tables["segments"][key])
        tables["segments"][key] = f"{recording} {start:.6f} {measured[key]['end']:.6f}"
    used = {excerpt.path for excerpt in map(audio.get, kept)}
    for name, table in tables.items():
        if name == "wav.scp" and "segments" in tables:
            tables[name] = {key: path for key, path in table.items() if path in used}
        else:
            tables[name] = {key: table[key] for key in kept}
    write_data_dir(directory, tables)
    return {}


def dropped_earlier(directory: Path, utterances: set[str]) -> Findings:
    """What earlier checks, by ``DIR/check.json``, dropped and nobody has brought back among `utterances`."""
    path = directory / "check.json"
    if not path.exists():
        return {}
    try:
        last = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path}: damaged; it names what earlier checks dropped: delete it to do without") from None
    dropped = {kind: dict(found) for kind, found in last.get("dropped_earlier", {}).items()}
    for kind, entry in last["findings"].items():
        if entry["policy"] == "drop":
            dropped[kind] = {**dropped.get(kind, {}), **entry["utterances"]}
    absent = {
        kind: {key: text for key, text in found.items() if key not in utterances} for kind, found in dropped.items()
    }
    return {kind: found for kind, found in absent.items() if found}


def report(
    directory: Path,
    findings: Findings,
    policies: dict[str, str],
    kept: dict[str, float],
    fs: int,
    earlier: Findings,
) -> None:
    """Print a table of what was found and write all of it to ``DIR/check.json``.

    Args:
        kept: seconds of the utterances that stay.
        earlier: what earlier checks dropped.
    """
    found = {kind: utterances for kind, utterances in findings.items() if utterances}
    summary = {
        "utterances_kept": len(kept),
        "hours_kept": round(sum(kept.values()) / 3600, 3),
        "sampling_rate": fs,
        "findings": {
            kind: {"count": len(found), "policy": policies[kind], "meaning": KINDS[kind].meaning, "utterances": found}
            for kind, found in findings.items()
        },
        "dropped_earlier": earlier,
    }
    with atomic_open(directory / "check.json") as stream:
        json.dump(summary, stream, indent=1, ensure_ascii=False)
    nothing = ", nothing new found" if earlier else ", nothing found"
    print(f"{directory}: {len(kept)} utterances, {sum(kept.values()) / 3600:.2f} h{'' if found else nothing}")
    if not found and not earlier:
        return
    print(f"  {'kind':<18} {'count':>7}  policy  first ones (all: {directory}/check.json)")
    rows = [(kind, utterances, policies[kind], "") for kind, utterances in found.items()]
    rows += [(kind, utterances, "drop", "in earlier runs: ") for kind, utterances in earlier.items()]
    for kind, utterances, policy, when in rows:
        first = [f"{key} ({text})" if text else key for key, text in list(sorted(utterances.items()))[:_OFFENDERS]]
        print(f"  {kind:<18} {len(utterances):>7}  {policy:<6}  {when}{KINDS[kind].meaning}: {', '.join(first)}")


def stop_message(stopping: dict[Path, Findings]) -> str:
    """One line that names what stops the recipe, the first utterance of each kind, and the way on."""
    parts, options = [], {}
    for directory, findings in stopping.items():
        for kind, found in findings.items():
            key, text = min(found.items())
            parts.append(f"{directory}: {len(found)} {kind} ({KINDS[kind].meaning}), first {key}{text and f': {text}'}")
            others = [policy for policy in KINDS[kind].policies if policy != "stop"]
            options[kind] = f"{kind}={others[0]}"
    return f'{"; ".join(parts)}; correct the data, or give --check_policy "{" ".join(options.values())}"'


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m espnet_lmu.data.check", description="Check data directories; sort them and write their spk2utt."
    )
    parser.add_argument("--test", action="store_true", help="test sets: silence and empty transcripts stay")
    parser.add_argument("--formatted", action="store_true", help="formatted directories: transcripts alone (stage 5)")
    parser.add_argument("--check_policy", default="", help='e.g. "silent=stop clipped=drop" (see the module)')
    parser.add_argument("--fs", default="16k", help="sampling rate, e.g. 16k (%(default)s)")
    parser.add_argument("--nj", type=int, default=1, help="number of processes, or of Slurm's jobs (%(default)s)")
    parser.add_argument("--cmd", choices=["local", "slurm"], default="local", help="where they run (%(default)s)")
    parser.add_argument("--slurm_config", type=Path, metavar="YAML", help="settings of Slurm's jobs")
    parser.add_argument("--feats_type", choices=["raw", "fbank"], default="raw", help="kind of features (%(default)s)")
    parser.add_argument("--token_type", choices=["char", "bpe"], default="bpe", help="kind of token (%(default)s)")
    parser.add_argument("--token_listdir", type=Path, default=Path("none"), help="folder of tokens.txt and bpe.model")
    parser.add_argument("--asr_config", type=Path, help="training configuration: frames that CTC has")
    parser.add_argument("--training", type=Path, metavar="DIR", help="the training set (default: the first DIR)")
    parser.add_argument("directories", metavar="DIR", nargs="+", type=Path, help="data directory, e.g. data/train")
    args = parser.parse_args()

    fs = parse_rate(args.fs)
    policies = {**default_policies(args.test), **parse_policies(args.check_policy)}
    tokens, bpemodel = args.token_listdir / "tokens.txt", args.token_listdir / "bpe.model"
    transcripts = Transcripts(
        args.token_type, tokens, bpemodel, frames_per_second(args.asr_config, args.feats_type, fs)
    )
    parallel = {"nj": max(args.nj, 1), "cmd": args.cmd, "slurm_config": args.slurm_config}
    training = args.training or args.directories[0]
    stopping = {}
    for directory in args.directories:
        if args.formatted:
            found = check_formatted(directory, fs, policies, transcripts)
        else:
            found = check_data_dir(directory, fs, policies, transcripts, **parallel)
        if found:
            stopping[directory] = found
    if stopping:
        raise UserError(stop_message(stopping))
    if not args.formatted:
        for directory in args.directories:
            warn_of_training_data(directory, training)


def warn_of_training_data(directory: Path, training: Path) -> None:
    """Name audio that a set has in common with the training set: its error rate says little of other audio."""
    if directory == training:
        return

    def audio(folder: Path) -> dict[Excerpt, str]:
        tables = {path.name: read_table(path) for path in (folder / "wav.scp", folder / "segments") if path.exists()}
        return {excerpt: key for key, excerpt in excerpts(tables).items()}

    heard = audio(training)
    shared = [key for excerpt, key in audio(directory).items() if excerpt in heard]
    if shared:
        print(f"warning: {directory}: {len(shared)} utterances are training data ({training}): {shorten(shared)}")


def check_formatted(directory: Path, fs: int, policies: dict[str, str], transcripts: Transcripts) -> Findings:
    """Compare the transcripts of a formatted directory with its token list; nothing is dropped any more.

    The token list was made of these transcripts: without some of them it would be another one.
    """
    durations = read_durations(directory, fs)
    findings = transcripts.check(read_table(directory / "text"), durations)
    policies = {kind: "stop" if policy == "stop" else "keep" for kind, policy in policies.items()}
    report(directory, findings, policies, durations, fs, {})
    return {kind: found for kind, found in findings.items() if found and policies[kind] == "stop"}


if __name__ == "__main__":
    command_line(main)
