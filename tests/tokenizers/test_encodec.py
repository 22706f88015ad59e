"""EnCodec tokens: shapes, refusals, and equality with the `encodec` package where it can be imported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_tokenizers import fill_codebooks, noise, save_encodec, save_hubert

from hafm_lightning.errors import RequestError
from hafm_lightning.tokenizers import load_tokenizer
from hafm_lightning.tokenizers.encodec import EncodecTokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encodec")
    save_encodec(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> EncodecTokenizer:
    return EncodecTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("frames", [1, 10, 750])
def test_shapes_there_and_back(tokenizer: EncodecTokenizer, frames: int) -> None:
    codes = tokenizer.encode(noise(1, frames * 320))
    assert codes.shape == (1, 8, frames)
    assert codes.dtype == torch.int64
    assert int(codes.min()) >= 0
    assert int(codes.max()) < 1024
    sound = tokenizer.decode(codes)
    assert sound.shape == (1, frames * 320)
    assert sound.dtype == torch.float32


def test_codes_are_not_all_the_same(tokenizer: EncodecTokenizer) -> None:
    codes = tokenizer.encode(noise(1, 24000))
    assert all(len(codes[0, level].unique()) > 5 for level in range(8))


def test_codes_are_those_of_a_residual_quantizer(tokenizer: EncodecTokenizer, folder: Path) -> None:
    from transformers import EncodecModel

    model = EncodecModel.from_pretrained(folder).eval()
    audio = noise(1, 3200)
    residual = model.encoder(audio[None])[0].T.double()
    for level, ids in enumerate(tokenizer.encode(audio)[0]):
        book = model.quantizer.layers[level].codebook.embed.double()
        distance = torch.cdist(residual, book)
        chosen = distance.gather(1, ids[:, None])[:, 0]
        torch.testing.assert_close(chosen, distance.min(dim=1).values, atol=1e-5, rtol=1e-5)
        residual = residual - book[ids]


def test_fewer_codebooks_decode_to_the_sum_of_those(tokenizer: EncodecTokenizer, folder: Path) -> None:
    from transformers import EncodecModel

    model = EncodecModel.from_pretrained(folder).eval()
    codes = tokenizer.encode(noise(1, 3200))
    for count in (1, 4, 8):
        books = [model.quantizer.layers[level].codebook.embed[codes[0, level]] for level in range(count)]
        expected = model.decoder(torch.stack(books).sum(dim=0).T[None])[0]
        torch.testing.assert_close(tokenizer.decode(codes[:, :count]), expected, atol=1e-5, rtol=1e-4)


def test_a_clip_does_not_depend_on_its_batch(tokenizer: EncodecTokenizer) -> None:
    audio = noise(3, 6400, seed=4)
    codes = tokenizer.encode(audio)
    for row in range(3):
        assert torch.equal(codes[row], tokenizer.encode(audio[row : row + 1])[0])
    assert torch.equal(tokenizer.decode(codes)[1:2], tokenizer.decode(codes[1:2]))


def test_saved_by_reference_with_weights_and_loaded(tokenizer: EncodecTokenizer, tmp_path: Path) -> None:
    audio = noise(1, 6400, seed=6)
    tokenizer.save(tmp_path / "reference")
    assert not (tmp_path / "reference" / "model").exists()
    tokenizer.save(tmp_path / "whole", include_weights=True)
    for name in ("reference", "whole"):
        loaded = load_tokenizer(tmp_path / name)
        assert loaded.identity == tokenizer.identity
        assert torch.equal(loaded.encode(audio), tokenizer.encode(audio))
    loaded.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").identity == tokenizer.identity


def test_weights_are_added_to_a_folder_saved_without(tokenizer: EncodecTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "t")
    tokenizer.save(tmp_path / "t", include_weights=True)
    assert (tmp_path / "t" / "model" / "model.safetensors").is_file()
    tokenizer.save(tmp_path / "t")
    assert (tmp_path / "t" / "model" / "model.safetensors").is_file()


def test_other_weights_are_refused(tokenizer: EncodecTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "t")
    other = save_encodec(tmp_path / "other")
    fill_codebooks(other, seed=1)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(RequestError, match="name the weights it was made with"):
        EncodecTokenizer.load(tmp_path / "t", weights=tmp_path / "other")


def test_weights_that_moved_are_found_by_name(tmp_path: Path) -> None:
    save_encodec(tmp_path / "old")
    tokenizer = EncodecTokenizer.from_pretrained(tmp_path / "old")
    tokenizer.save(tmp_path / "t")
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.raises(RequestError, match="does not exist"):
        EncodecTokenizer.load(tmp_path / "t")
    assert EncodecTokenizer.load(tmp_path / "t", weights=tmp_path / "new").identity == tokenizer.identity


def test_models_that_are_not_the_24_khz_one_are_refused(tmp_path: Path) -> None:
    save_encodec(tmp_path / "zeros", filled=False)
    with pytest.raises(RequestError, match="codebook 0 is all zeros"):
        EncodecTokenizer.from_pretrained(tmp_path / "zeros")
    save_encodec(tmp_path / "48khz", sampling_rate=48000, target_bandwidths=[3.0, 6.0])
    with pytest.raises(RequestError, match="sampling_rate is 48000, not 24000"):
        EncodecTokenizer.from_pretrained(tmp_path / "48khz")
    save_encodec(tmp_path / "narrow", target_bandwidths=[1.5, 3.0])
    with pytest.raises(RequestError, match=r"6\.0 kb/s is not among"):
        EncodecTokenizer.from_pretrained(tmp_path / "narrow")
    save_hubert(tmp_path / "hubert")
    with pytest.raises(RequestError, match="type 'hubert', expected 'encodec'"):
        EncodecTokenizer.from_pretrained(tmp_path / "hubert")
    with pytest.raises(RequestError, match="not reachable"):
        EncodecTokenizer.from_pretrained("nobody/no-such-encodec")


def test_bad_audio_and_codes_are_refused(tokenizer: EncodecTokenizer) -> None:
    with pytest.raises(ValueError, match="multiple of 320"):
        tokenizer.encode(torch.zeros(1, 100))
    with pytest.raises(ValueError, match="int64 codes"):
        tokenizer.decode(torch.zeros(1, 9, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"outside 0\.\.1023"):
        tokenizer.decode(torch.full((1, 8, 5), 1024))
    with pytest.raises(ValueError, match="int64 codes"):
        tokenizer.decode(torch.zeros(1, 8, 5))


def test_the_encodec_package_gives_the_same_bits(tmp_path: Path) -> None:
    try:
        import encodec  # noqa: F401
    except (ImportError, OSError) as error:
        pytest.skip(f"the encodec package cannot be imported here: {' '.join(str(error).split())[:100]}")
    from transformers import EncodecConfig, EncodecModel

    model = EncodecModel(EncodecConfig()).eval()  # the published size, random weights
    fill_codebooks(model)
    ours = EncodecTokenizer(model, origin={"source": "random", "revision": None})
    theirs = EncodecTokenizer(model, origin={"source": "random", "revision": None}, backend="encodec")
    assert ours.identity == theirs.identity
    audio = noise(2, 24000)
    codes = ours.encode(audio)
    assert len(codes[:, 7].unique()) > 20
    assert torch.equal(codes, theirs.encode(audio))
    for count in (4, 8):
        assert torch.equal(ours.decode(codes[:, :count]), theirs.decode(codes[:, :count]))


def test_a_missing_encodec_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "encodec", None)
    with pytest.raises(RequestError, match="encodec package cannot be imported"):
        EncodecTokenizer.from_pretrained(folder, backend="encodec")
