"""What `espnet-lmu bench` compares, and the sizes it does so at.

B: batch, T: frames, I: input size, H: hidden size, d: memory size (order).
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from espnet_lmu.bench.peers import MEL_BINS, PEERS, build_peer, count_parameters
from espnet_lmu.bench.timing import Timing, busy_process, time_in_turns
from espnet_lmu.lmu import LMU, ParallelLMU, native
from espnet_lmu.lmu.loops import frames_one_by_one
from espnet_lmu.lmu.naive import naive_lmu
from espnet_lmu.lmu.products import use_fast_products

Call = Callable[[], object]


class Comparison(NamedTuple):
    """Timed calls and the one that the others are compared with."""

    title: str
    reference: str
    timings: dict[str, Timing]
    operations: dict[str, int]  # floating-point operations of matrix products, by name; may lack some
    peak_bytes: dict[str, int]  # memory taken at most, by name; may be empty
    notes: tuple[str, ...] = ()
    audio_seconds: dict[str, float] = {}  # of speech that a call works on, by name; may be empty
    bytes: dict[str, int] = {}  # that must go through memory, by name; may be empty
    dtype: torch.dtype = torch.float32  # of most matrix products


class Settings(NamedTuple):
    """How the benchmark runs: seconds for each comparison, smaller inputs if `quick`, a trained model and its data."""

    device: torch.device
    quick: bool
    seconds: float
    model_file: Path | None = None  # in its experiment folder
    data_dir: Path | None = None


def _compare(title: str, reference: str, calls: dict[str, Call], settings: Settings, **details) -> Comparison:
    """Time the calls and count their operations; details: what else a `Comparison` holds."""
    from espnet_lmu.bench.floor import count_operations

    timings = time_in_turns(calls, settings.device, settings.seconds)
    # The counter does not see into the LSTM, whose products are inside one kernel.
    counts = {name: count_operations(call) for name, call in calls.items()}
    operations = {name: count for name, count in counts.items() if count}
    return Comparison(title, reference, timings, operations, {}, **details)


def _training_type(device: torch.device) -> torch.dtype:
    """What whole encoders run in: bfloat16 where training would, on a GPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _in_training_type(device: torch.device):
    return torch.autocast("cuda", _training_type(device)) if device.type == "cuda" else nullcontext()


def _forward_backward(module: nn.Module, *inputs: Tensor, context: Callable = nullcontext) -> Call:
    """A call that runs the module, within the context, and the gradients of its parameters and of its first input."""
    first = inputs[0].detach().clone().requires_grad_()

    def call() -> None:
        module.zero_grad(set_to_none=True)
        first.grad = None
        with context():
            output = module(first, *inputs[1:])
        while not isinstance(output, Tensor):
            output = output[0]
        output.float().square().mean().backward()

    return call


def _forward(module: nn.Module, *inputs: Tensor) -> Call:
    module.eval()
    device = inputs[0].device

    def call() -> None:
        with torch.inference_mode(), _in_training_type(device):
            module(*inputs)

    return call


class _TextbookLMU(LMU):
    """The original LMU by the specification's loop."""

    def forward(self, x, lengths=None, state=None):
        h, m = x.new_zeros(len(x), self.hidden_size), x.new_zeros(len(x), self.memory_size)
        parameters = (self.e_x, self.e_h, self.e_m, self.W_x, self.W_h, self.W_m, self.A, self.B)
        return naive_lmu(x, *parameters, h, m, lengths)


def layers(settings: Settings) -> Iterator[Comparison]:
    """One layer, forward and backward, against `nn.LSTM` of the same hidden size and the textbook loop."""
    batch, frames, hidden, order = (4, 100, 256, 128) if settings.quick else (8, 400, 512, 256)
    if settings.device.type == "cuda" and not settings.quick:
        batch, frames = 32, 1600
    torch.manual_seed(1)
    x = torch.randn(batch, frames, hidden, device=settings.device)
    modules = {
        "nn.LSTM": nn.LSTM(hidden, hidden, batch_first=True),
        "original LMU": LMU(hidden, hidden, order, theta=float(order)),
        "original LMU, textbook loop": _TextbookLMU(hidden, hidden, order, theta=float(order)),
        "parallel LMU": ParallelLMU(hidden, hidden, order, theta=float(order)),
    }
    title = f"layer, forward + backward, B={batch} T={frames} H={hidden} d={order}"
    if settings.device.type == "cuda":
        modules["original LMU, persistent kernel"] = LMU(hidden, hidden, order, float(order), route="persistent")
    for module in modules.values():
        module.to(settings.device)
    # the input, the output and their gradients; the parameters, and theirs
    needed = {
        name: 4 * x.nbytes + 2 * sum(parameter.nbytes for parameter in module.parameters())
        for name, module in modules.items()
    }
    calls = {name: _forward_backward(module, x) for name, module in modules.items()}
    if settings.device.type == "cpu" and native.is_built():
        name = "original LMU, its loop not compiled"
        calls[name] = frames_one_by_one()(calls["original LMU"])
        needed[name] = needed["original LMU"]
    notes = ()
    if settings.device.type == "cuda":
        settings_of_torch = torch.backends.cudnn.rnn, torch.backends.cuda.matmul
        lstm, others = (setting.fp32_precision.replace("none", "ieee") for setting in settings_of_torch)
        notes = (f"products of float32 are {lstm} in nn.LSTM and {others} in the others",)
    yield _compare(title, "nn.LSTM", calls, settings, bytes=needed, notes=notes)
    if settings.device.type == "cuda":
        context = partial(_in_training_type, settings.device)
        calls = {name: _forward_backward(module, x, context=context) for name, module in modules.items()}
        dtype = _training_type(settings.device)
        yield _compare(f"{title}, autocast", "nn.LSTM", calls, settings, bytes=needed, dtype=dtype)


