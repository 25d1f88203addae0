"""Weights from a hub: a server on this machine that plays one, with all its ways to refuse."""

import functools
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants

from pipeline.corpus.collect import download
from pipeline.store.errors import SourceUnavailable
from pipeline.training.open_hub import HubWeights
from tests.pipeline.training.weight_servers import COMMIT, serving, sha256

REPOSITORY = "mill/tiny"
FILES = {"config.json": b"{}", "model.safetensors": b"weights " * 250_000, "tokenizer.json": b"[]"}
TOKEN = "hf_correct_horse_battery"


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    with serving() as server:
        server.repositories[REPOSITORY] = dict(FILES)
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        netrc = tmp_path_factory.mktemp("home") / "netrc"  # a login there must not replace the token
        netrc.write_text("machine 127.0.0.1 login somebody password else")
        monkeypatch.setenv("NETRC", str(netrc))
        monkeypatch.setattr("pipeline.training.open_hub.WAITS", (0.0, 0.0))
        yield server


def weights(**changes) -> HubWeights:
    files = {path: sha256(content) for path, content in FILES.items()}
    values = {"name": "tiny", "huggingface": REPOSITORY, "revision": COMMIT, "files": files}
    return HubWeights(**{**values, **changes})


def gathered(tmp_path: Path, model: HubWeights, folder: str = "model") -> dict[str, bytes]:
    model.gather(tmp_path / folder, tmp_path / "cache", lambda done, total: None)
    return {path.name: path.read_bytes() for path in sorted((tmp_path / folder).iterdir())}


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("[!.]*") if path.is_file()}


def test_hub_files_are_fetched_once_and_then_need_no_network(hub, tmp_path):
    assert gathered(tmp_path, weights()) == FILES
    n_requests = len(hub.requests)
    hub.shutdown()
    hub.server_close()
    assert gathered(tmp_path, weights(), "again") == FILES and len(hub.requests) == n_requests == 4


def test_hub_token_is_sent_to_the_hub_and_not_to_the_server_that_it_redirects_to(hub, tmp_path):
    with serving() as cdn:
        cdn.packages = dict(FILES)
        hub.elsewhere, hub.needs_token = cdn.address, TOKEN
        assert gathered(tmp_path, weights()) == FILES
        assert {given for _, _, given in hub.requests} == {f"Bearer {TOKEN}"}
        assert len(cdn.requests) == 3 and TOKEN not in str(cdn.requests)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, r"answered 401 .* the token in HF_TOKEN .* is not accepted; check the name, or set HF_TOKEN"),
        (403, r"answered 403 .* terms that are accepted on that page by the account of your token"),
        (404, rf"has no list of files at the revision {COMMIT} \(404\); check the repository and the commit"),
        (503, r"list of files of mill/tiny could not be fetched .*503.* check the network and HF_ENDPOINT"),
    ],
)
def test_hub_refusal_says_what_to_do_and_never_shows_the_token(hub, tmp_path, status, expected):
    hub.refusal = status
    with pytest.raises((SourceUnavailable, ValueError), match=expected) as caught:
        gathered(tmp_path, weights())
    assert TOKEN not in f"{caught.value}{caught.value.__cause__}" and not visible(tmp_path)
    assert len(hub.requests) == (3 if status == 503 else 1)


