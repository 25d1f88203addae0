"""One reader for every setting: the same value whatever it was read from, and a message that says what is wrong."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Le, Lt, MinLen

from pipeline.store.settings import (
    check_values,
    did_you_mean,
    read,
    read_assignments,
    read_recorded,
    read_toml,
    settings_of,
)
from pipeline.store.store import literals


@dataclass(frozen=True, kw_only=True, slots=True)
class Oven:
    name: Annotated[str, MinLen(1), "Name of the oven."]
    loaves: Annotated[int, Ge(1), "Number of loaves per batch."] = 3
    rye: Annotated[float, Ge(0), Le(1), "Share of rye flour in the dough."] = 0.5
    heat: Annotated[float | None, Gt(0), Lt(500), "Temperature in degrees Celsius; None for a cold oven."] = None
    crust: Annotated[Literal["thin", "thick"], "Thickness of the crust."] = "thin"
    seeds: Annotated[tuple[Literal["poppy", "sesame"], ...], "Seeds on the crust."] = ()
    notes: tuple[str, ...] = ()
    steam: Annotated[bool, "Whether to add steam."] = False

    def __post_init__(self) -> None:
        check_values(self)
        if self.steam and self.heat is None:
            raise ValueError("steam=True needs heat")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bakery:
    oven: Oven
    towns: dict[str, Oven]


def test_read_gives_the_same_literals_from_table_command_line_and_record():
    expected = Oven(name="a", loaves=4, rye=1.0, heat=200.0, seeds=("poppy",), notes=("x", "y"), steam=True)
    table = {"name": "a", "loaves": 4, "rye": 1, "heat": 200, "seeds": ["poppy"], "notes": ["x", "y"], "steam": True}
    texts = ["name=a", "loaves=4", "rye=1", "heat=200", "seeds=poppy", "notes=x, y", "steam=yes"]
    for found in (
        read(Oven, table, "x.toml"),
        read_assignments(Oven, texts),
        read_recorded(Oven, literals(expected)),
    ):
        assert found == expected
        assert [type(value) for value in literals(found).values()] == [
            type(value) for value in literals(expected).values()
        ]


def test_read_recorded_nested_config_is_equal_to_the_one_that_was_written():
    bakery = Bakery(oven=Oven(name="a", seeds=("sesame",)), towns={"b": Oven(name="b", heat=1.0)})
    assert read_recorded(Bakery, literals(bakery)) == bakery


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loavs": 1}, r"unknown key `loavs`; did you mean `loaves`\? Allowed: name, loaves, rye"),
        ({"xyz": 1}, r"unknown key `xyz`\. Allowed: name, loaves"),
        ({}, "key `name` is missing; required: name"),
        ({"name": ""}, "name is '', expected a text that is not empty"),
        ({"loaves": "3"}, "loaves is '3', expected a whole number of at least 1"),
        ({"loaves": True}, "loaves is True, expected a whole number of at least 1"),
        ({"loaves": 2.5}, "loaves is 2.5, expected a whole number"),
        ({"loaves": 0}, "loaves is 0, expected a whole number of at least 1"),
        ({"rye": True}, "rye is True, expected a number from 0 to 1"),
        ({"rye": 1.5}, "rye is 1.5, expected a number from 0 to 1"),
        ({"rye": float("nan")}, "rye is nan, expected a number from 0 to 1"),
        ({"heat": 500}, "heat is 500, expected a number above 0 and below 500"),
        ({"crust": "thik"}, r"crust is 'thik', expected one of thin, thick; did you mean `thick`\?"),
        (
            {"seeds": ["popy"]},
            r"seeds is \['popy'\], expected a list with any of poppy, sesame; did you mean `poppy`",
        ),
        ({"notes": "x"}, "notes is 'x', expected a list of texts"),
        ({"notes": [1]}, r"notes is \[1\], expected a list of texts"),
        ({"steam": 1}, "steam is 1, expected true or false"),
        ({"steam": True}, "steam=True needs heat"),
    ],
)
def test_read_mistake_names_place_key_value_and_what_is_allowed(values, message):
    values = values if "name" in values or not values else {"name": "a"} | values
    with pytest.raises(ValueError, match=rf"^x\.toml: \[oven\]: {message}"):
        read(Oven, values, "x.toml: [oven]")


def test_read_field_that_no_user_sets_is_no_key():
    assert read(Oven, {}, "x.toml", name="a") == Oven(name="a")
    with pytest.raises(ValueError, match=r"unknown key `name`\. Allowed: loaves"):
        read(Oven, {"name": "b"}, "x.toml", name="a")


def test_read_what_is_no_table_is_refused():
    with pytest.raises(ValueError, match=r"x\.toml: oven is 3, expected a table"):
        read(Oven, 3, "x.toml: oven")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("loaves", "--set loaves: expected KEY=VALUE"),
        ("loavs=1", r"--set: unknown key `loavs`; did you mean `loaves`\? Allowed: name, loaves=3, rye=0.5"),
        ("loaves=many", "--set: loaves is 'many', expected a whole number of at least 1"),
        ("loaves=0", "--set: loaves is 0, expected a whole number of at least 1"),
        ("steam=maybe", "--set: steam is 'maybe', expected true or false"),
        ("crust=thik", r"--set: crust is 'thik', expected one of thin, thick; did you mean `thick`\?"),
    ],
)
def test_read_assignments_mistake_names_setting_value_and_what_is_allowed(assignment, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        read_assignments(Oven, ["name=a", assignment])


def test_read_assignments_none_is_no_value():
    assert read_assignments(Oven, ["name=a", "heat=none"]).heat is None


@pytest.mark.parametrize("values", [{"loaves": 0}, {"loaves": "3"}, {"crust": "burnt"}, {"heat": -1.0}])
def test_config_made_in_python_is_held_to_the_same_ranges(values):
    (name,) = values
    with pytest.raises(ValueError, match=f"^{name} is .*, expected "):
        Oven(name="a", **values)


def test_settings_of_a_config_have_range_default_and_description():
    heat = settings_of(Oven)["heat"]
    assert (heat.expected, heat.optional, heat.default) == ("a number above 0 and below 500", True, None)
    assert heat.description == "Temperature in degrees Celsius; None for a cold oven."


def test_read_toml_of_an_editor_that_writes_a_byte_order_mark(tmp_path):
    """Notepad begins a file with U+FEFF, and the first line was called an invalid statement (own trials)."""
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbf[mill]\r\nwheels = 2\r\n")
    assert read_toml(tmp_path / "a.toml") == {"mill": {"wheels": 2}}
    (tmp_path / "b.toml").write_bytes("[mill]\r\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"b.toml is not UTF-8 \(byte 0\); save it as UTF-8"):
        read_toml(tmp_path / "b.toml")


def test_read_toml_mistake_names_file_and_place(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text("[oven\n")
    with pytest.raises(ValueError, match=r"x\.toml is not valid TOML: .*line 1"):
        read_toml(path)


def test_did_you_mean_only_where_a_name_is_near():
    assert did_you_mean("foundation_modl", ["corpus", "foundation_model"]) == "; did you mean `foundation_model`?"
    assert did_you_mean("xyz", ["corpus", "foundation_model"]) == ""