def busy(settings: Settings) -> Iterator[Comparison]:
    """The original LMU alone and beside a process that keeps a core busy (on a CPU)."""
    if settings.device.type != "cpu":
        return
    batch, frames, hidden, order = (4, 100, 256, 128) if settings.quick else (8, 400, 512, 256)
    torch.manual_seed(1)
    call = _forward_backward(LMU(hidden, hidden, order, float(order)), torch.randn(batch, frames, hidden))
    alone = time_in_turns({"alone": call}, settings.device, settings.seconds / 2)
    with busy_process():
        beside = time_in_turns({"beside a busy process": call}, settings.device, settings.seconds / 2)
    yield Comparison("original LMU layer on a busy machine", "alone", {**alone, **beside}, {}, {})


def _base_encoder(**options) -> nn.Module:
    from espnet_lmu.encoder.lmu_encoder import LMUEncoder

    torch.manual_seed(1)
    defaults = {"input_layer": "dw_striding", "theta": 50.0}
    return LMUEncoder(MEL_BINS, **{**defaults, **options})


def _speech(settings: Settings) -> tuple[Tensor, Tensor]:
    batch, frames = (2, 200) if settings.quick else (8, 800)
    if settings.device.type == "cuda" and not settings.quick:
        batch, frames = 32, 1600
    torch.manual_seed(1)
    return torch.randn(batch, frames, MEL_BINS, device=settings.device), torch.full((batch,), frames)


_LARGE = {"output_size": 1024, "num_blocks": 6, "memory_size": 512, "attention_heads": 16}


def encoders(settings: Settings) -> Iterator[Comparison]:
    """The base encoder, on a GPU the large one too, against other encoders of at least its size."""
    yield from _encoders_of_a_size("base", {}, settings)
    if settings.device.type == "cuda" and not settings.quick:
        yield from _encoders_of_a_size("large", _LARGE, settings)


def _encoders_of_a_size(size: str, options: dict, settings: Settings) -> Iterator[Comparison]:
    """A training step, and inference."""
    ours = {
        "LMU, original": _base_encoder(**options),
        "LMU, parallel": _base_encoder(lmu_type="parallel", **options),
    }
    if settings.device.type == "cuda":
        ours["LMU, original, persistent kernel"] = _base_encoder(**options)
        for layer in ours["LMU, original, persistent kernel"].modules():
            if isinstance(layer, LMU):
                layer.route = "persistent"
    parameters = count_parameters(ours["LMU, original"])
    modules = {**ours, **{name: build_peer(name, parameters) for name in PEERS}}
    if size == "base":
        # The Conformer of many ESPnet recipes, whose authors count 6.9 M parameters.
        modules["Conformer, d=176"] = PEERS["Conformer"](176)
    x, lengths = _speech(settings)
    lengths = lengths.to(settings.device)
    for module in modules.values():
        module.to(settings.device)
    seconds = x.shape[0] * x.shape[1] / 100
    sizes = f"{seconds:g} s of audio a step; parameters: " + ", ".join(
        f"{name} {count_parameters(module) / 1e6:.1f} M" for name, module in modules.items()
    )
    shape = f"B={len(x)}, {x.shape[1]} frames"
    reference, dtype = next(iter(PEERS)), _training_type(settings.device)
    context = partial(_in_training_type, settings.device)
    calls = {name: _forward_backward(module.train(), x, lengths, context=context) for name, module in modules.items()}
    yield _compare(f"{size} encoder, training step, {shape}", reference, calls, settings, notes=(sizes,), dtype=dtype)
    calls = {name: _forward(module, x, lengths) for name, module in modules.items()}
    yield _compare(f"{size} encoder, inference on whole utterances, {shape}", reference, calls, settings, dtype=dtype)


