from dataclasses import dataclass
from typing import Annotated, Literal

import dagster as dg
import pytest

from pipeline.defs.run_config import ConfigFile, asset_config, read_config_file


@dataclass(frozen=True, kw_only=True, slots=True)
class Mix:
    grains: Annotated[int, "how many grains, at least 1"] = 3
    share: Annotated[float, "of rye, 0 to 1"] = 0.5
    kind: Annotated[Literal["coarse", "fine"], "what comes out"] = "fine"
    names: Annotated[tuple[str, ...], "of the sorts"] = ("rye", "oats")
    limit: Annotated[int | None, "most grains; None = no limit"] = None
    fresh: Annotated[bool, "whether milled today"] = True

    def __post_init__(self) -> None:
        if self.grains < 1:
            raise ValueError(f"grains={self.grains} must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sieve:
    label: Annotated[str, "has no default"]
    width: Annotated[float, "mm"] = 1.5


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
    assert config_that_arrives(asset_config("mill", Mix, ConfigFile("x.toml"))) == Mix()


def test_asset_config_launchpad_value_beats_file_beats_given_beats_default(tmp_path):
    file = ConfigFile(tmp_path / "config.toml", {"mill": {"grains": 5, "share": 1}})
    field = asset_config("mill", Mix, file, {"grains": 4, "kind": "coarse", "names": ("a",)})
    assert config_that_arrives(field, {"share": 0.25}) == Mix(grains=5, share=0.25, kind="coarse", names=("a",))


def test_asset_config_two_stages_give_a_dataclass_each(tmp_path):
    file = ConfigFile(tmp_path / "config.toml", {"mill": {"sieve": {"label": "s"}}})
    value = config_that_arrives(asset_config("mill", {"mix": Mix, "sieve": Sieve}, file), {"mix": {"limit": 7}})
    assert value == {"mix": Mix(limit=7), "sieve": Sieve(label="s")}


def test_asset_config_shows_default_type_and_description():
    fields = asset_config("mill", Mix, ConfigFile("x.toml")).config_type.fields
    assert fields["grains"].description == "how many grains, at least 1"
    assert fields["grains"].default_value == 3
    assert fields["kind"].config_type.config_values == ["coarse", "fine"]


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
        ({"grains": 0}, "grains=0 must be at least 1"),
    ],
)
def test_launch_with_a_bad_value_is_refused_before_anything_runs(config, message):
    with pytest.raises(dg.DagsterInvalidConfigError, match=message):
        config_that_arrives(asset_config("mill", Mix, ConfigFile("x.toml")), config)


def test_launch_without_a_required_value_is_refused():
    with pytest.raises(dg.DagsterInvalidConfigError, match="label"):
        config_that_arrives(asset_config("mill", Sieve, ConfigFile("x.toml")), {"width": 1.0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[mill]\ngrian = 1", r"\[mill\] has no key `grian`; it has: grains, share"),
        ("[mill]\ngrains = 'three'", r"\[mill\] grains is 'three', expected a whole number"),
        ("[mill]\nkind = 'medium'", r"\[mill\] kind is 'medium', expected one of 'coarse', 'fine'"),
        ("[mill]\nnames = [1]", r"\[mill\] names is \[1\], expected a list of str"),
        ("[mill]\ngrains = 0", r"\[mill\] grains=0 must be at least 1"),
        ("mill = 3", r"mill is 3, expected a table \[mill\]"),
        ("[mill", "is not TOML"),
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
    with pytest.raises(ValueError, match=r"\[mil\] names no asset; there are: mill, sieve"):
        file.refuse_unknown_tables(["sieve", "mill"])


def test_config_file_key_outside_the_stages_is_refused(tmp_path):
    file = ConfigFile(tmp_path / "config.toml", {"mill": {"grains": 5}})
    with pytest.raises(ValueError, match=r"\[mill\] has tables mix, sieve only, got `grains`"):
        asset_config("mill", {"mix": Mix, "sieve": Sieve}, file)


def test_config_file_that_is_not_there_is_empty(tmp_path):
    assert read_config_file(tmp_path / "config.toml").tables == {}
