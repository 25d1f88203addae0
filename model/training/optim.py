"""Muon for hidden matrices, AdamW for embedding, norms and heads, as one optimiser with one state.

In: a model whose gradients are set, and the factor of the schedule. Out: updated weights. The state is a flat table
of float32 tensors by name, so that a checkpoint is safetensors and resumes to the bit.

Muon (https://kellerjordan.github.io/posts/muon): Nesterov momentum, then the nearest orthogonal matrix by a
Newton-Schulz iteration. torch.optim.Muon rounds to bfloat16 always, which CPUs without bfloat16 units emulate; ours
does so on CUDA only. Matrices of one shape are stacked (tall ones lying down), so that a step is a few batched
products and not a few for every matrix. Among several processes each orthogonalises its share of the matrices.

Under FSDP the optimiser works on this process' shards as plain tensors: everything but Muon's orthogonalisation is
elementwise.

Legend: N matrices of one shape, R rows, C columns, R <= C.
"""

import functools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from model.network.linear import is_for_onednn, product
from model.training.config import TrainConfig
from model.training.distributed import (
    full_tensor_on_main,
    in_group,
    is_sharded,
    local_shard,
    orthogonalise_distributed,
    shard_of,
)
from model.training.files import check_same_shapes

# Quintics a x + b x^3 + c x^5, one a step, each the best for the interval that the one before leaves (Polar Express,
# arXiv:2505.16932): of singular values from 0.01 to 1 three leave 0.73 to 1.27, and of 0.001 to 1 five 0.88 to 1.12.
NEWTON_SCHULZ = {
    3: ((8.0195, -22.9987, 16.8990), (3.6414, -2.7254, 0.5369), (2.6684, -1.9829, 0.4533)),
    5: (
        (8.3197, -23.8595, 17.5314),
        (4.1227, -2.9806, 0.5521),
        (3.9616, -2.9403, 0.5591),
        (3.3104, -2.4825, 0.5094),
        (2.2938, -1.6627, 0.4181),
    ),
}
MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """`step(factor)` updates every weight with its group's peak learning rate times `factor`."""

    def __init__(self, model: nn.Module, cfg: TrainConfig) -> None:
        hidden, self.others = parameter_groups(model, use_muon=cfg.muon_lr is not None)
        self.cfg = cfg
        self.muon = Muon(hidden, cfg.muon_momentum, cfg.newton_schulz_steps)
        self.parts = {name: part(weight) for name, weight in self.others.items()}
        matrices = [self.parts[name] for name, weight in self.others.items() if weight.ndim > 1]
        vectors = [self.parts[name] for name, weight in self.others.items() if weight.ndim <= 1]
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

    def step(self, factor: float) -> None:
        if self.cfg.muon_lr is not None:
            self.muon.step(self.cfg.muon_lr * factor, self.cfg.muon_weight_decay)
        for group in self.adamw.param_groups:
            group["lr"] = self.cfg.adamw_lr * factor
        for name, weight in self.others.items():
            if weight.grad is not None:
                self.parts[name].grad = local_shard(weight.grad)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)

    def n_bytes(self) -> int:
        """What its state takes in this process so far; AdamW's moments are made by the first step."""
        moments = [moment for state in self.adamw.state.values() for moment in state.values()]
        return sum(tensor.nbytes for tensor in (*self.muon.momentum().values(), *moments))

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, whole tensors by name, which may share memory with the optimiser.
        With shards every process must call it, and rank 0 alone gets them."""
        state = {
            f"muon.momentum.{name}": full_tensor_on_main(part, self.muon.weights[name])
            for name, part in self.muon.momentum().items()
        }
        for name, weight in self.others.items():
            of_weight = self.adamw.state[self.parts[name]]
            state |= {
                f"adamw.{key}.{name}": full_tensor_on_main(of_weight[key], weight)
                for key in MOMENTS
                if key in of_weight
            }
            if "step" in of_weight:
                state[f"adamw.step.{name}"] = of_weight["step"]
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a `state()`. Raises ValueError when it belongs to another model."""
        expected: dict[str, Tensor] = {f"muon.momentum.{name}": weight for name, weight in self.muon.weights.items()}
        scalar = torch.zeros(())
        for name, weight in self.others.items():
            expected |= {f"adamw.{key}.{name}": weight for key in MOMENTS}
            expected[f"adamw.step.{name}"] = scalar
        check_same_shapes("optimiser state", expected, state)
        for name, momentum in self.muon.momentum().items():
            momentum.copy_(shard_of(state[f"muon.momentum.{name}"], self.muon.weights[name]))
        for name, weight in self.others.items():
            # copies: tensors of a mapped file are not aligned, and alignment may decide a rounding
            own = {key: shard_of(state[f"adamw.{key}.{name}"], weight).clone() for key in MOMENTS}
            self.adamw.state[self.parts[name]] = own | {
                "step": state[f"adamw.step.{name}"].to(weight.device, copy=True)
            }


def part(weight: nn.Parameter) -> nn.Parameter:
    """What this process updates of a weight: itself, or the shard as a plain parameter in the same memory."""
    own = local_shard(weight)
    return weight if own is weight else nn.Parameter(own)


