"""A file that cannot be fetched: one line says which server or proxy failed, how, and what to do."""

import logging
import socket
import threading

import pytest

from pipeline.corpus.collect.url import fetch_pinned, pinned
from pipeline.store.errors import SourceUnavailable

PIN = f"#sha256={'0' * 64}"


@pytest.fixture
def failing(tmp_path, monkeypatch):
    """The message for an address."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    def fetch(address: str, waits: tuple[float, ...] = ()) -> str:
        with pytest.raises(SourceUnavailable) as caught:
            fetch_pinned(pinned(address + PIN), tmp_path / "cache", 1.0, waits=waits)
        message = str(caught.value)
        assert "\n" not in message and "put the file with sha256" in message
        for nested in ("object at", "Error(", "Caused by", "HTTPConnectionPool"):
            assert nested not in message
        return message

    return fetch


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_network_error_of_a_name_that_is_unknown_is_one_line(failing, monkeypatch):
    """Without a network, three warnings and an error were exceptions of requests nested three deep."""

    def unknown(*asked: object, **more: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "(the name of index.example.org cannot be resolved)" in failing("https://index.example.org/a.txt")


def test_network_error_of_a_server_that_refuses_is_one_line(failing, free_port):
    assert f"(127.0.0.1:{free_port} refuses connections)" in failing(f"http://127.0.0.1:{free_port}/a.txt")


def test_network_error_of_a_proxy_is_one_line_without_its_password(failing, free_port, monkeypatch):
    monkeypatch.setenv("https_proxy", f"http://bob:hunter2@127.0.0.1:{free_port}")
    message = failing("https://example.org/a.txt")
    assert "(the proxy for example.org cannot be used: " in message and "hunter2" not in message


@pytest.mark.parametrize(
    ("scheme", "answer", "said"),
    [
        (
            "http",
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            "answered 404 Not Found: there is no such file",
        ),
        ("http", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nabc", "broke off"),
        ("http", b"", "failed: Remote end closed connection"),
        ("https", b"no TLS here", "there is no secure connection to 127.0.0.1:"),
    ],
)
def test_network_error_of_a_bad_answer_is_one_line(failing, scheme, answer, said):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            connection.recv(4096)
            connection.sendall(answer)
            connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        assert said in failing(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/a.txt")
        thread.join()


def test_network_error_that_may_pass_is_warned_of_once(failing, free_port, caplog):
    with caplog.at_level(logging.WARNING):
        failing(f"http://127.0.0.1:{free_port}/a.txt", waits=(0.0, 0.0, 0.0))
    assert [record.message for record in caplog.records] == [
        f"http://127.0.0.1:{free_port}/a.txt: 127.0.0.1:{free_port} refuses connections; trying again for 0 s"
    ]
