"""The structure that CONTRIBUTING promises: imports go down, nothing imports by config, nothing unpickles freely."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "kdistill"

#: layer of each module or package directly under kdistill: it may import its own layer and those below
LAYERS = [
    {"errors"},
    {"config", "extras", "plugins", "files", "console", "logs", "stopping", "ranks", "launch"},
    {
        "engine",
        "fsdp",
        "channels_last",
        "averaging",
        "metrics",
        "optim",
        "predictions",
        "records",
        "resources",
        "shards",
        "statistics",
        "stored",
        "tally",
        "formats",
        "jobfolder",
        "trackers",
    },
    {"data", "tasks", "classes"},
    {"losses", "models", "estimators", "outside", "features", "pairing", "interface", "exports"},
    {"teachers", "state", "learners", "training_data"},
    {"artifacts", "partial", "identity", "loop", "trial", "footprint", "studies"},
    {"stages", "housekeeping"},
    {"api", "task", "sweeps", "listing", "explaining", "planning", "predicting", "helptext", "words"}
    | {"history", "reporting", "results", "hydra_app", "workers"},
    {"cli", "completion"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))


def part(module: Path) -> str:
    """The layer's name of a module: `kdistill/data/views.py` -> `data`."""
    return module.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(module: Path) -> Iterator[str]:
    """Parts of kdistill that a module imports, those that only type checkers see left out."""
    tree = ast.parse(module.read_text())
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "kdistill":
            names = node.module.split(".")[1:2] or [alias.name for alias in node.names]
            yield from names
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("kdistill."))


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(PACKAGE)))
def test_imports_go_down(module: Path) -> None:
    """No module imports one from a layer above its own; every module has a layer."""
    own = part(module)
    if own == "__init__":
        return
    assert own in RANK, f"{own} has no layer: add it to LAYERS"
    upward = {name for name in imports(module) if RANK[name] > RANK[own]}

    assert upward == set()


def test_only_stages_see_the_whole_config() -> None:
    """`Config` is imported by stages, the key's computation, composing and what is above; not by loop, losses, data."""
    allowed = {"stages", "identity", "config", "api", "task", "sweeps", "cli", "__init__"}
    users = {
        part(module)
        for module in MODULES
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.ImportFrom)
        and node.module == "kdistill.config.schema"
        and any(alias.name == "Config" for alias in node.names)
    }

    assert users <= allowed


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(PACKAGE)))
def test_no_module_is_too_long_and_each_says_what_it_is(module: Path) -> None:
    """A module is one noun: a docstring, at most 330 lines."""
    text = module.read_text()

    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 330


def calls(module: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Call))


def test_nothing_is_unpickled_freely() -> None:
    """Every `torch.load` says `weights_only=True`; numpy never allows pickles; pickle is only subclassed safely."""
    loads = 0
    for module in MODULES:
        for call in calls(module):
            name, keywords = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
            if name == "torch.load":
                loads += 1
                assert keywords.get("weights_only") == "True", module
            assert name not in ("pickle.load", "pickle.loads", "hydra.utils.instantiate", "instantiate"), (
                module
            )
            assert keywords.get("allow_pickle", "False") == "False", module
    assert loads >= 2


def test_no_config_names_code() -> None:
    """No shipped YAML has a `_target_`, and the package never calls what a config names."""
    files = [*ROOT.glob("configs/**/*.yaml"), *MODULES]
    users = {f.name for f in files if re.search(r"\b_target_\b", f.read_text())}

    assert users <= {"safety.py"}  # which refuses it


def test_shipped_files_name_no_host_and_no_machine() -> None:
    """No address of a registry, no path of the machine that something was written on."""
    suffixes = {".py", ".yaml", ".toml", ".md", ".sh", ".txt"}
    files = [
        f for f in ROOT.rglob("*") if f.suffix in suffixes and not set(f.parts) & {".venv", "runs", "build"}
    ]
    words = ["pypi" + ".org", "download.py" + "torch", "/wo" + "rk/", "/tmp/" + "bash_jobs"]
    found = {(f.name, w) for f in files for w in words if w in f.read_text(errors="ignore")}

    assert found == set()
