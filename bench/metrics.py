"""Every metric, interval and verdict of the protocol, each written once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.special import betaincinv, gammaln, logsumexp, stdtrit, xlog1py, xlogy

if TYPE_CHECKING:
    from torch import Tensor

Z95 = 1.959963984540054
BEST = 100.0  # dB, of pictures that are restored exactly
CLAIM = 2.0**-80  # p-value at which an attacker's claim verifies, where the method names none: tries are cheap


def ber(soft: Tensor, message: Tensor) -> float:
    """Bit error rate of soft bits [n] in [0, 1] against message [n]; in [0, 1].

    A soft bit of exactly 0.5, and one that is not a number, carries no information and counts as half an error:
    a detector must not profit from weights that are all zero or all gone.
    """
    soft, truth = soft.detach().cpu(), message.detach().cpu().double()
    read = 0.5 + 0.5 * ((soft > 0.5).double() - (soft < 0.5).double())
    return float((read - truth).abs().mean())


def weakest(soft: Tensor, message: Tensor) -> float:
    """Least soft value [n] given to a right bit, in [0, 1]: below 0.5 a bit is wrong, near it any noise makes it so."""
    soft, truth = soft.detach().double().cpu(), message.detach().cpu()
    return float(soft.where(truth, 1 - soft).min())


def matches(error: float, n: int) -> int:
    """Whole matching bits at bit error rate `error` (half errors are rounded against the claimant)."""
    return math.floor(n * (1 - error) + 1e-6)


def log10_p(error: float, n: int, tails: int = 1, chance: float = 0.5) -> float:
    """log10 P[Binomial(n, chance) >= matches]: how likely a mark that nobody embedded matches at least as well; at 1/2
    a random message. chance 0: only no match at all is likely, 1: anything is.

    tails 2: at least as well or, all bits inverted, at least as badly, for bits that are signs. Summed in logarithms:
    scipy's binom.logsf takes the logarithm of a tail that has already underflowed to 0 (-inf for 2,047 of 2,048), and a
    table needs the number.
    """
    k = np.arange(matches(error if tails == 1 else min(error, 1 - error), n), n + 1)
    terms = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    terms = terms - n * math.log(2) if chance == 0.5 else terms + xlogy(k, chance) + xlog1py(n - k, -chance)
    return min(0.0, (float(logsumexp(terms)) + math.log(tails)) / math.log(10))


def is_detected(log10_p_value: float, alpha: float, readings: int = 1) -> bool:
    """The protocol's verdict on bits: p <= alpha, shared among so many readings of which the best counts (Bonferroni);
    compared with a relative slack of 1e-12 for rounding."""
    return log10_p_value + math.log10(readings) <= math.log10(alpha) + 1e-12


@cache
def matches_needed(n: int, alpha: float, tests: int = 1, chance: float = 0.5) -> int | None:
    """Fewest matches of n that are a detection at alpha, shared among so many tests; None where n cannot reach it."""
    return next((k for k in range(n + 1) if is_detected(log10_p(1 - k / n, n, 1, chance), alpha, tests)), None)


def work_bits(n: int, alpha: float, tails: int = 1, chance: float = 0.5) -> float | None:
    """log2 of the keys that are tried, on average, until one of n bits is detected at alpha, under the binomial null:
    at least -log2 alpha. None where n bits cannot reach it, whoever tries."""
    need = matches_needed(n, alpha, tails, chance)
    return None if need is None else -log10_p(1 - need / n, n, tails, chance) / math.log10(2)


def t_interval(values: Iterable[float]) -> tuple[float, float | None]:
    """Mean and half-width of the 95% t interval over seeds; half-width None for a single value."""
    x = np.asarray([v for v in values if v is not None and not math.isnan(v)], dtype=float)
    if x.size < 2:
        return float(x[0]) if x.size else math.nan, None
    return float(x.mean()), float(stdtrit(x.size - 1, 0.975) * x.std(ddof=1) / math.sqrt(x.size))


def wilson(errors: float, trials: float) -> tuple[float, float]:
    """95% Wilson score interval of a proportion (pooled wrong bits of `trials` bits)."""
    if trials == 0:
        return 0.0, 1.0
    p, z2 = errors / trials, Z95**2
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    # At the ends the exact bound is 0 or 1; the subtraction leaves 1e-17 of it.
    return (0.0 if errors == 0 else centre - half), (1.0 if errors == trials else centre + half)


def pooled(errors: Iterable[float], trials: Iterable[float]) -> tuple[float, float]:
    """95% interval of a proportion from replicates that may differ: Wilson's over the pooled errors of all trials, its
    variance times the replicates' dispersion (chi square over degrees of freedom) where that is above 1."""
    wrong, n = np.asarray([*errors], float), np.asarray([*trials], float)
    total, all_ = float(wrong.sum()), float(n.sum())
    spread = 1.0
    if len(n) > 1 and 0 < total < all_:
        share = total / all_
        spread = max(1.0, float(((wrong - n * share) ** 2 / (n * share * (1 - share))).sum()) / (len(n) - 1))
    return wilson(total / spread, all_ / spread)


