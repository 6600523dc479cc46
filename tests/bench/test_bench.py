"""`espnet-lmu bench`: its tables, its JSON, its errors, and what they are computed from."""

import json
import re

import pytest
import torch
import yaml
from torch import nn

from espnet_lmu.bench.cases import Comparison, batch_utterances
from espnet_lmu.bench.floor import Speed, count_operations
from espnet_lmu.bench.peers import count_parameters, smallest_not_below
from espnet_lmu.bench.report import as_dictionary, as_text
from espnet_lmu.bench.timing import Timing, time_in_turns
from espnet_lmu.bin.main import main
from espnet_lmu.encoder.parameters import published_configurations
from espnet_lmu.lmu import LMU


def test_calls_run_in_turns_with_another_one_first_each_round():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    timings = time_in_turns(calls, torch.device("cpu"), seconds=0.0)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert all(timing.low <= timing.median <= timing.high for timing in timings.values())


def test_training_is_measured_in_the_batch_whose_memory_the_settings_tell():
    for path in published_configurations():
        text = path.read_text()
        told, frames = map(int, re.search(r"--batch_size (\d+) --frames (\d+)", text).groups())
        assert batch_utterances(yaml.safe_load(text), frames) == told


def test_operations_of_the_loop_are_counted():
    """Forward, the drive (I by H + 1) and one product with G each frame; nothing that depends on T is missed."""
    layer = LMU(6, 5, 4, theta=10.0)
    count_operations(lambda: layer(torch.randn(1, 1, 6)))  # the first one tries the machine's products out
    counts = []
    for frames in (7, 8):
        x = torch.randn(3, frames, 6)
        counts.append(count_operations(lambda x=x: layer(x)))
    assert counts[1] - counts[0] == 3 * (2 * 6 * 6 + 2 * 9 * 9)


def test_peer_is_the_smallest_that_is_not_smaller():
    def build(width: int) -> nn.Module:
        return nn.Linear(width, width)

    assert smallest_not_below(build, range(8, 64, 8), 16 * 16) == 16
    assert smallest_not_below(build, range(8, 64, 8), 16 * 17 + 1) == 24
    assert count_parameters(build(16)) == 16 * 17
    with pytest.raises(ValueError, match="no width"):
        smallest_not_below(build, range(8, 64, 8), 10**9)


def test_floor_is_of_products_or_memory_and_throughput_of_audio():
    timings = {name: Timing(2.0, 2.0, 2.0) for name in ("products", "memory", "uncounted")}
    operations, needed = {"products": 300, "memory": 100}, {"products": 40, "memory": 40}
    audio = {"products": 14400.0}
    comparison = Comparison("title", "products", timings, operations, {}, audio_seconds=audio, bytes=needed)
    entries = as_dictionary(comparison, Speed(operations=100.0, bytes=20.0))["entries"]
    assert [entry["floor"] for entry in entries] == [3.0, 2.0, None]
    text = as_text(as_dictionary(comparison, Speed(100.0, 20.0)))
    assert (
        "| hours of audio a second |" in text
        and "| products | 1.00 | 2000.0 | 2000.0 to 2000.0 | 0.00 | 3000.0 | 2 |" in text
    )


def test_tables_and_json_name_the_same_entries(capsys):
    threads = torch.get_num_threads()
    try:
        assert main(["bench", "--quick", "--threads", "1", "--case", "layers", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert main(["bench", "--quick", "--threads", "1", "--case", "layers"]) == 0
    finally:
        torch.set_num_threads(threads)
    (comparison,) = report["comparisons"]
    ratios = {entry["name"]: entry["ratio"] for entry in comparison["entries"]}
    assert ratios[comparison["reference"]] == 1.0 and "original LMU" in ratios and "parallel LMU" in ratios
    text = capsys.readouterr().out
    assert comparison["title"] in text and all(f"| {name} |" in text for name in ratios)


def test_long_audio_reports_time_and_memory(capsys):
    assert main(["bench", "--quick", "--threads", "1", "--case", "length", "--json"]) == 0
    for comparison in json.loads(capsys.readouterr().out)["comparisons"]:
        assert [entry["name"] for entry in comparison["entries"]] == ["10 s", "20 s", "40 s"]
        # what the shortest needs may still lie about from the warm-up, so of the longest alone
        assert comparison["entries"][-1]["peak_bytes"] > 1_000_000


def test_decoding_needs_a_model_and_data(tmp_path, capsys):
    assert main(["bench", "--case", "decoding"]) == 1
    assert main(["bench", "--asr_model_file", str(tmp_path / "a.pth"), "--data", str(tmp_path)]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "--asr_model_file PTH --data DIR" in first and f"{tmp_path}/a.pth: no such file" in second


@pytest.mark.parametrize(("option", "value"), [("--device", "cuda:99"), ("--device", "abacus"), ("--threads", "0")])
def test_what_cannot_run_is_one_line(option, value, capsys):
    assert main(["bench", option, value]) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith(f"error: {option} {value}")
