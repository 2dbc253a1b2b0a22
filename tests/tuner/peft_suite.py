"""Run PEFT's own behaviour tests on this method: ``python tests/tuner/peft_suite.py``.

The tests are those of the source distribution of the installed PEFT version, fetched from the
package index into a cache folder; nothing of them is copied into this repository. Their lists of
cases are replaced by ours: each test that is parametrised over PEFT's methods runs once for each of
``CASES``, on the same little models as it does for LoRA.

``--sdist FOLDER_OR_ARCHIVE`` takes a source distribution that is already there.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

CACHE = Path(tempfile.gettempdir()) / "sharespace-peft-suite"
MODULE = "tests.test_custom_models"
OURS = "sharespace:"
"""Start of the ids of our cases."""

Case = tuple[str, str, dict[str, Any]]
CASES: list[Case] = [
    ("MLP, a name", "MLP", {"target_modules": "lin0"}),
    ("MLP, a list", "MLP", {"target_modules": ["lin0"]}),
    ("MLP, the other", "MLP", {"target_modules": ["lin1"]}),
    ("MLP, both", "MLP", {"target_modules": ["lin0", "lin1"]}),
    ("MLP, all of the subspace but one", "MLP", {"exclude_modules": ["lin1"]}),
    ("MLP, a head", "MLP", {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    ("MLP, temporary directions", "MLP", {"target_modules": ["lin0"], "phi": 2}),
    ("MLP, a core", "MLP", {"target_modules": ["lin0"], "form": "core", "phi": 1, "p": 3}),
    ("MLP, dropout", "MLP", {"target_modules": ["lin0"], "dropout": 0.1}),
    ("MLP, bases saved", "MLP", {"target_modules": ["lin0"], "save_basis": True, "phi": 1}),
    ("Embedding and Conv1D", "EmbConv1D", {"target_modules": ["conv1d"]}),
    (
        "Embedding saved whole",
        "EmbConv1D",
        {"target_modules": ["lin0"], "modules_to_save": ["emb"]},
    ),
    ("Conv1d", "Conv1d", {"target_modules": ["conv1d"]}),
    ("Conv1d, groups", "Conv1dGroups", {"target_modules": ["conv1d"]}),
    ("Conv1d, more channels", "Conv1dBigger", {"target_modules": ["conv1d"], "phi": 1}),
    ("Conv2d", "Conv2d", {"target_modules": ["conv2d"]}),
    ("Conv2d and linear", "Conv2d", {"target_modules": ["conv2d", "lin0"], "phi": 1}),
    ("Conv2d, 1 x 1", "Conv2d1x1", {"target_modules": ["conv2d"]}),
    ("Conv2d, groups", "Conv2dGroups", {"target_modules": ["conv2d"]}),
    ("Conv2d, other groups", "Conv2dGroups2", {"target_modules": ["conv2d"]}),
    ("Conv3d", "Conv3d", {"target_modules": ["conv3d"]}),
]
QUICK = ("MLP, a head", "MLP, temporary directions", "Embedding and Conv1D", "Conv2d, groups")
"""Those that the ordinary test run takes, where the source distribution is at hand."""
FIRST: dict[str, Any] = {"target_modules": ["lin0"]}
SECOND: dict[str, Any] = {"target_modules": ["lin1"]}
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "same modules": (FIRST, {**FIRST, "seed": 5}),
    "different modules": (FIRST, SECOND),
    "overlapping modules": (FIRST, {"target_modules": ["lin0", "lin1"], "seed": 5}),
    "temporary directions": ({**FIRST, "phi": 1}, {**FIRST, "seed": 5, "p": 2}),
}
NOT_OURS = {
    "test_mixed_adapter_batches_training_mode_raises": "batches of mixed tasks can be trained here",
    "test_mixed_adapter_batches_unsupported_layer_raises": "layers that LoRA lacks",
    "test_mixed_adapter_batches_mha_raises": "attention modules of torch are not adapted",
    "test_mixed_adapter_batches_lora_opt_timing": "times a model of 125 million weights of the Hub",
    "test_mixed_adapter_batches_lora_conv1d_emb": "adapts an embedding",
    "test_mixed_adapter_batches_lora_conv1d_emb_multiple_modules_to_save": "adapts an embedding",
    "test_default_target_modules_not_set_raises": "the default is all modules of the subspace",
    "test_default_target_modules_not_set_model_type_set_raises": "the same",
    "test_default_target_modules_list_of_str": "the same",
    "test_default_target_modules_str": "the same",
}
"""Tests whose premise does not hold for this method, and why."""
KNOWN = {
    "test_disable_adapters_with_merging[sharespace:19]": "inputs up to 57 600 and a tolerance of "
    "1e-5 relative: rounding of float32 (PEFT widens it for other methods, and skips LoRA)",
    "test_mixed_adapter_batches_different_target_layers[sharespace:1]": "compares 3 rows with the "
    "same among 9, where a logarithm near 0 cancels: rounding of float32 (4e-6)",
}
"""Tests that fail, and why."""


@dataclass
class Suite:
    """A pytest plugin: gives PEFT's tests our cases and counts what becomes of them."""

    names: Sequence[str]
    """Of the cases to run."""
    outcomes: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)
    """Test -> last line of its error."""

    def pytest_collection_modifyitems(self, config: Any, items: list[pytest.Item]) -> None:
        """Drop what is not parametrised over methods."""
        ours = [item for item in items if "[" + OURS in item.nodeid or "-" + OURS in item.nodeid]
        config.hook.pytest_deselected(items=[item for item in items if item not in ours])
        items[:] = ours

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count each test once."""
        if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
            self.outcomes[report.outcome] += 1
            if report.outcome == "failed":
                self.failed[report.nodeid.rpartition("::")[2]] = _last_line(report)


def _last_line(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr).splitlines()[0]


def fetch(cache: Path = CACHE) -> Path:
    """The folder of the installed version's source distribution, from the package index."""
    version = importlib.metadata.version("peft")
    found = cache / f"peft-{version}"
    if not (found / "tests").is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        command = ["download", "--no-binary", "peft", "--no-deps", f"peft=={version}"]
        pip = [sys.executable, "-m", "pip", *command, "--dest", str(cache)]
        subprocess.run(pip, check=True, stdout=subprocess.DEVNULL)
        unpack(cache / f"peft-{version}.tar.gz", cache)
    return found


