"""From the JSON of a benchmark run to the committed table: python table.py RUN.json results/bench

Writes DEVICE.json and DEVICE.md. Exits with 1 where a fast path misses its gate, or a plain twin is more than 1.1 times a
bare loop over nn.Module. Gates that lean on a feature of a processor hold only where it is.
"""

import sys
from pathlib import Path

from distillery import store
from distillery.report.provenance import provenance as of_this_machine

SLACK = 1.1  # a twin may cost so many times the bare loop


def works(run: dict, flags: list[str]) -> list[dict]:
    """One row a piece of work: least and median seconds of each path, ratios of the least ones, the gate and its verdict."""
    rows: dict[str, dict] = {}
    for one in run["benchmarks"]:
        info, stats = one["extra_info"], one["stats"]
        row = rows.setdefault(info["work"], {"work": info["work"], "seconds": {}, "least": None})
        row["seconds"][info["path"]] = {
            name: stats[key] / info["per"] for name, key in (("least", "min"), ("median", "median"), ("most", "max"))
        } | {"rounds": stats["rounds"]}
        if info["path"] == "fast" and info.get("least"):
            row["least"], row["needs"] = info["least"], info["needs"]
            row["holds_here"] = not info["needs"] or bool(set(info["needs"]) & set(flags))
    for row in rows.values():
        least = {path: value["least"] for path, value in row["seconds"].items()}
        row["faster"] = least["plain"] / least["fast"]
        row["twin_over_bare"] = least["plain"] / least["bare"] if "bare" in least else None
        row["met"] = None if not row["least"] or not row["holds_here"] else row["faster"] >= row["least"]
        row["twin_is_fair"] = row["twin_over_bare"] is None or row["twin_over_bare"] <= SLACK
    return list(rows.values())


def markdown(found: dict) -> str:
    where = found["provenance"]["gpu"] or f"{found['provenance']['threads']} CPU cores, {', '.join(found['provenance']['cpu_flags'])}"
    lines = [
        f"Least of the rounds of one run on {where}; torch {found['provenance']['packages']['torch']}. The plain twin is 1.",
        "",
        "| work | bare loop | plain twin | fast | faster, at least | faster, measured | met |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["works"]:
        plain = row["seconds"]["plain"]["least"]
        cells = [f"{row['seconds'][path]['least'] / plain:.2f}" if path in row["seconds"] else "-" for path in ("bare", "plain", "fast")]
        met = {True: "yes", False: "**no**", None: "no gate here"}[row["met"]]
        gate = f"{row['least']:.2g}x" if row["least"] else "-"
        lines.append(f"| {row['work']} | {' | '.join(cells)} | {gate} | {row['faster']:.1f}x | {met} |")
    return "\n".join(lines) + "\n"


def main(source: str, folder: str) -> int:
    run, provenance = store.read_json(Path(source)), of_this_machine()
    device = "cuda" if provenance["gpu"] else "cpu"
    provenance["threads"] = provenance["threads"] if provenance["gpu"] else provenance["cpu_count"]
    found = {"schema": 1, "device": device, "provenance": provenance, "works": works(run, provenance["cpu_flags"])}
    store.write_json(Path(folder) / f"{device}.json", found)
    store.write_bytes(Path(folder) / f"{device}.md", markdown(found).encode())
    print(markdown(found))
    missed = [row["work"] for row in found["works"] if row["met"] is False]
    unfair = [row["work"] for row in found["works"] if not row["twin_is_fair"]]
    for words, works_ in (("gate missed", missed), (f"twin above {SLACK}x of a bare loop", unfair)):
        if works_:
            print(f"{words}: {'; '.join(works_)}")
    return int(bool(missed or unfair))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
