"""A training starts from a model that is there, has the part asked for and was trained on the same features."""

from pathlib import Path

import pytest
import torch
import yaml

from espnet_lmu.data.features import write_features
from espnet_lmu.data.format import feature_settings
from espnet_lmu.errors import UserError
from espnet_lmu.training.pretrained import check_pretrained


@pytest.fixture
def model(tmp_path) -> Path:
    """The weights of an experiment, beside the record of its features."""
    (tmp_path / "exp").mkdir()
    path = tmp_path / "exp" / "model.pth"
    torch.save({"encoder.out.weight": torch.zeros(2, 2), "ctc.ctc_lo.bias": torch.zeros(2)}, path)
    write_features(path.parent, feature_settings(16000))
    write_features(tmp_path, feature_settings(16000))  # the data's
    return path


def test_whole_models_and_parts(model, tmp_path, capsys):
    check_pretrained([], tmp_path)
    check_pretrained(["--init_param", "--ngpu", "0"], tmp_path)
    for part in ("", ":encoder:encoder", ":encoder.out:encoder.out", "::", ":::ctc"):
        check_pretrained(["--init_param", f"{model}{part}", str(model), "--ngpu", "0"], tmp_path)
    torch.save({"module": torch.load(model)}, model)  # as DeepSpeed writes it
    check_pretrained(["--init_param", f"{model}:encoder:encoder"], tmp_path)
    assert capsys.readouterr().err == ""
    (model.parent / "features.yaml").unlink()
    check_pretrained(["--init_param", str(model)], tmp_path)
    assert f"warning: {model}: no features.yaml" in capsys.readouterr().err


def test_what_cannot_be_loaded_is_named(model, tmp_path):
    with pytest.raises(UserError, match=r"model.pth: it has no encodr; its parts are encoder, ctc$"):
        check_pretrained(["--init_param", f"{model}:encodr:encoder"], tmp_path)
    with pytest.raises(UserError, match=r"nothing.pth: no such file .*; train that model first, or give another one"):
        check_pretrained(["--init_param", str(model), f"{model.with_stem('nothing')}:encoder:encoder"], tmp_path)
    write_features(tmp_path, feature_settings(16000) | {"high_freq": 0.0})
    with pytest.raises(UserError, match=r"model.pth: its features are not those of .*high_freq -400.0 there and 0.0"):
        check_pretrained(["--init_param", f"{model}:encoder:encoder"], tmp_path)
    model.write_bytes(model.read_bytes()[:200])
    with pytest.raises(UserError, match=r"model.pth: not the weights of a model, or damaged"):
        check_pretrained(["--init_param", str(model)], tmp_path)
    torch.save([1, 2], model)
    with pytest.raises(UserError, match=r"model.pth: not the weights of a model, or damaged"):
        check_pretrained(["--init_param", str(model)], tmp_path)


def test_settings_name_it_and_arguments_overrule_them(model, tmp_path):
    settings = tmp_path / "train.yaml"
    settings.write_text(yaml.safe_dump({"init_param": [f"{model}:nothing:encoder"]}))
    with pytest.raises(UserError, match="it has no nothing"):
        check_pretrained(["--config", str(settings)], tmp_path)
    check_pretrained(["--config", str(settings), "--init_param", f"{model}:encoder:encoder"], tmp_path)
    settings.write_text(yaml.safe_dump({"init_param": str(model)}))
    with pytest.raises(UserError, match="train.yaml: init_param .*model.pth: give a list of them"):
        check_pretrained(["--config", str(settings)], tmp_path)
