"""Predictors of the models of models.toml, which belong to no task: a decoder writes, an encoder embeds.

In: the folder of a Checkpoint, and rows of inputs. Out: an answer per row, so that MLflow serves these models as it
serves those of tasks. This file obeys the rules of predictor.py: its classes become a part of registered models.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pipeline.serving.predictor import Predictor


class TextWriter(Predictor):
    """What a decoder writes after each prompt, always the same: text i is drawn with the seed 0 and the number i."""

    inputs: ClassVar = {"prompt": "string"}
    outputs: ClassVar = {"text": "string"}
    MOST_NEW_TOKENS: ClassVar = 100

    def load_network(self, directory: Path) -> Any:
        from model.network.registry import load_decoder

        return load_decoder(directory)

    def examine(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Of a prompt that is longer than the model reads the end is read."""
        from model.data.examples import valid
        from model.generation.generate import generate_text
        from model.generation.sample_config import SampleConfig

        if not rows:
            return []
        tokenizer, context = self.tokenizer, self.model.cfg.max_seq_len
        n_new = min(self.MOST_NEW_TOKENS, max(1, context // 2))
        texts = tokenizer.encode_batch([valid(str(row["prompt"])) for row in rows])
        prompts = [[*tokenizer.opening, *ids][-(context - n_new) :] or [tokenizer.end_of_text] for ids in texts]
        cfg = SampleConfig(max_new_tokens=n_new, stop_ids=tuple(sorted(tokenizer.stops)))
        return [{"text": text} for text in generate_text(self.model, prompts, cfg, tokenizer.decode_bytes)]


class TextEmbedder(Predictor):
    """The vector of each text, of length 1; the dot product of two is their likeness."""

    inputs: ClassVar = {"text": "string"}
    outputs: ClassVar = {"embedding": ["double"]}

    def load_network(self, directory: Path) -> Any:
        from model.network.registry import load_encoder

        return load_encoder(directory)

    def examine(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        from model.data.examples import valid
        from model.generation.embed import embed

        if not rows:
            return []
        vectors_ND = embed(self.model, self.tokenizer, [valid(str(row["text"])) for row in rows])
        return [{"embedding": row.tolist()} for row in vectors_ND]
