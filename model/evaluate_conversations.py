"""How well a decoder predicts the supervised tokens of conversations, and what it answers to them.

In: a decoder, and encoded conversations or questions in its chat template. Out: per conversation the summed log-loss
of its supervised tokens in nats and their number; or the likeliest answer to each question, and whether it ended by
itself. Conversations share rows as in training; nothing per token is kept.

Legend: N conversations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.data.chat import ChatTemplate, Conversation
from model.data.conversations import EncodedConversations
from model.evaluate import TOKENS_PER_PASS, passes_of
from model.generation.generate import generate
from model.generation.sample_config import SampleConfig
from model.network.decoder import Decoder
from model.network.visible import Visible
from model.training.cross_entropy import target_losses
from model.training.loss import Batch, supervision
from model.training.machine import precision
from model.training.memory import memory_explained
from model.training.step import on_device

ANSWERS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Answered:
    text: str
    is_complete: bool  # it ended by itself, and not because it became too long


@torch.inference_mode()
def conversation_losses(
    model: Decoder, encoded: EncodedConversations, tokens_per_pass: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Summed losses of the supervised tokens of each conversation in nats, float64 (N,), and their numbers (N,).

    `tokens_per_pass` changes speed and memory, not the result.
    """
    device = next(model.parameters()).device
    tokens_per_pass = tokens_per_pass or TOKENS_PER_PASS.get(device.type, TOKENS_PER_PASS["cuda"])
    n_targets_N = np.array([one.is_supervised[1:].sum() for one in encoded.rendered], np.int64)
    order = np.argsort(-encoded.lengths, kind="stable")
    parts = [torch.zeros(0, dtype=torch.float64)]
    with memory_explained(f"{tokens_per_pass:,} tokens passed at once; give a smaller tokens_per_pass"):
        for rows in passes_of(encoded.lengths[order], tokens_per_pass):
            places = order[rows]
            parts.append(_losses(model, on_device(encoded.batch(places), device), len(places)))
    nats_N = np.zeros(len(n_targets_N))
    nats_N[order] = torch.cat([part.cpu() for part in parts]).numpy()
    return nats_N, n_targets_N


def _losses(model: Decoder, batch: Batch, n_conversations: int) -> Tensor:
    with precision(batch["ids_BT"].device):
        visible = Visible.within(batch["documents_BT"])
        x_BTD = model.trunk(batch["ids_BT"], visible=visible, positions_BT=batch["positions_BT"])
        rows_M, targets_M, _ = supervision(batch)
        assert rows_M is not None
        x_MD = x_BTD.flatten(0, 1).index_select(0, rows_M)
        losses_M = target_losses(x_MD, model.lm_head.weight, targets_M, bias_V=model.lm_head.bias)
    documents_M = batch["documents_BT"].to(rows_M.device).flatten().index_select(0, rows_M)
    is_there_M = targets_M >= 0
    losses_N = losses_M.new_zeros(n_conversations, dtype=torch.float64)
    return losses_N.index_add_(0, documents_M[is_there_M], losses_M[is_there_M].double())


def mean_conversation_loss(model: Decoder, encoded: EncodedConversations) -> float:
    """Nats per supervised token."""
    nats_N, n_targets_N = conversation_losses(model, encoded)
    return float(nats_N.sum() / n_targets_N.sum())


def most_of_prompt(context: int, max_new_tokens: int) -> int:
    """Tokens of a prompt that are read before an answer: those that leave room for it, and at least half of the
    context."""
    return max(context - max_new_tokens, (context + 1) // 2)


def greedy_answers(
    model: Decoder, template: ChatTemplate, questions: Sequence[Conversation], max_new_tokens: int
) -> list[Answered]:
    """The likeliest answer to each conversation, token by token. Of a longer conversation than `most_of_prompt` the
    beginning is not read. A model that is packed (model/generation/decode.py) is faster."""
    if not questions:
        return []
    most = most_of_prompt(model.cfg.max_seq_len, max_new_tokens)
    prompts = [one.ids.tolist()[-most:] for one in template.rendered(questions, is_open=True)]
    cfg = SampleConfig(max_new_tokens=max_new_tokens, temperature=0, stop_ids=tuple(sorted(template.stops)))
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    n_slots = min(ANSWERS_AT_ONCE, len(prompts))
    written = generate(model, [prompts[place] for place in order], cfg, n_slots=n_slots)
    answers: dict[int, Answered] = {}
    for place, ids in zip(order, written, strict=True):
        text = template.tokenizer.decode_bytes(ids).decode(errors="replace")
        answers[place] = Answered(text, len(ids) < max_new_tokens)
    return [answers[place] for place in range(len(prompts))]
