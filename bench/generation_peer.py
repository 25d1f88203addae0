"""A process that bench/generation.py times: it generates with the code of the worktree that PYTHONPATH names.

In: a line of JSON per call on stdin (model, number of rows, prompts, settings). Out: a line with the processor
seconds and the new ids. It knows the modules of this tree and those of commits before model/ had folders.
"""

import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

import model

# Not by trying: an installed gristmill would supply what the older tree lacks, and the two would be mixed.
if (Path(str(model.__file__)).parent / "generation").is_dir():
    from model.generation.decode import pack as prepare
    from model.generation.generate import generate
    from model.generation.sample_config import SampleConfig
    from model.network.decoder import Decoder
    from model.network.registry import load_decoder
    from model.network.shape import DecoderConfig
else:
    from model.checkpoint import load_decoder  # type: ignore[no-redef]
    from model.config import DecoderConfig  # type: ignore[no-redef]
    from model.decode_step import DecodeStep  # type: ignore[no-redef]
    from model.decoder import Decoder  # type: ignore[no-redef]
    from model.generate import generate  # type: ignore[no-redef]
    from model.sample_config import SampleConfig  # type: ignore[no-redef]

    def prepare(model: Any, n_rows: int) -> Any:
        return DecodeStep(model)


@functools.cache
def prepared(source: str, n_rows: int) -> Any:
    """The model in a folder, or one with random weights from a config in JSON, prepared for so many rows."""
    if not source.startswith("{"):
        return prepare(load_decoder(Path(source)), n_rows)
    generator, model = torch.Generator().manual_seed(0), Decoder(DecoderConfig(**json.loads(source))).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(std=weight.size(1) ** -0.5, generator=generator)
    return prepare(model, n_rows)


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    for line in sys.stdin:
        call = json.loads(line)
        model = prepared(call["model"], len(call["prompts"]))
        start = time.process_time()
        rows = generate(model, call["prompts"], SampleConfig(**call["settings"]))
        print(json.dumps({"seconds": time.process_time() - start, "rows": rows}), flush=True)


if __name__ == "__main__":
    main()
