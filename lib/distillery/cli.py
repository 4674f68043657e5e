"""The command line: `distillery run NOTEBOOK`, `sweep GRID`, `report`, `merge`, `methods`, `data check PATH`, `notebooks DIR`, and those of `commands/`.

`run` is a thin layer over papermill: it checks parameters before starting, executes into a temporary file, and counts a run as done only
by the record that the notebook's last cell writes. Bad input gives one line and exit code 2.
"""

import argparse
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from distillery import __version__
from distillery.checks import InputError, require
from distillery.commands import line as own_images
from distillery.places import IN_REPOSITORY, NOTEBOOKS, ROOT


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="distillery",
        description="Learning from less data: prune, distill, evaluate.",
        epilog="`distillery methods` names the methods, `distillery COMMAND --help` says more of a command",
    )
    parser.add_argument("--version", action="version", version=f"distillery {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=argparse.ArgumentParser)

    def command(name: str, call: Callable, help: str, among=commands) -> argparse.ArgumentParser:
        made = among.add_parser(name, help=help)
        made.set_defaults(call=call)
        return made

    run = command("run", _run, "execute a notebook with checked parameters")
    run.add_argument("notebook", help="name such as 00_quickstart, or a path")
    run.add_argument(
        "--section", type=int, action="append", default=[], metavar="N", help="only the first section and this one (repeatable)"
    )
    run.add_argument("--again", action="store_true", help="execute even if a complete record exists (stored runs are reused)")
    run.add_argument("--wait", action="store_true", help="wait for runs that another process is computing (`row` always does)")
    described = command("params", _params, "the parameters of a notebook: defaults, meanings, what is accepted")
    described.add_argument("notebook", help="name such as 00_quickstart, or a path")
    row = command("row", _row, "run one row by published settings, which a notebook of the same settings finds")
    row.add_argument("notebook", help="name such as 03_ftd, or a path")
    row.add_argument("method", help="a method, as `distillery methods` names it")
    row.add_argument("size", type=int, help="images a class")
    row.add_argument("--seeds", type=int, default=1, help="sets, one a seed")
    row.add_argument("--first-seed", type=int, default=0, help="seed of the first set; the data stay those of the notebook")
    row.add_argument("--keep", default="", metavar="RULE", help="real images that are left, e.g. 'lowest 0.1' or 'random 0.1'")
    row.add_argument("--network", default="", help="another architecture to train on the sets, e.g. ResNet18")
    row.add_argument("--out", default="", metavar="FILE", help="also write the first set with its evaluation, as the zoo holds sets")
    row.add_argument("--set", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="change one published setting")
    paper = command("paper", _paper, "rows of paper scale: sets done, missing, and the minutes these need on this device; --run runs them")
    paper.add_argument("file", nargs="*", help="parts of names of notebooks/params/*.paper-*.yaml, such as 01_bilp (default: all)")
    paper.add_argument("--method", action="append", default=[], help="only this method (repeatable)")
    paper.add_argument(
        "--each", metavar="TIME", default="60s", help="time for a row that was not timed on this device before (default: 60s)"
    )
    paper.add_argument("--run", action="store_true", help="run what is missing, in the order of the table; the same command goes on")
    grid = command("sweep", _sweep, "execute notebooks over a grid of parameters")
    grid.add_argument("grid", help="YAML file: notebook, parameters, grid")
    grid.add_argument("--shard", default="", metavar="I/N", help="only every N-th cell from the I-th on: N machines or jobs share a grid")
    grid.add_argument("--dry-run", action="store_true", help="list the cells and their states, start nothing")
    grid.add_argument("--wait", action="store_true", help="wait for cells that another process is running, which are passed over else")
    grid.add_argument("--engine", default="local", help="local, or ray: cells at once, on one or many machines")
    grid.add_argument("--gpus", type=float, default=0.0, help="GPUs of a cell on Ray, e.g. 0.25")
    for one in (run, row, paper):
        one.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="one parameter of the notebook")
    for one in (run, row):
        one.add_argument("-f", action="append", default=[], metavar="FILE", help="YAML file of parameters")
    for one in (run, row, grid, paper):
        one.add_argument("--budget", metavar="TIME", help="start no new run after this time, e.g. 30m, 2h, 90s")
    report = command("report", _report, "print the claim table of all records")
    report.add_argument(
        "--results", default="", help="results folder, or that of one sweep (default: that of the repository, else ./results)"
    )
    report.add_argument("--scale", default="", help="only this scale")
    report.add_argument("--write", action="store_true", help="renew what is generated: *.md of results, README, first cells")
    joining = command("merge", _merge, "make the results folders of several machines one; nothing is overwritten")
    joining.add_argument("folders", nargs="+", metavar="FOLDER", help="a results folder")
    joining.add_argument("--into", required=True, metavar="FOLDER", help="a new folder, or the first of them")
    methods = command("methods", _methods, "what combines with what")
    methods.add_argument("--settings", action="store_true", help="published settings of every method, with their sources")
    command("list", _list, "the notebooks: what each asks, and what was found")
    copies = command("notebooks", _notebooks, "copy the notebooks, and the files of their parameters, into a folder")
    copies.add_argument("folder", metavar="DIR", help="a new or an empty folder")
    looks = commands.add_parser("data", help="look at image data").add_subparsers(dest="verb", required=True)
    own_images.add(command, looks)
    check = command("check", _data_check, "classes, sizes, modes, duplicates, unreadable files; exit code 0 if usable, else 2", looks)
    check.add_argument("path", help="a folder of class folders, or a .zip, .tar.gz, .tgz or .tar of one")
    check.add_argument("--skip-unreadable", action="store_true", help="pass over files that are no images or cannot be decoded")

    if "_ARGCOMPLETE" in os.environ:  # a shell asks what the words may be
        with suppress(ImportError):
            import argcomplete

            argcomplete.autocomplete(parser)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # where it is no text file
            stream.reconfigure(errors="backslashreplace")  # of a terminal that knows ASCII alone
    try:
        try:
            arguments = parser.parse_args(argv)
            return arguments.call(arguments)
        finally:
            sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `distillery report | head -1`: what is left is written nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("stopped; finished runs are kept, the same command goes on from there", file=sys.stderr)
        return 130


