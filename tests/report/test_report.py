"""Page and RESULTS.md of a small experiment: figures, escaping, audio; what the recipe records; the cost page."""

import base64
import datetime
import io
import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
import torch

from espnet_lmu.bin.main import main
from espnet_lmu.data.kaldi_dir import write_table
from espnet_lmu.errors import UserError
from espnet_lmu.report.experiment import Experiment, _measure
from espnet_lmu.report.record import read_starts, record
from espnet_lmu.scoring.error_rate import read_texts, score, split_words
from espnet_lmu.scoring.summary import score_decoding
from espnet_lmu.training.history import read_history

REFERENCES = {"a-1": "GO <LEFT> & NOW", "a-2": "STOP", "b-1": "TURN BACK", "b-2": "ONE TWO THREE", "b-3": "GO"}
HYPOTHESES = {"a-1": "GO RIGHT", "a-2": "STOP", "b-1": "TURN BACK BACK", "b-2": "ONE TOO THREE", "b-3": "GO"}
RATE = 8000


class Page(HTMLParser):
    """The elements of a page, the text of table rows and of the elements of some classes."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.rows: list[list[str]] = []
        self.words: list[tuple[str, list[str]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "span" and attributes.get("class") in ("C", "S", "D", "I"):
            self.words.append((attributes["class"], []))
        if tag not in ("meta", "br", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if self.open[-2:] in (["span", "i"], ["span", "b"]):
            self.words[-1][1].append(data)


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe with a trained, decoded and scored experiment; its test audio is in SPHERE files."""
    monkeypatch.chdir(tmp_path)
    dump, data = tmp_path / "dump/fbank", tmp_path / "data/test"
    for name, keys in (("train_sp", ["c-1", "sp0.9-c-1", "d-1", "sp0.9-d-1"]), ("test", list(REFERENCES))):
        speakers = {key: key.rpartition("-")[0] for key in keys}
        write_table(dump / name / "utt2spk", speakers)
        write_table(dump / name / "feats_shape", {key: "9000,80" for key in keys})
    write_table(dump / "test" / "text", REFERENCES)
    time = np.arange(RATE // 2) / RATE
    (tmp_path / "audio").mkdir()
    for i, key in enumerate(REFERENCES):
        samples = 0.5 * np.sin(2 * np.pi * (300 + 100 * i) * time)
        soundfile.write(tmp_path / f"audio/{key}.sph", samples, RATE, format="NIST", subtype="PCM_16")
    write_table(data / "wav.scp", {key: f"audio/{key}.sph" for key in REFERENCES})
    experiment = tmp_path / "exp/asr_tiny"
    write_table(experiment / "decode_greedy/test/text", HYPOTHESES)
    score_decoding(dump, experiment / "decode_greedy", ["test"], None)
    (experiment / "config.yaml").write_text(
        "config: conf/tiny.yaml\nencoder: lmu\nseed: 7\nversion: '202511'\noutput_dir: exp/asr_tiny\n"
        "train_data_path_and_name_and_type: [[dump/fbank/train_sp/feats.scp, speech, kaldi_ark]]\n"
        "valid_data_path_and_name_and_type: [[dump/fbank/test/feats.scp, speech, kaldi_ark]]\n"
    )
    times = {1: datetime.timedelta(minutes=90), 2: {"__timedelta_seconds__": 5400.0}}  # of ESPnet 202511, of 202611
    stats = {
        number: {
            "train": {"time": times[number], "loss": 4.0 / number},
            "valid": {"time": datetime.timedelta(0), "loss": 5.0 / number, "cer_ctc": 0.5 / number},
        }
        for number in (1, 2)
    }
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(30, 4), "exp_avg_sq": torch.zeros(30, 4)}
    state = {"reporter": {"epoch": 2, "stats": stats}, "optimizers": [{"state": {0: moments, 1: moments}}]}
    torch.save(state, experiment / "checkpoint.pth")
    record(experiment / "train_starts.json", ["./asr.sh", "--asr_args", "--max_epoch 2"], 0, "local")
    record(experiment / "decode_greedy/decode_starts.json", ["./asr.sh", "--stage", "12"], 4, "slurm")
    return tmp_path


