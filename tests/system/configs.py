"""Configurations in which one value is nonsense: refused in a line that a user understands, or a run like any other."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from tests.helpers import config
from tests.system import forked

NONSENSE = ("nan", "inf", "-inf", "1e30", "-1e30")  # which no number of a configuration may be
MORE = ("-1", "0", "0.5", "text", "''", "true", "null", "[]", "[nan]", "{}", "{a: 1}", "99999999999999999999", "'../x'")
MORE += ("[1, 1]", "[[1]]", "'ä ö'", "'*'", "1000000000")
# Numbers that nothing limits, as the words of a configuration have it: any damage may be allowed.
FREE = re.compile(r"(verify|task)\.max_damage")
OWN = re.compile(r"(device|results_dir|debug|cache\.root|cache\.url|.*_target_|logger.*)$")  # where, not what
SMALL = ("model=timm", "model.name=test_resnet", "train.epochs=1", "data.train_limit=100", "data.test_limit=40")
SMALL += ("verify.keys=5", "device=cpu", "threads=1")
METHODS = ("uchida", "neuralmark", "greedy", "watermas", "vote", "trigger")
ATTACKS = ("prune", "finetune", "quantize", "noise", "overwrite", "forge", "detect", "permute")
RAW = re.compile(r"Traceback|\w+(Error|Exception):|debug=true")
PATIENCE = 20.0  # seconds of CPU of a job that was accepted: it works


def leaves(node: Any, at: str = "") -> list[str]:
    """Dotted names of a configuration's values."""
    if not isinstance(node, DictConfig):
        return [at]
    return [leaf for key in node for leaf in leaves(node._get_node(key), f"{at}.{key}".lstrip("."))]


def mutated(rng: np.random.Generator) -> tuple[list[str], str, str]:
    """A small experiment's words, and one of its options with an odd value."""
    words = [*SMALL, f"method={rng.choice(METHODS)}", f"attack={rng.choice(ATTACKS)}"]
    cfg = config(*words)
    names = [name for name in leaves(cfg) if not OWN.fullmatch(name)]
    name = str(rng.choice(names))
    odd = [*NONSENSE, *MORE]
    if isinstance(OmegaConf.select(cfg, name, throw_on_missing=False), (int, float)) and rng.random() < 0.5:
        odd = [*NONSENSE]
    return words, name, odd[rng.integers(len(odd))]


def number(name: str, words: list[str]) -> bool:
    """Whether an option is a number."""
    return type(OmegaConf.select(config(*words), name)) in (int, float)


def measured(count: int, seed: int, base: Path) -> tuple[Counter[str], list[str]]:
    """Of `count` mutated configurations: how many were `refused`, `accepted`, or ended in a `raw` exception, or were
    `nonsense` and accepted; and what was wrong with whom."""
    base.mkdir(parents=True, exist_ok=True)
    rng, found, wrong = np.random.default_rng(seed), Counter(), []
    log = base / "log"
    for i in range(count):
        words, name, value = mutated(rng)
        folder = base / str(i % 2)  # two results folders, so that stages of one configuration are found by another
        folder.mkdir(exist_ok=True)
        pid = forked.start([*words, f"{name}={value}", f"results_dir={base / 'results'}"], folder, log)
        code, said = _patient(pid), log.read_text()
        last = said.strip().splitlines()[-1:] or [""]
        if code in (1, 2) and last[0].startswith("error: ") and not RAW.search(said):
            kind = "refused"
        elif code in (0, None) and not (value in NONSENSE and number(name, words) and not FREE.fullmatch(name)):
            kind = "accepted"
        else:
            kind = "nonsense" if code in (0, None) else "raw"
            wrong.append(f"{' '.join(words[7:])} {name}={value}: exit {code}: {last[0][:300]}")
        found[kind] += 1
    return found, wrong


def _patient(pid: int) -> int | None:
    """A child's exit status; None for one that is still at work after PATIENCE, which is ended."""
    while _spent(pid) < PATIENCE:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _spent(pid: int) -> float:
    """Seconds of CPU of a process that was not waited for: on a busy machine, refusing too may take minutes."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
