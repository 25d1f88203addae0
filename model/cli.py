"""`python -m model.cli`: train, fine-tune, use and evaluate a model on folders, with nothing around it.

    train SHARDS OUT             pretrain on token shards; after a stop at any moment, the same call resumes
    finetune BASE EXAMPLES OUT   make a classifier of labelled texts
    import SOURCE OUT            convert a model made elsewhere
    merge BASE ADAPTER OUT       a model with the adapters of a training in its weights
    sample DIR PROMPT            continue a text
    embed DIR TEXT...            the vector of each text, by an encoder
    evaluate DIR SHARDS          bits per byte and perplexity on held-out documents; of an encoder, masked accuracy

In: folders of token shards (model/data/token_shards.py) and of models. Out: lines of text, and an exit code: 0; 1 for
an error, which is one line on stderr; 130 for a signal that asked to stop. `train` runs in several processes with
--devices N, or under torchrun. With more steps the same call extends a finished training (model/training/resume.py).
"""

import argparse
import dataclasses
import io
import json
import math
import shutil
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.data.mask_token import n_tokens_with_mask, write_with_mask
from model.data.token_shards import SPLITS, TokenShard, read_description, read_token_shards, shards_digest
from model.data.tokenizer import (
    TOKENIZER,
    check_made_by,
    files_of,
    load_model_tokenizer,
    load_tokenizer,
)
from model.network.shape import FAMILY_SWITCHES, EncoderShape, config_for
from model.training.config import VALIDATION_METRIC
from model.training.finetune_settings import FinetuneSettings, resolved, train_config
from model.training.presets import PRESET_NAMES, Preset, changed, preset_of
from model.training.settings import parsed_changes, parsed_settings

if TYPE_CHECKING:
    from model.network.encoder import MaskedLM

STOPPED = 130


def main(argv: Sequence[str] | None = None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a model may write what a terminal cannot show
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        return _fail("stopped", STOPPED, by_each=False)
    except (ValueError, OSError, RuntimeError) as error:
        from model.training.loop import Interrupted

        if type(error) is RuntimeError and not in_several_processes():
            raise  # a mistake of ours
        is_stopped = isinstance(error, Interrupted)  # in all processes at the same step
        return _fail(" ".join(str(error).split()), STOPPED if is_stopped else 1, by_each=not is_stopped)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m model.cli", description="Train, fine-tune, use and evaluate a model."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    train = commands.add_parser("train", help="pretrain on token shards, or go on where it was stopped")
    train.add_argument("shards", metavar="SHARDS", type=Path, help="folder of token shards, with tokens.json in it")
    train.add_argument("out", metavar="OUT", type=Path, help="folder of the model; made where there is none")
    size = train.add_mutually_exclusive_group()
    size.add_argument("--preset", choices=PRESET_NAMES, default="demo", help="size and plan by name; default: demo")
    size.add_argument("--depth", metavar="N", type=int, help="size and plan by the number of layers")
    train.add_argument("--family", choices=FAMILY_SWITCHES, help="what its layers are made of; default: qwen3")
    train.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="change a field; a wrong one lists them all"
    )
    train.add_argument("--tokenizer", metavar="DIR", type=Path, help="the shards' tokenizer, to go along")
    train.add_argument("--devices", metavar="N", type=int, default=1, help="processes on this machine; default: 1")
    train.add_argument("--until-input-ends", action="store_true", help=argparse.SUPPRESS)
    train.set_defaults(run=run_train)
    _add_finetune(commands)
    importing = commands.add_parser("import", help="convert a model made elsewhere into the format of this project")
    importing.add_argument("source", metavar="SOURCE", type=Path, help="a Hugging Face folder, or a GGUF file")
    importing.add_argument("out", metavar="OUT", type=Path, help="folder of the model; made where there is none")
    importing.set_defaults(run=run_import)
    _add_merge(commands)
    sample = commands.add_parser("sample", help="continue a text")
    sample.add_argument("model", metavar="DIR", type=Path, help="folder of a model with its tokenizer")
    sample.add_argument("prompt", metavar="PROMPT", help="how the text begins; may be empty")
    sample.add_argument("--tokens", metavar="N", type=int, default=100, help="how many to add; default: 100")
    sample.add_argument("--temperature", metavar="T", type=float, default=0.8, help="0 = always the likeliest")
    sample.add_argument("--top-k", metavar="K", type=int, default=50, help="of the likeliest tokens; default: 50")
    sample.add_argument("--top-p", metavar="P", type=float, help="of the probability; default: all of it")
    sample.add_argument("--keep-prompt-end", action="store_true", help="read the end of a prompt that is too long")
    sample.add_argument("--seed", metavar="N", type=int, default=0, help="default: 0")
    sample.set_defaults(run=run_sample)
    embed = commands.add_parser("embed", help="the vector of each text, by an encoder")
    embed.add_argument("model", metavar="DIR", type=Path, help="folder of an encoder with its tokenizer")
    embed.add_argument("texts", metavar="TEXT", nargs="+", help="a line of numbers is printed for each")
    embed.set_defaults(run=run_embed)
    evaluate = commands.add_parser("evaluate", help="bits per byte and perplexity on held-out documents")
    evaluate.add_argument("model", metavar="DIR", type=Path, help="folder of a model")
    evaluate.add_argument("shards", metavar="SHARDS", type=Path, help="folder of token shards of its tokenizer")
    evaluate.add_argument("--split", choices=SPLITS, default="validation", help="default: validation")
    evaluate.set_defaults(run=run_evaluate)
    return parser


