"""`espnet-lmu export`: writes the files, each checked against PyTorch before any of them appears."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from espnet_lmu.data.files import atomic_open, shorten
from espnet_lmu.data.format import FRAME_SHIFT_MS, fbank
from espnet_lmu.decoding.greedy import GreedyDecoder
from espnet_lmu.encoder.streaming import stream
from espnet_lmu.export import sherpa
from espnet_lmu.export.check import (
    HEADER,
    Candidate,
    Utterance,
    check_difference,
    compare,
    read_utterances,
    row,
)
from espnet_lmu.export.graph import LogMel, OfflineGraph, WaveGraph, espnet_log_mel, kaldi_log_mel
from espnet_lmu.export.onnx_files import OnnxFile, quantize, quiet_tracing, require_onnx, write_onnx
from espnet_lmu.export.streaming import ANY_CHUNK, StreamingGraph, check_streamable
from espnet_lmu.lmu.products import use_fast_products
from espnet_lmu.recognition.model_files import open_model
from espnet_lmu.tokens import SPACE

_SHERPA_RATE = 16000  # sherpa-onnx brings audio to this rate (Hz)


def reference(model: nn.Module, x: Tensor) -> np.ndarray:
    """PyTorch's log posteriors (T', V) of features (T, F).

    One utterance at a time: ESPnet's utterance_mvn with norm_vars counts the padding of a batch.
    """
    with torch.inference_mode():
        x, lengths = x[None].clone(), torch.tensor([len(x)])  # normalization may work in place
        if model.normalize is not None:
            x, lengths = model.normalize(x, lengths)
        ctc = model.ctc if model.encoder.interctc_use_conditioning else None
        encoded, _, _ = model.encoder(x, lengths, ctc=ctc)
        encoded = encoded[0] if isinstance(encoded, tuple) else encoded
        return model.ctc.log_softmax(encoded)[0].numpy()


def streaming_reference(model: nn.Module, x: Tensor, chunk: int) -> np.ndarray:
    """PyTorch's log posteriors (B, T', V) of features (B, T, F) that arrive in two parts; `chunk` in encoder frames."""
    ctc = model.ctc if model.encoder.interctc_use_conditioning else None
    outputs, state = [], None
    with torch.inference_mode():
        x = x.clone()
        if model.normalize is not None:
            x, _ = model.normalize(x, torch.full((len(x),), x.size(1)))
        half = x.size(1) // 2
        for part, is_final in ((x[:, :half], False), (x[:, half:], True)):
            y, state = stream(model.encoder, part, state, is_final, ctc, chunk)
            outputs.append(model.ctc.log_softmax(y))
        return torch.cat(outputs, dim=1).numpy()


def run_chunks(step: OnnxFile, state: list[np.ndarray], x: np.ndarray, frames: int) -> np.ndarray:
    """Log posteriors (B, T', V) of features (B, T, F) by a streaming file, in chunks of `frames` feature frames."""
    outputs = []
    for start in range(0, x.shape[1], frames):
        part = x[:, start : start + frames]
        lengths = np.full(len(x), part.shape[1])
        padded = np.pad(part, ((0, 0), (0, frames - part.shape[1]), (0, 0)))
        log_probs, counts, *state = step(padded, lengths, *state)
        outputs.append(log_probs[:, : counts[0]])
    return np.concatenate(outputs, axis=1)


def _plausible_features(model: nn.Module, batch: int, frames: int, size: int) -> Tensor:
    """Random features (B, T, F) of the size that the model's normalization expects."""
    x = torch.randn(batch, frames, size, generator=torch.Generator().manual_seed(0))
    if hasattr(model.normalize, "mean"):
        return (x * model.normalize.std + model.normalize.mean).float()
    return 2 * x


def _write_tokens(path: Path, tokens: list[str]) -> None:
    """`tokens.txt` as sherpa-onnx reads it: lines of SYMBOL ID, in which ▁ stands for a space."""
    with atomic_open(path) as file:
        file.write("".join(f"{'▁' if token == SPACE else token} {i}\n" for i, token in enumerate(tokens)))


class Exporter:
    """Writes files of one model into a folder.

    Args:
        decoder: the model.
        rate: its sampling rate in Hz.
        folder: where the files go.
    """

    def __init__(self, decoder: GreedyDecoder, rate: int, folder: Path) -> None:
        self.decoder = decoder
        self.model = decoder.model
        self.rate = rate
        self.folder = folder
        self.offline = OfflineGraph(self.model).eval()
        self.input_size = decoder.input_size or self.model.frontend.output_size()
        if decoder.input_size is not None:
            features = f"log-mel as of Kaldi, samples times 32768, {FRAME_SHIFT_MS} ms shift"
        else:
            features = f"log-mel of ESPnet's default frontend, {decoder.hop_length} samples shift"
        self.metadata = {
            "model_type": "espnet_lmu",
            "features": features,
            "sample_rate": rate,
            "vocab_size": len(decoder.converter.token_list),
        }

    def _report(self, name: str, expected: list[np.ndarray], found: list[np.ndarray]) -> None:
        print(f"{name}: at most {check_difference(name, expected, found):.1e} from PyTorch", flush=True)

    def _quantize(self, name: str, graph: nn.Module) -> str:
        target = name.replace(".onnx", ".int8.onnx")
        quantize(self.folder / name, self.folder / target, graph)
        return target

    def write_offline(self, to_onnx: bool, int8: bool) -> list[Candidate]:
        """Features (B, T, F) and lengths (B,) to log posteriors (B, T', V) and lengths."""
        lengths = torch.tensor([150, 111, 67])
        x = _plausible_features(self.model, 3, 150, self.input_size)
        expected = [reference(self.model, x[i, :length]) for i, length in enumerate(lengths.tolist())]
        # traced with other sizes than it is checked with
        example = (x[:2, :93], torch.tensor([93, 80]))
        if not to_onnx:
            path = self.folder / "model.pt"
            with quiet_tracing(), torch.no_grad():
                torch.jit.trace(self.offline, example, check_trace=False).save(str(path))
            traced = torch.jit.load(str(path))

            def run(x: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
                with torch.inference_mode():
                    return [out.numpy() for out in traced(torch.from_numpy(x), torch.from_numpy(lengths))]

            files = {"model.pt": run}
        else:
            write_onnx(
                self.folder / "model.onnx",
                self.offline,
                example,
                ["features", "lengths"],
                ["log_probs", "log_probs_lengths"],
                {
                    "features": {0: "batch", 1: "frames"},
                    "lengths": {0: "batch"},
                    "log_probs": {0: "batch", 1: "encoder_frames"},
                    "log_probs_lengths": {0: "batch"},
                },
                self.metadata,
            )
            names = ["model.onnx"] + ([self._quantize("model.onnx", self.offline)] if int8 else [])
            files = {name: OnnxFile(self.folder / name) for name in names}
        name, run = next(iter(files.items()))
        log_probs, counts = run(x.numpy(), lengths.numpy())
        self._report(name, expected, [rows[:count] for rows, count in zip(log_probs, counts, strict=True)])
        return [
            Candidate(
                name,
                (self.folder / name).stat().st_size,
                lambda utterance, run=run: run(utterance.features[None], np.array([len(utterance.features)]))[0][0],
            )
            for name, run in files.items()
        ]

    def write_sherpa(self, int8: bool) -> list[Candidate]:
        """A waveform to log posteriors, for sherpa-onnx; nothing, and a line why, where it would not fit."""
        if not self.offline.normalize.by_utterance:
            print(
                "sherpa.onnx: not written: sherpa-onnx changes the level of audio; train with normalize: utterance_mvn"
            )
            return []
        if self.rate != _SHERPA_RATE:
            print(f"sherpa.onnx: not written: sherpa-onnx gives {_SHERPA_RATE} Hz, the model takes {self.rate} Hz")
            return []
        log_mel = self._log_mel()
        graph = WaveGraph(log_mel, self.offline).eval()
        generator = torch.Generator().manual_seed(0)
        samples = torch.randn(1, 20011, generator=generator)
        with torch.inference_mode():
            if self.decoder.input_size is None:
                x = self.model.frontend(0.03 * samples, torch.tensor([samples.size(1)]))[0][0]
            else:
                x = torch.from_numpy(fbank(0.03 * samples[0].numpy(), self.rate))
        write_onnx(
            self.folder / "sherpa.onnx",
            graph,
            (samples[:, :14000],),
            ["samples"],
            ["log_probs"],
            {"samples": {1: "samples"}, "log_probs": {1: "encoder_frames"}},
            self.metadata,
        )
        names = ["sherpa.onnx"] + ([self._quantize("sherpa.onnx", graph)] if int8 else [])
        files = {name: OnnxFile(self.folder / name) for name in names}
        self._report("sherpa.onnx", [reference(self.model, x)], list(files["sherpa.onnx"](samples.numpy())[0]))

        def decode(utterance: Utterance, run: OnnxFile) -> np.ndarray:
            samples = utterance.samples - utterance.samples.mean()
            return run((samples / max(samples.std(), 1e-5))[None])[0][0]

        return [
            Candidate(name, (self.folder / name).stat().st_size, lambda utterance, run=run: decode(utterance, run))
            for name, run in files.items()
        ]

    def _log_mel(self) -> LogMel:
        return kaldi_log_mel(self.rate) if self.decoder.input_size is not None else espnet_log_mel(self.model.frontend)

    def write_streaming(self, to_onnx: bool, int8: bool, chunk: int) -> list[Candidate]:
        """One chunk: features, lengths and a state to log posteriors, lengths and the next state."""
        graph = StreamingGraph(self.offline, chunk).eval()
        frames = chunk * graph.factor
        state = graph.initial_state(self.input_size, 2)
        inputs = ["features", "lengths", *state]
        outputs = ["log_probs", "log_probs_lengths", *(f"next.{name}" for name in state)]
        example = (torch.zeros(2, frames, self.input_size), torch.full((2,), frames), *state.values())
        metadata = {**self.metadata, "chunk_frames": frames, "subsampling_factor": graph.factor}
        # Streams of one batch may have different lengths, but each starts with its own zero state.
        if not to_onnx:
            path = self.folder / "streaming.pt"
            with quiet_tracing(), torch.no_grad():
                torch.jit.trace(graph, example, check_trace=False).save(str(path))
            traced = torch.jit.load(str(path))

            def run(*inputs: np.ndarray) -> list[np.ndarray]:
                with torch.inference_mode():
                    return [out.numpy() for out in traced(*map(torch.from_numpy, inputs))]

            files = {"streaming.pt": run}
        else:
            batch = {name: {0: "batch"} for name in (*inputs, *outputs)}
            write_onnx(self.folder / "streaming.onnx", graph, example, inputs, outputs, batch, metadata)
            names = ["streaming.onnx"] + ([self._quantize("streaming.onnx", graph)] if int8 else [])
            files = {name: OnnxFile(self.folder / name) for name in names}
        self.model.encoder.attention_chunk = chunk  # for whole utterances, in the check on data
        x = _plausible_features(self.model, 2, 5 * frames + frames // 2 + 1, self.input_size)
        name, run = next(iter(files.items()))
        empty = [value.numpy() for value in state.values()]
        expected, found = streaming_reference(self.model, x, chunk), run_chunks(run, empty, x.numpy(), frames)
        self._report(name, list(expected), list(found))
        single = [value[:1] for value in empty]
        return [
            Candidate(
                name,
                (self.folder / name).stat().st_size,
                lambda utterance, run=run: run_chunks(run, single, utterance.features[None], frames)[0],
            )
            for name, run in files.items()
        ]


def _print_comparison(
    exporter: Exporter, candidates: list[Candidate], directory: Path, weights: Path, use_sherpa: bool
) -> None:
    """Decode a data directory with PyTorch and every file, and print a table."""
    decoder = exporter.decoder
    utterances = read_utterances(directory, decoder, exporter.rate)
    shortest = getattr(exporter.model.encoder.embed, "shortest", 1)
    if short := [key for key, utterance in utterances.items() if len(utterance.features) < shortest]:
        print(f"{directory}: {len(short)} utterances are too short for the model and left out: {shorten(short)}")
        utterances = {key: utterance for key, utterance in utterances.items() if key not in short}
    with_audio = all(utterance.samples is not None for utterance in utterances.values())
    if not with_audio:
        candidates = [candidate for candidate in candidates if not candidate.name.startswith("sherpa")]

    def pytorch(utterance: Utterance) -> np.ndarray:
        return reference(exporter.model, torch.from_numpy(utterance.features))

    candidates = [Candidate("PyTorch", weights.stat().st_size, pytorch), *candidates]
    use_fast_products()  # as stage 12 does
    compare(utterances, decoder, candidates)
    print(f"\n{directory}, {len(utterances)} utterances one by one, on one thread\n\n{HEADER}")
    for candidate in candidates:
        print(row(candidate, candidates[0], utterances))
    if not with_audio or not use_sherpa:
        return
    if not sherpa.available():
        print("\nsherpa-onnx is not installed: sherpa.onnx was run by onnxruntime alone")
        return
    recordings = {key: utterance.samples for key, utterance in utterances.items()}
    for candidate in candidates:
        if candidate.name.startswith("sherpa"):
            texts = sherpa.recognize(
                exporter.folder / candidate.name, exporter.folder / "tokens.txt", recordings, exporter.rate
            )
            name = f"{candidate.name} in sherpa-onnx"
            print(row(Candidate(name, candidate.size, candidate.run, texts=texts), candidates[0], utterances))


def export_model(
    model: str, output: Path, file_format: str, int8: bool, streaming: bool, chunk: int | None, check: Path | None
) -> None:
    """Export a trained model, and print what was written and how it compares with PyTorch.

    Args:
        model: see `espnet_lmu.recognition.model_files.open_model`.
        output: folder for the files; they appear when all of them are made and checked.
        file_format: "onnx" or "torchscript".
        int8: also with 8-bit weights.
        streaming: one chunk of a causal model in place of whole utterances.
        chunk: encoder frames of that chunk; None for the model's own.
        check: data directory to decode with PyTorch and with the files.

    Raises:
        UserError: the model or an option cannot work, or a file does not compute what PyTorch does.
    """
    to_onnx = file_format == "onnx"
    if to_onnx:
        require_onnx()
    files = open_model(model)
    torch.set_num_threads(1)
    decoder = GreedyDecoder(files.config_file, files.model_file)
    created = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".export.", dir=output) as name:
            folder = Path(name)
            exporter = Exporter(decoder, files.rate or decoder.fs, folder)
            if streaming:
                check_streamable(decoder.model)
                chunk = chunk or decoder.model.encoder.streaming_chunk or ANY_CHUNK
                candidates = exporter.write_streaming(to_onnx, int8, chunk)
            else:
                candidates = exporter.write_offline(to_onnx, int8)
                candidates += exporter.write_sherpa(int8) if to_onnx else []
            _write_tokens(folder / "tokens.txt", decoder.converter.token_list)
            if check is not None:
                _print_comparison(exporter, candidates, check, files.model_file, not streaming and to_onnx)
            names = sorted(path.name for path in folder.iterdir())
            for name in names:
                os.replace(folder / name, output / name)
    except BaseException:
        if created and output.is_dir() and not any(output.iterdir()):
            output.rmdir()
        raise
    print(f"\n{output}: {', '.join(names)}")
