"""How a kind of task writes conversations as tokens: the settings that its trainings share, and the encoder.

In: settings, and a tokenizer with its files. Out: a `ChatEncoder`, which renders conversations of examples by one
template, with a system prompt where they have none; and chat_template.jinja of the model that is trained with it.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pyarrow as pa

from model.data.chat import ANSWERS, CHAT_TEMPLATE, ROLES, ChatTemplate
from model.data.tokenizer import TOKENIZER
from pipeline.corpus.examples.conversations import conversation_of, rendered_by_name
from pipeline.store.shards import write_text

if TYPE_CHECKING:
    from model.data.conversations import EncodedConversations

Template = Annotated[
    Literal["auto", "chatml", "llama3", "alpaca"],
    "How conversations are written as text. auto is the chat template that came with the base, or alpaca for a base"
    " without one; the model is saved with the template that it was trained with.",
]
SystemPrompt = Annotated[
    str, "System message of the conversations that have none, in training and whenever the model is used."
]
Trained = Annotated[
    tuple[str, ...],
    "Whose messages the model learns to write: the roles assistant, user, system and tool, or all for every token"
    " of a conversation. An empty list means the answers of the assistant.",
]
Tuning = Annotated[
    Literal["full", "lora"],
    "Train all weights, or with lora (arXiv:2106.09685) only small adapters beside the frozen base.",
]
ALL = "all"
SHOWN_IDS = 5  # in a warning
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChatEncoder:
    """Takes the place of a tokenizer where examples are conversations."""

    template: ChatTemplate
    system: str = ""
    trained: tuple[str, ...] | None = ANSWERS  # roles; None = every token

    def encoded(self, rows: pa.Table, max_tokens: int, truncation_side: str) -> "EncodedConversations":
        """The conversations of examples; those without a trained token are left out. Raises ValueError if all are."""
        from model.data.conversations import ROOM_ON_CPU, encoded_conversations
        from model.training.machine import training_device

        ids = rows["id"].to_pylist()
        conversations = [conversation_of(messages, self.system) for messages in rows["messages"].to_pylist()]
        rendered = rendered_by_name(self.template, ids, conversations, self.trained)
        found = encoded_conversations(
            self.template, ids, conversations, rendered, max_tokens, truncation_side, self.trained
        )
        if found.unsupervised:
            log.warning(
                "%s of %s conversations have no trained token among the %s that are read, and are not used: %s",
                *(f"{len(found.unsupervised):,}", f"{len(ids):,}", f"{max_tokens:,}"),
                ", ".join(
                    [*found.unsupervised[:SHOWN_IDS], *(["..."] if len(found.unsupervised) > SHOWN_IDS else [])]
                ),
            )
        if not found.ids:
            raise ValueError(
                f"no conversation has a trained token: at most {max_tokens:,} tokens of each are read (max_tokens),"
                f" and the trained roles of the {len(ids):,} conversations are {', '.join(self.trained or ('all',))}"
            )
        return replace(found, room=None if training_device().type == "cuda" else ROOM_ON_CPU)


def checked_roles(trained: tuple[str, ...]) -> tuple[str, ...] | None:
    """Roles of the setting `trained`; None = every token. Raises ValueError for an unknown one."""
    if trained == (ALL,):
        return None
    if unknown := [role for role in trained if role not in ROLES]:
        raise ValueError(f"trained={list(trained)} has {unknown[0]!r}; expected {', '.join(ROLES)}, or all alone")
    return trained or ANSWERS


def chat_encoder(tokenizer: Any, directory: Path, cfg: Any) -> ChatEncoder:
    """The encoder for the tokenizer in `directory` by the settings template, system_prompt and trained of `cfg`."""
    from model.data.chat import load_chat_template

    template = load_chat_template(tokenizer, directory, cfg.template)
    return ChatEncoder(template, cfg.system_prompt, checked_roles(cfg.trained))


def write_template(encoder: ChatEncoder, directory: Path) -> None:
    """Into the folder of a model, so that whoever uses it writes conversations as in its training."""
    write_text(directory / TOKENIZER / CHAT_TEMPLATE, encoder.template.source)