def test_page_shows_what_the_scorer_counted(recipe, capsys):
    assert main(["report", "exp/asr_tiny"]) == 0
    assert "exp/asr_tiny/report.html" in capsys.readouterr().out
    text = (recipe / "exp/asr_tiny/report.html").read_text()
    page = Page(text)
    assert page.open == []
    total, _ = score(*read_texts("dump/fbank/test/text", "exp/asr_tiny/decode_greedy/test/text"), split_words)
    counts = (total.correct, total.substitutions, total.deletions, total.insertions, total.errors)
    assert counts == (7, 2, 2, 1, 5)
    wer = ["test", "WER", "5", "11", *(f"{100 * count / 11:.1f}" for count in counts), "60.0"]
    assert wer in page.rows
    assert f"{total.rate:.1f} <small>%" in text
    # By speaker, the worst first.
    assert [row[:5] for row in page.rows if row[0] in ("a", "b")] == [
        ["a", "2", "5", "3", "60.0"],
        ["b", "3", "6", "2", "33.3"],
    ]
    confusions = [row for row in page.rows if "→" in row[0]]
    assert ["TWO → TOO", "1"] in confusions and len(confusions) == 2
    # Loss and error rate as curves, in the page's colours.
    assert text.count("<svg") == 2 and "var(--first)" in text and "#030303" not in text


def test_utterances_are_aligned_and_escaped(recipe):
    main(["report", "exp/asr_tiny"])
    page = Page((recipe / "exp/asr_tiny/report.html").read_text())
    # The one with most errors comes first; nothing of a transcript becomes an element.
    assert page.words[0] == ("C", ["GO", "GO"])
    first = [(mark, *words) for mark, words in page.words[:4]]
    assert {reference for _, reference, _ in first} == {"GO", "<LEFT>", "&", "NOW"}
    assert sorted(mark for mark, *_ in first) == ["C", "D", "D", "S"]
    assert ("I", ["–", "BACK"]) in page.words
    assert not any(tag == "left" for tag, _ in page.elements)


def test_audio_of_the_shown_utterances_is_in_the_page(recipe):
    main(["report", "exp/asr_tiny"])
    page = Page((recipe / "exp/asr_tiny/report.html").read_text())
    players = [attributes["src"] for tag, attributes in page.elements if tag == "audio"]
    assert len(players) == 3  # of the utterances that have errors
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(players[0].removeprefix("data:audio/flac;base64,"))))
    original, _ = soundfile.read(recipe / "audio/a-1.sph")
    assert rate == RATE and np.abs(samples - original).max() < 1e-4
    # Everything is in the file: no address, and no link but to places on the page.
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, value)


def test_segments_give_the_part_of_the_recording(recipe):
    samples, _ = soundfile.read(recipe / "audio/a-1.sph")
    soundfile.write("long.wav", np.concatenate([np.zeros(RATE), samples]), RATE)
    write_table(recipe / "data/test/wav.scp", {"long": "long.wav"})
    write_table(recipe / "data/test/segments", {key: "long 1.0 1.5" for key in REFERENCES})
    main(["report", "exp/asr_tiny"])
    page = Page((recipe / "exp/asr_tiny/report.html").read_text())
    source = next(attributes["src"] for tag, attributes in page.elements if tag == "audio")
    found, _ = soundfile.read(io.BytesIO(base64.b64decode(source.removeprefix("data:audio/flac;base64,"))))
    assert np.abs(found - samples).max() < 1e-3


