"""Parameters and floating-point operations of a decoder, by formula.

In: DecoderConfig. Out: counts. FLOPs a token of training: 6 N + 12 L H K T (arXiv:2204.02311 appendix B), where N
are the weights that multiply (all matrices and the head, tied or not, without the embedding's look-up), two FLOPs a
multiply-add, backward twice forward; the second term is attention over T keys, the causal half not taken off.
"""

from model.config import DecoderConfig


def n_hidden_matrix_parameters(cfg: DecoderConfig) -> int:
    """Weights of the matrices inside the layers."""
    d_queries, d_keys = cfg.n_heads * cfg.d_head, cfg.n_kv_heads * cfg.d_head
    attention = cfg.d_model * (2 * d_queries + 2 * d_keys)
    return cfg.n_layers * (attention + 3 * cfg.d_model * cfg.d_ff)


def n_parameters(cfg: DecoderConfig) -> int:
    """All weights; a tied head counts once, with the embedding."""
    norms = cfg.n_layers * (2 * cfg.d_model + 2 * cfg.d_head) + cfg.d_model
    embeddings = cfg.vocab_size * cfg.d_model * (1 if cfg.tie_embeddings else 2)
    return n_hidden_matrix_parameters(cfg) + norms + embeddings


def flops_a_token(cfg: DecoderConfig, seq_len: int) -> int:
    """Forward and backward of one token in a row of `seq_len`."""
    n_multiplying = n_hidden_matrix_parameters(cfg) + cfg.vocab_size * cfg.d_model
    return 6 * n_multiplying + 12 * cfg.n_layers * cfg.n_heads * cfg.d_head * seq_len
