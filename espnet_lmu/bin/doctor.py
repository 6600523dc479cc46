"""`espnet-lmu doctor`: whether this environment has what training and decoding need, and which extras are complete."""

from __future__ import annotations

import argparse
import platform
from importlib import metadata

from espnet_lmu.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def find_problems(requirements: list[str]) -> dict[str, list[str]]:
    """What is missing or of a wrong version, by extra; "" is the base.

    Args:
        requirements: as of `importlib.metadata.requires`, such as ``submitit; extra == "slurm"``.
    """
    from packaging.requirements import Requirement

    problems: dict[str, list[str]] = {"": []}
    for text in requirements:
        requirement = Requirement(text)
        extra = text.partition("extra ==")[2].strip(" \"'")
        wrong = problems.setdefault(extra, [])
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    return problems


def run(args: argparse.Namespace) -> None:
    try:
        requirements = metadata.requires("espnet_lmu") or []
    except metadata.PackageNotFoundError:
        raise UserError("espnet_lmu is not installed in this environment: pip install -e . in its folder") from None
    problems = find_problems(requirements)
    base = problems.pop("")
    try:
        # ESPnet fails later and obscurely without what it pins, such as setuptools.
        base += [problem for problem in find_problems(metadata.requires("espnet") or [])[""] if problem not in base]
    except metadata.PackageNotFoundError:
        pass  # a problem that is named already
    print(f"Python {platform.python_version()}; packages: {'; '.join(base) or 'complete'}")
    for extra, wrong in sorted(problems.items()):
        print(f"extra {extra}: {'; '.join(wrong) or 'complete'}")
    if base:
        raise UserError(f"{base[0]}: pip install -e . in the folder of espnet_lmu")

    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"GPUs: {', '.join(gpus) or 'none'}; CPU threads: {torch.get_num_threads()}")
    from espnet_lmu.lmu.native import is_built

    if is_built():
        print("loop of the original LMU on the CPU: compiled")
    else:
        print(
            "loop of the original LMU on the CPU: not compiled, slower (install a C++ compiler, then espnet_lmu again)"
        )
    from espnet_lmu.hook import ignore_espnets_warnings

    ignore_espnets_warnings()
    from espnet2.tasks.asr import encoder_choices

    if "lmu" not in encoder_choices.classes:
        raise UserError("ESPnet does not know encoder: lmu; start its commands by python -m espnet_lmu.run")
    print("ESPnet knows encoder: lmu")
