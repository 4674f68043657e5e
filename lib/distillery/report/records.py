"""Records: what a notebook claims, what it measured, what that cost and where it ran. README tables come from here.

One rule turns numbers into a verdict (`verdict`). A record is written atomically and last; a notebook run counts as
done only by its record.
"""

import math
import resource
import sys
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from distillery import store
from distillery.checks import InputError, check_choice, check_fraction, check_keep, local_path
from distillery.report.provenance import notebook_digest, provenance
from distillery.runs import Runs

SCHEMA = 1
SCALES = ("smoke", "small", "night", "paper")  # smallest first
VERDICTS = ("reproduced", "direction reproduced", "not reproduced", "inconclusive", "not testable at this scale", "not run")


def measured(accuracies: list[list[float] | None] | None) -> dict | None:
    """Summary of one row: accuracies[set][network] as fractions, None for a set that has not run.

    std_sets is the spread of the sets' means (sample standard deviation, None for one set); std_networks the spread
    over evaluation networks within a set, averaged over sets.
    """
    accuracies = [one for one in accuracies or [] if one]
    if not accuracies:
        return None
    means = [float(np.mean(one)) for one in accuracies]
    within = [float(np.std(one, ddof=1)) for one in accuracies if len(one) > 1]
    return {
        "value": float(np.mean(means)),
        "n_sets": len(means),
        "std_sets": float(np.std(means, ddof=1)) if len(means) > 1 else None,
        "n_networks": len(accuracies[0]),
        "std_networks": float(np.mean(within)) if within else None,
    }


def difference(ours: list[list[float]] | None, baseline: list[list[float]] | None) -> dict | None:
    """Paired difference of two rows under the same seeds, with a 95% t-interval over pairs of sets that have both run.

    ci95 is None with fewer than two pairs.
    """
    pairs = [(a, b) for a, b in zip(ours or [], baseline or []) if a and b]
    if not pairs:
        return None
    gaps = np.array([np.mean(a) - np.mean(b) for a, b in pairs])
    ci95 = None
    if len(gaps) > 1:
        half = float(stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / math.sqrt(len(gaps)))
        ci95 = [float(gaps.mean()) - half, float(gaps.mean()) + half]
    return {"mean": float(gaps.mean()), "ci95": ci95, "n_pairs": len(gaps)}


def critical_size(kept: dict[float, list[list[float] | None] | None], full: list[list[float] | None] | None, margin: float) -> dict:
    """The critical sample size: the smallest measured part of the data that, like every larger one, serves as well as all.

    BiLP's m' (ICLR version) = min {|X'| : Acc(X') >= Acc(X) - margin}, made testable: a part is non-inferior if the 95%
    interval of its paired difference to all data lies above -margin, inferior if it lies below, and undecided where it
    holds -margin. Parts are asked from the largest down, until one is not non-inferior; the size is undefined where that one
    is undecided and its interval reaches further below its mean than the margin.

    kept     accuracies[set][network] of each part, by fractions or by images of every class, in the order of the seeds
             of `full`
    full     accuracies[set][network] with all data
    margin   the loss of accuracy that is tolerated, a fraction, fixed before anything is measured
    returns  keep (None where none is found), why, margin, and points: for each part, largest first, mean, ci95, n_pairs of
             the difference, and its verdict: 'non-inferior', 'inferior', 'undecided' or 'not run'
    raises   InputError on a margin outside (0, 1], no part, parts that are not numbers above 0, and fractions beside numbers
    """
    check_fraction("margin", margin)
    for keep in kept:
        check_keep("keep", keep)
    if not kept or min(kept) <= 1 < max(kept):
        raise InputError(f"keep: {sorted(kept)}; accepted: fractions or images of every class, at least one")
    points = {keep: _point(difference(kept[keep], full), margin) for keep in sorted(kept, reverse=True)}
    found, why = None, f"all measured are non-inferior by {margin:.1%}; a smaller one may be too"
    for keep, point in points.items():
        if point["verdict"] == "non-inferior":
            found = keep
            continue
        why = f"{point['verdict']} at {keep:g}"
        if point["ci95"]:
            why += f": {point['mean']:+.1%} [{point['ci95'][0]:+.1%}, {point['ci95'][1]:+.1%}]"
        wide = point["ci95"] is None or point["mean"] - point["ci95"][0] > margin
        if point["verdict"] != "inferior" and wide:
            found, why = None, f"undefined, {why}: no interval as narrow as the margin"
        break
    return {"keep": found, "why": why, "margin": margin, "points": points}


