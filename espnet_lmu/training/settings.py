"""The settings of a training, checked before the hours that its data takes.

ESPnet itself finds a mistyped setting when it is used: an augmentation in stage 10, a scheduler in stage 11, and the
criterion by which epochs are kept not even at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from espnet_lmu.data.files import command_line
from espnet_lmu.decoding.settings import read_settings
from espnet_lmu.errors import UserError
from espnet_lmu.hook import check_arguments, ignore_espnets_warnings

_MODELS = ("espnet", "mixspeech")  # of one kind: the other ones of ESPnet have values of their own
_CTC_VALUES = ("loss_ctc", "cer_ctc")
_DECODER_VALUES = ("loss_att", "acc", "cer", "wer", "loss_transducer", "cer_transducer", "wer_transducer")
_INTERMEDIATE = re.compile(r"(loss|cer)_interctc_layer\d+")
_PLAIN_ENCODERS = ("lmu", "conformer", "e_branchformer", "branchformer", "transformer")  # others may load files
# Model files named after a criterion, such as valid.cer_ctc.ave_10best.pth.
_CHOSEN = re.compile(r"(?P<criterion>(train|valid)\.\w+?)\.(best|ave(_(?P<number>\d+)best)?)\.pth")


def _check_criterion(option: str, criterion: Sequence[str], ctc_weight: float) -> None:
    """Refuse what no epoch has a number for; ESPnet would pass over it, or compare NaN with NaN."""
    if isinstance(criterion, str) or len(criterion) != 3:
        raise UserError(f"{option} {criterion}: give three, such as valid, cer_ctc, min")
    phase, name, mode = criterion
    spelling = f"{option} {phase} {name} {mode}"
    if phase not in ("train", "valid") or mode not in ("min", "max"):
        raise UserError(f"{spelling}: give train or valid, a name, and min or max, such as valid cer_ctc min")
    values = ("loss",)
    values += _CTC_VALUES if ctc_weight > 0 else ()
    values += _DECODER_VALUES if ctc_weight < 1 else ()
    if name not in values and not _INTERMEDIATE.fullmatch(name):
        alone = " of CTC alone" if name in _DECODER_VALUES else ""
        raise UserError(f"{spelling}: a training{alone} has no {name}, but {', '.join(values)}")
    if phase == "train" and name.startswith("cer"):
        raise UserError(f"{spelling}: error rates are of the validation set; give valid")


def _kept(args: argparse.Namespace) -> list[int]:
    """How many of the best epochs are averaged; several numbers make several averages."""
    return args.keep_nbest_models if isinstance(args.keep_nbest_models, list) else [args.keep_nbest_models]


def _ctc_weight(args: argparse.Namespace) -> float:
    return (args.model_conf or {}).get("ctc_weight", 0.5)


def _criteria(args: argparse.Namespace) -> list[tuple[str, str, str]]:
    return [tuple(criterion) for criterion in args.best_model_criterion]


def _check_criteria(args: argparse.Namespace, default: list[tuple[str, str, str]]) -> None:
    """Refuse criteria that choose nothing. Of ESPnet's own, by loss and by accuracy, the loss is always there."""
    if min(_kept(args), default=1) < 1:
        raise UserError(f"keep_nbest_models {args.keep_nbest_models}: give at least 1")
    if args.model not in _MODELS:
        return  # one with values of its own
    ctc_weight = _ctc_weight(args)
    if not (isinstance(ctc_weight, (int, float)) and 0 <= ctc_weight <= 1):
        raise UserError(f"model_conf ctc_weight {ctc_weight!r}: give a number from 0 to 1")
    given = [] if _criteria(args) == default else args.best_model_criterion
    for criterion in given:
        _check_criterion("best_model_criterion", criterion, ctc_weight)
    if args.patience is not None:
        _check_criterion("early_stopping_criterion", args.early_stopping_criterion, ctc_weight)


