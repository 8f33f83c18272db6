"""The arrows between rooms are those of docs/architecture.md, "Who may import whom", and no others."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

L0 = [
    *(
        "constants",
        "errors",
        "images",
        "files",
        "html",
        "extras",
        "bundled",
        "hub",
        "pretrained",
        "progress",
        "settings",
    ),
    "settings_schema",
    "terminal",
    "command_line",
    "front_matter",
    "cpu_settings",
    "image_limits",
    "model_kinds",
    "opening",
]
L1 = ["vision", "conversation"]
L2 = ["model", "contrastive"]
L3 = ["data", "inference", "conversion"]

TORCH_FREE_VISION = [
    *("vision.spec", "vision.TowerSpec", "vision.TowerConfig", "vision.preprocess", "vision.normalise"),
    *("vision.layout", "vision.transforms.preprocess"),
]

# What a room may import besides itself and L0; a name stands for everything below it.
MAY_IMPORT: dict[str, list[str]] = {
    **{room: [] for room in L0},
    **{room: [] for room in L1},
    **dict.fromkeys(L2, L1),
    "data": ["conversation", *TORCH_FREE_VISION],
    "inference": [
        *L1,
        "model",
        *(f"data.{name}" for name in ("records", "record_layouts", "sources", "image_refs", "storage")),
    ],
    "conversion": [*L1, *L2],
    "evaluation": [*L1, *L2, *L3],
    "training": [*L1, *L2, *L3, "evaluation"],
    "serving": ["inference", "conversation", "data.image_refs", "data.fetching"],
    "planning": [*L1, *L2, *L3, "evaluation", "training"],
    "cli": [*L1, *L2, *L3, "evaluation", "training", "serving", "planning"],
    "__init__": ["model"],  # what `import mmchat` itself offers
    "demo": ["inference"],
    "data_tools": ["data.records", "data.sources", "data.shards", "data.parallel", "vision.transforms.elastic"],
    "scripts": ["cli"],
}
TORCH_FREE = ("data_tools", *(room for room in L0 if room != "opening"))  # it counts what torch builds


def imported(source: str, package: str = "") -> set[str]:
    """Dotted names that a module imports, at its top, inside functions, or by a lazily used string."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            home = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {f"{home}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= {node.value} if re.fullmatch(r"mmchat(\.\w+)+", node.value) else set()
    return names


def room_of(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return room_of_name(parts[1]) if parts[0] == "mmchat" else parts[0]


def room_of_name(first: str) -> str:
    return "model" if first == "auto" or first.startswith("MMChat") else first


def violations(path: Path, root: Path = ROOT) -> list[str]:
    room = room_of(path, root)
    package = ".".join(path.relative_to(root).parent.parts)
    found = []
    for name in sorted(imported(path.read_text(encoding="utf-8"), package)):
        top, _, inside = name.partition(".")
        if top == "torch" and room in TORCH_FREE:
            found.append(f"{path.relative_to(root)} ({room}) imports torch")
        if top != "mmchat" or not inside or inside == "__version__":
            continue
        first, _, rest = inside.partition(".")
        target = ".".join(filter(None, (room_of_name(first), rest)))
        allowed = [room, *L0, *MAY_IMPORT[room]]
        if not any(target == known or target.startswith(f"{known}.") for known in allowed):
            found.append(f"{path.relative_to(root)} ({room}) imports {target}")
    return found


def modules() -> list[Path]:
    return sorted(p for folder in ("mmchat", "demo", "data_tools", "scripts") for p in (ROOT / folder).rglob("*.py"))


def test_every_arrow_is_in_the_table():
    assert len(modules()) > 50
    found = [violation for path in modules() for violation in violations(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("place", "source", "violation"),
    [
        ("mmchat/vision/x.py", "from mmchat.conversation import render", "imports conversation.render"),
        ("mmchat/vision/x.py", "def f():\n    from mmchat.model import splice", "imports model.splice"),
        ("mmchat/conversation/x.py", "import mmchat.vision.spec", "imports vision.spec"),
        ("mmchat/images/rgb.py", "from mmchat.data.records import Record", "imports data.records"),
        ("mmchat/images/rgb.py", "import torch", "imports torch"),
        ("mmchat/data/x.py", "from mmchat.model.modeling import MMChatForConditionalGeneration", "imports model.mod"),
        ("mmchat/data/x.py", "from mmchat.vision import load_tower", "imports vision.load_tower"),
        ("mmchat/data/x.py", "from mmchat.auto import MMChatConfig", "imports model.MMChatConfig"),
        ("mmchat/evaluation/x.py", "from mmchat.training import train_step", "imports training.train_step"),
        ("mmchat/inference/x.py", "from ..evaluation import metrics", "imports evaluation.metrics"),
        ("mmchat/contrastive/x.py", '_HOMES = {"a": "mmchat.model.config"}', "imports model.config"),
        ("demo/app.py", "from mmchat.model.directory import load_assistant", "imports model.directory"),
        ("data_tools/x.py", "from mmchat.data.collate import Batch", "imports data.collate"),
        ("data_tools/x.py", "def f():\n    import torch.nn as nn", "imports torch"),
        ("scripts/x.py", "from mmchat.training.trainer import run", "imports training.trainer"),
        ("mmchat/model/x.py", "from mmchat.vision import TowerSpec", None),
        ("mmchat/training/x.py", "from . import loop\nfrom mmchat.evaluation import metrics", None),
        ("demo/app.py", "from mmchat.inference import Generator\nfrom mmchat.errors import UserError", None),
    ],
)
def test_the_checker_sees_a_planted_arrow(tmp_path, place, source, violation):
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(source)
    found = violations(path, root=tmp_path)
    assert len(found) == (violation is not None)
    assert violation is None or violation in found[0]


@pytest.mark.parametrize(
    "module",
    [
        *("mmchat", "mmchat.data.records", "mmchat.data.sources", "mmchat.images", "mmchat.vision", "mmchat.cli.main"),
        *("mmchat.contrastive.config", "mmchat.serving.app", "mmchat.serving.server"),
    ],
)
def test_light_modules_load_no_torch(module):
    code = (
        f"import sys, {module}; print([m for m in ('torch', 'transformers', 'deepspeed', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
