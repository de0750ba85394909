"""Put our losses, metrics, data set and models into a framework's registries, and start its training."""

from __future__ import annotations

import importlib
import runpy
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qa_hooks.integrations.sr.conventions import FRAMEWORKS, Framework, find_framework
from qa_hooks.integrations.sr.data import framework_dataset, pass_epoch_on
from qa_hooks.integrations.sr.losses import framework_losses
from qa_hooks.integrations.sr.metrics import framework_metrics
from qa_hooks.integrations.sr.model import framework_model


def register(framework: str | None = None) -> list[str]:
    """Put losses, metrics, data set and models into a framework's registries; call it before its training starts.

    Calling it again changes nothing. Besides the registries, the framework's sampler learns to tell our data set the
    epoch; and traiNNer-redux, whose models are in no registry and whose options are a closed list, gets ours in place
    of its own, and the option `qa`.

    Args:
        framework: "basicsr", "traiNNer" or "neosr"; None takes those that Python finds.

    Returns:
        The names that a config may use now.

    Raises:
        ImportError: the framework is missing or does not import; the message says how to get it.
        ValueError: an unknown framework, or a name that somebody else has registered.
    """
    chosen = [f for f in FRAMEWORKS.values() if f.present()] if framework is None else [find_framework(framework)]
    if not chosen:
        sources = ", ".join(f.source for f in FRAMEWORKS.values())
        raise ImportError(f"none of {sources} is on the path: run inside its folder, or put that on PYTHONPATH")
    return [name for each in chosen for name in _register(each)]


def launch(framework: str, arguments: Sequence[str] | None = None) -> None:
    """Register, and start the framework's own training in the folder where this runs.

    Args:
        framework: as in `register`.
        arguments: of its `train.py`, such as `["-opt", "train.yml"]`; those of this process by default.
    """
    found = find_framework(framework)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    sys.argv = ["train.py", *(sys.argv[1:] if arguments is None else arguments)]  # neosr reads them when it is imported
    register(framework)
    if found.package == "basicsr":
        found.module("train").train_pipeline(str(Path.cwd()))
        return
    script = Path("train.py").resolve()
    if not script.is_file():
        raise FileNotFoundError(f"{script} does not exist: start this in the folder of {found.source}")
    runpy.run_path(str(script), run_name="__main__")


def _register(framework: Framework) -> list[str]:
    registries, names = framework.module("utils.registry"), []
    for registry, parts in (
        ("LOSS_REGISTRY", framework_losses(framework)),
        ("METRIC_REGISTRY", framework_metrics(framework)),
        ("DATASET_REGISTRY", [framework_dataset(framework)]),
    ):
        for part in parts:
            names.append(_add(getattr(registries, registry), part, framework))
    pass_epoch_on(framework.module("data.data_sampler").EnlargedSampler)
    if framework.loss_list:
        _replace_models(framework)
        return names
    models = framework.module("models").MODEL_REGISTRY
    for base, degrades in framework.models.items():
        name = f"qa_{base}" if framework.snake_names else f"QA{base.removesuffix('_basicsr')}"
        if base in models:
            names.append(_add(models, framework_model(framework, models.get(base), name, degrades=degrades), framework))
    return names


def _add(registry: Any, part: Any, framework: Framework) -> str:
    """Register under the part's own name, once."""
    name = str(part.__name__)
    if name not in registry:
        registry.register(part)
    elif not str(registry.get(name).__module__).startswith("qa_hooks."):
        owner = registry.get(name)
        raise ValueError(
            f"{framework.name} has {name!r} of {owner.__module__} registered already, so that ours cannot be; rename it"
        )
    return name


def _replace_models(framework: Framework) -> None:
    """traiNNer-redux's `build_model` calls its classes by name, and its options refuse what they do not know."""
    models = framework.module("models")
    for base, degrades in framework.models.items():
        original = getattr(models, base)
        if not str(original.__module__).startswith("qa_hooks."):
            setattr(models, base, framework_model(framework, original, f"QA{base}", degrades=degrades))
    options = framework.module("utils.options")
    if "qa" not in options.ReduxOptions.__annotations__:
        msgspec: Any = importlib.import_module("msgspec")  # the framework's own dependency
        block = ("qa", dict[str, Any] | None, None)
        dataset = framework.module("utils.redux_options").DatasetOptions
        dataset = msgspec.defstruct("DatasetOptions", [block], bases=(dataset,), forbid_unknown_fields=True)
        datasets = ("datasets", types.GenericAlias(dict, (str, dataset)), msgspec.field(default_factory=dict))
        options.ReduxOptions = msgspec.defstruct(
            "ReduxOptions", [block, datasets], bases=(options.ReduxOptions,), forbid_unknown_fields=True
        )
