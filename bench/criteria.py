"""Criteria of claims (conf/experiment/claims): rows of runs -> held, failed or inconclusive, with the numbers.

A criterion is a function of a claim's runs and of the parameters that its yaml gives. The 95% interval decides: t over
seeds for utility and for differences, paired where two variants share seeds; Wilson for pooled bits; Clopper-Pearson
for counts of successes. Where it does not, and where there is nothing to compare, the verdict is `inconclusive`, and
says why. BER in [0, 1], utility and damage in points of the task's utility.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import chain
from typing import Any

import numpy as np

from bench import metrics
from bench.evidence import (
    FAILED,
    HELD,
    OPEN,
    Finding,
    Run,
    by_unit,
    envelope,
    grouped,
    interval,
    joint,
    mean_ber,
    number,
    percent,
    together,
    where,
    worst,
    wrong_bits,
)
from bench.types import Row

GRID = 101  # points that two curves are compared at


def no_bit_lost(runs: list[Run], most: float) -> Finding:
    """No bit that the victim had is wrong after the attack, at any strength; seeds pooled.

    One bit refutes it (Wilson's lower end is then above 0). None at all holds where Wilson's upper end is at most
    `most`: fewer bits than that takes show nothing.
    """
    found = []
    for (knob, strength), pairs in grouped(runs).items():
        lost = sum(max(0.0, wrong_bits(row) - wrong_bits(run.victim)) for run, row in pairs)
        bits = sum(row.n_bits for _, row in pairs)
        low, high = metrics.wilson(lost, bits)
        verdict = FAILED if low > 0 else HELD if high <= most else OPEN
        cost = np.mean([metrics.damage(asdict(row)) or 0.0 for _, row in pairs])
        text = f"{lost:g} of {bits} bits lost ({percent(lost / bits, low, high)}) at {knob} {number(strength)}"
        found.append((lost / bits, Finding(verdict, f"{text}, damage {cost:+.1f} points")))
    if not found:
        return Finding(OPEN, "the attack made no point at which bits were read")
    whole = worst(found)
    return replace(whole, text=f"{whole.text}: too few bits for a verdict") if whole.verdict == OPEN else whole


def survives(runs: list[Run], claimed: bool = False) -> Finding:
    """The owner's mark is detected at every strength; `claimed`: at those where the attacker's mark is read as well.

    At each strength that counts for all seeds, pooled bits: Wilson's upper end at or below the BER that is still
    detected, and every seed detected, holds; its lower end above fails. A mark lost at more than verify.max_damage
    points is not counted: that is the model destroyed.
    """
    if not runs:
        return Finding(OPEN, "no such runs")
    verify, n = runs[0].config.verify, runs[0].victim.n_bits
    need = metrics.matches_needed(n, verify.alpha)
    if need is None:
        return Finding(OPEN, f"{n} bits cannot be detected at alpha {verify.alpha:g}")
    limit, units = 1 - need / n, {run.unit for run in runs}

    def counts(row: Row) -> bool:
        hurt = metrics.damage(asdict(row))
        gone = not row.detected and hurt is not None and hurt > verify.max_damage
        return not gone and (bool(row.claim_detected) or not claimed)

    found = []
    for (knob, strength), pairs in grouped(runs, counts).items():
        if {run.unit for run, _ in pairs} != units:
            continue
        wrong, bits = sum(wrong_bits(row) for _, row in pairs), sum(row.n_bits for _, row in pairs)
        low, high = metrics.wilson(wrong, bits)
        kept = sum(bool(row.detected) for _, row in pairs)
        verdict = HELD if high <= limit and kept == len(pairs) else FAILED if low > limit else OPEN
        text = f"BER {wrong / bits:.3f} ({low:.3f} to {high:.3f}) at {knob} {number(strength)}"
        found.append((wrong / bits, Finding(verdict, f"{text}, detected in {kept} of {len(pairs)}")))
    if not found:
        what = "at no strength was the attacker's mark read" if claimed else "no strength left the model intact"
        return Finding(OPEN, f"{what} in all {len(units)} runs")
    whole = worst(found)
    return replace(whole, text=f"{whole.text}; detection needs {limit:.3f} or less")


def resists_where_other_falls(runs: list[Run], axis: str, resists: Any, falls: Any, claimed: bool = False) -> Finding:
    """One variant survives (see `survives`), the other fails to at some strength; where it survives, this fails."""
    one, other = survives(where(runs, axis, resists), claimed), survives(where(runs, axis, falls), claimed)
    opposite = {HELD: FAILED, FAILED: HELD, OPEN: OPEN}[other.verdict]
    said = {HELD: "survives as well", FAILED: "does not survive", OPEN: "undecided"}[other.verdict]
    first = {HELD: "survives", FAILED: "does not survive", OPEN: "undecided"}[one.verdict]
    return Finding(joint([one.verdict, opposite]), f"{resists} {first}: {one.text}; {falls} {said}: {other.text}")


def not_hurt(runs: list[Run], most: float) -> Finding:
    """Fidelity, host - victim with the same seed, is at most `most` points: t interval over seeds."""
    lost = {run.unit: run.victim.utility_host - run.victim.utility_victim for run in runs}
    mean, low, high = interval(lost.values())
    verdict = HELD if high <= most else FAILED if low > most else OPEN
    hosts = np.mean([run.victim.utility_host for run in runs])
    text = f"{mean:+.2f} points lost ({low:+.2f} to {high:+.2f}) of {hosts:.2f}, at most {most:g} asked"
    return Finding(verdict, text)


def verified_everywhere(runs: list[Run], log10_p: float, least: float) -> Finding:
    """Every victim is detected, and at its paper's own p-value, on every network.

    One that is not refutes it. All of them hold where the lower end of Clopper-Pearson's interval is at least `least`.
    """
    victims = [run.victim for run in by_unit(runs)]
    if short := [v.n_bits for v in victims if metrics.matches_needed(v.n_bits, 10.0**log10_p) is None]:
        return Finding(OPEN, f"{short[0]} bits cannot reach log10 p <= {log10_p:g}")
    passes = [bool(v.detected) and v.log10_p <= log10_p for v in victims]
    count, n = sum(passes), len(passes)
    low, high = metrics.clopper_pearson(count, n)
    verdict = FAILED if count < n else HELD if low >= least else OPEN
    wrong, bits = sum(map(wrong_bits, victims)), sum(v.n_bits for v in victims)
    found = {v.model: [ok for w, ok in zip(victims, passes, strict=True) if w.model == v.model] for v in victims}
    each = ", ".join(f"{model} {sum(oks)} of {len(oks)}" for model, oks in found.items())
    return Finding(
        verdict,
        f"{count} of {n} marks at log10 p <= {log10_p:g} ({percent(count / n, low, high)}): {each}; "
        f"{wrong:g} of {bits} bits wrong",
    )


def forged_only(runs: list[Run], axis: str, fails: Any, succeeds: Any, rate: float) -> Finding:
    """No claim on the marks of one variant is accepted; of the other's more than the share `rate` of marks is forged.

    A claim accepted refutes the first; none holds where Clopper-Pearson's upper end over all claims is below `rate`.
    The second holds where the lower end over marks, each forged or not by the best claim, is above `rate`, and fails
    where no claim was accepted and the upper end over all claims is below it.
    """

    def made(value: Any) -> list[list[bool]]:
        each = [
            [bool(row.claim_detected) for row in run.points if row.claim_ber is not None]
            for run in where(runs, axis, value)
        ]
        return [claims for claims in each if claims]

    one, other = made(fails), made(succeeds)
    if not one or not other:
        return Finding(OPEN, "no claims were made on one of the two")
    flat, all_other = [*chain(*one)], [*chain(*other)]
    low, high = metrics.clopper_pearson(sum(flat), len(flat))
    first = Finding(
        FAILED if any(flat) else HELD if high < rate else OPEN,
        f"{fails}: {sum(flat)} of {len(flat)} claims accepted ({percent(sum(flat) / len(flat), low, high)})",
    )
    forged = sum(map(any, other))
    low, high = metrics.clopper_pearson(forged, len(other))
    never = not any(all_other) and metrics.clopper_pearson(0, len(all_other))[1] < rate
    second = Finding(
        HELD if low > rate else FAILED if never else OPEN,
        f"{succeeds}: {forged} of {len(other)} marks forged ({percent(forged / len(other), low, high)}), "
        f"{sum(all_other)} of {len(all_other)} claims accepted",
    )
    return together([first, second])


def fewer_wrong_bits(runs: list[Run], axis: str, better: Any, worse: Any, margin: float) -> Finding:
    """Mean BER over an attack's strengths is lower with `better`: differences paired by seed, t interval, each attack.

    An interval above 0 holds; one below `margin` fails: what it could still save is less than that.
    """

    def compare(one: Run, other: Run) -> tuple[float, float]:
        return mean_ber(one), mean_ber(other)

    return _paired(runs, axis, better, worse, margin, compare)


def fewer_at_equal_damage(
    runs: list[Run], axis: str, better: Any, worse: Any, margin: float, knobs: list[str] | None = None
) -> Finding:
    """Fewer wrong bits at equal accuracy loss: differences paired by seed, t interval, each attack by itself.

    A curve for each run: the most bits wrong that any point of the attack brings about for at most so much damage
    (`envelope`), linear between points. The two curves of a seed are compared by their mean over the damage that both
    reach: from 0 to the least of verify.max_damage and the largest damage of either. An interval of the difference
    above 0 holds; one below `margin` fails. knobs: those points alone.
    """

    def compare(one: Run, other: Run) -> tuple[float, float]:
        curves = [envelope(run, knobs) for run in (one, other)]
        reach = min(one.config.verify.max_damage, *(x[-1] for x, _ in curves))
        at = np.linspace(0.0, reach, GRID)
        return tuple(float(np.interp(at, x, y).mean()) for x, y in curves)

    return _paired(runs, axis, better, worse, margin, compare)


def falls_with(runs: list[Run], axis: str, margin: float) -> Finding:
    """Mean BER over an attack's strengths falls as an option rises: slopes of lines, one a seed, t interval.

    What a step of 1 saves: an interval above 0 holds, one below `margin` fails.
    """
    units: dict[tuple, dict[float, float]] = {}
    for run in runs:
        units.setdefault(run.unit, {})[float(run.choice(axis))] = mean_ber(run)
    levels = sorted({x for line in units.values() for x in line})
    full = [[line[x] for x in levels] for line in units.values() if set(line) == set(levels)]
    if len(levels) < 2 or not full:
        return Finding(OPEN, f"no seed has runs at several values of {axis}")
    text = ", ".join(f"{x:g}: {y:.4f}" for x, y in zip(levels, np.mean(full, axis=0), strict=True))
    if not np.any(full):
        return Finding(OPEN, f"no bit is lost at any value of {axis} ({text}): nothing to compare")
    mean, low, high = interval(-np.polyfit(levels, np.transpose(full), 1)[0])
    return Finding(
        _gain(low, high, margin), f"BER by {axis}: {text}; {mean:+.4f} saved a step ({low:+.4f} to {high:+.4f})"
    )


def components_unchanged(runs: list[Run], most: float) -> Finding:
    """Fine-tuning changes the components at most by `most` of their norm each step: t interval over seeds.

    Up to one factor common to all, which weight decay makes. The fine-tuning of each run is made again on its cached
    victim (bench.invariance.fine_tuned).
    """
    from bench.invariance import fine_tuned

    found = [fine_tuned(run.config) for run in by_unit(runs)]
    if any(f["trained"] <= most * f["steps"] for f in found):
        return Finding(OPEN, "fine-tuning moved the module's kernels too little to show what it leaves alone")
    mean, low, high = interval([f["components"] / f["steps"] for f in found])
    whole, other = (np.mean([f[name] for f in found]) for name in ("components", "trained"))
    return Finding(
        HELD if high <= most else FAILED if low > most else OPEN,
        f"relative change {mean:.1e} a step ({low:.1e} to {high:.1e}), {whole:.1e} after {found[0]['steps']:g}; "
        f"the part of the kernels that is trained: {other:.1e}",
    )


def equivariant(runs: list[Run], error: float, most: float) -> Finding:
    """Components of permuted and scaled kernels are the permuted and scaled components (t interval over seeds of the
    relative difference, at most `error`), and the attack loses no bit (see `no_bit_lost`)."""
    from bench.invariance import rearranged

    mean, low, high = interval([rearranged(run.config)["difference"] for run in by_unit(runs)])
    verdict = HELD if high <= error else FAILED if low > error else OPEN
    first = Finding(verdict, f"relative difference of the components {mean:.1e} ({low:.1e} to {high:.1e})")
    return together([first, no_bit_lost(runs, most)])


def _paired(
    runs: list[Run],
    axis: str,
    better: Any,
    worse: Any,
    margin: float,
    compare: Callable[[Run, Run], tuple[float, float]],
) -> Finding:
    """One finding for each attack, joined: BER (better, worse) of runs with the same network and seed."""
    found = []
    for attack in dict.fromkeys(run.choice("attack") for run in runs):
        here = where(runs, "attack", attack)
        one, other = ({run.unit: run for run in where(here, axis, value)} for value in (better, worse))
        pairs = [compare(one[unit], other[unit]) for unit in one if unit in other]
        if not pairs:
            found.append(Finding(OPEN, f"{attack}: no seed has both {axis}={better} and {axis}={worse}"))
        elif not np.any(pairs):
            found.append(Finding(OPEN, f"{attack}: neither loses a bit, so there is nothing to compare"))
        else:
            mean, low, high = interval([y - x for x, y in pairs])
            x, y = np.mean(pairs, axis=0)
            text = f"{attack}: BER {x:.4f} against {y:.4f}, {mean:+.4f} saved ({low:+.4f} to {high:+.4f})"
            found.append(Finding(_gain(low, high, margin), text))
    return together(found) if found else Finding(OPEN, "no runs to compare")


def _gain(low: float, high: float, margin: float) -> str:
    return HELD if low > 0 else FAILED if high < margin else OPEN


CRITERIA = {
    criterion.__name__: criterion
    for criterion in (
        no_bit_lost,
        survives,
        resists_where_other_falls,
        not_hurt,
        verified_everywhere,
        forged_only,
        fewer_wrong_bits,
        fewer_at_equal_damage,
        falls_with,
        components_unchanged,
        equivariant,
    )
}
