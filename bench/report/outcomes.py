"""What became of each mark under each attack, in a word."""

from __future__ import annotations

import math

import pandas as pd

from bench import metrics
from bench.metrics import ALIGNED, FEW, INVERTED, LATER, NO_HOST, NO_MARK
from bench.report.words import BEFORE, CELL, power, unit

ALIVE = ("survived", INVERTED, LATER)

UNSOUND = {
    "INVALID": "the unmarked host verifies under the owner's key, or random keys do",
    NO_HOST: "the unmarked network's utility is not above a blind guess's (binomial, p > 1e-3)",
    NO_MARK: "the victim did not verify before any attack",
    FEW: "max_damage is within the 95% interval that so many test examples leave the victim's utility",
}


def _outcome(g: pd.DataFrame) -> tuple[str, str]:
    """Text and kind of one method under one attack, over all its strengths."""
    ok = g[(g["status"] == "ok") & ~g["knob"].isin(BEFORE)]
    if ok.empty:
        return ("failed", "failed") if "failed" in set(g["status"]) else ("n/a", "na")
    if (ok["verdict"] == "unmarked").all():
        return "unmarked", "na"
    if len(forged := ok[ok["verdict"] == "forged"]):
        return f"forged ({', '.join(dict.fromkeys(forged['knob']))})", "bad"
    if ok["goal"].iloc[0] == "forge":
        return _resisted(ok)
    if len(seen := ok[ok["goal"].eq("secrecy") & ok["auc"].notna()]):
        shown = seen[seen["verdict"] == "shows"]
        part = f", {len(shown)}/{len(seen)} seeds" if 0 < len(shown) < len(seen) else ""
        word, kind = ("shows", "bad") if len(shown) else ("hidden", "good")
        return f"{word} (AUC {seen['auc'].astype(float).mean():.2f}{part})", kind
    name, digits = unit(ok["utility_name"].iloc[0])
    point = [ok["knob"], ok["strength"].fillna(-1)]
    gone = ok[ok["verdict"].isin(["removed", "overwritten"])]
    if len(gone):  # the owner's mark is lost either way: what counts is the least damage
        hits = gone["damage"].groupby(point)
        # As the attacker would choose among strengths: the images that the damage is told on are not its to see.
        at = gone["weighed"].fillna(gone["damage"]).groupby(point).mean().fillna(math.inf).idxmin()
        verdict = gone.loc[hits.groups[at], "verdict"].iloc[0]
        k, n = hits.size()[at], ok.groupby(point).size()[at]
        part = f" ({k}/{n} seeds)" if k < n else ""
        return f"{verdict} at {hits.mean()[at]:.{digits}f} {name}{part}", "bad"
    for verdict, text in (("ambiguous", "ambiguous"), ("lost", "lost (new task)")):
        if (ok["verdict"] == verdict).any():
            return text, "warn"
    if "failed" in set(g["status"]):  # what was not tried cannot have been survived
        return "failed", "failed"
    kept = ok[ok["verdict"].str.startswith(ALIVE)]
    alive = kept["reading"].groupby(point).mean()
    how = [f"BER {alive.max():.2f}"] if len(alive) else []
    how += [name for name in (ALIGNED, INVERTED) if (kept["how"] == name).any()]
    # An attack that leaves no model at any strength has shown nothing.
    how += ["model destroyed"] * bool((ok["damage"] > ok["max_damage"]).all() or not len(alive))
    word = LATER if (kept["verdict"] == LATER).any() else "survived"
    return f"{word} ({', '.join(how)})", "good"


def _resisted(ok: pd.DataFrame) -> tuple[str, str]:
    """How many keys were tried, and how many would have to be for a claim to pass: nobody tries as many."""
    n, bar = int(ok["n_bits"].max()), ok["bar"].min()
    tails, chance = metrics.tails(ok["tests"].iloc[0], ok["committed"].iloc[0]), ok["claim_chance"].fillna(0.5).min()
    if (work := metrics.work_bits(n, bar, tails, chance)) is None:
        return f"resisted ({n} bits prove no claim)", "warn"
    tried = ok["strength"][ok["knob"].isin(["tries", "grind"])].max()
    said = [] if math.isnan(tried) else [f"{power(tried)} tries"]
    return f"resisted ({'; '.join([*said, f'2^{math.floor(work)}'])})", "good"


def unsound(df: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    """(method label, model, data) of which nothing can be said, and why in a word: INVALID where a control detects,
    else that of bench.metrics.unsound."""
    found: dict[tuple[str, str, str], str] = {}
    for verdict in (FEW, NO_MARK, NO_HOST, "FALSE ALARM"):  # the last counts
        bad = df[df["verdict"].str.startswith(verdict)]
        for *place, said in bad[["method_label", "model", "data", "verdict"]].drop_duplicates().itertuples(index=False):
            found[tuple(place)] = "INVALID" if said == "FALSE ALARM" else said
    return found


def why(word: str) -> str:
    """What a word of `unsound` says."""
    return UNSOUND[FEW if word.startswith(FEW) else word]


def outcomes(df: pd.DataFrame) -> pd.DataFrame:
    """One line per method and attack (and model, data): `text`, `kind`, `reason` of what is not plain.

    removed and overwritten at the least damage, a mean over the seeds to which it happened (all, unless k/n
    says otherwise). Nothing is said of a method whose control detects, or whose victim did not verify.
    """
    out, wrong = [], unsound(df)
    for key, g in df[df["attack"] != "none"].groupby(CELL, sort=False):
        cell = dict(zip(CELL, key, strict=True))
        bad = g[g["status"] != "ok"]
        notes = dict.fromkeys(f"{s}: {e}" for s, e in zip(bad["status"], bad["error"], strict=True))
        text, kind = _outcome(g)
        word = wrong.get((cell["method_label"], cell["model"], cell["data"]))
        if word and word.startswith(FEW) and not g["verdict"].isin([word]).any():
            word = None  # a claim, or a look: judged without utilities
        if word == "INVALID" or (word and kind not in ("na", "failed")):
            text, kind, notes = word, "invalid", {f"{word}: {why(word)}": None} | notes
        out.append({**cell, "text": text, "kind": kind, "reason": "; ".join(notes)})
    return pd.DataFrame(out, columns=[*CELL, "text", "kind", "reason"])
