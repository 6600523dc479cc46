"""Decoding configurations: which search, and its settings."""

from __future__ import annotations

from pathlib import Path

from espnet_lmu.data.files import read_yaml
from espnet_lmu.errors import UserError

NGRAM_UNITS = ("token", "word")

# Settings with their defaults. ESPnet's search has options of its own and checks them itself.
_SETTINGS: dict[str, dict] = {
    "greedy": {"batch_size": 16},
    "ctc_beam": {
        "batch_size": 16,
        "beam_size": 50,
        "beam_size_token": None,
        "beam_threshold": 50.0,
        "ngram": None,
        "lm_weight": [0.0],
        "insertion_score": [0.0],
    },
}


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check(name: str, value, path: Path):
    """The value of a setting, as it is used."""
    if name in ("batch_size", "beam_size", "beam_size_token"):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{path}: {name}: {value}: give a whole number of {_COUNTED[name]}")
    elif name == "beam_threshold":
        if not _is_number(value) or value <= 0:
            raise UserError(f"{path}: {name}: {value}: give a positive number")
    elif name == "ngram":
        if value not in NGRAM_UNITS:
            raise UserError(f"{path}: ngram: {value}: give token, or word (with a lexicon), or leave it out")
    elif name in ("lm_weight", "insertion_score"):
        values = value if isinstance(value, list) else [value]
        if not values or not all(map(_is_number, values)) or (name == "lm_weight" and min(values) < 0):
            kind = "number" if name == "insertion_score" else "number from 0 on"
            raise UserError(f"{path}: {name}: {value}: give a {kind}, or a list of them to choose from")
        return sorted({float(item) for item in values})
    return value


_COUNTED = {"batch_size": "utterances", "beam_size": "hypotheses", "beam_size_token": "tokens"}


def read_settings(path: Path | None) -> dict:
    """Settings of a decoding configuration; without a file, greedy decoding.

    Returns:
        all settings of greedy decoding or of the prefix beam search, whose lm_weight and insertion_score are ascending
        lists; for ESPnet's search, which has no key ``decoding``, what the file says.

    Raises:
        UserError: the file is no YAML mapping, or has a setting that its decoding does not know or cannot use.
    """
    if path is None:
        return {"decoding": "greedy", **_SETTINGS["greedy"]}
    settings = read_yaml(path)
    if "decoding" not in settings:
        for name in ("lm_weight", "penalty"):
            if isinstance(settings.get(name), list):
                raise UserError(
                    f"{path}: {name}: ESPnet's search takes one number; decoding: ctc_beam chooses from lists"
                )
        return settings
    decoding = settings["decoding"]
    if decoding not in _SETTINGS:
        raise UserError(f"{path}: decoding: {decoding}: give greedy or ctc_beam, or leave it out for ESPnet's search")
    known = _SETTINGS[decoding]
    unknown = sorted(str(name) for name in set(settings) - set(known) - {"decoding"})
    if unknown:
        raise UserError(f"{path}: {decoding} decoding has no setting {unknown[0]}; it has {', '.join(known)}")
    given = {name: _check(name, value, path) for name, value in settings.items() if value is not None}
    settings = {**known, **given}
    if settings.get("ngram") is None and any(settings.get("lm_weight", [])):
        raise UserError(f"{path}: lm_weight: without ngram: token or word there is no language model to weigh")
    return settings
