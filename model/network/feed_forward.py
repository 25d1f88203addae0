"""Feed-forward layer, position by position: gated, down(silu(gate(x)) * up(x)), or plain, down(f(up(x))).

In and out: (B, T, D). SwiGLU: arXiv:2002.05202 (Llama, Qwen3). GELU in its tanh form: arXiv:1606.08415 (GPT-2).
Squared ReLU: arXiv:2109.08668 (Hugging Face's Arcee). Parameter names are Hugging Face's.

Legend: B batch, T position, D d_model, F d_ff.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from model.network.linear import Linear
from model.network.shape import DecoderConfig


class FeedForward(nn.Module):
    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.kind = cfg.mlp
        if cfg.mlp == "swiglu":
            self.gate_proj = Linear(cfg.d_model, cfg.d_ff, bias=cfg.mlp_bias)
        self.up_proj = Linear(cfg.d_model, cfg.d_ff, bias=cfg.mlp_bias)
        self.down_proj = Linear(cfg.d_ff, cfg.d_model, bias=cfg.mlp_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(activated(self.kind, *self.up(x_BTD)))

    def up(self, x_BTD: Tensor) -> tuple[Tensor, Tensor | None]:
        """Up (B, T, F), and the gate before its activation, None where the layer has no gate.

        Nothing else reads the weights of these two projections.
        """
        gate_BTF = self.gate_proj(x_BTD) if self.kind == "swiglu" else None
        return self.up_proj(x_BTD), gate_BTF


def activated(kind: str, up_BTF: Tensor, gate_BTF: Tensor | None) -> Tensor:
    """What goes into down_proj; only swiglu has a gate."""
    if gate_BTF is not None:
        return F.silu(gate_BTF) * up_BTF
    return F.relu(up_BTF).square() if kind == "relu2" else F.gelu(up_BTF, approximate="tanh")
