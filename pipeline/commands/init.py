"""`gristmill init`: writes the first sources.toml, models.toml, tasks.toml and config.toml of a new project."""

from argparse import Namespace
from pathlib import Path

from pipeline.store.layout import Layout, layout_from_environment
from pipeline.store.shards import write_text

SOURCES = """\
# The sources of the corpus. One table per source; each becomes the asset pages/<name of the table>.
# docs/your-data.md describes all keys, and other kinds of sources.

[my-text]
kind = "files"
path = "text"                    # EDIT THIS: a folder, a file or an archive; relative to this file, or absolute
# members = ["**/*.md", "!drafts/**"]  # which files; a pattern that begins with ! excludes files; default: all
# licence = "CC-BY-4.0"          # stored with every document and shown in the data card
# languages = ["en"]             # the languages to keep; default: the setting of `documents`
# weight = 1.0                   # how often training reads these documents
"""
MODELS = """\
# The models. One table per model; docs/models.md describes all kinds. This one is trained from scratch on the corpus;
# its name becomes the asset foundation_model and, with _evaluation in place of _model, that of its evaluation.

[foundation_model]
kind = "pretrain"
preset = "demo"                  # or depth = 4, family = "llama", n_steps = 2000, ...: any setting of the asset
"""
OPEN_MODELS = Path(__file__).parents[1] / "training" / "open_models.toml"  # which tasks may be based on at once
TASKS = """\
# What the models are fine-tuned for. One table per task; its name becomes the assets <name>_examples, <name>_model
# and <name>_evaluation. Without a table, no model is fine-tuned.
#
# [tickets]
# kind = "classification"
# base = "minilm"                 # a table of models.toml
# data = { path = "tickets.csv" } # .csv, .tsv or .jsonl; relative to this file, or absolute
# text = "subject"                # the column or key of the text
# label = "queue"                 # the column or key of the label
#
# [tickets.finetune]
# epochs = 2
"""
CONFIG = """\
# Settings that differ from their defaults. One table per asset; an asset of several stages has a table per stage.
# The launchpad of the UI (`gristmill ui`) shows every setting with its default and its description.
#
# [documents.filter]
# languages = ["en", "de"]
#
# [tokenizer]
# vocab_size = 8192
"""


def run(args: Namespace) -> int:
    """Write the four files. Raises ValueError when one of them exists; nothing is overwritten."""
    layout = Layout(Path(args.folder).absolute()) if args.folder else layout_from_environment()
    if there := next((path for path in (layout.data, *layout.data.parents) if path.is_file()), None):
        raise ValueError(f"{there} is a file; choose another folder: gristmill init FOLDER")
    files = {
        layout.sources_toml: SOURCES,
        layout.models_toml: f"{MODELS}\n{OPEN_MODELS.read_text('utf-8')}",
        layout.tasks_toml: TASKS,
        layout.config_toml: CONFIG,
    }
    if there := [path for path in files if path.exists()]:
        raise ValueError(f"{there[0]} exists and is not overwritten; choose another folder: gristmill init FOLDER")
    for path, text in files.items():
        write_text(path, text)
        print(path)
    prefix = f"GRISTMILL_DATA={layout.data} " if args.folder else ""
    print(f"Set `path` in {layout.sources_toml} to your text. Then: {prefix}gristmill run")
    return 0