def checkpointing(settings: Settings) -> Iterator[Comparison]:
    """Gradient checkpointing of the base encoder: what it costs in time and saves in memory (on a GPU)."""
    if settings.device.type != "cuda":
        return
    x, lengths = _speech(settings)
    timings, peaks = {}, {}
    for name, use in (("all activations kept", False), ("gradient checkpointing", True)):
        module = _base_encoder(gradient_checkpointing=use).to(settings.device)
        context = partial(_in_training_type, settings.device)
        call = _forward_backward(module, x, lengths.to(settings.device), context=context)
        before = _restart_peak(settings.device)
        timings |= time_in_turns({name: call}, settings.device, settings.seconds / 2)
        peaks[name] = _added(settings.device, before)
    title = f"gradient checkpointing, training step, B={len(x)}, {x.shape[1]} frames"
    yield Comparison(title, "all activations kept", timings, {}, peaks)


_LIBRISPEECH_FRAMES = 1230  # of 10 ms: the mean of LibriSpeech's 281,241 training utterances
_CHARACTERS_PER_FRAME = 0.14
_CHARACTERS = 29  # tokens of CTC, blank included


def batch_utterances(config: dict, frames: int) -> int:
    """Utterances of a batch of raw audio, whose bins are samples, in a training configuration."""
    return config["batch_bins"] // (frames * config["frontend_conf"]["hop_length"])


def training(settings: Settings) -> Iterator[Comparison]:
    """A training step of the published configurations: encoder, CTC loss, gradients and AdamW, in their batches."""
    from espnet_lmu.encoder.parameters import build_encoder, published_configurations

    device = settings.device
    timings, peaks, seconds, notes = {}, {}, {}, []
    for path in published_configurations():
        torch.manual_seed(1)
        encoder, config = build_encoder(path, device)
        output = nn.Linear(encoder.output_size(), _CHARACTERS, device=device)
        parameters = [*encoder.train().parameters(), *output.parameters()]
        optimizer = torch.optim.AdamW(parameters, **config["optim_conf"])
        frames = 200 if settings.quick else _LIBRISPEECH_FRAMES
        batch = batch_utterances(config, frames)
        if device.type == "cpu":
            batch = min(batch, 2 if settings.quick else 4)  # hundreds of seconds would take minutes a step
        x, lengths = torch.randn(batch, frames, MEL_BINS, device=device), torch.full((batch,), frames, device=device)
        characters = round(_CHARACTERS_PER_FRAME * frames)
        text = torch.randint(1, _CHARACTERS, (batch, characters), device=device)
        text_lengths = torch.full_like(lengths, characters)

        def step(
            encoder=encoder, output=output, optimizer=optimizer, x=x, lengths=lengths, text=text, sizes=text_lengths
        ) -> None:
            optimizer.zero_grad(set_to_none=True)
            with _in_training_type(x.device):
                scores = output(encoder(x, lengths)[0])
            log_probabilities = scores.float().log_softmax(-1).transpose(0, 1)
            nn.functional.ctc_loss(log_probabilities, text, lengths, sizes).backward()
            optimizer.step()

        before = _restart_peak(device)
        name = path.stem
        timings |= time_in_turns({name: step}, device, settings.seconds / 3)
        peaks[name] = _added(device, before)
        seconds[name] = batch * frames / 100
        notes.append(f"{name}: B={batch}, {frames} frames, {seconds[name]:g} s of audio a step")
    if timings:
        title = "training step of the published configurations"
        yield Comparison(title, next(iter(timings)), timings, {}, peaks, tuple(notes), seconds)


_CONTEXT = (64, 16)  # frames of 40 ms: 2.56 s before a chunk of 0.64 s


def _long_audio(minutes: float, context: tuple[int, int] | None, device: torch.device) -> tuple[list[float], int]:
    """Run the base encoder on one long utterance: the timing of a run, and the bytes that a run adds at most."""
    encoder = _base_encoder(attention_context=context).eval().to(device)
    x = torch.randn(1, round(6000 * minutes), MEL_BINS, device=device)
    call = _forward(encoder, x, torch.tensor([x.shape[1]], device=device))
    _forward(encoder, x[:, :100], torch.tensor([100], device=device))()
    before = _restart_peak(device)
    timing = time_in_turns({"": call}, device, seconds=0.0)[""]
    return list(timing), _added(device, before)


