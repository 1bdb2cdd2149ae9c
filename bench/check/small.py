"""What makes any method and any attack a matter of seconds: digits, a network of 0.4 M weights, few strengths."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

TINY = (
    "model=timm",
    "model.name=test_resnet",
    "train.epochs=6",
    "train.lr=0.01",
    "device=cpu",
    "data.test_limit=180",
)
# Small strengths for whatever option a plug-in may have: a new one is covered without an edit here.
SMALL = {
    "epochs": "1",
    "ratios": "[0.3,0.9]",
    "bits": "[8,2]",
    "factors": "[1,10]",
    "lrs": "[0.003]",
    "steps": "[15]",
    "tries": "[1,20]",
    "grind": "[1,1000]",
    "snapshots": "[1]",
    "fractions": "[0.5,1.0]",
    "sigmas": "[0.1,1.0]",
    "strengths": "[0.5]",
    "shares": "[0.5]",
    "shadows": "4",
    "n_bits": "64",
    "k": "128",
    "soups": "2",
    "eps": "[0.01,0.1]",
    "lambdas": "[0,1000]",
    "images": "20",
    "iterations": "2",
    "share": "0.25",
}


def base(more: Sequence[str] = ()) -> list[str]:
    """Of TINY what a command line does not say: one that chooses a group, or another task, says its options."""
    said = {word.lstrip("+~").partition("=")[0] for word in more}
    if "task" in said:
        said |= {"model", "train", "data"}
    return [word for word in TINY if not said & {word.partition("=")[0], word.partition("=")[0].partition(".")[0]}]


def small(cfg: DictConfig) -> list[str]:
    """Overrides of the options of a configuration's method and attack that SMALL has; of a chain, of its steps."""
    nodes = {"method": cfg.method, "attack": cfg.attack}
    if "options" in cfg.attack:
        nodes.pop("attack")
    for name, node in cfg.attack.get("options", {}).items():
        nodes[f"attack.options.{name}"] = node
    # Epochs that are null are the schedule's.
    own = {at: [k for k in node if k != "epochs" or node[k] is not None] for at, node in nodes.items()}
    return [f"{at}.{k}={v}" for at, names in own.items() for k, v in SMALL.items() if k in names]
