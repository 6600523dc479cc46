"""Models packed into one file: complete, the same everywhere, and harmless whoever made it."""

import hashlib
import os
import stat
import zipfile
from pathlib import Path

import pytest
import yaml
from experiments import CONFIG, make_experiment

from espnet_lmu.data.features import write_features
from espnet_lmu.data.format import feature_settings
from espnet_lmu.errors import UserError
from espnet_lmu.recognition.model_files import CONTENTS, open_model
from espnet_lmu.recognition.pack import pack


@pytest.fixture
def packed(tmp_path) -> Path:
    experiment = make_experiment(tmp_path / "recipe")
    (experiment / "RESULTS.md").write_text("# Results\n")
    pack(experiment, tmp_path / "model.zip", None, 8000, experiment / "RESULTS.md")
    return tmp_path / "model.zip"


def _members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def _write(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def _with(packed: Path, name: str, content: bytes) -> dict[str, bytes]:
    """Members with another content of `name`, and the checksum to it."""
    members = _members(packed) | {name: content}
    meta = yaml.safe_load(members["meta.yaml"])
    meta["sha256"][name] = hashlib.sha256(content).hexdigest()
    return members | {"meta.yaml": yaml.safe_dump(meta).encode()}


def _strings(value) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []


def test_packed_model_opens_where_nothing_else_of_the_recipe_is(packed, tmp_path, monkeypatch):
    (tmp_path / "recipe").rename(tmp_path / "gone")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    files = open_model("../model.zip")
    assert files.rate == 8000
    assert files.model_file.read_bytes() == b"weights" * 5000
    config = yaml.safe_load(files.config_file.read_text())
    assert Path(config["bpemodel"]).read_bytes() == b"pieces"
    assert Path(config["normalize_conf"]["stats_file"]).is_file()
    for option in ("token_list", "encoder", "encoder_conf", "frontend_conf"):
        assert config[option] == CONFIG[option]
    folder = files.config_file.parent
    del files
    assert not folder.exists()


def test_packed_model_has_everything_and_no_path_of_the_recipe(packed):
    members = _members(packed)
    assert set(members) == set(CONTENTS)
    config = yaml.safe_load(members["config.yaml"])
    assert not [text for text in _strings(config) if "/" in text and text != "<sos/eos>"]
    assert members["tokens.txt"].decode().splitlines() == CONFIG["token_list"]
    meta = yaml.safe_load(members["meta.yaml"])
    assert meta["features"] == "raw" and {"espnet", "torch", "espnet_lmu", "python"} <= set(meta)
    assert set(meta["sha256"]) == set(CONTENTS) - {"meta.yaml"}


def test_model_of_stored_features_keeps_to_them(tmp_path, capsys):
    experiment = make_experiment(tmp_path / "recipe", CONFIG | {"input_size": 80, "frontend": None})
    packed = tmp_path / "model.zip"
    pack(experiment, packed, None, 8000, None)
    for model in (experiment, packed):
        open_model(model)
        assert f"warning: {model}: no features.yaml" in capsys.readouterr().err
    write_features(experiment, feature_settings(8000))
    with pytest.raises(UserError, match="--fs 16000: .*asr_tiny was trained on features of audio at 8000 Hz"):
        pack(experiment, packed, None, 16000, None)
    pack(experiment, packed, None, 8000, None)
    assert open_model(experiment).rate == open_model(packed).rate == 8000
    assert not capsys.readouterr().err
    write_features(experiment, feature_settings(8000) | {"high_freq": 0.0})
    pack(experiment, packed, None, 8000, None)
    for model in (experiment, packed):
        with pytest.raises(UserError, match="not those of this version of espnet_lmu: high_freq 0.0 there and -400.0"):
            open_model(model)
    meta = yaml.safe_load(_members(packed)["meta.yaml"]) | {"fbank": "mine"}
    with pytest.raises(UserError, match="no usable record of features: fbank: mine"):
        open_model(_write(tmp_path / "odd.zip", _members(packed) | {"meta.yaml": yaml.safe_dump(meta).encode()}))


def test_packing_again_gives_the_same_file_and_leaves_nothing_beside_it(packed, tmp_path):
    before, names = packed.read_bytes(), sorted(os.listdir(tmp_path))
    pack(tmp_path / "recipe/exp/asr_tiny", packed, None, 8000, tmp_path / "recipe/exp/asr_tiny/RESULTS.md")
    assert packed.read_bytes() == before and sorted(os.listdir(tmp_path)) == names


def test_experiment_opens_from_any_directory_with_the_average_of_its_first_criterion(tmp_path, monkeypatch):
    experiment = make_experiment(tmp_path / "recipe")
    monkeypatch.chdir(tmp_path)
    files = open_model("recipe/exp/asr_tiny")
    assert files.model_file == experiment / "valid.acc.ave.pth" and files.rate is None
    config = yaml.safe_load(files.config_file.read_text())
    assert config["bpemodel"] == str(tmp_path / "recipe/data/token_list/bpe.model")
    (tmp_path / "recipe/data/token_list/bpe.model").unlink()
    with pytest.raises(UserError, match="refers to data/token_list/bpe.model, which is in no folder"):
        open_model(experiment)
    (experiment / "valid.acc.ave.pth").unlink()
    with pytest.raises(UserError, match="valid.acc.ave.pth: no such file; train the model first"):
        open_model(experiment)


@pytest.mark.parametrize("name", ["../evil.pth", "/tmp/evil.pth", "sub/model.pth", "evil.py", "..\\evil", "sub/"])
def test_no_other_name_is_unpacked(packed, tmp_path, name):
    _write(tmp_path / "evil.zip", {**_members(packed), name: b"x"})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="evil.zip: no packed model: has"):
        open_model(tmp_path / "evil.zip")
    assert sorted(tmp_path.rglob("*")) == before


