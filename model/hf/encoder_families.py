"""Tables of the encoders: BERT (arXiv:1810.04805), RoBERTa (arXiv:1907.11692) and ModernBERT (arXiv:2412.13663).

In: nothing. Out: a Family each, for model/hf/families.py. BERT and RoBERTa have the same layers under the same names.
They differ in the number of the first position, and in the heads. Names and defaults: transformers 5.23.
"""

from model.hf.family import CLASSIFIER, ENCODER, LAYER, MASKED_LM, QKV, SPAN, TOKENS, Family, WeightRule
from model.network.shape import FAMILY_SWITCHES, NORM_EPS

SIZES = {
    "vocab_size": "vocab_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
    "tie_embeddings": "tie_word_embeddings",
}
BERT_SIZES = {**SIZES, "norm_eps": "layer_norm_eps", "n_token_types": "type_vocab_size"}
# The layers of BERT, below bert.encoder.layer.0. and the like.
BERT_LAYER = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.o_proj": "attention.output.dense",
    "input_layernorm": "attention.output.LayerNorm",
    "mlp.up_proj": "intermediate.dense",
    "mlp.down_proj": "output.dense",
    "post_attention_layernorm": "output.LayerNorm",
}
BERT_EMBEDDINGS = {
    "model.embed_tokens": "embeddings.word_embeddings",
    "model.embed_positions": "embeddings.position_embeddings",
    "model.embed_types": "embeddings.token_type_embeddings",
    "model.embed_norm": "embeddings.LayerNorm",
}
MODERNBERT_LAYER = {
    (LAYER + "input_layernorm",): "attn_norm",
    QKV: "attn.Wqkv",
    (LAYER + "self_attn.o_proj",): "attn.Wo",
    (LAYER + "post_attention_layernorm",): "mlp_norm",
    (LAYER + "mlp.gate_proj", LAYER + "mlp.up_proj"): "mlp.Wi",
    (LAYER + "mlp.down_proj",): "mlp.Wo",
}


def _rule(ours: str, theirs: str, *kinds: str) -> WeightRule:
    return WeightRule(ours=(ours,), theirs=theirs, kinds=kinds or (ENCODER, MASKED_LM, CLASSIFIER, TOKENS, SPAN))


def _bert_trunk(prefix: str) -> tuple[WeightRule, ...]:
    layers = (_rule(LAYER + ours, f"{prefix}encoder.layer.{{}}.{theirs}") for ours, theirs in BERT_LAYER.items())
    return (*(_rule(ours, prefix + theirs) for ours, theirs in BERT_EMBEDDINGS.items()), *layers)


def _like_bert(model_type: str, name: str, *heads: WeightRule, **own: object) -> Family:
    prefix = f"{model_type}."
    values: dict = {
        "model_type": model_type,
        "architectures": {
            ENCODER: f"{name}Model",
            MASKED_LM: f"{name}ForMaskedLM",
            CLASSIFIER: f"{name}ForSequenceClassification",
            TOKENS: f"{name}ForTokenClassification",
            SPAN: f"{name}ForQuestionAnswering",
        },
        "sizes": BERT_SIZES,
        "switches": FAMILY_SWITCHES[model_type],
        "defaults": {"layer_norm_eps": NORM_EPS["bert"], "tie_word_embeddings": True, "type_vocab_size": 2},
        "written": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": None},
        "d_model_is": "heads",
        "is_grouped": False,
        "prefix": prefix,
        "rules": (
            *_bert_trunk(prefix),
            _rule("pooler", f"{prefix}pooler.dense", ENCODER),
            _rule("score", "classifier", TOKENS),
            _rule("score", "qa_outputs", SPAN),
            *heads,
        ),
        "buffers": ("embeddings.position_ids", "embeddings.token_type_ids"),
        "old_endings": {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
        "pooler": f"{prefix}pooler.dense",
        **own,
    }
    return Family(**values)


FIXED = {
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}
BERT = _like_bert(
    "bert",
    "Bert",
    _rule("head.dense", "cls.predictions.transform.dense", MASKED_LM),
    _rule("head.norm", "cls.predictions.transform.LayerNorm", MASKED_LM),
    _rule("lm_head", "cls.predictions.decoder", MASKED_LM),
    _rule("head.dense", "bert.pooler.dense", CLASSIFIER),
    _rule("score", "classifier", CLASSIFIER),
    fixed=FIXED,
    heads=("cls.", "classifier.", "qa_outputs."),
    read_as={"BertForPreTraining": MASKED_LM},
    unused=("bert.pooler.", "cls.seq_relationship."),  # of the prediction of the next sentence
    copies={"cls.predictions.decoder.bias": "cls.predictions.bias"},
)
ROBERTA = _like_bert(
    "roberta",
    "Roberta",
    _rule("head.dense", "lm_head.dense", MASKED_LM),
    _rule("head.norm", "lm_head.layer_norm", MASKED_LM),
    _rule("lm_head", "lm_head.decoder", MASKED_LM),
    _rule("head.dense", "classifier.dense", CLASSIFIER),
    _rule("score", "classifier.out_proj", CLASSIFIER),
    fixed={**FIXED, "pad_token_id": (1,)},  # transformers counts positions from the number after it
    heads=("lm_head.", "classifier.", "qa_outputs."),
    unused=("roberta.pooler.",),
    copies={"lm_head.decoder.bias": "lm_head.bias"},
)
MODERNBERT = Family(
    model_type="modernbert",
    architectures={
        ENCODER: "ModernBertModel",
        MASKED_LM: "ModernBertForMaskedLM",
        CLASSIFIER: "ModernBertForSequenceClassification",
        TOKENS: "ModernBertForTokenClassification",
        SPAN: "ModernBertForQuestionAnswering",
    },
    sizes={**SIZES, "norm_eps": "norm_eps"},
    switches=FAMILY_SWITCHES["modernbert"],
    flags={
        "attention_bias": ("qkv_bias", "output_bias"),
        "mlp_bias": ("mlp_bias",),
        "classifier_bias": ("head_bias",),
        "decoder_bias": ("lm_head_bias",),
    },
    choices={
        "norm_bias": ("norm", {False: "layernorm_no_bias", True: "layernorm"}),
        "classifier_pooling": ("pooling", {"cls": "first", "mean": "mean"}),
    },
    fixed={"hidden_activation": ("gelu",), "classifier_activation": ("gelu",)},
    defaults={"norm_eps": NORM_EPS["modernbert"], "tie_word_embeddings": True, "decoder_bias": True},
    # Without these the ids of transformers' defaults are beyond a small vocabulary.
    written=dict.fromkeys(f"{name}_token_id" for name in ("pad", "bos", "eos", "cls", "sep")),
    window="two_sided",
    d_model_is="heads",
    is_grouped=False,
    prefix="model.",
    heads=("head.", "decoder.", "classifier."),
    rules=(
        _rule("model.embed_tokens", "model.embeddings.tok_embeddings"),
        _rule("model.embed_norm", "model.embeddings.norm"),
        *(WeightRule(ours=ours, theirs=f"model.layers.{{}}.{theirs}") for ours, theirs in MODERNBERT_LAYER.items()),
        _rule("model.norm", "model.final_norm"),
        _rule("head.dense", "head.dense"),
        _rule("head.norm", "head.norm"),
        _rule("lm_head", "decoder"),
        _rule("score", "classifier"),
    ),
)