def test_hub_without_a_token_says_that_none_is_set(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    hub.needs_token = TOKEN
    with pytest.raises(SourceUnavailable, match="needs a login, and no token is set"):
        gathered(tmp_path, weights())


def test_hub_that_is_away_is_unavailable(hub, tmp_path):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(SourceUnavailable, match=r"refuses connections.*what was downloaded is kept"):
        gathered(tmp_path, weights())


def test_hub_offline_mode_is_respected(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceUnavailable, match="HF_HUB_OFFLINE forbids the download"):
        gathered(tmp_path, weights())
    assert not hub.requests


@pytest.mark.parametrize("page", [b"<html>a portal</html>", b"[]", b'{"siblings": [1]}', b"[" * 100_000])
def test_hub_address_of_something_else_is_told_apart(hub, tmp_path, page):
    hub.listings = page
    with pytest.raises(SourceUnavailable, match="did not answer with the list of files of a repository"):
        gathered(tmp_path, weights())


def test_hub_repository_without_the_files_is_told_apart(hub, tmp_path):
    hub.repositories[REPOSITORY] = {}
    with pytest.raises(ValueError, match=r"hf://mill/tiny@0123.* has no file config.json; it contains"):
        gathered(tmp_path, weights())


def test_hub_file_with_another_sha256_is_refused_before_it_is_downloaded(hub, tmp_path):
    hub.repositories[REPOSITORY]["model.safetensors"] = b"other"
    with pytest.raises(ValueError, match=rf"sha256 {sha256(b'other')}, but {sha256(FILES['model.safetensors'])} is"):
        gathered(tmp_path, weights())
    assert not hub.downloads()


def test_hub_model_too_large_for_the_memory_is_refused_before_it_is_downloaded(hub, tmp_path):
    hub.n_parameters = 10**13
    with pytest.raises(
        ValueError, match=r"needs at least 40,000.0 GB of memory .* enough for \d+.\d+ billion weights"
    ):
        gathered(tmp_path, weights())
    assert not hub.downloads()


def test_hub_small_file_with_another_sha256_is_refused_and_not_kept(hub, tmp_path):
    hub.repositories[REPOSITORY]["config.json"] = b"other"
    with pytest.raises(ValueError, match=rf"config.json has sha256 {sha256(b'other')}, but {sha256(b'{}')} is"):
        gathered(tmp_path, weights())
    assert not visible(tmp_path)


def test_hub_misspelt_file_names_the_nearest(hub, tmp_path):
    with pytest.raises(ValueError, match=r"no file models.safetensors; did you mean `model.safetensors`"):
        gathered(tmp_path, weights(files={"config.json": "0" * 64, "models.safetensors": "0" * 64}))


def test_hub_answer_that_breaks_off_is_continued(hub, tmp_path):
    hub.faults = [0, -1]
    assert gathered(tmp_path, weights()) == FILES
    half = len(FILES["model.safetensors"]) // 2
    assert hub.downloads()[1:3] == [("model.safetensors", None), ("model.safetensors", f"bytes={half}-")]


DOWNLOAD = """
import sys
from pathlib import Path
from tests.pipeline.training.test_open_hub import weights
weights().gather(Path(sys.argv[1]), Path(sys.argv[2]), lambda done, total: None)
"""


def downloading(tmp_path: Path, folder: str, **pipes) -> subprocess.Popen:
    command = [sys.executable, "-c", DOWNLOAD, str(tmp_path / folder), str(tmp_path / "cache")]
    return subprocess.Popen(command, text=True, **pipes)


def size_of_part(tmp_path: Path) -> int:
    """Bytes that a download at the gate has written: the blocks of the first half."""
    folder, size = tmp_path / "cache" / sha256(FILES["model.safetensors"]), 0
    whole_blocks = len(FILES["model.safetensors"]) // 2 // download.BLOCK * download.BLOCK
    while size < whole_blocks:
        threading.Event().wait(0.01)
        size = sum(path.stat().st_size for path in folder.glob(".*.part"))
    return size


def test_hub_download_that_is_killed_is_continued_by_the_next_run(hub, tmp_path):
    hub.gated, process = "model.safetensors", downloading(tmp_path, "killed")
    size = size_of_part(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.gated = ""
    hub.gate.set()
    assert not visible(tmp_path / "killed") and "model.safetensors" not in visible(tmp_path / "cache")
    assert gathered(tmp_path, weights()) == FILES
    assert hub.downloads()[-2] == ("model.safetensors", f"bytes={size}-")


def test_hub_download_onto_a_full_disk_is_continued_by_the_next_run(hub, tmp_path):
    """A limit on the size of files plays the full disk: the system refuses to write any more."""
    limit = len(FILES["model.safetensors"]) // 2
    limits = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    process = downloading(tmp_path, "full", stderr=subprocess.PIPE, preexec_fn=limits)
    assert "File too large" in process.communicate()[1]
    assert "model.safetensors" not in visible(tmp_path)
    assert gathered(tmp_path, weights()) == FILES
    assert hub.downloads()[-2] == ("model.safetensors", f"bytes={limit}-")


def test_hub_second_run_waits_for_the_first_and_downloads_nothing(hub, tmp_path):
    hub.gated, first = "model.safetensors", downloading(tmp_path, "first")
    size_of_part(tmp_path)
    second = downloading(tmp_path, "second", stderr=subprocess.PIPE)
    assert second.stderr is not None
    assert "another run is downloading model.safetensors; waiting for that run" in second.stderr.readline()
    hub.gate.set()
    assert first.wait(60) == 0 and second.wait(60) == 0
    second.stderr.close()
    assert gathered(tmp_path, weights()) == FILES
    assert [name for name, _ in hub.downloads()].count("model.safetensors") == 1
