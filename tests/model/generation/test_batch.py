"""A batch that rows join and leave at any pass: what a pass reads, who waits for whom, and who fails."""

import dataclasses

import pytest
import torch

from model.generation.batch import Batch, Row
from model.generation.generate import generate
from tests.model.generation.test_generate import CONFIG, GPT2, GREEDY, SAMPLED, WINDOW, decoder_of, passes

LONG = {"max_seq_len": 100}


def model_of(cfg=CONFIG):
    return decoder_of(dataclasses.replace(cfg, **LONG)).double()


def written(batch: Batch, joins: dict[int, list[Row]]) -> dict[Row, list[int]]:
    """The tokens of rows that join before the pass with that number."""
    found: dict[Row, list[int]] = {}
    for number in range(10_000):
        for row in joins.pop(number, []):
            batch.join(row)
            found[row] = []
        if not batch.rows and not joins:
            return found
        for drawn in batch.step() if batch.rows else []:
            found[drawn.row] += [] if drawn.token is None else [drawn.token]
            if drawn.finish:
                batch.leave(drawn.row)
    raise AssertionError("the batch does not end")


@pytest.mark.parametrize("most_read", [None, 1, 7, 30])
@pytest.mark.parametrize("cfg", [CONFIG, GPT2, WINDOW], ids=["qwen3", "gpt2", "window"])
def test_row_writes_the_same_whenever_it_joins_and_however_its_prompt_is_divided(cfg, most_read):
    model = model_of(cfg)
    cfgs = [
        dataclasses.replace(one, max_new_tokens=n)
        for one, n in zip([GREEDY, SAMPLED] * 3, (9, 30, 4, 12, 1, 15), strict=True)
    ]
    prompts = [list(range(1, 1 + n)) for n in (3, 50, 20, 1, 31, 12)]
    rows = [Row(i, cfgs[i], i, prompts[i]) for i in range(6)]
    joins = {0: rows[:2], 1: [rows[2]], 4: [rows[3]], 5: [rows[4]], 40: [rows[5]]}
    found = written(Batch(model, 6, 100, most_read=most_read), joins)
    for row in rows:
        assert found[row] == generate(model, [row.prompt], row.cfg, row_numbers=[row.number])[0]


def test_long_prompt_is_read_between_the_steps_of_others():
    model, seen = model_of(), []
    batch = Batch(model, 3, 100, most_read=10)
    writing = Row(0, dataclasses.replace(GREEDY, max_new_tokens=50), 0, [1, 2])
    batch.join(writing)
    batch.step()
    batch.step()
    batch.join(Row(1, GREEDY, 1, list(range(1, 36))))
    seen = passes(model)
    tokens = [[drawn.row.index for drawn in batch.step()] for _ in range(8)]
    assert seen == [(1, 10), (1, 1), (1, 10), (1, 1), (1, 10), (1, 1), (1, 5), (2, 1)]
    assert tokens == [[], [0], [], [0], [], [0], [1], [0, 1]]


def test_prompts_that_come_together_are_read_in_one_pass_and_short_ones_before_a_long_one():
    model = model_of()
    batch = Batch(model, 5, 100, most_read=12)
    for index, n in enumerate((60, 4, 3, 4)):
        batch.join(Row(index, GREEDY, index, list(range(1, 1 + n))))
    seen = passes(model)
    first = [drawn.row.index for drawn in batch.step()]
    assert (sorted(first), seen) == ([1, 2, 3], [(3, 4)])


def test_row_that_fails_is_returned_with_its_error_and_the_others_go_on():
    model = model_of()
    with torch.no_grad():
        model.model.embed_tokens.weight[60] = float("nan")
    batch = Batch(model, 3, 100)
    good = Row(0, dataclasses.replace(GREEDY, max_new_tokens=5, stop_ids=(60,)), 0, [1, 2, 3])
    batch.join(good)
    batch.join(Row(1, GREEDY, 1, [60, 2]))
    drawn = batch.step()
    assert [one.error is None for one in drawn] == [True, False]
    assert "not finite at new token 1 of prompt 1" in str(drawn[1].error)
    batch.leave(drawn[1].row)
    tokens = [drawn[0].token, *(batch.step()[0].token for _ in range(4))]
    assert tokens == generate(model, [[1, 2, 3]], good.cfg)[0]