def unpack(archive: Path, folder: Path) -> Path:
    """Take the tests out of a source distribution."""
    with tarfile.open(archive) as file:
        tests = [m for m in file.getmembers() if m.name.split("/")[1:2] == ["tests"]]
        file.extractall(folder, members=tests, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def available() -> Path | None:
    """The source distribution's folder where ``fetch`` put it before."""
    found = CACHE / f"peft-{importlib.metadata.version('peft')}"
    return found if (found / "tests").is_dir() else None


def run(sdist: Path, names: Sequence[str], extra: Sequence[str] = ()) -> Suite:
    """Run PEFT's tests on these of our cases."""
    sys.path.insert(0, str(sdist))
    suite = Suite(names)
    replace_cases(importlib.import_module(MODULE), names)
    quiet = ["-q", "--no-header", "-W", "ignore", "-p", "no:cacheprovider"]
    options = [*quiet, "--import-mode=importlib"]
    file = sdist / "tests" / "test_custom_models.py"
    where = ["--rootdir", str(sdist), "-c", str(Path(__file__).parent / "peft_suite.ini")]
    pytest.main([*options, *where, *extra, str(file)], plugins=[suite])
    return suite


def replace_cases(module: Any, names: Sequence[str]) -> None:
    """Put our cases in the place of PEFT's, test by test; the rest is taken away."""
    cases = Replacements(module, names)
    for name, value in vars(module).items():
        if isinstance(value, type) and name.startswith("Test"):
            for test in vars(value).values():
                if callable(test) and hasattr(test, "pytestmark"):
                    test.pytestmark = [cases.mark(m, test.__name__) for m in test.pytestmark]


class Replacements:
    """Our lists of cases by the arguments that PEFT's tests take."""

    def __init__(self, module: Any, names: Sequence[str]) -> None:
        from sharespace.tuner import ShareConfig
        from tuner.spaces import published, published_together

        self.config: Any = ShareConfig
        make = module.MockTransformerWrapper.from_pretrained
        shares = {model: published(make(model)) for _, model, _ in CASES}
        self.share = shares["MLP"]
        self.single = [
            (name, model, ShareConfig, {**options, "share": shares[model]})
            for name, model, options in CASES
            if name in names
        ]
        self.deep = published_together(module.DeepMLP(size=256), module.MLP())
        self.conv = shares["Conv2d"]

    def mark(self, mark: Any, test: str) -> Any:
        """The same mark with our cases, if it is one of those that list methods."""
        if mark.name != "parametrize" or test in NOT_OURS:
            return mark
        makers: dict[str, Callable[[], list[Any]]] = {
            "test_name, model_id, config_cls, config_kwargs": lambda: self.single,
            "test_name, tuner_method, config_cls, config_kwargs_1, config_kwargs_2": self.pairs,
            "test_name, config0, config1": self.mixed,
            "test_name, config": self.mixed_wrong,
            "config_cls": self.classes,
        }
        if mark.args[0] not in makers:
            return mark
        found = self.mixed_conv() if "lora_conv2d" in test else makers[mark.args[0]]()
        ids = [f"{OURS}{i}" for i in range(len(found))]
        return pytest.mark.parametrize(mark.args[0], found, ids=ids).mark

    def pairs(self) -> list[Any]:
        """Two adapters that are active at once."""
        common: dict[str, Any] = {"share": self.share, "init_weights": False}
        return [
            (name, "sharespace", self.config, {**one, **common}, {**two, **common})
            for name, (one, two) in PAIRS.items()
        ]

    def mixed(self) -> list[Any]:
        """Two adapters in one batch."""
        return [
            (name, self.config(**one), self.config(**two)) for name, _, _, one, two in self.pairs()
        ]

    def mixed_conv(self) -> list[Any]:
        """The same over a convolution."""
        common: dict[str, Any] = {
            "target_modules": ["conv2d"],
            "share": self.conv,
            "init_weights": False,
        }
        return [("convolution", self.config(**common), self.config(**common, p=2, seed=5))]

    def mixed_wrong(self) -> list[Any]:
        """One adapter, and a batch that names another."""
        return [(name, self.config(**one)) for name, _, _, one, _ in self.pairs()[:1]]

    def classes(self) -> list[Any]:
        """The configuration, for tests that make it themselves on their deep model."""
        share = self.deep

        class Config(self.config):  # type: ignore[misc, name-defined]
            def __init__(self, **options: Any) -> None:
                super().__init__(**{"share": share, **options})

        return [Config]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what passed, what failed and why; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sdist", type=Path)
    parser.add_argument("--quick", action="store_true", help="only a few of the cases")
    parser.add_argument("--offline", action="store_true", help="what was fetched before")
    options, extra = parser.parse_known_args(arguments)
    sdist = options.sdist or (available() if options.offline else None) or fetch()
    sdist = unpack(sdist, CACHE) if sdist.is_file() else sdist
    names = QUICK if options.quick else [name for name, _, _ in CASES]
    suite = run(sdist, names, extra)
    counts = suite.outcomes
    ran = counts["passed"] + counts["failed"]
    print(f"{counts['passed']} of {ran} passed, {counts['skipped']} skipped by PEFT's own rules")
    for test, error in suite.failed.items():
        print(f"  {test}: {KNOWN.get(test, error)}")
    return int(bool(set(suite.failed) - set(KNOWN)))


if __name__ == "__main__":
    sys.exit(main())
