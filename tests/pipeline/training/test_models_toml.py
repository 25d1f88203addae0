from pathlib import Path

import pytest
from dagster._core.definitions.utils import DISALLOWED_NAMES

from pipeline.training.models_toml import RESERVED, OpenModel, read_models, refuse_unknown_sources, vocabularies

TWO = """
[foundation_model]
kind = "pretrain"

[little]
kind = "pretrain"
family = "gpt2"
n_layers = 2
"""


def written(folder: Path, text: str) -> Path:
    (folder / "models.toml").write_text(text)
    return folder / "models.toml"


def replaced(old: str, new: str, text: str = TWO) -> str:
    assert old in text
    return text.replace(old, new)


def test_read_models_keeps_the_order_of_the_file_and_only_what_a_table_sets(tmp_path):
    models = read_models(written(tmp_path, TWO))
    assert list(models) == ["foundation_model", "little"]
    assert models["little"].settings == {"family": "gpt2", "n_layers": 2}
    assert models["little"].assets == ["little", "little_evaluation"]
    assert models["foundation_model"].assets == ["foundation_model", "foundation_evaluation"]


def test_read_models_no_file_means_the_default_table_alone(tmp_path):
    (model,) = read_models(tmp_path / "models.toml").values()
    assert (model.name, model.kind, model.settings) == ("foundation_model", "pretrain", {})


def test_read_models_of_the_project_has_the_foundation_model():
    assert "foundation_model" in read_models(Path(__file__).parents[3] / "data" / "models.toml")


OPEN = """
[elsewhere]
kind = "open"
folder = "weights"
licence = "MIT"
"""


def test_read_models_open_model_has_one_asset_and_its_folder_is_beside_the_file(tmp_path):
    (model,) = read_models(written(tmp_path, OPEN)).values()
    assert isinstance(model, OpenModel)
    assert model.assets == ["base/elsewhere"] and model.evaluation is None
    assert model.source.folder == str(tmp_path / "weights")


FURTHER = """
[reader]
kind = "continue"
base = "second"
domain = ["manuals"]

[second]
kind = "continue"
base = "elsewhere"

[third]
kind = "continue"
base = "foundation_model"
"""


def test_read_models_continued_models_share_the_tokens_in_the_vocabulary_of_their_first_base(tmp_path):
    models = read_models(written(tmp_path, TWO + OPEN + FURTHER))
    reader, second, third = (models[name] for name in ("reader", "second", "third"))
    assert (reader.base_asset, reader.tokens) == ("second", "token_shards/elsewhere")
    assert (second.base_asset, second.tokens) == ("base/elsewhere", "token_shards/elsewhere")
    assert (third.base_asset, third.tokens) == ("foundation_model", "token_shards")
    assert vocabularies(models.values()) == {"token_shards/elsewhere": models["elsewhere"]}
    assert reader.assets == ["reader", "reader_evaluation"]


def test_refuse_unknown_sources_names_table_key_and_the_nearest(tmp_path):
    models = read_models(written(tmp_path, TWO + OPEN + FURTHER)).values()
    refuse_unknown_sources(models, ["manuals"], tmp_path)
    with pytest.raises(ValueError, match=r"\[reader\], key domain: unknown source `manuals`; did you mean `manual`"):
        refuse_unknown_sources(models, ["manual"], tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[little", r"is not valid TOML"),
        ("preset = 'demo'", r"preset = 'demo' is outside a table; put it below a line \[name_of_model\]"),
        ("[little]\n", r"\[little\]: key `kind` is missing, expected one of pretrain"),
        ("[little]\nkind = 'pretrian'", r"\[little\]: kind is 'pretrian', expected .*; did you mean `pretrain`\?"),
        (replaced("n_layers", "n_layer"), r"\[little\]: unknown key `n_layer`; did you mean `n_layers`\?"),
        (
            replaced("n_layers = 2", "n_layers = 0"),
            r"\[little\]: n_layers is 0, expected a whole number of at least 1",
        ),
        (replaced('"gpt2"', '"gpt3"'), r"\[little\]: family is 'gpt3', expected one of .*; did you mean `gpt2`\?"),
        (replaced("n_layers = 2", "n_heads = 7"), r"\[little\]: .*n_heads"),
        (
            replaced("[little]", "[Little]"),
            r"\[Little\]: the name of a model begins with a letter and has only a to z",
        ),
        (replaced("[little]", "[a__b]"), r"\[a__b\]: the name of a model .* single _"),
        (replaced("folder", "floder", OPEN), r"\[elsewhere\]: the table does not name the place of the weights"),
        (replaced("licence", "license", OPEN), r"\[elsewhere\]: unknown key `license`; did you mean `licence`\?"),
        ("[little]\nkind = ['pretrain']", r"\[little\]: kind is \['pretrain'\], expected one of pretrain"),
        ("[lambda]\nkind = 'pretrain'", r"\[lambda\]: the name is reserved; .* \[lambda_model\]"),
        ("[checks]\nkind = 'pretrain'", r"\[checks\]: the name is reserved"),
        ("[little]\nkind = 'pretrain'\nmask_fraction = 0.2", r"mask_fraction is a setting of encoders, and family="),
        ("[a]\nkind = 'continue'", r"\[a\]: key `base` is missing, expected the name of another table"),
        ("[a]\nkind = 'continue'\nbase = 'a'", r"\[a\]: the bases form a ring \(a -> a\)"),
        (TWO + FURTHER, r"\[second\]: base is 'elsewhere', expected one of foundation_model, little, reader, third"),
        (
            TWO + FURTHER.replace("elsewhere", "reader"),
            r"\[second\]: the bases form a ring \(reader -> second -> reader\)",
        ),
        (TWO + "[a]\nkind = 'continue'\nbase = 'little'\nrank = 3", r"\[a\]: unknown key `rank`"),
        (replaced("[little]", "[corpus]"), r"\[corpus\]: the name is taken: it makes the asset corpus, which every"),
        (
            replaced("[little]", "[foundation]"),
            r"\[foundation\]: the name is taken: .* foundation_evaluation, of \[foundation_model\]",
        ),
    ],
)
def test_read_models_mistake_is_named_with_its_place(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as raised:
        read_models(written(tmp_path, text))
    assert str(tmp_path / "models.toml") in str(raised.value)


def test_reserved_names_are_all_that_dagster_refuses():
    """[lambda] and [config] ended with an error of Dagster that named neither the file nor the table."""
    assert DISALLOWED_NAMES <= RESERVED
