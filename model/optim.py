"""Muon for hidden matrices, AdamW for embedding, norms and heads, as one optimiser with one state.

In: a model whose gradients are set, and the factor of the schedule. Out: updated weights. The state is a flat table
of float32 tensors by name, so that a checkpoint is safetensors and resumes to the bit.

Muon (https://kellerjordan.github.io/posts/muon): Nesterov momentum, then the nearest orthogonal matrix by a
Newton-Schulz iteration. torch.optim.Muon rounds to bfloat16 always, which CPUs without bfloat16 units emulate; ours
does so on CUDA only. Matrices of one shape are stacked (tall ones lying down), so that a step is a few batched
products and not a few for every matrix.

Legend: N matrices of one shape, R rows, C columns, R <= C.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from model.config import TrainConfig

# Quintic a x + b x^3 + c x^5, tuned for slope at 0 and not for convergence: singular values end near 1, between
# 0.7 and 1.2, after five steps.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


class Optimizer:
    """`step(factor)` updates every weight with its group's peak learning rate times `factor`."""

    def __init__(self, model: nn.Module, cfg: TrainConfig) -> None:
        hidden, others = parameter_groups(model, use_muon=cfg.muon_lr is not None)
        self.cfg = cfg
        self.muon = Muon(hidden, cfg.muon_momentum)
        self.names = list(others)
        matrices = [weight for weight in others.values() if weight.ndim > 1]
        vectors = [weight for weight in others.values() if weight.ndim <= 1]
        self.adamw = torch.optim.AdamW(
            [
                {"params": group, "weight_decay": decay}
                for group, decay in ((matrices, cfg.adamw_weight_decay), (vectors, 0.0))
                if group
            ],
            lr=cfg.adamw_lr,
            betas=(cfg.beta1, cfg.beta2),
            eps=cfg.adamw_eps,
            fused=True,
        )
        self.others = others

    def step(self, factor: float) -> None:
        if self.cfg.muon_lr is not None:
            self.muon.step(self.cfg.muon_lr * factor, self.cfg.muon_weight_decay)
        for group in self.adamw.param_groups:
            group["lr"] = self.cfg.adamw_lr * factor
        self.adamw.step()

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name; tensors may share memory with the optimiser."""
        state = {f"muon.momentum.{name}": buffer for name, buffer in self.muon.momentum().items()}
        for name, weight in self.others.items():
            state |= {f"adamw.{key}.{name}": value for key, value in self.adamw.state[weight].items()}
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a `state()`. Raises ValueError when it belongs to another model."""
        expected = {f"muon.momentum.{name}": buffer for name, buffer in self.muon.momentum().items()}
        scalar = torch.zeros(())
        for name, weight in self.others.items():
            expected |= {f"adamw.{key}.{name}": weight for key in ("exp_avg", "exp_avg_sq")}
            expected[f"adamw.step.{name}"] = scalar
        check_same_shapes("optimiser state", expected, state)
        self.muon.load({name: state[f"muon.momentum.{name}"] for name in self.muon.momentum()})
        for name, weight in self.others.items():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                # a copy: tensors of a mapped file are not aligned, and alignment may decide a rounding
                self.adamw.state[weight][key] = state[f"adamw.{key}.{name}"].to(weight.device, copy=True)


def parameter_groups(model: nn.Module, use_muon: bool) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Trainable weights by name: (matrices inside layers, for Muon; all others, for AdamW)."""
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    hidden = {name: w for name, w in trainable.items() if use_muon and w.ndim == 2 and ".layers." in f".{name}"}
    return hidden, {name: weight for name, weight in trainable.items() if name not in hidden}


class Muon:
    def __init__(self, weights: Mapping[str, nn.Parameter], momentum: float) -> None:
        self.momentum_factor = momentum
        self.groups: dict[tuple[int, int], dict[str, nn.Parameter]] = {}
        for name, weight in weights.items():
            shape = (min(weight.shape), max(weight.shape))
            self.groups.setdefault(shape, {})[name] = weight
        self.buffers = {
            shape: torch.zeros(len(group), *shape, device=next(iter(group.values())).device)
            for shape, group in self.groups.items()
        }

    @torch.no_grad()
    def step(self, lr: float, weight_decay: float) -> None:
        for shape, group in self.groups.items():
            gradient_NRC = torch.stack([lying(weight.grad) for weight in group.values() if weight.grad is not None])
            if gradient_NRC.size(0) != len(group):
                raise ValueError(f"a weight of {list(group)} has no gradient: it takes no part in the loss")
            momentum_NRC = self.buffers[shape]
            momentum_NRC.lerp_(gradient_NRC, 1 - self.momentum_factor)
            update_NRC = orthogonalised(gradient_NRC.lerp_(momentum_NRC, self.momentum_factor))
            for weight, update_RC in zip(group.values(), update_NRC.unbind(), strict=True):
                # a matrix that widens its input gets larger updates, so that its output moves as much
                scale = max(1.0, weight.size(0) / weight.size(1)) ** 0.5
                if weight_decay:
                    weight.mul_(1 - lr * weight_decay)
                weight.add_(update_RC.mT if is_tall(weight) else update_RC, alpha=-lr * scale)

    def momentum(self) -> dict[str, Tensor]:
        """Momentum of every weight by its name, in the weight's own orientation."""
        return {
            name: buffer.mT if is_tall(weight) else buffer
            for shape, group in self.groups.items()
            for (name, weight), buffer in zip(group.items(), self.buffers[shape].unbind(), strict=True)
        }

    def load(self, momentum: Mapping[str, Tensor]) -> None:
        for name, buffer in self.momentum().items():
            buffer.copy_(momentum[name])


def is_tall(matrix: Tensor) -> bool:
    return matrix.size(0) > matrix.size(1)


def lying(matrix: Tensor) -> Tensor:
    """The matrix, transposed if it is tall: Newton-Schulz costs the square of the first side."""
    return matrix.mT if is_tall(matrix) else matrix


def orthogonalised(gradient_NRC: Tensor, n_steps: int = NEWTON_SCHULZ_STEPS) -> Tensor:
    """Each matrix U S V^T becomes about U V^T; bfloat16 on CUDA, float32 elsewhere."""
    a, b, c = NEWTON_SCHULZ
    x_NRC = gradient_NRC.bfloat16() if gradient_NRC.is_cuda else gradient_NRC.float()
    x_NRC = x_NRC / (x_NRC.norm(dim=(1, 2), keepdim=True) + 1e-7)  # Frobenius norm bounds the largest singular value
    for _ in range(n_steps):
        gram_NRR = x_NRC @ x_NRC.mT
        polynomial_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, polynomial_NRR, x_NRC, beta=a)
    return x_NRC.to(gradient_NRC.dtype)


def check_same_shapes(what: str, expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
    """ValueError names the first tensors that are missing, unknown or of another shape."""
    if missing := sorted(expected.keys() - got.keys()):
        raise ValueError(f"{what}: {len(missing)} of {len(expected)} tensors are missing, first {missing[:3]}")
    if unknown := sorted(got.keys() - expected.keys()):
        raise ValueError(f"{what}: no place for {len(unknown)} of {len(got)} tensors, first {unknown[:3]}")
    for name, tensor in expected.items():
        if got[name].shape != tensor.shape:
            raise ValueError(f"{what}: {name} has shape {tuple(got[name].shape)}, expected {tuple(tensor.shape)}")
