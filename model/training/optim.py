"""Muon for hidden matrices, AdamW for embedding, norms and heads, as one optimiser with one state.

In: a model whose gradients are set, and the factor of the schedule. Out: updated weights. The state is a flat table
of float32 tensors by name, so that a checkpoint is safetensors and resumes to the bit.

Muon (https://kellerjordan.github.io/posts/muon): Nesterov momentum, then the nearest orthogonal matrix by a
Newton-Schulz iteration. torch.optim.Muon always rounds to bfloat16, which CPUs without bfloat16 units emulate; ours
does so on CUDA only. Matrices of one shape are stacked, tall ones transposed, so that a step is a few batched
products and not a few per matrix.

What moves between processes. All but the orthogonalisation is elementwise and works on what each process has: whole
weights under DDP, its shard of each under FSDP. The orthogonalisation needs whole matrices, but each in one process
only, so that its work is divided among the processes and not repeated:

- DDP: gradients are summed before the step, so every process has the whole stack (N, R, C) and the same momentum.
  Each takes its N / n_processes matrices of it, which moves nothing, and orthogonalises them. One all-gather gives
  all processes all results: 4 R C bytes per matrix, received once.
- FSDP: backward has reduce-scattered the gradients, so a process has a slice of every matrix: of rows, or of columns
  where the stack has the matrix transposed. One all-to-all turns slices of all matrices into some whole matrices,
  each process orthogonalises those, and a second all-to-all turns the results back into slices (gloo cannot, so that
  torch gathers all and drops the rest). Momentum exists in slices only, and no process ever has a whole stack.

Where N is not a multiple of n_processes the last ones have fewer matrices, or none, and wait. The collectives run
stack by stack, in the order of the model's parameters, which is the same in all processes. All get the same bits of a
matrix, because only one has computed it.

Legend: N matrices of one shape, R rows, C columns, R <= C.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from model.training.compilation import compile_backend
from model.training.config import TrainConfig
from model.training.distributed import full_tensor_on_main, in_group, is_sharded, local_shard, shard_of, whole_mesh
from model.training.files import check_same_shapes
from model.training.newton_schulz import orthogonalised
from model.training.replicas import Replicas

MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """`step(factor)` updates every weight with its group's peak learning rate times `factor`."""

    def __init__(self, model: nn.Module, cfg: TrainConfig) -> None:
        hidden, self.others = parameter_groups(model, use_muon=cfg.muon_lr is not None)
        self.model, self.cfg = model, cfg
        shares = layer_shares(model, cfg.layer_decay)
        self.muon = Muon(hidden, cfg.muon_momentum, cfg.newton_schulz_steps, shares)
        self.updated = {name: local_parameter(weight) for name, weight in self.others.items()}
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}  # (weight decay, share of the rate) -> weights
        for is_vector in (False, True):
            for name, weight in self.others.items():
                if (weight.ndim <= 1) is is_vector:
                    decay = 0.0 if is_vector else cfg.adamw_weight_decay
                    groups.setdefault((decay, shares[name]), []).append(self.updated[name])
        self.adamw = torch.optim.AdamW(
            [{"params": group, "weight_decay": decay, "share": share} for (decay, share), group in groups.items()],
            lr=cfg.adamw_lr,
            betas=(cfg.beta1, cfg.beta2),
            eps=cfg.adamw_eps,
            fused=True,
        )

    def step(self, factor: float, is_applied: Tensor | None = None) -> None:
        """`is_applied` (bool, 0-d, on the device; None = yes): where it is False, weights and state keep their bits,
        and the host does not learn of it."""
        if self.cfg.muon_lr is not None:
            backend = compile_backend(self.model)
            self.muon.step(self.cfg.muon_lr * factor, self.cfg.muon_weight_decay, is_applied, backend)
        for group in self.adamw.param_groups:
            group["lr"] = self.cfg.adamw_lr * factor * group["share"]
        for name, weight in self.others.items():
            if weight.grad is not None:
                self.updated[name].grad = local_shard(weight.grad)
        # The fused kernel leaves out the update where this is 1; meant for GradScaler, which sets it in the same way.
        self.adamw.found_inf = None if is_applied is None else (~is_applied).float()  # type: ignore[attr-defined]
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)

    def n_bytes(self) -> int:
        """What its state takes in this process so far; AdamW's moments are made by the first step."""
        moments = [moment for state in self.adamw.state.values() for moment in state.values()]
        return sum(tensor.nbytes for tensor in (*self.muon.momentum().values(), *moments))

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on: whole tensors by name. Without shards they may share memory with
        the optimiser; with shards they are copies, every process must call it, and only rank 0 gets them."""
        state = {
            f"muon.momentum.{name}": full_tensor_on_main(momentum, self.muon.weights[name])
            for name, momentum in self.muon.momentum().items()
        }
        for name, weight in self.others.items():
            of_weight = self.adamw.state[self.updated[name]]
            for key in (moment for moment in MOMENTS if moment in of_weight):
                state[f"adamw.{key}.{name}"] = full_tensor_on_main(of_weight[key], weight)
            if "step" in of_weight:
                state[f"adamw.step.{name}"] = of_weight["step"].clone()  # under FSDP all others are gathered copies
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a `state()`. Raises ValueError when it belongs to another model."""
        expected: dict[str, Tensor] = {f"muon.momentum.{name}": weight for name, weight in self.muon.weights.items()}
        scalar = torch.zeros(())
        # AdamW has no state of a weight before its first update
        updated = {name: weight for name, weight in self.others.items() if f"adamw.step.{name}" in state}
        for name, weight in updated.items():
            expected |= {f"adamw.{key}.{name}": weight for key in MOMENTS}
            expected[f"adamw.step.{name}"] = scalar
        check_same_shapes("optimiser state", expected, state)
        for name, momentum in self.muon.momentum().items():
            momentum.copy_(shard_of(state[f"muon.momentum.{name}"], self.muon.weights[name]))
        for name, weight in updated.items():
            # copies: tensors of a mapped file are not aligned, and alignment may decide a rounding
            moments = {key: shard_of(state[f"adamw.{key}.{name}"], weight).clone() for key in MOMENTS}
            self.adamw.state[self.updated[name]] = moments | {
                "step": state[f"adamw.step.{name}"].to(weight.device, copy=True)
            }


