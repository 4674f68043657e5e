"""Records: what a notebook claims, what it measured, what that cost and where it ran. README tables come from here.

One rule turns numbers into a verdict (`verdict`). A record is written atomically and last; a notebook run counts as
done only by its record.
"""

import math
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # that of typing serves from Python 3.12 on

from distillery import store
from distillery.checks import InputError, check_choice
from distillery.data.load import source_digest
from distillery.names import SCALES
from distillery.report.provenance import notebook_digest, provenance
from distillery.report.statistics import counted, difference, gap_error, measured
from distillery.runs import Runs

SCHEMA = 1
UNJUDGED = ("smoke: not judged", "not testable at this scale", "not run")
DECIDED = ("reproduced", "direction reproduced", "not reproduced")
VERDICTS = (*DECIDED, "inconclusive", "under-powered", "same as random", *UNJUDGED)
FILES = ("encoder", "teacher", "instructions", "language_model")  # parameters that may name a file or a folder
PERCENT = ("points", "%")  # units of numbers that are kept as fractions


def verdict(
    row: dict | None, gap: dict | None, published: dict | None, comparable: bool, margin: float = 0.0, unit: str = "points", digits: int = 1,
    reconstructed: str = "", equal: bool = False,
) -> tuple[str, str]:  # fmt: skip
    """(verdict, why) by one rule, fixed before anything is measured.

    row         `measured(...)` of the claimed method
    gap         `difference(...)` that the claim says is positive, None if the claim is about a value alone
    published   {'mean', 'std'} as fractions, where it is known also 'difference' to the published baseline; or None
    comparable  whether data, network and loops are those of the published number
    margin      and unit and digits of the numbers: as `claim` has them
    reconstructed, equal  as `claim` has them

    An interval that holds both answers detects effects of half its width; it is under-powered where the published difference, from
    -margin on, is smaller. A comparable value, or in its place the difference where a protocol had to be reconstructed, counts as
    reproduced within twice the summed published deviation and standard error of ours, at least one point and at most three.
    """
    if row is None:
        return "not run", "no run of it, or none of what it is compared with, has finished"

    def shown(value: float) -> str:
        return f"{100 * value:.{digits}f}%" if unit in PERCENT else f"{value:.{digits}f}"

    if gap is not None:
        if gap["ci95"] is None:
            return "inconclusive", f"no interval from {counted(gap)}"
        low, high = (bound + margin for bound in gap["ci95"])
        if high < 0 and not equal:
            return "not reproduced", "the whole interval lies on the other side"
        if low <= 0 and not equal:
            why = f"the interval holds both answers; detectable effect {shown((high - low) / 2)}"
            if published is None or "difference" not in published:
                return "inconclusive", why
            weak = abs(published["difference"] + margin) < (high - low) / 2
            return "under-powered" if weak else "inconclusive", f"{why}, published difference {shown(published['difference'])}"
    if published is None or not comparable or reconstructed and (gap is None or "difference" not in published):
        other = "data, network or loops are not the published ones" if published else "it is held against no published number"
        if gap is None:
            return "not testable at this scale", other
        side = f"above -{shown(margin)}" if margin else "on the claimed side"
        return "direction reproduced", f"the whole interval lies {side}; {other}"
    ours, theirs, error = row["value"], published["mean"], (row["std_sets"] or 0) / math.sqrt(row["n_sets"])
    if reconstructed:
        ours, theirs, error = gap["mean"], published["difference"], gap_error(gap)
    tolerance = min(max(0.01, 2 * ((published["std"] or 0) + error)), 0.03)
    distance = abs(ours - theirs)
    why = f"{distance:.1%} from the published {'gain' if reconstructed else 'value'}, tolerance {tolerance:.1%}"
    why += f"; reconstructed: {reconstructed}" if reconstructed else ""
    if distance <= tolerance:
        return "reproduced", why
    if equal and gap["ci95"][0] <= theirs <= gap["ci95"][1]:
        return "inconclusive", f"{why}; the interval holds the published gain"
    return ("not reproduced" if gap is None or equal else "direction reproduced"), why


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
    *,
    unit: str = "points",
    digits: int = 1,
    data: str = "",
    published_baseline: dict | None = None,
    scale: str = "",
    family: str = "",
    further: bool = False,
    same: str = "",
    reconstructed: str = "",
    equal: bool = False,
) -> dict:
    """One claim with its verdict, as long as it stands alone; `corrected` judges those of one kind together.

    ours, baseline  accuracies[set][network] in the same order of seeds, None for a set that has not run; without a
                    baseline the claim is about the value
    against         what the baseline is, in words
    margin          the claim is 'no worse than the baseline by more than this'
    note            what else a reader must know of the comparison, added to `why`
    untestable      why nothing was run, where a condition fixed beforehand is not met; '' = it is
    unit, digits    of what was measured, and how many of its decimals are shown; 'points' = of accuracies, '%' = of other shares
    data            what it was measured on, '' = the data of the notebook
    published_baseline  the published number of the baseline
    scale           'smoke' is not judged
    family          claims of one kind, '' = those whose ids begin with the same word, up to the first '-'
    further         a further comparison: shown with its interval, without a verdict
    same            why what is claimed does not differ from its control, so that no difference can be a finding; '' = it does
    reconstructed   what of the published protocol is not published and had to be filled in, '' = nothing; then gains are compared, not values
    equal           the claim is that the difference is the published one, whatever its sign; it has no p-value
    """
    row = measured(ours)
    if published and published_baseline:
        published = published | {"difference": published["mean"] - published_baseline["mean"]}
    gap = difference(ours, baseline, margin) if against else None
    if against and gap is None:
        row = None  # its comparison has not run
    if gap and equal:
        gap.pop("p")
    verdict_, why = verdict(row, gap, published, comparable, margin, unit, digits, reconstructed, equal)
    if scale == "smoke" and verdict_ not in UNJUDGED:
        verdict_ = "smoke: not judged"
    if untestable:
        verdict_, why = "not testable at this scale", untestable
    if same and verdict_ != "not run":
        verdict_, why = "same as random", same
    why = f"{why}; {note}" if note and verdict_ != "not run" else why
    verdict_ = "" if further and verdict_ != "not run" else verdict_
    return {
        "id": id, "statement": statement, "source": source, "published": published, "measured": row, "difference": gap, "unit": unit,
        "digits": digits, "data": data, "against": against, "margin": margin, "family": family or id.split("-")[0], "further": further,
        "reconstructed": reconstructed, "equal": equal, "verdict": verdict_, "why": why,
    }  # fmt: skip


