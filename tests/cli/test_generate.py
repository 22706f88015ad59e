"""`generate` as a user meets it: files, folders, records, and every wrong request answered in a few lines."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_band import TinyBand, sing

from hafm_lightning.audio import write_audio
from hafm_lightning.cli import main
from hafm_lightning.cli.generate import find_vocals, output_folders
from hafm_lightning.kernels.cpu import processor


@pytest.fixture
def vocal(tmp_path: Path) -> Path:
    path = tmp_path / "vocal.wav"
    write_audio(path, sing(0.2, 44100))
    return path


@pytest.fixture
def model(live_band: TinyBand) -> list[str]:
    files = {"semantic": live_band.semantic, "coarse": live_band.coarse, "fine": live_band.fine}
    return [word for role, path in files.items() for word in (f"--{role}", str(path))]


def generate(*words: object) -> int:
    return main(["generate", *map(str, words)])


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The answer to a wrong request: exit code 2, at most five lines, no traceback."""
    capsys.readouterr()
    assert generate(*words) == 2
    answer = capsys.readouterr().err
    lines = [line for line in answer.splitlines() if line.startswith("error") or "elapsed" not in line]
    assert 1 <= len(lines) <= 5
    assert "Traceback" not in answer
    return answer


def test_one_vocal_becomes_three_files(
    vocal: Path, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert generate("--vocal", vocal, "--out", out, *model, "--seed", 4) == 0
    assert sorted(path.name for path in out.iterdir()) == ["instrumental.wav", "mix.wav", "take.json"]
    sound, rate_hz = soundfile.read(out / "instrumental.wav")
    assert (len(sound), rate_hz) == (8820, 44100)
    assert np.abs(sound).max() > 0.01
    printed = json.loads(capsys.readouterr().out)
    assert printed["seed"] == 4
    assert printed["real_time_factor"] > 0


@pytest.mark.cpu
def test_a_precision_that_is_not_to_be_had_is_told_in_one_line(
    vocal: Path,
    model: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processor, "has", lambda operation: False)
    for precision, expected in (("int8", 1), ("bf16", 1), ("fp32", 0), ("auto", 0)):
        assert generate("--vocal", vocal, "--out", tmp_path / precision, *model, "--precision", precision) == 0
        lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line.lower()]
        assert len(lines) == expected, lines
        assert all(line.startswith(f"warning: precision {precision}: this processor has no") for line in lines)
    assert generate("--take", tmp_path / "int8" / "take.json", "--out", tmp_path / "again") == 0
    assert "warning" not in capsys.readouterr().err, "a take is repeated as it was made"


def test_a_folder_of_vocals_becomes_a_folder_each(tmp_path: Path, model: list[str]) -> None:
    vocals = tmp_path / "vocals"
    for name, seconds in (("a.wav", 0.3), ("deeper/b.flac", 0.5)):
        (vocals / name).parent.mkdir(parents=True, exist_ok=True)
        write_audio(vocals / name, sing(seconds, 24000))
    (vocals / "notes.txt").write_text("not a vocal")
    out = tmp_path / "out"
    assert generate("--vocal", vocals, "--out", out, *model, "--batch-size", 2) == 0
    assert soundfile.info(out / "a" / "mix.wav").frames == 7200
    assert soundfile.info(out / "b" / "mix.wav").frames == 12000


