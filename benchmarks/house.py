"""What shape does the code base have: how many files does a verb enter, what does the source say?

The first part counts the files of the package that a verb enters. Each verb runs on two tiny
adapters in a process of its own, under ``sys.setprofile`` and ``threading.setprofile``, so calls in
all threads that Python starts count, and calls in other processes do not. A file is entered when
one of its functions is called. What happens while a module of the package is imported does not
count, and neither do methods that ``dataclass`` generates, because they belong to no file. The
packages are the folders of the entered files. What a verb is given, such as the adapters, the
model and the opened Share model of ``adapt`` and ``MixedTasks``, is made before the count begins.

The second part counts what the source says. Code is every line that is not blank, not a comment
alone and not part of a docstring; a string that stands alone as a statement is a docstring. A
function has the lines from its ``def`` to its end, docstring and nested functions included. ``Any``
counts where an annotation of an argument, a result or a variable names it, once for each time; an
alias or a ``cast`` does not count. A vague name counts once for each function that binds it, by any
statement or comprehension, but not as an argument. An import circle is a strongly connected
component of more than one module, over the imports that run when a module is imported: those in
functions and under ``TYPE_CHECKING`` are left out, and so is the package that Python imports on the
way to a submodule.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import math
import re
import runpy
import statistics
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from token import COMMENT, DEDENT, ENDMARKER, INDENT, NEWLINE, NL
from tokenize import generate_tokens
from types import FrameType
from typing import Any

import sharespace
from benchmarks import common

ROOT = Path(sharespace.__file__).parent
VERBS = ("init", "merge", "export", "adapt", "MixedTasks")
VAGUE = ("found", "kept", "chosen", "more", "other", "everyone", "together")
LAYOUT = (COMMENT, NL, NEWLINE, INDENT, DEDENT, ENDMARKER)
"""Tokens that make no line a line of code."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table and write the results, or trace one verb in this process."""
    parser = common.parser(__doc__, "house")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", dest="out", type=Path, help="another name of --out")
    parser.add_argument("--compare", type=Path, help="earlier results, to print beside these")
    parser.add_argument("--verbs", nargs="*", choices=VERBS, default=VERBS)
    parser.add_argument("--trace", choices=VERBS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.trace:
        print("\n" + json.dumps(entered(verb(options.trace, options.folder))))
        return
    counts, names = shape(ROOT)
    entries, entry_names = traces(options.verbs, options.seed)
    results = {
        "environment": common.environment(options.seed),
        "figures": {**entries, **counts},
        "names": {**entry_names, **names},
    }
    before = json.loads(options.compare.read_text()) if options.compare else None
    common.write_results(options.out, results)
    print(report(results, before))


def traces(verbs: Sequence[str], seed: int) -> tuple[dict[str, float], dict[str, list[str]]]:
    """How many files and packages each verb enters in a process of its own, and the files."""
    counts: dict[str, float] = {}
    names = {}
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), seed)
        for each in verbs:
            done = run_python("-m", "benchmarks.house", "--trace", each, "--folder", folder)
            if done.returncode:
                raise RuntimeError(f"{each} failed:\n{done.stderr}")
            files: list[str] = json.loads(done.stdout.splitlines()[-1])
            counts[f"files that {each} enters"] = len(files)
            counts[f"packages that {each} enters"] = len({Path(file).parent for file in files})
            names[f"files that {each} enters"] = files
    return counts, names


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments in the root of the repository."""
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)


def tiny_model() -> Any:
    """A BERT classifier of one layer, with random weights."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16}
    config = BertConfig(num_hidden_layers=1, num_attention_heads=2, num_labels=2, **sizes)
    return BertForSequenceClassification(config).eval()


def write_inputs(folder: Path, seed: int) -> None:
    """Write two adapters with heads, and Share models of the first one and of both.

    Their subspaces are too small for both adapters, so that a merge has to choose its directions.
    """
    import peft
    import torch

    torch.manual_seed(seed)
    paths = [folder / "first", folder / "second"]
    lora = {"r": 2, "target_modules": ["query", "value"], "init_lora_weights": False}
    for path in paths:
        config = peft.LoraConfig(task_type="SEQ_CLS", **lora)
        peft.get_peft_model(tiny_model(), config).save_pretrained(path)
    sharespace.Share.from_adapters(paths[:1], k=3).save(folder / "one.share")
    sharespace.Share.from_adapters(paths, k=3).save(folder / "both.share")


