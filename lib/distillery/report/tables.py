"""Tables in Markdown, from records."""

import re

from distillery.report.records import DECIDED, PERCENT
from distillery.report.statistics import counted


def markdown(head: list, rows: list[list]) -> str:
    """A Markdown table; a bar within a cell is escaped."""

    def line(cells: list) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def plain(name: str) -> str:
    """A name, of data for example, in which Markdown finds nothing to do."""
    return re.sub(r"[\\`*\[\]<>$~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", name)


def rows_table(rows: list[dict], against: str = "random", scale: str = "paper") -> str:
    """Rows as Markdown: accuracy with both spreads, difference, steps, seconds a set; published numbers are those of the scale 'paper'."""
    difference = f"difference to {against}, 95% interval"
    other = "published, %" + " (in another setting)" * (scale != "paper" and any(one["published"] for one in rows))
    head = ["method", "ipc", other, "accuracy, %", "± sets", "± networks", "sets x networks", difference, "steps", "seconds a set"]
    lines = []
    for one in rows:
        value, gap = one["measured"], one["difference"]
        named = [one["method"], "-" if one["ipc"] is None else one["ipc"], published(one["published"])]
        if value is None:
            lines.append([*named, "not run", *[""] * 6])
            continue
        spreads = ["-" if value[key] is None else f"{100 * value[key]:.1f}" for key in ("std_sets", "std_networks")]
        itself = gap is None or not any((gap["mean"], *(gap["ci95"] or ())))
        shown = "-" if itself else f"{points(gap)} ({counted(gap)})"
        sizes = [f"{value['n_sets']} x {value['n_networks']}", shown, one["steps"] or "-", f"{one['seconds'] / value['n_sets']:.1f}"]
        lines.append([*named, f"{100 * value['value']:.1f}", *spreads, *sizes])
    return markdown(head, lines)


def rows_by_record(records: list[dict]) -> str:
    """The rows of every record in Markdown, under a heading that names notebook, data and scale."""
    parts = []
    for record in (one for one in records if one["rows"]):
        data = record["data"]
        images = f"{data['train']} training and {data['test']} test images; {minutes(record):.0f} minutes of runs and scores"
        parts.append(f"**{plain(data['label'])}**{features(record)}, {record['notebook']}, {record['scale']} scale: {images}.")
        parts.append(rows_table(record["rows"], record.get("against", "random"), record["scale"]))
    return "\n\n".join(parts)


def features(record: dict) -> str:
    """', encoder efficientnet-lite0' of a record that stands on a network trained before, '' of others."""
    given = record.get("parameters", {}) | record["data"]
    return next((f", {kind} {plain(given[kind])}" for kind in ("encoder", "teacher") if given.get(kind)), "")


def minutes(record: dict) -> float:
    """What all runs and scores of a record took together, a set that several rows share counted once."""
    costs = record["costs"]
    return (costs.get("seconds_all_runs", 0) + costs.get("seconds_scoring", 0)) / 60


def published(value: dict | None) -> str:
    """A published accuracy in percent with its deviation, '-' for none."""
    if value is None:
        return "-"
    return f"{100 * value['mean']:.1f}" + ("" if value["std"] is None else f" ± {100 * value['std']:.1f}")


def points(gap: dict, factor: float = 100, digits: int = 1) -> str:
    """A difference in points with its 95% interval, where it has one: '+3.3 [+2.8, +3.9]'."""
    mean, *bounds = (f"{factor * value:+.{digits}f}" for value in (gap["mean"], *(gap["ci95"] or ())))
    return f"{mean} [{', '.join(bounds)}]" if bounds else mean


def score(one: dict) -> str:
    """'0.313 [0.301, 0.325]' of a score of `robustness`, '+3.3 [+2.8, +3.9]' of a difference."""
    if "mean" in one:
        return points(one)
    return f"{one['value']:.3f}" + (f" [{one['ci95'][0]:.3f}, {one['ci95'][1]:.3f}]" if one["ci95"] else "")


