"""What a token is drawn from, against transformers' logits processors, and how it is drawn."""

import itertools

import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from model.generation import sampling
from model.generation.sample_config import SampleConfig
from model.generation.sampling import RowSampler, penalised, rule_of, uniform_numbers, values_of

N_ROWS, VOCAB = 5, 700  # more tokens than top_p looks at first


@pytest.fixture
def logits_BV() -> torch.Tensor:
    """From nearly flat to nearly certain, so that top_p keeps hundreds of tokens in some rows and one in others."""
    spread_B1 = torch.tensor([[0.05], [0.5], [2.0], [5.0], [20.0]])
    return torch.randn(N_ROWS, VOCAB, generator=torch.Generator().manual_seed(0)) * spread_B1


def config(**settings) -> SampleConfig:
    return SampleConfig(**({"temperature": 1.0, "top_k": None} | settings))


def probabilities(logits_BV: torch.Tensor, cfg: SampleConfig) -> torch.Tensor:
    return sampling.probabilities(logits_BV, rule_of(cfg), values_of([cfg] * len(logits_BV)))


def draw(logits_BV: torch.Tensor, cfg: SampleConfig, uniform_B: torch.Tensor) -> torch.Tensor:
    return sampling.draw(logits_BV, rule_of(cfg), values_of([cfg] * len(logits_BV)), uniform_B)


def of_transformers(logits_BV: torch.Tensor, cfg: SampleConfig, ids_BT: torch.Tensor) -> torch.Tensor:
    """Probabilities after the processors that transformers' `generate` makes of the same settings, in its order."""
    processors = LogitsProcessorList()
    if cfg.repetition_penalty is not None:
        processors.append(RepetitionPenaltyLogitsProcessor(cfg.repetition_penalty))
    processors.append(TemperatureLogitsWarper(cfg.temperature))
    if cfg.top_k is not None:
        processors.append(TopKLogitsWarper(cfg.top_k))
    if cfg.top_p is not None:
        processors.append(TopPLogitsWarper(cfg.top_p))
    if cfg.min_p is not None:
        processors.append(MinPLogitsWarper(cfg.min_p))
    return processors(torch.LongTensor(ids_BT), torch.FloatTensor(logits_BV)).softmax(dim=-1)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p", "penalty"),
    list(itertools.product((0.3, 1.0, 1.7), (None, 1, 40), (None, 0.3, 0.95), (None, 0.2), (None, 1.3, 0.7))),
)
def test_probabilities_equal_those_of_transformers(logits_BV, temperature, top_k, top_p, min_p, penalty):
    cfg = config(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty)
    ids_BT = torch.randint(0, VOCAB, (N_ROWS, 300), generator=torch.Generator().manual_seed(1))
    seen_BV = torch.zeros(N_ROWS, VOCAB, dtype=torch.bool).scatter(1, ids_BT, True)
    ours_BV = probabilities(
        penalised(logits_BV, seen_BV, torch.full((N_ROWS, 1), penalty)) if penalty is not None else logits_BV, cfg
    )
    theirs_BV = of_transformers(logits_BV, cfg, ids_BT)
    torch.testing.assert_close(ours_BV, theirs_BV, atol=1e-6, rtol=1e-5)
    assert torch.equal(ours_BV > 1e-12, theirs_BV > 1e-12)


