"""An assistant over documents: what it finds, what it refuses, and that it forgets at once."""

import json
import shutil

import numpy as np
import pytest

from pipeline.corpus.passages.stage import PASSAGES, PassagesConfig
from pipeline.evaluation.task import evaluation_stage
from pipeline.store.layout import Layout
from pipeline.store.outputs import read_results
from pipeline.store.records import Checkpoint
from pipeline.store.store import Store, read_handle
from pipeline.tasks.documents import KIND, DocumentsAssistant, DocumentsConfig
from pipeline.tasks.documents_examples import QuestionsConfig, build_questions
from pipeline.training.embed import EMBED, EmbedConfig
from pipeline.training.finetune import finetune_stage
from tests.pipeline.conftest import InThisProcess

THINGS = ("wheel", "door", "roof", "stone", "sack", "river", "bridge", "barn", "miller", "horse", "cart", "oven")
COLOURS = ("red", "green", "blue", "white", "brown", "grey", "black", "yellow", "pink", "golden", "silver", "violet")
TEXTS = {
    f"file:///mill/{thing}.txt": f"The {thing}\n\nThe {thing} is {colour} and was built by Mr {thing.title()}son."
    for thing, colour in zip(THINGS, COLOURS, strict=True)
}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(root=tmp_path_factory.mktemp("data") / "store", engine=InThisProcess())


@pytest.fixture
def collection(store, cleaned, embedder):
    def built(texts=TEXTS, *denied):
        cut = store.build(PASSAGES, PassagesConfig(passage_tokens=120), cleaned(store, texts), embedder, *denied)
        return store.build(EMBED, EmbedConfig(), cut.handle, embedder).handle

    return built


@pytest.fixture
def build(store, collection, embedder, write_decoder, tmp_path):
    shape = {"n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_model": 16, "d_head": 8, "d_ff": 32}
    base = write_decoder(tmp_path / "base", max_seq_len=512, **shape)

    def built(texts=TEXTS, cfg=None):
        passages, layout = collection(texts), Layout(store.root.parent)
        examples = build_questions(store, KIND, {}, QuestionsConfig(), layout, passages=passages, base=base)
        return store.build(finetune_stage(KIND), cfg or DocumentsConfig(), base, examples.handle, passages, embedder)

    return built


def test_model_finds_documents_and_holds_files_of_others_by_hard_link(build, embedder):
    built = build()
    folder = built.handle.directory
    assistant = DocumentsAssistant(folder)
    found = assistant.found(["Which colour is the oven?", "Who mended the bridge?"])
    assert [one["urls"][0] for one in found] == ["file:///mill/oven.txt", "file:///mill/bridge.txt"]
    weights = embedder.directory / "model.safetensors"
    assert (folder / "embedder" / "model.safetensors").samefile(weights)
    settings = json.loads((folder / "config.json").read_text())
    assert settings["kind"] == "decoder" and 0 <= settings["documents"]["answerability"]["threshold"] <= 1
    assert built.record["measures"]["validation_mrr"] > 0.5


def test_forgotten_document_is_not_found_any_more_before_anything_is_built(build, store):
    assistant = DocumentsAssistant(build().handle.directory)
    question, denied = "Which colour is the oven?", store.root.parent / "denied.jsonl"
    try:
        for key, value in (("url", "file:///mill/oven.txt"), ("page_id", "file:///mill/oven.txt")):
            denied.write_text(json.dumps({key: value, "date": "2026-01-31", "reason": "asked for"}) + "\n")
            ((one,), (left_out,)) = assistant.found([question]), assistant.found([question], left_out=[["x"]])
            assert "file:///mill/oven.txt" not in one["urls"] + left_out["urls"]
        denied.write_text("{not json}\n")
        with pytest.raises(ValueError, match=r"denied.jsonl, line 1 is no row of a deny list"):
            assistant.found([question])
    finally:
        denied.unlink()
    assert assistant.found([question])[0]["urls"] == ["file:///mill/oven.txt"]


def test_same_documents_and_questions_give_the_same_model(build, store):
    first = build().handle
    shutil.rmtree(store.root / "finetune")
    assert build().handle.digest == first.digest


