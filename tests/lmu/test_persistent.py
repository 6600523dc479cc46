"""The kernel that runs all frames of the original LMU in one launch.

On a GPU these tests run as they are. Without one, `test_in_the_interpreter` runs them in Triton's interpreter, at the
small sizes, and the compiler is tested without running what it compiles.
"""

import os
import signal
import subprocess
import sys
import tempfile

import pytest
import torch
from lmu_agreement import assert_agree, assert_all_agree, outputs_and_gradients, randomise

from espnet_lmu.lmu import LMU
from espnet_lmu.lmu.naive import naive_lmu
from espnet_lmu.lmu.original import fused_lmu

triton = pytest.importorskip("triton", reason="needs Triton, which torch for CUDA brings")
from espnet_lmu.lmu import persistent  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
PARAMETERS = ("e_x", "e_h", "e_m", "W_x", "W_h", "W_m")
# of the root mean square of results in float64; gradients are rounded to bfloat16 also where products are in float16
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}

gpu = pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="no GPU here")
runs_kernel = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="no GPU here; see test_in_the_interpreter"
)
interpreter = pytest.mark.skipif(not INTERPRETED, reason="a test of the interpreter's; see test_in_the_interpreter")


def make_inputs(batch, frames, input_size, hidden_size, memory_size):
    torch.manual_seed(frames)
    layer = LMU(input_size, hidden_size, memory_size, theta=2.0 * memory_size + 1)
    with torch.no_grad():  # small enough for the recurrence to be stable at every size
        layer.e_m += 0.1 / memory_size * torch.randn_like(layer.e_m)
    inputs = {"x": torch.randn(batch, frames, input_size), **{name: getattr(layer, name) for name in PARAMETERS}}
    inputs |= {"A": layer.A, "B": layer.B, "h": torch.rand(batch, hidden_size), "m": torch.randn(batch, memory_size)}
    return {name: value.detach().to(DEVICE).requires_grad_(name not in "AB") for name, value in inputs.items()}


def in_float64(inputs):
    return {name: value.detach().double().requires_grad_(value.requires_grad) for name, value in inputs.items()}


