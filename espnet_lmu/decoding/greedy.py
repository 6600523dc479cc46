"""Greedy CTC decoding (Graves et al. 2006, best path), in batches.

B utterances, T encoder frames, V tokens; token 0 is the blank.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from espnet_lmu.data.audio import read_audio
from espnet_lmu.data.features import load_features
from espnet_lmu.data.files import parse_rate
from espnet_lmu.decoding.model import load_asr_model
from espnet_lmu.decoding.results import Hypothesis
from espnet_lmu.errors import UserError

BLANK = 0


def best_path(log_probs, lengths) -> list[tuple[list[int], float]]:
    """Tokens of the most probable alignment: repetitions merged, then blanks removed.

    Args:
        log_probs: (B, T, V) log posteriors.
        lengths: (B,) valid frames.

    Returns:
        for each sequence its token ids and the log probability of the alignment.
    """
    import torch

    scores, ids = log_probs.max(dim=-1)
    valid = torch.arange(ids.size(1), device=ids.device)[None] < lengths.to(ids.device)[:, None]
    totals = scores.masked_fill(~valid, 0.0).sum(dim=1).tolist()
    first_of_run = torch.ones_like(valid)
    first_of_run[:, 1:] = ids[:, 1:] != ids[:, :-1]
    keep = valid & first_of_run & (ids != BLANK)
    return [(row[mask].tolist(), total) for row, mask, total in zip(ids, keep, totals, strict=True)]


class GreedyDecoder:
    """A trained model with its tokenizer.

    Args:
        config_file: ``config.yaml`` of the experiment.
        model_file: weights, e.g. ``valid.loss.ave.pth``.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, config_file: str | Path, model_file: str | Path, device: str = "cpu"):
        self.model, args = load_asr_model(config_file, model_file, device)
        self.device = device
        from espnet2.text.build_tokenizer import build_tokenizer
        from espnet2.text.token_id_converter import TokenIDConverter

        try:
            self.tokenizer = build_tokenizer(args.token_type, bpemodel=args.bpemodel)
            if args.bpemodel is not None:
                self.tokenizer.text2tokens("")  # the model file is opened on first use
        except OSError:
            raise UserError(f"{args.bpemodel}: no such BPE model; start from the recipe's directory") from None
        except RuntimeError:
            raise UserError(
                f"{args.bpemodel}: not a BPE model, or damaged; run stage 5 again, or copy it again"
            ) from None
        self.converter = TokenIDConverter(args.token_list)
        self.sos_eos = len(args.token_list) - 1
        self.input_size = args.input_size
        self.fs = parse_rate(str((args.frontend_conf or {}).get("fs", "16k")))
        stft = getattr(self.model.frontend, "stft", None)
        # torch.stft pads by n_fft / 2 on both sides, with samples that have to be there.
        self.minimum_length = stft.n_fft // 2 + 1 if stft is not None else 1
        self.hop_length = stft.hop_length if stft is not None else None  # samples from one feature frame to the next

    def log_posteriors(self, inputs: list[np.ndarray]) -> list:
        """CTC log posteriors (T, V) for each waveform (samples,) or feature matrix (frames, D) of a batch.

        Input too short for the model gives None.
        """
        import torch

        from espnet_lmu.encoder.subsampling import TooShortUttError

        long_enough = [i for i, item in enumerate(inputs) if len(item) >= self.minimum_length]
        outputs: list = [None] * len(inputs)
        if not long_enough:
            return outputs
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[i], dtype=np.float32)) for i in long_enough]
        lengths = torch.tensor([len(tensor) for tensor in tensors])
        padded = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
        try:
            with torch.inference_mode():
                encoded, frames = self.model.encode(padded.to(self.device), lengths.to(self.device))
                if isinstance(encoded, tuple):  # with intermediate CTC
                    encoded = encoded[0]
                log_probs = self.model.ctc.log_softmax(encoded).float()
        except TooShortUttError:
            if len(long_enough) == 1:
                return outputs
            # One of them is too short: find out which.
            return [self.log_posteriors([item])[0] for item in inputs]
        for i, row, length in zip(long_enough, log_probs, frames.tolist(), strict=True):
            outputs[i] = row[:length]
        return outputs

    def text(self, ids: list[int]) -> str:
        """The words that token ids spell."""
        return " ".join(self.tokenizer.tokens2text(self.converter.ids2tokens(ids)).split())

    def hypothesis(self, ids: list[int], score: float) -> Hypothesis:
        """The hypothesis with these token ids."""
        ids = [token for token in ids if token != self.sos_eos]
        tokens = self.converter.ids2tokens(ids)
        return Hypothesis(self.text(ids), " ".join(tokens), " ".join(map(str, ids)), f"{score:.4f}")

    def decode(self, inputs: list[np.ndarray]) -> list[Hypothesis]:
        """Hypotheses of a batch of waveforms (samples,) or feature matrices (frames, D).

        Input too short for the model gives an empty hypothesis.
        """
        import torch

        hypotheses = []
        for log_probs in self.log_posteriors(inputs):
            if log_probs is None:
                hypotheses.append(Hypothesis())
                continue
            hypotheses.append(self.hypothesis(*best_path(log_probs[None], torch.tensor([len(log_probs)]))[0]))
        return hypotheses


def load_input(path: str, decoder: GreedyDecoder) -> np.ndarray:
    """Waveform (samples,) or features (frames, D) of an utterance."""
    if decoder.input_size is not None:
        features = load_features(path)
        if features.ndim != 2 or features.shape[1] != decoder.input_size:
            raise UserError(f"{path}: features {features.shape}, but the model takes {decoder.input_size} a frame")
        return features
    samples, rate = read_audio(path)
    if rate != decoder.fs:
        raise UserError(f"{path}: sampling rate {rate} Hz, but the model was trained on {decoder.fs} Hz; see stage 3")
    return samples


def decode_greedy(decoder: GreedyDecoder, batches: list[list[tuple[str, str]]]) -> list[dict[str, Hypothesis]]:
    """Hypotheses of batches of (id, path), as `espnet_lmu.decoding.pieces.decode_set` wants them."""
    hypotheses: dict[str, Hypothesis] = {}
    for batch in batches:
        keys, paths = zip(*batch, strict=True)
        hypotheses |= zip(keys, decoder.decode([load_input(path, decoder) for path in paths]), strict=True)
    return [hypotheses]
