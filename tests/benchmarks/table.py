"""From the JSON of benchmark runs to the committed table: python table.py RUN.json .. results/bench

Writes DEVICE.json and DEVICE.md. Exits with 1 where a path misses its gate: so many times faster than the bare loop, or than its plain twin
where there is no such loop.
"""

import sys
from pathlib import Path

from distillery import store
from distillery.report.provenance import provenance as of_this_machine


def works(run: dict) -> list[dict]:
    """One row a piece of work: least, median and most seconds of each path, how many times faster the fast ones are, gates and verdicts;
    and of work whose floating-point operations were counted, at what share of the fastest product's rate each path does them."""
    rows: dict[str, dict] = {}
    for one in run["benchmarks"]:
        info, stats = one["extra_info"], one["stats"]
        row = rows.setdefault(info["work"], {"work": info["work"], "seconds": {}, "least": {}})
        row["seconds"][info["path"]] = {
            name: stats[key] / info["per"] for name, key in (("least", "min"), ("median", "median"), ("most", "max"))
        } | {"rounds": stats["rounds"]}
        if "flops" in info:
            row["flops"] = info["flops"] / info["per"]
        if info["path"] in ("fast", "low") and info.get("least"):
            row["least"][info["path"]] = info["least"]
    peaks = {row["work"]: row["flops"] / row["seconds"]["peak"]["least"] for row in rows.values() if "peak" in row["seconds"]}
    for row in rows.values():
        if peaks and "flops" in row:
            row["share"] = {path: row["flops"] / value["least"] / max(peaks.values()) for path, value in row["seconds"].items()}
        least = {path: value["least"] for path, value in row["seconds"].items()}
        base = least.get("bare", least.get("plain", least.get("peak")))
        row["faster"] = {path: base / least[path] for path in ("plain", "fast", "low") if path in least}
        row["met"] = {path: row["faster"][path] >= gate for path, gate in row["least"].items()}
    return list(rows.values())


def markdown(found: dict) -> str:
    provenance, peaks = found["provenance"], [row for row in found["works"] if "peak" in row["seconds"]]
    where = provenance["gpu"] or f"one core of {provenance['processor']} ({', '.join(provenance['cpu_flags'])})"
    lines = [
        f"Least of the rounds of one run on {where}; torch {provenance['packages']['torch']}. {found['clock']}. The bare loop is 1, where there "
        "is one, else the plain twin. 'low' is bfloat16, compiled. A share is that of the floating-point rate of the fastest float32 product: "
        + "; ".join(f"{row['work']} {row['flops'] / row['seconds']['peak']['least'] / 1e9:.0f} GFLOP/s" for row in peaks)
        + ". What a bare loop reaches bounds what is left to gain.",
        "",
        "| work | bare loop, ms | its share | plain twin | fast | its share | low | at least |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["works"]:
        if row in peaks:
            continue
        base = row["seconds"].get("bare") or row["seconds"]["plain"]
        cells = {path: f"{row['faster'][path]:.2f}x" if path in row["faster"] else "-" for path in ("plain", "fast", "low")}
        share = {path: f"{row['share'][path]:.0%}" if path in row.get("share", {}) else "-" for path in ("bare", "fast")}
        cells = [share["bare"], cells["plain"], cells["fast"], share["fast"], cells["low"]]
        gates = [f"{path} {gate:.2g}x{'' if row['met'][path] else ' **missed**'}" for path, gate in row["least"].items()]
        lines.append(f"| {row['work']} | {1000 * base['least']:.3g} | {' | '.join(cells)} | {', '.join(gates) or '-'} |")
    return "\n".join(lines) + "\n"


def main(*words: str) -> int:
    *sources, folder = words
    run, provenance = {"benchmarks": [one for source in sources for one in store.read_json(source)["benchmarks"]]}, of_this_machine()
    device = "cuda" if provenance["gpu"] else "cpu"
    clock = "Seconds of a clock" if device == "cuda" else "Seconds of the processor"
    found = {"schema": 2, "device": device, "provenance": provenance, "clock": clock, "works": works(run)}
    store.write_json(Path(folder) / f"{device}.json", found)
    store.write_bytes(Path(folder) / f"{device}.md", markdown(found).encode())
    print(markdown(found))
    missed = [f"{row['work']} ({path})" for row in found["works"] for path, met in row["met"].items() if not met]
    if missed:
        print(f"gate missed: {'; '.join(missed)}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
