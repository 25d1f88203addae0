"""Continue texts: from prompts to new tokens, step by step, many rows at once.

In: prompts as lists of ids. Out: new ids or text, all at the end or as they come. Steps: read the prompts in one
pass; draw a token a row (sampling.py); read only that token in the next pass, because a cache holds the keys and
values of the others. Rows that are over leave the batch.

Prompts of different lengths are padded at the left, so that all rows go on at the same place. A mask hides the
padding and positions count from a row's first token: the padding changes nothing, and a row's text depends on its
prompt, the config and its own number alone (up to the rounding of floating point, which differs with the batch).

When a row has filled the context, it goes on from its newest half. Cached keys carry the positions they were made
with and so cannot slide: the whole batch is read anew, each of the other rows from where it began.

Legend: B rows in the batch, T query position, S key position, D d_model, V vocab.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from model.generation.decode import DecodeStep
from model.generation.sample_config import SampleConfig
from model.generation.sampling import draw, penalised, uniform_numbers
from model.generation.text_stream import DecodeBytes, TextStream
from model.network.decoder import Decoder
from model.network.kv_cache import KVCache
from model.network.visible import CAUSAL, Visible


def generate(
    model: Decoder | DecodeStep,
    prompts: Sequence[Sequence[int]],
    cfg: SampleConfig,
    *,
    row_numbers: Sequence[int] | None = None,
    use_cache: bool = True,
) -> list[list[int]]:
    """New ids of each row, without prompt and stop id.

    `row_numbers`: what a row draws with beside the seed, None = 0, 1, 2 ...; several samples of one prompt are that
    prompt several times. Without a cache each step reads all tokens again, with the same result, as a check.
    A Decoder's weights are laid out anew for every call, which takes as long as about 20 tokens; a DecodeStep keeps
    them, but does not see when the model is trained on.
    Raises ValueError for no prompt, an empty one, an id outside the vocabulary, a prompt longer than the context
    (unless cfg.keep_prompt_end), and stop strings, which only text has.
    """
    if cfg.stop:
        raise ValueError(f"stop={cfg.stop!r} is matched on text: call generate_text, or give stop_ids")
    rows: list[list[int]] = [[] for _ in prompts]
    for row, token in tokens(model, prompts, cfg, row_numbers=row_numbers, use_cache=use_cache):
        rows[row].append(token)
    return rows


def generate_text(
    model: Decoder | DecodeStep,
    prompts: Sequence[Sequence[int]],
    cfg: SampleConfig,
    decode_bytes: DecodeBytes,
    *,
    row_numbers: Sequence[int] | None = None,
) -> list[str]:
    """New text of each row, without prompt, stop id and stop string; otherwise as `generate`."""
    rows = [""] * len(prompts)
    for row, piece in stream_text(model, prompts, cfg, decode_bytes, row_numbers=row_numbers):
        rows[row] += piece
    return rows


def stream_text(
    model: Decoder | DecodeStep,
    prompts: Sequence[Sequence[int]],
    cfg: SampleConfig,
    decode_bytes: DecodeBytes,
    *,
    row_numbers: Sequence[int] | None = None,
) -> Iterator[tuple[int, str]]:
    """Row and piece of text, as soon as it is certain; a row's pieces together are its text in `generate_text`.

    A piece holds whole characters and no part of a stop string. Raises as `generate`, before the first piece.
    """
    texts = [TextStream(decode_bytes, cfg.stop) for _ in prompts]
    new = tokens(model, prompts, cfg, is_over=lambda row: texts[row].is_done, row_numbers=row_numbers)
    return _pieces(new, texts)


def _pieces(new: Iterator[tuple[int, int]], texts: Sequence[TextStream]) -> Iterator[tuple[int, str]]:
    for row, token in new:
        if piece := texts[row].push(token):
            yield row, piece
    for row, text in enumerate(texts):
        if piece := text.finish():
            yield row, piece


def tokens(
    model: Decoder | DecodeStep,
    prompts: Sequence[Sequence[int]],
    cfg: SampleConfig,
    *,
    is_over: Callable[[int], bool] = lambda row: False,
    row_numbers: Sequence[int] | None = None,
    use_cache: bool = True,
) -> Iterator[tuple[int, int]]:
    """Row and new id, row after row and step after step. After each one `is_over` is asked whether the row ends."""
    step = model if isinstance(model, DecodeStep) else DecodeStep(model)
    contexts = checked_prompts(prompts, cfg, step.model.cfg.vocab_size, step.model.cfg.max_seq_len)
    numbers = range(len(prompts)) if row_numbers is None else row_numbers
    if len(numbers) != len(prompts):
        raise ValueError(f"{len(numbers)} row_numbers for {len(prompts)} prompts: give one for each, or None")
    return _tokens(Batch(step, contexts, cfg.max_new_tokens, use_cache), cfg, is_over, numbers)


@torch.inference_mode()
def _tokens(
    batch: "Batch", cfg: SampleConfig, is_over: Callable[[int], bool], numbers: Sequence[int]
) -> Iterator[tuple[int, int]]:
    rows = list(range(len(numbers)))
    uniform_TB = uniform_numbers(cfg, numbers).to(batch.device)
    seen_BV = batch.tokens_seen() if cfg.repetition_penalty is not None else None
    for step in range(cfg.max_new_tokens):
        logits_BV = batch.next_logits()
        if step == 0 and not logits_BV.isfinite().all():
            raise ValueError("the model's logits are not finite: its training diverged, or its weights are damaged")
        if seen_BV is not None and cfg.repetition_penalty is not None:
            logits_BV = penalised(logits_BV, seen_BV, cfg.repetition_penalty)
        ids_B = draw(logits_BV, cfg, uniform_TB[step])
        new = ids_B.tolist()
        places = []  # of the rows that go on
        for place, (row, token) in enumerate(zip(rows, new, strict=True)):
            if token in cfg.stop_ids:
                continue
            yield row, token
            if not is_over(row):
                places.append(place)
        if not places or step == cfg.max_new_tokens - 1:
            return
        if len(places) < len(rows):
            rows, new = [rows[place] for place in places], [new[place] for place in places]
            ids_B, uniform_TB = ids_B[places], uniform_TB[:, places]
            seen_BV = seen_BV[places] if seen_BV is not None else None
            batch.keep(places)
        if seen_BV is not None:
            seen_BV.scatter_(1, ids_B.unsqueeze(1), True)
        batch.append(ids_B, new)


def checked_prompts(
    prompts: Sequence[Sequence[int]], cfg: SampleConfig, vocab_size: int, max_seq_len: int
) -> list[list[int]]:
    """The prompts as the model reads them; ValueError as `generate` says."""
    if not prompts:
        raise ValueError("no prompt was given; give a list of at least one list of token ids")
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(
                f"prompt {row} holds no token; begin with the end-of-text id to start a text from nothing"
            )
        outside = next((place for place, token in enumerate(prompt) if not 0 <= token < vocab_size), None)
        if outside is not None:
            raise ValueError(
                f"prompt {row} holds token id {prompt[outside]} at place {outside}, the model's vocabulary has"
                f" {vocab_size} tokens (0 to {vocab_size - 1}); encode it with the model's own tokenizer"
            )
        if len(prompt) > max_seq_len and not cfg.keep_prompt_end:
            raise ValueError(
                f"prompt {row} has {len(prompt)} tokens, the model reads at most {max_seq_len} (max_seq_len);"
                " shorten it, or set keep_prompt_end to read its end only"
            )
    if outside_stop := [token for token in cfg.stop_ids if not 0 <= token < vocab_size]:
        raise ValueError(f"stop_ids holds {outside_stop[0]}, the model's vocabulary has {vocab_size} tokens")
    return [[int(token) for token in prompt[-max_seq_len:]] for prompt in prompts]


class Batch:
    """The rows that are still written: their tokens, padded at the left, and the cache of what was read of them."""

    def __init__(self, step: DecodeStep, contexts: list[list[int]], n_new: int, use_cache: bool) -> None:
        self.step, self.model = step, step.model
        self.device = self.model.model.embed_tokens.weight.device
        self.contexts = contexts  # what each row's next token is drawn from, at most max_seq_len ids
        self.n_new = n_new  # steps that are still to come, at most
        self.use_cache = use_cache
        self._lay_out()

    def next_logits(self) -> Tensor:
        """Logits (B, V) float32 of the token that follows each row."""
        start, end = self.n_read, self.n_read + self.unread_BT.size(1)
        self.n_read = end
        mask_BTS, positions_BT = None, None
        if self.real_BS is not None and self.positions_BS is not None:
            mask_BTS = self.real_BS[:, None, :end] if start else prompt_mask(self.real_BS[:, :end])
            positions_BT = self.positions_BS[:, start:end]
        if start and self.cache is not None:
            mask_BS = mask_BTS[:, 0] if mask_BTS is not None else None
            positions_B = positions_BT[:, 0] if positions_BT is not None else None
            return self.step(self.unread_BT[:, 0], self.cache, mask_BS, positions_B).float()
        visible = CAUSAL if mask_BTS is None else Visible.mask(mask_BTS)
        x_BTD = self.model.trunk(self.unread_BT, visible=visible, positions_BT=positions_BT, cache=self.cache)
        return self.model.lm_head(x_BTD[:, -1]).float()

    def append(self, ids_B: Tensor, ids: Sequence[int]) -> None:
        """A token a row. `ids` are the same as Python numbers."""
        max_seq_len = self.model.cfg.max_seq_len
        self.n_new -= 1
        is_full = self.cache is None or self.n_read == self.cache.max_len
        for row, token in enumerate(ids):
            self.contexts[row].append(token)
            if len(self.contexts[row]) > max_seq_len:
                self.contexts[row] = self.contexts[row][-max(1, max_seq_len // 2) :]
                is_full = True
        if is_full:
            self._lay_out()
        else:
            self.unread_BT = ids_B.unsqueeze(1)

    def keep(self, places: Sequence[int]) -> None:
        """Only the rows at `places` stay; a token has to be appended to them next."""
        self.contexts = [self.contexts[place] for place in places]
        if self.real_BS is not None and self.positions_BS is not None:
            self.real_BS, self.positions_BS = self.real_BS[places], self.positions_BS[places]
        if self.cache is not None:
            self.cache.keep_rows(torch.tensor(places, device=self.device))

    def tokens_seen(self) -> Tensor:
        """(B, V) bool, True = the row holds the token."""
        seen_BV = torch.zeros(len(self.contexts), self.model.cfg.vocab_size, dtype=torch.bool, device=self.device)
        for row, context in enumerate(self.contexts):
            seen_BV[row, context] = True
        return seen_BV

    def _lay_out(self) -> None:
        """All contexts are to be read, from an empty cache that is as long as they and the new tokens need."""
        lengths = [len(context) for context in self.contexts]
        longest = max(lengths)
        max_len = min(longest + self.n_new - 1, self.model.cfg.max_seq_len)  # the last new token is never read
        padded = [[0] * (longest - len(context)) + context for context in self.contexts]
        self.unread_BT = torch.tensor(padded, device=self.device)
        self.n_read = 0
        self.real_BS = self.positions_BS = None  # bool, True = a token and no padding; and how many tokens before it
        if min(lengths) < longest:
            n_padding_B1 = torch.tensor([[longest - length] for length in lengths], device=self.device)
            place_S = torch.arange(max_len, device=self.device)
            self.real_BS = place_S >= n_padding_B1
            self.positions_BS = (place_S - n_padding_B1).clamp(min=0)
        self.cache = None
        if self.use_cache:
            dtype = self.model.model.embed_tokens.weight.dtype
            self.cache = KVCache(self.model.cfg, len(lengths), max_len, self.device, dtype)


def prompt_mask(real_BT: Tensor) -> Tensor:
    """(B, T, T) bool, True = may look: at itself and at earlier tokens that are no padding.

    Padding looks at itself: a query that sees nothing is not a number, and would spread by 0 x NaN.
    """
    n = real_BT.size(1)
    earlier_TS = torch.ones(n, n, dtype=torch.bool, device=real_BT.device).tril()
    itself_TS = torch.eye(n, dtype=torch.bool, device=real_BT.device)
    return (earlier_TS & real_BT[:, None, :]) | itself_TS
