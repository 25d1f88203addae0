"""Which kernel computes which rule, and that all kernels compute the same.

Flash attention over segments runs on CUDA only. Here a plain loop over the segments stands in as the CPU's kernel of
torch's own operation, so that what is tested is everything that we hand over.
"""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.network.attention import AttentionPlan, attend, attention_plan, kernel_for, sighted, varlen_plan
from model.network.visible import CAUSAL, Visible

CPU = torch.device("cpu")
B, T, H, G, K = 2, 11, 4, 2, 8
DOCUMENTS = torch.tensor([[0] * 3 + [1] * 7 + [-1], [4] * 11])
WINDOWS = [None, (0, 0), (3, 0), (2, 4), (30, 30)]
RULES = {
    "causal": CAUSAL,
    "all": Visible.all(),
    "within": Visible.within(DOCUMENTS),
    "within_both_ways": Visible.within(DOCUMENTS, causal=False),
}


def narrowed(visible: Visible, window: tuple[int, int] | None) -> Visible:
    return visible if window is None else visible.windowed(*window)


def qkv(n_queries: int = T) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(B, n, length, K, generator=generator) for n, length in ((H, n_queries), (G, T), (G, T))]


def by_definition(visible: Visible, q, k, v) -> torch.Tensor:
    """Every score written out, in the order of the formula."""
    sees_BTS = visible.dense(torch.arange(T - q.size(2), T, device=q.device)[None], T)
    scores_BHTS = q @ k.repeat_interleave(H // G, 1).mT * K**-0.5
    weights_BHTS = scores_BHTS.masked_fill(~sees_BTS.unsqueeze(1), -torch.inf).softmax(-1).nan_to_num()
    return weights_BHTS @ v.repeat_interleave(H // G, 1)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n_queries", [1, 4, T])
def test_attention_equals_the_formula(rule, window, n_queries):
    visible = narrowed(RULES[rule], window)
    q, k, v = qkv(n_queries)
    plan = attention_plan(visible, n_rows=B, n_queries=n_queries, n_keys=T, device=CPU, dtype=torch.float32, d_head=K)
    torch.testing.assert_close(attend(q, k, v, plan), by_definition(visible, q, k, v))
    copied = attend(q, k, v, plan._replace(repeats_keys=True))  # as on CUDA with a mask
    torch.testing.assert_close(copied, by_definition(visible, q, k, v))


@pytest.mark.parametrize(
    ("visible", "n_queries", "has_varlen", "kernel"),
    [
        (CAUSAL, T, True, "causal"),
        (CAUSAL, T, False, "causal"),
        (CAUSAL, 1, True, "full"),  # one query after all keys
        (CAUSAL, 4, True, "mask"),  # torch's causal path would count the queries from key 0
        (Visible.all(), T, True, "full"),
        (Visible.all(), 4, False, "full"),
        (CAUSAL.windowed(T - 1, 0), T, True, "causal"),  # a window of everything is none
        (CAUSAL.windowed(T - 2, 0), T, True, "varlen"),
        (CAUSAL.windowed(3, 0), T, False, "mask"),
        (CAUSAL.windowed(3, 0), 1, True, "mask"),
        (CAUSAL.windowed(T, 0), 1, True, "full"),
        (Visible.all().windowed(3, 3), T, True, "varlen"),
        (Visible.all().windowed(T, T), T, True, "full"),
        (Visible.within(DOCUMENTS), T, True, "varlen"),
        (Visible.within(DOCUMENTS), T, False, "mask"),
        (Visible.within(DOCUMENTS), 4, True, "mask"),
        (Visible.within(DOCUMENTS, causal=False).windowed(1, 1), T, True, "varlen"),
        (Visible.mask(torch.ones(B, T, T, dtype=torch.bool)), T, True, "mask"),
    ],
)
def test_kernel_is_the_cheapest_that_computes_the_rule(visible, n_queries, has_varlen, kernel):
    assert kernel_for(visible, n_queries, T, has_varlen=has_varlen) == kernel


def test_attention_on_a_cpu_takes_no_mask_where_none_is_needed():
    sizes = {"n_rows": B, "n_keys": T, "device": CPU, "dtype": torch.bfloat16, "d_head": K}
    assert attention_plan(CAUSAL, n_queries=T, **sizes) == AttentionPlan("causal")
    assert attention_plan(CAUSAL.windowed(T, 0), n_queries=1, **sizes) == AttentionPlan("full")


@pytest.mark.parametrize("is_on_cuda", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_queries", [1, T])
def test_query_that_may_attend_to_nothing_gets_zeros_and_gives_no_gradient(n_queries, dtype, is_on_cuda):
    mask_BTS = torch.ones(B, n_queries, T, dtype=torch.bool)
    mask_BTS[0, 0] = False
    sizes = {"n_rows": B, "n_queries": n_queries, "n_keys": T, "d_head": K}
    plan = attention_plan(Visible.mask(mask_BTS), device=CPU, dtype=dtype, **sizes)
    results = []
    for attended in (plan, sighted(plan) if is_on_cuda else plan):
        q, k, v = (x.to(dtype).requires_grad_() for x in qkv(n_queries))
        out_BHTK = attend(q, k, v, attended)
        out_BHTK.float().square().sum().backward()
        results.append([out_BHTK, q.grad, k.grad, v.grad])
    for plain, guarded in zip(*results, strict=True):
        assert torch.equal(plain, guarded)
    out_BHTK, q_gradient, *gradients = results[0]
    assert out_BHTK[0, :, 0].count_nonzero() == 0 and out_BHTK[1].count_nonzero() > 0
    assert q_gradient[0, :, 0].count_nonzero() == 0
    assert all(x.isfinite().all() for x in (out_BHTK, q_gradient, *gradients))


def segments(cu_seq_q, cu_seq_k, max_q, max_k, window):
    """Each segment and its mask (True = may attend), by what torch documents for varlen_attn."""
    assert torch.equal(cu_seq_q, cu_seq_k) and cu_seq_q.dtype == torch.int32 and cu_seq_q[0] == 0
    left, right = (limit if limit >= 0 else T for limit in window)
    for start, end in itertools.pairwise(cu_seq_q.tolist()):
        assert 0 <= end - start <= max_q == max_k
        ahead = torch.arange(end - start)[None] - torch.arange(end - start)[:, None]
        yield slice(start, end), (ahead >= -left) & (ahead <= right)


def varlen_forward(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, causal=False, scale=None, window=None, *_):
    out = torch.full_like(query, torch.nan)  # every token has to be in a segment
    for place, mask in segments(cu_seq_q, cu_seq_k, max_q, max_k, window):
        q, k, v = (x[place].transpose(0, 1) for x in (query, key, value))
        out[place] = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(0, 1)
    return out, query.new_zeros(query.size(1), query.size(0)), torch.zeros(2, dtype=torch.uint64)


def varlen_backward(
    grad, query, key, value, out, lse, cu_q, cu_k, max_q, max_k, causal, rng, scale=None, window=None
):
    d_query, d_key, d_value = (torch.zeros_like(x) for x in (query, key, value))
    for place, mask in segments(cu_q, cu_k, max_q, max_k, window):
        q, d_out = query[place].transpose(0, 1), grad[place].transpose(0, 1)
        k, v = (x[place].transpose(0, 1).repeat_interleave(H // G, 0) for x in (key, value))
        weights = (q @ k.mT * K**-0.5).masked_fill(~mask, -torch.inf).softmax(-1)
        d_weights = d_out @ v.mT
        d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdim=True)) * K**-0.5
        d_query[place] = (d_scores @ k).transpose(0, 1)
        d_key[place] = (d_scores.mT @ q).unflatten(0, (G, -1)).sum(1).transpose(0, 1)
        d_value[place] = (weights.mT @ d_out).unflatten(0, (G, -1)).sum(1).transpose(0, 1)
    return d_query, d_key, d_value


@pytest.fixture(scope="module")
def varlen_on_a_cpu() -> Iterator[None]:
    library = torch.library.Library("torch_attn", "IMPL")
    library.impl("_varlen_attn", varlen_forward, "CPU")
    library.impl("_varlen_attn_backward", varlen_backward, "CPU")
    yield
    library._destroy()


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("rule", RULES)
def test_segments_give_the_numbers_and_gradients_of_the_mask(rule, window, varlen_on_a_cpu):
    visible = narrowed(RULES[rule], window)
    masked = AttentionPlan("mask", visible.dense(torch.arange(T)[None], T).unsqueeze(1))
    results = []
    for plan in (masked, varlen_plan(visible, B, T, CPU)):
        leaves = [x.requires_grad_() for x in qkv()]
        out_BHTK = attend(*leaves, plan)
        out_BHTK.square().sum().backward()
        results.append([out_BHTK, *(x.grad for x in leaves)])
    for by_segments, by_mask in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(by_segments, by_mask)


def test_compiled_attention_is_compiled_once_for_any_number_of_documents(varlen_on_a_cpu):
    """Else every batch with another number would compile every layer, until torch gives up after eight."""
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(attend, backend=counting, dynamic=False, fullgraph=True)
    for n_documents in (1, 2, 5, 7, 11):
        visible = Visible.within(torch.arange(T).clamp(max=n_documents - 1).expand(B, T))
        plan = varlen_plan(visible, B, T, CPU)
        assert plan.borders.numel() == B * n_documents + 1
        torch.testing.assert_close(compiled(*qkv(), plan), by_definition(visible, *qkv()))
    assert len(graphs) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_kernels_of_a_gpu_equal_the_formula(rule, window, dtype):
    """Also: none of them is torch's plain one, which holds the scores of all pairs of tokens."""
    visible, gpu = narrowed(RULES[rule], window), torch.device("cuda")
    sizes = {"n_rows": B, "n_queries": T, "n_keys": T, "d_head": K}
    results = []
    for attention in ("kernel", "formula"):
        leaves = [x.to(gpu, dtype if attention == "kernel" else torch.float32).requires_grad_() for x in qkv()]
        if attention == "kernel":
            plan = attention_plan(visible, device=gpu, dtype=dtype, **sizes)
            with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
                out_BHTK = attend(*leaves, plan)
        else:
            out_BHTK = by_definition(visible, *leaves)
        out_BHTK.float().square().sum().backward()
        results.append([out_BHTK.float(), *(x.grad.float() for x in leaves)])
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-4
    for by_kernel, by_formula in zip(*results, strict=True):
        torch.testing.assert_close(by_kernel, by_formula, atol=tolerance, rtol=tolerance)


@pytest.mark.gpu
def test_blind_query_on_a_gpu_gets_zeros_and_gives_no_gradient():
    mask_BTS, gpu = torch.ones(B, T, T, dtype=torch.bool), torch.device("cuda")
    mask_BTS[0, 0] = False
    sizes = {"n_rows": B, "n_queries": T, "n_keys": T, "d_head": K}
    plan = attention_plan(Visible.mask(mask_BTS.to(gpu)), device=gpu, dtype=torch.bfloat16, **sizes)
    leaves = [x.to(gpu, torch.bfloat16).requires_grad_() for x in qkv()]
    out_BHTK = attend(*leaves, plan)
    out_BHTK.float().square().sum().backward()
    assert out_BHTK[0, :, 0].count_nonzero() == 0 and leaves[0].grad[0, :, 0].count_nonzero() == 0
    assert all(x.isfinite().all() for x in (out_BHTK, *(leaf.grad for leaf in leaves)))