def _point(gap: dict | None, margin: float) -> dict:
    if gap is None:
        return {"mean": None, "ci95": None, "n_pairs": 0, "verdict": "not run"}
    if gap["ci95"] is None:
        return gap | {"verdict": "undecided"}
    low, high = gap["ci95"]
    if low > -margin:
        return gap | {"verdict": "non-inferior"}
    return gap | {"verdict": "inferior" if high < -margin else "undecided"}


def rank_correlation(ours: list[float], theirs: list[float], draws: int = 2000, seed: int = 0) -> dict:
    """Spearman's correlation of two lists, with a bootstrap interval over their entries.

    returns  {'value', 'ci95'}; ci95 None with fewer than four entries, value 0 where one list is constant
    """
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)

    def spearman(chosen) -> float:
        a, b = ours[chosen], theirs[chosen]
        return float(stats.spearmanr(a, b)[0]) if np.ptp(a) and np.ptp(b) else 0.0

    everything, ci95 = np.arange(len(ours)), None
    if len(ours) > 3:
        drawn = np.random.default_rng(seed).integers(len(ours), size=(draws, len(ours)))
        ci95 = [float(q) for q in np.quantile([spearman(one) for one in drawn], [0.025, 0.975])]
    return {"value": spearman(everything), "ci95": ci95}


def verdict(row: dict | None, gap: dict | None, published: dict | None, comparable: bool, margin: float = 0.0) -> tuple[str, str]:
    """(verdict, why) by one rule, fixed before anything is measured.

    row         `measured(...)` of the claimed method
    gap         `difference(...)` that the claim says is positive, None if the claim is about a value alone
    published   {'mean', 'std'} as fractions, or None
    comparable  whether data, network and loops are those of the published number
    margin      the claim is that the difference is above -margin: no worse than by a tolerance fixed beforehand

    A comparable value counts as reproduced within twice the summed published deviation and standard error of our mean,
    at least one point and at most three.
    """
    if row is None:
        return "not run", "no run of it has finished"
    if gap is not None:
        if gap["ci95"] is None:
            return "inconclusive", f"{gap['n_pairs']} pair(s) give no interval"
        low, high = (bound + margin for bound in gap["ci95"])
        if high < 0:
            return "not reproduced", "the whole interval lies on the other side"
        if low <= 0:
            return ("inconclusive", f"the interval holds both answers; detectable effect {(high - low) / 2:.1%}")
    if published is None or not comparable:
        if gap is None:
            return "not testable at this scale", "data, network or loops differ from the published setting"
        other = "no published number is known" if published is None else "data, network or loops are not the published ones"
        side = f"above -{margin:.1%}" if margin else "on the claimed side"
        return "direction reproduced", f"the whole interval lies {side}; {other}"
    error = (row["std_sets"] or 0) / math.sqrt(row["n_sets"])
    tolerance = min(max(0.01, 2 * ((published["std"] or 0) + error)), 0.03)
    distance = abs(row["value"] - published["mean"])
    why = f"{distance:.1%} from the published value, tolerance {tolerance:.1%}"
    if distance <= tolerance:
        return "reproduced", why
    return ("not reproduced" if gap is None else "direction reproduced"), why


def claim(
    id: str,
    statement: str,
    source: str,
    ours: list[list[float] | None] | None,
    baseline: list[list[float] | None] | None = None,
    published: dict | None = None,
    comparable: bool = False,
    against: str = "",
    note: str = "",
    margin: float = 0.0,
    untestable: str = "",
) -> dict:
    """One claim with its verdict.

    ours, baseline  accuracies[set][network] in the same order of seeds, None for a set that has not run; without a
                    baseline the claim is about the value
    against         what the baseline is, in words
    margin          the claim is 'no worse than the baseline by more than this'
    note            what else a reader must know of the comparison, added to `why`
    untestable      why nothing was run, where a condition fixed beforehand is not met; '' = it is
    """
    row = measured(ours)
    gap = difference(ours, baseline) if against else None
    if against and gap is None:
        row = None  # its comparison has not run
    verdict_, why = verdict(row, gap, published, comparable, margin)
    if untestable:
        verdict_, why = "not testable at this scale", untestable
    why = f"{why}; {note}" if note and verdict_ != "not run" else why
    return {
        "id": id,
        "statement": statement,
        "source": source,
        "published": published,
        "measured": row,
        "difference": gap,
        "against": against,
        "margin": margin,
        "verdict": verdict_,
        "why": why,
    }


