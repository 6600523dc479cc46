"""Stage 5: the token list, of characters or of sentencepiece units, in ESPnet's layout.

``<blank>`` is token 0, ``<unk>`` token 1, ``<sos/eos>`` the last; a space is the character ``<space>``.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
from collections import Counter
from pathlib import Path

from espnet_lmu.data.files import atomic_open, command_line
from espnet_lmu.data.kaldi_dir import read_table
from espnet_lmu.errors import UserError

BLANK, UNKNOWN, SOS_EOS, SPACE = "<blank>", "<unk>", "<sos/eos>", "<space>"


def write_token_list(path: Path, tokens: list[str]) -> None:
    """Write `tokens` between the special symbols, one a line."""
    with atomic_open(path) as stream:
        stream.write("".join(f"{token}\n" for token in (BLANK, UNKNOWN, *tokens, SOS_EOS)))
    print(f"{path}: {len(tokens) + 3} tokens")


def character_tokens(texts: list[str]) -> list[str]:
    """Characters of the texts, the most frequent first (ties in alphabetical order)."""
    counts = Counter(SPACE if character == " " else character for text in texts for character in text)
    return sorted(counts, key=lambda token: (-counts[token], token))


def train_bpe(texts: list[str], directory: Path, size: int, mode: str) -> list[str]:
    """Train ``bpe.model`` in `directory` and return its pieces.

    `size` counts sentencepiece's own <unk>, <s>, </s>; a small corpus may have fewer pieces than asked for.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=size,
            model_type=mode,
            character_coverage=1.0,
            # Otherwise ligatures, wide letters, some accents are others in what is recognized than in the transcripts.
            normalization_rule_name="identity",
            hard_vocab_limit=False,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        needed = re.search(r"required_chars\. \d+ vs (\d+)", str(error))
        if needed or size <= 3:
            least = f"give {needed[1]} or more" if needed else "give more"
            raise UserError(f"--nbpe {size}: too few for the characters of the text; {least}") from None
        raise UserError(f"--nbpe {size}: sentencepiece cannot train: {' '.join(str(error).split())}") from None
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".bpe.model.{os.getpid()}.tmp"
    temporary.write_bytes(model.getvalue())
    os.replace(temporary, directory / "bpe.model")
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = range(processor.get_piece_size())
    return [processor.id_to_piece(i) for i in pieces if not (processor.is_control(i) or processor.is_unknown(i))]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m espnet_lmu.tokens", description="Write the token list (and the BPE model) of a training text."
    )
    parser.add_argument("--token_type", choices=["char", "bpe"], default="bpe", help="kind of token (%(default)s)")
    parser.add_argument("--nbpe", type=int, default=30, help="number of BPE units (%(default)s)")
    parser.add_argument("--bpemode", choices=["unigram", "bpe"], default="unigram", help="BPE kind (%(default)s)")
    parser.add_argument("text", metavar="TEXT", help="training text, lines of ID WORDS, e.g. dump/raw/train/text")
    parser.add_argument("directory", metavar="DIR", help="where tokens.txt and bpe.model go")
    args = parser.parse_args()
    directory = Path(args.directory)
    texts = [text for text in read_table(args.text).values() if text]
    if not texts:
        raise UserError(f"{args.text}: no words")
    stamp = hashlib.sha256("\n".join([args.token_type, str(args.nbpe), args.bpemode, *texts]).encode()).hexdigest()
    stamp_file = directory / ".stamp"
    written = [directory / "tokens.txt", *([directory / "bpe.model"] if args.token_type == "bpe" else [])]
    if all(path.exists() for path in written) and stamp_file.exists() and stamp_file.read_text("utf-8") == stamp:
        print(f"{directory}/tokens.txt: kept")
        return
    stamp_file.unlink(missing_ok=True)
    if args.token_type == "bpe":
        tokens = train_bpe(texts, directory, args.nbpe, args.bpemode)
    else:
        tokens = character_tokens(texts)
    write_token_list(directory / "tokens.txt", tokens)
    with atomic_open(stamp_file) as stream:
        stream.write(stamp)


if __name__ == "__main__":
    command_line(main)