def _add_merge(commands: Any) -> None:
    merge = commands.add_parser("merge", help="merge adapters of peft, or of a training here, into their base")
    merge.add_argument("base", metavar="BASE", type=Path, help="folder of the model that the adapters belong to")
    merge.add_argument(
        "adapter", metavar="ADAPTER", type=Path, help="folder of the adapters; adapter/ of a model here"
    )
    merge.add_argument("out", metavar="OUT", type=Path, help="folder of the merged model; made where there is none")
    merge.set_defaults(run=run_merge)


def _add_finetune(commands: Any) -> None:
    finetune = commands.add_parser("finetune", help="make a classifier of labelled texts, or go on where it stopped")
    finetune.add_argument(
        "base", metavar="BASE", type=Path, help="folder of a decoder or an encoder with its tokenizer"
    )
    finetune.add_argument("examples", metavar="EXAMPLES", type=Path, help="JSON lines or .parquet: a row per text")
    finetune.add_argument("out", metavar="OUT", type=Path, help="folder of the classifier; made where there is none")
    finetune.add_argument("--validation", metavar="FILE", type=Path, help="default: a tenth of the examples")
    finetune.add_argument("--text", metavar="COLUMN", default="text", help="column of the texts; default: text")
    finetune.add_argument("--label", metavar="COLUMN", default="label", help="column of the labels; default: label")
    finetune.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="change a setting; a wrong one lists them all"
    )
    finetune.set_defaults(run=run_finetune)


def run_train(args: argparse.Namespace) -> int:
    if args.devices < 1:
        raise ValueError(f"--devices {args.devices} must be at least 1")
    if args.until_input_ends:
        from model.training.launch import stop_at_end_of_input

        stop_at_end_of_input()
    preset = preset_of(args.preset, args.family, args.depth)
    preset = changed(preset, parsed_changes(args.set), args.family)
    description = read_description(args.shards)
    if args.tokenizer is not None:
        check_made_by(load_tokenizer(args.tokenizer), read_token_shards(args.shards, "train"))
    if args.devices > 1:
        return _train_in_processes(args)
    return _train_here(args, preset, description)


def _train_in_processes(args: argparse.Namespace) -> int:
    from model.training.launch import launch

    size = ["--depth", str(args.depth)] if args.depth is not None else ["--preset", args.preset]
    size += ["--family", args.family] if args.family is not None else []
    settings = [part for setting in args.set for part in ("--set", setting)]
    tokenizer = ["--tokenizer", str(args.tokenizer)] if args.tokenizer is not None else []
    command = ["train", str(args.shards), str(args.out), *size, *settings, *tokenizer, "--until-input-ends"]
    ended = launch("model.cli", command, args.devices)
    return STOPPED if ended.was_stopped and ended.code else min(ended.code, 1)


def _train_here(args: argparse.Namespace, preset: Preset, description: Mapping) -> int:
    from model.training.distributed import is_main
    from model.training.pretraining import Pretraining, measures, pretrain

    network = config_for(preset.shape, description["vocab_size"])
    if args.tokenizer is not None and isinstance(
        preset.shape, EncoderShape
    ):  # which may have a mask token of its own
        network = preset.shape.with_vocab(n_tokens_with_mask(args.tokenizer))
    plan = Pretraining(
        shards=args.shards,
        out=args.out,
        network=network,
        train=preset.train,
        made_from={"tokens": shards_digest(args.shards), "tokenizer": description["tokenizer"]},
        tokenizer=args.tokenizer,
    )
    if is_main():
        size = f"{plan.params()['parameters']:,} parameters, {plan.n_tokens:,} tokens in {plan.train.n_steps:,} steps"
        print(f"{size} from {args.shards} into {args.out}", flush=True)
    pretrain(plan, Printed(plan.train.n_steps, plan.train.log_every))
    if not is_main():
        return 0
    if args.tokenizer is not None:
        _take_tokenizer(args.tokenizer, args.out / TOKENIZER, has_mask=plan.objective == "masked_tokens")
    numbers, metric = measures(plan), VALIDATION_METRIC[plan.objective]
    validated = f"{metric.replace('_', ' ')} {numbers[metric]:.4f}" if metric in numbers else "no validation split"
    print(f"finished: training loss {numbers['training_loss']:.4f}, {validated}")
    return 0


