"""The documentation is true: commands are accepted, examples run, links and names exist, tables are complete."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import callbacks
from callbacks.export import export_artifact
from callbacks.watchdog import _REMEDIES
from datamodules import EditDataModule, EditRecord, ZsRE
from datamodules.facts import world_facts, world_relations
from editors.artifacts.card import model_card
from editors.base_models.loading import BaseModelConfig
from editors.cli.line import build_parser
from editors.making.registry import registered_methods
from editors.methods.ke.module import KE
from editors.methods.ke.network import KEConfig
from editors.methods.mend.module import MEND
from editors.methods.mend.network import MENDConfig
from editors.methods.serac.module import SERAC
from editors.methods.serac.network import SERACConfig
from editors.training.config import TrainingConfig
from editors.training.module import Editor
from tests.documentation import ROOT, Block, blocks, write_files
from tests.tiny_world import TinyWorld, run

PAGES = sorted(
    [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]
    + [*ROOT.glob("docs/*.md"), *ROOT.glob("editors/methods/*/README.md")]
)
# Stand for something of the reader's, or are made in the course of an example.
_EXAMPLES = re.compile(r"NAME|DATE|my_")


BLOCKS = [block for page in PAGES for block in blocks(page)]


def _commands(start: str) -> list[Any]:
    """Each different command of the documentation that starts so, with the block where it is first."""
    found: dict[str, Block] = {}
    for block in BLOCKS:
        if block.language == "bash":
            for line in block.text.replace("\\\n", " ").splitlines():
                if line.startswith(start):
                    found.setdefault(line, block)
    return [pytest.param(line, block, id=f"{block}-{number}") for number, (line, block) in enumerate(found.items())]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a reader has it: with the configurations, and importable.

    Modules of the examples stay loaded: their classes are found as subclasses as long as the process lives.
    """
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("command", "block"), _commands("python train.py"))
def test_training_commands_are_accepted(
    command: str, block: Block, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(workplace, block.page)
    for saved in re.findall(r"\S*DATE_TIME/config\.yaml", command):
        (workplace / saved).parent.mkdir(parents=True)
        shutil.copy(ROOT / "configs/demo.yaml", workplace / saved)
        shutil.copy(ROOT / "configs/trainer.yaml", (workplace / saved).parent)
    arguments = shlex.split(command)[2:]
    if not any(argument.endswith("help") for argument in arguments) and "--print_config" not in arguments:
        arguments.append("--print_config")
    with pytest.raises(SystemExit) as end:
        run(arguments)
    assert not end.value.code
    assert capsys.readouterr().out


@pytest.mark.parametrize(("command", "block"), _commands("python -m editors"))
def test_commands_of_trained_editors_are_accepted(command: str, block: Block) -> None:
    build_parser().parse_args(shlex.split(command)[3:])


@pytest.mark.parametrize(("command", "block"), _commands("python -m benchmarks"))
def test_benchmarks_exist(command: str, block: Block) -> None:
    assert importlib.util.find_spec(shlex.split(command)[2])


@pytest.mark.parametrize(("command", "block"), _commands("make "))
def test_make_targets_exist(command: str, block: Block) -> None:
    assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("command", "block"), _commands("pip install -e"))
def test_extras_exist(command: str, block: Block) -> None:
    extras = re.findall(r"\[(.*)\]", command)[0].split(",")
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras) <= known.keys()


def test_every_command_is_of_a_kind_that_is_checked() -> None:
    starts = ("python train.py ", "python -m editors ", "python -m benchmarks.", "make ", "pip install ")
    others = ("git clone ", "cd ", ". .venv/bin/activate")
    lines = [
        line for block in BLOCKS if block.language == "bash" for line in block.text.replace("\\\n", " ").splitlines()
    ]
    assert lines
    assert [line for line in lines if line and not line.startswith(starts + others)] == []


# --- examples --------------------------------------------------------------------------------------------------------


def _tiny_mend(world: TinyWorld) -> MEND:
    editor = MEND(BaseModelConfig(str(world.model), dtype="float32", num_blocks=2), MENDConfig(rank=8))
    editor.configure_model()
    return editor


