"""Size and speed of trained models, measured side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from espnet_lmu.data.files import read_yaml


def measure(experiments: dict[str, Path], args: argparse.Namespace) -> dict[str, tuple[int, float]]:
    """Parameters, and the real-time factor of greedy decoding of the test set by one thread, of each model.

    Features are in memory; 16 utterances are a batch, sorted by length.

    Args:
        experiments: experiment folder by name.
        args: `data_feats` and `test_set`.
    """
    import torch

    from espnet_lmu.bench.timing import time_in_turns
    from espnet_lmu.data.filter import read_durations
    from espnet_lmu.data.kaldi_dir import read_table
    from espnet_lmu.decoding.greedy import GreedyDecoder, load_input
    from espnet_lmu.lmu.products import use_fast_products

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    use_fast_products()
    data = args.data_feats / args.test_set
    calls, parameters, seconds = {}, {}, 0.0
    for name, experiment in experiments.items():
        config = experiment / "config.yaml"
        criterion = read_yaml(config)["best_model_criterion"][0]
        decoder = GreedyDecoder(config, experiment / f"{criterion[0]}.{criterion[1]}.ave.pth")
        raw = decoder.input_size is None
        paths = read_table(data / ("wav.scp" if raw else "feats.scp")).values()
        seconds = sum(read_durations(data, decoder.fs).values())
        inputs = sorted((load_input(path, decoder) for path in paths), key=len)
        parameters[name] = sum(parameter.numel() for parameter in decoder.model.parameters())

        def decode(decoder=decoder, inputs=inputs) -> None:
            for start in range(0, len(inputs), 16):
                decoder.decode(inputs[start : start + 16])

        calls[name] = decode
    timings = time_in_turns(calls, torch.device("cpu"), seconds=30.0, most_rounds=5)
    torch.set_num_threads(threads)
    return {name: (parameters[name], timing.median / seconds) for name, timing in timings.items()}