def test_results_say_what_they_come_from(recipe):
    write_table(recipe / "exp/asr_tiny/decode_beam/test/text", REFERENCES)
    score_decoding(recipe / "dump/fbank", recipe / "exp/asr_tiny/decode_beam", ["test"], None)
    assert main(["report", "exp/asr_tiny", "--decoding", "decode_greedy"]) == 0
    one = (recipe / "exp/asr_tiny/decode_greedy/RESULTS.md").read_text()
    both = (recipe / "exp/asr_tiny/RESULTS.md").read_text()
    assert "|decode_greedy/test|5|11|" in one and "decode_beam" not in one
    assert "|decode_greedy/test|5|11|" in both and "|decode_beam/test|5|11|100.0|" in both
    low, high = Experiment(recipe / "exp/asr_tiny").decoding("decode_greedy").rates["wer"]["test"].interval
    assert f"|decode_greedy/test|45.5|{low:.1f}|{high:.1f}|" in one and low < 45.5 < high
    for line in (
        "|encoder|lmu|",
        "|parameters|240 (0.00 MB in FP32)|",
        "|configuration|conf/tiny.yaml|",
        "|seed|7|",
        "|training|2 epochs in 3.0 h|",
        # 2 epochs of 4 x 90 s in 3 h
        "|speed|0.1 s of audio per second of training|",
        "|train_sp|training|0.10 (at 2 speeds)|2|2|",
        f"|test|validation|{5 * 90 / 3600:.2f}|5|2|",
        f"# training\ncd {recipe} && ./asr.sh --asr_args '--max_epoch 2'\n",
        f"# decoding decode_greedy\ncd {recipe} && ./asr.sh --stage 12\n",
    ):
        assert line in one, one
    assert f"|hardware|{read_starts(recipe / 'exp/asr_tiny/train_starts.json')[0].hardware}|" in one
    assert "# decoding decode_beam: not recorded" in both


def test_without_training_state_data_and_audio_the_page_is_made_all_the_same(recipe):
    for path in ("exp/asr_tiny/checkpoint.pth", "exp/asr_tiny/config.yaml"):
        (recipe / path).unlink()
    shutil.rmtree("dump")
    shutil.rmtree("data")
    assert main(["report", "exp/asr_tiny"]) == 0
    text = (recipe / "exp/asr_tiny/report.html").read_text()
    assert "audio not found" in text and "<audio" not in text and "<svg" not in text and "By speaker" not in text


def test_scripts_without_spaces_are_reported_by_character(recipe):
    texts = {"a-1": "今天天气很好", "a-2": "明天见"}
    write_table("dump/fbank/test/text", texts)
    write_table("exp/asr_tiny/decode_greedy/test/text", texts | {"a-1": "今天天汽很好"})
    score_decoding(recipe / "dump/fbank", recipe / "exp/asr_tiny/decode_greedy", ["test"], None)
    main(["report", "exp/asr_tiny"])
    assert "<h4>CER, test</h4>" in (recipe / "exp/asr_tiny/report.html").read_text()
    assert "|decode_greedy/test|11.1|" in (recipe / "exp/asr_tiny/RESULTS.md").read_text()


