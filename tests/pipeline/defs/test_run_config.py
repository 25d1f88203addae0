"""Settings in the launchpad: shown complete, refused before anything runs, and the same as in config.toml."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import dagster as dg
import pytest
import yaml
from annotated_types import Ge, Le
from dagster._core.snap.snap_to_yaml import default_values_yaml_from_type_snap
from dagster._utils.error import serializable_error_info_from_exc_info

from pipeline.defs.run_config import ConfigFile, asset_config, read_config_file
from pipeline.store.settings import check_values, settings_of
from pipeline.training.pretrain import PretrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Mix:
    grains: Annotated[int, Ge(1), "Number of grains in the mix."] = 3
    share: Annotated[float, Ge(0), Le(1), "Share of rye in the mix."] = 0.5
    kind: Annotated[Literal["coarse", "fine"], "Grade of the flour."] = "fine"
    names: Annotated[tuple[str, ...], "Names of the sorts of grain."] = ("rye", "oats")
    limit: Annotated[int | None, Ge(2), "Largest number of grains that the mill takes."] = None
    brake: Annotated[Literal["none", "wood"], "Material of the brake."] = "none"
    drive: Annotated[Literal["wind", "water"] | None, "What drives the mill, if anything does."] = None
    fresh: Annotated[bool, "Whether the flour was milled today."] = True

    def __post_init__(self) -> None:
        check_values(self)
        if self.fresh and self.grains > 100:
            raise ValueError(f"grains={self.grains} cannot be milled on one day; set fresh to false")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sieve:
    label: Annotated[str, "Name of the sieve."]
    width: Annotated[float, "Width of the mesh in millimetres."] = 1.5


def config_that_arrives(field: dg.Field, config: dict | None = None):
    """The value that a step sees when a run is launched with `config`."""
    seen = []

    @dg.op(config_schema=field)
    def look(context: dg.OpExecutionContext) -> None:
        seen.append(context.op_config)

    @dg.job
    def job():
        look()

    job.execute_in_process(run_config={"ops": {"look": {"config": config}}} if config is not None else None)
    return seen[0]


def test_asset_config_without_launchpad_gives_the_dataclass_with_its_defaults():
    assert config_that_arrives(asset_config("mill", Mix, ConfigFile(Path("x.toml")))) == Mix()


def test_asset_config_launchpad_value_beats_file_beats_given_beats_default(tmp_path):
    file = ConfigFile(tmp_path / "config.toml", {"mill": {"grains": 5, "share": 1}})
    field = asset_config("mill", Mix, file, {"grains": 4, "kind": "coarse", "names": ("a",)})
    assert config_that_arrives(field, {"share": 0.25}) == Mix(grains=5, share=0.25, kind="coarse", names=("a",))


def test_asset_config_two_stages_give_a_dataclass_each(tmp_path):
    file = ConfigFile(tmp_path / "config.toml", {"mill": {"sieve": {"label": "s"}}})
    value = config_that_arrives(asset_config("mill", {"mix": Mix, "sieve": Sieve}, file), {"mix": {"limit": 7}})
    assert value == {"mix": Mix(limit=7), "sieve": Sieve(label="s")}


def test_asset_config_shows_default_type_range_and_description():
    fields = asset_config("mill", Mix, ConfigFile(Path("x.toml"))).config_type.fields
    assert fields["grains"].description == "Number of grains in the mix. Allowed: of at least 1."
    assert fields["grains"].default_value == 3
    assert fields["kind"].config_type.config_values == ["coarse", "fine"]


def test_launchpad_opens_with_every_setting():
    """Dagster 1.13 drops what is null from the YAML that the launchpad opens with: one in ten settings was shown."""
    file = ConfigFile(Path("x.toml"), {"foundation_model": {"n_layers": 2}})

    @dg.asset(config_schema=asset_config("foundation_model", PretrainConfig, file))
    def foundation_model() -> None: ...

    job = dg.Definitions(assets=[foundation_model]).resolve_implicit_global_asset_job_def()
    snapshot = job.get_job_snapshot().config_schema_snapshot
    root = snapshot.get_config_snap(job.run_config_schema.run_config_schema_type.key)
    opened = yaml.safe_load(default_values_yaml_from_type_snap(snapshot, root))  # GraphQL's rootDefaultYaml
    config = opened["ops"]["foundation_model"]["config"]
    assert config.keys() == settings_of(PretrainConfig).keys()
    assert (config["preset"], config["n_layers"], config["n_steps"], config["family"]) == ("demo", 2, {}, "none")
    field = asset_config("foundation_model", PretrainConfig, file)
    assert config_that_arrives(field, config) == PretrainConfig(n_layers=2)
    assert config_that_arrives(field, config | {"n_layers": None}) == PretrainConfig()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"grian": 1}, "grian"),
        ({"grains": "three"}, "grains"),
        ({"grains": None}, "grains"),
        ({"grains": 2.5}, "grains"),
        ({"grains": True}, "grains"),
        ({"kind": "medium"}, "kind"),
        ({"names": "rye"}, "names"),
        ({"limit": "two"}, "limit"),
        ({"limit": {"two": 2}}, "limit"),
        ({"drive": "steam"}, "drive"),
    ],
)
def test_launchpad_refuses_unknown_keys_and_wrong_types_while_they_are_typed(config, message):
    with pytest.raises(dg.DagsterInvalidConfigError, match=message):
        config_that_arrives(asset_config("mill", Mix, ConfigFile(Path("x.toml"))), config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"grains": 0}, "mill: grains is 0, expected a whole number of at least 1"),
        ({"limit": 1}, "mill: limit is 1, expected a whole number of at least 2"),
        ({"grains": 101}, "mill: grains=101 cannot be milled on one day; set fresh to false"),
    ],
)
def test_launch_with_a_bad_value_is_refused_with_one_sentence_before_anything_runs(config, message):
    """Pins the private parts of Dagster that run_config.py uses: its web server shows message and stack as they are
    here."""
    with pytest.raises(ValueError) as error:
        config_that_arrives(asset_config("mill", Mix, ConfigFile(Path("x.toml"))), config)
    told = serializable_error_info_from_exc_info((error.type, error.value, error.tb))
    assert (told.message, told.stack) == (message, [])


def test_launch_names_the_asset_whose_setting_is_bad_among_equal_ones():
    """Dagster keeps one Shape for equal fields: the message named the asset that was defined last."""
    first, second = (asset_config(name, Mix, ConfigFile(Path("x.toml"))) for name in ("pages/a", "pages/b"))
    for field, name in ((first, "pages/a"), (second, "pages/b")):
        with pytest.raises(ValueError, match=f"^{name}: grains is 0"):
            config_that_arrives(field, {"grains": 0})


def test_launch_without_a_required_value_is_refused():
    with pytest.raises(dg.DagsterInvalidConfigError, match="label"):
        config_that_arrives(asset_config("mill", Sieve, ConfigFile(Path("x.toml"))), {"width": 1.0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[mill]\ngrian = 1", r"\[mill\]: unknown key `grian`; did you mean `grains`\? Allowed: grains, share"),
        ("[mill]\ngrains = 'three'", r"\[mill\]: grains is 'three', expected a whole number"),
        ("[mill]\nkind = 'medium'", r"\[mill\]: kind is 'medium', expected one of coarse, fine"),
        ("[mill]\nnames = [1]", r"\[mill\]: names is \[1\], expected a list of texts"),
        ("[mill]\ngrains = 0", r"\[mill\]: grains is 0, expected a whole number of at least 1"),
        ("mill = 3", r"mill is 3, expected a table \[mill\]"),
        ("[mill", "is not valid TOML"),
    ],
)
def test_config_file_mistake_names_file_table_key_and_what_is_allowed(tmp_path, text, message):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        asset_config("mill", Mix, read_config_file(path))
    assert str(path) in str(error.value)


def test_config_file_table_of_no_asset_is_refused(tmp_path):
    file = ConfigFile(tmp_path / "config.toml", {"mil": {}})
    with pytest.raises(ValueError, match=r"unknown table `mil`; did you mean `mill`\? Allowed: mill, sieve"):
        file.refuse_unknown_tables(["sieve", "mill"])


def test_config_file_key_outside_the_stages_is_refused(tmp_path):
    file = ConfigFile(tmp_path / "config.toml", {"mill": {"grains": 5}})
    with pytest.raises(ValueError, match=r"\[mill\]: unknown table `grains`\. Allowed: mix, sieve"):
        asset_config("mill", {"mix": Mix, "sieve": Sieve}, file)


def test_config_file_that_is_not_there_is_empty(tmp_path):
    assert read_config_file(tmp_path / "config.toml").tables == {}
