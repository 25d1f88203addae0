"""gristmill export: what it writes opens in transformers with the same tokens, logits, text and labels."""

import json
import shlex
from dataclasses import replace

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from model.data.tokenizer import load_tokenizer
from model.generation.generate import generate
from model.generation.sample_config import SampleConfig
from model.network.decoder import Decoder, new_decoder
from model.network.heads import new_classifier
from model.network.lora_config import LoraConfig
from model.network.registry import describe, load_decoder, save_model
from model.network.shape import DecoderConfig, switches_of
from model.training.adapters import save_trained, start_adapters
from model.training.files import write_json
from pipeline.cli import main
from pipeline.corpus.tokens.tokenizer_files import write_tokenizer
from pipeline.serving.generate import predictor_in
from pipeline.store.layout import load_current
from pipeline.tasks.classification import Classifier

TEXTS = ("The miller and the mill.", "  two  spaces\n\nand 1234 don't", "Grüße 你好 🙂 <|endoftext|>", "")
MERGES = ("th", "he", " t", "in", "er", " th", " the", "il", "ill", "ll")
VOCAB_SIZE = 256 + len(MERGES) + 1
CONFIG = DecoderConfig(
    vocab_size=VOCAB_SIZE, n_layers=2, n_heads=4, n_kv_heads=2, d_model=32, d_head=8, d_ff=48, max_seq_len=64
)
GPT2 = replace(
    CONFIG,
    n_kv_heads=4,
    **switches_of("gpt2"),
)
TEMPLATE = "{% for m in messages %}<|endoftext|>{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("GRISTMILL_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


def write_model(folder, cfg: DecoderConfig = CONFIG) -> Decoder:
    folder.mkdir()
    decoder = new_decoder(cfg, seed=3)
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.add_(torch.empty_like(weight).normal_(std=0.2, generator=torch.Generator().manual_seed(1)))
    save_model(folder, decoder, describe(cfg))
    write_tokenizer_of(folder)
    return decoder.eval()


def write_tokenizer_of(folder) -> None:
    ranks = [bytes([value]) for value in range(256)] + sorted((text.encode() for text in MERGES), key=len)
    write_tokenizer(folder / "tokenizer", {token: i for i, token in enumerate(ranks)}, "gpt-2")


@pytest.fixture
def model(tmp_path):
    write_model(tmp_path / "model")
    return tmp_path / "model"


