"""Passwords and tokens in addresses are hidden, wherever a text comes from."""

import logging

import pytest

from pipeline.store.redaction import redact_logs, redacted

SECRET = "correct-horse-9"


@pytest.mark.parametrize(
    "text",
    [
        "API request to http://ann:{}@127.0.0.1:9/api failed",
        "https://{}@index.example.org/simple/",
        "postgresql+psycopg2://ann:{}@db:5432/runs?sslmode=require",
        "http:/ann:{}@host",
        "GET https://b.s3.example.org/k?X-Amz-Credential=AK%2F1&X-Amz-Signature={}&x=1",
        "https://b.blob.example.org/c?sv=2024&sig={}",
        "https://host/file?access_token={}",
        "https://host/file?a=1;apikey={})",
        "{{'Authorization': 'Bearer {}'}}",
        "authorization: Basic {}",
        "https://host/page#access_token={}",
        "https://host/file?user=ann&pw={}",
        "{{'X-Api-Key': '{}'}}",
    ],
)
def test_secret_in_an_address_is_hidden(text):
    """A password in MLFLOW_TRACKING_URI was printed in every warning (zenml-io/zenml#2443, mlflow/mlflow#2282)."""
    shown = redacted(text.format(SECRET))
    assert SECRET not in shown and "***" in shown


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MLFLOW_TRACKING_URI", f"http//ann:{SECRET}@host"),
        ("MLFLOW_TRACKING_URI", f"ann:{SECRET}@host:5000"),
        ("MLFLOW_REGISTRY_URI", f"http://ann:a/{SECRET}@host"),
        ("PIP_INDEX_URL", f"https://__token__:{SECRET}@index.example.org/simple"),
        ("HTTPS_PROXY", f"ann:{SECRET}@proxy:3128"),
        ("MLFLOW_TRACKING_PASSWORD", SECRET),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("MLFLOW_TRACKING_TOKEN", SECRET),
    ],
)
def test_secret_of_the_environment_is_hidden_also_in_a_malformed_address(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    assert SECRET not in redacted(f"could not open {value!r}")
    if f"/{SECRET}" not in value:
        assert SECRET not in redacted(f"login {SECRET} refused")


@pytest.mark.parametrize(
    "text",
    ["mailto:ann@example.org", "file:///data/a@b/c", "see https://example.org/?page=2&monkey=3", "a@b.example"],
)
def test_text_without_a_secret_is_not_changed(text):
    assert redacted(text) == text


def test_logs_of_libraries_and_their_tracebacks_hide_secrets(caplog):
    former, login = logging.getLogRecordFactory(), f"ann:{SECRET}"
    try:
        redact_logs()
        redact_logs()
        try:
            raise OSError(f"https://{login}@host/x")
        except OSError:
            logging.getLogger("some.library").exception("request to %s failed", f"http://{login}@host")
    finally:
        logging.setLogRecordFactory(former)
    assert SECRET not in caplog.text and "http://***@host" in caplog.text and "Traceback" in caplog.text
