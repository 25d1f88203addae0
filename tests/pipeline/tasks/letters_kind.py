"""A toy kind of task in one file: regression of how many letters a text has, by a head of one number."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa

from model.data.examples import EncodedExamples, encoded
from pipeline.corpus.examples.rows import Row
from pipeline.corpus.examples.stage import ExamplesConfig, refuse_empty_splits
from pipeline.evaluation.comparisons import compared_results
from pipeline.evaluation.intervals import Counted, quotient
from pipeline.evaluation.mistakes import Mistake
from pipeline.evaluation.task import Judged, TaskEvaluationConfig
from pipeline.serving.predictor import Predictor
from pipeline.tasks.kind import Kind
from pipeline.training.finetune import FinetuneConfig

SCALE = 50.0  # letters: the network counts in units of it


@dataclass(frozen=True, kw_only=True, slots=True)
class LettersExamplesConfig(ExamplesConfig):
    phrase: Annotated[str, "Where a row's text lies."]
    size: Annotated[str, "Where its number of letters lies."]


class LetterCounter(Predictor):
    """Two outputs: of a classifier's two logits the difference is the number, in units of `scale`."""

    inputs: ClassVar = {"phrase": "string"}
    outputs: ClassVar = {"letters": "double"}

    def load_network(self, directory: Path) -> Any:
        from model.network.heads import SequenceClassifier
        from model.network.shape import decoder_config
        from model.training.files import read_json
        from model.training.weights import load_weights

        self.scale = read_json(directory / "config.json")["scale"]
        model = SequenceClassifier(decoder_config(read_json(directory / "config.json")["model"]), 2)
        load_weights(directory / "model.safetensors", model)
        return model.eval()

    def examine(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        numbers = self.of_texts([str(row["phrase"]) for row in rows], lambda out_BC: out_BC[:, 1] - out_BC[:, 0])
        return [{"letters": float(number) * self.scale} for number in numbers]


class Letters(Kind):
    name, identity = "letters", "letters-1"
    evaluation_version, libraries = 1, ()
    predictor = LetterCounter
    examples, finetune, evaluation = LettersExamplesConfig, FinetuneConfig, TaskEvaluationConfig
    summary = "Counts the letters of a text."
    keys = parts = ("phrase", "size")
    columns = (pa.field("phrase", pa.string()), pa.field("size", pa.float64()))
    metrics = ("mean_absolute_error",)
    selects = ("validation_loss", False)
    decides, must_beat = ("mean_absolute_error", False), ("mean_absolute_error", "mean_size")

    def row(self, parts, cfg):
        if not isinstance(parts["size"], int):
            return Row(str(parts["phrase"]), reason="no_number")
        return Row(parts["phrase"], {"phrase": parts["phrase"], "size": float(parts["size"])})

    def check_examples(self, examples, cfg, name):
        refuse_empty_splits(examples, name)

    def encode(self, examples, rows, tokenizer, max_tokens, truncation_side):
        tokens, is_cut = encoded(tokenizer, rows["phrase"].to_pylist(), max_tokens, truncation_side)
        sizes = {"sizes_B": rows["size"].to_numpy()}
        return EncodedExamples(rows["id"].to_pylist(), tokens, sizes, int(is_cut.sum()))

    def network(self, cfg, base, examples):
        from model.network.heads import classifier_from, new_classifier

        description = {"kind": "letters", "model": asdict(base.cfg), "scale": SCALE}
        if cfg.initialisation == "random":
            return new_classifier(base.cfg, 2, cfg.seed), description
        return classifier_from(base, 2, seed=0), description

    def loss(self, cfg):
        return squared_error

    def validate(self, network, encoded):
        from model.evaluate import outputs_of_texts

        numbers = outputs_of_texts(network, encoded.tokens, lambda out_BC: out_BC[:, 1] - out_BC[:, 0])
        return {"validation_loss": float(((numbers - encoded.targets["sizes_B"] / SCALE) ** 2).mean())}

    def baselines(self, train, held_out):
        mean = float(train["size"].to_numpy().mean())
        return {"mean_size": [{"letters": mean}] * held_out.num_rows}

    def results(self, judged: Judged, seed: int):
        return compared_results(judged, counted, seed, lower_is_better=("mean_absolute_error",))

    def mistakes(self, judged: Judged):
        for row, (example, answer) in enumerate(zip(judged.examples, judged.model, strict=True)):
            if abs(example["size"] - answer["letters"]) > 0.5:
                yield Mistake(row, f"{example['size']:.0f}", f"{answer['letters']:.1f}", 1.0, example["phrase"])

    def details(self, judged):
        return {}

    def report(self, judged, cfg):
        return "\n## Letters\n\nA text has some.\n"

    def figures(self, judged):
        return {}


def counted(examples, answers):
    errors = [abs(answer["letters"] - example["size"]) for example, answer in zip(examples, answers, strict=True)]
    return {"mean_absolute_error": Counted(np.stack([errors, np.ones(len(errors))], axis=1), quotient)}


def squared_error(model, batch):
    out_BC = model(batch["ids_BT"], batch["lengths_B"])
    errors_B = out_BC[:, 1] - out_BC[:, 0] - batch["sizes_B"].float() / SCALE
    return (errors_B**2).sum(), errors_B.new_tensor(len(errors_B)).long()


KIND = Letters()