def test_probabilities_by_hand_keep_the_likeliest():
    logits_BV = torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.3]]))

    def cut(**settings):
        return probabilities(logits_BV, config(**settings))[0]

    torch.testing.assert_close(cut(), torch.tensor([0.1, 0.4, 0.2, 0.3]))
    torch.testing.assert_close(cut(top_k=2), torch.tensor([0.0, 4 / 7, 0.0, 3 / 7]))
    torch.testing.assert_close(cut(top_k=9), cut())
    torch.testing.assert_close(cut(top_p=0.5), torch.tensor([0.0, 4 / 7, 0.0, 3 / 7]))
    torch.testing.assert_close(cut(top_p=0.39), torch.tensor([0.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(cut(min_p=0.6), torch.tensor([0.0, 4 / 7, 0.0, 3 / 7]))
    torch.testing.assert_close(cut(temperature=0.5), torch.tensor([0.01, 0.16, 0.04, 0.09]) / 0.3)


def test_penalised_divides_positive_and_multiplies_negative_logits_of_seen_tokens():
    seen_BV = torch.tensor([[True, True, False, False]])
    lowered_BV = penalised(torch.tensor([[2.0, -2.0, 2.0, -2.0]]), seen_BV, torch.tensor([[4.0]]))
    assert lowered_BV.tolist() == [[0.5, -8.0, 2.0, -2.0]]


@pytest.mark.parametrize("settings", [{}, {"top_k": 7}, {"top_p": 0.9}, {"min_p": 0.05}, {"temperature": 0.4}])
def test_draw_over_all_numbers_gives_the_probabilities(settings):
    """The drawn number is the only thing by chance: numbers spread evenly draw every token by its probability."""
    cfg, n = config(**settings), 20_000
    logits_V = torch.randn(30, generator=torch.Generator().manual_seed(2)) * 2
    drawn_B = draw(logits_V.expand(n, 30), cfg, (torch.arange(n) + 0.5) / n)
    share_V = torch.bincount(drawn_B, minlength=30) / n
    torch.testing.assert_close(share_V, probabilities(logits_V[None], cfg)[0], atol=2 / n, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.6}, {"min_p": 0.3}])
def test_draw_at_both_ends_takes_a_token_that_was_kept(logits_BV, settings):
    cfg = config(**settings)
    highest = (1 - 2.0**-24) * (1 - 2.0**-22)  # the largest that uniform_numbers may give
    for number in (0.0, highest):
        drawn_B = draw(logits_BV, cfg, torch.full((N_ROWS,), number))
        assert (probabilities(logits_BV, cfg).gather(1, drawn_B[:, None]) > 0).all()


def test_draw_temperature_zero_and_one_near_it_take_the_likeliest(logits_BV):
    number_B = torch.full((N_ROWS,), 0.999)
    for temperature in (0.0, 1e-30):
        assert torch.equal(draw(logits_BV, config(temperature=temperature), number_B), logits_BV.argmax(dim=1))


def test_uniform_numbers_of_a_row_depend_on_seed_and_its_number_alone():
    cfg = config(max_new_tokens=50, seed=3)
    numbers_BT = torch.stack([uniform_numbers(cfg, row) for row in range(3)])
    assert torch.equal(uniform_numbers(config(max_new_tokens=20, seed=3), 1), numbers_BT[1, :20])
    assert not torch.equal(uniform_numbers(config(max_new_tokens=50, seed=4), 1), numbers_BT[1])
    assert len(numbers_BT.unique()) > 140 and numbers_BT.min() >= 0 and numbers_BT.max() < 1


SETTINGS = (
    {"temperature": 0.0},
    {},
    {"top_k": 7, "temperature": 1.5},
    {"top_k": 40, "top_p": 0.8},
    {"top_p": 0.97},
    {"min_p": 0.1, "repetition_penalty": 1.4},
    {"top_p": 0.5, "seed": 8},
)


def drawn(rows: list[int], logits_TV: torch.Tensor, leaves: dict[int, int]) -> dict[int, list[int]]:
    """What `rows` of SETTINGS draw when all meet the same logits; row r leaves after leaves[r] steps."""
    sampler = RowSampler(len(rows), VOCAB, torch.device("cpu"))
    for slot, row in enumerate(rows):
        sampler.join(slot, config(max_new_tokens=len(logits_TV), **SETTINGS[row]), row, [row])
    found: dict[int, list[int]] = {row: [] for row in rows}
    for step, logits_V in enumerate(logits_TV):
        for row, token in zip(rows, sampler.draw(logits_V.expand(len(rows), VOCAB)).tolist(), strict=True):
            found[row].append(token)
        for slot in reversed([slot for slot, row in enumerate(rows) if leaves.get(row) == step]):
            sampler.leave(slot)
            rows = [*rows[:slot], *([rows[-1]] if slot < len(rows) - 1 else []), *rows[slot + 1 : -1]]
    return found


def test_row_draws_by_its_own_settings_whoever_is_beside_it_and_whoever_leaves():
    """With ties, as bfloat16 logits have them, and with a nucleus of more and of fewer than 256 tokens."""
    spread_T1 = torch.tensor([[0.1], [3.0], [0.5], [0.05], [1.0], [8.0]])
    logits_TV = (torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(4)) * spread_T1).bfloat16().float()
    together = drawn(list(range(7)), logits_TV, leaves={0: 2, 3: 0, 6: 3})
    for row, tokens in together.items():
        assert drawn([row], logits_TV, {})[row][: len(tokens)] == tokens
    assert [len(tokens) for tokens in together.values()] == [3, 6, 6, 1, 6, 6, 4]
    assert together[0] == logits_TV.argmax(dim=1)[:3].tolist()


def test_draw_from_logits_that_are_not_numbers_gives_an_id_of_the_vocabulary():
    """The caller learns of it together with the ids: nothing may fail or reach beyond memory until then."""
    for settings in SETTINGS:
        ids_B = draw(torch.full((2, VOCAB), float("nan")), config(**settings), torch.full((2,), 0.999))
        assert ((ids_B >= 0) & (ids_B < VOCAB)).all()


def test_rows_that_draw_from_the_whole_vocabulary_take_equal_tokens_by_their_ids(logits_BV):
    """The sort of 64-bit numbers gives what a stable sort gives, for numbers of every size."""
    weight_BV = torch.cat(
        [logits_BV.exp(), logits_BV.round().exp(), torch.zeros(1, VOCAB), logits_BV.double().exp().float()]
    )
    expected = weight_BV.sort(dim=-1, descending=True, stable=True)
    for found, other in zip(sampling.sorted_weights(weight_BV), expected, strict=True):
        assert torch.equal(found, other)


def test_some_rows_draw_as_they_do_when_all_do(logits_BV):
    """A pass may serve some of the rows; the others keep their numbers."""
    cfgs = [config(max_new_tokens=4, **SETTINGS[row + 2]) for row in range(5)]

    def sampler() -> RowSampler:
        made = RowSampler(5, VOCAB, torch.device("cpu"))
        for slot, cfg in enumerate(cfgs):
            made.join(slot, cfg, slot, [slot])
        return made

    together, apart = sampler(), sampler()
    expected = [together.draw(logits_BV).tolist() for _ in range(3)]
    found: list[list[int]] = [[] for _ in range(5)]
    for slots in ([0, 1, 2, 3, 4], [1, 3], [0, 2, 4], [1], [0], [2, 3], [4]):
        for slot, token in zip(slots, apart.draw(logits_BV[slots], slots).tolist(), strict=True):
            found[slot].append(token)
    assert found == [list(row) for row in zip(*expected, strict=True)]
