"""Rows of every form to conversations, and the reasons for which a row is none."""

import json

import pytest

from pipeline.corpus.examples.labelled_rows import labelled_rows
from pipeline.tasks.instruction import KIND, InstructionExamplesConfig

ASKED = [("user", "Where is Genoa?"), ("assistant", "In Italy.")]


def read(*records, name: str = "a.jsonl", **settings):
    content = "\n".join(json.dumps(record) for record in records)
    return list(labelled_rows(name, content.encode(), KIND, InstructionExamplesConfig(**settings)))


def turns(row) -> list[tuple[str, str]]:
    return [(one["role"], one["content"]) for one in row.values["messages"]]


def messages(*of, role: str = "role", text: str = "content") -> list[dict]:
    return [{role: who, text: said} for who, said in of]


FORMS = {
    "alpaca": {"instruction": "Where is Genoa?", "output": "In Italy."},
    "alpaca with no input": {"instruction": "Where is Genoa?", "input": "", "output": "In Italy."},
    "messages": {"messages": messages(*ASKED)},
    "parts of texts": {"messages": [
        {"role": "user", "content": [{"type": "text", "text": "Where is "}, {"type": "text", "text": "Genoa?"}]},
        {"role": "assistant", "content": "In Italy."},
    ]},
    "sharegpt": {"conversations": messages(("human", ASKED[0][1]), ("gpt", ASKED[1][1]), role="from", text="value")},
    "prompt": {"prompt": "Where is Genoa?", "completion": "In Italy."},
    "prompt of messages": {"prompt": messages(ASKED[0]), "completion": messages(ASKED[1])},
    "messages beside a prompt": {"prompt": "Where is Genoa?", "messages": messages(*ASKED)},
    "messages as text": {"messages": json.dumps(messages(*ASKED))},
    "a question behind the last answer": {"messages": messages(*ASKED, ("user", "And Rome?"))},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_same_conversation_in_every_form(form):
    (row,) = read(FORMS[form])
    assert row.reason is None and turns(row) == ASKED
    assert row.text == "Where is Genoa?\n\nIn Italy."


def test_an_instruction_and_its_input_are_one_question():
    (row,) = read({"instruction": "Translate.", "input": "Grazie", "output": "Thanks"})
    assert turns(row) == [("user", "Translate.\n\nGrazie"), ("assistant", "Thanks")]


def test_a_table_has_the_columns_that_the_settings_name():
    content = "question,answer,told\nWhere is Genoa?,In Italy.,Be brief.\n"
    cfg = InstructionExamplesConfig(instruction="question", output="answer", system="told")
    (row,) = labelled_rows("a.csv", content.encode(), KIND, cfg)
    assert turns(row) == [("system", "Be brief."), *ASKED]


def test_a_declared_form_is_read_where_a_row_has_several():
    record = FORMS["alpaca"] | {"prompt": "Other?", "completion": "Other."}
    (found,), (declared,) = read(record), read(record, form="alpaca")
    assert turns(found)[0] == ("user", "Other?") and turns(declared) == ASKED


def test_calls_of_tools_pass_through_as_text():
    call = {"type": "function", "function": {"name": "find", "arguments": '{"city": "Genoa"}'}}
    said = [
        {"role": "developer", "content": "Use tools."},
        {"role": "user", "content": "Where is Genoa?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "Italy", "tool_call_id": "1"},
        {"role": "tool", "content": "Liguria", "tool_call_id": "2"},
        {"role": "assistant", "content": "In Italy."},
    ]
    (row,) = read({"messages": said})
    written = '<tool_call>\n{"name": "find", "arguments": {"city": "Genoa"}}\n</tool_call>'
    assert turns(row) == [
        ("system", "Use tools."), ("user", "Where is Genoa?"), ("assistant", written), ("tool", "Italy"),
        ("tool", "Liguria"), ("assistant", "In Italy."),
    ]  # fmt: skip


BAD = {
    "no_answer": {"messages": messages(ASKED[0])},
    "starts_with_assistant": {"messages": messages(("assistant", "Hello."), *ASKED)},
    "unknown_role": {"messages": messages(("narrator", "Once"), *ASKED)},
    "empty_answer": {"instruction": "Where is Genoa?", "output": ""},
    "answer_only_white_space": {"instruction": "Where is Genoa?", "output": " \n"},
    "empty_question": {"instruction": "", "output": "In Italy."},
    "two_of_user_in_a_row": {"messages": messages(ASKED[0], *ASKED)},
    "system_not_first": {"messages": messages(*ASKED, ("system", "Be brief."), *ASKED)},
    "not_messages": {"messages": ["Where is Genoa?", "In Italy."]},
    "no_messages": {"messages": []},
    "user_not_text": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]},
                                   {"role": "assistant", "content": "A cat."}]},
}  # fmt: skip


@pytest.mark.parametrize("reason", BAD)
def test_a_row_that_is_no_conversation_is_a_counted_drop(reason):
    rows = read(FORMS["messages"], FORMS["alpaca"], BAD[reason])
    assert [row.reason for row in rows] == [None, None, reason]


def test_a_file_without_the_columns_of_any_form_is_refused_with_those_that_it_has():
    with pytest.raises(ValueError, match=r"instruction and output, but no row has them; the rows have: a, q\. Name"):
        read({"q": "Where is Genoa?", "a": "In Italy."})
    with pytest.raises(ValueError, match="expected the columns instruction and output, but"):
        read(FORMS["messages"], form="alpaca")


def test_conversations_that_differ_in_case_or_system_message_are_no_duplicates_and_stay_together():
    lower = {"instruction": "say: polish", "output": "polish"}
    upper = {"instruction": "say: Polish", "output": "Polish"}
    told = lower | {"system": "Be brief."}
    other = lower | {"output": "no"}
    rows = read(lower, upper, told, other, lower)
    assert len({row.id for row in rows}) == 4 and rows[0].id == rows[4].id
    assert rows[0].group == rows[3].group  # two answers to one question are never in two splits


def test_a_sample_is_a_fraction_of_the_questions_with_all_of_their_answers():
    records = [{"instruction": f"What is {n}?", "output": text} for n in range(200) for text in ("one", "other")]
    rows = read(*records, sample=0.3)
    kept = [row.reason is None for row in rows]
    assert kept[::2] == kept[1::2] and 0.2 < sum(kept) / len(kept) < 0.4
    assert {row.reason for row in rows} == {None, "not_sampled"}
    assert [row.reason is None for row in read(*reversed(records), sample=0.3)] == kept[::-1]
