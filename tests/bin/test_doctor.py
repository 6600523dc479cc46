"""`espnet-lmu doctor` finds what is missing."""

from importlib import metadata

from espnet_lmu.bin.doctor import find_problems
from espnet_lmu.bin.main import main


def test_missing_and_wrong_packages_are_named_by_extra():
    version = metadata.version("numpy")
    found = find_problems(
        ["numpy>=1", f"numpy!={version}", 'no-such-package; extra == "serve"', 'numpy; extra == "hub"']
        + ['no-such-package; python_version < "3"', 'no-such-package; python_version < "3" and extra == "hub"']
    )
    assert found == {
        "": [f"numpy is {version}, not !={version}"],
        "serve": ["no-such-package is not installed"],
        "hub": [],
    }


def test_this_environment_is_complete(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "packages: complete" in printed and "extra dev: complete" in printed
    assert "ESPnet knows encoder: lmu" in printed


def test_a_missing_base_package_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: ["no-such-package"])
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err.startswith("error: no-such-package is not installed: pip install -e .")


def test_what_espnet_itself_needs_is_looked_for(capsys, monkeypatch):
    needs = {"espnet_lmu": ["no-such-package"], "espnet": ["no-such-package", "numpy<1", 'nor-this; extra == "tts"']}
    monkeypatch.setattr(metadata, "requires", needs.__getitem__)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    version = metadata.version("numpy")
    assert f"packages: no-such-package is not installed; numpy is {version}, not <1\n" in printed


def test_without_espnet_that_is_the_problem(capsys, monkeypatch):
    def requires(name):
        if name == "espnet":
            raise metadata.PackageNotFoundError(name)
        return ["no-such-package"]

    monkeypatch.setattr(metadata, "requires", requires)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err.startswith("error: no-such-package is not installed")
