"""GGUF files read without trust: the values that the package gguf reads, and one error for whatever a file claims."""

import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from model.hf.gguf_read import MAX_HEADER_BYTES, is_gguf, read_gguf

WRITABLE = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
READABLE = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")  # the package does not write these
TYPES = gguf.GGMLQuantizationType
N_MUTATIONS = 500


def write(path: Path, tensors: dict[str, tuple[np.ndarray, str]], alignment: int = 32) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    writer.add_name("ein Name, \u00e4")
    writer.add_token_list(["a", "\u0120b", ""])
    writer.add_token_types([1, 3, 1])
    writer.add_rope_freq_base(1e6)
    writer.add_add_bos_token(False)
    for name, (values, stored) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=None if stored in ("F32", "F16") else TYPES[stored])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def tiny(tmp_path) -> Path:
    values = np.arange(64, dtype=np.float32).reshape(2, 32)
    return write(tmp_path / "tiny.gguf", {"one": (values, "F32"), "two": (values + 1, "F32")})


@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_read_gives_the_fields_and_tensors_that_gguf_reads(tmp_path, alignment):
    draw = np.random.default_rng(0)
    values = draw.normal(size=(5, 256)).astype(np.float32)
    tensors = {stored: (gguf.quants.quantize(values, TYPES[stored]), stored) for stored in WRITABLE} | {
        stored: (draw.integers(0, 256, (3, 2 * gguf.GGML_QUANT_SIZES[TYPES[stored]][1]), np.uint8), stored)
        for stored in READABLE
    }
    path = write(tmp_path / "model.gguf", tensors, alignment)
    file, expected = read_gguf(path), gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in expected.fields.items() if not name.startswith("GGUF.")}
    assert dict(file.fields) == fields
    assert [(name, tensor.stored) for name, tensor in file.tensors.items()] == [(name, name) for name in tensors]
    for tensor in expected.tensors:
        ours = file.read(tensor.name)
        assert ours.shape == tuple(tensor.shape[::-1]) and ours.dtype == np.float32
        np.testing.assert_array_equal(
            ours, gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(ours.shape)
        )


def test_read_in_blocks_of_rows_is_the_whole_tensor(tmp_path, monkeypatch):
    values = np.random.default_rng(0).normal(size=(2, 11, 64)).astype(np.float32)
    path = write(tmp_path / "model.gguf", {"one": (values, "F32")})
    monkeypatch.setattr("model.hf.gguf_read.BLOCK_ELEMENTS", 3 * 64)
    np.testing.assert_array_equal(read_gguf(path).read("one"), values)
    np.testing.assert_array_equal(read_gguf(path).rows("one", 12, 3), values.reshape(22, 64)[12:15])


# Files that claim what is not there. A field or tensor is placed by its own bytes, so that each claim is exact.


def text(value: str | bytes) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(content)) + content


def number_field(name: str, value: int) -> bytes:
    return text(name) + struct.pack("<II", 4, value)


def tensor(name: str, dimensions: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)


def header(
    fields: bytes = b"", tensors: bytes = b"", n_fields: int = 0, n_tensors: int = 0, version: int = 3
) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_fields) + fields + tensors


