"""Records of the same rows under other seeds as one: cells of a sweep, and machines that share the seeds of rows."""

from pathlib import Path

from distillery import store
from distillery.report import records
from distillery.report.statistics import difference, measured

SEEDS = ("seed", "first_seed")


def seeds_of(parameters: dict) -> dict:
    """What shifts the seeds of all sets: 'seed', of the data too, and 'first_seed' where it is not 0."""
    return {name: parameters[name] for name in SEEDS if name == "seed" and name in parameters or parameters.get(name)}


def pool_key(notebook: str, parameters: dict) -> str:
    """`records.record_key` but for what shifts the seeds: records of one such key are of the same rows."""
    return records.record_key(notebook, {name: value for name, value in parameters.items() if name not in SEEDS})


def beside(plain: Path, seeds: dict, digest: str) -> Path:
    """Where the record of other images or seeds lies beside the one in the folder `plain`; `seeds` as `seeds_of` has them."""
    return plain.with_name(f"{plain.name}-{store.identity('results', 1, seeds, digest)[:8]}")


def pool(found: list[dict]) -> list[dict]:
    """Records, those of one `pool` key joined into one at the place of the first; incomplete ones stay as they are.

    A joined record has the sets of all: differences and verdicts are computed anew from them. Sets of one seed on the same split of the data
    count once. Claims that are not about two rows, such as those over classes, stay apart: their `data` says of which seeds they are.
    """
    groups: dict[str, list[dict]] = {}
    for one in found:
        key = one["path"] if one["missing"] or "pool" not in one else f"{one['pool']} {one['scale']}"
        groups.setdefault(key, []).append(one)
    return [group[0] if len(group) == 1 else _joined(group) for group in groups.values()]


def _joined(group: list[dict]) -> dict:
    sets, rows = _sets(group), {}
    keys = sorted({key for one in sets.values() for key in one})
    sets |= {row["name"]: {} for record in group for row in record["rows"] if row["name"] not in sets}  # without a set
    values = {name: [one.get(key, (None, 0.0, 0.0))[0] for key in keys] for name, one in sets.items()}
    for row in (row for record in group for row in record["rows"]):
        if (name := row["name"]) not in rows:
            gap = difference(values[name], values.get(row["against"])) if row["against"] != name else None
            spent = {cost: sum(one[i] for one in sets[name].values()) for i, cost in ((1, "seconds"), (2, "samples"))}
            known = {"accuracies": [one for one in values[name] if one], "measured": measured(values[name])}
            rows[name] = row | known | {"difference": gap} | spent
    joined, apart = {}, []
    for record in group:
        for one in record["claims"]:
            if one.get("judged") and set(filter(None, one["judged"]["rows"])) <= set(values):
                joined.setdefault(one["id"], one)
            else:
                seeds = " ".join(f"{name} {value}" for name, value in seeds_of(record["parameters"]).items())
                apart.append(one | {"data": f"{one['data'] or record['data']['label']}, {seeds}"})
    again = [_claim(one, values, group[0]["scale"]) for one in joined.values()]
    others = [one for one in group[0]["claims"] if one["id"] not in joined]  # of the same families
    claims = records.corrected([*again, *others])[: len(again)] + apart
    costs = {name: sum(one["costs"].get(name) or 0 for one in group) for name in ("seconds_all_runs", "seconds_scoring")}
    return group[0] | {"rows": list(rows.values()), "claims": claims, "costs": costs, "pooled": len(group)}


def _sets(group: list[dict]) -> dict[str, dict[tuple[int, int], tuple[list[float], float, float]]]:
    """Row -> (seed of the data, seed of a set) -> accuracies, seconds and samples of the set."""
    sets: dict[str, dict] = {}
    for record in group:
        seed, first = (record["parameters"].get(name, 0) for name in SEEDS)
        for row in record["rows"]:
            n = len(row["accuracies"])
            for i, one in enumerate(row["accuracies"]):
                sets.setdefault(row["name"], {}).setdefault((seed, seed + first + i), (one, row["seconds"] / n, row["samples"] / n))
    return sets


def _claim(one: dict, values: dict[str, list], scale: str) -> dict:
    (ours, theirs), how = one["judged"]["rows"], {name: value for name, value in one["judged"].items() if name != "rows"}
    how |= {name: one[name] for name in ("published", "against", "margin", "unit", "digits", "data", "family", "further")}
    how |= {"equal": one.get("equal", False)}  # which records from before do not say
    return records.claim(one["id"], one["statement"], one["source"], values[ours], values.get(theirs), **how, scale=scale)
