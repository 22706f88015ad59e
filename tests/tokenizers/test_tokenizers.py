"""Tokenizers of any kind: loaded and saved alone and as a pair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_tokenizers import noise

from hafm_lightning.errors import RequestError
from hafm_lightning.tokenizers import Tokenizers, load_tokenizer, load_tokenizers, save_tokenizers
from hafm_lightning.tokenizers.offline import OfflineAcousticTokenizer, OfflineSemanticTokenizer


def test_a_pair_is_saved_and_loaded(tiny_pair: tuple[Path, Tokenizers], tmp_path: Path) -> None:
    folder, pair = tiny_pair
    assert isinstance(load_tokenizer(folder / "semantic"), OfflineSemanticTokenizer)
    assert isinstance(load_tokenizer(folder / "acoustic"), OfflineAcousticTokenizer)
    save_tokenizers(pair.semantic, pair.acoustic, tmp_path)
    loaded = load_tokenizers(tmp_path)
    assert loaded.identities() == load_tokenizers(folder).identities() == pair.identities()
    assert loaded.identities()["semantic"]["sha256"] == pair.semantic.identity.sha256
    audio = noise(1, 3200)
    assert loaded.acoustic.encode(audio).tolist() == pair.acoustic.encode(audio).tolist()


def test_a_pair_in_the_wrong_folders_is_refused(tiny_pair: tuple[Path, Tokenizers], tmp_path: Path) -> None:
    _, pair = tiny_pair
    pair.semantic.save(tmp_path / "acoustic")
    pair.acoustic.save(tmp_path / "semantic")
    with pytest.raises(RequestError, match="kind 'offline-acoustic'; semantic ones are offline-semantic, hubert"):
        load_tokenizers(tmp_path)


def test_an_unknown_kind_is_refused(tiny_pair: tuple[Path, Tokenizers], tmp_path: Path) -> None:
    _, pair = tiny_pair
    pair.semantic.save(tmp_path)
    description = json.loads((tmp_path / "tokenizer.json").read_text())
    description["identity"]["kind"] = "whisper"
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(RequestError, match="unknown kind 'whisper'; was it written by a newer version"):
        load_tokenizer(tmp_path)
