"""Models that belong to no task answer rows as those of tasks do."""

import pytest

from pipeline.serving.language_models import TextEmbedder, TextWriter
from tests.pipeline.serving.api.tiny_models import write_all
from tests.pipeline.serving.test_generate import write_classifier, write_decoder


def test_language_models_embed_and_write_as_the_server_does(byte_tokenizer, tmp_path):
    (one, other) = TextEmbedder(write_all(byte_tokenizer.directory, tmp_path / "all")["embedder"]).answer(
        [{"text": "a text"}, {"text": "a" * 500}]
    )
    assert abs(sum(value**2 for value in one["embedding"]) - 1) < 1e-5 and len(other["embedding"]) == 32
    writer = TextWriter(write_decoder(byte_tokenizer, tmp_path / "writer"))
    assert writer.answer([]) == [] and len(writer.answer([{"prompt": "a" * 100}])[0]["text"]) == 8
    with pytest.raises(ValueError, match="expected a language model"):
        TextWriter(write_classifier(byte_tokenizer, tmp_path / "classifier"))