def _restart_peak(device: torch.device) -> int:
    """Let the peak of this process's memory begin anew, at the number of bytes returned."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")
    return _peak(device)


def _peak(device: torch.device) -> int:
    """The most memory, in bytes, since `_restart_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def _added(device: torch.device, before: int) -> int:
    """The bytes by which memory has grown at most since `_restart_peak` returned `before`."""
    # Where nothing is added, the peak that Linux reports may be a little below (seen on two busy cores).
    return max(0, _peak(device) - before)


def _set_up(threads: int) -> None:
    """Let a new process compute as this one does."""
    torch.set_num_threads(threads)
    use_fast_products()


def length(settings: Settings) -> Iterator[Comparison]:
    """Time and memory of inference against the length of the audio, with limited and with full attention context."""
    seconds = [10, 20, 40] if settings.quick else [10, 20, 40, 80, 160, 320, 640, 900, 1800]
    spawn = multiprocessing.get_context("spawn")
    for context, longest in ((_CONTEXT, seconds[-1]), (None, 320)):
        timings, peaks = {}, {}
        for value in [value for value in seconds if value <= longest]:
            # A process of its own for each: the next finds no memory that an earlier one has taken from the system.
            with ProcessPoolExecutor(1, spawn, _set_up, (torch.get_num_threads(),)) as pool:
                times, peak = pool.submit(_long_audio, value / 60, context, settings.device).result()
            timings[f"{value} s"], peaks[f"{value} s"] = Timing(*times), peak
        kind = f"context {list(context)} frames of 40 ms" if context else "context of all frames"
        yield Comparison(f"base encoder on long audio, attention {kind}", f"{seconds[0]} s", timings, {}, peaks)


def attention(settings: Settings) -> Iterator[Comparison]:
    """A training step of the base encoder with and without its attention layers."""
    x, lengths = _speech(settings)
    modules = {
        f"{kind}, {'with' if use else 'without'} attention": _base_encoder(lmu_type=kind, use_attention=use)
        for kind in ("original", "parallel")
        for use in (False, True)
    }
    calls = {
        name: _forward_backward(
            module.to(settings.device),
            x,
            lengths.to(settings.device),
            context=partial(_in_training_type, settings.device),
        )
        for name, module in modules.items()
    }
    reference = "original, without attention"
    title = f"attention on and off, training step, B={len(x)}, {x.shape[1]} frames"
    yield _compare(title, reference, calls, settings, dtype=_training_type(settings.device))


def decoding(settings: Settings) -> Iterator[Comparison]:
    """Greedy decoding in batches against ESPnet's beam search, for a trained model, features read anew each time."""
    if settings.model_file is None or settings.data_dir is None:
        return
    from espnet2.bin.asr_inference import Speech2Text

    from espnet_lmu.data.kaldi_dir import read_table
    from espnet_lmu.decoding.greedy import GreedyDecoder, load_input

    config = settings.model_file.parent / "config.yaml"
    decoder = GreedyDecoder(config, settings.model_file, settings.device.type)
    search = Speech2Text(config, settings.model_file, device=settings.device.type, ctc_weight=1.0, beam_size=10)
    table = read_table(settings.data_dir / ("wav.scp" if decoder.input_size is None else "feats.scp"))
    paths = list(table.values())[: 8 if settings.quick else 64]

    def greedy() -> None:
        inputs = sorted((load_input(path, decoder) for path in paths), key=len)
        for i in range(0, len(inputs), 16):
            decoder.decode(inputs[i : i + 16])

    def beam() -> None:
        for path in paths:
            search(load_input(path, decoder))

    calls = {"ESPnet's beam search, beam 10": beam, "greedy, 16 in a batch": greedy}
    timings = time_in_turns(calls, settings.device, settings.seconds, most_rounds=5)
    title = f"decoding {len(paths)} utterances of {settings.data_dir.name}"
    yield Comparison(title, "ESPnet's beam search, beam 10", timings, {}, {})


def command_line(settings: Settings) -> Iterator[Comparison]:
    """`espnet-lmu --help` against an interpreter that does nothing."""

    def run(*arguments: str) -> Call:
        return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    calls = {"python -c pass": run("-c", "pass"), "espnet-lmu --help": run("-m", "espnet_lmu.bin.main", "--help")}
    timings = time_in_turns(calls, torch.device("cpu"), settings.seconds, most_rounds=10)
    yield Comparison("command line", "python -c pass", timings, {}, {})


CASES: dict[str, Callable[[Settings], Iterator[Comparison]]] = {
    "layers": layers,
    "busy": busy,
    "encoders": encoders,
    "attention": attention,
    "checkpointing": checkpointing,
    "training": training,
    "length": length,
    "decoding": decoding,
    "command_line": command_line,
}


def run_cases(names: list[str], settings: Settings) -> Iterator[Comparison]:
    """The comparisons of the named cases, one after another."""
    for name in names:
        with torch.cuda.device(settings.device) if settings.device.type == "cuda" else nullcontext():
            yield from CASES[name](settings)
