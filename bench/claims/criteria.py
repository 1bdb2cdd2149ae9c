"""Criteria of claims (conf/experiment/claims): rows of runs -> held, failed or inconclusive, with the numbers.

A criterion is a function of a claim's runs and of the parameters that its yaml gives. The 95% interval decides: t over
seeds for utility and for differences, paired where two variants share seeds; Wilson for pooled bits; Clopper-Pearson
for counts of successes. Where it does not, and where there is nothing to compare, the verdict is `inconclusive`, and
says why. BER in [0, 1], utility and damage in points of the task's utility.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from bench import metrics
from bench.claims import findings
from bench.claims.findings import FAILED, HELD, OPEN, Finding, Run, by_unit, interval, where, wrong_bits
from bench.types import Row

GRID = 101  # points that two curves are compared at


def no_bit_lost(runs: list[Run], most: float) -> Finding:
    """No bit that the victim had is wrong after the attack, at any strength; seeds pooled.

    One bit refutes it (Wilson's lower end is then above 0). None at all holds where Wilson's upper end is at most
    `most`: fewer bits than that takes show nothing. What is counted is how many more bits are wrong than before: where
    the victims had wrong ones, that is the least that was lost, which can refute and never hold.
    """
    found = []
    before = sum(wrong_bits(run.victim) for run in runs)
    for (knob, strength), pairs in findings.grouped(runs).items():
        lost = sum(max(0.0, wrong_bits(row) - wrong_bits(run.victim)) for run, row in pairs)
        bits = sum(row.n_bits for _, row in pairs)
        each = [max(0.0, wrong_bits(row) - wrong_bits(run.victim)) for run, row in pairs]
        low, high = metrics.pooled(each, [row.n_bits for _, row in pairs])
        verdict = FAILED if low > 0 else HELD if high <= most and not before else OPEN
        cost = findings.mean_damage(row for _, row in pairs)
        text = f"{lost:g} more of {bits} bits wrong" if before else f"{lost:g} of {bits} bits lost"
        text += f" ({findings.percent(lost / bits, low, high)}) at {knob} {findings.number(strength)}"
        found.append((lost / bits, Finding(verdict, f"{text}, damage {cost}")))
    if not found:
        return Finding(OPEN, "the attack made no point at which bits were read")
    whole = findings.worst(found)
    if before:
        return replace(whole, text=f"{whole.text}; {before:g} were wrong before: which ones went is not known")
    return replace(whole, text=f"{whole.text}: too few bits for a verdict") if whole.verdict == OPEN else whole


def survives(runs: list[Run], claimed: bool = False) -> Finding:
    """The owner's mark is detected at every strength; `claimed`: at those where the attacker's mark is read as well.

    At each strength that counts for all seeds, pooled bits: Wilson's upper end at or below the BER that is still
    detected, and every seed detected, holds; its lower end above fails. A mark lost at more than verify.max_damage
    points is not counted: that is the model destroyed. A strength that counts for some seeds is no test where all of
    these are detected; a mark lost in one of them leaves the claim open.
    """
    if not runs:
        return Finding(OPEN, "no such runs")
    verify, n = runs[0].config.verify, runs[0].victim.n_bits
    chance = max(metrics.chance(run.victim.chance) for run in runs)
    need = metrics.matches_needed(n, verify.alpha, runs[0].victim.tests or 1, chance)
    if need is None:
        return Finding(OPEN, f"{n} bits cannot be detected at alpha {verify.alpha:g}")
    limit, units = 1 - need / n, {run.unit for run in runs}

    def counts(row: Row) -> bool:
        hurt = metrics.damage(asdict(row))
        gone = not row.detected and hurt is not None and hurt > verify.max_damage
        return not gone and (bool(row.claim_detected) or not claimed)

    found = []
    for (knob, strength), pairs in findings.grouped(runs, counts).items():
        kept, left = sum(bool(row.detected) for _, row in pairs), units - {run.unit for run, _ in pairs}
        if left and kept == len(pairs):
            continue
        wrong, bits = sum(wrong_bits(row) for _, row in pairs), sum(row.n_bits for _, row in pairs)
        low, high = metrics.pooled([wrong_bits(row) for _, row in pairs], [row.n_bits for _, row in pairs])
        verdict = HELD if high <= limit and kept == len(pairs) else FAILED if low > limit else OPEN
        text = f"BER {wrong / bits:.3f} ({low:.3f} to {high:.3f}) at {knob} {findings.number(strength)}"
        text += f", detected in {kept} of {len(pairs)}"
        if left:
            why = " or the attacker's mark not read" if claimed else ""
            verdict, text = OPEN, f"{text}, {len(left)} not counted (model destroyed{why})"
        found.append((wrong / bits, Finding(verdict, text)))
    if not found:
        what = "at no strength was the attacker's mark read" if claimed else "no strength left the model intact"
        return Finding(OPEN, f"{what} in all {len(units)} runs")
    whole = findings.worst(found)
    return replace(whole, text=f"{whole.text}; detection needs {limit:.3f} or less")


def resists_where_other_falls(runs: list[Run], axis: str, resists: Any, falls: Any, claimed: bool = False) -> Finding:
    """One variant survives (see `survives`), the other fails to at some strength; where it survives, this fails."""
    one, other = survives(where(runs, axis, resists), claimed), survives(where(runs, axis, falls), claimed)
    opposite = {HELD: FAILED, FAILED: HELD, OPEN: OPEN}[other.verdict]
    said = {HELD: "survives as well", FAILED: "does not survive", OPEN: "undecided"}[other.verdict]
    first = {HELD: "survives", FAILED: "does not survive", OPEN: "undecided"}[one.verdict]
    return Finding(
        findings.joint([one.verdict, opposite]), f"{resists} {first}: {one.text}; {falls} {said}: {other.text}"
    )


def not_hurt(runs: list[Run], most: float) -> Finding:
    """Fidelity, what a victim lost of its seed's host's utility, is at most `most` points: t interval over seeds."""
    victims = {run.unit: run.victim for run in runs}
    worse = [metrics.lost(v.utility_host, v.utility_victim, v.utility_name) for v in victims.values()]
    mean, low, high = interval(worse)
    verdict = HELD if high <= most else FAILED if low > most else OPEN
    hosts = np.mean([run.victim.utility_host for run in runs])
    text = f"{mean:+.2f} points lost ({low:+.2f} to {high:+.2f}) of {hosts:.2f}, at most {most:g} asked"
    return Finding(verdict, text)


def verified_everywhere(runs: list[Run], log10_p: float, least: float) -> Finding:
    """Every victim is detected, and at its paper's own p-value, on every network.

    One that is not refutes it. All of them hold where the lower end of Clopper-Pearson's interval is at least `least`;
    fewer marks than that takes leave it open.
    """
    victims = [run.victim for run in by_unit(runs)]
    reached = [metrics.matches_needed(v.n_bits, 10.0**log10_p, 1, metrics.chance(v.chance)) for v in victims]
    if short := [v.n_bits for v, need in zip(victims, reached, strict=True) if need is None]:
        return Finding(OPEN, f"{short[0]} bits cannot reach log10 p <= {log10_p:g}")
    passes = [bool(v.detected) and v.log10_p <= log10_p for v in victims]
    count, n = sum(passes), len(passes)
    low, high = metrics.clopper_pearson(count, n)
    verdict = FAILED if count < n else HELD if low >= least else OPEN
    wrong, bits = sum(map(wrong_bits, victims)), sum(v.n_bits for v in victims)
    found = {v.model: [ok for w, ok in zip(victims, passes, strict=True) if w.model == v.model] for v in victims}
    each = ", ".join(f"{model} {sum(oks)} of {len(oks)}" for model, oks in found.items())
    text = (
        f"{count} of {n} marks at log10 p <= {log10_p:g} ({findings.percent(count / n, low, high)}): {each}; "
        f"{wrong:g} of {bits} bits wrong"
    )
    return Finding(verdict, f"{text}; a verdict takes {findings.enough(least)} marks" if verdict == OPEN else text)


def forged_only(runs: list[Run], axis: str, fails: Any, succeeds: Any, rate: float) -> Finding:
    """Of one variant's marks none is forged, of the other's more than the share `rate`.

    A mark is forged where any claim on it is accepted, and is one trial: an attacker's claims on one mark are made of
    each other. One forged mark refutes the first; none holds where Clopper-Pearson's upper end is below `rate`. The
    second holds where the lower end is above `rate` and fails where the upper end is below it.
    """

    def marks(value: Any) -> list[bool]:
        each = [
            [bool(row.claim_detected) for row in run.points if row.claim_ber is not None]
            for run in by_unit(where(runs, axis, value))
        ]
        return [any(claims) for claims in each if claims]

    one, other = marks(fails), marks(succeeds)
    if not one or not other:
        return Finding(OPEN, "no claims were made on one of the two")
    found = []
    for value, forged in ((fails, one), (succeeds, other)):
        low, high = metrics.clopper_pearson(sum(forged), len(forged))
        if value == fails:
            verdict = FAILED if any(forged) else HELD if high < rate else OPEN
        else:
            verdict = HELD if low > rate else FAILED if high < rate else OPEN
        text = f"{value}: {sum(forged)} of {len(forged)} marks forged"
        found.append(Finding(verdict, f"{text} ({findings.percent(sum(forged) / len(forged), low, high)})"))
    whole = findings.together(found)
    takes = max(findings.enough(rate), findings.enough(1 - rate))
    short = whole.verdict == OPEN and min(len(one), len(other)) < takes
    return replace(whole, text=f"{whole.text}; a verdict takes {takes} marks of each") if short else whole


def hidden_where_other_shows(runs: list[Run], axis: str, hidden: Any, shows: Any, most: float) -> Finding:
    """One variant's marked networks cannot be told from unmarked ones, the other's can.

    By the AUC of attack `detect`, t interval over seeds, each of which trains shadows of its own. Hidden is an interval
    that ends at `most` or below, shown one that begins above; where the other is not shown either, the detector is too
    weak to say anything of the first.
    """

    def measured(value: Any) -> tuple[str, str]:
        found = [row.auc for run in by_unit(where(runs, axis, value)) for row in run.points if row.auc is not None]
        if not found:
            return OPEN, f"{value}: no AUC was measured"
        mean, low, high = interval(found)
        verdict = HELD if high <= most else FAILED if low > most else OPEN
        return verdict, f"{value}: AUC {mean:.3f} ({max(0.0, low):.3f} to {min(1.0, high):.3f})"

    (one, first), (other, second) = measured(hidden), measured(shows)
    verdict = FAILED if one == FAILED else one if other == FAILED else OPEN
    text = f"{first}; {second}; at most {most:g} is hidden"
    return Finding(verdict, text if other == FAILED else f"{text}: a detector that misses {shows} shows nothing")


def fewer_wrong_bits(runs: list[Run], axis: str, better: Any, worse: Any, margin: float) -> Finding:
    """Mean BER over an attack's strengths is lower with `better`: differences paired by seed, t interval.

    Over the strengths that both variants of a seed have. Saving `margin` is what the claim asks: an interval at or
    above it holds, one below it fails, and so does a clear loss. Where `worse` loses less than that there is nothing
    to save, and no verdict.
    """

    def compare(one: Run, other: Run) -> list[float] | str:
        return findings.mean_bers([one, other]) or "the two variants have no strength in common"

    return _paired(runs, axis, better, worse, margin, compare)


def fewer_at_equal_damage(
    runs: list[Run],
    axis: str,
    better: Any,
    worse: Any,
    margin: float,
    resolution: float,
    knobs: list[str] | None = None,
) -> Finding:
    """Fewer wrong bits at equal accuracy loss: differences paired by seed, t interval, as `fewer_wrong_bits` judges.

    A curve for each run: the most bits wrong that any point of the attack brings about for at most so much damage
    (`envelope`), linear between points. The two curves of a seed are compared by their mean over the damage that both
    reach: from 0 to the least of verify.max_damage and the largest damage of either. Where that is less than
    `resolution` points for any seed, curves differ by the noise of the test set, and there is no verdict. knobs: those
    points alone.
    """

    def compare(one: Run, other: Run) -> list[float] | str:
        curves = [findings.envelope(run, knobs) for run in (one, other)]
        reach = min(one.config.verify.max_damage, *(x[-1] for x, _ in curves))
        if reach < resolution:
            return f"one of the two costs {reach:.2f} points of damage at most, and below {resolution:g} all is noise"
        at = np.linspace(0.0, reach, GRID)
        return [float(np.interp(at, x, y).mean()) for x, y in curves]

    return _paired(runs, axis, better, worse, margin, compare)


def falls_with(runs: list[Run], axis: str, margin: float) -> Finding:
    """Mean BER over an attack's strengths falls as an option rises: slopes of lines, one a seed, t interval.

    What a step of 1 saves, judged as in `fewer_wrong_bits`: there is nothing to save where fewer bits are lost at the
    option's least value than `margin` for each step up to its greatest.
    """
    units: dict[tuple, dict[float, Run]] = {}
    for run in runs:
        units.setdefault(run.unit, {})[float(run.choice(axis))] = run
    levels = sorted({x for line in units.values() for x in line})
    full = [findings.mean_bers([line[x] for x in levels]) for line in units.values() if set(line) == set(levels)]
    if len(levels) < 2 or not full:
        return Finding(OPEN, f"no seed has runs at several values of {axis}")
    if None in full:
        return Finding(OPEN, f"the values of {axis} have no strength in common")
    means = np.mean(full, axis=0)
    mean, low, high = interval(-np.polyfit(levels, np.transpose(full), 1)[0])
    verdict, why = _gain(low, high, margin, means[0], margin * (levels[-1] - levels[0]))
    text = ", ".join(f"{x:g}: {y:.4f}" for x, y in zip(levels, means, strict=True))
    return Finding(verdict, f"BER by {axis}: {text}; {mean:+.4f} saved a step ({low:+.4f} to {high:+.4f}){why}")


def components_unchanged(runs: list[Run], most: float) -> Finding:
    """Fine-tuning changes the components by nothing but rounding: t interval over seeds of their relative change where
    the same fine-tuning is done in float64, at most `most`.

    In float32 rounding and a small leak look alike; in float64 rounding is 5e8 times smaller and a leak is what it was.
    Up to one factor common to all components, which weight decay makes. The fine-tuning of each run is made again on
    its cached victim (bench.studies.invariance.fine_tuned).
    """
    from bench.studies.invariance import fine_tuned

    found = [fine_tuned(run.config) for run in by_unit(runs)]
    if any(f["trained"] < 1e3 * most for f in found):
        return Finding(OPEN, "fine-tuning moved the module's kernels too little to show what it leaves alone")
    mean, low, high = interval([f["components_double"] for f in found])
    single, other = (np.mean([f[name] for f in found]) for name in ("components", "trained"))
    return Finding(
        HELD if high <= most else FAILED if low > most else OPEN,
        f"relative change {mean:.1e} ({low:.1e} to {high:.1e}) in float64, {single:.1e} in float32, after "
        f"{found[0]['steps']:g} steps; of the part of the kernels that is trained {other:.1e}",
    )


def equivariant(runs: list[Run], error: float, most: float) -> Finding:
    """Components of permuted and scaled kernels are the permuted and scaled components (t interval over seeds of the
    relative difference, at most `error`), and the attack loses no bit (see `no_bit_lost`)."""
    from bench.studies.invariance import rearranged

    mean, low, high = interval([rearranged(run.config)["difference"] for run in by_unit(runs)])
    verdict = HELD if high <= error else FAILED if low > error else OPEN
    first = Finding(verdict, f"relative difference of the components {mean:.1e} ({low:.1e} to {high:.1e})")
    return findings.together([first, no_bit_lost(runs, most)])


def _paired(
    runs: list[Run], axis: str, better: Any, worse: Any, margin: float, compare: Callable[[Run, Run], list[float] | str]
) -> Finding:
    """BER [better, worse] of runs with the same network, data and seed, or why a pair cannot be compared."""
    one, other = ({run.unit: run for run in where(runs, axis, value)} for value in (better, worse))
    pairs = [compare(one[unit], other[unit]) for unit in one if unit in other]
    if not pairs:
        return Finding(OPEN, f"no seed has both {axis}={better} and {axis}={worse}")
    # Not the other seeds alone: which ones can be compared may depend on how they came out.
    if unlike := [why for why in pairs if isinstance(why, str)]:
        return Finding(OPEN, f"{unlike[0]} ({len(unlike)} of {len(pairs)} pairs)")
    mean, low, high = interval([y - x for x, y in pairs])
    x, y = np.mean(pairs, axis=0)
    verdict, why = _gain(low, high, margin, y, margin)
    return Finding(verdict, f"BER {x:.4f} against {y:.4f}, {mean:+.4f} saved ({low:+.4f} to {high:+.4f}){why}")


def _gain(low: float, high: float, margin: float, at_stake: float, least: float) -> tuple[str, str]:
    """(verdict, why there is none) on the interval of what is saved; `at_stake`: the BER that could be saved.

    A loss as large as the margin is seen whatever there was to save.
    """
    if at_stake < least and high > -margin:
        return OPEN, f": less than {least:g} of the bits is lost without it, so there is nothing to save"
    return HELD if low >= margin else FAILED if high < margin else OPEN, ""


def decide(criterion: str, runs: list[Run], parameters: dict[str, Any]) -> Finding:
    """What a criterion finds on each network, data set and attack by itself, joined: all have to hold.

    What it compares (`axis`) stays together, and so do the networks of `verified_everywhere`, which are its count.
    Raises ConfigError where it would average several configurations.
    """
    axis = parameters.get("axis")
    findings.check_cells(runs, axis)
    whole = {axis, "model" if criterion == verified_everywhere.__name__ else None}
    apart = [key for key in ("model", "data", "attack") if key not in whole]
    parts: dict[tuple, list[Run]] = {}
    for run in runs:
        parts.setdefault(tuple(run.choice(key) for key in apart), []).append(run)
    varied = [len(set(values)) > 1 for values in zip(*parts, strict=True)]
    found = []
    for values, part in parts.items():
        name = ", ".join(str(value) for value, several in zip(values, varied, strict=True) if several)
        finding = CRITERIA[criterion](part, **parameters)
        found.append(replace(finding, text=f"{name}: {finding.text}") if name else finding)
    return findings.together(found)


CRITERIA = {
    criterion.__name__: criterion
    for criterion in (
        no_bit_lost,
        survives,
        resists_where_other_falls,
        not_hurt,
        verified_everywhere,
        forged_only,
        hidden_where_other_shows,
        fewer_wrong_bits,
        fewer_at_equal_damage,
        falls_with,
        components_unchanged,
        equivariant,
    )
}
