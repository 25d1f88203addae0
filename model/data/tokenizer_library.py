"""Encoding of text by Hugging Face's `tokenizers`: all that tiktoken cannot run, such as WordPiece and Unigram.

In: the checked content of a tokenizer.json. Out: ids of texts. What would cut or change ids silently is taken out:
truncation, padding, and the step that adds special tokens. So are the special tokens themselves: an Unigram model
finds the piece `</s>` in a text that spells it out, which would let a text end a document. They get a space before
their name, which no word of a text contains when it reaches the model.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from model.data.offsets import Pieces, pieces_of
from model.data.tokenizer_json import added_of, model_type, vocabulary_of

HIDDEN = " "  # before the name of a special token


class LibraryEngine:
    def __init__(self, content: Mapping[str, Any]) -> None:
        from tokenizers import Tokenizer

        with _explained():
            self.tokenizer = Tokenizer.from_str(json.dumps(_without_special(content)))
        for entry in _found_in_text(content):
            if self.tokenizer.token_to_id(entry["content"]) != entry["id"]:
                raise ValueError(f"the added token {entry['content']!r} does not keep its id {entry['id']}")

    def encode_batch(self, texts: Sequence[str], n_threads: int) -> list[list[int]]:
        if n_threads == 1:
            return [self._encode([text])[0] for text in texts]
        return self._encode(texts)

    def encode_array(self, text: str) -> np.ndarray:
        return np.array(self._encode([text])[0], np.uint32)

    def encode_offsets(self, texts: Sequence[str]) -> list[Pieces]:
        with _explained():
            found = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        pieces = []
        for text, encoding in zip(texts, found, strict=True):
            offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
            pieces.append(pieces_of(text, np.array(encoding.ids, np.int64), offsets[:, 0], offsets[:, 1]))
        return pieces

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        with _explained():
            found = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """ValueError for what the library raises, which is nothing more special than Exception, or a panic."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"`tokenizers` cannot run this tokenizer ({error})") from error


def _found_in_text(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in added_of(content) if not entry.get("special")]


def _without_special(content: Mapping[str, Any]) -> dict[str, Any]:
    hidden = {entry["content"] for entry in added_of(content) if entry.get("special")}
    found = _found_in_text(content)
    model = {**content["model"], "type": model_type(content)}
    if model["type"] == "Unigram":
        names = [HIDDEN + piece if piece in hidden else piece for piece, _ in model["vocab"]]
        model["vocab"] = [[name, score] for name, (_, score) in zip(names, model["vocab"], strict=True)]
        found = [entry for entry in found if entry["content"] in names or entry["id"] >= len(names)]
    else:
        vocabulary = {HIDDEN + name if name in hidden else name: i for name, i in vocabulary_of(content).items()}
        # An added token that is not in the vocabulary would get the next free id.
        model["vocab"] = vocabulary | {entry["content"]: entry["id"] for entry in found}
        if model.get("unk_token") in hidden:
            model["unk_token"] = HIDDEN + model["unk_token"]
    if model["type"] == "BPE":
        merges = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [pair for pair in merges if hidden.isdisjoint((*pair, "".join(pair)))]
    return {
        **content,
        "model": model,
        "added_tokens": sorted(found, key=lambda entry: entry["id"]),
        "truncation": None,
        "padding": None,
        "post_processor": None,
        "decoder": None,
    }
