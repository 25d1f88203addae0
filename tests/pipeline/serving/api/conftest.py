"""One server with tiny models of every kind, for all tests of this folder that do not change it."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.pipeline.serving.api.tiny_models import Running, running, write_all


@pytest.fixture(scope="session")
def tiny_models(byte_tokenizer, tmp_path_factory) -> dict[str, Path]:
    return write_all(byte_tokenizer.directory, tmp_path_factory.mktemp("served_models"))


@pytest.fixture(scope="session")
def server(tiny_models, tmp_path_factory) -> Iterator[Running]:
    with running(list(map(str, tiny_models.values())), tmp_path_factory.mktemp("served_data")) as one:
        yield one


@pytest.fixture(scope="session")
def client(server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as one:
        yield one
