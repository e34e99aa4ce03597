"""What the benches set up by themselves, on a machine where nothing is there yet."""

from pathlib import Path

import pytest

from benchmarks.bench_progressive import training_texts
from benchmarks.default_model import texts


def test_training_texts_are_laid_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_corpus(cache: Path) -> texts.Corpus:
        calls.append(cache)
        return texts.Corpus(train=(texts.Document("emma", "Emma Woodhouse\n"),), search=(), test=())

    monkeypatch.setattr(texts, "load_corpus", load_corpus)
    folder = training_texts(tmp_path)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"emma.txt": "Emma Woodhouse\n"}
    assert training_texts(tmp_path) == folder
    assert calls == [tmp_path]