DATA = bytes(4096)
HOSTILE = {
    "no magic": (b"GGML" + DATA, "does not begin with GGUF"),
    "empty": (b"", "ends within a value of 4"),
    "half a header": (b"GGUF\x03\x00", "ends within a value of 4"),
    "version 1": (header(version=1) + DATA, "it has version 1, only 2 and 3 can be read"),
    "big-endian": (header(version=3 << 24) + DATA, "big-endian"),
    "tensors beyond the file": (header(n_tensors=2**63), "it claims 9,223,372,036,854,775,808 tensors"),
    "fields beyond the file": (header(n_fields=2**40) + DATA, "fields, which cannot fit"),
    "a text beyond the file": (header(struct.pack("<Q", 2**63) + DATA, n_fields=1), "at most 65,535"),
    "a value beyond the file": (
        header(text("a") + struct.pack("<IQ", 8, 2**34) + DATA, n_fields=1), "a name or text of 17,179,869,184 bytes"
    ),
    "numbers beyond the file": (
        header(text("a") + struct.pack("<IIQ", 9, 4, 2**61) + DATA, n_fields=1), "numbers in 'a', which cannot fit"
    ),
    "texts beyond the file": (
        header(text("a") + struct.pack("<IIQ", 9, 8, 2**61) + DATA, n_fields=1), "texts in 'a', which cannot fit"
    ),
    "arrays in arrays": (
        header(text("a") + struct.pack("<IIQ", 9, 9, 1) + DATA, n_fields=1), "'a' is an array of kind 9"
    ),
    "an unknown kind of value": (header(text("a") + struct.pack("<I", 77) + DATA, n_fields=1), "unknown kind 77"),
    "no UTF-8": (header(text(b"\xff\xfe") + DATA, n_fields=1), "not UTF-8"),
    "a field twice": (header(2 * number_field("a", 1), n_fields=2), "the field 'a' twice"),
    "a tensor twice": (header(b"", 2 * tensor("a", (4,)), n_tensors=2) + DATA, "the tensor 'a' twice"),
    "no dimensions": (header(b"", tensor("a", ()), n_tensors=1) + DATA, "0 dimensions"),
    "many dimensions": (header(b"", tensor("a", (1,) * 9), n_tensors=1) + DATA, "9 dimensions"),
    "a size of 0": (header(b"", tensor("a", (0, 4)), n_tensors=1) + DATA, "rows of 0"),
    "sizes that overflow": (header(b"", tensor("a", (2**33, 2**33)), n_tensors=1) + DATA, "needs 295,147,905,"),
    "a tensor beyond the file": (header(b"", tensor("a", (9999,)), n_tensors=1) + DATA, "needs 39,996 bytes"),
    "an offset beyond the file": (header(b"", tensor("a", (4,), 0, 2**62), n_tensors=1) + DATA, "needs 16 bytes"),
    "an offset that is not aligned": (header(b"", tensor("a", (4,), 0, 3), n_tensors=1) + DATA, "a multiple of 32"),
    "tensors that overlap": (
        header(b"", tensor("a", (64,)) + tensor("b", (4,), 0, 32), n_tensors=2) + DATA, "'a' and 'b' overlap"
    ),
    "half a block": (header(b"", tensor("a", (33,), 2), n_tensors=1) + DATA, "rows of 33, expected a multiple of 32"),
    "an unknown number format": (header(b"", tensor("a", (4,), 999), n_tensors=1) + DATA, "is stored as number 999"),
    "whole numbers": (header(b"", tensor("a", (4,), 26), n_tensors=1) + DATA, "is stored as I32; only F32, F16"),
    "no alignment": (header(number_field("general.alignment", 0), n_fields=1), "general.alignment=0"),
    "an odd alignment": (header(number_field("general.alignment", 24), n_fields=1), "general.alignment=24"),
    "a text as alignment": (
        header(text("general.alignment") + struct.pack("<I", 8) + text("32"), n_fields=1), "alignment=32 is no"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_read_refuses_a_file_that_claims_what_is_not_there(tmp_path, case):
    content, message = HOSTILE[case]
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.gguf") as caught:
        read_gguf(tmp_path / "a.gguf")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_read_refuses_metadata_without_end(tmp_path):
    path = tmp_path / "a.gguf"
    with path.open("wb") as file:  # sparse: takes no space on the disk
        file.write(header(text("a") + struct.pack("<IQ", 8, 2 * MAX_HEADER_BYTES - 100), n_fields=1))
        file.truncate(3 * MAX_HEADER_BYTES)
    with pytest.raises(ValueError, match="at most 64,000,000"):
        read_gguf(path)


def test_read_of_every_shorter_file_is_refused(tiny):
    content = tiny.read_bytes()
    for n_bytes in range(0, len(content), 7):
        tiny.write_bytes(content[:n_bytes])
        with pytest.raises(ValueError, match=r"tiny\.gguf"):
            read_gguf(tiny)


def test_read_of_mutated_headers_is_a_value_error_or_a_sound_file(tiny):
    """Whatever bytes a header has: no other exception, no memory beyond the file's size, no loop without end."""
    content, draw = tiny.read_bytes(), random.Random(0)
    n_refused = 0
    for _ in range(N_MUTATIONS):
        mutated = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(content) - 512)
            n_bytes = draw.choice((1, 4, 8))
            mutated[place : place + n_bytes] = draw.choice((bytes(8), b"\xff" * 8, draw.randbytes(8)))[:n_bytes]
        tiny.write_bytes(mutated)
        try:
            file = read_gguf(tiny)
        except ValueError:
            n_refused += 1
            continue
        for name, found in file.tensors.items():
            assert file.read(name).shape == found.shape
    assert N_MUTATIONS / 3 < n_refused < N_MUTATIONS


def test_read_of_a_file_that_is_cut_meanwhile_is_refused(tiny):
    file = read_gguf(tiny)
    tiny.write_bytes(tiny.read_bytes()[:-100])
    with pytest.raises(ValueError, match="became shorter while two was read"):
        file.read("two")


def test_is_gguf_looks_at_the_content(tiny, tmp_path):
    assert is_gguf(tiny.rename(tmp_path / "model.bin"))
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04")
    assert not is_gguf(tmp_path / "a.gguf") and not is_gguf(tmp_path) and not is_gguf(tmp_path / "missing")
