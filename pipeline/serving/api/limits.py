"""What a client may send and take of the server. Out: a frozen dataclass, which `gristmill serve --set` changes."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from pipeline.store.settings import check_values


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    max_body_bytes: Annotated[int, Ge(1024), "Largest body of a request, in bytes."] = 4_000_000
    max_header_bytes: Annotated[int, Ge(1024), "Largest head of a request (address and headers), in bytes."] = 32_768
    max_connections: Annotated[int, Ge(1), "Connections at a time; further ones are answered with 503."] = 512
    header_seconds: Annotated[float, Gt(0), "Time for a client to send the head of a request, in seconds."] = 10.0
    body_seconds: Annotated[float, Gt(0), "Time for a client to send the body of a request, in seconds."] = 30.0
    idle_seconds: Annotated[float, Gt(0), "Time that a connection is kept open between requests, in seconds."] = 15.0
    request_seconds: Annotated[
        float, Gt(0), "Time for an answer, in seconds; a text that takes longer ends there, as at its longest length."
    ] = 300.0
    max_new_tokens: Annotated[int, Ge(1), "Longest text that is written for one request, in tokens."] = 4096
    max_choices: Annotated[int, Ge(1), "Texts that one request may ask for: n times the number of prompts."] = 16
    max_texts: Annotated[int, Ge(1), "Texts that one request may have embedded or judged by a task."] = 512
    max_schema_bytes: Annotated[int, Ge(64), "Largest JSON Schema of a response_format, in bytes of JSON."] = 16_384
    max_waiting: Annotated[
        int, Ge(0), "Requests of a model that wait for a place; one more is answered with 429."
    ] = 64
    n_slots: Annotated[int, Ge(1), Le(1024), "Texts that a language model writes at a time."] = 32

    def __post_init__(self) -> None:
        check_values(self)