@pytest.fixture(scope="module")
def artifact(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported editor."""
    return export_artifact(_tiny_mend(tiny_world), tmp_path_factory.mktemp("artifact") / "my_editor", {})


def _applying() -> list[Any]:
    card = model_card({
        "editor": "mend", "base_model": {"name": "m", "revision": None}, "architecture": "A", "base_weights": "0",
        "site_widths": {}, "results": {},
    })  # fmt: skip
    blocks = {f"{block}": block.text for block in BLOCKS if block.language == "python" and "load_editor(" in block.text}
    blocks["the card"] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
    return [pytest.param(code, id=where) for where, code in blocks.items()]


@pytest.mark.parametrize("code", _applying())
def test_examples_of_applying_an_editor_run(code: str, artifact: Path, workplace: Path) -> None:
    (workplace / "my_editor").symlink_to(artifact)
    exec(compile(code.replace("path/to/this/folder", "my_editor"), "example", "exec"), {})


def test_the_example_of_a_new_data_set_reads_its_row(workplace: Path) -> None:
    page = ROOT / "docs/data.md"
    write_files(workplace, page)
    row = next(block.text for block in BLOCKS if block.page == page and block.language == "json")
    (workplace / "train.jsonl").write_text(row, encoding="utf-8")
    source = importlib.import_module("my_facts").MyFacts("train.jsonl")
    (record,) = source.read(Path(), skip_invalid=False)
    assert isinstance(record, EditRecord)
    assert (record.subject, record.target_new, record.locality[0].answer) == ("France", "Cairo", "Shakespeare")
    assert record.rephrases


def _data(world: TinyWorld, base_model: BaseModelConfig) -> EditDataModule:
    splits = {split: [ZsRE(f"{split}.json")] for split in ("train", "val", "test")}
    data = EditDataModule(base_model, **splits, path=str(world.data), episodes_per_batch=4)  # type: ignore[arg-type]
    data.setup("fit")
    return data


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=str)
def test_yaml_is_valid(block: Block) -> None:
    assert yaml.safe_load(block.text)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=str)
def test_python_is_valid(block: Block) -> None:
    compile(block.text, str(block), "exec")


# --- names and links -------------------------------------------------------------------------------------------------


def _current(page: Path) -> str:
    """The page without released versions: history names what was there then."""
    return re.split(r"^## \[\d", page.read_text(encoding="utf-8"), maxsplit=1, flags=re.MULTILINE)[0]


def _prose(page: Path) -> str:
    """What the page says of today, without code blocks and comments."""
    return re.sub(r"```.*?```|<!--.*?-->", "", _current(page), flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page))]
    missing = [t for t in targets if t and "://" not in t and not (page.parent / t).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page: Path) -> None:
    folders = "editors|datamodules|callbacks|configs|tests|docs|benchmarks|requirements|[.]ci"
    named = re.findall(rf"`((?:{folders})/[\w./-]*)`", _prose(page))
    missing = [name for name in named if not _EXAMPLES.search(name) and not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_classes_exist(page: Path) -> None:
    text = _current(page)
    for module, name in set(re.findall(r"\b((?:callbacks|datamodules|editors)(?:\.[a-z_]+)*)\.([A-Z]\w+)", text)):
        if not _EXAMPLES.search(module):
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_of_results_are_closed(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in ("results", "benchmarks"):
        opened = re.findall(rf"<!-- {name}(?::\w+)? -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
        assert len(opened) == len(re.findall(rf"^<!-- {name}", text, re.MULTILINE))
        assert all(content.strip() for content in opened)


# --- completeness ----------------------------------------------------------------------------------------------------


def _page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(("editor", "config"), [(KE, KEConfig), (MEND, MENDConfig), (SERAC, SERACConfig)])
def test_the_options_of_editors_are_documented_with_their_defaults(editor: type[Editor], config: type) -> None:
    options = {field.name: field.default for field in dataclasses.fields(config)}
    options |= {name: p.default for name, p in inspect.signature(editor).parameters.items()}
    elsewhere = ("base_model", editor.registered_name, "training")
    own = {name: default for name, default in options.items() if name not in elsewhere}
    _require_rows(_page(f"editors/methods/{editor.registered_name}/README.md"), own)


def test_the_options_that_editors_share_are_documented_with_their_defaults() -> None:
    shared = {field.name: field.default for field in dataclasses.fields(TrainingConfig)}
    _require_rows(_page("docs/configuration.md"), shared)


def _require_rows(text: str, options: dict[str, Any]) -> None:
    """Each option has a row in a table, which says its default."""
    for name, default in options.items():
        row = next((line for line in text.splitlines() if line.startswith("| `") and f"`{name}`" in line), "")
        assert row, f"{name} is missing"
        assert _says(row, default), f"the default of {name} is {default}"


def _says(row: str, default: Any) -> bool:
    """Whether a row of an option table names this default: 0.0001 may be written 1e-4, True true."""
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        return all(_says(row, value) for value in dataclasses.asdict(default).values())
    words = re.findall(r"[\w.+/-]+", row.replace("`", ""))
    if isinstance(default, bool) or not isinstance(default, int | float):
        return str(default).lower() in map(str.lower, words)
    return any(float(word) == default for word in words if re.fullmatch(r"[\d.]+(e-?\d+)?", word))


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(EditRecord)])
def test_the_fields_of_a_record_are_documented(name: str) -> None:
    assert f"| `{name}` |" in _page("docs/data.md")


def test_the_built_in_facts_are_documented() -> None:
    text = _page("docs/data.md")
    for relation in world_relations():
        assert f"| `{relation.name}` | {len(relation.facts)} |" in text
    splits = world_facts(0)
    assert f"**{sum(map(len, splits.values())):,}**" in text
    assert f"{len(splits['train']):,} built-in facts" in _page("README.md")


def test_every_configuration_is_documented() -> None:
    files = [str(path.relative_to(ROOT)) for path in ROOT.glob("configs/**/*.yaml")]
    assert files
    assert [file for file in files if f"`{file}`" not in _page("docs/configuration.md")] == []


def test_every_callback_is_documented() -> None:
    assert [name for name in callbacks.__all__ if f"`callbacks.{name}`" not in _page("docs/configuration.md")] == []


def test_every_fault_of_the_watchdog_is_documented() -> None:
    assert [fault for fault in _REMEDIES if f"| {fault} |" not in _page("docs/troubleshooting.md")] == []


@pytest.mark.parametrize("name", registered_methods())
def test_every_editor_has_a_page(name: str) -> None:
    assert (ROOT / f"editors/methods/{name}/README.md").is_file()


def test_every_metric_is_documented(tiny_world: TinyWorld) -> None:
    editor = _tiny_mend(tiny_world)
    loader: Any = _data(tiny_world, editor.base_model).test_dataloader()
    editor.evaluator.update(next(iter(loader)), generate=True)
    names = editor.evaluator.compute(editor.device)
    text = _page("docs/metrics.md")
    assert len(names) > 10
    assert [name for name in names if f"`{'/'.join(name.split('/')[-2:])}`" not in text] == []