def verb(name: str, folder: Path) -> Callable[[], object]:
    """Prepare a verb, and return the call that is to be traced."""
    first, second = str(folder / "first"), str(folder / "second")
    one, both = str(folder / "one.share"), str(folder / "both.share")
    if name == "init":
        return lambda: command_line("init", str(folder / "new.share"), first, second)
    if name == "merge":
        known = run_python("-m", "sharespace", "merge", "--help").returncode == 0
        return lambda: command_line("merge" if known else "add", one, second)
    if name == "export":
        return lambda: command_line("export", both, "first", str(folder / "exported"))
    import torch

    model, share = tiny_model(), sharespace.Share.load(both)
    tokens = torch.arange(8).reshape(2, 4)
    if name == "adapt":
        adapt, training = public("adapt"), public("TrainingSettings")
        data = [{"input_ids": row, "labels": i} for i, row in enumerate(tokens)]
        one_step = {"max_steps": 1, "learning_rate": 1e-3, "per_device_train_batch_size": 2}
        fast = training(**one_step, use_cpu=True)
        return lambda: adapt(model, share, data, fast, task="new")
    mixed_tasks = public("MixedTasks")

    def forward() -> None:
        with torch.no_grad(), mixed_tasks(model, share).tasks(["first", "second"]):
            model(tokens)

    return forward


def public(name: str) -> Any:
    """A public name, from the first package that has it."""
    for home in ("sharespace", "sharespace.learn", "sharespace.tuner"):
        with suppress(ImportError, AttributeError):
            return getattr(import_module(home), name)
    raise ImportError(f"no package of sharespace has {name}")


def command_line(*arguments: str) -> None:
    """Do what ``python -m sharespace`` does, in this process."""
    sys.argv = ["sharespace", *arguments]
    try:
        runpy.run_module("sharespace", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"sharespace {arguments[0]} ended with {end.code}") from end


def entered(work: Callable[[], object]) -> list[str]:
    """The files of the package in which a function is called while ``work`` runs."""
    inside, main_file = f"{ROOT}/", str(ROOT / "__main__.py")
    files: set[str] = set()

    def importing(frame: FrameType | None) -> bool:
        while frame is not None:
            code = frame.f_code
            if code.co_name == "<module>" and code.co_filename.startswith(inside):
                return code.co_filename != main_file
            frame = frame.f_back
        return False

    def profile(frame: FrameType, event: str, _: object) -> None:
        file = frame.f_code.co_filename
        new = event == "call" and file not in files and file.startswith(inside)
        if new and frame.f_code.co_name != "<module>" and not importing(frame):
            files.add(file)

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return sorted(file.removeprefix(inside) for file in files)


