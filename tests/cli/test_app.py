"""Every command, end to end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from cli.conftest import Ran, make_adapter

Run = Callable[..., Ran]


@pytest.fixture
def share(run: Run, adapters: Path, tmp_path: Path) -> Path:
    """A Share model of sst2 and rte with room for more (no cap)."""
    out = tmp_path / "model.share"
    assert run("init", out, adapters / "sst2", adapters / "rte", "--variance", 1).code == 0
    return out


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_init_says_what_is_kept_as_json(run: Run, adapters: Path, tmp_path: Path) -> None:
    found = run("init", tmp_path / "s", f"{adapters}/*", "--k", 4, "--json").json
    assert set(found["tasks"]) == {"mrpc", "rte", "sst2"}
    assert found["version"] == 1
    assert all(k == [4, 4] for k in found["k"].values())
    for task in found["tasks"].values():
        assert 0 < task["relative_error"] <= task["bound"]
        assert task["relative_error"] <= task["worst_layer_error"] < 1
    sizes = found["bytes"]
    assert sizes["total"] == sizes["basis"] + sizes["coefficients"] + sizes["other"]


def test_init_keeps_everything_at_full_k(run: Run, adapters: Path, tmp_path: Path) -> None:
    run("init", tmp_path / "s", f"{adapters}/*", "--k", 100)
    found = run("fidelity", tmp_path / "s", "--against", *adapters.iterdir(), "--json").json
    assert found["max_relative_error"] < 1e-5
    assert set(found) >= {"tasks", "mean_relative_error", "max_relative_error", "bytes"}


def test_init_for_people_names_tasks_errors_and_bytes(
    run: Run, adapters: Path, tmp_path: Path
) -> None:
    said = run("init", tmp_path / "s", f"{adapters}/*", "--k", 2).out
    for word in ("sst2", "rte", "mrpc", "error", "bound", "worst layer", "basis", "kB"):
        assert word in said


def test_adapters_whose_updates_are_zero_are_named(
    run: Run, adapters: Path, tmp_path: Path
) -> None:
    path = adapters / "rte" / "adapter_model.safetensors"
    tensors = {k: v * (0 if "lora_B" in k else 1) for k, v in load_file(path).items()}
    save_file(tensors, path)
    said = " ".join(run("init", tmp_path / "s", adapters / "sst2").out.split())
    assert "without any update" not in said
    said = " ".join(run("merge", tmp_path / "s", adapters / "rte").out.split())
    assert "Warning: 1 task without any update. All updates of rte are zero" in said
    record = run("init", tmp_path / "t", f"{adapters}/*", "--k", 6, "--json").json
    assert [(w["kind"], "rte" in w["text"]) for w in record["warnings"]] == [("untrained", True)]
    assert run("merge", tmp_path / "s", adapters / "mrpc", "--json").json["warnings"] == []


def test_init_with_the_papers_method(run: Run, adapters: Path, tmp_path: Path) -> None:
    found = run(
        "init",
        tmp_path / "s",
        f"{adapters}/*",
        "--method",
        "share",
        "--centred",
        "--k",
        3,
        "--json",
    ).json
    assert found["method"] == "share"
    assert all(k == [3, 3] for k in found["k"].values())


def test_init_under_a_budget_stays_within_it(run: Run, adapters: Path, tmp_path: Path) -> None:
    found = run("init", tmp_path / "s", f"{adapters}/*", "--budget", "0.6kB", "--json").json
    assert 0 < found["bytes"]["basis"] + found["bytes"]["coefficients"] <= 600


def test_plan_says_what_a_budget_chose_for_each_update(run: Run, adapters: Path) -> None:
    found = run("plan", f"{adapters}/*", "--budget", "0.6kB", "--json").json
    storage = found["storage"]
    assert found["budget"] == 600
    # Independent random factors share nothing, and the bytes do not reach to all of them.
    assert storage["per_task"] > 0 < storage["nothing"]
    assert storage["per_task"] + storage["nothing"] == storage["updates"]
    assert storage["wholly_per_task"] == len(found["tasks"])
    out = " ".join(run("plan", f"{adapters}/*", "--budget", "0.6kB").out.split())
    assert "because they share nothing that pays" in out
    assert f"of {storage['nothing']} nothing is kept" in out
    assert "The budget chose" not in run("plan", f"{adapters}/*", "--k", 3).out


def test_names_can_be_given(run: Run, adapters: Path, tmp_path: Path) -> None:
    name = "glue sst-2 日本語=é"
    named = f"{name.partition('=')[0]}={adapters / 'sst2'}"
    assert run("init", tmp_path / "s", named).code == 0
    assert run("rename", tmp_path / "s", name.partition("=")[0], name).code == 0
    assert list(run("info", tmp_path / "s", "--json").json["tasks"]) == [name]
    assert run("export", tmp_path / "s", name, tmp_path / "out").code == 0


@pytest.mark.parametrize("name", ["../sst2", "line\nbreak", "\x1b[31mred", "x" * 300, " x", ".."])
def test_names_that_no_new_task_may_have(
    name: str, run: Run, adapters: Path, tmp_path: Path
) -> None:
    share = tmp_path / "s"
    assert run("init", share, adapters / "sst2").code == 0
    calls = [
        ("init", tmp_path / "new", f"{name}={adapters / 'rte'}"),
        ("merge", share, f"{name}={adapters / 'rte'}"),
        ("rename", share, "sst2", name),
        ("submit", adapters / "rte", tmp_path / "inbox", "--task", name),
    ]
    for call in calls:
        ran = run(*call)
        assert ran.code == 2, call
        assert len(ran.err.splitlines()) == 1
        assert "name" in ran.err
        assert "\x1b" not in ran.err
    assert len(run("history", share, "--json").json["versions"]) == 1
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "inbox").exists()


def test_plan_writes_nothing_and_judges(run: Run, adapters: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    found = run("plan", f"{adapters}/*", "--k", 3, "--json").json
    assert found["verdict"] == "not worth it"  # independent random factors share nothing
    assert set(found["baselines"]) >= {"own_svd", "mean_adapter", "random_basis", "shared_fraction"}
    assert found["coefficients_only"]["bytes"] == found["bytes"]["coefficients"]
    assert "not worth it" in run("plan", f"{adapters}/*", "--k", 3).out
    assert snapshot(tmp_path) == before


def test_merge_needs_no_old_adapter_and_loses_nothing_below_the_cap(
    run: Run, share: Path, adapters: Path
) -> None:
    (adapters / "sst2" / "adapter_model.safetensors").unlink()
    found = run("merge", share, adapters / "mrpc", "--json").json
    assert found["added"] == ["mrpc"]
    assert found["version"] == 2
    assert found["max_relative_error"] < 1e-5


def test_merge_at_a_cap_truncates_and_says_so(run: Run, share: Path, adapters: Path) -> None:
    found = run("merge", share, adapters / "mrpc", "--cap", 4, "--json").json
    assert all(k == [4, 4] for k in found["k"].values())
    task = run("fidelity", share, "--against", adapters / "sst2", "--json").json["tasks"]["sst2"]
    assert 0.01 < task["relative_error"] <= task["bound"]
    assert task["measured"]


def test_merge_then_fidelity_without_originals_is_marked_estimated(
    run: Run, adapters: Path, tmp_path: Path
) -> None:
    run("init", tmp_path / "s", adapters / "sst2", adapters / "rte", "--k", 2)
    run("merge", tmp_path / "s", adapters / "mrpc")
    tasks = run("fidelity", tmp_path / "s", "--json").json["tasks"]
    assert not tasks["sst2"]["measured"]
    assert tasks["mrpc"]["measured"]
    assert "~" in run("fidelity", tmp_path / "s").out


def test_add_is_another_name_of_merge(run: Run, share: Path, adapters: Path) -> None:
    assert run("add", share, adapters / "mrpc", "--json").json["added"] == ["mrpc"]
    assert run("history", share, "--json").json["versions"][-1]["verb"] == "merge"
    assert " add " not in run("--help").out


def test_remove_and_rename(run: Run, share: Path) -> None:
    assert run("rename", share, "rte", "RTE").code == 0
    assert run("remove", share, "sst2").code == 0
    assert list(run("info", share, "--json").json["tasks"]) == ["RTE"]
    verbs = [v["verb"] for v in run("history", share, "--json").json["versions"]]
    assert verbs == ["init", "rename", "remove"]


def test_info_of_an_earlier_version(run: Run, share: Path) -> None:
    run("remove", share, "sst2")
    assert set(run("info", share, "--version", 1, "--json").json["tasks"]) == {"sst2", "rte"}
    said = run("info", share).out
    assert "tiny/base" in said
    assert "rte" in said
    assert "sst2" not in said


def test_rollback_brings_a_task_back(run: Run, share: Path) -> None:
    run("remove", share, "sst2")
    assert run("rollback", share, 1).code == 0
    assert set(run("info", share, "--json").json["tasks"]) == {"sst2", "rte"}


def test_prune_removes_all_but_the_last_versions(run: Run, share: Path, adapters: Path) -> None:
    run("merge", share, adapters / "mrpc")
    removed = run("prune", share, "--keep", 1, "--json").json
    assert removed["versions"] == [1]
    assert removed["bytes"] > 0
    assert [v["version"] for v in run("history", share, "--json").json["versions"]] == [2]
    assert run("verify", share).code == 0


def test_union_has_the_tasks_of_both(run: Run, share: Path, adapters: Path, tmp_path: Path) -> None:
    run("init", tmp_path / "other", adapters / "mrpc", "--variance", 1)
    found = run("union", tmp_path / "both", share, tmp_path / "other", "--json").json
    assert set(found["tasks"]) == {"sst2", "rte", "mrpc"}
    against = run("fidelity", tmp_path / "both", "--against", *adapters.iterdir(), "--json").json
    assert against["max_relative_error"] < 1e-5


def test_export_gives_the_update_and_the_head_back(
    run: Run, share: Path, adapters: Path, tmp_path: Path
) -> None:
    assert run("export", share, "rte", tmp_path / "out", "--json").json["task"] == "rte"
    was = load_file(adapters / "rte" / "adapter_model.safetensors")
    now = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert set(was) == set(now)
    head = "base_model.model.classifier.weight"
    assert was[head].equal(now[head])
    for key in was:
        if key.endswith("lora_A.weight"):
            other = key.replace("lora_A", "lora_B")
            dense = was[other] @ was[key]
            assert (now[other] @ now[key] - dense).norm() < 1e-5 * dense.norm()


def test_verify_finds_damage_with_exit_code_2(run: Run, share: Path) -> None:
    assert run("verify", share).code == 0
    basis = next((share / "objects").glob("basis-*"))
    damaged = bytearray(basis.read_bytes())
    damaged[-1] ^= 1
    basis.write_bytes(damaged)
    found = run("verify", share, "--json")
    assert found.code == 2
    assert [d["status"] for d in found.json["damaged"]] == ["corrupt"]


def test_nulls_are_shown_beside(run: Run, adapters: Path, tmp_path: Path) -> None:
    run("init", tmp_path / "s", f"{adapters}/*", "--k", 2)
    found = run(
        "fidelity", tmp_path / "s", "--against", *adapters.iterdir(), "--baselines", "--json"
    )
    assert (
        found.json["baselines"]["random_basis"]["rte"]
        > found.json["tasks"]["rte"]["relative_error"]
    )


BAD = {
    "no such adapter": (["init", "{new}", "{adapters}/nope"], "nope"),
    "glob without match": (["init", "{new}", "{adapters}/x*"], "nothing matches"),
    "duplicate name": (["init", "{new}", "{adapters}/rte", "{adapters}/../adapters/rte"], "rte"),
    "store exists": (["init", "{share}", "{adapters}/rte"], "already"),
    "another base": (["merge", "{share}", "{adapters}/../stranger"], "other/base"),
    "task exists": (["merge", "{share}", "{adapters}/rte"], "rte"),
    "no such task": (["export", "{share}", "nope", "{new}"], "nope"),
    "no such task to remove": (["remove", "{share}", "nope"], "nope"),
    "rename onto another": (["rename", "{share}", "rte", "sst2"], "sst2"),
    "no such version": (["rollback", "{share}", "9"], "9"),
    "no store": (["info", "{new}"], "Share model"),
    "k zero": (["plan", "{adapters}/rte", "--k", "0"], "k=0"),
    "two rules": (["plan", "{adapters}/rte", "--k", "3", "--variance", "0.9"], "variance"),
    "variance above one": (["plan", "{adapters}/rte", "--variance", "1.5"], "1.5"),
    "size": (["plan", "{adapters}/rte", "--budget", "much"], "much"),
    "budget for nothing": (["init", "{new}", "{adapters}/rte", "--budget", "10"], "'rte'"),
    "dtype": (["init", "{new}", "{adapters}/rte", "--dtype", "int8"], "int8"),
    "device": (["init", "{new}", "{adapters}/rte", "--device", "nonsense"], "nonsense"),
    "format": (["export", "{share}", "rte", "{new}", "--to", "onnx"], "kohya"),
    "against a stranger": (["fidelity", "{share}", "--against", "x={adapters}/rte"], "'x'"),
    "baselines without originals": (["fidelity", "{share}", "--baselines"], "--against"),
    "baselines of some": (
        ["fidelity", "{share}", "--baselines", "--against", "{adapters}/rte"],
        "sst2",
    ),
    "union of one": (["union", "{new}", "{share}"], "two"),
    "union of the same names": (["union", "{new}", "{share}", "{share}"], "already"),
    "not a number": (["init", "{new}", "{adapters}/rte", "--k", "x"], "--k"),
    "unknown command": (["frobnicate"], "frobnicate"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_exit_code_2_and_nothing_changes(
    run: Run, share: Path, adapters: Path, tmp_path: Path, case: str
) -> None:
    make_adapter(tmp_path / "stranger", 9, base="other/base")
    before = snapshot(tmp_path)
    places = {"new": tmp_path / "new", "share": share, "adapters": adapters}
    arguments, names = BAD[case]
    ran = run(*(a.format(**places) for a in arguments))
    assert ran.code == 2
    assert names in ran.err
    assert ran.out == ""
    assert "Traceback" not in ran.err
    assert snapshot(tmp_path) == before


def test_help_and_version_do_not_import_torch() -> None:
    script = (
        "import sys; sys.argv = ['sharespace', '--help']\n"
        "from sharespace.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("init", "plan", "merge", "prune", "export", "demo"):
        assert command in done.stdout


def test_module_entry_point() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sharespace", "--version"], capture_output=True, text=True
    )
    assert done.stdout.strip() == "0.1.0"


def test_shell_completion_is_there(run: Run) -> None:
    assert "--install-completion" in run("--help").out


def test_info_says_what_a_budget_chose(run: Run, adapters: Path, tmp_path: Path) -> None:
    kept = tmp_path / "s"
    assert run("init", kept, f"{adapters}/*", "--budget", "0.6kB").code == 0
    found = run("info", kept, "--layers", "--json").json
    ways = {way: part["updates"] for way, part in found["stored"].items()}
    assert ways == {"whole": 0, "leading": 0, "per_task": 7, "nothing": 2}
    assert sum(part["bytes"] for part in found["stored"].values()) == found["bytes"]["coefficients"]
    for key in ("layers", "tasks"):
        parts = [one["stored"]["per_task"] for one in found[key].values()]
        assert sum(part["updates"] for part in parts) == 7
        assert sum(part["bytes"] for part in parts) == found["stored"]["per_task"]["bytes"]
    out = " ".join(run("info", kept).out.split())
    size = found["stored"]["per_task"]["bytes"]
    assert "9 updates, as a budget of 600 B chose: 7 stored per task, outside of any" in out
    assert f"subspace ({size} B)" in out
    assert "2 not kept (0 B)" in out
    assert "encoder.0.q" not in out
    assert "encoder.0.q" in run("info", kept, "--layers").out


def test_info_without_a_budget_reads_the_manifest_alone(run: Run, share: Path) -> None:
    layers = run("info", share, "--layers")
    assert "in all directions of their subspace" in layers.out
    assert run("info", share, "--layers", "--json").json["stored"]["whole"]["updates"] > 0
    for file in (share / "objects").iterdir():
        file.unlink()
    assert run("info", share, "--json").json["stored"] is None
    assert run("info", share).code == 0
    assert run("info", share, "--layers").code != 0


def test_tasks_that_lost_much_are_said_and_can_be_refused(
    run: Callable[..., Ran], adapters: Path, tmp_path: Path
) -> None:
    store = tmp_path / "s"
    said = run("init", store, adapters / "sst2", "--k", 2)
    assert "Warning" not in said.out
    refused = run("merge", store, adapters / "rte", "--max-error", 0.1)
    assert refused.code == 2
    assert "max error 10 %" in refused.err
    assert run("history", store, "--json").json["versions"][-1]["version"] == 1
    said = run("merge", store, adapters / "rte")
    assert said.code == 0
    assert "Worst: " in said.out
    assert "may have lost 30% or more" in said.out
    record = run("merge", store, adapters / "mrpc", "--json").json
    assert record["warnings"][0]["kind"] in ("erased", "large-bound")
    room = run("merge", store, f"again={adapters / 'rte'}", "--cap", 12, "--max-error", 0.1)
    assert room.code == 0


def test_combine(run: Run, share: Path, tmp_path: Path) -> None:
    said = run("combine", share, "both", "sst2=0.7", "rte=-0.3", "--heads", "rte")
    assert said.code == 0
    assert "Combined linear sst2:0.7+rte:-0.3 into both: rank 4 to 4 in 3 layers" in said.out
    assert run("info", share, "--json").json["tasks"]["both"]["format"] == "combined"
    options = ("--method", "ties", "--density", 0.5, "--scale", "encoder.1.*=0.5", "--json")
    found = run("combine", share, "trimmed", "sst2=1", "both=1", "--heads", "sst2", *options).json
    source = "ties sst2:1.0+both:1.0, encoder.1.* x 0.5"
    assert (found["version"], found["combined_from"]) == (3, source)
    assert set(found["ranks"]) == {"encoder.0.q", "encoder.0.v", "encoder.1.q"}
    assert run("export", share, "both", tmp_path / "both").code == 0
    assert "combine" in run("history", share).out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["sst2"], "is not NAME=NUMBER"),
        (["sst2=much"], "is not NAME=NUMBER"),
        (["=1"], "is not NAME=NUMBER"),
        (["sst2=1", "sst2=2"], "stands twice"),
        (["sst2=1", "rte=1"], "their heads"),
        (["nobody=1"], "not in this Share model"),
        (["sst2=1", "--density", "0.5"], "'linear' does not have it"),
        (["sst2=nan"], "is not a finite number"),
    ],
)
def test_combine_refuses(run: Run, share: Path, arguments: list[str], why: str) -> None:
    before = snapshot(share)
    said = run("combine", share, "both", *arguments)
    assert said.code == 2
    assert why in said.err
    assert len(said.err.splitlines()) == 1
    assert snapshot(share) == before


def test_combine_beside_a_budget_says_how_much_more_it_is(
    run: Run, adapters: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    run("init", out, f"{adapters}/*", "--budget", "0.6kB")
    said = run("combine", out, "both", "sst2=1", "rte=1", "--heads", "rte").out
    assert "more than the budget, until the next merge splits it again" in said
