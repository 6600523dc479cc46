"""Stage 9: an n-gram of tokens or of words, for the prefix beam search; with one of words the lexicon of its words.

Trained by KenLM's lmplz (modified Kneser-Ney smoothing), or taken from an ARPA file.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from espnet_lmu.data.files import atomic_open, command_line, shorten
from espnet_lmu.errors import UserError
from espnet_lmu.lm.kenlm import MAX_ORDER, find_programs
from espnet_lmu.lm.text import read_lines, read_sentences
from espnet_lmu.scoring.error_rate import Split, split_characters, split_tokens
from espnet_lmu.tokens import SPACE, UNKNOWN

BINARY, LEXICON, _STAMP, _LOG = ".bin", ".lexicon.txt", ".stamp", ".log"
WORD_END = "<word_end>"
_SPECIAL = {"<s>", "</s>", UNKNOWN}


def read_token_list(path: Path) -> list[str]:
    """The tokens, one a line."""
    return list(read_lines(path))


def speller(tokens: Iterable[str], bpemodel: Path | None) -> Split:
    """The function from text to the recipe's tokens; what the token list lacks becomes ``<unk>``."""
    split = split_characters if bpemodel is None else split_tokens(bpemodel)
    known = set(tokens)
    return lambda text: [token if token in known else UNKNOWN for token in split(text)]


def arpa_vocabulary(path: Path) -> Iterator[str]:
    """The unigrams of an ARPA file, without sentence marks and ``<unk>``.

    Raises:
        UserError: it is no ARPA file.
    """
    with open(path, "rb") as file:
        if file.read(7) == b"mmap lm":
            raise UserError(f"{path}: KenLM's binary form, which does not tell its words; give the ARPA file")
    inside = found = False
    for line in read_lines(path):
        if line.startswith("\\"):
            inside = line == "\\1-grams:"
            if found and not inside:
                break
            found = found or inside
        elif inside and line:
            fields = line.split()
            if len(fields) < 2:
                raise UserError(f"{path}: a damaged ARPA file; its unigrams have a line {line!r}")
            if fields[1] not in _SPECIAL:
                yield fields[1]
    if not found:
        raise UserError(f"{path}: not an ARPA file (no line \\1-grams:)")


def write_lexicon(path: Path, words: Iterable[str], spell: Split, tokens: list[str]) -> None:
    r"""Write lines of ``WORD<TAB>TOKEN TOKEN ...`` for torchaudio's `ctc_decoder`.

    The decoder takes the last token of a word for one frame only, unless it is the one that it calls silence. So a word
    of characters ends with the space behind it. A word of sentence pieces, which tell where the next word begins, has a
    line without a mark and a line with `WORD_END`, which takes the place of a blank: the last piece has one frame in
    the former, any number of them in the latter.

    Raises:
        UserError: no word can be written in the tokens.
    """
    left_out, count = [], 0
    with atomic_open(path) as stream:
        for word in words:
            spelling = spell(word)
            if UNKNOWN in spelling or not spelling:
                left_out.append(word)
                continue
            count += 1
            if SPACE in tokens:
                stream.write(f"{word}\t{' '.join([*spelling, SPACE])}\n")
            else:
                stream.write(f"{word}\t{' '.join(spelling)}\n{word}\t{' '.join([*spelling, WORD_END])}\n")
        if not count:
            raise UserError(
                f"{path}: none of the {len(left_out)} words can be written in the tokens ({shorten(left_out)}); "
                "do the language model and the transcripts use the same letters, in the same case?"
            )
    print(f"{path}: {count} words" + (f"; without {len(left_out)} that have other characters" if left_out else ""))


def _run(command: list[str], lines: Iterable[str] | None, log: Path, output: Path | None = None) -> str:
    """Run one of KenLM's programs with `lines` as its input; its messages go to `log`, and what it prints is returned.

    Raises:
        UserError: it failed; with its last message.
    """
    program = Path(command[0]).name
    with open(log, "a", encoding="utf-8") as messages, tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        with open(output, "w", encoding="utf-8") if output else tempfile.TemporaryFile() as file:
            stdin = subprocess.DEVNULL if lines is None else subprocess.PIPE
            process = subprocess.Popen(
                command, stdin=stdin, stdout=file if output else printed, stderr=messages, text=True, encoding="utf-8"
            )
            try:
                if lines is not None:
                    process.stdin.writelines(f"{line}\n" for line in lines)
                    process.stdin.close()
            except BrokenPipeError:
                pass  # it says why
            finally:
                if process.wait() and lines is not None:
                    process.stdin = None
        printed.seek(0)
        text = printed.read()
    if process.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        # Not the marks of progress, nor what ends the messages.
        reasons = [line for line in lines if line.strip("-*0123456789 ") not in ("", "ERROR")]
        raise UserError(f"{program} failed: {reasons[-1].strip() if reasons else 'no message'} (log: {log})")
    return text