def refusal(capsys, *arguments) -> str:
    """What `gristmill export` says, in one line, of something that it cannot do; nothing may be left behind."""
    assert main(["export", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("gristmill: ") and "unexpected" not in error
    return error


@pytest.mark.parametrize("cfg", [CONFIG, GPT2, replace(CONFIG, qk_norm=False)], ids=["qwen3", "gpt2", "llama"])
def test_exported_model_opens_in_transformers_with_the_same_tokens_logits_and_greedy_text(cfg, tmp_path, capsys):
    ours = write_model(tmp_path / "model", cfg)
    assert main(["export", "model", "out"]) == 0
    *listed, _, last = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[-1] for line in listed) == sorted(map(str, (tmp_path / "out").iterdir()))
    assert last.startswith("open it: python -c 'from transformers")
    tokenizer, their_tokenizer = (
        load_tokenizer(tmp_path / "model" / "tokenizer"),
        AutoTokenizer.from_pretrained("out"),
    )
    theirs = AutoModelForCausalLM.from_pretrained("out", dtype=torch.float32).eval()
    for text in TEXTS:
        ids = [tokenizer.end_of_text, *tokenizer.encode(text)]  # as documents begin in training
        given = their_tokenizer(text, return_tensors="pt")
        assert given.input_ids.tolist() == [ids]
        with torch.no_grad():
            expected_BTV = ours(torch.tensor([ids]))
            torch.testing.assert_close(theirs(**given).logits, expected_BTV, atol=1e-4, rtol=1e-4)
        greedy = SampleConfig(max_new_tokens=20, temperature=0, top_k=None, stop_ids=(tokenizer.end_of_text,))
        written = theirs.generate(**given, do_sample=False, max_new_tokens=20)[0, len(ids) :].tolist()
        assert [i for i in written if i != tokenizer.end_of_text] == generate(ours, [ids], greedy)[0]
        assert their_tokenizer.decode(given.input_ids[0, 1:]) == text


def test_exported_assets_of_a_graph_give_the_logits_and_labels_that_ours_give(toy_graph, tmp_path, monkeypatch):
    monkeypatch.setenv("GRISTMILL_DATA", str(toy_graph.layout.data))
    assert main(["export", "foundation_model", "decoder"]) == 0
    folder = load_current(toy_graph.layout, "foundation_model").directory
    tokenizer = AutoTokenizer.from_pretrained("decoder")
    given = tokenizer("The baler of balding", return_tensors="pt")
    theirs = AutoModelForCausalLM.from_pretrained("decoder", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(**given).logits, load_decoder(folder)(given.input_ids), atol=1e-4, rtol=1e-4
        )
    assert (
        f"pretrain {load_current(toy_graph.layout, 'foundation_model').fingerprint}"
        in (tmp_path / "decoder" / "README.md").read_text()
    )

    assert main(["export", "moods_model", "classifier"]) == 0
    texts = ["the bright baler", "the gloomy bining of balding and weeping"]
    theirs = AutoModelForSequenceClassification.from_pretrained("classifier", dtype=torch.float32)
    given = AutoTokenizer.from_pretrained("classifier")(texts, padding=True, return_tensors="pt")
    model = predictor_in(Classifier, load_current(toy_graph.layout, "moods_model").directory)
    labels, expected_NC = model.labels, model.probabilities(texts)
    assert tuple(theirs.config.id2label.values()) == labels
    with torch.no_grad():
        got_NC = theirs(**given).logits.softmax(dim=-1).double()
    torch.testing.assert_close(got_NC, torch.from_numpy(expected_NC), atol=1e-4, rtol=1e-4)


def exported_classifier(tmp_path, cfg: DecoderConfig, **feeding: object) -> Classifier:
    """A classifier with large random weights, exported to `out`; our own predictor of it."""
    write_model(tmp_path / "classifier", cfg)
    model = new_classifier(cfg, 3, seed=5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.empty_like(weight).normal_(std=0.3, generator=torch.Generator().manual_seed(2)))
    description = describe(cfg, ("glad", "sad", "C#")) | feeding
    save_model(tmp_path / "classifier", model, description)
    assert main(["export", "classifier", "out"]) == 0
    return predictor_in(Classifier, tmp_path / "classifier")


@pytest.mark.parametrize(("cfg", "side"), [(CONFIG, "right"), (CONFIG, "left"), (GPT2, "right")])
def test_exported_classifier_reads_texts_as_ours_does(cfg, side, tmp_path, capsys):
    """The export said nothing of max_tokens, so that transformers read the whole of a long text, or failed: two of
    four labels differed (cardiffnlp/tweeteval#17, huggingface/transformers#5983)."""
    ours = exported_classifier(tmp_path, cfg, max_tokens=12, truncation_side=side)
    long = "the mill and the miller in the hill, " * 10
    texts = [long, "mill", long[::-1], "", "  the mill \n", "u\u0308ber a\u030a", "the <|endoftext|> end", "in " * 11]
    expected_NC = torch.from_numpy(ours.probabilities(texts))
    tokenizer = AutoTokenizer.from_pretrained("out")
    theirs = AutoModelForSequenceClassification.from_pretrained("out", dtype=torch.float32).eval()
    assert (tokenizer.model_max_length, tokenizer.padding_side, tokenizer.truncation_side) == (12, "right", side)
    assert theirs.config.pad_token_id == tokenizer.pad_token_id == VOCAB_SIZE - 1
    with torch.no_grad():
        got_NC = theirs(**tokenizer(texts, padding=True, truncation=True, return_tensors="pt")).logits.softmax(-1)
    torch.testing.assert_close(got_NC.double(), expected_NC, atol=1e-4, rtol=1e-4)
    for batch_size in (1, 3):
        answers = pipeline("text-classification", "out", dtype=torch.float32)(
            texts, truncation=True, batch_size=batch_size
        )
        expected = ours.answer([{"text": text} for text in texts])
        assert [one["label"] for one in answers] == [one["label"] for one in expected]
    assert main(["export", "out", "again"]) == 0
    again = AutoTokenizer.from_pretrained("again")
    assert (again.model_max_length, again.truncation_side) == (12, side)


@pytest.mark.parametrize("cfg", [CONFIG, GPT2], ids=["qwen3", "gpt2"])
def test_exported_decoder_continues_two_prompts_at_once_as_each_alone(cfg, tmp_path):
    """The export padded on the right, so that the shorter of two prompts was continued behind padding
    (huggingface/transformers#34842, #26569, #25790)."""
    write_model(tmp_path / "model", cfg)
    assert main(["export", "model", "out"]) == 0
    tokenizer = AutoTokenizer.from_pretrained("out")
    theirs = AutoModelForCausalLM.from_pretrained("out", dtype=torch.float32).eval()
    assert (tokenizer.model_max_length, tokenizer.padding_side) == (64, "left")
    prompts = ["the", "the mill and the miller in the hill"]
    options = {"do_sample": False, "max_new_tokens": 12}
    together = theirs.generate(**tokenizer(prompts, padding=True, return_tensors="pt"), **options)
    alone = [theirs.generate(**tokenizer(prompt, return_tensors="pt"), **options)[0] for prompt in prompts]
    for row, one in zip(together, alone, strict=True):
        assert row[len(row) - len(one) :].tolist() == one.tolist()
    both = pipeline("text-generation", "out", dtype=torch.float32)(prompts, batch_size=2, **options)
    written = [one[0]["generated_text"] for one in both]
    assert written == tokenizer.batch_decode(alone, skip_special_tokens=True)


def test_checkpoint_of_a_training_is_exported_with_the_tokenizer_of_its_model(model, tmp_path):
    step = model / "checkpoints" / "step-000010"
    step.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (step / name).write_bytes((model / name).read_bytes())
    assert main(["export", str(step), "out"]) == 0
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_hugging_face_folder_becomes_a_gguf_file_with_our_tokenizer(model, tmp_path, capsys):
    assert main(["export", "model", "out"]) == 0
    assert main(["export", "out", "out.gguf", "--format", "gguf", "--dtype", "bfloat16"]) == 0
    assert 'open it: llama-cli -m out.gguf -p "' in capsys.readouterr().out
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    assert fields["general.architecture"].contents() == "qwen3"
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    tokens, merges = fields["tokenizer.ggml.tokens"].contents(), fields["tokenizer.ggml.merges"].contents()
    assert len(tokens) == VOCAB_SIZE and tokens[-1] == "<|endoftext|>"
    assert "Ġth e" in merges and len(merges) == len(MERGES)


def test_exported_twice_is_the_same_to_the_byte(model, tmp_path):
    for _ in range(2):
        for name in ("one", "two"):
            assert main(["export", "model", name]) == 0
            assert main(["export", "model", f"{name}/../{name}.gguf", "--format", "gguf"]) == 0
    one, two = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_chat_template_is_taken_along_and_its_special_tokens_are_tokens(model, tmp_path):
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    assert main(["export", "model", "out", "--chat-template", "chat.jinja"]) == 0
    assert main(["export", "model", "out.gguf", "--format", "gguf", "--chat-template", "chat.jinja"]) == 0
    theirs, tokenizer = AutoTokenizer.from_pretrained("out"), load_tokenizer(model / "tokenizer")
    messages = [{"role": "user", "content": "mill"}]
    ids = theirs.apply_chat_template(messages, return_dict=False)
    assert ids == [tokenizer.end_of_text, *tokenizer.encode("user: mill\n")]
    assert gguf.GGUFReader("out.gguf").fields["tokenizer.chat_template"].contents() == TEMPLATE


def test_template_that_ends_no_answer_is_exported_with_a_warning(model, tmp_path, capsys):
    for template, n_warnings in ((TEMPLATE.replace("\n", "<|endoftext|>"), 0), (TEMPLATE, 1)):
        (tmp_path / "chat.jinja").write_text(template)
        assert main(["export", "model", "out", "--chat-template", "chat.jinja"]) == 0
        warnings = capsys.readouterr().err
        assert warnings.count("may not end its answers: the chat template ends an answer by no") == n_warnings


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("{% for m in messages %}", "not a chat template, line 1"),
        ("{{ messages[0].content.__class__.mro() }}", "access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "access to attribute 'append'"),
        ("hello", "leaves out the message of the user"),
    ],
)
def test_template_that_is_none_or_that_is_not_safe_is_refused(template, named, model, tmp_path, capsys):
    (tmp_path / "chat.jinja").write_text(template)
    assert named in refusal(capsys, "model", "out", "--chat-template", "chat.jinja")
    assert not (tmp_path / "out").exists()