def assert_kernel_agrees(sizes, products, lengths):
    inputs = make_inputs(*sizes)
    batch, frames, *_ = sizes
    if lengths:
        lengths = torch.tensor([frames, max(1, frames // 3), 0], device=DEVICE).repeat(batch)[:batch]
    else:
        lengths = None
    exact = in_float64(inputs)
    expected = outputs_and_gradients(lambda: naive_lmu(**exact, lengths=lengths), exact)
    actual = outputs_and_gradients(lambda: fused_lmu(**inputs, lengths=lengths, persistent=products), inputs)
    assert_all_agree(actual, expected, TOLERANCE[products])


@runs_kernel
@pytest.mark.parametrize("products", TOLERANCE, ids=str)
@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize(
    "sizes",
    # B, T, I, H, d: one program, several over the columns, several over the batch, two blocks of h and of m
    [(1, 1, 1, 1, 1), (3, 7, 5, 7, 6), (2, 3, 4, 17, 33), (33, 2, 4, 7, 6), (1, 2, 4, 130, 6), (1, 2, 4, 6, 130)],
    ids=str,
)
def test_kernel_agrees_with_the_step_loop(sizes, lengths, products):
    assert_kernel_agrees(sizes, products, lengths)


@gpu
@pytest.mark.parametrize("products", TOLERANCE, ids=str)
@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize(
    "sizes",
    [(1, 500, 40, 512, 256), (15, 64, 40, 512, 256), (33, 65, 40, 512, 256), (64, 40, 40, 512, 256)]
    + [(150, 30, 40, 512, 256), (32, 1600, 40, 512, 256), (20, 50, 40, 1024, 512), (17, 77, 40, 321, 65)],
    ids=str,
)
def test_kernel_agrees_with_the_step_loop_at_the_sizes_of_models(sizes, lengths, products):
    assert_kernel_agrees(sizes, products, lengths)


@runs_kernel
def test_memory_is_not_rounded_in_half_precision():
    """With products of bfloat16 alone, m would be 20 times further off (see persistent.py)."""
    inputs = make_inputs(2, 60, 4, 4, 12)
    exact = in_float64(inputs)
    _, (_, expected) = naive_lmu(**exact)
    with torch.no_grad():
        _, (_, m) = fused_lmu(**inputs, persistent=torch.bfloat16)
    assert_agree(m, expected, tolerance=5e-3)


@runs_kernel
def test_route_of_the_layer_is_the_kernel_with_its_padding_and_state(monkeypatch):
    layer = LMU(5, 7, 6, 9.0, route="persistent").to(DEVICE)
    randomise(layer)
    reference = LMU(5, 7, 6, 9.0).to(DEVICE)
    reference.load_state_dict(layer.state_dict())
    launches = []
    monkeypatch.setattr(
        persistent,
        "run_frames",
        lambda *args, run=persistent.run_frames, **kwargs: (launches.append(kwargs["products"]), run(*args, **kwargs)),
    )
    x, lengths = torch.randn(3, 8, 5, device=DEVICE), torch.tensor([8, 3, 0], device=DEVICE)
    x[1, 3:] = float("nan")
    state = (torch.rand(3, 7, device=DEVICE), torch.randn(3, 6, device=DEVICE))
    results = [(*values[:1], *values[1]) for values in (layer(x, lengths, state), reference(x, lengths, state))]
    for actual, expected in zip(*results, strict=True):
        assert_agree(actual, expected)
    with torch.autocast(DEVICE, torch.bfloat16):
        y, (h, m) = layer(x, lengths)
    assert y.dtype == h.dtype == m.dtype == torch.float32
    y, _ = layer.bfloat16()(x.bfloat16(), lengths)
    assert y.dtype == torch.bfloat16
    assert launches == [torch.float32, torch.bfloat16, torch.bfloat16]


@runs_kernel
def test_overflow_in_the_padding_leaves_gradients_finite():
    layer = LMU(2, 3, 4, 5.0, route="persistent").to(DEVICE)
    with torch.no_grad():
        layer.e_m.fill_(30.0)
    y, _ = layer(torch.randn(2, 60, 2, device=DEVICE), torch.tensor([3, 2], device=DEVICE))
    y.sum().backward()
    assert y.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("hidden_size, memory_size", [(256, 128), (512, 256), (1024, 512)])
def test_a_minute_of_10_ms_frames_trains_in_half_precision(dtype, hidden_size, memory_size):
    torch.manual_seed(1)
    layer = LMU(80, hidden_size, memory_size, theta=100.0, route="persistent").cuda()
    x = torch.randn(2, 6000, 80, device="cuda")
    with torch.autocast("cuda", dtype):
        y, _ = layer(x)
    y.float().square().mean().backward()
    assert y.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@gpu
def test_runs_are_the_same_and_can_overlap():
    """Programs that read a state before it is there would differ from run to run."""
    inputs = make_inputs(32, 800, 40, 512, 256)
    with torch.no_grad():
        first, _ = fused_lmu(**inputs, persistent=torch.float32)
        for _ in range(5):
            again, _ = fused_lmu(**inputs, persistent=torch.float32)
            assert torch.equal(again, first)
        streams = [torch.cuda.Stream() for _ in range(2)]
        outputs = []
        torch.cuda.synchronize()
        for stream in streams:
            with torch.cuda.stream(stream):
                outputs.append(fused_lmu(**inputs, persistent=torch.float32)[0])
        torch.cuda.synchronize()
    assert all(torch.equal(output, first) for output in outputs)


@interpreter
def test_programs_that_run_at_once_meet_after_each_frame(monkeypatch):
    """Four programs of a grid, each a process of its own over shared memory: none reads a state before it is there."""
    from triton.runtime.interpreter import GridExecutor, interpreter_builder

    hidden_size, size, batch, frames = 18, 24, 20, 4
    torch.manual_seed(1)
    states = torch.randn(frames + 1, batch, size)
    transition = torch.randn(size, size) / size**0.5
    expected = states.clone()
    for t in range(frames):
        expected[t + 1] += expected[t] @ transition
        expected[t + 1, :, :hidden_size].tanh_()

    states.share_memory_()
    arrivals = torch.zeros(2, dtype=torch.int32).share_memory_()
    constants = persistent.compile_time_arguments(hidden_size, size, 16, False, torch.float32, "tf32x3")
    # Whatever grid the interpreter is asked for, it computes one program of a grid of 2 x 2.
    set_index, set_grid = interpreter_builder.set_grid_idx, interpreter_builder.set_grid_dim
    monkeypatch.setattr(interpreter_builder, "set_grid_dim", lambda *_: set_grid(2, 2, 1))
    monkeypatch.setattr(GridExecutor, "_restore_args_dev", lambda *_: None)
    children = []
    for program in range(4):
        if (child := os.fork()) == 0:
            signal.alarm(300)  # should another one fail, and this one wait for it
            try:
                interpreter_builder.set_grid_idx = lambda *_, p=program: set_index(p % 2, p // 2, 0)
                persistent.frames_kernel[(1,)](
                    states[0], transition, states, arrivals, 0, batch, frames, **constants, TOGETHER=True
                )
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    assert arrivals.tolist() == [2 * frames, 2 * frames]
    assert_agree(states, expected)


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "test_programs_that_run_at_once" not in result.stdout and " passed" in result.stdout, result.stdout


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(
    "capability, hidden_size, memory_size, columns, products, precision",
    [
        (90, 512, 256, 16, torch.float32, "tf32x3"),
        (90, 512, 256, 32, torch.bfloat16, "tf32x3"),
        (90, 1024, 512, 16, torch.float32, "tf32x3"),
        (90, 1024, 512, 32, torch.bfloat16, "tf32"),
        (80, 512, 256, 16, torch.float16, "tf32x3"),
    ],
)
def test_kernel_compiles_without_spilling(
    capability, hidden_size, memory_size, columns, products, precision, backward, tmp_path, monkeypatch
):
    """For a GPU that need not be here: registers suffice, shared memory is no more than we count with."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    matrix = hidden_size, hidden_size + memory_size
    constants = persistent.compile_time_arguments(*matrix, columns, backward, products, precision) | {"TOGETHER": True}
    pointers = {"rows": "*fp32", "matrix": "*fp32", "slopes": "*fp32", "arrivals": "*i32"}
    arguments = persistent.frames_kernel.arg_names
    signature = {name: pointers.get(name, "constexpr" if name in constants else "i32") for name in arguments}
    aligned = {(arguments.index(name),): [["tt.divisibility", 16]] for name in pointers}
    source = ASTSource(persistent.frames_kernel, signature, constants, aligned)
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=persistent.OPTIONS)

    assert kernel.metadata.shared <= persistent.shared_bytes(columns, *matrix, products, precision)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(kernel.asm["cubin"])
        binary.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", binary.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert " STACK:0 " in usage and " LOCAL:0 " in usage, usage
    code = kernel.asm["ptx"]
    assert "atom.global.gpu.release" in code and "ld.global.gpu.acquire" in code
    # the whole state is on its way before its first block is multiplied
    assert 0 < code.rindex("ld.global.cg") < code.index("mma.sync")


@pytest.mark.parametrize(
    "batch, matrix, expected",
    [
        # an H100: 132 multiprocessors of 227 KB
        (32, (512, 768, torch.float32, "tf32x3"), (16, 2)),
        (64, (512, 768, torch.float32, "tf32x3"), (32, 5)),
        (64, (1024, 1536, torch.float32, "tf32x3"), (16, 1)),
        (32, (1024, 1536, torch.bfloat16, "tf32x3"), (32, 2)),
    ],
)
def test_tiling_takes_few_launches(batch, matrix, expected):
    assert persistent.tiling(batch, 132, 232448, *matrix) == expected


def test_a_state_too_large_for_the_gpu_is_refused():
    with pytest.raises(ValueError, match="3072 together are too large"):
        persistent.tiling(1, 132, 232448, 2048, 3072, torch.float32, "tf32x3")


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_route_needs_a_gpu():
    with pytest.raises(ValueError, match="'persistent' needs a GPU"):
        LMU(5, 7, 6, 9.0, route="persistent")(torch.randn(2, 3, 5))
    with pytest.raises(ValueError, match="route must be one of auto, persistent"):
        LMU(5, 7, 6, 9.0, route="gpu")
