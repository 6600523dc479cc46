"""Stage 13: score every decoded test set of an experiment and write its ``RESULTS.md`` and ``report.html``."""

from __future__ import annotations

import argparse
from pathlib import Path

from espnet_lmu.data.files import command_line
from espnet_lmu.data.kaldi_dir import read_table
from espnet_lmu.errors import UserError
from espnet_lmu.report.experiment import TITLES, Experiment
from espnet_lmu.report.page import write_report
from espnet_lmu.report.results import write_results
from espnet_lmu.scoring.error_rate import (
    HEADER,
    read_texts,
    score,
    split_characters,
    split_tokens,
    split_words,
    write_result,
)


def score_decoding(data_feats: Path, decode_dir: Path, test_sets: list[str], bpemodel: Path | None) -> str:
    """Score ``decode_dir/SET/text`` against ``data_feats/SET/text``.

    Writes ``score_{wer,cer,ter}/result.txt`` beside each hypothesis (TER with a BPE model only).

    Sets without a single transcript are passed over, with a line that says so.

    Returns:
        the tables, as Markdown.

    Raises:
        UserError: a set is not decoded, or has other utterances than were decoded; no set has transcripts.
    """
    splits = {"wer": split_words, "cer": split_characters}
    if bpemodel is not None:
        splits["ter"] = split_tokens(bpemodel)
    rows: dict[str, list[str]] = {kind: [] for kind in splits}
    for name in test_sets:
        if not (decode_dir / name / "text").exists():
            raise UserError(f"{decode_dir / name}/text: no such file; run stage 12 first")
    blind = [name for name in test_sets if not any(read_table(data_feats / name / "text").values())]
    if len(blind) == len(test_sets):
        raise UserError(f"{data_feats}/{blind[0]}/text: no words to score against")
    for name in test_sets:
        if name in blind:
            print(f"{data_feats}/{name}/text: no transcripts, so {name} is not scored")
            continue
        references, hypotheses = read_texts(data_feats / name / "text", decode_dir / name / "text")
        for kind, split in splits.items():
            total, alignments = score(references, hypotheses, split)
            write_result(decode_dir / name / f"score_{kind}" / "result.txt", name, total, alignments)
            rows[kind].append(total.row(f"{decode_dir.name}/{name}"))
    return "\n".join(f"### {TITLES[kind]}\n\n{HEADER}\n" + "\n".join(lines) + "\n" for kind, lines in rows.items())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_lmu.scoring.summary", description=__doc__)
    parser.add_argument("--bpemodel", type=Path, metavar="MODEL", help="BPE model, for the token error rate")
    parser.add_argument("--data_feats", type=Path, required=True, metavar="DIR", help="references: DIR/SET/text")
    parser.add_argument("--decode_dir", type=Path, required=True, metavar="DIR", help="hypotheses: DIR/SET/text")
    parser.add_argument("test_sets", metavar="SET", nargs="+", help="name of a test set")
    args = parser.parse_args()
    print(score_decoding(args.data_feats, args.decode_dir, args.test_sets, args.bpemodel))
    experiment = Experiment(args.decode_dir.parent, args.data_feats)
    decoding = experiment.decoding(args.decode_dir.name)
    write_results(experiment, decoding)
    report = write_report(experiment, decoding)
    print(f"Written to {decoding.directory}/RESULTS.md, with all decodings to {experiment.directory}/RESULTS.md")
    print(f"Open {report} in a browser; alignments in {decoding.directory}/*/score_*/result.txt")


if __name__ == "__main__":
    command_line(main)