def clopper_pearson(hits: int, trials: int) -> tuple[float, float]:
    """Exact 95% interval of a probability of which `hits` of `trials` independent trials came true."""
    low = 0.0 if hits == 0 else float(betaincinv(hits, trials - hits + 1, 0.025))
    high = 1.0 if hits == trials else float(betaincinv(hits + 1, trials - hits, 0.975))
    return low, high


def auc_interval(auc: float, positives: int, negatives: int) -> tuple[float, float]:
    """95% interval of an AUC: the values from which it is Z95 standard errors away at most, with the variance of Hanley
    and McNeil (Radiology 1982) at those values, not at the AUC, where it is 0 at 1 (Newcombe, Stat. Med. 2006)."""
    a = np.linspace(0.0, 1.0, 100_001)
    first, second = a / (2 - a) - a**2, 2 * a**2 / (1 + a) - a**2
    variance = a * (1 - a) + (positives - 1) * first + (negatives - 1) * second
    inside = a[(a - auc) ** 2 <= Z95**2 * variance / (positives * negatives) + 1e-9]
    return float(inside.min()), float(inside.max())


def false_alarm(false_positives: Any, trials: Any, alpha: float) -> bool:
    """Whether random keys verify more often than `alpha` allows: the whole exact interval lies above it."""
    return not missing(false_positives) and clopper_pearson(int(false_positives), int(trials))[0] > alpha


def missing(value: Any) -> bool:
    """True for what a row calls null, whether it comes from JSON (None) or from a DataFrame (nan, NA)."""
    return value is None or value != value or type(value).__name__ in ("NAType", "NaTType")


class Knob(NamedTuple):
    """The axis of an attack's strengths: what it is, with its unit; the value that leaves the victim as it is (None: no
    value does); whether the attack is stronger the higher it is; whether strengths are powers of each other."""

    title: str
    untouched: float | None = 0.0
    rises: bool = True
    log: bool = False


def suspect(knob: str, strength: float | None) -> str:
    """A row's knob and strength, as tables and figures print them."""
    return knob if missing(strength) else f"{knob} {strength:g}"


def is_control(knob: str) -> bool:
    """Whether a row looks for the owner's mark where none is: the host, and what else the judge made `clean`."""
    return knob == "host" or knob.startswith("clean/")


ALIGNED, INVERTED, LATER = "aligned", "inverted", "later claim"


def reading(row: Mapping[str, Any]) -> tuple[float | None, str]:
    """(bit error rate, how) of the reading a verdict rests on: by position, or `aligned` where that says more than
    chance would (p <= 1%) and more than the position; `inverted`: detected with all bits the other way round, whose
    rate counts from 1 downwards."""
    error, how = row.get("ber"), ""
    if missing(error):
        return None, how
    if not missing(row.get("ber_aligned")) and row["log10_p_aligned"] < min(-2.0, row["log10_p"]):
        error, how = row["ber_aligned"], ALIGNED
    if error > 0.5 and chance(row.get("chance")) == 0.5 and not missing(row["detected"]) and bool(row["detected"]):
        return 1 - error, INVERTED
    return error, how