def _run(arguments) -> int:
    from distillery.notebook import parameters

    notebook = _find(arguments.notebook)
    given, values = parameters.planned(notebook, _given(arguments, parameters.declared(notebook)[0]))
    from distillery.notebook.execution import execute  # only now: it takes seconds
    from distillery.report import pooling, records

    name = notebook.stem
    folder = parameters.results_root(values.get("results_dir", "")) / values.get("scale", "smoke") / name
    key = records.record_key(name, values)
    known = _records(folder)
    before, own = {one["path"]: one["key"] for one in known}, [one for one in known if one["key"] == key]
    done = [record for record in own if not record["missing"]]
    if done and not arguments.again:
        print(f"{name} is done with these parameters, record {done[0]['path']} (--again executes it once more)")
    else:
        parameters.writable(folder / f"{name}.executed.ipynb")
        content = parameters.part(notebook, arguments.section) if arguments.section else str(notebook)
        pool = pooling.pool_key(name, values)
        totals = [one["costs"].get("runs_asked", 0) for one in known if one.get("pool") == pool and not one["missing"]]
        expected = {"total": 0 if arguments.section else max(totals, default=0), "left": len(own[0]["missing"]) if own else None}
        beside = lambda: next((Path(one["path"]).parent for one in _records(folder, key)), folder)  # noqa: E731
        if code := execute(notebook, content, given, folder, beside, arguments.wait, expected):
            return code
        done = _records(folder, key)
        if not done:
            print(f"error: {name} ended without its record; it does not count as done", file=sys.stderr)
            return 1
        if before.get(done[0]["path"], key) != key:
            print(f"\nthe record of other parameters in {Path(done[0]['path']).parent} was replaced")
    _summary(done[0], name)
    return 0


