"""Parameters and floating-point operations of a decoder, by formula.

In: DecoderConfig. Out: counts. FLOPs per token of training: 6 N + 12 L H K T (arXiv:2204.02311 appendix B), where N
are the weights that multiply (all matrices and the head, tied or not, without the embeddings' look-up). A
multiply-add is two FLOPs, and backward takes twice forward. The second term is attention over T keys, without taking
the causal half off. A layer with a sliding window counts min(window, T) keys.
"""

from model.network.shape import DecoderConfig


def n_hidden_matrix_parameters(cfg: DecoderConfig) -> int:
    """Weights of the matrices inside the layers."""
    d_queries, d_keys = cfg.n_heads * cfg.d_head, cfg.n_kv_heads * cfg.d_head
    attention = cfg.d_model * (2 * d_queries + 2 * d_keys)
    n_matrices = 3 if cfg.is_gated else 2
    return cfg.n_layers * (attention + n_matrices * cfg.d_model * cfg.d_ff)


def n_bias_parameters(cfg: DecoderConfig) -> int:
    """Biases of the projections; those of norms count as norms."""
    d_queries, d_keys = cfg.n_heads * cfg.d_head, cfg.n_kv_heads * cfg.d_head
    n_up = 2 if cfg.is_gated else 1
    qkv = d_queries + 2 * d_keys if cfg.qkv_bias else 0
    output = cfg.d_model if cfg.output_bias else 0
    mlp = n_up * cfg.d_ff + cfg.d_model if cfg.mlp_bias else 0
    return cfg.n_layers * (qkv + output + mlp)


def n_parameters(cfg: DecoderConfig) -> int:
    """All weights; a tied head counts once, with the embedding."""
    norm = (2 if cfg.norm == "layernorm" else 1) * cfg.d_model
    last_norm = norm if cfg.norm_position == "pre" else 0
    norms = cfg.n_layers * (2 * norm + (2 * cfg.d_head if cfg.qk_norm else 0)) + last_norm
    embeddings = cfg.vocab_size * cfg.d_model * (1 if cfg.tie_embeddings else 2)
    positions = cfg.max_seq_len * cfg.d_model if cfg.positions == "learned" else 0
    return n_hidden_matrix_parameters(cfg) + n_bias_parameters(cfg) + norms + embeddings + positions


def flops_per_token(cfg: DecoderConfig, seq_len: int) -> int:
    """Forward and backward of one token in a row of `seq_len`."""
    n_multiplying = n_hidden_matrix_parameters(cfg) + cfg.vocab_size * cfg.d_model
    n_keys = cfg.n_layers * seq_len
    if cfg.sliding_window is not None:
        n_keys -= len(set(cfg.sliding_layers)) * (seq_len - min(cfg.sliding_window, seq_len))
    return 6 * n_multiplying + 12 * cfg.n_heads * cfg.d_head * n_keys
