"""Feed-forward layer, position by position: gated, down(silu(gate(x)) * up(x)), or plain, down(f(up(x))).

In and out: (B, T, D). SwiGLU: arXiv:2002.05202 (Llama, Qwen3). GELU in its tanh form: arXiv:1606.08415 (GPT-2).
Squared ReLU: arXiv:2109.08668 (Hugging Face's Arcee). Parameter names are Hugging Face's.

Legend: B batch, T position, D d_model, F d_ff.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from model.config import DecoderConfig
from model.linear import Linear


class FeedForward(nn.Module):
    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.kind = cfg.mlp
        if cfg.mlp == "swiglu":
            self.gate_proj = Linear(cfg.d_model, cfg.d_ff, bias=cfg.mlp_bias)
        self.up_proj = Linear(cfg.d_model, cfg.d_ff, bias=cfg.mlp_bias)
        self.down_proj = Linear(cfg.d_ff, cfg.d_model, bias=cfg.mlp_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        up_BTF = self.up_proj(x_BTD)
        if self.kind == "swiglu":
            return self.down_proj(F.silu(self.gate_proj(x_BTD)) * up_BTF)
        if self.kind == "relu2":
            return self.down_proj(F.relu(up_BTF).square())
        return self.down_proj(F.gelu(up_BTF, approximate="tanh"))
