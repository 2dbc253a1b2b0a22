"""One of two processes of ``test_distributed``: ``python worker.py RANK PORT FOLDER``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch


def main(rank: int, port: int, folder: Path) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    torch.set_num_threads(1)
    from tuner.spaces import adapted, mlp, points, published

    share = published(mlp())

    def model() -> Any:
        return adapted(
            mlp(), share=share, target_modules=["first", "second"], form="factors", phi=1
        ).train()

    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    found = {"data parallel": data_parallel(accelerator, model(), points(8)[rank::2])}
    for name, wrap in {"fully_shard": fully_sharded, "FSDP": fsdp}.items():
        found[name] = wrap(model(), points(8)[rank::2])
    found["directions"] = directions(share, points(8)[rank::2])
    if rank == 0:
        torch.save({**found, "alone": alone(model(), points(8))}, folder / "found.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def directions(share: str, x: Any) -> Any:
    """Chosen by both processes, each from half of the examples; both have placed the same."""
    from peft import get_peft_model

    from sharespace import ShareConfig
    from sharespace.learn import choose_directions
    from tuner.spaces import mlp

    model = get_peft_model(WithLoss(mlp()), ShareConfig(share=share, target_modules=TARGETS))
    choose_directions(model, [{"x": x}])
    placed = {n: p.detach() for n, p in model.named_parameters() if "sharespace_" in n}
    both: list[Any] = [None, None]
    torch.distributed.all_gather_object(both, placed)
    assert all(torch.equal(both[0][name], both[1][name]) for name in placed)
    return placed


TARGETS = ["first", "second"]


class WithLoss(torch.nn.Module):
    """A model that gives the sum of the squares of its outputs as its loss."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.first, self.second, self.head = inner.first, inner.second, inner.head

    def forward(self, x: Any) -> dict[str, Any]:
        hidden = torch.tanh(self.second(torch.tanh(self.first(x))))
        return {"loss": self.head(hidden).square().sum()}


def alone(model: Any, x: Any) -> Any:
    """Trained in one process on the whole batch."""
    return trained(model, model, x)


def trained(wrapped: Any, model: Any, x: Any, whole: Any = None) -> Any:
    """Three steps of SGD; the trained numbers by name."""
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        wrapped(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    state = whole(wrapped) if whole else model.state_dict()
    return {k: v.detach().clone() for k, v in state.items() if "sharespace_" in k}


def data_parallel(accelerator: Any, model: Any, x: Any) -> Any:
    """accelerate wraps the model in DistributedDataParallel."""
    wrapped = accelerator.prepare_model(model)
    assert type(wrapped).__name__ == "DistributedDataParallel"
    return trained(wrapped, accelerator.unwrap_model(wrapped), x)


def fully_sharded(model: Any, x: Any) -> Any:
    """torch's ``fully_shard``, module by module: every parameter is cut in two."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    layers = model.base_model.model
    for part in (layers.first, layers.second, model):
        fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
    assert all(type(p).__name__ == "DTensor" for p in model.parameters())
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return trained(model, model, x, lambda m: get_model_state_dict(m, options=options))


def fsdp(model: Any, x: Any) -> Any:
    """FullyShardedDataParallel with the original parameters."""
    from torch.distributed.fsdp import FullyShardedDataParallel as Fsdp

    wrapped = Fsdp(model, use_orig_params=True, device_id=torch.device("cpu"))

    def whole(sharded: Any) -> Any:
        with Fsdp.summon_full_params(sharded):
            named = [(n, p.detach().clone()) for n, p in sharded.named_parameters()]
        return {n.replace("_fsdp_wrapped_module.", ""): p for n, p in named}

    return trained(wrapped, model, x, whole)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