def test_compressed_or_doubled_entries_are_refused(packed, tmp_path):
    bomb = {**_members(packed), "RESULTS.md": bytes(10_000_000)}
    with pytest.raises(UserError, match="its files are compressed"):
        open_model(_write(tmp_path / "bomb.zip", bomb, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(packed, "a") as archive, pytest.warns(UserWarning):
        archive.writestr("model.pth", b"other")
    with pytest.raises(UserError, match="a name appears twice"):
        open_model(packed)


def test_link_in_an_archive_becomes_no_link(packed, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    members = _with(packed, "tokens.txt", str(secret).encode())
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        for name, content in members.items():
            entry = zipfile.ZipInfo(name)
            if name == "tokens.txt":
                entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(entry, content)
    files = open_model(tmp_path / "link.zip")
    unpacked = files.model_file.with_name("tokens.txt")
    assert not unpacked.is_symlink() and unpacked.read_text() == str(secret)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("bpemodel", "/etc/passwd", "refers to '/etc/passwd', which is not packed"),
        ("bpemodel", "../bpe.model", "refers to '../bpe.model', which is not packed"),
        ("frontend", "s3prl", "frontend: s3prl: not opened from packed models"),
        ("encoder", "hugging_face_transformers", "encoder: hugging_face_transformers: not opened"),
        ("token_type", ["bpe"], "token_type: .*: not opened"),
    ],
)
def test_configuration_from_elsewhere_may_not_reach_outside(packed, tmp_path, option, value, message):
    config = yaml.safe_load(_members(packed)["config.yaml"]) | {option: value}
    evil = _write(tmp_path / "evil.zip", _with(packed, "config.yaml", yaml.safe_dump(config).encode()))
    with pytest.raises(UserError, match=message):
        open_model(evil)


def test_yaml_that_would_run_code_is_refused(packed, tmp_path):
    command = f"!!python/object/apply:os.system ['touch {tmp_path}/ran']"
    for name in ("config.yaml", "meta.yaml"):
        members = _with(packed, "config.yaml", command.encode())
        if name == "meta.yaml":
            members[name] = command.encode()
        with pytest.raises(UserError, match=f"evil.zip: {name}: cannot be read: could not determine a constructor"):
            open_model(_write(tmp_path / "evil.zip", members))
    assert not (tmp_path / "ran").exists()


def test_damage_is_found(packed, tmp_path):
    members = _members(packed)
    changed = members | {"model.pth": b"weights" * 4999 + b"Weights"}
    with pytest.raises(UserError, match="model.pth is damaged or was changed"):
        open_model(_write(tmp_path / "changed.zip", changed))
    with pytest.raises(UserError, match="bpe.model is missing"):
        open_model(_write(tmp_path / "less.zip", {k: v for k, v in members.items() if k != "bpe.model"}))
    with pytest.raises(UserError, match="bare.zip: not a packed model, or damaged: it has no meta.yaml"):
        open_model(_write(tmp_path / "bare.zip", {k: v for k, v in members.items() if k != "meta.yaml"}))
    content = packed.read_bytes()
    for damaged in (content[: len(content) // 2], b"", content.replace(b"weights", b"Weights", 1)):
        packed.write_bytes(damaged)
        with pytest.raises(UserError, match="model.zip: not a packed model, or damaged"):
            open_model(packed)


def test_what_is_no_model_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no such file or folder; give an experiment"):
        open_model(tmp_path / "absent.zip")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exp").mkdir()
    with pytest.raises(UserError, match="exp/mistyped: no such file or folder in exp"):
        open_model("exp/mistyped")
    with pytest.raises(UserError, match="no config.yaml: neither an experiment's folder nor a packed model"):
        open_model(tmp_path)