def chance(value: Any) -> float:
    """The probability that a bit matches where nothing was embedded, as a row has it: null is one half."""
    return 0.5 if missing(value) else float(value)


def evidence(row: Mapping[str, Any]) -> float | None:
    """log10 p of the reading that a verdict rests on (`reading`)."""
    positions = missing(row.get("log10_p_aligned")) or row["log10_p_aligned"] >= min(-2.0, row["log10_p"])
    return row["log10_p"] if positions else row["log10_p_aligned"]


def tails(tests: Any, committed: Any) -> int:
    """In how many tails a row's bits count: `tests` are those times the readings, two with a committed copy."""
    return 1 if missing(tests) else int(tests) // (2 if not missing(committed) and bool(committed) else 1)


FALLING = ("bits/byte",)  # utilities of which less is better; of all others, more


def falls(utility_name: Any) -> bool:
    """Whether less of a utility is better, by its name (perhaps with another data set's: top1@cifar100)."""
    return str(utility_name).split("@")[0] in FALLING


def lost(before: Any, after: Any, utility_name: Any) -> Any:
    """How much worse a utility became, signed: before - after where more is better, after - before where less is."""
    return after - before if falls(utility_name) else before - after


def damage(row: Mapping[str, Any]) -> float | None:
    """How much worse the suspect is than the victim (`lost`), signed; None where the attacker changed the task."""
    if missing(row["utility"]) or missing(row["utility_victim"]):
        return None
    return lost(float(row["utility_victim"]), float(row["utility"]), row.get("utility_name"))


NO_HOST, NO_MARK, FEW = "NO HOST", "NO MARK", "TOO FEW TEST "
WORTH = -3.0  # log10 of the p at which a host is worth more than a blind guess


def unsound(row: Mapping[str, Any], goal: str, max_damage: float) -> str:
    """Why nothing can be said of a row's mark, in a word of the protocol's, or "".

    NO HOST                the host's utility is not above a blind guess's (binomial, p > 1e-3)
    NO MARK                the victim does not verify before any attack
    TOO FEW TEST IMAGES    (or TEXTS) a difference of max_damage is within the 95% interval of the victim's
                           utility; a claim and a look are judged without utilities
    """
    if not missing(row.get("log10_p_host")) and row["log10_p_host"] > WORTH + 1e-9:
        return NO_HOST
    seen = row["detected"] if row["knob"] == "none" else row.get("marked")
    if not missing(seen) and not bool(seen):
        return NO_MARK
    if goal in ("forge", "secrecy") or missing(row.get("utility_half")):
        return ""
    return few(row.get("utility_name")) if row["tested"] < 2 or row["utility_half"] > max_damage else ""


def few(utility_name: Any) -> str:
    """TOO FEW TEST IMAGES, or what else a utility is measured on."""
    return FEW + ("TEXTS" if str(utility_name).split("@")[0] in ("bits/byte", "bleu") else "IMAGES")


def above(utility: float, chance: float, count: int) -> float:
    """log10 P[Binomial(count, chance) >= hits] of a utility that is a share of `count` examples, both in percent."""
    return log10_p(1 - utility / 100, count, chance=chance / 100)


def room(utility: float, count: int) -> float:
    """How far Wilson's 95% interval of a utility that is a share of `count` examples reaches from it, in percent."""
    low, high = wilson(utility * count / 100, count)
    return max(utility - 100 * low, 100 * high - utility)


