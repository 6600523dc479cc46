"""`espnet-lmu export`: writes the files. Those in float32 are checked against PyTorch before any of them appears."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from espnet_lmu.data.files import atomic_open, naming, shorten
from espnet_lmu.data.format import MEL_BINS, feature_settings, frame_geometry
from espnet_lmu.decoding.greedy import GreedyDecoder
from espnet_lmu.errors import UserError
from espnet_lmu.export import sherpa
from espnet_lmu.export.check import (
    HEADER,
    Candidate,
    Run,
    Utterance,
    check_difference,
    compare,
    describe_unlike,
    features_of,
    plausible_features,
    read_utterances,
    reference,
    row,
    run_chunks,
    streaming_reference,
)
from espnet_lmu.export.graph import SPEECH_LEVEL, OfflineGraph, WaveGraph, espnet_log_mel
from espnet_lmu.export.onnx_files import OnnxFile, quantize, require_onnx, write_onnx
from espnet_lmu.export.streaming import ANY_CHUNK, StreamingGraph, Zipformer2Graph, check_streamable
from espnet_lmu.export.torchscript import torchscript_file, write_torchscript
from espnet_lmu.lmu.products import use_fast_products
from espnet_lmu.recognition.model_files import META, file_digest, open_model
from espnet_lmu.tokens import SPACE

_WAVE_RATE = 16000  # sherpa-onnx brings a waveform that it gives to a model to this rate (Hz)
_RECORD = "export.json"  # beside the files: which model they are of, and their names


def _write_tokens(path: Path, tokens: list[str]) -> None:
    """`tokens.txt` as sherpa-onnx reads it: lines of SYMBOL ID, in which ▁ stands for a space."""
    with atomic_open(path) as file:
        file.write("".join(f"{'▁' if token == SPACE else token} {i}\n" for i, token in enumerate(tokens)))


class Exporter:
    """Writes files of one model into a folder and compares each with PyTorch.

    Args:
        decoder: the model.
        rate: its sampling rate in Hz.
        folder: where the files go.
        to_onnx: whether to write ONNX; TorchScript otherwise.
        int8: also with 8-bit weights (ONNX).
    """

    def __init__(self, decoder: GreedyDecoder, rate: int, folder: Path, to_onnx: bool, int8: bool) -> None:
        self.decoder = decoder
        self.model = decoder.model
        self.rate = rate
        self.folder = folder
        self.to_onnx = to_onnx
        self.int8 = int8
        self.offline = OfflineGraph(self.model).eval()
        self.input_size = decoder.input_size or self.model.frontend.output_size()
        self.for_sherpa: dict[str, sherpa.Family] = {}  # the files that sherpa-onnx runs
        if decoder.input_size is None:
            features = f"log-mel of ESPnet's default frontend, {decoder.hop_length} samples shift"
        elif decoder.input_size == MEL_BINS:
            features = json.dumps(feature_settings(rate))
        else:
            features = f"{decoder.input_size} stored features a frame"
        self.metadata = {
            "model_type": "espnet_lmu",
            "features": features,
            "sample_rate": rate,
            "vocab_size": len(decoder.converter.token_list),
        }

    def _write(
        self,
        stem: str,
        graph: nn.Module,
        example: tuple[Tensor, ...],
        inputs: list[str],
        outputs: list[str],
        dynamic: dict[str, dict[int, str]],
        **metadata: object,
    ) -> dict[str, Run]:
        """Write a graph; returns what runs each of its files, the one in float32 first. Arguments: see `write_onnx`."""
        if not self.to_onnx:
            name = f"{stem}.pt"
            write_torchscript(self.folder / name, graph, example)
            return {name: torchscript_file(self.folder / name)}
        names = [f"{stem}.onnx"]
        write_onnx(self.folder / names[0], graph, example, inputs, outputs, dynamic, {**self.metadata, **metadata})
        if self.int8:
            names.append(f"{stem}.int8.onnx")
            quantize(self.folder / names[0], self.folder / names[1], graph)
        return {name: OnnxFile(self.folder / name) for name in names}

    def _candidates(self, files: dict[str, Run], decode: Callable[[Run, Utterance], np.ndarray]) -> list[Candidate]:
        return [
            Candidate(name, (self.folder / name).stat().st_size, partial(decode, run)) for name, run in files.items()
        ]

    def write_offline(self) -> list[Candidate]:
        """Features (B, T, F) and lengths (B,) to log posteriors (B, T', V) and lengths."""
        lengths = torch.tensor([150, 111, 67])
        x = plausible_features(self.model, 3, 150, self.input_size)
        files = self._write(
            "model",
            self.offline,
            (x[:2, :93], torch.tensor([93, 80])),  # other sizes than it is checked with
            ["features", "lengths"],
            ["log_probs", "log_probs_lengths"],
            {
                "features": {0: "batch", 1: "frames"},
                "lengths": {0: "batch"},
                "log_probs": {0: "batch", 1: "encoder_frames"},
                "log_probs_lengths": {0: "batch"},
            },
        )
        name, run = next(iter(files.items()))
        log_probs, counts = run(x.numpy(), lengths.numpy())
        check_difference(
            name,
            [reference(self.model, x[i, :length]) for i, length in enumerate(lengths.tolist())],
            [rows[:count] for rows, count in zip(log_probs, counts, strict=True)],
        )
        if self.to_onnx and self.decoder.input_size == MEL_BINS:
            self.for_sherpa |= dict.fromkeys(files, sherpa.OFFLINE)

        def decode(run: Run, utterance: Utterance) -> np.ndarray:
            return run(utterance.features[None], np.array([len(utterance.features)]))[0][0]

        return self._candidates(files, decode)

    def write_wave(self) -> list[Candidate]:
        """A waveform to log posteriors, for sherpa-onnx, where the model's features are not those of sherpa-onnx.

        Nothing, and a line why, where it would not fit.
        """
        reason = None
        if not self.offline.normalize.by_utterance:
            reason = (
                "sherpa-onnx changes the level of audio; train with --feats_type fbank, or normalize: utterance_mvn"
            )
        elif self.rate != _WAVE_RATE:
            reason = f"sherpa-onnx gives audio of {_WAVE_RATE} Hz, the model takes {self.rate} Hz"
        if reason:
            print(f"sherpa.onnx: not written: {reason}")
            return []
        samples = torch.randn(1, 20011, generator=torch.Generator().manual_seed(0))
        files = self._write(
            "sherpa",
            WaveGraph(espnet_log_mel(self.model.frontend), self.offline).eval(),
            (samples[:, :14000],),
            ["samples"],
            ["log_probs"],
            {"samples": {1: "samples"}, "log_probs": {1: "encoder_frames"}},
        )
        features = features_of(self.decoder, SPEECH_LEVEL * samples[0].numpy(), self.rate)
        expected = reference(self.model, torch.from_numpy(features))
        check_difference("sherpa.onnx", [expected], [files["sherpa.onnx"](samples.numpy())[0][0]])
        self.for_sherpa |= dict.fromkeys(files, sherpa.WAVE)

        def decode(run: Run, utterance: Utterance) -> np.ndarray:
            samples = utterance.samples - utterance.samples.mean()
            return run((samples / max(samples.std(), 1e-5))[None])[0][0]

        return self._candidates(files, decode)

    def write_streaming(self, chunk: int) -> list[Candidate]:
        """One chunk: features, lengths and a state to log posteriors, lengths and the next state."""
        graph = StreamingGraph(self.offline, chunk).eval()
        state = graph.initial_state(self.input_size, 2)
        inputs = ["features", "lengths", *state]
        outputs = ["log_probs", "log_probs_lengths", *(f"next.{name}" for name in state)]
        files = self._write(
            "streaming",
            graph,
            (torch.zeros(2, graph.window, self.input_size), torch.full((2,), graph.window), *state.values()),
            inputs,
            outputs,
            {name: {0: "batch"} for name in (*inputs, *outputs)},
            chunk_frames=graph.shift,
            window_frames=graph.window,
            subsampling_factor=graph.factor,
        )
        x = plausible_features(self.model, 2, 5 * graph.shift + graph.window // 2 + 1, self.input_size)
        name, run = next(iter(files.items()))
        found = run_chunks(run, [value.numpy() for value in state.values()], x.numpy(), graph.shift, graph.window)
        check_difference(name, list(streaming_reference(self.model, x, chunk)), list(found))
        if self.to_onnx:
            self._write_online(graph)
        self.model.encoder.attention_chunk = chunk  # for whole utterances, in the check on data
        empty = [value[:1].numpy() for value in state.values()]

        def decode(run: Run, utterance: Utterance) -> np.ndarray:
            return run_chunks(run, empty, utterance.features[None], graph.shift, graph.window)[0]

        return self._candidates(files, decode)

    def _write_online(self, graph: StreamingGraph) -> None:
        """The same with the state that sherpa-onnx hands on; nothing, and a line why, where the features do not fit."""
        if self.decoder.input_size != MEL_BINS:
            print("sherpa_streaming.onnx: not written: sherpa-onnx streams filterbanks; train with --feats_type fbank")
            return
        online = Zipformer2Graph(graph, self.input_size).eval()
        batch = 2
        state = online.initial_state(batch)
        example = (torch.zeros(batch, graph.window, self.input_size), *state.values())
        inputs = ["features", *state]
        outputs = ["log_probs", *(f"next.{name}" for name in state)]
        axes = [{list(value.shape).index(batch): "batch"} for value in example]  # the sizes before it are 1
        files = self._write(
            "sherpa_streaming",
            online,
            example,
            inputs,
            outputs,
            dict(zip((*inputs, *outputs), axes * 2, strict=True)),
            **online.metadata(),
        )
        name, run = next(iter(files.items()))

        def step(features: np.ndarray, lengths: np.ndarray, *state: np.ndarray) -> list[np.ndarray]:
            log_probs, *state = run(features, *state)
            return [log_probs, np.where(lengths == graph.window, graph.chunk, 0), *state]

        x = plausible_features(self.model, batch, 4 * graph.shift + graph.window, self.input_size)
        found = run_chunks(step, [value.numpy() for value in state.values()], x.numpy(), graph.shift, graph.window)
        check_difference(name, list(streaming_reference(self.model, x, graph.chunk)), list(found))
        _, shift, _, _ = frame_geometry(self.rate)
        self.for_sherpa |= dict.fromkeys(files, sherpa.online(graph.window * shift))


def _print_comparison(exporter: Exporter, candidates: list[Candidate], directory: Path, weights: Path) -> None:
    """Decode a data directory with PyTorch and every file, and print a table."""
    decoder = exporter.decoder
    utterances = read_utterances(directory, decoder, exporter.rate)
    shortest = getattr(exporter.model.encoder.embed, "shortest", 1)
    if short := [key for key, utterance in utterances.items() if len(utterance.features) < shortest]:
        print(f"{directory}: {len(short)} utterances are too short for the model and left out: {shorten(short)}")
        utterances = {key: utterance for key, utterance in utterances.items() if key not in short}

    def pytorch(utterance: Utterance) -> np.ndarray:
        return reference(exporter.model, torch.tensor(utterance.features))

    candidates = [Candidate("PyTorch", weights.stat().st_size, pytorch), *candidates]
    # As stage 12 does; but the small products of a loop in TorchScript, which shares the setting, would take longer.
    if not candidates[1].name.endswith(".pt"):
        use_fast_products()
    compare(utterances, decoder, candidates)
    print(f"\n{directory}, {len(utterances)} utterances one by one, on one thread\n\n{HEADER}")
    for candidate in candidates:
        print(row(candidate, candidates[0], utterances))
    note = ""
    if exporter.for_sherpa:
        recordings = {key: utterance.samples for key, utterance in utterances.items()}
        if not sherpa.available():
            note = "sherpa-onnx is not installed (pip install sherpa-onnx): not tried"
        elif any(samples is None for samples in recordings.values()):
            note = f"{directory}: features, but no audio for sherpa-onnx: not tried"
        else:
            for name, family in exporter.for_sherpa.items():
                path = exporter.folder / name
                results = sherpa.recognize(path, exporter.folder / "tokens.txt", recordings, exporter.rate, family)
                texts = {key: result.text for key, result in results.items()}
                candidates.append(Candidate(f"{name} in sherpa-onnx", path.stat().st_size, pytorch, texts=texts))
                print(row(candidates[-1], candidates[0], utterances))
    differences = [line for candidate in candidates for line in describe_unlike(candidate, candidates[0])]
    if differences:
        print(
            "\nWhere a text is not PyTorch's (in brackets: how far, in log posteriors, PyTorch's token is ahead of the "
            "file's at the surest of the frames where they differ):"
        )
    for line in differences:
        print(line)
    if note:
        print(f"\n{note}")


def _move(folder: Path, output: Path, weights: Path) -> list[str]:
    """Move the files of a model into `output`, where those of an earlier model are deleted; returns their names."""
    names = sorted(path.name for path in folder.iterdir())
    model = file_digest(weights)
    try:
        record = json.loads((output / _RECORD).read_text(encoding="utf-8"))
        before, known = record["model"], set(record["files"])
    except FileNotFoundError:
        before, known = model, set()
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{output / _RECORD}: not what an export writes; give another --output") from None
    if foreign := [name for name in names if name not in known and (output / name).exists()]:
        raise UserError(f"{output}: {shorten(foreign)} is there, and no export wrote it; give another --output")
    if before != model:
        for name in sorted(known):
            (output / Path(name).name).unlink(missing_ok=True)
        known = set()
    # An 8-bit file of before may be of other chunks than the file that now replaces the one it was made of.
    stale = known & {f"{Path(name).stem}.int8{Path(name).suffix}" for name in names} - set(names)
    for name in stale:
        (output / name).unlink(missing_ok=True)
    known -= stale
    with atomic_open(output / _RECORD) as file:
        json.dump({"model": model, "files": sorted(known.union(names))}, file, indent=1)
    for name in names:
        os.replace(folder / name, output / name)
    return names


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
    if (output / META).exists():
        raise UserError(f"--output {output}: holds a packed model, whose files this would replace; give another folder")
    if to_onnx:
        require_onnx()
    files = open_model(model)
    torch.set_num_threads(1)
    decoder = GreedyDecoder(files.config_file, files.model_file)
    created = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    try:
        with naming(output), tempfile.TemporaryDirectory(prefix=".export.", dir=output) as name:
            folder = Path(name)
            exporter = Exporter(decoder, files.rate or decoder.fs, folder, to_onnx, int8)
            if streaming:
                check_streamable(decoder.model)
                chunk = chunk or decoder.model.encoder.streaming_chunk or ANY_CHUNK
                candidates = exporter.write_streaming(chunk)
            else:
                candidates = exporter.write_offline()
                if to_onnx and decoder.input_size is None:
                    candidates += exporter.write_wave()
            _write_tokens(folder / "tokens.txt", decoder.converter.token_list)
            if check is not None:
                _print_comparison(exporter, candidates, check, files.model_file)
            names = _move(folder, output, files.model_file)
    except BaseException:
        if created and output.is_dir() and not any(output.iterdir()):
            output.rmdir()
        raise
    print(f"\n{output}: {', '.join(names)}")
    for family in dict.fromkeys(exporter.for_sherpa.values()):
        names = [name for name, other in exporter.for_sherpa.items() if other == family]
        print(f"{', '.join(names)}: {family.usage(exporter.rate)}")
