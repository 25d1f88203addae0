"""Continues texts: from prompts to new tokens, step by step, many rows at once.

In: prompts as lists of ids. Out: new ids or text, all at the end or as they come. Steps: read the prompts in one
pass; draw a token per row (sampling.py); read only that token in the next pass, because a cache holds the keys and
values of the others (slots.py). Rows that end leave, and rows that wait for a slot take their place.

A row's text depends on its prompt, its config and its own number alone, not on its neighbours, on when it joined or
on who left (up to the rounding of floating point, which differs with the batch). When a row has filled the context,
it continues from its newest half. A row with a constraint (constraints.py) writes nothing that it does not allow.

A model may be packed (decode.py), which is faster. One in training generates as it is and is not changed.

Legend: B rows in the batch, V vocab.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.generation.constraints import Constraint, Writing, checked_constraints, permitted
from model.generation.sample_config import SampleConfig
from model.generation.sampling import RowSampler
from model.generation.slots import Slots
from model.generation.text_stream import DecodeBytes, TextStream
from model.network.decoder import Decoder
from model.network.kv_cache import KVCache

Constraints = Constraint | Sequence[Constraint | None] | None  # one for all rows, or one or none for each


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    cfg: SampleConfig | Sequence[SampleConfig],
    *,
    constraints: Constraints = None,
    row_numbers: Sequence[int] | None = None,
    n_slots: int | None = None,
    use_cache: bool = True,
) -> list[list[int]]:
    """New ids of each row, without prompt and stop id.

    `cfg`: one config for all rows, or one per row. `row_numbers`: what a row draws with beside the seed, None = 0,
    1, 2 ...; several samples of one prompt are that prompt several times. `n_slots`: how many rows are written at a
    time, None = all; the others wait until one ends. Without a cache each step reads all tokens again as a check,
    with the same result.
    Raises ValueError for no prompt, an empty one, an id outside the vocabulary, a prompt longer than the context
    (unless cfg.keep_prompt_end), stop strings, which only text has, logits that are not finite, and a constraint
    that max_new_tokens leaves no room for.
    """
    if stop := next((one.stop for one in configs_of(cfg, len(prompts)) if one.stop), None):
        raise ValueError(f"stop={stop!r} is matched on text: call generate_text, or give stop_ids")
    rows: list[list[int]] = [[] for _ in prompts]
    settings = {"row_numbers": row_numbers, "n_slots": n_slots, "use_cache": use_cache}
    for row, token in tokens(model, prompts, cfg, constraints=constraints, **settings):
        rows[row].append(token)
    return rows


def generate_text(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    cfg: SampleConfig | Sequence[SampleConfig],
    decode_bytes: DecodeBytes,
    *,
    constraints: Constraints = None,
    row_numbers: Sequence[int] | None = None,
) -> list[str]:
    """New text of each row, without prompt, stop id and stop string; otherwise as `generate`."""
    rows = [""] * len(prompts)
    pieces = stream_text(model, prompts, cfg, decode_bytes, constraints=constraints, row_numbers=row_numbers)
    for row, piece in pieces:
        rows[row] += piece
    return rows


def stream_text(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    cfg: SampleConfig | Sequence[SampleConfig],
    decode_bytes: DecodeBytes,
    *,
    constraints: Constraints = None,
    row_numbers: Sequence[int] | None = None,
) -> Iterator[tuple[int, str]]:
    """Row and piece of text, as soon as it is final; a row's pieces together are its text in `generate_text`.

    A piece contains whole characters and no part of a stop string. Raises as `generate`, what concerns the arguments
    before the first piece.
    """
    texts = [TextStream(decode_bytes, one.stop) for one in configs_of(cfg, len(prompts))]
    settings = {"constraints": constraints, "row_numbers": row_numbers}
    new = tokens(model, prompts, cfg, is_over=lambda row: texts[row].is_done, **settings)
    return _pieces(new, texts)


def _pieces(new: Iterator[tuple[int, int]], texts: Sequence[TextStream]) -> Iterator[tuple[int, str]]:
    for row, token in new:
        if piece := texts[row].push(token):
            yield row, piece
    for row, text in enumerate(texts):
        if piece := text.finish():
            yield row, piece


def tokens(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    cfg: SampleConfig | Sequence[SampleConfig],
    *,
    is_over: Callable[[int], bool] = lambda row: False,
    constraints: Constraints = None,
    row_numbers: Sequence[int] | None = None,
    n_slots: int | None = None,
    use_cache: bool = True,
    cache: KVCache | None = None,
) -> Iterator[tuple[int, int]]:
    """Row and new id, step by step, in any order within a step. After each, `is_over` says if the row ends.

    `cache`: of one row, for one prompt, whose first tokens it holds already, but not its last; it has room for the
    prompt and all new tokens but the last, and is left with what was read.
    """
    cfgs = configs_of(cfg, len(prompts))
    contexts = checked_prompts(prompts, cfgs, model.cfg.vocab_size, model.cfg.max_seq_len)
    numbers = range(len(prompts)) if row_numbers is None else row_numbers
    if len(numbers) != len(prompts):
        raise ValueError(f"{len(numbers)} row_numbers for {len(prompts)} prompts: give one for each, or None")
    if n_slots is not None and n_slots < 1:
        raise ValueError(f"n_slots={n_slots} must be at least 1, or None for as many as there are prompts")
    of_rows = checked_constraints(constraints, [one.max_new_tokens for one in cfgs], [bool(one.stop) for one in cfgs])
    writings = [None if one is None else one.begin() for one in of_rows]
    rows = [_Row(*row) for row in zip(range(len(prompts)), cfgs, numbers, contexts, writings, strict=True)]
    if cache is not None and (len(rows) != 1 or cache.n_rows != 1):
        raise ValueError(f"a cache of {cache.n_rows} rows was given for {len(rows)} prompts: expected one of each")
    return _tokens(model, rows, min(n_slots or len(rows), len(rows)), is_over, use_cache, cache)


@dataclass
class _Row:
    index: int  # in the list of prompts
    cfg: SampleConfig
    number: int
    prompt: list[int]
    writing: Writing | None = None  # what it wrote under its constraint
    n_new: int = 0

    @property
    def n_read(self) -> int:
        """Tokens that are read of it at most; the last new token never is."""
        return len(self.prompt) + self.cfg.max_new_tokens - 1

    @property
    def may_write(self) -> tuple[Writing | None, int, tuple[int, ...]]:
        return self.writing, self.cfg.max_new_tokens - self.n_new, self.cfg.stop_ids

    def goes_on(self, token: int) -> bool:
        """Takes a new token; whether another may follow."""
        self.n_new += 1
        if self.writing is not None:
            self.writing.push(token)
            if not self.writing.may_continue:
                return False
        return self.n_new < self.cfg.max_new_tokens


@torch.inference_mode()
def _tokens(
    model: Decoder,
    rows: list[_Row],
    n_slots: int,
    is_over: Callable[[int], bool],
    use_cache: bool,
    cache: KVCache | None,
) -> Iterator[tuple[int, int]]:
    max_len = min(max(row.n_read for row in rows), model.cfg.max_seq_len)
    slots = Slots(model, n_slots, max_len, use_cache=use_cache, cache=cache)
    sampler = RowSampler(n_slots, model.cfg.vocab_size, slots.device)
    waiting, written = rows[::-1], []  # the next row is the last of those that wait

    def join(slot: int, n_read: int = 0) -> None:
        row = waiting.pop()
        written[slot : slot + 1] = [row]
        slots.join(slot, row.prompt, n_read)
        sampler.join(slot, row.cfg, row.number, row.prompt)

    for slot in range(n_slots):
        join(slot, 0 if cache is None else cache.lengths[slot])
    while written:
        logits_BV = slots.next_logits()
        ids_B = sampler.draw(permitted(logits_BV, [row.may_write for row in written]))
        ids = _checked(ids_B, logits_BV, written)
        ended = []
        for slot, (row, token) in enumerate(zip(written, ids, strict=True)):
            if token not in row.cfg.stop_ids:
                goes_on = row.goes_on(token)
                yield row.index, token
                if goes_on and not is_over(row.index):
                    continue
            ended.append(slot)
        slots.append(ids, ids_B)
        for slot in reversed(ended):
            if waiting:
                join(slot)
                continue
            slots.leave(slot)
            sampler.leave(slot)
            written[slot] = written[-1]
            written.pop()


def _checked(ids_B: Tensor, logits_BV: Tensor, rows: Sequence[_Row]) -> list[int]:
    """The drawn ids on the host, by the only transfer of a step. Raises ValueError if logits are not finite."""
    # A NaN or an infinity stays one in the sum. Float64 holds every id exactly.
    ids, sums = torch.stack([ids_B.double(), logits_BV.sum(dim=-1, dtype=torch.float64)]).tolist()
    if not all(map(math.isfinite, sums)):
        row = next(row for row, total in zip(rows, sums, strict=True) if not math.isfinite(total))
        raise ValueError(
            f"the model's logits are not finite at new token {row.n_new + 1} of prompt {row.index}: its training"
            " diverged, or its weights are damaged; take an earlier checkpoint"
        )
    return [int(token) for token in ids]


def configs_of(cfg: SampleConfig | Sequence[SampleConfig], n_prompts: int) -> list[SampleConfig]:
    cfgs = [cfg] * n_prompts if isinstance(cfg, SampleConfig) else list(cfg)
    if len(cfgs) != n_prompts:
        raise ValueError(f"{len(cfgs)} configs for {n_prompts} prompts: give one for each, or one for all")
    return cfgs


def checked_prompts(
    prompts: Sequence[Sequence[int]], cfgs: Sequence[SampleConfig], vocab_size: int, max_seq_len: int
) -> list[list[int]]:
    """The prompts as the model reads them. Raises ValueError as `generate`."""
    if not prompts:
        raise ValueError("no prompt was given; give a list of at least one list of token ids")
    for row, (prompt, cfg) in enumerate(zip(prompts, cfgs, strict=True)):
        if not len(prompt):
            raise ValueError(
                f"prompt {row} holds no token; begin with the end-of-text id to start a text from nothing"
            )
        outside = next((index for index, token in enumerate(prompt) if not 0 <= token < vocab_size), None)
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