def _params(arguments) -> int:
    from distillery.notebook import parameters

    rows = parameters.table(_find(arguments.notebook))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]]))
    return 0


def _row(arguments) -> int:
    from distillery.notebook import parameters

    notebook = _find(arguments.notebook)
    given = _given(arguments, parameters.declared(notebook)[0])
    from distillery.data.kept import absent
    from distillery.notebook import rows  # needs what notebooks need, which is looked for above

    changes = {name: parameters.from_text(text) for name, text in arguments.set}
    asked = arguments.method, arguments.size, list(range(arguments.first_seed, arguments.first_seed + arguments.seeds))
    if arguments.out:
        absent(arguments.out, None)
    row = rows.asked(notebook, given, *asked, keep=arguments.keep, network=arguments.network, changes=changes)
    if cost := row.cost():
        print(cost, flush=True)
    for line in row.told():
        print(line, flush=True)
    if arguments.out:
        print(f"written: {row.enter(arguments.out)}")
    return 0


def _paper(arguments) -> int:
    from distillery.notebook import paper

    given, minutes = dict(arguments.p), budget(arguments.budget) if arguments.budget else 0.0
    if arguments.run:
        lines = paper.run(arguments.file, arguments.method, given, minutes)
    else:
        lines = paper.lines(arguments.file, arguments.method, 60 * budget(arguments.each), given)
    for line in lines:
        print(line, flush=True)
    return 0


def _sweep(arguments) -> int:
    from distillery.notebook import sweep

    folder, whole = sweep.read(arguments.grid, _find)
    cells = sweep.shard(whole, arguments.shard) if arguments.shard else whole
    minutes = budget(arguments.budget) if arguments.budget else 0.0
    if arguments.dry_run:
        lines = [cell.state() for cell in cells]
    else:
        lines = sweep.run(folder, cells, arguments.engine, minutes, arguments.gpus, whole=whole, wait=arguments.wait)
    width, counts = max((len(line["cell"]) for line in lines), default=0), Counter(line["status"] for line in lines)
    for line in lines:
        print(f"  {line['cell']:<{width}}  {line['status']:<10}  {line['headline'] or ''}".rstrip())
    told = ", ".join(f"{counts[state]} {state}" for state in sweep.STATES if counts[state]) or "no cell"
    if arguments.dry_run:
        print(f"\n{told}; nothing was started")
        return 0
    print(f"\n{told}: {folder / 'summary.json'}")
    for line in (line for line in lines if line["status"] == "failed"):
        print(f"error: {line['cell']}: {line['error']}", file=sys.stderr)
    if counts["incomplete"] or counts["not run"] or counts["failed"]:
        print("the same command goes on with what is missing")
    return 1 if counts["failed"] else 0


def _records(folder: Path, key: str = "") -> list[dict]:
    """Records of a notebook's runs (with these parameters); an incomplete one beside a complete one comes first, as it is the newer."""
    from distillery.report import records

    found = records.find(folder.parents[1], name="record*.json")
    return [one for one in found if Path(one["path"]).parents[1] == folder and one["key"] == (key or one["key"])]


def _executed(record: dict) -> Path:
    """Where the executed notebook of a record lies."""
    return Path(record["path"]).with_name(f"{record['notebook']}.executed.ipynb")


def _summary(record: dict, name: str) -> None:
    from distillery.report import tables

    folder = Path(record["path"]).parent
    width = max((len(one["statement"]) for one in record["claims"]), default=0)
    print(f"\n{name} on {record['data']['label']}, {record['scale']} scale:")
    for one in record["claims"]:
        print(f"  {one['statement']:<{width}}  {one['verdict']}  {tables.found(one)[1]}".rstrip())
    if record["missing"]:
        print(f"  {len(record['missing'])} run(s) are not run; the same command goes on with them")
    print(f"\npictures and record: {folder}\nexecuted notebook:   {_executed(record)}")
    print("next: `make lab` to read it, or your own images:" if IN_REPOSITORY else "next: your own images:")
    print(f"  {'.venv/bin/' if IN_REPOSITORY else ''}distillery advise FOLDER_OF_CLASS_FOLDERS")


