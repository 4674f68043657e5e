"""Tables in Markdown, from records."""


def markdown(head: list, rows: list[list]) -> str:
    """A Markdown table; a bar within a cell is escaped."""

    def line(cells: list) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def rows_table(rows: list[dict], against: str = "random") -> str:
    """Rows as Markdown: accuracy with both spreads, paired difference, steps, seconds a set."""
    head = [
        "method",
        "ipc",
        "published, %",
        "accuracy, %",
        "± sets",
        "± networks",
        "sets x networks",
        f"difference to {against}, 95% interval",
        "steps",
        "seconds a set",
    ]
    lines = []
    for one in rows:
        value, gap, ipc = one["measured"], one["difference"], "-" if one["ipc"] is None else one["ipc"]
        if value is None:
            lines.append([one["method"], ipc, published(one["published"]), "not run", *[""] * 6])
            continue
        spreads = ["-" if value[key] is None else f"{100 * value[key]:.1f}" for key in ("std_sets", "std_networks")]
        shown = "-" if gap is None or one["method"].split(",")[0] == against else points(gap)
        cells = [
            one["method"],
            ipc,
            published(one["published"]),
            f"{100 * value['value']:.1f}",
            *spreads,
            f"{value['n_sets']} x {value['n_networks']}",
            shown,
        ]
        lines.append([*cells, one["steps"] or "-", f"{one['seconds'] / value['n_sets']:.1f}"])
    return markdown(head, lines)


def rows_by_record(records: list[dict]) -> str:
    """The rows of every record in Markdown, under a heading that names notebook, data and scale."""
    parts = []
    for record in records:
        if not record["rows"]:
            continue
        data, cost = record["data"], record["costs"]
        head = (
            f"**{data['label']}**, {record['notebook']}, {record['scale']} scale: {data['train']} training and {data['test']} test images"
        )
        spent = f"; {cost['seconds_all_runs'] / 60:.0f} minutes of runs" if "seconds_all_runs" in cost else ""
        parts += [head + spent + ".", rows_table(record["rows"], record.get("against", "random"))]
    return "\n\n".join(parts)


def published(value: dict | None) -> str:
    """A published accuracy in percent with its deviation, '-' for none."""
    return "-" if value is None else f"{100 * value['mean']:.1f} ± {100 * value['std']:.1f}"


def points(gap: dict) -> str:
    """A difference in points with its 95% interval, where it has one: '+3.3 [+2.8, +3.9]'."""
    shown = f"{100 * gap['mean']:+.1f}"
    return f"{shown} [{100 * gap['ci95'][0]:+.1f}, {100 * gap['ci95'][1]:+.1f}]" if gap["ci95"] else shown


def percent(row: dict | None) -> str:
    """'45.1 ± 0.8 (5 sets x 5 networks)' in percent; the deviation is that of the sets."""
    if row is None:
        return "not run"
    spread = "" if row["std_sets"] is None else f" ± {100 * row['std_sets']:.1f}"
    return f"{100 * row['value']:.1f}{spread} ({row['n_sets']} x {row['n_networks']})"


def table(records: list[dict]) -> str:
    """The claim table in Markdown: what the paper says, what was measured, the verdict."""
    head = ["claim", "data, scale", "published", "measured, % (sets x networks)", "difference, 95% interval", "verdict"]
    lines = []
    for record in records:
        where = f"{record['data']['label']}, {record['scale']}"
        for one in record["claims"]:
            lines.append(
                [one["statement"], where, published(one["published"]), percent(one["measured"]), _difference(one), f"**{one['verdict']}**"]
            )
    return markdown(head, lines)


def verdicts(claims: list[dict]) -> str:
    """Claims in Markdown with what was measured, their verdicts and why."""
    head = ["claim", "measured, % (sets x networks)", "difference, 95% interval", "verdict", "why"]
    return markdown(
        head, [[one["statement"], percent(one["measured"]), _difference(one), f"**{one['verdict']}**", one["why"]] for one in claims]
    )


def _difference(claim: dict) -> str:
    gap = claim["difference"]
    return f"{points(gap)} to {claim['against']}" if gap and gap["ci95"] else "-"


def cost_table(records: list[dict]) -> str:
    """What the finished rows of every record above smoke cost, in Markdown."""
    lines = []
    for record in records:
        if record["scale"] == "smoke" or not record["rows"]:
            continue
        device = record["provenance"]["gpu"] or f"{record['provenance']['cpu_count']} CPU cores"
        sets = sum(len(row["accuracies"]) for row in record["rows"])
        touched, seconds = (sum(row[name] for row in record["rows"]) for name in ("samples", "seconds"))
        where = f"{record['scale']}, {record['data']['label']}"
        lines.append([where, record["notebook"], device, sets, f"{touched:,}", f"{seconds / 3600:.1f}"])
    if not any(record["scale"] == "paper" for record in records):
        lines.append(["paper", "all", "-", "not run", "", ""])
    return markdown(["scale, data", "notebook", "device", "finished sets", "real images touched", "hours of runs"], lines)
