"""Tables of the families: what Hugging Face calls our config fields, our switches and our weights.

In: nothing. Out: FAMILIES by model_type; model/hf/config.py and model/hf/weights.py read them both ways. Our modules
have the names of Llama and Qwen3, so only GPT-2, the encoders and the models that find a span need rules for weights:
GPT-2's linear layers are stored transposed (in, out), and its queries, keys and values are one matrix. The switches
themselves are in model/network/shape.py, the encoders' tables in model/hf/encoder_families.py.

Sources: arXiv:2302.13971 and arXiv:2407.21783 (Llama), arXiv:2407.10671 (Qwen2), arXiv:2505.09388 (Qwen3),
arXiv:2310.06825 (Mistral), arXiv:2109.08668 (the squared ReLU of Arcee); names and defaults: transformers 5.23.
"""

from typing import Any

from model.hf.encoder_families import BERT, MODERNBERT, ROBERTA
from model.hf.family import CLASSIFIER, DECODER, LAYER, QKV, SPAN, TOKENS, Family, WeightRule
from model.network.shape import FAMILY_SWITCHES, NORM_EPS

LLAMA_SIZES = {
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
GPT2_SIZES = {
    "vocab_size": "vocab_size",
    "n_layers": "n_layer",
    "n_heads": "n_head",
    "d_model": "n_embd",
    "d_ff": "n_inner",
    "max_seq_len": "n_positions",
    "norm_eps": "layer_norm_epsilon",
    "tie_embeddings": "tie_word_embeddings",
}
LLAMA_DEFAULTS = {"rms_norm_eps": NORM_EPS["llama"], "tie_word_embeddings": False}
QWEN_DEFAULTS = {**LLAMA_DEFAULTS, "num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28}
ATTENTION_FLAG = {"attention_bias": ("qkv_bias", "output_bias")}
LLAMA_FLAGS = {**ATTENTION_FLAG, "mlp_bias": ("mlp_bias",)}
GPT2_LAYER = "transformer.h.{}."
LLAMA_LAYER = (
    *QKV,
    *(LAYER + f"self_attn.{name}" for name in ("q_norm", "k_norm", "o_proj")),
    *(LAYER + f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")),
    *(LAYER + name for name in ("input_layernorm", "post_attention_layernorm")),
)

GPT2 = Family(
    model_type="gpt2",
    architectures={
        DECODER: "GPT2LMHeadModel",
        CLASSIFIER: "GPT2ForSequenceClassification",
        TOKENS: "GPT2ForTokenClassification",
        SPAN: "GPT2ForQuestionAnswering",
    },
    sizes=GPT2_SIZES,
    switches=FAMILY_SWITCHES["gpt2"],
    fixed={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # one formula
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False,),
        "add_cross_attention": (False,),
    },
    defaults={"tie_word_embeddings": True, "layer_norm_epsilon": NORM_EPS["gpt2"], "n_inner": None},
    written=dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    d_model_is="heads",
    is_grouped=False,
    prefix="transformer.",
    rules=(
        WeightRule(ours=("model.embed_tokens",), theirs="transformer.wte"),
        WeightRule(ours=("model.embed_positions",), theirs="transformer.wpe"),
        WeightRule(ours=(LAYER + "input_layernorm",), theirs=GPT2_LAYER + "ln_1"),
        WeightRule(ours=QKV, theirs=GPT2_LAYER + "attn.c_attn", transposed=True),
        WeightRule(ours=(LAYER + "self_attn.o_proj",), theirs=GPT2_LAYER + "attn.c_proj", transposed=True),
        WeightRule(ours=(LAYER + "post_attention_layernorm",), theirs=GPT2_LAYER + "ln_2"),
        WeightRule(ours=(LAYER + "mlp.up_proj",), theirs=GPT2_LAYER + "mlp.c_fc", transposed=True),
        WeightRule(ours=(LAYER + "mlp.down_proj",), theirs=GPT2_LAYER + "mlp.c_proj", transposed=True),
        WeightRule(ours=("model.norm",), theirs="transformer.ln_f"),
        WeightRule(ours=("lm_head",), theirs="lm_head"),
        WeightRule(ours=("score",), theirs="score", kinds=(CLASSIFIER,)),
        WeightRule(ours=("score",), theirs="classifier", kinds=(TOKENS,)),
        WeightRule(ours=("score",), theirs="qa_outputs", kinds=(SPAN,)),
    ),
    buffers=(".attn.bias", ".attn.masked_bias"),  # the causal mask
)


def _span_rules(prefix: str) -> tuple[WeightRule, ...]:
    """Of the models that find a span; all other kinds have our names."""
    names = ("model.embed_tokens", "model.norm", *LLAMA_LAYER)
    trunk = (WeightRule(ours=(name,), theirs=prefix + name.removeprefix("model."), kinds=(SPAN,)) for name in names)
    return (*trunk, WeightRule(ours=("score",), theirs="qa_outputs", kinds=(SPAN,)))


def _like_llama(model_type: str, span_prefix: str = "transformer.", **own: Any) -> Family:
    """A family with Llama's names, and its values where `own` has none."""
    name = model_type.capitalize()
    values: dict[str, Any] = {"fixed": {"hidden_act": ("silu", "swish")}, "defaults": LLAMA_DEFAULTS, **own}
    return Family(
        model_type=model_type,
        architectures={
            DECODER: f"{name}ForCausalLM",
            CLASSIFIER: f"{name}ForSequenceClassification",
            TOKENS: f"{name}ForTokenClassification",
            SPAN: f"{name}ForQuestionAnswering",
        },
        sizes=LLAMA_SIZES,
        switches=FAMILY_SWITCHES[model_type],
        rules=_span_rules(span_prefix),
        **values,
    )


QWEN3_DEFAULTS = {**QWEN_DEFAULTS, "head_dim": 128}
MISTRAL_DEFAULTS = {"num_key_value_heads": 8, "sliding_window": 4096, **LLAMA_DEFAULTS}
ARCEE = {"fixed": {"hidden_act": ("relu2",)}, "defaults": {**LLAMA_DEFAULTS, "rms_norm_eps": NORM_EPS["arcee"]}}
# In the order in which an export tries them.
FAMILIES = {
    "qwen3": _like_llama("qwen3", flags=ATTENTION_FLAG, defaults=QWEN3_DEFAULTS, window="layer_types"),
    "llama": _like_llama("llama", flags=LLAMA_FLAGS, d_model_is="multiple_of_heads"),
    "gpt2": GPT2,
    "qwen2": _like_llama("qwen2", defaults=QWEN_DEFAULTS, window="layer_types"),
    "mistral": _like_llama("mistral", "model.", defaults=MISTRAL_DEFAULTS, window="every_layer"),
    "arcee": _like_llama("arcee", flags=LLAMA_FLAGS, d_model_is="multiple_of_heads", **ARCEE),
    **{family.model_type: family for family in (BERT, ROBERTA, MODERNBERT)},
}