def _take_tokenizer(source: Path, out: Path, *, has_mask: bool) -> None:
    if has_mask:
        write_with_mask(source, out)
        return
    out.mkdir(exist_ok=True)
    for name in files_of(source):
        shutil.copyfile(source / name, out / name)


def run_finetune(args: argparse.Namespace) -> int:
    from model.data.labelled import read_labelled
    from model.network.registry import BASES, read_config
    from model.training.finetuning import Finetuning, finetune_classifier

    training = read_labelled(args.examples, args.text, args.label)
    if args.validation is not None:
        validation = read_labelled(args.validation, args.text, args.label)
    else:
        training, validation = training.divided()
    hints = typing.get_type_hints(FinetuneSettings)
    cfg = FinetuneSettings(**parsed_settings(args.set, hints, sorted(hints)))
    plan = Finetuning(base=args.base, out=args.out, training=training, validation=validation, cfg=cfg)
    cfg = resolved(cfg, read_config(args.base, *BASES)[1].d_model, plan.n_examples)
    n_steps, labels = train_config(cfg, len(training.texts)).n_steps, training.label_names()
    names = ", ".join(labels[:10]) + (" ..." if len(labels) > 10 else "")
    print(f"{len(training.texts):,} examples of {len(labels)} labels ({names}), {n_steps:,} steps into {args.out}")
    print("settings: " + ", ".join(f"{name}={value}" for name, value in dataclasses.asdict(cfg).items()))
    finetuned = finetune_classifier(plan, Printed(n_steps, log_every=max(1, n_steps // 20)))
    ending, values = finetuned.ending, finetuned.values
    if ending.best is not None:
        print(f"step {ending.n_steps}/{n_steps}: ended; kept are the weights of step {ending.best[0]}, the best")
    print(
        f"finished: validation loss {values['validation_loss']:.4f}, accuracy {values['validation_accuracy']:.4f},"
        f" macro F1 {values['validation_macro_f1']:.4f}"
    )
    return 0


class Printed:
    """An observer that prints a line for each step whose numbers were read, each validation and each checkpoint."""

    def __init__(self, n_steps: int, log_every: int) -> None:
        self.n_steps, self.log_every = n_steps, log_every

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        if "loss" not in values:
            text = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in values.items())
        elif step % self.log_every == 0 or step == self.n_steps:
            text = (
                f"loss {values['loss']:.4f}, lr {values['learning_rate']:.3g}, norm {values['gradient_norm']:.3g},"
                f" {values['tokens_per_second']:,.0f} tokens/s"
            )
        else:
            return
        print(f"step {step}/{self.n_steps}: {text}", flush=True)

    def checkpoint(self, path: Path, step: int, values: Mapping[str, float]) -> None:
        print(f"step {step}/{self.n_steps}: saved {path}", flush=True)


def run_import(args: argparse.Namespace) -> int:
    from model.hf.importing import import_model

    _refuse_used(args.out)
    imported = import_model(args.source, args.out)
    formats = " and ".join(imported.stored)
    print(
        f"{imported.name}: {imported.n_parameters:,} parameters of the family {imported.family}, stored as {formats},"
        f" licence {imported.licence or 'unknown'}, into {args.out}"
    )
    return 0


def _refuse_used(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is no empty folder; name a new one")


def run_merge(args: argparse.Namespace) -> int:
    from model.hf.adapter import ADAPTER_CONFIG, read_adapter
    from model.network.lora import lora_layers, merge_lora
    from model.network.registry import load_model, save_model
    from model.training.adapters import load_adapters
    from model.training.files import CONFIG, WEIGHTS, read_json, sha256

    _refuse_used(args.out)
    model, _ = load_model(args.base)
    if (args.adapter / ADAPTER_CONFIG).exists():
        read_adapter(args.adapter, model, sha256(args.base / WEIGHTS))
    else:
        load_adapters(args.adapter, model, args.base)
    n_layers = len(list(lora_layers(model)))
    merge_lora(model)
    args.out.mkdir(parents=True, exist_ok=True)
    if (args.base / TOKENIZER).is_dir():
        shutil.copytree(args.base / TOKENIZER, args.out / TOKENIZER, dirs_exist_ok=True)
    save_model(args.out, model, read_json(args.base / CONFIG))
    print(f"merged the adapters of {n_layers} layers into {args.out}")
    return 0


def run_sample(args: argparse.Namespace) -> int:
    from model.generation.decode import pack
    from model.generation.generate import stream_text
    from model.generation.sample_config import SampleConfig
    from model.network.registry import load_decoder
    from model.training.placement import each_explained, for_generation

    decoder = pack(for_generation(load_decoder(args.model)))
    tokenizer = load_model_tokenizer(args.model, decoder.cfg.vocab_size)
    cfg = SampleConfig(
        max_new_tokens=args.tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        stop_ids=tuple(sorted(tokenizer.stops)),
        seed=args.seed,
        keep_prompt_end=args.keep_prompt_end,
    )
    prompt = [*tokenizer.opening, *tokenizer.encode(args.prompt)]
    pieces = stream_text(decoder, [prompt], cfg, tokenizer.decode_bytes)
    print(args.prompt, end="")
    for _, piece in each_explained(pieces, "shorten the prompt, or ask for fewer --tokens"):
        print(piece, end="", flush=True)
    print()
    return 0


def run_embed(args: argparse.Namespace) -> int:
    from model.generation.embed import embed
    from model.network.registry import load_encoder
    from model.training.placement import for_evaluation

    model = for_evaluation(load_encoder(args.model))
    tokenizer = load_model_tokenizer(args.model, model.cfg.vocab_size)
    for vector_D in embed(model, tokenizer, args.texts):
        print(json.dumps([round(float(number), 7) for number in vector_D]))
    return 0


def run_evaluate(args: argparse.Namespace) -> int:
    from model.evaluate import document_losses
    from model.network.decoder import Decoder
    from model.network.registry import load_model
    from model.training.placement import for_evaluation

    description = read_description(args.shards)
    model = for_evaluation(load_model(args.model, "cpu", "decoder", "masked_lm")[0])
    if isinstance(model, Decoder) and description["vocab_size"] != model.cfg.vocab_size:
        raise ValueError(
            f"{args.shards} holds ids of a vocabulary of {description['vocab_size']} tokens, {args.model} has"
            f" vocab_size={model.cfg.vocab_size}; give shards of its own tokenizer"
        )
    shards = read_token_shards(args.shards, args.split)
    if not sum(len(shard.tokens) for shard in shards):
        raise ValueError(f"{args.shards / args.split} holds no document; choose another --split")
    if all(len(shard.tokens) == len(shard.document_ids) for shard in shards):  # the first is never predicted
        raise ValueError(f"{args.shards / args.split} holds documents of one token only, so none is predicted")
    if (args.model / TOKENIZER).is_dir():
        check_made_by(load_model_tokenizer(args.model, model.cfg.vocab_size), shards)
    if not isinstance(model, Decoder):
        return _evaluate_masked(args, model, shards)
    losses = document_losses(model, shards)
    print(f"{args.split} of {args.shards}: {len(losses.document_ids):,} documents, {losses.n_tokens.sum():,} tokens")
    print(f"bits per byte {losses.bits_per_byte:.4f}")
    print(f"perplexity {losses.perplexity:.3f} per token, loss {math.log(losses.perplexity):.4f} nats")
    return 0


def _evaluate_masked(args: argparse.Namespace, model: "MaskedLM", shards: Sequence[TokenShard]) -> int:
    from model.data.masking import mask_vocabulary
    from model.evaluate_masked import N_GROUPS, masked_document_losses

    tokenizer = args.model / TOKENIZER
    vocabulary = mask_vocabulary(args.shards, model.cfg.vocab_size, tokenizer if tokenizer.is_dir() else None)
    losses = masked_document_losses(model, shards, vocabulary)
    print(f"{args.split} of {args.shards}: {len(losses.document_ids):,} documents, {losses.n_tokens.sum():,} tokens")
    print(f"masked accuracy {losses.accuracy:.4f}")
    print(f"masked perplexity {losses.perplexity:.3f} per token, with one token in {N_GROUPS} masked at a time")
    return 0


def in_several_processes() -> bool:
    from model.training.distributed import n_processes

    return n_processes() > 1


def _fail(message: str, code: int, *, by_each: bool) -> int:
    """Print why this process ends: `by_each` process with its number, or by the first one alone. Returns `code`."""
    from model.training.distributed import is_main, n_processes, rank

    if by_each or is_main():
        number = f"process {rank()} of {n_processes()}"
        own = f"{number}: " if by_each and in_several_processes() and not message.startswith(number) else ""
        print(f"model.cli: {own}{message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