def local_parameter(weight: nn.Parameter) -> nn.Parameter:
    """What this process updates of a weight: itself, or its shard as a plain parameter in the same memory."""
    shard = local_shard(weight)
    return weight if shard is weight else nn.Parameter(shard)


def parameter_groups(model: nn.Module, use_muon: bool) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Trainable weights by name: (hidden matrices, for Muon; all others, for AdamW)."""
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    matrices = {id(linear.weight) for linear in hidden_linears(model)} if use_muon else set()
    hidden = {name: weight for name, weight in trainable.items() if id(weight) in matrices}
    return hidden, {name: weight for name, weight in trainable.items() if name not in hidden}


def layer_shares(model: nn.Module, decay: float) -> dict[str, float]:
    """Share of the peak rate of every weight: decay^(n - i) in layer i of n, counted from 1.

    Embeddings have i = 0; what follows the layers, such as heads, has i = n (arXiv:1801.06146 section 3.2).
    """
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    n_layers = max(map(len, lists.values()), default=0)
    shares, is_after = {}, False
    for name, _ in model.named_parameters():
        within = next((one for one in lists if name.startswith(f"{one}.")), None)
        is_after = is_after or within is not None
        layer = n_layers if is_after else 0
        if within is not None:
            layer = 1 + int(name.removeprefix(f"{within}.").partition(".")[0])
        shares[name] = decay ** (n_layers - layer)
    return shares


def hidden_linears(module: nn.Module, is_in_layers: bool = False) -> Iterator[nn.Linear]:
    """The linear maps inside lists of layers, however these are named.

    Not those of adapters: a module with `is_adapter = True`, and all below it. Their matrices are products of low
    rank, whose factors are not meant to be orthogonal.
    """
    if getattr(module, "is_adapter", False) is True:
        return
    if is_in_layers and isinstance(module, nn.Linear):
        yield module
    for child in module.children():
        yield from hidden_linears(child, is_in_layers or isinstance(module, nn.ModuleList))


class Muon:
    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        momentum: float,
        n_steps: int,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        """`shares` of the rate by name; None = 1 for all."""
        self.momentum_factor = momentum
        self.weights, self.shares = dict(weights), shares or dict.fromkeys(weights, 1.0)
        self.replicas: Replicas | None = None  # whose threads share the matrices out; None = products use the threads
        groups: dict[tuple[torch.Size, int | None], dict[str, nn.Parameter]] = {}
        for name, weight in weights.items():
            shape = torch.Size(sorted(weight.shape))
            groups.setdefault((shape, shard_dim_of(weight)), {})[name] = weight
        self.groups = [MuonGroup(group, shape, dim, n_steps) for (shape, dim), group in groups.items()]

    @torch.no_grad()
    def step(
        self, lr: float, weight_decay: float, is_applied: Tensor | None = None, compile_backend: str | None = None
    ) -> None:
        for group in self.groups:
            gradient_NRC = group.gradients()
            if is_applied is not None:  # the mean of momentum and itself is itself
                torch.where(is_applied, gradient_NRC, group.momentum_NRC, out=gradient_NRC)
            group.momentum_NRC.lerp_(gradient_NRC, 1 - self.momentum_factor)
            gradient_NRC.lerp_(group.momentum_NRC, self.momentum_factor)
            update_NRC = group.orthogonalised(gradient_NRC, compile_backend, self.replicas)
            if is_applied is not None:
                update_NRC = update_NRC * is_applied
            for (name, weight), update_RC in zip(group.weights.items(), update_NRC.unbind(), strict=True):
                rate = lr * self.shares[name]
                # a matrix that widens its input gets larger updates, so that its output moves as much
                scale = max(1.0, weight.size(0) / weight.size(1)) ** 0.5
                shard = local_shard(weight)
                if weight_decay:
                    kept = 1 - rate * weight_decay
                    shard.mul_(kept if is_applied is None else torch.where(is_applied, kept, 1.0))
                shard.add_(as_wide(weight, update_RC), alpha=-rate * scale)

    def momentum(self) -> dict[str, Tensor]:
        """This process's shard of the momentum of every weight, by its name and in its orientation."""
        return {
            name: as_wide(weight, buffer)
            for group in self.groups
            for (name, weight), buffer in zip(group.weights.items(), group.momentum_NRC.unbind(), strict=True)
        }


