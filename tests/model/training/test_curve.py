"""The curve of a training: cut to a checkpoint's mark, and what is whole kept where it no longer fits."""

import resource

import pytest

from model.training.curve import opened_curve, read_curve

LINES = [{"step": step, "loss": 1.0 / step} for step in range(1, 16)]


@pytest.fixture
def marked(tmp_path) -> dict[str, int]:
    """The mark of step 15 of a curve with a validation at step 10 and two steps more."""
    with opened_curve(tmp_path, writes=True) as curve:
        for line in LINES:
            curve.write(step=line["step"], values={"loss": line["loss"]})
            if line["step"] == 10:
                curve.write(10, {"validation_loss": 0.5})
        mark = curve.mark()
        for step in (16, 17):
            curve.write(step, {"loss": 9.0})
    return mark


def test_curve_is_cut_to_its_mark_and_goes_on(tmp_path, marked, caplog):
    with opened_curve(tmp_path, writes=True) as curve:
        curve.cut(marked, 15)
        curve.write(16, {"loss": 0.1})
    expected = [*LINES[:10], {"step": 10, "validation_loss": 0.5}, *LINES[10:], {"step": 16, "loss": 0.1}]
    assert read_curve(tmp_path) == expected and not caplog.text


@pytest.mark.parametrize(
    ("spoil", "n_left"),
    [
        (lambda text: "", 0),
        (lambda text: text[:40], 1),
        (lambda text: text.replace('"step": 7,', '"step": 7!,'), 14),
        (lambda text: text.replace('{"step": 1,', '[[{"step": 1,', 1), 14),
        (lambda text: "[" * 100_000 + text, 14),
    ],
)
def test_damaged_curve_keeps_every_line_that_is_whole_once(tmp_path, marked, caplog, spoil, n_left):
    path = tmp_path / "curve.jsonl"
    path.write_text(spoil(path.read_text()))
    with opened_curve(tmp_path, writes=True) as curve:
        curve.cut(marked, 15)
        again = curve.mark()
    lines = read_curve(tmp_path)
    steps = [line["step"] for line in lines if "loss" in line]
    assert all(line in LINES for line in lines if "loss" in line)
    assert len(steps) == n_left and steps == sorted(set(steps))
    assert f"of 15 steps {n_left} are still there" in caplog.text
    with opened_curve(tmp_path, writes=True) as curve:
        curve.cut(again, 15)  # the new mark fits
    assert read_curve(tmp_path) == lines


def test_curve_without_room_names_its_file(tmp_path):
    """An error of writing has no file of its own: "No space left on device" told nobody where."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened_curve(tmp_path, writes=True) as curve:
        curve.write(1, {"loss": 1.0})
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))  # as good as a full disk, for one file
        try:
            with pytest.raises(OSError, match=r"curve\.jsonl"):
                curve.mark()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
