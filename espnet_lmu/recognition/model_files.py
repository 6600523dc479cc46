"""A trained model as files: an experiment's folder, stage 14's packed file, or a repository of the Hugging Face hub.

A packed file is an uncompressed zip archive with names of `CONTENTS` and no others. Its ``meta.yaml`` is that of
ESPnet's own packed models (``espnet2.bin.pack``), so ESPnet's tools load it too, and has in addition the sampling
rate, how stored features were computed, versions and a checksum of each file. A repository on the hub holds the same
files unpacked.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from espnet_lmu.data.features import check_features, read_features
from espnet_lmu.data.files import naming, read_yaml, shorten
from espnet_lmu.errors import UserError

META, CONFIG, WEIGHTS, TOKENS, RESULTS = "meta.yaml", "config.yaml", "model.pth", "tokens.txt", "RESULTS.md"
# Files that the configuration names, to build the model or its tokenizer: (section, option) -> name in the pack.
NAMED_FILES = {(None, "bpemodel"): "bpe.model", ("normalize_conf", "stats_file"): "feats_stats.npz"}
CONTENTS = (META, CONFIG, WEIGHTS, TOKENS, *NAMED_FILES.values(), RESULTS)

# What a configuration from elsewhere may ask for. ESPnet knows more, some of which fetch code or models on their own.
_ALLOWED = {
    "frontend": (None, "default"),
    "preencoder": (None, "linear", "sinc"),
    "encoder": ("lmu", "transformer", "conformer", "branchformer", "e_branchformer", "rnn", "vgg_rnn"),
    "postencoder": (None,),
    "decoder": (None, "rnn", "transformer"),
    "model": ("espnet",),
    "token_type": ("bpe", "char", "word"),
}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass
class ModelFiles:
    """Files of a model, checked; paths in ``config_file`` are absolute, so that any working directory will do.

    Attributes:
        rate: sampling rate of the model in Hz; None where only the configuration can say it, that of a model of raw
            audio in an experiment's folder.
    """

    config_file: Path
    model_file: Path
    rate: int | None = None
    _temporary: tempfile.TemporaryDirectory | None = None  # deleted with this object


def dump_yaml(content: dict) -> str:
    return yaml.safe_dump(content, allow_unicode=True, sort_keys=False)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def named_file(config: dict, place: tuple[str | None, str]) -> str | None:
    """The file that a configuration names in one of the places of `NAMED_FILES`."""
    section, option = place
    values = config if section is None else config.get(section)
    return values.get(option) if isinstance(values, dict) else None


def name_files(config: dict, names: dict[tuple[str | None, str], str]) -> None:
    """Let a configuration name other files in some of the places of `NAMED_FILES`."""
    for (section, option), name in names.items():
        (config if section is None else config[section])[option] = name


def experiment_files(folder: Path, weights: str | None = None) -> tuple[dict, Path, dict]:
    """Files of an experiment.

    Paths in its configuration start at the recipe's directory, which is one of the folders above the experiment, or
    (with an ``--expdir`` elsewhere) the working directory.

    Args:
        folder: with ``config.yaml``.
        weights: name of the weights' file in it; None for the average of the epochs that are best by the first
            criterion of the training.

    Returns:
        the configuration; the weights' path; the paths of the files that the configuration names, by place.
    """
    config = read_yaml(folder / CONFIG)
    if weights is None:
        try:
            phase, criterion, *_ = config["best_model_criterion"][0]
        except (KeyError, IndexError, TypeError, ValueError):
            raise UserError(
                f"{folder / CONFIG}: not the configuration of a training: no best_model_criterion"
            ) from None
        weights = f"{phase}.{criterion}.ave.pth"
    if not (folder / weights).is_file():
        raise UserError(f"{folder / weights}: no such file; train the model first (stage 11)")
    files = {}
    for place in NAMED_FILES:
        if name := named_file(config, place):
            candidates = [base / name for base in (*folder.resolve().parents, Path.cwd())]
            files[place] = next((path for path in candidates if path.is_file()), None)
            if files[place] is None:
                raise UserError(f"{folder / CONFIG} refers to {name}, which is in no folder above the experiment")
    return config, folder / weights, files


def _check_own_features(name: str, config: dict, features: dict | None, rate: int | None) -> None:
    """Check that features which a model was trained on, if it takes any, are those that are computed of audio here."""
    if config.get("input_size") is not None:
        from espnet_lmu.data.format import feature_settings

        check_features(name, features, feature_settings(rate), "this version of espnet_lmu")


def _check_archive(path: Path, archive: zipfile.ZipFile) -> None:
    names = [entry.filename for entry in archive.infolist()]
    if META not in names:  # of a file that is cut off, zipfile may see the weights, an archive in the archive
        raise UserError(f"{path}: not a packed model, or damaged: it has no {META}")
    if strangers := sorted(set(names) - set(CONTENTS)):
        raise UserError(f"{path}: no packed model: has {shorten([repr(name) for name in strangers])}")
    if len(names) != len(set(names)):
        raise UserError(f"{path}: no packed model: a name appears twice")
    # What is stored as it is cannot unpack to more than the file itself.
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    if not stored or sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
        raise UserError(f"{path}: no packed model: its files are compressed; pack it by stage 14")


def unpack(path: Path, folder: Path) -> None:
    """Unpack the packed model `path` into `folder`, with nothing but plain files under names of `CONTENTS`."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_archive(path, archive)
            for entry in archive.infolist():
                # The name is one of ours, and `open` makes a plain file of whatever the entry claims to be.
                with archive.open(entry) as source, open(folder / entry.filename, "wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise UserError(f"{path}: not a packed model, or damaged ({error})") from None


def check_unpacked(folder: Path, name: str) -> tuple[dict, int]:
    """Check the files of a packed model, called `name` in messages.

    Returns:
        its configuration, with absolute paths; its sampling rate.
    """
    meta = read_yaml(folder / META, f"{name}: {META}")
    checksums, rate = meta.get("sha256"), meta.get("rate")
    if not isinstance(checksums, dict) or not {CONFIG, WEIGHTS} <= set(checksums) <= set(CONTENTS):
        raise UserError(f"{name}: its {META} lists no checksums of a packed model; pack it by stage 14")
    if not isinstance(rate, int) or not 1000 <= rate <= 768_000:
        raise UserError(f"{name}: its {META} has no usable sampling rate: rate: {rate}")
    for member, checksum in checksums.items():
        if not (folder / member).is_file():
            raise UserError(f"{name}: {member} is missing")
        if file_digest(folder / member) != checksum:
            raise UserError(f"{name}: {member} is damaged or was changed: its checksum differs; get the model again")
    config = read_yaml(folder / CONFIG, f"{name}: {CONFIG}")
    features = meta.get("fbank")
    if features is not None and not isinstance(features, dict):
        raise UserError(f"{name}: its {META} has no usable record of features: fbank: {features}")
    _check_own_features(name, config, features, rate)
    for option, allowed in _ALLOWED.items():
        if config.get(option) not in allowed:
            raise UserError(
                f"{name}: {option}: {config.get(option)}: not opened from packed models, for it may load code"
            )
    files = {}
    for place, member in NAMED_FILES.items():
        if value := named_file(config, place):
            if value != member or member not in checksums:
                raise UserError(f"{name}: its {CONFIG} refers to {value!r}, which is not packed with it")
            files[place] = str((folder / member).absolute())
    name_files(config, files)
    return config, rate


def _download(name: str) -> Path:
    """Folder with the files of a model on the hub, in the hub's own cache."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import HTTPError
    except ImportError:
        raise UserError(
            f"{name}: no such file or folder; for models of the Hugging Face hub, pip install huggingface_hub"
        ) from None
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(CONTENTS)))
    except (HTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{name}: no such file or folder, and not to be had from the Hugging Face hub: {reason}"
        ) from None


def open_model(model: str | Path) -> ModelFiles:
    """Find and check the files of a model.

    Args:
        model: an experiment's folder, a packed file, the folder of an unpacked one, or ``USER/NAME`` on the hub.

    Raises:
        UserError: there is no such model, or a file of it is missing, damaged or not allowed.
    """
    path, rate = Path(model), None
    temporary = tempfile.TemporaryDirectory(prefix="espnet_lmu.")
    if path.is_file():
        unpacked = Path(temporary.name) / "unpacked"
        unpacked.mkdir()
        with naming(unpacked):
            unpack(path, unpacked)
        path = unpacked
    elif not path.is_dir():
        if not HUB_ID.fullmatch(str(model)):
            raise UserError(f"{model}: no such file or folder; give an experiment, a packed model or USER/NAME")
        if path.parent.is_dir():
            raise UserError(
                f"{model}: no such file or folder in {path.parent}, which is not taken for a user of the hub"
            )
        path = _download(str(model))
    # What does not lie here as a folder must be a packed model; an experiment's configuration is trusted.
    if path != Path(model) or (path / META).exists():
        config, rate = check_unpacked(path, str(model))
        weights = path / WEIGHTS
    else:
        if not (path / CONFIG).exists():
            raise UserError(f"{model}: no {CONFIG}: neither an experiment's folder nor a packed model")
        config, weights, files = experiment_files(path)
        name_files(config, {place: str(file) for place, file in files.items()})
        if features := read_features(path):
            rate = features.get("rate")
        _check_own_features(str(model), config, features, rate)
    config_file = Path(temporary.name) / CONFIG
    with naming(config_file):
        config_file.write_text(dump_yaml(config), encoding="utf-8")
    return ModelFiles(config_file, weights.absolute(), rate, temporary)