def _check_parts(args: argparse.Namespace) -> None:
    """Make what does not need the data: frontend, augmentation, encoder, model, optimizer, scheduler."""
    import torch
    from espnet2.asr.ctc import CTC
    from espnet2.tasks import asr
    from espnet2.tasks.abs_task import scheduler_classes

    def make(option: str, function, *arguments):
        try:
            return function(*arguments, **(getattr(args, f"{option}_conf") or {}))
        except Exception as error:  # whatever the classes raise
            message = re.sub(r"^\w+(\.\w+)*\.__init__\(\) ", "", " ".join(str(error).split()))
            raise UserError(f"{option}_conf: {message.replace('keyword argument', 'option')}") from None

    # argparse checks the names that options give, not those of a configuration.
    known = {choices.name: choices.classes for choices in asr.ASRTask.class_choices_list}
    for option, classes in (known | {"scheduler": scheduler_classes}).items():
        name = getattr(args, option)
        if name is not None and name not in classes:
            raise UserError(f"{option} {name!r}: give one of {', '.join(classes)}")

    size = args.input_size or 80
    if args.input_size is None and args.frontend == "default":
        size = make("frontend", asr.frontend_choices.get_class("default")).output_size()
    if args.specaug is not None:
        make("specaug", asr.specaug_choices.get_class(args.specaug))
    if args.encoder in _PLAIN_ENCODERS:
        with torch.device("meta"):  # no memory, however large
            make("encoder", asr.encoder_choices.get_class(args.encoder), size)
    if args.model in _MODELS and (_ctc_weight(args) == 1 or args.model == "mixspeech"):  # without a decoder
        parts = ("frontend", "specaug", "normalize", "preencoder", "encoder", "postencoder", "decoder", "joint_network")
        tokens = {"vocab_size": 3, "token_list": ["<blank>", "<unk>", "<sos/eos>"]}
        model = functools.partial(asr.model_choices.get_class(args.model), **dict.fromkeys(parts), **tokens)
        make("model", functools.partial(model, ctc=CTC(3, 2)))
    toy = torch.nn.Linear(2, 2)
    (optimizer,) = make("optim", lambda **_: asr.ASRTask.build_optimizers(args, toy))
    if args.scheduler is not None:
        make("scheduler", scheduler_classes[args.scheduler], optimizer)


def _given_config(arguments: list[str]) -> str | None:
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--config")
    return parser.parse_known_args(arguments)[0].config


def check_training(arguments: list[str]) -> argparse.Namespace:
    """Check `arguments` of asr_train, its ``--config`` among them, as far as that goes without the data.

    Returns:
        all settings.

    Raises:
        UserError: options that asr_train, a part of the model or a scheduler does not take, or criteria that choose no
            epoch.
    """
    ignore_espnets_warnings()
    from espnet2.tasks.asr import ASRTask

    parser, remedy = ASRTask.get_parser(), "--asr_args"
    default = parser.get_default("best_model_criterion")  # a configuration replaces the parser's defaults
    if config := _given_config(arguments):
        remedy += f" or {config}"
    check_arguments("asr_train", parser, arguments, remedy)
    args = parser.parse_args(arguments)
    try:
        _check_criteria(args, default)
        with _no_logging():
            _check_parts(args)
    except UserError as error:
        raise UserError(f"{error}; correct {remedy}") from None
    return args


@contextlib.contextmanager
def _no_logging() -> Iterator[None]:
    """Leave logging as it is: a warning would set it up, and ESPnet's training, in a fork, could not any more."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        root.handlers[:] = handlers
        root.setLevel(level)


def _check_inference_model(name: str, args: argparse.Namespace) -> None:
    """Refuse the name of a model that no criterion of the training makes."""
    match = _CHOSEN.fullmatch(name)
    if not match:
        return
    ctc_alone = args.model in _MODELS and _ctc_weight(args) == 1.0
    criteria = [
        f"{phase}.{value}" for phase, value, _ in _criteria(args) if not (ctc_alone and value in _DECODER_VALUES)
    ]
    if match["criterion"] not in criteria:
        made = ", ".join(f"{criterion}.ave.pth" for criterion in criteria)
        raise UserError(
            f"--inference_asr_model {name}: by its best_model_criterion this training makes {made}; give one of these, "
            "or another criterion"
        )
    if match["number"] and int(match["number"]) not in _kept(args):
        raise UserError(
            f"--inference_asr_model {name}: keep_nbest_models is {args.keep_nbest_models}; give such a number"
        )


def _check_inference(config: Path, arguments: str) -> None:
    if "decoding" in read_settings(config):
        return
    from espnet2.bin import asr_inference

    try:
        further = shlex.split(arguments)
    except ValueError as error:
        raise UserError(f"--inference_args {arguments}: {error}") from None
    command = ["--config", str(config), *further, "--output_dir", "."]
    command += ["--data_path_and_name_and_type", "wav.scp,speech,sound"]
    check_arguments("asr_inference", asr_inference.get_parser(), command, f"--inference_args or {config}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m espnet_lmu.training.settings",
        usage="%(prog)s [OPTION ...] [ARGUMENT OF asr_train ...]",
        description=__doc__,
        allow_abbrev=False,
    )
    parser.add_argument("--inference_asr_model", metavar="NAME", help="model file that stage 12 is to decode with")
    parser.add_argument("--inference_config", type=Path, metavar="YAML", help="decoding configuration")
    parser.add_argument("--inference_args", default="", metavar="ARGUMENTS", help="further arguments of asr_inference")
    args, arguments = parser.parse_known_args()
    training = check_training([*arguments, "--output_dir", "."])
    if args.inference_asr_model:
        _check_inference_model(args.inference_asr_model, training)
    if args.inference_config:
        _check_inference(args.inference_config, args.inference_args)


if __name__ == "__main__":
    command_line(main)