def percent(row: dict | None, unit: str = "", factor: float = 100, digits: int = 1) -> str:
    """'45.1 ± 0.8 (5 x 5)' in percent: the deviation is that of the sets, the last numbers are sets and networks."""
    if row is None:
        return "not run"
    spread = "" if row["std_sets"] is None else f" ± {factor * row['std_sets']:.{digits}f}"
    return f"{factor * row['value']:.{digits}f}{spread}{unit} ({row['n_sets']} x {row['n_networks']})"


def found(claim: dict) -> tuple[str, str]:
    """What a claim measured, and its difference with the interval, in its unit: '0.77 ± 0.04 correlation (20 x 1)', '+0.77 [+0.73, +0.80]
    correlation'; '' for no difference."""
    unit, gap = claim["unit"], claim["difference"]
    how = {"factor": 100 if unit in PERCENT else 1, "digits": claim["digits"]}
    value = percent(claim["measured"], f" {'%' if unit in PERCENT else unit}", **how)
    return value, f"{points(gap, **how)} {unit}" if gap else ""


MEASURED = ["measured (sets x networks)", "difference, 95% interval"]


def table(records: list[dict], further: bool = False) -> str:
    """The claim table in Markdown: what the paper says, what was measured, the verdict; or that of the further comparisons."""
    lines = []
    for record in records:
        for one in (one for one in record["claims"] if one["further"] == further):
            where = plain(f"{one['data'] or record['data']['label']}, {record['scale']}")
            number = published(one["published"])
            met = (not one["against"] or one.get("equal")) and one["verdict"] in DECIDED  # in the published setting
            number += " (other setting)" * (number != "-" and record["scale"] != "paper" and not met)
            lines.append([one["statement"] + " *(ours)*" * (one["source"] == "ours"), where, number, *_cells(one)])
    return markdown(["claim", "data, scale", "published, %", *MEASURED, "p (Holm)" if further else "verdict"], lines)


def verdicts(claims: list[dict]) -> str:
    """Claims in Markdown with what was measured, their verdicts and why; below them further comparisons, without verdicts."""
    told, more = ([one for one in claims if one["further"] == further] for further in (False, True))
    parts = [markdown(["claim", *MEASURED, "verdict", "why"], [[one["statement"], *_cells(one), one["why"]] for one in told])] * bool(told)
    if more:
        parts.append("Further comparisons, with p-values by Holm among all of their kind, and no verdict:")
        parts.append(markdown(["comparison", *MEASURED, "p (Holm)"], [[one["statement"], *_cells(one)] for one in more]))
    return "\n\n".join(parts)


def _cells(claim: dict) -> list[str]:
    value, shown = found(claim)
    gap, known = claim["difference"], claim["published"] or {}
    if sure := gap and gap["ci95"]:
        shown = f"{shown} to {claim['against']} ({counted(gap)}"
        if "difference" in known:  # of accuracies
            shown += f"; published {100 * known['difference']:+.1f}, detectable {50 * (sure[1] - sure[0]):.1f}"
    last = f"{claim['p_holm']:.2g}" if "p_holm" in claim else "-"
    return [value, f"{shown})" if sure else "-", last if claim["further"] else f"**{claim['verdict']}**"]


def cost_table(records: list[dict]) -> str:
    """What every record above smoke cost, in Markdown; a set that several rows share is counted once."""
    lines = []
    for record in records:
        if record["scale"] == "smoke" or not record["rows"]:
            continue
        costs, machine = record["costs"], record["provenance"]
        device = machine["gpu"] or f"{machine['cpu_count']} CPU cores"
        where, runs = plain(f"{record['scale']}, {record['data']['label']}"), costs["runs_computed"] + costs["runs_reused"]
        lines.append([where, record["notebook"], device, runs, f"{costs['samples_all_runs']:,}", f"{minutes(record) / 60:.1f}"])
    if not any(record["scale"] == "paper" for record in records):
        lines.append(["paper", "all", "-", "not run", "", ""])
    return markdown(["scale, data", "notebook", "device", "finished runs", "real images touched", "hours of runs and scores"], lines)
