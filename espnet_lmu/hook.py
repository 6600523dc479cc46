"""What ESPnet's modules need right after (or while) they are imported, done without importing them.

ESPnet has no entry points: a class becomes an encoder by being written into the ``encoder_choices`` of each
task module, an augmentation by being written into its ``specaug_choices``, an optimizer into ``optim_classes``.
Importing a task takes about 13 s, so nothing is imported here; a finder on ``sys.meta_path`` waits for the
modules named in ``_HOOKS`` and acts when somebody imports them.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType

from espnet_lmu.errors import UserError

ENCODER_NAME = "lmu"
SPECAUG_NAME = "vtlp_specaug"
OPTIMIZER_NAME = "muon"
MODEL_NAME = "mixspeech"

# Tasks that call their encoder as AbsEncoder declares it. Not among them: hubert (passes `num_classes`), ssl
# (passes `masks`), spk and lid (pass no lengths), enh and enh_tse (another AbsEncoder), asr_transducer (no choice).
_TASKS = ("asr", "asvspoof", "cls", "diar", "mt", "s2st", "s2t", "s2t_ctc", "slu", "st")


def _register(task: ModuleType) -> None:
    """Add the encoder and the augmentation to the choices of `task` that take such classes."""
    from espnet2.asr.encoder.abs_encoder import AbsEncoder
    from espnet2.asr.specaug.abs_specaug import AbsSpecAug
    from espnet2.train.class_choices import ClassChoices

    from espnet_lmu.encoder.lmu_encoder import LMUEncoder
    from espnet_lmu.training.specaug import VTLPSpecAug

    for choices in vars(task).values():
        if isinstance(choices, ClassChoices):
            if choices.base_type is AbsEncoder:
                choices.classes.setdefault(ENCODER_NAME, LMUEncoder)
            elif choices.base_type is AbsSpecAug:
                choices.classes.setdefault(SPECAUG_NAME, VTLPSpecAug)


def _register_asr(task: ModuleType) -> None:
    """Add the model too, which is of this task alone."""
    from espnet_lmu.training.mixspeech import MixSpeechASRModel

    _register(task)
    task.model_choices.classes.setdefault(MODEL_NAME, MixSpeechASRModel)


def _mend_abs_task(abs_task: ModuleType) -> None:
    """Register the optimizer, and keep a full disk from cutting ``config.yaml``."""
    from espnet_lmu.training.checkpoint import write_config_atomically
    from espnet_lmu.training.muon import Muon

    abs_task.optim_classes.setdefault(OPTIMIZER_NAME, Muon)
    write_config_atomically(abs_task)


@contextlib.contextmanager
def _no_flash_attention_notice() -> Iterator[None]:
    """Drop what is printed because flash_attn, which is optional, is missing."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def _no_nltk_download() -> Iterator[None]:
    """Keep g2p_en, imported by ESPnet's tokenizers, from reaching for the network.

    Only its G2p class needs the corpora, and that class names the missing one itself.
    """
    import nltk

    download, nltk.download = nltk.download, lambda *args, **kwargs: False
    try:
        yield
    finally:
        nltk.download = download


def _atomic_checkpoints(trainer: ModuleType) -> None:
    from espnet_lmu.training.checkpoint import write_checkpoints_atomically

    write_checkpoints_atomically(trainer)


# module -> (context manager around its execution, function called with it afterwards)
_HOOKS: dict[str, tuple[Callable | None, Callable[[ModuleType], None] | None]] = {
    **{f"espnet2.tasks.{task}": (None, _register) for task in _TASKS},
    "espnet2.tasks.asr": (None, _register_asr),
    "espnet2.tasks.abs_task": (None, _mend_abs_task),
    **{
        f"{nets}.pytorch_backend.transformer.attention": (_no_flash_attention_notice, None)
        for nets in ("espnet2.legacy.nets", "espnet.nets")  # the second in ESPnet 202511
    },
    "g2p_en.g2p": (_no_nltk_download, None),
    "espnet2.train.trainer": (None, _atomic_checkpoints),
    "espnet2.main_funcs.average_nbest_models": (None, _atomic_checkpoints),
}


class _Loader(importlib.abc.Loader):
    """The module's own loader, with its hook around `exec_module`."""

    def __init__(self, loader: importlib.abc.Loader, name: str):
        self._loader = loader
        self._around, self._after = _HOOKS[name]

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        with self._around() if self._around else contextlib.nullcontext():
            self._loader.exec_module(module)
        if self._after:
            self._after(module)

    def __getattr__(self, name):
        # runpy asks for get_code, inspect for get_source, ...
        return getattr(self._loader, name)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname not in _HOOKS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, fullname)
        return spec


def speed_up_tasks() -> None:
    """Call `use_fast_arithmetic` when this process imports ESPnet's tasks, which import torch."""

    def after(abs_task: ModuleType) -> None:
        from espnet_lmu.training.arithmetic import use_fast_arithmetic

        _mend_abs_task(abs_task)
        use_fast_arithmetic()

    _HOOKS["espnet2.tasks.abs_task"] = (None, after)


def ignore_espnets_warnings() -> None:
    """Silence what Python says of ESPnet's own spellings (deprecated calls, invalid escapes): no user can mend it."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"espnet2?\.")
    warnings.filterwarnings("ignore", category=SyntaxWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning, message="invalid escape sequence")


def _exponents_as_text(name: str, value) -> Iterator[str]:
    """Where a setting, or one inside of it, is text such as 1e-3: a number of YAML 1.1 needs a point, 1.0e-3."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _exponents_as_text(f"{name} {key}", inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _exponents_as_text(name, inner)
    elif isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value):
        yield f"{name}: {value} is text to YAML, which wants a point in a number: {value.lower().replace('e', '.0e')}"


def check_arguments(command: str, parser: argparse.ArgumentParser, arguments: list[str], remedy: str) -> None:
    """Refuse what one of ESPnet's commands does not take, in one line in place of its usage.

    Raises:
        UserError: what is wrong, with `remedy`.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            settings = vars(parser.parse_args(arguments))
    except SystemExit:
        reason = " ".join(complaint.getvalue().rpartition("error: ")[2].split())
        raise UserError(f"{command}: {reason}; correct {remedy}") from None
    for name, value in settings.items():
        if name.endswith("_conf"):
            for reason in _exponents_as_text(name, value):
                raise UserError(f"{command}: {reason}; correct {remedy}")


def import_asr_train() -> None:
    """Import what ESPnet's asr_train needs (15 s), in a process whose forks are to run it."""
    ignore_espnets_warnings()
    import espnet2.bin.asr_train  # noqa: F401
    import torch._dynamo  # noqa: F401  (which torch imports when an optimizer is made)


def install() -> None:
    """Install the finder (once) and serve the modules that are imported already."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    for name, (_, after) in _HOOKS.items():
        if after and name in sys.modules:
            after(sys.modules[name])