def corrected(claims: list[dict]) -> list[dict]:
    """Claims and further comparisons with 'p_holm', their p-values among all of their family that can be judged; claims that lose their
    verdict by it say so. Those that cannot be tested or are the same as their control have no verdict to lose, and do not count.

    Step-down: of m p-values the k-th smallest counts m + 1 - k times, and no less than those before it (Holm, Scand. J. Stat. 6, 1979).
    """
    claims, families = [dict(one) for one in claims], {}
    for one in claims:
        if one["difference"] and one["difference"].get("p") is not None and one["verdict"] not in ("same as random", *UNJUDGED[1:]):
            families.setdefault(one["family"], []).append(one)
    for family, members in families.items():
        least = 0.0
        for k, one in enumerate(sorted(members, key=lambda one: one["difference"]["p"])):
            least = one["p_holm"] = min(1.0, max(least, (len(members) - k) * one["difference"]["p"]))
            if one["verdict"] in DECIDED and least >= 0.05:
                one["verdict"] = "inconclusive"
                one["why"] = f"its interval decides alone, not among the {len(members)} comparisons '{family}' (Holm: p = {least:.2g})"
    return claims


def cost(seconds: float, runs: Runs, results: list[dict], scoring: list[dict] = ()) -> dict:
    """Seconds of this start, peak memory, and what all results together cost when they were computed.

    scoring  {'seconds', 'samples'} of each scoring pass that was used
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "seconds_this_start": round(seconds, 1),
        "peak_memory_bytes": peak,
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        "runs_asked": runs.asked,
        "runs_computed": runs.computed,
        "runs_reused": runs.reused,
        "runs_missing": len(runs.missing),
        "seconds_all_runs": round(sum(result["seconds"] for result in results), 1),
        "samples_all_runs": sum(result["samples"] for result in results),
        "seconds_scoring": round(sum(one["seconds"] for one in scoring), 1),
        "samples_scoring": sum(one["samples"] for one in scoring),
    }


def write(path: str | Path, *, notebook: str, against: str = "random", **parts) -> Path:
    """Write a notebook's record, the last thing it does; returns where it lies.

    A complete record is not replaced by one with missing runs, which is put beside it as `record.<key>.json`.

    against  what the differences of the rows are to
    parts    of a record: key (`record_key`), scale, parameters, data, claims, rows, missing, costs
    raises   InputError on parts that are not those of a record
    """
    path = Path(path)
    made = {"schema": SCHEMA, "notebook": notebook, "notebook_digest": notebook_digest(notebook), "against": against} | parts
    made["provenance"] = provenance()
    _check(path, made)
    beside = path.with_name(f"record.{made['key']}.json")
    with suppress(InputError):  # of a file that is no record
        if made["missing"] and not load(path)["missing"]:
            print(f"{path.name} is complete and stays; this one lacks {len(made['missing'])} run(s) and is written to {beside.name}")
            path = beside
    store.write_json(path, made)
    if path != beside:
        beside.unlink(missing_ok=True)
    return path


def record_key(notebook: str, parameters: dict) -> str:
    """Identity of a notebook start: its name, what decides its numbers, and the content of the images and files it names, wherever they lie.

    Raises InputError on images and files that cannot be read.
    """
    given = {name: value for name, value in parameters.items() if name not in ("results_dir", "budget_minutes", "progress", "data_root")}
    if not given.get("first_seed"):  # as before there was one
        given.pop("first_seed", None)
    given |= {name: store.content(given[name]) for name in FILES if name in given}
    if given.get("encoder_root"):
        given["encoder_root"] = source_digest(given.get("encoder_dataset", ""), given["encoder_root"])
    if "other_roots" in given:
        pairs = zip(given["others"], given["other_roots"])
        given["other_roots"] = [root and source_digest(other, root) for other, root in pairs]
    stamp = source_digest(parameters.get("dataset", ""), parameters.get("data_root", ""))
    return store.identity(notebook, SCHEMA, given, stamp)


# what the pages rely on of a record, by its types
_numbers = {
    "published": {"mean": float, "std": float | None},
    "measured": {"value": float, "n_sets": int, "std_sets": float | None, "n_networks": int, "std_networks": float | None},
    "difference": {"mean": float, "ci95": list[float] | None, "n_pairs": int},
    "welch": {"mean": float, "ci95": list[float] | None, "how": Literal["welch"], "n_sets": list[int]},
}
_found = {name: TypedDict(name, kinds) | None for name, kinds in _numbers.items()}
_found["difference"] |= _found.pop("welch")
_Claim = TypedDict("_Claim", _found | {"id": str, "statement": str, "against": str, "verdict": Literal[(*VERDICTS, "")], "why": str})
_Row = TypedDict("_Row", _found | {"method": str, "ipc": int | None, "accuracies": list[list[float]], "steps": int, "seconds": float})
_counts = dict.fromkeys(("samples_all_runs", "runs_computed", "runs_reused"), int)
_costs = dict.fromkeys(("seconds_all_runs", "seconds_scoring"), float) | _counts
_parts = {"notebook": str, "key": str, "scale": Literal[SCALES], "missing": list[dict], "provenance": dict}
_parts |= {"data": TypedDict("_Data", {"label": str, "train": int, "test": int}), "costs": TypedDict("_Costs", _costs, total=False)}
_RECORD = TypeAdapter(TypedDict("_Record", _parts | {"claims": list[_Claim], "rows": list[_Row]}))


class ForeignRecord(InputError):
    """A record.json of another program."""


def _check(path: Path, record) -> None:
    """Raise InputError unless it is a record, naming its file and the first part that is not as it should be."""
    if isinstance(record, dict) and not {"notebook", "key", "claims", "rows"} & set(record):
        raise ForeignRecord(f"{path} is no record; accepted: one of a notebook")
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise InputError(f"{path} is no record; accepted: a JSON object with schema {SCHEMA}")
    try:
        _RECORD.validate_python(record, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; accepted: a record as it was written") from error


def load(path: str | Path) -> dict:
    """A record; its claims say in what unit they are measured, and on what, whether or not they were written with it.

    Raises InputError on a file that cannot be read or is no record.
    """
    record = store.read_json(path)
    _check(Path(path), record)
    for claim in record["claims"]:
        claim |= {"unit": "points", "digits": 1, "data": "", "family": claim["id"].split("-")[0], "further": False} | claim
    return record | {"path": str(path)}


def find(
    root: str | Path, broken: Callable[[InputError], None] | None = None, name: str = "record.json", *, sweeps: bool = False
) -> list[dict]:
    """All records under a results folder, by notebook, largest scale first, that of CIFAR-10 before other data.

    broken  is told of broken records, which are passed over as those of other programs are; it may raise
    name    'record*.json' = also the incomplete ones beside complete ones, which come first
    sweeps  whether those of the cells of its sweeps count too, and whether it may be the folder of a sweep
    """
    found, own = [], f"*/*/*/{name}"
    patterns = [own, f"sweeps/*/*/{own}", f"*/{own}"] if sweeps else [own]
    for path in sorted(path for pattern in patterns for path in Path(root).glob(pattern)):
        try:
            found.append(load(path))
        except InputError as error:
            if broken and not isinstance(error, ForeignRecord):
                broken(error)
    return sorted(found, key=lambda one: (one["notebook"], -SCALES.index(one["scale"]), Path(one["path"]).parent.name != "cifar10"))


def decided(records: list[dict], notebook: str) -> list[tuple[dict, dict]]:
    """(record, claim) for each claim of a notebook on each data set, that of CIFAR-10 first, of records as `find` gives them.

    Further comparisons are left out.

    It is taken from the largest scale above smoke at which it has an interval, else from the largest at which it was measured.
    """
    best: dict[tuple, tuple] = {}
    for record in (one for one in records if one["notebook"] == notebook and one["scale"] != "smoke"):
        name = Path(record["path"]).parent.name
        for claim in (one for one in record["claims"] if not one["further"]):
            sure = 2 if (gap := claim["difference"]) and gap["ci95"] else int(claim["measured"] is not None)
            if sure > best.get((name, claim["id"]), (-1,))[0]:
                best[name, claim["id"]] = sure, record, claim
    return [best[key][1:] for key in sorted(best, key=lambda key: key[0] != "cifar10")]


def sets(claims: list[dict]) -> int:
    """How many sets, splits or classes claims rest on."""
    return sum(one["measured"]["n_sets"] for one in claims if one["measured"])


def tally(claims: list[dict]) -> str:
    """How many claims have which verdict: '23 direction reproduced, 2 not reproduced'; '' for no claims."""
    counts = {verdict: sum(one["verdict"] == verdict for one in claims) for verdict in VERDICTS}
    return ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)


def accuracies(results: list[dict | None]) -> list[list[float] | None]:
    """accuracies[set][network] of stored results, None for those that have not run."""
    return [result["accuracies"] if result else None for result in results]


def best_of(candidates: list[list[dict | None]], by: str = "validation") -> list[dict | None]:
    """For each seed the best of several results, the first of equals; None where one of them has not run.

    candidates  results by seed, of every candidate in the same order of seeds
    by          what decides: 'validation', or 'accuracies', those on test images: an oracle, to be labelled so
    """
    check_choice("by", by, ("validation", "accuracies"))
    by_seed = zip(*candidates, strict=True)
    return [max(results, key=lambda one: float(np.mean(one[by]))) if all(results) else None for results in by_seed]


def pooled(candidates: list[list[dict | None]]) -> list[dict | None]:
    """For each seed all accuracies of several draws in one result, with their mean cost; None where none of them has run.

    Draws of one seed share its classifier and its data order: the seed is what is independent, and what pairs with other rows.
    """
    found = []
    for results in zip(*candidates, strict=True):
        done = [one for one in results if one]
        joined = {name: [value for one in done for value in one[name]] for name in ("accuracies", "validation")}
        costs = {name: float(np.mean([one[name] for one in done])) if done else 0 for name in ("seconds", "samples")}
        found.append(done[0] | joined | costs if done else None)
    return found


def row(
    method: str, ipc: int | None, results: list[dict | None], baseline: list[dict | None] | None = None, published: dict | None = None
) -> dict:
    """One row of a table: a method at a size, over its seeds, with its difference to the baseline.

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
