"""How a user names an output."""

import pytest

from pipeline.store.layout import Layout, folder_or_current, save_current
from pipeline.store.records import Checkpoint
from pipeline.store.store import Outcome, Stage, Store


@pytest.mark.parametrize(
    ("name", "asset"),
    [
        ("base/smollm2", "base/smollm2"),
        ("smollm2", "base/smollm2"),
        ("helper_model", "helper_model"),
        ("helper", "helper_model"),
        ("foundation_model", "foundation_model"),
    ],
)
def test_output_is_named_by_its_asset_or_by_the_table_of_a_model(tmp_path, name, asset):
    layout, folders = Layout(tmp_path / "data"), {}
    stage = Stage(name="train", version=1, function=lambda cfg, inputs, work: Outcome(rows=0), handle=Checkpoint)
    for made in ("base/smollm2", "helper_model", "foundation_model"):
        handle = Store(root=layout.store).build(stage, {"asset": made}).handle
        save_current(layout, made, handle)
        folders[made] = handle.directory
    assert folder_or_current(layout, name) == folders[asset]


def test_output_named_by_a_folder_is_that_folder(tmp_path):
    assert folder_or_current(Layout(tmp_path / "data"), str(tmp_path)) == tmp_path


def test_name_of_nothing_is_an_error_with_the_nearest_asset(tmp_path):
    layout = Layout(tmp_path / "data")
    stage = Stage(name="train", version=1, function=lambda cfg, inputs, work: Outcome(rows=0), handle=Checkpoint)
    save_current(layout, "helper_model", Store(root=layout.store).build(stage, {}).handle)
    with pytest.raises(ValueError, match="did you mean `helper_model`"):
        folder_or_current(layout, "helper_modle")