def cost(seconds: float, runs: Runs, results: list[dict], scoring: list[dict] = ()) -> dict:
    """Seconds of this start, peak memory, and what all results together cost when they were computed.

    scoring  {'seconds', 'samples'} of each scoring pass that was used
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "seconds_this_start": round(seconds, 1),
        "peak_memory_bytes": peak,
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        "runs_computed": runs.computed,
        "runs_reused": runs.reused,
        "runs_missing": len(runs.missing),
        "seconds_all_runs": round(sum(result["seconds"] for result in results), 1),
        "samples_all_runs": sum(result["samples"] for result in results),
        "seconds_scoring": round(sum(one["seconds"] for one in scoring), 1),
        "samples_scoring": sum(one["samples"] for one in scoring),
    }


def write(
    path: str | Path,
    *,
    notebook: str,
    key: str,
    scale: str,
    parameters: dict,
    claims: list[dict],
    rows: list[dict],
    costs: dict,
    data: dict,
    missing: list[dict],
    against: str = "random",
) -> Path:
    """Write a notebook's record, the last thing it does.

    key      identifies notebook and parameters (`record_key`)
    against  what the differences of the rows are to
    """
    for one in claims:
        assert one["verdict"] in VERDICTS, one
    return store.write_json(
        path,
        {
            "schema": SCHEMA,
            "notebook": notebook,
            "notebook_digest": notebook_digest(notebook),
            "key": key,
            "scale": scale,
            "parameters": parameters,
            "data": data,
            "claims": claims,
            "rows": rows,
            "against": against,
            "missing": missing,
            "costs": costs,
            "provenance": provenance(),
        },
    )


def record_key(notebook: str, parameters: dict) -> str:
    """Identity of a notebook start: its name, what decides its numbers, and which files a folder holds."""
    silent = ("results_dir", "budget_minutes", "progress", "data_root")
    deciding = {name: value for name, value in parameters.items() if name not in silent}
    stamp = _stamp(parameters.get("data_root", "")) if parameters.get("dataset") == "folder" else ""
    return store.identity(notebook, SCHEMA, deciding, stamp)


def _stamp(data_root: str) -> str:
    """Tells whether a folder or archive is the one it was: its place, and number, sizes and newest time of its files."""
    root = local_path("data_root", data_root).resolve()
    files = [path.stat() for path in (root.rglob("*") if root.is_dir() else [root]) if path.is_file()]
    newest = max((file.st_mtime_ns for file in files), default=0)
    return store.canonical([str(root), len(files), sum(file.st_size for file in files), newest])


def find(root: str | Path) -> list[dict]:
    """All records under a results folder, by notebook, largest scale first; files that are no records are passed over."""
    order = {scale: -i for i, scale in enumerate(SCALES)}
    records = []
    for path in sorted(Path(root).glob("*/*/*/record.json")):
        try:
            record = store.read_json(path)
        except InputError:
            continue
        if isinstance(record, dict) and record.get("schema") == SCHEMA:
            records.append(record | {"path": str(path)})
    return sorted(records, key=lambda record: (record["notebook"], order.get(record["scale"], 9)))


def accuracies(results: list[dict | None]) -> list[list[float] | None]:
    """accuracies[set][network] of stored results, None for those that have not run."""
    return [result["accuracies"] if result else None for result in results]


def best_of(candidates: list[list[dict | None]], by: str = "validation") -> list[dict | None]:
    """For each seed the best of several results, the first of equals; None where one of them has not run.

    candidates  results by seed, of every candidate in the same order of seeds
    by          what decides: 'validation', or 'accuracies', those on test images: an oracle, to be labelled so
    """
    check_choice("by", by, ("validation", "accuracies"))
    best = []
    for results in zip(*candidates, strict=True):
        best.append(max(results, key=lambda one: float(np.mean(one[by]))) if all(results) else None)
    return best


def row(
    method: str, ipc: int | None, results: list[dict | None], baseline: list[dict | None] | None = None, published: dict | None = None
) -> dict:
    """One row of a table: a method at a size, over its seeds, with its paired difference to the baseline.

    results, baseline  stored results by seed, in the same order of seeds; None = not run
    published          {'mean', 'std'} as fractions, shown beside
    """
    done = [result for result in results if result]
    return {
        "method": method,
        "ipc": ipc,
        "published": published,
        "accuracies": [result["accuracies"] for result in done],
        "measured": measured(accuracies(results)),
        "difference": difference(accuracies(results), accuracies(baseline or [])),
        "steps": max((result["steps"] for result in done), default=0),
        "seconds": sum(result["seconds"] for result in done),
        "samples": sum(result["samples"] for result in done),
        "stored_numbers": done[0]["stored_numbers"] if done else None,
    }
