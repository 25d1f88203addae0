"""Events of a training elsewhere: delivered in order and once, also those that a killed side left behind."""

import threading

import pytest

from pipeline.training.events import DELIVERED, EVENTS, EventWriter, deliver_rest, delivered_live, remove_events


class Heard:
    def __init__(self) -> None:
        self.events: list[tuple] = []
        self.came = threading.Event()

    def started(self, fingerprint, params, inputs) -> None: ...

    def metrics(self, step, values) -> None:
        self.events.append((step, dict(values)))
        self.came.set()

    def checkpoint(self, path, step, values) -> None:
        (path / "complete.json").read_text()
        self.events.append((path.name, step, dict(values)))

    def progress(self, done, total) -> None:
        self.events.append(("progress", done, total))


def checkpoint_folder(directory):
    folder = directory / "step-000002"
    folder.mkdir()
    (folder / "complete.json").write_text("{}")
    return folder


def test_events_are_delivered_in_order_with_their_values(tmp_path):
    writer, heard = EventWriter(tmp_path), Heard()
    writer.metrics(1, {"loss": 2.5})
    writer.progress(1, 2)
    writer.metrics(2, {"loss": float("inf")})
    writer.checkpoint(checkpoint_folder(tmp_path), 2, {"bits": 1.0})
    deliver_rest(tmp_path, heard, heard.progress)
    assert heard.events == [
        (1, {"loss": 2.5}),
        ("progress", 1, 2),
        (2, {"loss": float("inf")}),
        ("step-000002", 2, {"bits": 1.0}),
    ]


def test_events_are_delivered_once_and_a_torn_line_when_it_is_whole(tmp_path):
    writer, heard = EventWriter(tmp_path), Heard()
    writer.metrics(1, {"loss": 2.0})
    whole = (tmp_path / EVENTS).read_bytes()
    (tmp_path / EVENTS).write_bytes(whole + whole[:9])
    deliver_rest(tmp_path, heard)
    deliver_rest(tmp_path, heard)
    assert heard.events == [(1, {"loss": 2.0})]
    (tmp_path / EVENTS).write_bytes(whole + whole)
    deliver_rest(tmp_path, heard)
    assert heard.events == [(1, {"loss": 2.0})] * 2


def test_events_are_delivered_while_the_block_lasts_and_the_rest_at_its_end(tmp_path):
    writer, heard = EventWriter(tmp_path), Heard()
    with delivered_live(tmp_path, heard, heard.progress):
        writer.metrics(1, {"loss": 2.0})
        assert heard.came.wait(30)
        writer.metrics(2, {"loss": 1.0})
    assert heard.events == [(1, {"loss": 2.0}), (2, {"loss": 1.0})]
    remove_events(tmp_path)
    assert not list(tmp_path.iterdir())


def test_events_an_observer_that_fails_fails_the_block(tmp_path):
    class Failing(Heard):
        def metrics(self, step, values) -> None:
            self.came.set()
            raise OSError("no room")

    failing = Failing()
    with pytest.raises(OSError, match="no room"), delivered_live(tmp_path, failing, failing.progress):
        EventWriter(tmp_path).metrics(1, {"loss": 2.0})
        assert failing.came.wait(30)


def test_events_a_checkpoint_that_was_pruned_meanwhile_is_left_out(tmp_path):
    writer, heard, folder = EventWriter(tmp_path), Heard(), checkpoint_folder(tmp_path)
    writer.checkpoint(folder, 2, {})
    (folder / "complete.json").unlink()
    with pytest.raises(FileNotFoundError):  # half a folder is not a pruned one
        deliver_rest(tmp_path, heard)
    folder.rmdir()
    deliver_rest(tmp_path, heard)
    assert heard.events == []


def test_events_position_that_was_torn_delivers_all_again(tmp_path):
    writer, heard = EventWriter(tmp_path), Heard()
    writer.metrics(1, {"loss": 2.0})
    (tmp_path / DELIVERED).write_text("")
    deliver_rest(tmp_path, heard)
    assert heard.events == [(1, {"loss": 2.0})]
