"""One batch walked through the decoder: what goes into and comes out of each part, with real shapes.

    python -m bench.batch_walk [--preset demo] [--vocab 4096] [--rows 8] [--tokens 100]

Prints a line a call of the first layer and of what surrounds it, in the order of the calls, then the loss and the
gradients. The ids are random: shapes and sizes are what is shown, and a new model's loss is ln(vocabulary).
"""

import argparse

import torch
from torch import nn

from model.network.decoder import new_decoder
from model.network.size import flops_per_token, n_parameters
from model.training.loss import language_model_loss
from model.training.presets import PRESETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="demo", choices=PRESETS)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=100)
    args = parser.parse_args()
    cfg = PRESETS[args.preset].shape.with_vocab(args.vocab)
    model = new_decoder(cfg, seed=0)
    print(f"{args.preset}: {n_parameters(cfg):,} parameters, {flops_per_token(cfg, args.tokens):,} FLOPs a token")
    hooks = []
    for name, module in model.named_modules():
        if name and is_first_or_outside(name):
            hooks.append(module.register_forward_hook(line_of(name, module)))
    ids_BT = torch.randint(0, cfg.vocab_size, (args.rows, args.tokens), generator=torch.Generator().manual_seed(0))
    loss, n_targets = language_model_loss(model, {"ids_BT": ids_BT, "targets_BT": ids_BT.roll(-1, dims=1)})
    loss.backward()
    n_nats = float(loss.detach())
    print(f"loss {n_nats:.1f} nats over {int(n_targets):,} targets: {n_nats / int(n_targets):.4f} each")
    for hook in hooks:
        hook.remove()
    with torch.inference_mode():
        cache = model.new_cache(n_rows=1, max_len=args.tokens)
        read, one = (tuple(model(ids_BT[:1, part], cache=cache).shape) for part in (slice(0, 10), slice(10, 11)))
    print(f"logits of 10 ids of one row: {read}; of the next one, from the cache: {one}")
    print(f"keys in the cache: {tuple(cache.keys_LNGSK.shape)}, {cache.position} tokens used")


def is_first_or_outside(name: str) -> bool:
    """Of the layers the first alone."""
    return ".layers." not in f".{name}." or name.startswith("model.layers.0")


def line_of(name: str, module: nn.Module):
    n_weights = sum(weight.numel() for weight in module.parameters())

    def hook(_: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        shape_in = tuple(inputs[0].shape)
        print(f"{name:44s} {shape_in!s:20s} -> {tuple(output.shape)!s:20s} {n_weights:>10,} weights")

    return hook


if __name__ == "__main__":
    main()