def _report(arguments) -> int:
    from distillery.notebook import parameters
    from distillery.report import pooling, records, tables

    if arguments.write:
        if arguments.scale:
            raise InputError(f"--scale: {arguments.scale!r} with --write, which writes all scales; accepted: one of the two")
        require("notebooks", "nbformat")
        from distillery.report import pages

        changed = pages.write(arguments.results or ROOT / "results")
        print("\n".join(f"wrote {os.path.relpath(path)}" for path in changed) or "nothing changed")
        return 0

    def warn(error: InputError) -> None:
        print(f"warning: {error}; it is left out", file=sys.stderr)

    found = records.find(parameters.results_root(arguments.results), warn, sweeps=True)
    found = pooling.pool([one for one in found if arguments.scale in ("", one["scale"])])
    if not found:
        raise InputError("no record found; accepted: a results folder after `distillery run`, or the folder of a sweep")
    joined = [one for one in found if "pooled" in one]
    print("\n\n".join(filter(None, [tables.table(found), tables.rows_by_record(joined)])))
    return 0


def _merge(arguments) -> int:
    from distillery.report.merge import merge

    told, conflicts = merge([Path(one) for one in arguments.folders], Path(arguments.into))
    for line in conflicts:
        print(f"error: {line}", file=sys.stderr)
    if conflicts:
        print("nothing was copied; accepted: one of each two, the other renamed or removed", file=sys.stderr)
        return 2
    print("\n".join([*told, "records hold what each folder had; `distillery run` with the seeds of all finds their stored runs"]))
    return 0


def _methods(arguments) -> int:
    from distillery.report import registered

    print(registered.settings_page() if arguments.settings else registered.compatibility())
    return 0


def _data_check(arguments) -> int:
    from distillery.data.check import check

    lines, usable = check(arguments.path, sys.stderr.isatty(), arguments.skip_unreadable)
    print("\n".join(lines))
    return 0 if usable else 2


def _list(arguments) -> int:
    from distillery.notebook import shipped

    for name, title, found in shipped.told():
        print("\n".join([f"{name:<16}{title}", *([f"{'':<16}{found}"] if found else [])]))
    return 0


def _notebooks(arguments) -> int:
    from distillery.notebook import shipped

    folder = shipped.copy(arguments.folder)
    print(f"{len(list(folder.glob('*.ipynb')))} notebooks: {folder}; their parameters at other scales: {folder / 'params'}")
    return 0


def _find(name: str) -> Path:
    for path in (Path(name), Path("notebooks") / f"{name}.ipynb", NOTEBOOKS / f"{name}.ipynb"):
        if path.suffix == ".ipynb" and path.is_file():
            return path.resolve()
    known = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    raise InputError(f"notebook {name!r} is not found; accepted: a path, or {', '.join(known)}")


def _given(arguments, kinds: dict) -> dict:
    from distillery.notebook import parameters

    values: dict = {}
    for file in arguments.f:
        values |= parameters.typed(parameters.read_values(file), kinds)
    values |= {name: parameters.from_text(text, kinds.get(name)) for name, text in arguments.p}
    return values | ({"budget_minutes": budget(arguments.budget)} if arguments.budget else {})


def budget(text: str) -> float:
    """'30m', '2h', '90s' or plain minutes -> minutes. Raises InputError on anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not match or float(match[1]) == 0:
        raise InputError(f"--budget: {text!r} is not a time; accepted: 90s, 30m, 2h")
    return float(match[1]) * {"s": 1 / 60, "m": 1, "h": 60, "": 1}[match[2]]
