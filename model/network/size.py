"""Parameters and floating-point operations of a decoder or a masked language model, by formula.

In: DecoderConfig or EncoderConfig. Out: counts. FLOPs per token of training: 6 N + 12 L H K T (arXiv:2204.02311
appendix B), where N are the weights that multiply (all matrices and the head, tied or not, without the embeddings'
look-up). A multiply-add is two FLOPs, and backward takes twice forward. The second term is attention over T keys,
without taking the causal half off. A layer with a sliding window counts min(window, T) keys. An encoder predicts few
tokens, and only these go through its head.
"""

from model.network.shape import DecoderConfig, EncoderConfig, EncoderShape, LayerShape

Config = DecoderConfig | EncoderConfig


def n_hidden_matrix_parameters(cfg: LayerShape) -> int:
    """Weights of the matrices inside the layers."""
    d_queries, d_keys = cfg.n_heads * cfg.d_head, cfg.n_kv_heads * cfg.d_head
    attention = cfg.d_model * (2 * d_queries + 2 * d_keys)
    n_matrices = 3 if cfg.is_gated else 2
    return cfg.n_layers * (attention + n_matrices * cfg.d_model * cfg.d_ff)


def n_bias_parameters(cfg: LayerShape) -> int:
    """Biases of the projections; those of norms count as norms."""
    d_queries, d_keys = cfg.n_heads * cfg.d_head, cfg.n_kv_heads * cfg.d_head
    n_up = 2 if cfg.is_gated else 1
    qkv = d_queries + 2 * d_keys if cfg.qkv_bias else 0
    output = cfg.d_model if cfg.output_bias else 0
    mlp = n_up * cfg.d_ff + cfg.d_model if cfg.mlp_bias else 0
    return cfg.n_layers * (qkv + output + mlp)


def n_parameters(cfg: Config) -> int:
    """All weights; a tied head counts once, with the embedding. Those of an encoder are a masked language model's."""
    norm = (2 if cfg.norm == "layernorm" else 1) * cfg.d_model
    last_norm = norm if cfg.norm_position == "pre" else 0
    norms = cfg.n_layers * (2 * norm + (2 * cfg.d_head if cfg.qk_norm else 0)) + last_norm
    embeddings = cfg.vocab_size * cfg.d_model * (1 if cfg.tie_embeddings else 2)
    n_positions = cfg.n_positions if isinstance(cfg, EncoderConfig) else cfg.max_seq_len
    positions = n_positions * cfg.d_model if cfg.positions == "learned" else 0
    shared = n_hidden_matrix_parameters(cfg) + n_bias_parameters(cfg) + norms + embeddings + positions
    return shared + (_n_encoder_parameters(cfg, norm) if isinstance(cfg, EncoderConfig) else 0)


def _n_encoder_parameters(cfg: EncoderConfig, norm: int) -> int:
    """What an encoder has and a decoder has not: token types, the norm of the embeddings, the head's hidden layer and
    the head's bias."""
    embedding_norm = 0 if cfg.norm_position == "pre" else norm  # pre: it replaces one of the first layer
    biases = (cfg.d_model if cfg.head_bias else 0) + (cfg.vocab_size if cfg.lm_head_bias else 0)
    return cfg.n_token_types * cfg.d_model + embedding_norm + cfg.d_model**2 + norm + biases


def predicted_share(shape: LayerShape, mask_fraction: float) -> float:
    """Of the tokens that pass through a model in training, those that its head predicts."""
    return mask_fraction if isinstance(shape, EncoderShape) else 1.0


def flops_per_token(cfg: Config, seq_len: int, predicted_share: float = 1.0) -> int:
    """Forward and backward of one token in a row of `seq_len`, of which `predicted_share` goes through the head."""
    head = cfg.vocab_size * cfg.d_model + (cfg.d_model**2 if isinstance(cfg, EncoderConfig) else 0)
    n_multiplying = n_hidden_matrix_parameters(cfg) + round(predicted_share * head)
    n_keys = cfg.n_layers * seq_len
    if cfg.sliding_window is not None:
        n_keys -= len(set(cfg.sliding_layers)) * (seq_len - min(cfg.sliding_window, seq_len))
    return 6 * n_multiplying + 12 * cfg.n_heads * cfg.d_head * n_keys
