"""Feed-forward network, position by position: gated, down(f(gate(x)) * up(x)), or plain, down(f(up(x))).

In and out: (B, T, D). SwiGLU and GeGLU: arXiv:2002.05202 (Llama and Qwen3, and ModernBERT). GELU: arXiv:1606.08415,
exact as in BERT, or in its tanh form as in GPT-2. Squared ReLU: arXiv:2109.08668 (Hugging Face's Arcee). Parameter
names are those of Hugging Face's Llama.

Legend: B batch, T position, D d_model, F d_ff.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from model.network.linear import Linear
from model.network.packed import joint
from model.network.shape import LayerShape


class FeedForward(nn.Module):
    def __init__(self, cfg: LayerShape) -> None:
        super().__init__()
        self.kind = cfg.mlp
        self.is_gated = cfg.is_gated
        if cfg.is_gated:
            self.gate_proj = Linear(cfg.d_model, cfg.d_ff, bias=cfg.mlp_bias)
        self.up_proj = Linear(cfg.d_model, cfg.d_ff, bias=cfg.mlp_bias)
        self.down_proj = Linear(cfg.d_ff, cfg.d_model, bias=cfg.mlp_bias, starts_at_zero=True)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(activated(self.kind, *self.up(x_BTD)))

    def up(self, x_BTD: Tensor) -> tuple[Tensor, Tensor | None]:
        """Up (B, T, F), and the gate before its activation, None where the layer has no gate.

        Nothing else reads the weights of these two projections.
        """
        if not self.is_gated:
            return self.up_proj(x_BTD), None
        if (joint_BTJ := joint(x_BTD, self.gate_proj, self.up_proj)) is not None:
            gate_BTF, up_BTF = joint_BTJ.chunk(2, dim=-1)
            return up_BTF, gate_BTF
        gate_BTF = self.gate_proj(x_BTD)
        return self.up_proj(x_BTD), gate_BTF


def activated(kind: str, up_BTF: Tensor, gate_BTF: Tensor | None) -> Tensor:
    """The input of down_proj; `gate` is None for the ungated kinds."""
    if gate_BTF is not None:
        return (F.silu(gate_BTF) if kind == "swiglu" else F.gelu(gate_BTF)) * up_BTF
    if kind == "relu2":
        return F.relu(up_BTF).square()
    return F.gelu(up_BTF, approximate="tanh" if kind == "gelu_tanh" else "none")