# Bad input: one line that says what is wrong, and nothing is written.


def damaged_config(model):
    description = json.loads((model / "config.json").read_text())
    description["model"]["n_kv_heads"] = 3
    write_json(model / "config.json", description)


def no_family(model):
    description = json.loads((model / "config.json").read_text())
    description["model"]["mlp"] = "relu2"
    write_json(model / "config.json", description)
    weights = load_file(model / "model.safetensors")
    save_file({name: w for name, w in weights.items() if "gate_proj" not in name}, model / "model.safetensors")


def truncated(model):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def unknown_weight(model):
    weights = load_file(model / "model.safetensors")
    save_file(weights | {"model.extra.weight": torch.zeros(2)}, model / "model.safetensors")


def larger_tokenizer(model):
    ranks = {bytes([value]): value for value in range(256)} | {b"ab": 256}
    write_tokenizer(model / "tokenizer", ranks, "gpt-2")


def no_tokenizer(model):
    for path in (model / "tokenizer").iterdir():
        path.unlink()


def pickled(model):
    write_json(model / "config.json", json.loads((model / "config.json").read_text()))
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (damaged_config, "n_heads=4 is not a multiple of n_kv_heads=3"),
        (no_family, "mlp='relu2', it has 'swiglu'"),
        (truncated, "not a whole safetensors file"),
        (unknown_weight, "model.extra.weight"),
        (larger_tokenizer, f"the tokenizer has 258 tokens, the model {VOCAB_SIZE}"),
        (no_tokenizer, "contains no tokenizer to export: tokenizer.json is missing"),
        (pickled, "model.safetensors"),
    ],
)
@pytest.mark.parametrize("out", ["out", "out.gguf"])
def test_model_that_cannot_be_exported_is_refused_in_one_line(out, damage, named, model, tmp_path, capsys):
    damage(model)
    before = sorted(tmp_path.iterdir())
    assert named in refusal(capsys, "model", out, "--format", "gguf" if out.endswith("gguf") else "hf")
    assert sorted(tmp_path.iterdir()) == before


