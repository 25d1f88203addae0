"""A link to MLflow that was made once leads to the run on whatever port MLflow has later."""

import http.client

import pytest

from pipeline.commands.mlflow_links import links_resolved
from pipeline.store.layout import Layout
from pipeline.tracking.journal import Journal
from pipeline.tracking.server import run_link

FINGERPRINT = "f" * 32


@pytest.fixture
def layout(tmp_path) -> Layout:
    layout = Layout(tmp_path)
    journal = Journal(layout, FINGERPRINT)
    journal.folder.mkdir(parents=True)
    journal.update(start={}, status="FINISHED", run_id="r1", experiment_id="7")
    return layout


def answer(port: int, path: str, **headers: str) -> tuple[int, str | None]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    connection.close()
    return response.status, response.getheader("Location")


def test_link_leads_to_the_run_on_the_port_that_mlflow_has_now(layout):
    for mlflow in (5000, 5001):
        with links_resolved(layout, f"http://127.0.0.1:{mlflow}", port=0) as port:
            status, address = answer(port, f"/runs/{FINGERPRINT}")
            assert status == 302
            assert address == f"http://127.0.0.1:{mlflow}/#/experiments/7/runs/r1?workflowType=machine_learning"
            assert answer(port, f"/runs/{'a' * 32}") == (404, None)
            assert answer(port, "/runs/../../run.json") == (404, None)


def test_link_is_followed_from_any_page_but_under_no_foreign_name(layout):
    with links_resolved(layout, "http://127.0.0.1:5000", port=0) as port:
        path = f"/runs/{FINGERPRINT}"
        assert answer(port, path, Host=f"evil.example:{port}") == (403, None)
        assert answer(port, path, Origin="null") == (403, None)
        assert answer(port, path, **{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "image"}) == (403, None)
        followed = {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        assert answer(port, path, **followed)[0] == 302
        for elsewhere in ("//evil.example", "/runs//evil.example", f"http://evil.example{path}"):
            assert answer(port, elsewhere)[1] is None


def test_link_port_in_use_is_no_reason_to_stop(layout):
    with links_resolved(layout, "http://127.0.0.1:5000", port=0) as port:
        with links_resolved(layout, "http://127.0.0.1:5000", port=port) as second:
            assert second is None
        assert answer(port, f"/runs/{FINGERPRINT}")[0] == 302


def test_link_to_a_remote_server_is_direct(layout, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org/")
    assert run_link(layout, FINGERPRINT).startswith("https://mlflow.example.org/#/experiments/7/runs/r1")