def shape(root: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """All static counts of the package in a folder, and the names behind them."""
    texts = {path: path.read_text() for path in sorted(root.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    functions = [node for node in nodes if isinstance(node, Function)]
    lines = {path: len(text.splitlines()) for path, text in texts.items()}
    total = sum(lines.values())
    split = [code_and_comments(texts[path], tree) for path, tree in trees.items()]
    modules = {path: count for path, count in lines.items() if path.stem != "__init__"}
    vague = [vague_names(function) for function in functions]
    groups = circles(imports(root, trees))
    names = {
        "module names used twice or more": repeated(path.stem for path in modules),
        "class names used twice or more": repeated(
            node.name for node in nodes if isinstance(node, ast.ClassDef)
        ),
        "import circles": groups,
    }
    counts = {
        "files": sum(p.is_file() and "__pycache__" not in p.parts for p in root.rglob("*")),
        "Python files, as in the wheel": len(texts),
        "lines": total,
        "lines of code": sum(code for code, _ in split),
        "Python files per 1000 lines": 1000 * len(texts) / total,
        **spread("lines per file", lines.values()),
        **spread("lines per file without `__init__`", modules.values()),
        "functions": len(functions),
        **spread("lines per function", ((f.end_lineno or 0) - f.lineno + 1 for f in functions)),
        "comments per 1000 lines": 1000 * sum(comments for _, comments in split) / total,
        "Any per 1000 lines": 1000 * sum(map(count_any, nodes)) / total,
        **{name: len(names[name]) for name in names},
        "modules in import circles": sum(map(len, groups)),
        "functions that bind a vague name": sum(map(bool, vague)),
        **{f"functions that bind {name!r}": sum(name in v for v in vague) for name in VAGUE},
    }
    return counts, names


def code_and_comments(text: str, tree: ast.Module) -> tuple[int, int]:
    """The number of lines of code, and that of comments."""
    tokens = list(generate_tokens(io.StringIO(text).readline))
    code = {n for t in tokens if t.type not in LAYOUT for n in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                code -= set(range(node.lineno, (node.end_lineno or 0) + 1))
    return len(code), sum(t.type == COMMENT for t in tokens)


def spread(what: str, values: Iterable[int]) -> dict[str, float]:
    """The median, the 90th percentile by nearest rank, and the largest value."""
    ranked = sorted(values)
    p90 = ranked[math.ceil(0.9 * len(ranked)) - 1]
    middle = statistics.median(ranked)
    return {f"{what}, median": middle, f"{what}, p90": p90, f"{what}, most": ranked[-1]}


def repeated(names: Iterable[str]) -> dict[str, int]:
    """The names that occur at least twice, with their counts, the most frequent first."""
    return {name: count for name, count in Counter(names).most_common() if count > 1}


def count_any(node: ast.AST) -> int:
    """How often the annotation that a node carries itself, if it has one, names ``Any``."""
    place = "returns" if isinstance(node, Function) else "annotation"
    annotation: ast.expr | None = getattr(node, place, None)
    return len(re.findall(r"\bAny\b", ast.unparse(annotation))) if annotation else 0


def outside_functions(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """All nodes in some statements, but for those in functions and under ``TYPE_CHECKING``."""
    for node in body:
        if not isinstance(node, Function):
            yield node
            typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            inner = node.orelse if isinstance(node, ast.If) and typing_only else None
            yield from outside_functions(ast.iter_child_nodes(node) if inner is None else inner)


def vague_names(function: Function) -> set[str]:
    """The vague names that a function binds itself, not in a function inside it."""
    nodes = outside_functions(function.body)
    stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return stored & set(VAGUE)


def imports(root: Path, trees: dict[Path, ast.Module]) -> dict[str, set[str]]:
    """The modules of the package that each one imports when it is imported itself."""
    parts = {path: path.relative_to(root.parent).with_suffix("").parts for path in trees}
    names = {path: ".".join(p for p in parts[path] if p != "__init__") for path in trees}
    graph: dict[str, set[str]] = {name: set() for name in names.values()}
    for path, tree in trees.items():
        targets: set[str] = set()
        for node in outside_functions(tree.body):
            if isinstance(node, ast.Import):
                targets.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                start = parts[path][: -node.level] if node.level else ()
                source = ".".join([*start, *([node.module] if node.module else [])])
                members = (f"{source}.{alias.name}" for alias in node.names)
                targets.update(member if member in graph else source for member in members)
        graph[names[path]] = (targets & set(graph)) - {names[path]}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The sets of at least two modules that all import each other, directly or not."""
    reach = {}
    for name in graph:
        seen, waiting = set[str](), [name]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting.extend(new)
        reach[name] = seen
    groups = {tuple(sorted(m for m in reach[name] if name in reach[m])) for name in graph}
    return sorted(list(group) for group in groups if len(group) > 1)


def report(results: dict[str, Any], before: dict[str, Any] | None = None) -> str:
    """One line for each figure, with the earlier one beside it where there is one."""
    columns = [results["figures"]] if before is None else [before["figures"], results["figures"]]
    header = ["figure", *(["today"] if before is None else ["before", "after"])]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(shown(column.get(name)) for column in columns)] for name in names]
    return common.table(header, rows)


def shown(value: float | None) -> str:
    """A figure as text: whole numbers without a decimal point, others with one decimal."""
    if value is None:
        return ""
    return f"{value:,.1f}" if value % 1 else f"{value:,.0f}"


if __name__ == "__main__":
    main()
