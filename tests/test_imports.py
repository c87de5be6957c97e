"""What importing costs: names are imported when they are used, and still work at once."""

import ast
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import eagle_hf
from eagle_hf.cli.main import COMMANDS


PACKAGE = Path(eagle_hf.__file__).parent
LAZY = ["", "checkpoints", "evaluation", "hub", "loading"]


@pytest.fixture(scope="module")
def fresh():
    """What one fresh interpreter prints: modules without and with the package, and what it can do then."""
    models = PACKAGE.parents[1] / "hub_cards"
    code = f"""
import sys
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.models.llama import modeling_llama
print(*sys.modules)
import eagle_hf
print(*sys.modules)
draft = AutoModel.from_pretrained({str(models / "EAGLE3-demo-llama-10m")!r})
target = AutoModelForCausalLM.from_pretrained({str(models / "demo-llama-10m")!r})
output = target.generate(torch.tensor([[1, 2]]), assistant_model=draft, max_new_tokens=4, return_dict_in_generate=True)
print(type(AutoConfig.from_pretrained(draft.name_or_path)).__name__, type(output).__name__)
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return [line.split() for line in printed.splitlines()]


def test_importing_the_package_imports_no_trainer_no_pictures_and_no_more_of_the_hub_than_transformers(fresh):
    before, after = set(fresh[0]), set(fresh[1])
    added = after - before
    assert "eagle_hf.generation.seam" in added
    others = {"huggingface_hub", "datasets", "matplotlib", "accelerate", "PIL", "rich", "pandas", "gradio"}
    assert {name.partition(".")[0] for name in added} & others == set()
    assert "transformers.trainer" not in after
    ours = {name.removeprefix("eagle_hf.") for name in added if name.startswith("eagle_hf.")}
    packages = {name.partition(".")[0] for name in ours}
    assert packages & {"cli", "data", "evaluation", "inspection", "loading", "training", "visualization"} == set()
    assert {name for name in ours if name.startswith("hub.")} <= {"hub.measurements", "hub.training_facts"}


def test_importing_the_package_is_enough_to_draft_and_to_load_by_auto_classes(fresh):
    assert fresh[2] == ["EagleConfig", "EagleGenerateOutput"]


def test_the_command_shows_its_help_without_torch_and_transformers_and_imports_the_package_when_it_runs():
    entry = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text())["project"]["scripts"]["eagle-hf"]
    code = f"""
import contextlib, io, sys
from {entry.partition(":")[0]} import {entry.partition(":")[2]} as main
for words in {[[], *([name] for name in COMMANDS if name != "train")]!r}:  # that has all options of the trainer
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        main([*words, "--help"])
    assert "--help" in shown.getvalue()
print(*sorted({{"torch", "transformers", "huggingface_hub", "numpy"}} & set(sys.modules)), "none")
main(["env"])
import eagle_hf
print(eagle_hf.EagleConfig.model_type, "transformers" in sys.modules)
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    lines = printed.splitlines()
    assert lines[0] == "none"
    assert lines[1].startswith("eagle_hf 0.")
    assert lines[-1] == "eagle True"


@pytest.mark.parametrize("package", LAZY)
def test_lazy_packages_offer_what_they_declare_and_what_type_checkers_see(package):
    module = import_module(f"eagle_hf.{package}".rstrip("."))
    names = module.__all__
    assert names == sorted(names, key=lambda name: (name[0].islower(), name))
    for name in names:
        assert getattr(module, name) is not None
        assert name in dir(module)
    tree = ast.parse((PACKAGE / package / "__init__.py").read_text())
    seen = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(names) <= seen
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing


def test_few_names_stand_at_top_level():
    assert len(eagle_hf.__all__) <= 12


def test_packages_need_no_import_of_their_own():
    for name in ("checkpoints", "evaluation", "hub", "loading", "training", "visualization"):
        assert eagle_hf.__getattr__(name).__name__ == f"eagle_hf.{name}"