def test_one_bad_vocal_does_not_stop_the_others(
    tmp_path: Path, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    vocals = tmp_path / "vocals"
    vocals.mkdir()
    (vocals / "a.wav").write_bytes(b"no sound")
    write_audio(vocals / "b.wav", sing(0.3, 24000))
    assert generate("--vocal", vocals, "--out", tmp_path / "out", *model) == 1
    answer = capsys.readouterr().err
    assert "1 of 2" in answer
    assert "a.wav" in answer
    assert (tmp_path / "out" / "b" / "mix.wav").is_file()


def test_a_bad_vocal_takes_no_other_of_its_batch_with_it(
    tmp_path: Path, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    vocals = tmp_path / "vocals"
    for name in ("a", "c"):
        write_audio(vocals / f"{name}.wav", sing(0.2, 24000))
    (vocals / "b.wav").write_bytes(b"")
    assert generate("--vocal", vocals, "--out", tmp_path / "out", *model, "--batch-size", 3) == 1
    said = capsys.readouterr()
    assert [Path(json.loads(line)["folder"]).name for line in said.out.splitlines()] == ["a", "c"]
    failure = said.err[said.err.index("failed:") :].splitlines()
    assert len(failure) == 2
    assert "1 of 3" in failure[0]
    assert "b.wav" in failure[1]
    for name in "acdefg":
        (vocals / f"{name}.wav").write_bytes(b"")
    answer = refusal(capsys, "--vocal", vocals, "--out", tmp_path / "out", *model)
    assert "no vocal could be accompanied" in answer
    assert "and 4 more" in answer


def test_a_take_that_cannot_be_saved_does_not_stop_the_others(
    tmp_path: Path, model: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        write_audio(tmp_path / "vocals" / f"{name}.wav", sing(0.2, 24000))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b").write_text("a file is in the way")
    assert generate("--vocal", tmp_path / "vocals", "--out", tmp_path / "out", *model) == 1
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2
    assert f"{tmp_path / 'out' / 'b'}" in said.err

    written = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if len(data) > 9000:
            written(path, data[:100])
            raise OSError(28, "No space left on device")
        return written(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    answer = refusal(capsys, "--vocal", tmp_path / "vocals" / "a.wav", "--out", tmp_path / "full", *model)
    assert "No space left on device" in answer
    assert str(tmp_path / "full") in answer
    assert list((tmp_path / "full").iterdir()) == []


def test_a_folder_twice_with_the_takes_inside_has_as_many_takes(
    tmp_path: Path, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    vocals = tmp_path / "vocals"
    for name in ("a.wav", "mix.wav", "._a.wav", ".hidden/c.wav", "deeper/._b.wav"):
        (vocals / name).parent.mkdir(parents=True, exist_ok=True)
        write_audio(vocals / name, sing(0.2, 24000))
    for _ in range(2):
        capsys.readouterr()
        assert generate("--vocal", vocals, "--out", vocals / "out", *model) == 0
        said = capsys.readouterr()
        assert sorted(Path(json.loads(line)["folder"]).name for line in said.out.splitlines()) == ["a", "mix"]
    assert "skipped 3 hidden files and 4 files of takes" in said.err
    assert generate("--vocal", vocals / "._a.wav", "--out", tmp_path / "named", *model) == 0  # named: it is a vocal


@pytest.mark.parametrize(
    "name", ["...wav", "..wav", "....flac", ". .wav", "-leading.wav", "CON.wav", "x\\y.wav", "\n.wav"]
)
def test_no_name_of_a_vocal_leads_out_of_the_output(name: str, tmp_path: Path) -> None:
    vocals = [tmp_path / "in" / name, tmp_path / "in" / "plain.wav", tmp_path / "other" / "PLAIN.wav"]
    folders = output_folders(vocals, tmp_path / "out")
    assert all(folder.parent == tmp_path / "out" for folder in folders.values())
    assert all(folder.resolve().parent == (tmp_path / "out").resolve() for folder in folders.values())
    assert len({folder.name.casefold() for folder in folders.values()}) == 3


def test_a_name_that_looks_like_an_option_works_or_gets_a_hint(
    tmp_path: Path, model: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-leading.wav", "--out.wav"):
        write_audio(tmp_path / name, sing(0.2, 24000))
        answer = refusal(capsys, "--out", "out", *model, "--vocal", name)
        assert f"--vocal={name}" in answer
        assert f"./{name}" in answer
    assert generate(f"--vocal={name}", "--vocal", "./-leading.wav", "--out", "out", *model) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"-leading", "--out"}


def test_a_name_that_is_no_text_here_is_shown_readably(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    answer = refusal(capsys, "--vocal", tmp_path / "s\udcc3\udca6ng.wav", "--out", tmp_path / "out", "--model", "x")
    assert "s\u00e6ng.wav" in answer


def test_modes_of_files_follow_the_umask(vocal: Path, model: list[str], tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        for umask, mode in ((0o027, 0o640), (0o077, 0o600), (0o022, 0o644)):
            os.umask(umask)
            out = tmp_path / f"{umask}"
            assert generate("--vocal", vocal, "--out", out, *model) == 0
            assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {mode}
    finally:
        os.umask(before)


def test_a_take_of_an_earlier_format_is_refused_in_a_line(
    vocal: Path, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("--vocal", vocal, "--out", tmp_path / "out", *model) == 0
    record = json.loads((tmp_path / "out" / "take.json").read_text())
    old = tmp_path / "old.json"
    old.write_text(json.dumps(record | {"format": 1}))
    answer = refusal(capsys, "--take", old, "--out", tmp_path / "again")
    assert len(answer.splitlines()) == 1
    assert "format 1 is of an earlier version" in answer


RECORD_CHANGES = (
    [("format", value) for value in (None, "2", 2.5, True, 10**30, [], {})]
    + [
        (key, value)
        for key in ("batch", "settings", "model", "machine", "outputs", "settings.mix", "batch.vocals", "model.origin")
        for value in (None, "x", 3, [], {})
        if (key, value) not in (("outputs", {}), ("settings.mix", {}), ("model.origin", {}))
    ]
    + [
        (key, value)
        for key in ("settings.guidance", "settings.temperature", "settings.overlap_s", "machine.threads", "batch.index")
        for value in (None, "x", -5, 10**400, [], True)
    ]
    + [
        ("machine.threads", 100_000),
        ("machine.threads", 0),
        ("batch.index", 1),
        ("batch.seeds", []),
        ("batch.seeds", ["0"]),
        ("settings.stages", 4),
        ("settings.top_k", 0),
        ("settings.top_p", 7.0),
        ("settings.mix.gain_db", 1e6),
        ("settings.mix.rate_hz", 1),
        ("machine.device", "abacus"),
        ("machine.device", "meta"),
        ("machine.precision", "fp7"),
        ("settings.style", "polka"),
    ]
)


def test_every_damaged_take_is_refused(
    vocal: Path, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("--vocal", vocal, "--out", tmp_path / "out", *model) == 0
    whole = (tmp_path / "out" / "take.json").read_text()
    damaged = tmp_path / "damaged.json"
    for key, value in RECORD_CHANGES:
        record = json.loads(whole)
        *path, last = key.split(".")
        place = record
        for part in path:
            place = place[part]
        place[last] = value
        damaged.write_text(json.dumps(record))
        capsys.readouterr()
        assert generate("--take", damaged, "--out", tmp_path / "again") == 2, (key, value)
        answer = capsys.readouterr().err
        assert len(answer.splitlines()) <= 5, (key, value, answer)
        assert "Traceback" not in answer
    for text in ("", "nonsense", whole[:200], "[" * 100_000, '{"format": ' + "9" * 10_000 + "}", "\x00", "null"):
        damaged.write_text(text)
        assert generate("--take", damaged, "--out", tmp_path / "again") == 2, text[:30]
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_recorded_take_comes_out_bit_for_bit(
    vocal: Path, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    assert generate("--vocal", vocal, "--out", first, *model, "--seed", 9, "--guidance", 1.5, "--gain-db", 2) == 0
    assert generate("--take", first / "take.json", "--out", again) == 0
    assert "identical" in capsys.readouterr().err
    for name in ("instrumental.wav", "mix.wav"):
        assert (first / name).read_bytes() == (again / name).read_bytes()

    record = json.loads((first / "take.json").read_text())
    record["seed"] = record["batch"]["seeds"][0] = 10
    (first / "take.json").write_text(json.dumps(record))
    assert generate("--take", first / "take.json", "--out", tmp_path / "third") == 1  # a comparison that can fail


def test_a_take_of_a_batch_comes_out_bit_for_bit(tmp_path: Path, model: list[str]) -> None:
    for name, seconds in (("a", 0.3), ("b", 0.5)):
        write_audio(tmp_path / "vocals" / f"{name}.wav", sing(seconds, 24000))
    assert generate("--vocal", tmp_path / "vocals", "--out", tmp_path / "out", *model, "--batch-size", 2) == 0
    assert generate("--take", tmp_path / "out" / "b" / "take.json", "--out", tmp_path / "again") == 0
    assert (tmp_path / "out" / "b" / "mix.wav").read_bytes() == (tmp_path / "again" / "mix.wav").read_bytes()


def test_a_take_is_not_repeated_with_another_vocal_or_model(
    vocal: Path, model: list[str], live_band: TinyBand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert generate("--vocal", vocal, "--out", out, *model) == 0
    record = json.loads((out / "take.json").read_text())
    record["model"]["stages"]["fine"]["sha256"] = "0" * 64
    other = tmp_path / "other.json"
    other.write_text(json.dumps(record))
    assert "weights" in refusal(capsys, "--take", other, "--out", tmp_path / "again")
    write_audio(vocal, sing(0.2, 44100, seed=1))
    assert "has changed" in refusal(capsys, "--take", out / "take.json", "--out", tmp_path / "again")
    vocal.unlink()
    assert "no longer exists" in refusal(capsys, "--take", out / "take.json", "--out", tmp_path / "again")
    other.write_text("[]")
    assert "not a take" in refusal(capsys, "--take", other, "--out", tmp_path / "again")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--guidance", "-1"], "guidance"),
        (["--top-k", "0"], "top_k"),
        (["--temperature", "-1"], "temperature"),
        (["--top-p", "2"], "top_p"),
        (["--stages", "4"], "--stages"),
        (["--batch-size", "0"], "--batch-size"),
        (["--rate-hz", "10"], "rate_hz"),
        (["--guidence", "1"], "--guidence"),
        (["--semantic", "/nowhere/s.ckpt"], "/nowhere/s.ckpt"),
        (["--model", "/nowhere/model"], "--model"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_wrong_options_are_named(
    vocal: Path, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], names: str
) -> None:
    answer = refusal(capsys, "--vocal", vocal, "--out", tmp_path / "out", *model, *words)
    assert names in answer
    assert not (tmp_path / "out" / "mix.wav").exists()


def test_wrong_vocals_are_named(model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {"silent.wav": np.zeros(24000), "nan.wav": np.full(2400, np.nan), "empty.wav": np.zeros(0)}
    for name, samples in cases.items():
        soundfile.write(tmp_path / name, samples.astype(np.float32), 24000, subtype="FLOAT")
        assert name in refusal(capsys, "--vocal", tmp_path / name, "--out", tmp_path / "out", *model)
    assert "nobody.wav" in refusal(capsys, "--vocal", tmp_path / "nobody.wav", "--out", tmp_path / "out", *model)
    (tmp_path / "none").mkdir()
    assert "none" in refusal(capsys, "--vocal", tmp_path / "none", "--out", tmp_path / "out", *model)
    assert not (tmp_path / "out").exists()


def test_a_tiny_vocal_and_a_high_rate_are_fine(model: list[str], tmp_path: Path) -> None:
    write_audio(tmp_path / "short.wav", sing(0.01, 24000))
    write_audio(tmp_path / "high.wav", sing(0.2, 96000, channels=2))
    assert generate("--vocal", tmp_path / "short.wav", "--vocal", tmp_path / "high.wav", "--out", tmp_path, *model) == 0
    assert soundfile.info(tmp_path / "short" / "mix.wav").frames == 240
    assert soundfile.info(tmp_path / "high" / "mix.wav").channels == 2


def test_a_place_that_cannot_be_written_is_refused_first(
    vocal: Path, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "--out" in refusal(capsys, "--vocal", vocal, "--out", tmp_path / "file" / "out", *model)


def test_vocals_of_one_name_get_folders_of_different_names(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "take.wav").write_bytes(b"")
    vocals = find_vocals([tmp_path / "x", tmp_path / "y" / "take.wav", tmp_path / "x"])
    assert [folder.name for folder in output_folders(vocals, tmp_path).values()] == ["take", "take-2"]


def test_a_model_must_be_named_once(
    vocal: Path, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "name a model" in refusal(capsys, "--vocal", vocal, "--out", tmp_path / "out")
    assert "two models" in refusal(capsys, "--vocal", vocal, "--out", tmp_path / "out", *model, "--model", tmp_path)
    assert "--vocal" in refusal(capsys, "--out", tmp_path / "out", *model)
