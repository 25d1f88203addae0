"""Continues texts: from prompts to new tokens, step by step, many rows at once.

In: prompts as lists of ids. Out: new ids or text, all at the end or as they come. Steps (batch.py): read the prompts
in one pass; draw a token per row; read only that token in the next pass, because a cache holds the keys and values of
the others. Rows that end leave, and rows that wait for a slot take their place.

A row's text depends on its prompt, its config and its own number alone, not on its neighbours, on when it joined or
on who left (up to the rounding of floating point, which differs with the batch). When a row has filled the context,
it continues from its newest half. A row with a constraint (constraints.py) writes nothing that it does not allow.

A model may be packed (decode.py), which is faster. One in training generates as it is and is not changed.
"""

from collections.abc import Callable, Iterator, Sequence

from model.generation.batch import Batch, Row
from model.generation.constraints import Constraint, checked_constraints
from model.generation.sample_config import SampleConfig
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
    rows = [Row(*row) for row in zip(range(len(prompts)), cfgs, numbers, contexts, writings, strict=True)]
    if cache is not None and (len(rows) != 1 or cache.n_rows != 1):
        raise ValueError(f"a cache of {cache.n_rows} rows was given for {len(rows)} prompts: expected one of each")
    return _tokens(model, rows, min(n_slots or len(rows), len(rows)), is_over, use_cache, cache)


def _tokens(
    model: Decoder,
    rows: list[Row],
    n_slots: int,
    is_over: Callable[[int], bool],
    use_cache: bool,
    cache: KVCache | None,
) -> Iterator[tuple[int, int]]:
    max_len = min(max(row.n_read for row in rows), model.cfg.max_seq_len)
    batch = Batch(model, n_slots, max_len, use_cache=use_cache, cache=cache)
    waiting = rows[::-1]  # the next row is the last of those that wait
    cache = batch.slots.cache
    for slot in range(n_slots):
        batch.join(waiting.pop(), n_read=0 if cache is None else cache.lengths[slot])
    while batch.rows:
        ended = []
        for drawn in batch.step():
            if drawn.error is not None:
                raise drawn.error
            if drawn.token is not None:
                yield drawn.row.index, drawn.token
            if drawn.finish is not None or is_over(drawn.row.index):
                ended.append(drawn.row)
        for row in ended:
            if waiting:
                batch.join(waiting.pop(), instead_of=row)
            else:
                batch.leave(row)


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