def paired(total: Callable[[Tensor], Tensor], host: Tensor, victim: Tensor, blind: Tensor, sign: int) -> tuple:
    """(log10 p, half) for a utility that is no share of examples: Task.confidence.

    host, victim, blind: what each example adds to that from which `total` makes the utility, [N, ...]. p: of a sign
    test, in how many of N examples the host is worth more than the blind guess (sign -1: less is better), against one
    half. half: half the width of the 95% interval of the victim's utility less the host's, over the same examples, by
    the jackknife: that of a utility alone tells how examples differ, in which networks do not.
    """
    n = len(host)
    better = int((sign * (total(host) - total(blind)) > 0).sum())
    log10 = log10_p(1 - better / n, n)
    if n < 2:
        return log10, 0.0
    left = total(victim.sum(0) - victim) - total(host.sum(0) - host)
    error = float(((n - 1) / n * (left - left.mean()).square().sum()).sqrt())
    return log10, Z95 * error


def verdict(row: Mapping[str, Any], goal: str, max_damage: float) -> str:
    """What the protocol says of one row.

    skipped, failed   from the row's status
    control           the host, or what else is unmarked, under the owner's key ("FALSE ALARM" if it detects, or random
                      keys did on the victim, where the row says how many were tried: see `false_alarm`)
    unmarked          there is no message to look for
    NO HOST, NO MARK, TOO FEW TEST IMAGES   nothing can be said: see `unsound`
    survived          the owner's mark is detected; "survived (aligned)": only after the judge put channels back
    inverted          it is detected, all of its bits the other way round: the mark is there
    removed           it is not, and the model still works (damage <= max_damage)
    destroyed         the mark (or the owner's sole claim) is gone, but so is the model (damage > max_damage)
    lost              it is not detected, on another task, where damage is undefined
    overwritten, ambiguous   the attacker's mark is detected: alone, or beside the owner's
    later claim       it is detected beside the owner's, who committed key and copy before: time decides
    forged, resisted  the claim on the untouched victim passed verification, or did not
    shows, hidden     marked networks are told from unmarked ones (the interval of the AUC is above 1/2), or are not
    """
    if row["status"] != "ok":
        return str(row["status"])
    if missing(row["detected"]):
        return "unmarked"
    word = unsound(row, goal, max_damage)
    owner, claim = bool(row["detected"]), not missing(row["claim_detected"]) and bool(row["claim_detected"])
    if is_control(row["knob"]):
        keys = row.get("false_positives"), row.get("random_keys"), row.get("alpha")
        if owner or false_alarm(*keys):
            return "FALSE ALARM"
        return word if word == NO_HOST and row["knob"] == "host" else "control"
    if word:
        return word
    if goal == "forge" and not missing(row["claim_detected"]):
        return "forged" if claim else "resisted"
    if goal == "secrecy" and not missing(row.get("auc_low")):
        return "shows" if row["auc_low"] > 0.5 else "hidden"
    hurt = damage(row)
    if owner and not claim:
        how = reading(row)[1]
        return how if how == INVERTED else f"survived ({how})" if how else "survived"
    if hurt is not None and hurt > max_damage:
        return "destroyed"
    if claim and owner:
        return LATER if not missing(row.get("committed")) and bool(row["committed"]) else "ambiguous"
    if claim:
        return "overwritten"
    return "lost" if hurt is None else "removed"


def similarity(target: Tensor, given: Tensor, metric: str) -> float:
    """PSNR in dB of the squared error over all pictures (at most BEST), or their mean SSIM; uint8 [N, 3, H, W] each."""
    from skimage.metrics import peak_signal_noise_ratio

    if metric == "psnr":
        with np.errstate(divide="ignore"):
            return min(BEST, float(peak_signal_noise_ratio(target.numpy(), given.numpy(), data_range=255)))
    return float(np.mean(similarities(target, given)))


def similarities(target: Tensor, given: Tensor) -> list[float]:
    """SSIM of each picture, uint8 [N, 3, H, W] each."""
    from skimage.metrics import structural_similarity

    # As Wang et al. (2004) have it: Gaussian window of deviation 1.5, no Bessel correction.
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    pairs = zip(target.numpy(), given.numpy(), strict=True)
    return [structural_similarity(a, b, data_range=255, channel_axis=0, **options) for a, b in pairs]
