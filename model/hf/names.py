"""Tables of one family: which of our config fields and weights are called what at Hugging Face.

In: nothing. Out: QWEN3_CONFIG (ours -> theirs), QWEN3_FIXED (what a Qwen3 config must say because our decoder has no
other way) and QWEN3_ARCHITECTURE. Weights need no table: our modules carry Hugging Face's names.
"""

QWEN3_ARCHITECTURE = "Qwen3ForCausalLM"
QWEN3_MODEL_TYPE = "qwen3"

# rope_theta is the one that moved: transformers 5 keeps it in rope_parameters, 4 at the top.
QWEN3_CONFIG = {
    "vocab_size": "vocab_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "d_model": "hidden_size",
    "d_head": "head_dim",
    "d_ff": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}

# Field -> the only value that our decoder computes; absent means this value too.
QWEN3_FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
}
QWEN3_HEAD_DIM = 128  # Qwen3Config's default for head_dim
QWEN3_ROPE_THETA = 10_000.0  # transformers' default where a config names none
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