def test_what_is_missing_is_one_line(recipe, capsys):
    assert main(["report", "exp/nowhere"]) == 1
    assert main(["report", "exp/asr_tiny", "--decoding", "decode_beam"]) == 1
    (recipe / "exp/empty").mkdir()
    assert main(["report", "exp/empty"]) == 1
    assert main(["report", "exp/asr_tiny", "--data_feats", "dump/fbankk"]) == 1
    (recipe / "exp/asr_tiny/checkpoint.pth").write_bytes(b"x")
    assert main(["report", "exp/asr_tiny"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors == [
        "error: exp/nowhere: no such experiment directory",
        "error: exp/asr_tiny: no scored decoding decode_beam; there are: decode_greedy",
        "error: exp/empty: no decoding with scores; run stages 12 and 13 first",
        "error: --data_feats dump/fbankk: none of the test sets is there: test",
        "error: exp/asr_tiny/checkpoint.pth: not the state of a training, or damaged; run stage 11 again",
    ]
    assert not (recipe / "exp/asr_tiny/report.html").exists()


def test_a_start_is_recorded_once_and_names_the_hardware(tmp_path):
    path = tmp_path / "starts.json"
    for arguments in (["--ngpu", "2"], ["--ngpu", "2"], ["--ngpu", "4"]):
        record(path, ["./asr.sh", *arguments], 2, "slurm")
    starts = read_starts(path)
    assert [start.command.rsplit(" && ")[1] for start in starts] == ["./asr.sh --ngpu 2", "./asr.sh --ngpu 4"]
    assert starts[0].hardware == "2 GPUs of slurm"
    record(path, ["./asr.sh"], 0, "local")
    assert read_starts(path)[-1].hardware.endswith(" cores")
    path.write_text("{}\n")
    with pytest.raises(UserError, match="starts.json: not a record of commands"):
        read_starts(path)


def test_history_of_a_training(recipe):
    history = read_history(recipe / "exp/asr_tiny")
    assert history.parameters == 240 and history.seconds == 3 * 3600
    assert [(epoch.number, epoch.train_loss, epoch.valid_loss, epoch.valid_cer) for epoch in history.epochs] == [
        (1, 4.0, 5.0, 50.0),
        (2, 2.0, 2.5, 25.0),
    ]


CONFIG = "encoder: lmu\nencoder_conf: {output_size: 8, num_blocks: 1, memory_size: 4, attention_heads: 2}\n"


def test_cost_follows_from_the_throughput(tmp_path, capsys):
    config = tmp_path / "tiny.yaml"
    config.write_text(CONFIG + "max_epoch: 10\nkeep_nbest_models: 3\n")
    entry = {"name": "tiny", "median": 0.5, "audio_seconds": 50.0, "peak_bytes": 2_000_000_000}
    comparison = {"entries": [entry, {"name": "x", "median": 1.0}], "notes": ["tiny: B=4, 50 s of audio a step"]}
    bench = {"machine": {"device": "Some GPU"}, "comparisons": [comparison]}
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    arguments = ["--speed_perturb_factors", "0.5 1.0", "--gpus", "1", "--gpus", "4", str(config)]
    assert main(["cost", "--bench", str(tmp_path / "bench.json"), *arguments]) == 0
    page = capsys.readouterr().out
    # 10 epochs of 960.9 h at two speeds, 100 s of it in a second.
    hours = 10 * 960.9 * 3 / 100
    row = next(line for line in page.splitlines() if line.startswith("| tiny"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:] == ["10", "28,827", "100", f"{hours:.1f}", f"{hours:.1f}", f"{hours / 3.6:.1f}", "2.0", "0.00"]
    assert "Throughput: Some GPU, tiny: B=4, 50 s of audio a step." in page and "90%" in page
    assert main(["cost", "--throughput", "100", *arguments]) == 0
    assert f"| {hours:.1f} |" in capsys.readouterr().out


def test_cost_names_what_it_cannot_use(tmp_path, capsys):
    config, bench = tmp_path / "tiny.yaml", tmp_path / "bench.json"
    config.write_text(CONFIG)
    bench.write_text('{"machine": {"device": "x"}, "comparisons": []}')
    for arguments, message in (
        (["--throughput", "1", "--throughput", "2"], "--throughput: given 2 times; give one for each of tiny"),
        (["--throughput", "0"], "--throughput 0: give more than 0"),
        (["--throughput", "nan"], "--throughput nan: give more than 0"),
        (["--throughput", "1"], f"{config}: max_epoch: None: give a whole number"),
        (["--bench", str(bench)], f"{bench}: no training step in it; run espnet-lmu bench --case training --json"),
        (["--bench", str(config)], f"{config}: not what espnet-lmu bench --json prints"),
        (["--throughput", "1", "--gpus", "0"], "--gpus 0: give at least 1"),
    ):
        assert main(["cost", str(config), *arguments]) == 1
        assert capsys.readouterr().err == f"error: {message}\n"


def test_speakers_may_be_named_as_copies_at_other_speeds_are(recipe):
    keys = [f"sp{i}-{j}" for i in (1, 2, 3) for j in range(4)]
    write_table(recipe / "dump/fbank/test/utt2spk", {key: key.split("-")[0] for key in keys})
    data = _measure(recipe / "dump/fbank/test", recipe)
    assert (data.utterances, data.speakers, data.speeds) == (12, 3, 1)
    write_table(recipe / "data/test/utt2speed", {"sp1.1-a-0": "1.1", "sp1.1-a-1": "1.1"})
    speakers = {"sp1.1-a-0": "sp1.1-a", "sp1.1-a-1": "sp1.1-a", "a-1": "a", "sp2-0": "sp2"}
    write_table(recipe / "dump/fbank/test/utt2spk", speakers)
    data = _measure(recipe / "dump/fbank/test", recipe)
    assert (data.utterances, data.speakers) == (3, 2)


def test_formatted_audio_may_be_gone(tmp_path):
    for name, value in (("utt2spk", "s"), ("utt2num_samples", "16000"), ("wav.scp", "gone.flac")):
        write_table(tmp_path / "test" / name, {"a": value})
    assert _measure(tmp_path / "test", tmp_path).hours is None
