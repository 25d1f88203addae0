"""Generation against transformers' generate, and its laws: cache, batch, joining, order, stops, context, refusals."""

import copy
import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3Config, Qwen3ForCausalLM

from model.generation.decode import pack
from model.generation.generate import generate, generate_text, stream_text, tokens
from model.generation.sample_config import SampleConfig
from model.network.decoder import Decoder
from model.network.shape import DecoderConfig, switches_of

CONFIG = DecoderConfig(
    vocab_size=61, n_layers=2, n_heads=4, n_kv_heads=2, d_model=32, d_head=8, d_ff=48, max_seq_len=24
)
GPT2 = dataclasses.replace(
    CONFIG,
    n_kv_heads=4,
    **switches_of("gpt2"),
)
WINDOW = dataclasses.replace(CONFIG, sliding_window=5, sliding_layers=(1,))
PROMPTS = [[1, 2, 3, 4, 5], [6], [7, 8, 9, 10, 11, 12, 13, 14], [15, 16]]
GREEDY = SampleConfig(max_new_tokens=12, temperature=0)
SAMPLED = SampleConfig(max_new_tokens=12, temperature=1.0, top_k=None, seed=3)


def decoder_of(cfg: DecoderConfig) -> Decoder:
    """Weights so large that the next token depends on all that was read."""
    generator = torch.Generator().manual_seed(0)
    model = Decoder(cfg).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            is_scale = weight.ndim == 1 and name.endswith("weight")
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3 + is_scale)
    return model


@pytest.fixture
def decoder() -> Decoder:
    return decoder_of(CONFIG)


@pytest.fixture
def peer(decoder) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=CONFIG.vocab_size,
        num_hidden_layers=CONFIG.n_layers,
        num_attention_heads=CONFIG.n_heads,
        num_key_value_heads=CONFIG.n_kv_heads,
        hidden_size=CONFIG.d_model,
        head_dim=CONFIG.d_head,
        intermediate_size=CONFIG.d_ff,
        max_position_embeddings=CONFIG.max_seq_len,
        rope_parameters={"rope_type": "default", "rope_theta": CONFIG.rope_theta},
        rms_norm_eps=CONFIG.norm_eps,
        tie_word_embeddings=False,
    )
    model = Qwen3ForCausalLM(config).eval()
    model.load_state_dict(decoder.state_dict())
    return model


def passes(decoder: Decoder) -> list[tuple[int, int]]:
    """Rows and tokens of every pass that the model makes from now on."""
    seen: list[tuple[int, int]] = []
    decoder.model.embed_tokens.register_forward_pre_hook(
        lambda module, args: seen.append((args[0].size(0), args[0][0].numel()))
    )
    return seen


def letters(ids) -> bytes:
    """Small letters, capitals, and pairs of them."""
    return b"".join(bytes([65 + token]) if token < 58 else b"ab" for token in ids)


