"""The record of how features were computed goes with them into the models, and no model is given others."""

import numpy as np
import pytest
import soundfile
from recipe_tools import RATE, make_set, one_line_error, run_module

from espnet_lmu.data.features import read_features, write_features
from espnet_lmu.data.filter import filter_data_dir
from espnet_lmu.data.format import feature_settings, format_data_dir
from espnet_lmu.errors import UserError
from espnet_lmu.training.launch import _record_features

OLD = feature_settings(RATE) | {"high_freq": 0.0}


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


def test_training_goes_on_with_its_features_alone(tmp_path, capsys):
    experiment, statistics, data = (tmp_path / name for name in ("exp/asr", "exp/stats", "dump/valid"))
    arguments = ["--output_dir", str(experiment), "--valid_data_path_and_name_and_type", f"{data}/feats.scp,speech,k"]
    arguments += ["--valid_data_path_and_name_and_type", f"{data}/text,text,text", "--ngpu", "0"]
    arguments += ["--valid_shape_file", f"{statistics}/valid/speech_shape"]

    def train_on(features: dict | None, of_statistics: dict | None) -> str:
        write_features(data, features)
        write_features(statistics, of_statistics)
        _record_features(arguments)
        return capsys.readouterr().err

    new = feature_settings(RATE)
    assert train_on(OLD, OLD) == "" and read_features(experiment) == OLD
    assert train_on(new, new) == "" and read_features(experiment) == new  # it had not learnt anything yet
    (experiment / "checkpoint.pth").touch()
    assert train_on(new, new) == ""
    with pytest.raises(UserError, match="exp/asr: its features are not .*dump/valid: .*high_freq -400.0 there and 0.0"):
        train_on(OLD, OLD)
    with pytest.raises(UserError, match="exp/stats: its features are not those of .*dump/valid: .*make it again"):
        train_on(new, OLD)
    write_features(statistics, new)
    with pytest.raises(UserError, match="init_param nothing.pth: no such file"):
        _record_features([*arguments, "--init_param", "nothing.pth:encoder:encoder"])
    write_features(experiment, None)
    assert f"warning: {experiment}: no features.yaml" in train_on(new, new)
    assert train_on(None, None) == ""  # raw audio, and features of the user's own


def test_decoding_of_other_features_is_one_line(tmp_path):
    experiment, data = tmp_path / "exp", tmp_path / "dump/test"
    for directory, settings in ((experiment, OLD), (data, feature_settings(RATE))):
        write_features(directory, settings)
    for name in ("config.yaml", "model.pth"):
        (experiment / name).touch()
    options = ["--asr_train_config", experiment / "config.yaml", "--asr_model_file", experiment / "model.pth"]
    options += ["--data_feats", tmp_path / "dump", "--decode_dir", tmp_path / "decode", "test"]
    message = one_line_error(run_module("espnet_lmu.decoding.decode", *options))
    assert f"exp: its features are not those of {data}: high_freq 0.0 there and -400.0 here; make it" in message
