"""Greedy CTC decoding (Graves et al. 2006, best path) of a data directory, in batches of similar length.

B utterances, T encoder frames, V tokens; token 0 is the blank.
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from espnet_lmu.data.audio import read_audio
from espnet_lmu.data.files import parse_rate, shorten
from espnet_lmu.data.filter import read_durations
from espnet_lmu.data.kaldi_dir import check_same_ids, read_table
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
        from espnet.nets.pytorch_backend.transformer.subsampling import TooShortUttError

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
            ids, score = best_path(log_probs[None], torch.tensor([len(log_probs)]))[0]
            ids = [token for token in ids if token != self.sos_eos]
            tokens = self.converter.ids2tokens(ids)
            hypotheses.append(Hypothesis(self.text(ids), " ".join(tokens), " ".join(map(str, ids)), f"{score:.4f}"))
        return hypotheses


def load_input(path: str, decoder: GreedyDecoder) -> np.ndarray:
    """Waveform (samples,) or features (frames, D) of an utterance."""
    if decoder.input_size is not None:
        import kaldiio

        try:
            features = kaldiio.load_mat(path)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: features cannot be read ({error}); run stage 3 again") from None
        if features.ndim != 2 or features.shape[1] != decoder.input_size:
            raise UserError(f"{path}: features {features.shape}, but the model takes {decoder.input_size} a frame")
        return features
    samples, rate = read_audio(path)
    if rate != decoder.fs:
        raise UserError(f"{path}: sampling rate {rate} Hz, but the model was trained on {decoder.fs} Hz; see stage 3")
    return samples


_decoder: GreedyDecoder  # inherited by forked workers: ESPnet is imported and the model loaded once


def _decode_batch(batch: list[tuple[str, str]]) -> dict[str, Hypothesis]:
    """Hypotheses of a batch of (id, path)."""
    hypotheses = _decoder.decode([load_input(path, _decoder) for _, path in batch])
    return {utterance: hypothesis for (utterance, _), hypothesis in zip(batch, hypotheses, strict=True)}


def decode_greedy(data_dir: Path, decoder: GreedyDecoder, batch_size: int = 16, nj: int = 1) -> dict[str, Hypothesis]:
    """Decode a formatted data directory; prints the real-time factor (processing time / audio duration).

    Args:
        data_dir: with ``wav.scp`` or ``feats.scp``.
        decoder: the model; on a GPU, `nj` must be 1.
        batch_size: utterances in a batch.
        nj: processes to fork. OpenMP's threads do not survive a fork: with more than one, call
            ``torch.set_num_threads(1)`` before the model is made.
    """
    global _decoder
    from tqdm import tqdm

    _decoder = decoder
    raw = decoder.input_size is None
    scp = read_table(data_dir / ("wav.scp" if raw else "feats.scp"))
    durations = read_durations(data_dir, _decoder.fs)
    check_same_ids(scp, data_dir, durations, f"{data_dir}: lengths")
    # Longest first: what does not fit into memory fails at once, and the short batches even out the end.
    order = sorted(scp, key=lambda key: (-durations[key], key))
    batches = [[(key, scp[key]) for key in order[i : i + batch_size]] for i in range(0, len(order), batch_size)]

    hypotheses: dict[str, Hypothesis] = {}
    start = time.perf_counter()
    with tqdm(desc=f"decode {data_dir.name}", total=len(scp), unit="utt", dynamic_ncols=True) as bar:
        if nj > 1:
            with ProcessPoolExecutor(min(nj, len(batches)), multiprocessing.get_context("fork")) as pool:
                futures = [pool.submit(_decode_batch, batch) for batch in batches]
                try:
                    for future in as_completed(futures):
                        hypotheses.update(future.result())
                        bar.update(len(future.result()))
                except BrokenProcessPool:
                    raise UserError("a decoding process was killed (out of memory?); lower --inference_nj") from None
                finally:
                    pool.shutdown(cancel_futures=True)
        else:
            for batch in batches:
                hypotheses.update(_decode_batch(batch))
                bar.update(len(batch))
    elapsed = time.perf_counter() - start
    seconds = sum(durations.values())
    # A score is there whenever the model ran.
    short = sorted(key for key, hypothesis in hypotheses.items() if not hypothesis.score)
    if short:
        print(f"{data_dir.name}: {len(short)} utterances are too short for the model, no words: {shorten(short)}")
    print(
        f"{data_dir.name}: {len(scp)} utterances, {seconds:.1f} s of audio in {elapsed:.1f} s ({nj} processes), "
        f"real-time factor {elapsed / max(seconds, 1e-9):.4f}"
    )
    return hypotheses
