"""Transcripts against the token list and the audio: unknown characters, and what CTC cannot align.

CTC gives every frame one token or the blank and needs a blank between two equal tokens (Graves et al. 2006), so a
transcript takes at least as many frames as it has tokens and repetitions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from espnet_lmu.data.files import read_yaml
from espnet_lmu.data.format import FRAME_SHIFT_MS
from espnet_lmu.errors import UserError
from espnet_lmu.tokens import SPACE

# frames that an input layer makes one of (ESPnet's names and espnet_lmu.encoder.subsampling's)
_SUBSAMPLING = {"linear": 1, "conv2d1": 1, "conv2d2": 2, "conv2d": 4, "dw_striding": 4, "conv2d6": 6}
_SUBSAMPLING |= {"conv2d8": 8, "dw_striding8": 8}
_HOP_LENGTH = 128  # samples, ESPnet's default of frontend_conf


def frames_per_second(asr_config: Path | None, feats_type: str, fs: int) -> float:
    """Encoder frames that a training configuration makes of a second of audio, to about a frame an utterance."""
    config = {} if asr_config is None else read_yaml(asr_config)
    rate = 1000 / FRAME_SHIFT_MS
    if feats_type == "raw":
        rate = fs / ((config.get("frontend_conf") or {}).get("hop_length") or _HOP_LENGTH)
    default = "linear" if config.get("encoder") == "lmu" else "conv2d"  # the encoders' own
    input_layer = (config.get("encoder_conf") or {}).get("input_layer", default)
    return rate / _SUBSAMPLING.get(input_layer, 1)


def frames_needed(tokens: list[str]) -> int:
    """Fewest frames in which CTC can emit `tokens`."""
    return len(tokens) + sum(a == b for a, b in zip(tokens, tokens[1:], strict=False))


def make_tokenizer(token_type: str, bpemodel: Path) -> Callable[[str], list[str]]:
    """Function that splits a transcript into tokens; without a BPE model into words, the fewest there can be."""
    if token_type == "char":
        return lambda text: [SPACE if character == " " else character for character in text]
    if not bpemodel.exists():
        return str.split
    import sentencepiece

    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(bpemodel))
    except (RuntimeError, OSError):
        raise UserError(f"{bpemodel}: not a BPE model; delete it and run stage 5") from None
    return lambda text: processor.encode(text, out_type=str)


def read_vocabulary(token_list: Path) -> set[str] | None:
    """Tokens of a token list, None if there is none yet."""
    return set(token_list.read_text(encoding="utf-8").splitlines()) if token_list.exists() else None


def check_transcripts(
    texts: dict[str, str],
    seconds: dict[str, float],
    tokenize: Callable[[str], list[str]],
    vocabulary: set[str] | None,
    frame_rate: float,
) -> dict[str, dict[str, str]]:
    """Utterances with what is wrong, by kind: ``unknown_characters`` and ``too_long``.

    Args:
        texts: transcripts.
        seconds: lengths of the utterances to compare with; others have no audio.
        tokenize: splits a transcript into tokens.
        vocabulary: known tokens, None for all.
        frame_rate: encoder frames per second.
    """
    findings: dict[str, dict[str, str]] = {"unknown_characters": {}, "too_long": {}}
    for key, text in texts.items():
        tokens = tokenize(" ".join(text.split()))
        unknown = sorted(set(tokens) - vocabulary) if vocabulary else []
        if unknown:
            findings["unknown_characters"][key] = " ".join(unknown)
        needed = frames_needed(tokens)
        if key in seconds and needed > int(seconds[key] * frame_rate):
            findings["too_long"][key] = f"{needed} of {int(seconds[key] * frame_rate)} frames"
    return findings
