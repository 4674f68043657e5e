"""Tables in Markdown, from records."""


def rows_table(rows: list[dict], against: str = "random") -> str:
    """LazyImages as Markdown: accuracy with both spreads, paired difference, steps, seconds a set."""
    lines = [
        f"| method | ipc | published, % | accuracy, % | ± sets | ± networks | sets x networks | difference to {against}, 95% interval | steps | seconds a set |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        value, gap, ipc = one["measured"], one["difference"], "-" if one["ipc"] is None else one["ipc"]
        if value is None:
            lines.append(f"| {one['method']} | {ipc} | {_published(one['published'])} | not run | | | | | | |")
            continue
        spreads = ["-" if value[key] is None else f"{100 * value[key]:.1f}" for key in ("std_sets", "std_networks")]
        shown = "-" if gap is None or one["method"].split(",")[0] == against else f"{100 * gap['mean']:+.1f}"
        if shown != "-" and gap["ci95"]:
            shown += f" [{100 * gap['ci95'][0]:+.1f}, {100 * gap['ci95'][1]:+.1f}]"
        cells = [
            one["method"],
            ipc,
            _published(one["published"]),
            f"{100 * value['value']:.1f}",
            *spreads,
            f"{value['n_sets']} x {value['n_networks']}",
            shown,
        ]
        cells += [one["steps"] or "-", f"{one['seconds'] / value['n_sets']:.1f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def rows_by_record(records: list[dict]) -> str:
    """The rows of every record in Markdown, under a heading that names notebook, data and scale."""
    parts = []
    for record in records:
        if not record["rows"]:
            continue
        data, cost = record["data"], record["costs"]
        head = f"**{data['label']}**, {record['notebook']}, {record['scale']} scale: {data['train']} training and {data['test']} test images"
        spent = f"; {cost['seconds_all_runs'] / 60:.0f} minutes of runs" if "seconds_all_runs" in cost else ""
        parts += [head + spent + ".", rows_table(record["rows"], record.get("against", "random"))]
    return "\n\n".join(parts)


def _published(value: dict | None) -> str:
    return "-" if value is None else f"{100 * value['mean']:.1f} ± {100 * value['std']:.1f}"


def percent(row: dict | None) -> str:
    """'45.1 ± 0.8 (5 sets x 5 networks)' in percent; the deviation is that of the sets."""
    if row is None:
        return "not run"
    spread = "" if row["std_sets"] is None else f" ± {100 * row['std_sets']:.1f}"
    return f"{100 * row['value']:.1f}{spread} ({row['n_sets']} x {row['n_networks']})"


def table(records: list[dict]) -> str:
    """The claim table in Markdown: what the paper says, what was measured, the verdict."""
    lines = [
        "| claim | data, scale | published | measured, % (sets x networks) | difference, 95% interval | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for record in records:
        for one in record["claims"]:
            gap, cell = one["difference"], "-"
            if gap and gap["ci95"]:
                low, high = (100 * value for value in gap["ci95"])
                cell = f"{100 * gap['mean']:+.1f} [{low:+.1f}, {high:+.1f}] to {one['against']}"
            where = f"{record['data']['label']}, {record['scale']}"
            lines.append(
                f"| {one['statement']} | {where} | {_published(one['published'])} | {percent(one['measured'])} | {cell} | **{one['verdict']}** |"
            )
    return "\n".join(lines)
