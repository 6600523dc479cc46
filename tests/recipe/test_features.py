"""The record of how features were computed goes with them into the models, and no model is given others."""

import numpy as np
import pytest
import soundfile
import yaml
from recipe_tools import RATE, make_set, one_line_error, run_module

from espnet_lmu.data.features import FEATURES, check_features, read_features, write_features
from espnet_lmu.data.filter import filter_data_dir
from espnet_lmu.data.format import feature_settings, format_data_dir
from espnet_lmu.errors import UserError
from espnet_lmu.training.launch import _record_features

OLD = {"features": "fbank", "rate": 16000, "high_freq": 0.0}


def test_stages_3_and_4_write_the_record(tmp_path):
    make_set(tmp_path / "data", 3)
    org, filtered = tmp_path / "dump/org", tmp_path / "dump/set"
    write_features(org, OLD)  # of an earlier version, whose features are made anew
    format_data_dir(tmp_path / "data", org, "fbank", RATE, nj=1)
    assert read_features(org) == feature_settings(RATE)
    assert read_features(org)["high_freq"] == -400 and read_features(org)["snip_edges"] is False
    filter_data_dir(org, filtered, RATE, 0.0, 20.0)
    assert read_features(filtered) == feature_settings(RATE)
    # stopped half-way, features of two kinds may lie there
    soundfile.write(tmp_path / "data/audio/spk0-000.wav", np.zeros(10), RATE)
    with pytest.raises(UserError, match="cannot be used"):
        format_data_dir(tmp_path / "data", org, "fbank", RATE, nj=1)
    assert read_features(org) is None


def test_training_goes_on_with_its_features_alone(tmp_path):
    experiment, data = tmp_path / "exp/asr", tmp_path / "dump/valid"
    arguments = ["--output_dir", str(experiment), "--valid_data_path_and_name_and_type", f"{data}/feats.scp,speech,k"]
    arguments += ["--valid_data_path_and_name_and_type", f"{data}/text,text,text", "--ngpu", "0"]
    write_features(data, OLD)
    _record_features(arguments)
    assert read_features(experiment) == OLD
    write_features(data, feature_settings(RATE))
    _record_features(arguments)  # it has not learnt anything yet
    assert read_features(experiment) == feature_settings(RATE)
    (experiment / "checkpoint.pth").touch()
    _record_features(arguments)
    write_features(data, OLD)
    with pytest.raises(UserError, match="exp/asr: trained on other features .*high_freq -400.0 in place of 0.0"):
        _record_features(arguments)
    write_features(experiment, None)
    with pytest.raises(UserError, match="exp/asr: trained on features that have no record"):
        _record_features(arguments)
    write_features(data, None)
    _record_features(arguments)  # raw audio, and features of the user's own


def test_decoding_of_other_features_is_one_line(tmp_path):
    experiment, data = tmp_path / "exp", tmp_path / "dump/test"
    for directory, settings in ((experiment, OLD), (data, feature_settings(RATE))):
        write_features(directory, settings)
    for name in ("config.yaml", "model.pth"):
        (experiment / name).touch()
    options = ["--asr_train_config", experiment / "config.yaml", "--asr_model_file", experiment / "model.pth"]
    options += ["--data_feats", tmp_path / "dump", "--decode_dir", tmp_path / "decode", "test"]
    message = one_line_error(run_module("espnet_lmu.decoding.decode", *options))
    assert "exp: trained on other features than those of" in message and "amplitude None in place of 1.0" in message
    (data / FEATURES).write_text("- 1\n")
    with pytest.raises(UserError, match="features.yaml: expected lines of NAME: VALUE"):
        check_features(experiment, data)
    (data / FEATURES).unlink()
    with pytest.raises(UserError, match="run stage 3 again"):
        check_features(experiment, data)
    write_features(data, yaml.safe_load((experiment / FEATURES).read_text()))
    check_features(experiment, data)
