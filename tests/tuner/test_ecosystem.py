"""What other libraries do with the method: transformers, diffusers, bitsandbytes, torch.compile."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sharespace import Share
from sharespace.errors import MismatchError
from sharespace.tuner import ShareConfig
from tuner.spaces import ALIVE, adapted, mlp, points, published, randomise, space
from tuner.test_routing import bert, gpt2, tokens

NAMES = ["query", "value"]


@pytest.fixture(autouse=True)
def quiet_libraries() -> Iterator[None]:
    """Their own warnings of loading and saving tiny models."""
    with warnings.catch_warnings():
        for module in ("transformers", "peft", "diffusers", "torch", "bitsandbytes", "trl"):
            warnings.filterwarnings("ignore", module=module)
        yield


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """``base`` (BERT), ``s`` (a Share model with tasks that have heads), LoRA ``a0`` and ``a1``."""
    from peft import LoraConfig, get_peft_model

    bert().save_pretrained(tmp_path / "base")
    for i in range(2):
        config = LoraConfig(r=2, target_modules=NAMES, task_type="SEQ_CLS", init_lora_weights=False)
        model = get_peft_model(load(tmp_path), config)
        randomise(model, seed=i)
        model.save_pretrained(tmp_path / f"a{i}", save_embedding_layers=False)
    Share.from_adapters([tmp_path / "a0", tmp_path / "a1"], k=4).save(tmp_path / "s")
    return tmp_path


def load(folder: Path, **options: Any) -> Any:
    from transformers import BertForSequenceClassification

    return BertForSequenceClassification.from_pretrained(folder / "base", **options)


def test_a_known_task_brings_its_coefficients_and_head(saved: Path) -> None:
    from peft import PeftModel, get_peft_model

    x = tokens()
    expected = PeftModel.from_pretrained(load(saved), saved / "a0").eval()(input_ids=x).logits
    config = ShareConfig(share=str(saved / "s"), task="a0", task_type="SEQ_CLS")
    model = get_peft_model(load(saved), config)
    got = model.eval()(input_ids=x).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert any("classifier" in n for n, p in model.named_parameters() if p.requires_grad)
    torch.testing.assert_close(model.merge_and_unload()(input_ids=x).logits, expected)


def test_a_head_for_another_number_of_labels_is_refused(saved: Path) -> None:
    from peft import get_peft_model

    config = ShareConfig(share=str(saved / "s"), task="a0", task_type="SEQ_CLS")
    base = load(saved, num_labels=5, ignore_mismatched_sizes=True)
    with pytest.raises(MismatchError, match=r"head 'classifier'.*number of labels"):
        get_peft_model(base, config)


def test_auto_model_loads_base_and_adapter(saved: Path) -> None:
    from peft import AutoPeftModelForSequenceClassification, get_peft_model

    config = ShareConfig(share=str(saved / "s"), task="new", task_type="SEQ_CLS", p=2, phi=1)
    model = get_peft_model(load(saved), config)
    randomise(model)
    expected = model.eval()(input_ids=tokens()).logits
    model.save_pretrained(saved / "new", save_embedding_layers=False)
    found = AutoPeftModelForSequenceClassification.from_pretrained(saved / "new", num_labels=3)
    torch.testing.assert_close(found.eval()(input_ids=tokens()).logits, expected)


def test_transformers_own_adapter_functions(saved: Path) -> None:
    model = load(saved)
    before = model.eval()(input_ids=tokens()).logits
    config = ShareConfig(share=str(saved / "s"), p=2, phi=1, target_modules=NAMES)
    model.add_adapter(config, adapter_name="one")
    randomise(model)
    expected = model.eval()(input_ids=tokens()).logits
    assert not torch.allclose(expected, before)
    model.save_pretrained(saved / "one")
    model.disable_adapters()
    torch.testing.assert_close(model(input_ids=tokens()).logits, before)
    found = load(saved)
    found.load_adapter(str(saved / "one"), adapter_name="again")
    torch.testing.assert_close(found.eval()(input_ids=tokens()).logits, expected)
    model.delete_adapter("one")
    assert not any("one" in n.split(".") for n, _ in model.named_parameters())


def _examples() -> list[dict[str, Any]]:
    x = tokens(16)
    return [{"input_ids": row, "labels": int(row[0]) % 3} for row in x]


def test_trainer_resumes_and_loads_the_best(saved: Path) -> None:
    from peft import get_peft_model
    from transformers import Trainer, TrainingArguments

    def trainer(steps: int) -> Any:
        config = ShareConfig(
            share=str(saved / "s"), task="new", task_type="SEQ_CLS", p=2, phi=1, seed=1
        )
        torch.manual_seed(0)
        arguments = TrainingArguments(
            output_dir=str(saved / "run"), max_steps=steps, save_steps=2, eval_steps=2,
            eval_strategy="steps", load_best_model_at_end=True, learning_rate=0.05,
            lr_scheduler_type="constant", report_to=[], use_cpu=True, disable_tqdm=True,
            per_device_train_batch_size=4, logging_strategy="no", data_seed=0,
        )  # fmt: skip
        data = _examples()
        model = get_peft_model(load(saved), config)
        return Trainer(model, arguments, train_dataset=data, eval_dataset=data)

    whole = trainer(6)
    whole.train()
    best = whole.state.best_model_checkpoint
    assert best
    loss = whole.evaluate()["eval_loss"]
    assert loss == pytest.approx(whole.state.best_metric, rel=1e-4)
    resumed = trainer(6)
    resumed.train(resume_from_checkpoint=str(saved / "run" / "checkpoint-4"))
    assert resumed.state.best_metric == pytest.approx(whole.state.best_metric, rel=1e-4)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_trl_sft_trainer_with_gradient_checkpointing(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    from datasets import Dataset
    from peft import get_peft_model
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {w: i for i, w in enumerate(["<pad>", "<s>", "</s>", *"abcdefghijklmnopqrst"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="</s>", bos_token="<s>"
    )
    data = Dataset.from_dict({"text": ["a b c d", "b c d e", "c d e f", "d e f g"] * 2})
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=2, report_to=[],
        use_cpu=True, gradient_checkpointing=True, max_length=8, learning_rate=0.05,
        disable_tqdm=True, logging_strategy="no", save_strategy="no", bf16=False,
    )  # fmt: skip
    config = ShareConfig(share=published(gpt2()), target_modules=["c_attn"], task_type="CAUSAL_LM")
    model = get_peft_model(gpt2(), config)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    trainer = trl.SFTTrainer(model, args=arguments, train_dataset=data, processing_class=tokenizer)
    assert trainer.train().training_loss > 0
    moved = [n for n, p in model.named_parameters() if n in before and not p.equal(before[n])]
    assert moved


@pytest.mark.parametrize("options", [{}, {"phi": 1}, {"form": "core", "phi": 1}], ids=str)
def test_compiled_forward_and_backward(options: dict[str, Any]) -> None:
    """Without code generation: the graph is what counts, and it takes no compiler."""
    model = adapted(mlp(), target_modules=["first", "second"], **options).train()
    expected = model(points())
    expected.square().sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    compiled: Any = torch.compile(model.base_model.model, backend="aot_eager", fullgraph=True)
    got = compiled(points())
    torch.testing.assert_close(got, expected)
    got.square().sum().backward()
    for name, value in gradients.items():
        torch.testing.assert_close(model.get_parameter(name).grad, value, rtol=1e-4, atol=1e-5)


class Quantised(nn.Module):
    """Two linear layers, as bitsandbytes makes them."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.first, self.second = kind(64, 64, **options), kind(64, 64, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.second(torch.tanh(self.first(x)))
        return found


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("phi", [0, 1])
def test_quantised_bases(bits: int, phi: int) -> None:
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    torch.manual_seed(0)
    if bits == 4:
        base = Quantised(bnb.nn.Linear4bit, quant_type="nf4", compute_dtype=torch.float32)
    else:
        base = Quantised(bnb.nn.Linear8bitLt, has_fp16_weights=False)
    x = points(5, 64)
    try:
        before = base.to("cpu")(x).detach()
    except (NotImplementedError, RuntimeError) as error:
        pytest.skip(f"bitsandbytes {bnb.__version__} does not run {bits} bits here: {error}")
    model = adapted(base, share=_like(base), phi=phi).train()
    out = model(x)
    change = out.detach() - before
    assert float(change.norm()) > 0
    out.square().sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)
    with model.disable_adapter():
        torch.testing.assert_close(model(x).detach(), before)


def _like(base: nn.Module) -> str:
    from sharespace.tuner import publish

    ALIVE.append(space(base))
    return publish(ALIVE[-1])


def test_diffusers_own_adapter_functions() -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=4,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=12,
    ).eval()  # fmt: skip
    x = torch.randn(1, 4, 8, 8), 3, torch.randn(1, 5, 12)
    share, targets = published(unet), ["to_q", "to_v", "conv1"]
    before = unet(*x).sample
    for name, seed in (("one", 0), ("two", 5)):
        config = ShareConfig(share=share, target_modules=targets, seed=seed, init_weights=False)
        unet.add_adapter(config, adapter_name=name)
    outputs = {}
    for weight in (0.0, 0.5, 1.0):
        unet.set_adapters(["one"], [weight])
        outputs[weight] = unet(*x).sample
    torch.testing.assert_close(outputs[0.0], before, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(outputs[0.5], outputs[1.0])
    unet.set_adapters(["one", "two"], [1.0, 0.5])
    assert not torch.allclose(unet(*x).sample, outputs[1.0])
    unet.disable_adapters()
    torch.testing.assert_close(unet(*x).sample, before)
    unet.delete_adapters("two")
    assert not any("two" in n.split(".") for n, _ in unet.named_parameters())