class MuonGroup:
    """Weights of one wide shape that are sharded alike, and their momentum, as stacks."""

    def __init__(
        self, weights: dict[str, nn.Parameter], shape: torch.Size, shard_dim: int | None, n_steps: int
    ) -> None:
        self.weights, self.shard_dim, self.n_steps = weights, shard_dim, n_steps
        self.shape = torch.Size((len(weights), *shape))  # of the stack of whole matrices
        first = next(iter(weights.values()))
        shard_RC = as_wide(first, local_shard(first))
        self.momentum_NRC = torch.zeros(len(weights), *shard_RC.shape, device=shard_RC.device)

    def gradients(self) -> Tensor:
        gradients = [as_wide(w, local_shard(w.grad)) for w in self.weights.values() if w.grad is not None]
        if len(gradients) != len(self.weights):
            raise ValueError(f"a weight of {list(self.weights)} has no gradient: it takes no part in the loss")
        return torch.stack(gradients)

    def orthogonalised(self, shard_NRC: Tensor, compile_backend: str | None, replicas: Replicas | None) -> Tensor:
        def orthogonal(x_NRC: Tensor) -> Tensor:
            return orthogonalised(x_NRC, self.n_steps, compile_backend if x_NRC.is_cuda else None)

        if replicas is not None:
            return torch.cat(replicas.each(orthogonal, shard_NRC.chunk(len(replicas.models))))
        if not in_group():
            return orthogonal(shard_NRC)
        return orthogonalise_distributed(orthogonal, shard_NRC, self.shape, self.shard_dim)


def shard_dim_of(weight: Tensor) -> int | None:
    """The dimension of a stack (N, R, C) that is sharded under FSDP, which shards rows; None where none is."""
    if not is_sharded(weight):
        return None
    return 2 if is_tall(weight) else 1


def is_tall(matrix: Tensor) -> bool:
    return matrix.size(0) > matrix.size(1)


def as_wide(weight: Tensor, shard: Tensor) -> Tensor:
    """`shard` of `weight` (or of its gradient) with rows <= columns: transposed if `weight` is tall. Applied twice it
    gives `shard` back. The cost of Newton-Schulz grows with the square of the rows."""
    return shard.mT if is_tall(weight) else shard


def orthogonalise_distributed(
    function: Callable[[Tensor], Tensor], shard_NRC: Tensor, shape: torch.Size, shard_dim: int | None
) -> Tensor:
    """`function` of whole matrices, each computed by one process (see the top of this file).

    `shard_NRC` is this process's shard, along `shard_dim`, of a stack of `shape` (None: the whole stack), and so is
    the result. Every process must call it.
    """
    from torch.distributed.tensor import DTensor, Replicate, Shard

    mesh = whole_mesh(shard_NRC.device)
    outside = Replicate() if shard_dim is None else Shard(shard_dim)
    inside = Shard(0)  # whole matrices
    strides = torch.empty(shape, device="meta").stride()
    stack: dict[str, Any] = {"run_check": False, "shape": shape, "stride": strides}
    shards_NRC = DTensor.from_local(shard_NRC, mesh, [outside], **stack)
    matrices_NRC = shards_NRC.redistribute(placements=[inside]).to_local()
    result_NRC = DTensor.from_local(function(matrices_NRC), mesh, [inside], **stack)
    return result_NRC.redistribute(placements=[outside]).to_local()