def test_generate_greedy_equals_transformers_on_a_left_padded_batch(decoder, peer):
    longest = max(map(len, PROMPTS))
    ids_BT = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in PROMPTS])
    mask_BT = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    theirs_BT = peer.generate(
        ids_BT, attention_mask=mask_BT, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert generate(decoder, PROMPTS, GREEDY) == theirs_BT[:, longest:].tolist()


@pytest.mark.parametrize("penalty", [1.5, 0.8])
def test_generate_greedy_with_repetition_penalty_equals_transformers(decoder, peer, penalty):
    prompts = [[1, 2, 3, 4, 5], [6, 7, 6, 7, 6]]
    cfg = dataclasses.replace(GREEDY, repetition_penalty=penalty)
    theirs_BT = peer.generate(
        torch.tensor(prompts), max_new_tokens=12, do_sample=False, repetition_penalty=penalty, pad_token_id=0
    )
    ours = generate(decoder, prompts, cfg)
    assert ours == theirs_BT[:, 5:].tolist() and ours != generate(decoder, prompts, GREEDY)


@pytest.mark.parametrize(("cfg", "sample"), [(CONFIG, SAMPLED), (GPT2, SAMPLED), (WINDOW, GREEDY)])
def test_generate_cached_equals_uncached_beyond_the_context(cfg, sample):
    decoder, sample = decoder_of(cfg), dataclasses.replace(sample, max_new_tokens=40)
    cached = generate(decoder, PROMPTS, sample)
    assert cached == generate(decoder, PROMPTS, sample, use_cache=False)
    assert [len(row) for row in cached] == [40] * 4


@pytest.mark.parametrize(("cfg", "sample"), [(GPT2, GREEDY), (WINDOW, SAMPLED)])
def test_generate_row_depends_on_its_prompt_and_number_alone(cfg, sample):
    """Not on the rows beside it, not on their order, also where rows end early and where contexts fill."""
    decoder, sample = decoder_of(cfg), dataclasses.replace(sample, max_new_tokens=28)
    free = generate(decoder, PROMPTS, sample)
    sample = dataclasses.replace(sample, stop_ids=(free[0][2], free[2][20]))
    together = generate(decoder, PROMPTS, sample)
    assert len({len(row) for row in together}) > 1
    assert [generate(decoder, [PROMPTS[row]], sample, row_numbers=[row])[0] for row in range(4)] == together
    order = [2, 0, 3]
    assert generate(decoder, [PROMPTS[row] for row in order], sample, row_numbers=order) == [
        together[row] for row in order
    ]


FAMILIES = {"qwen3": CONFIG, "gpt2": GPT2, "window": WINDOW}
PER_ROW = [
    dataclasses.replace(GREEDY, max_new_tokens=24),
    dataclasses.replace(SAMPLED, max_new_tokens=34, seed=7),
    dataclasses.replace(SAMPLED, max_new_tokens=5, top_k=9, temperature=1.4),
    dataclasses.replace(SAMPLED, max_new_tokens=28, top_p=0.9, repetition_penalty=1.3),
]


@pytest.mark.parametrize("cfg", FAMILIES.values(), ids=FAMILIES)
def test_generate_row_does_not_depend_on_when_it_joined_or_who_left(cfg):
    """Rows of different lengths and settings join in the places of others, end, and fill the context."""
    decoder = decoder_of(cfg).double()
    alone = [generate(decoder, [PROMPTS[row]], PER_ROW[row], row_numbers=[row])[0] for row in range(4)]
    for n_slots in (None, 2, 3):
        assert generate(decoder, PROMPTS, PER_ROW, n_slots=n_slots) == alone
    assert [len(row) for row in alone] == [24, 34, 5, 28]


def test_generate_row_that_draws_joins_greedy_rows_that_are_longer_than_it(decoder):
    """The greedy row had taken more steps than the row that draws has numbers, and the step failed."""
    cfgs = [GREEDY, dataclasses.replace(GREEDY, max_new_tokens=5), dataclasses.replace(SAMPLED, max_new_tokens=3)]
    alone = [generate(decoder, [PROMPTS[i]], cfgs[i], row_numbers=[i])[0] for i in range(3)]
    assert generate(decoder, PROMPTS[:3], cfgs, n_slots=2) == alone


@pytest.mark.parametrize("n_rows", [1, 4])
@pytest.mark.parametrize("cfg", FAMILIES.values(), ids=FAMILIES)
def test_generate_from_a_packed_model_gives_the_same_text_beyond_the_context(cfg, n_rows):
    decoder, sample = decoder_of(cfg).double(), dataclasses.replace(GREEDY, max_new_tokens=40)
    packed = pack(copy.deepcopy(decoder), n_rows)
    assert generate(packed, PROMPTS, sample) == generate(decoder, PROMPTS, sample)


def test_generate_row_that_fills_the_context_is_read_alone(decoder):
    seen = passes(decoder)
    generate(decoder, [list(range(1, 23)), [5, 6]], dataclasses.replace(GREEDY, max_new_tokens=8))
    # Both prompts; then steps of two rows, and once the newest half of the first row, which gets its token from that.
    assert seen == [(2, 22), (2, 1), (2, 1), (1, 12), *[(2, 1)] * 4, (1, 1)]


class Reads(TorchDispatchMode):
    """Counts what would make the host wait for a device: numbers and lists of indices that are read from it."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("sample", [GREEDY, dataclasses.replace(SAMPLED, top_k=9, repetition_penalty=1.2)])
def test_generate_reads_nothing_of_the_device_in_a_step_but_the_ids(decoder, sample):
    n_reads = []
    for n_new in (3, 20):
        with Reads() as reads:
            generate(decoder, PROMPTS, [dataclasses.replace(sample, max_new_tokens=n_new + row) for row in range(4)])
        n_reads.append(reads.n)
    assert n_reads[0] == n_reads[1]


def test_generate_full_context_goes_on_from_its_newest_half(decoder):
    prompt = list(range(1, 25))
    first, second = generate(decoder, [prompt], dataclasses.replace(GREEDY, max_new_tokens=2))[0]
    newest = [*prompt, first][-12:]
    assert [second] == generate(decoder, [newest], dataclasses.replace(GREEDY, max_new_tokens=1))[0]


def test_generate_same_seed_repeats_and_another_differs(decoder):
    again, other = (generate(decoder, [[3]] * 3, dataclasses.replace(SAMPLED, seed=seed)) for seed in (3, 4))
    one = generate(decoder, [[3]] * 3, SAMPLED)
    assert one == again != other
    assert len({tuple(row) for row in one}) == 3


def test_generate_reads_each_token_once_and_only_rows_that_go_on(decoder):
    free = generate(decoder, PROMPTS, GREEDY)
    stop = free[1][3]
    expected = [row[: row.index(stop)] if stop in row else row for row in free]
    seen = passes(decoder)
    assert generate(decoder, PROMPTS, dataclasses.replace(GREEDY, stop_ids=(stop,))) == expected
    assert seen[0] == (4, 8) and {n_tokens for _, n_tokens in seen[1:]} == {1}
    # A row that wrote n tokens was read n times after the prompt; the last token of all is never read.
    assert [n_rows for n_rows, _ in seen[1:]] == [sum(len(row) > step for row in expected) for step in range(11)]


def test_generate_cache_is_as_long_as_prompt_and_new_tokens(decoder):
    lengths = []
    decoder.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["cache"].max_len), with_kwargs=True
    )
    generate(decoder, [[1, 2, 3]], dataclasses.replace(GREEDY, max_new_tokens=5))
    assert set(lengths) == {7}  # the last token is not read
    generate(decoder, [[1, 2, 3]], dataclasses.replace(GREEDY, max_new_tokens=50))
    assert max(lengths) == 24


def test_generate_text_decodes_the_tokens_and_ends_before_a_stop_string(decoder):
    rows = [letters(ids).decode() for ids in generate(decoder, PROMPTS, SAMPLED)]
    assert generate_text(decoder, PROMPTS, SAMPLED, letters) == rows
    stop = rows[0][3:6]  # from the middle of what one row writes, across tokens
    cut = generate_text(decoder, PROMPTS, dataclasses.replace(SAMPLED, stop=(stop, "no such")), letters)
    assert cut == [row.split(stop)[0] for row in rows] and cut[0] == rows[0][: rows[0].index(stop)]


def test_generate_text_row_that_met_its_stop_string_is_read_no_more(decoder):
    row = letters(generate(decoder, [[3]], GREEDY)[0]).decode()
    seen = passes(decoder)
    assert generate_text(decoder, [[3]], dataclasses.replace(GREEDY, stop=(row[0],)), letters) == [""]
    assert len(seen) == 1


def test_stream_text_gives_a_piece_as_soon_as_it_is_certain(decoder):
    seen = passes(decoder)
    stream = stream_text(decoder, [[3]], GREEDY, letters)
    assert not seen
    first = next(stream)
    assert first == (0, letters(generate(decoder_of(CONFIG), [[3]], GREEDY)[0][:1]).decode()) and len(seen) == 1
    assert "".join([first[1], *(piece for _, piece in stream)]) == generate_text(decoder, [[3]], GREEDY, letters)[0]


def test_stream_text_of_several_rows_holds_what_generate_text_returns(decoder):
    rows = [""] * 4
    for row, piece in stream_text(decoder, PROMPTS, SAMPLED, letters):
        assert piece
        rows[row] += piece
    assert rows == generate_text(decoder, PROMPTS, SAMPLED, letters)


def test_generate_prompt_longer_than_the_context_is_refused_or_its_end_read(decoder):
    long = [i % 61 for i in range(40)]
    with pytest.raises(ValueError, match=r"prompt 1 has 40 tokens, .* at most 24 \(max_seq_len\).*keep_prompt_end"):
        generate(decoder, [[1], long], GREEDY)
    kept = dataclasses.replace(GREEDY, keep_prompt_end=True)
    assert generate(decoder, [[1], long], kept) == generate(decoder, [[1], long[-24:]], GREEDY)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompt"),
        ([[1], []], "prompt 1 holds no token"),
        ([[1, 2, 61]], r"token id 61 at place 2, the model's vocabulary has 61 tokens \(0 to 60\)"),
        ([[-1]], "token id -1 at place 0"),
    ],
)
def test_generate_bad_prompt_is_refused_before_any_pass(decoder, prompts, message):
    seen = passes(decoder)
    with pytest.raises(ValueError, match=message):
        tokens(decoder, prompts, GREEDY)
    with pytest.raises(ValueError, match=message):
        stream_text(decoder, prompts, GREEDY, letters)
    assert not seen


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("sample", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_generate_from_weights_that_are_not_numbers_is_refused(decoder, sample, number):
    with torch.no_grad():
        decoder.lm_head.weight[5, 3] = float(number)
    with pytest.raises(ValueError, match="not finite at new token 1 of prompt 0"):
        generate(decoder, [[9, 1]], sample)


@pytest.mark.parametrize("sample", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_generate_logits_that_stop_being_finite_are_refused_by_name(decoder, sample):
    """A row reads a token whose embedding is not a number, which it wrote itself."""
    rows = generate(decoder, PROMPTS, sample)
    step = next(step for step, token in enumerate(rows[2]) if all(token not in row for row in (*PROMPTS, *rows[:2])))
    assert rows[2][step] not in rows[3][: step + 1] and step < 10
    with torch.no_grad():
        decoder.model.embed_tokens.weight[rows[2][step]] = float("nan")
    with pytest.raises(ValueError, match=rf"not finite at new token {step + 2} of prompt 2: .* earlier checkpoint"):
        generate(decoder, PROMPTS, sample)


def test_generate_what_does_not_fit_together_is_refused(decoder):
    with pytest.raises(ValueError, match="stop_ids holds 61"):
        generate(decoder, [[1]], dataclasses.replace(GREEDY, stop_ids=(61,)))
    with pytest.raises(ValueError, match="generate_text"):
        generate(decoder, [[1]], dataclasses.replace(GREEDY, stop=("a",)))
    with pytest.raises(ValueError, match="1 row_numbers for 2 prompts"):
        generate(decoder, [[1], [2]], GREEDY, row_numbers=[0])
    with pytest.raises(ValueError, match="1 configs for 2 prompts"):
        generate(decoder, [[1], [2]], [GREEDY])
    with pytest.raises(ValueError, match="n_slots=0 must be at least 1"):
        generate(decoder, [[1], [2]], GREEDY, n_slots=0)