def _digest(paths: Iterable[Path], *options: object) -> str:
    digest = hashlib.sha256("\n".join(map(str, options)).encode())
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def make_ngram(
    output: Path,
    unit: str,
    order: int,
    text: Path | None,
    arpa: Path | None,
    token_list: Path,
    bpemodel: Path | None,
    tools: Path,
) -> None:
    """Write KenLM's binary ``OUTPUT.bin`` and, of words, ``OUTPUT.lexicon.txt``; what is there already is kept.

    Args:
        output: path without an ending.
        unit: ``token`` or ``word``.
        order: of the n-gram that is trained on `text` (lines of ``ID WORDS``), where there is no `arpa`.
        tools: where KenLM's programs are, or will be built.
    """
    binary, lexicon, stamp_file, log = (
        output.with_name(output.name + ending) for ending in (BINARY, LEXICON, _STAMP, _LOG)
    )
    source = arpa or text
    if not source.exists():
        raise UserError(f"{source}: no such file")
    inputs = [source, token_list, *([bpemodel] if bpemodel else [])]
    stamp = _digest(inputs, unit, order if arpa is None else "arpa")
    written = [binary, *([lexicon] if unit == "word" else [])]
    if all(path.exists() for path in written) and stamp_file.exists() and stamp_file.read_text("utf-8") == stamp:
        print(f"{binary}: kept")
        return
    programs = find_programs(tools)
    tokens = read_token_list(token_list)
    spell = speller(tokens, bpemodel)
    output.parent.mkdir(parents=True, exist_ok=True)
    stamp_file.unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as directory:
        temporary = Path(directory)
        if arpa is None:
            arpa = temporary / "lm.arpa"
            sentences = read_sentences(text)
            lines = sentences if unit == "word" else (" ".join(spell(sentence)) for sentence in sentences)
            # Few different words, as characters are, leave no counts to estimate discounts from.
            command = [programs["lmplz"], "-o", str(order), "-S", "1G", "-T", str(temporary), "--discount_fallback"]
            # Transcripts have <unk> where the tokens lack a character.
            _run([*command, "--skip_symbols"], lines, log, output=arpa)
        vocabulary = list(arpa_vocabulary(arpa))
        if unit == "word":
            write_lexicon(lexicon, vocabulary, spell, tokens)
        elif not set(vocabulary) & set(tokens):
            raise UserError(f"{arpa}: none of its entries is in {token_list}; an n-gram of words: --ngram_unit word")
        _run([programs["build_binary"], "-T", f"{temporary}/", str(arpa), str(temporary / "lm.bin")], None, log)
        os.replace(temporary / "lm.bin", binary)
    with atomic_open(stamp_file) as stream:
        stream.write(stamp)
    print(f"{binary}: {len(vocabulary)} {unit}s, {binary.stat().st_size / 1e6:.1f} MB")


def perplexity(binary: Path, sentences: Iterable[str], query: str) -> str:
    """What KenLM says of `sentences`: perplexities with and without the words that the model does not know."""
    log = binary.with_suffix(_LOG)
    printed = _run([query, "-v", "summary", str(binary)], sentences, log)
    values = dict(re.findall(r"^(Perplexity \w+ OOVs|OOVs|Tokens):\s*(\S+)", printed, re.MULTILINE))
    return (
        f"perplexity {float(values['Perplexity including OOVs']):.2f} "
        f"({float(values['Perplexity excluding OOVs']):.2f} without {values['OOVs']} unknown of {values['Tokens']}, "
        "ends of sentences among them)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_lmu.lm.ngram", description=__doc__)
    parser.add_argument("--unit", choices=["token", "word"], default="token", help="what is counted (%(default)s)")
    parser.add_argument("--order", type=int, default=3, help="n (%(default)s)")
    parser.add_argument("--text", type=Path, metavar="FILE", help="training text, lines of ID WORDS")
    parser.add_argument("--arpa", type=Path, metavar="FILE", help="your own ARPA file (or .gz), in place of training")
    parser.add_argument("--dev_text", type=Path, required=True, metavar="FILE", help="lines of ID WORDS: perplexity")
    parser.add_argument("--token_list", type=Path, required=True, metavar="FILE", help="tokens.txt of stage 5")
    parser.add_argument("--bpemodel", type=Path, metavar="MODEL", help="bpe.model of stage 5 (none: characters)")
    parser.add_argument("--tools", type=Path, required=True, metavar="DIR", help="KenLM's programs; built if missing")
    parser.add_argument("output", type=Path, metavar="PATH", help="PATH.bin and, of words, PATH.lexicon.txt")
    args = parser.parse_args()
    if not 2 <= args.order <= MAX_ORDER:
        raise UserError(f"--ngram_num {args.order}: give 2 to {MAX_ORDER}")
    make_ngram(args.output, args.unit, args.order, args.text, args.arpa, args.token_list, args.bpemodel, args.tools)
    sentences = read_sentences(args.dev_text)
    if args.unit == "token":
        spell = speller(read_token_list(args.token_list), args.bpemodel)
        sentences = (" ".join(spell(sentence)) for sentence in sentences)
    binary = args.output.with_name(args.output.name + BINARY)
    print(f"{args.dev_text}: {perplexity(binary, sentences, find_programs(args.tools)['query'])}")


if __name__ == "__main__":
    command_line(main)