def parameter_groups(model: nn.Module, use_muon: bool) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Trainable weights by name: (matrices inside layers, for Muon; all others, for AdamW)."""
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    hidden = {name: w for name, w in trainable.items() if use_muon and w.ndim == 2 and ".layers." in f".{name}"}
    return hidden, {name: weight for name, weight in trainable.items() if name not in hidden}


class Muon:
    def __init__(self, weights: Mapping[str, nn.Parameter], momentum: float, n_steps: int) -> None:
        self.momentum_factor = momentum
        self.weights = dict(weights)
        groups: dict[tuple[torch.Size, int | None], dict[str, nn.Parameter]] = {}
        for name, weight in weights.items():
            shape = torch.Size(sorted(weight.shape))
            groups.setdefault((shape, shard_dim_of(weight)), {})[name] = weight
        self.groups = [MuonGroup(group, shape, cut, n_steps) for (shape, cut), group in groups.items()]

    @torch.no_grad()
    def step(self, lr: float, weight_decay: float) -> None:
        for stack in self.groups:
            gradient_NRC = stack.gradients()
            stack.momentum_NRC.lerp_(gradient_NRC, 1 - self.momentum_factor)
            update_NRC = stack.orthogonalised(gradient_NRC.lerp_(stack.momentum_NRC, self.momentum_factor))
            for weight, update_RC in zip(stack.weights.values(), update_NRC.unbind(), strict=True):
                # a matrix that widens its input gets larger updates, so that its output moves as much
                scale = max(1.0, weight.size(0) / weight.size(1)) ** 0.5
                own = local_shard(weight)
                if weight_decay:
                    own.mul_(1 - lr * weight_decay)
                own.add_(as_wide(weight, update_RC), alpha=-lr * scale)

    def momentum(self) -> dict[str, Tensor]:
        """What this process holds of the momentum of every weight, by its name and in its orientation."""
        return {
            name: as_wide(weight, buffer)
            for stack in self.groups
            for (name, weight), buffer in zip(stack.weights.items(), stack.momentum_NRC.unbind(), strict=True)
        }


class MuonGroup:
    """Weights of one lying shape, cut alike among the processes, and their momentum."""

    def __init__(self, weights: dict[str, nn.Parameter], shape: torch.Size, cut: int | None, n_steps: int) -> None:
        self.weights, self.cut = weights, cut
        self.orthogonal = functools.partial(orthogonalised, n_steps=n_steps)
        self.shape = torch.Size((len(weights), *shape))  # of all matrices, whole
        first = next(iter(weights.values()))
        own_RC = as_wide(first, local_shard(first))
        self.momentum_NRC = torch.zeros(len(weights), *own_RC.shape, device=own_RC.device)

    def gradients(self) -> Tensor:
        gradients = [as_wide(w, local_shard(w.grad)) for w in self.weights.values() if w.grad is not None]
        if len(gradients) != len(self.weights):
            raise ValueError(f"a weight of {list(self.weights)} has no gradient: it takes no part in the loss")
        return torch.stack(gradients)

    def orthogonalised(self, own_NRC: Tensor) -> Tensor:
        if not in_group():
            return self.orthogonal(own_NRC)
        return orthogonalise_distributed(self.orthogonal, own_NRC, self.shape, self.cut)


def shard_dim_of(weight: Tensor) -> int | None:
    """The dimension of a stack along which FSDP, which cuts rows, cut the matrices; None where they are whole."""
    if not is_sharded(weight):
        return None
    return 2 if is_tall(weight) else 1


def is_tall(matrix: Tensor) -> bool:
    return matrix.size(0) > matrix.size(1)


def as_wide(weight: Tensor, part: Tensor) -> Tensor:
    """A part of `weight` or of its gradient, transposed if the weight is tall, and back: Newton-Schulz costs the
    square of the first side."""
    return part.mT if is_tall(weight) else part


def orthogonalised(gradient_NRC: Tensor, n_steps: int = 5) -> Tensor:
    """Each matrix U S V^T becomes about U V^T, in 3 or 5 steps; bfloat16 on CUDA, float32 elsewhere."""
    x_NRC = gradient_NRC.bfloat16() if gradient_NRC.is_cuda else gradient_NRC.float()
    # the Frobenius norm bounds the largest singular value; 1 % more, since above 1 the polynomials run away
    x_NRC = x_NRC / (1.01 * x_NRC.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if len(x_NRC) and is_for_onednn(x_NRC[0], x_NRC[0]):  # takes no stacks, and is still twice as fast
        return torch.stack([newton_schulz(x_RC, n_steps) for x_RC in x_NRC])
    for a, b, c in NEWTON_SCHULZ[n_steps]:
        gram_NRR = x_NRC @ x_NRC.mT
        polynomial_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, polynomial_NRR, x_NRC, beta=a)
    return x_NRC.to(gradient_NRC.dtype)


def newton_schulz(x_RC: Tensor, n_steps: int) -> Tensor:
    """The same iteration of one matrix, by oneDNN."""
    for a, b, c in NEWTON_SCHULZ[n_steps]:
        gram_RR = product(x_RC, x_RC)
        polynomial_RR = product(gram_RR, gram_RR).mul_(c).add_(gram_RR, alpha=b)
        polynomial_RR.diagonal().add_(a)
        x_RC = product(polynomial_RR, x_RC.mT)
    return x_RC