def test_hugging_face_folder_with_pickled_weights_is_refused(model, tmp_path, capsys):
    assert main(["export", "model", "theirs"]) == 0
    (tmp_path / "theirs" / "model.safetensors").rename(tmp_path / "theirs" / "pytorch_model.bin")
    capsys.readouterr()
    assert "pytorch_model.bin is pickled, may run code, and is not read" in refusal(capsys, "theirs", "out")


def test_target_with_files_of_others_is_refused(model, tmp_path, capsys):
    assert "contains config.json, which no export wrote" in refusal(capsys, "model", "model")
    (tmp_path / "out.gguf").write_text("years of work")
    assert "no earlier export" in refusal(capsys, "model", "out.gguf", "--format", "gguf")
    assert "must end in .gguf" in refusal(capsys, "model", "out", "--format", "gguf")


def test_name_of_a_gguf_file_asks_for_its_format(model, tmp_path, capsys):
    """Without --format a folder called new.gguf was written, which llama.cpp cannot open (own trials)."""
    assert "new.gguf names a GGUF file" in refusal(capsys, "model", "new.gguf")
    assert not (tmp_path / "new.gguf").exists()


def test_line_that_opens_a_model_is_quoted_for_the_shell(model, tmp_path, capsys):
    """A folder with an apostrophe ended the quotation of the line that is printed for it (own trials)."""
    assert main(["export", "model", "Ann's $new model"]) == 0
    line = capsys.readouterr().out.rpartition("open it: ")[2]
    python, option, code = shlex.split(line)
    assert (python, option) == ("python", "-c")
    assert '"Ann\'s $new model"' in code


def test_classifier_as_gguf_is_refused(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", new_classifier(CONFIG, 2, seed=1), describe(CONFIG, ("a", "b")))
    write_tokenizer_of(tmp_path / "model")
    assert "contains no decoder" in refusal(capsys, "model", "out.gguf", "--format", "gguf")


def test_adapters_of_a_training_are_exported_for_peft(tmp_path, capsys):
    folder, network = tmp_path / "model", new_classifier(CONFIG, 2, seed=1)
    folder.mkdir()
    save_model(tmp_path / "model", network, describe(CONFIG, ("a", "b")))
    write_tokenizer_of(folder)
    assert "was not trained with tuning = lora" in refusal(capsys, "model", "out", "--format", "peft")
    description = start_adapters(network, describe(CONFIG, ("a", "b")), LoraConfig(rank=2), folder, seed=0)
    save_trained(folder, network, description)
    assert main(["export", "model", "out", "--format", "peft"]) == 0
    assert "adapter_model.safetensors" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"


def test_what_is_no_model_is_refused(tmp_path, capsys):
    assert "neither a folder nor an asset" in refusal(capsys, "no/such", "out")
    (tmp_path / "data").mkdir()
    assert "foundation_model has not been materialised" in refusal(capsys, "foundation_model", "out")
    (tmp_path / "empty").mkdir()
    assert "is not the folder of a model: it has no config.json" in refusal(capsys, "empty", "out")
    (tmp_path / "empty" / "config.json").write_text("[1]")
    assert "contains no JSON object" in refusal(capsys, "empty", "out")