def test_constants_of_the_search_are_chosen_only_where_questions_are_enough(build):
    from model.retrieval.retriever import RetrievalConfig

    folder = build().handle.directory
    settings = json.loads((folder / "passages" / "retriever.json").read_text())["settings"]
    default = RetrievalConfig()
    assert (settings["constant"], settings["bm25_weight"]) == (default.constant, default.bm25_weight)
    assert np.isfinite(settings["constant"])


def test_base_that_is_an_encoder_and_documents_without_a_passage_are_refused(store, collection, embedder, base):
    stage, nothing = finetune_stage(KIND), collection({})
    with pytest.raises(ValueError, match=r"key base of the task names .* needs a decoder"):
        store.build(stage, DocumentsConfig(), embedder, nothing, nothing, embedder)
    with pytest.raises(ValueError, match="has no passage: the documents of the task are empty"):
        store.build(stage, DocumentsConfig(), base, nothing, nothing, embedder)


def test_answer_cites_the_place_of_its_passage_and_of_what_it_says(build):
    assistant = DocumentsAssistant(build().handle.directory)
    (answer,) = assistant.answer([{"question": "The oven is ____ and was built by Mr Ovenson."}])
    assert set(answer) == set(assistant.outputs) and not answer["refused"]
    for one in answer["citations"]:
        assert set(one) == set(assistant.outputs["citations"][0])
        text = TEXTS[one["url"]]
        assert one["text"] == text[one["start"] : one["end"]]
        assert one["start"] <= one["quote_start"] < one["quote_end"] <= one["end"]
        said = answer["answer"][one["answer_start"] : one["answer_end"]]
        assert f"[{one['n']}]" in said and "violet" in said
    assert [one["url"] for one in answer["citations"]] == ["file:///mill/oven.txt"]


@pytest.mark.parametrize("question", ["", "   ", "?!", "\ud800", "word " * 100_000, "x" * 1_000_000, "\x00\x1b[31m"])
def test_questions_of_any_form_are_answered_or_refused(build, question):
    assistant = DocumentsAssistant(build().handle.directory)
    (answer,) = assistant.answer([{"question": question}])
    assert answer["refused"] or answer["citations"]
    assert assistant.n_cut([{"question": question}]) == (len(question) > 2000)


def test_question_that_refers_to_the_one_before_is_searched_with_it(build):
    assistant = DocumentsAssistant(build().handle.directory)
    question = {"question": "Is it?"}
    asked = "The oven is ____ and was built by Mr Ovenson."
    before = [{"role": "user", "content": asked}, {"role": "assistant", "content": "It is violet."}]
    alone, follows = assistant.answer([question, question | {"history": before}])
    assert [one["url"] for one in follows["citations"]] == ["file:///mill/oven.txt"]
    assert [one["url"] for one in alone["citations"]] != ["file:///mill/oven.txt"]


def test_question_about_something_else_is_refused_and_nothing_is_cited(build):
    assistant = DocumentsAssistant(build().handle.directory)
    (answer,) = assistant.answer([{"question": "How do quantum computers factor integers efficiently?"}])
    assert answer["refused"] and not answer["citations"] and answer["score"] < assistant.answerability.threshold


def test_evaluation_compares_each_search_and_the_decoder_alone_and_lists_mistakes(build, store, tmp_path):
    model = build(cfg=DocumentsConfig(max_answer_tokens=6))
    base = Checkpoint(stage="base", directory=tmp_path / "base", fingerprint="b", digest="b", rows=0)
    handles = {one["stage"]: store.where(one["stage"], one["fingerprint"]) for one in model.record["inputs"][1:]}
    examples = read_handle(handles["examples"])
    cfg = KIND.evaluation(prompted_examples=2)
    report = store.build(evaluation_stage(KIND), cfg, model.handle, base, examples).handle
    results = {one["metric"]: one for one in read_results(report.directory)}
    assert set(results["mrr"]["baselines"]) == {"bm25", "embeddings"}
    assert set(results["answer_f1"]["baselines"]) == {"decoder"} and "over 2 answers" in results["answer_f1"]["note"]
    assert results["wrong_refusals"]["higher_is_better"] is False
    assert all("made from the documents" in one["note"] for one in results.values())
    assert 0 <= results["refusals_without_document"]["value"] <= 1
    assert results["recall_at_5"]["value"] >= results["recall_at_1"]["value"]
    assert (report.directory / "mistakes.md").exists()
