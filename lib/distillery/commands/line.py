"""The commands on images of one's own as they are typed: `prune`, `distill`, `evaluate`, `score`, `advise`, `export`, `get`, `data convert`."""

import argparse
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

from distillery.checks import InputError, check_positive_int

METHODS_HELP = "a method, as `distillery methods` names it (default: the cheapest distiller)"


def tell(line: str) -> None:
    """A line for the person who waits, apart from the result."""
    print(line, file=sys.stderr, flush=True)


def add(command: Callable, looks) -> None:
    """Add the commands; `command(name, call, help, among)` gives a parser, `looks` are those of `data`."""
    convert = command(
        "convert", _convert, "write a set of another form (parquet, WebDataset, npz, idx, CIFAR, a table) as class folders", looks
    )
    convert.add_argument("source", metavar="SOURCE", help="a file, or a folder of files, of such a set")
    convert.add_argument("folder", metavar="FOLDER", help="where to; it must not be there")
    convert.add_argument("--copy", action="store_true", help="of a table: copies of its files, in place of links")
    prune = command("prune", _prune, "which images of a folder to keep: a list with a score and a rank for every file")
    prune.add_argument("data", metavar="DATA", help="a folder or archive of class folders")
    prune.add_argument("--keep", type=float, required=True, help="a fraction of each class, or so many images of each class above 1")
    prune.add_argument("--score", default="", help="what they go by: loss, complexity (with an encoder), EL2N, ... (high = hard)")
    prune.add_argument("--rule", default="lowest", help="lowest, highest, middle, flexrand, coverage, proportional, random")
    prune.add_argument("--gamma", type=float, default=0.5, help="of flexrand: the share of a class that is its easy part")
    prune.add_argument("--encoder", default="", help="efficientnet-lite0, torchvision:NAME, timm:NAME[:FILE], or a file of weights")
    prune.add_argument("--out", default="kept.csv", help="the list (default: kept.csv)")
    prune.add_argument("--link", default="", metavar="FOLDER", help="also a folder of links to what is kept, at full size")
    prune.add_argument("--copy", default="", metavar="FOLDER", help="likewise of copies")
    prune.add_argument("--hold-out", type=float, default=0.0, metavar="SHARE", help="a share of each class set aside, for `evaluate`")
    prune.add_argument("--check", action="store_true", help="also say how networks trained on kept, random and all images compare")
    distill = command("distill", _distill, "a few synthetic images of each class, and whether they were worth it")
    distill.add_argument("data", metavar="DATA", help="a folder or archive of class folders")
    distill.add_argument("--ipc", type=int, required=True, help="images of each class")
    distill.add_argument("--method", default="", help=METHODS_HELP)
    distill.add_argument("--set", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="change one published setting")
    distill.add_argument("--out", default="set.safetensors", help="the set; beside it its card, PNG files by class, a contact sheet")
    judge = command("evaluate", _evaluate, "test accuracy of networks trained on a finished set, beside random images")
    judge.add_argument(
        "set", metavar="SET", help="a set, a list of `prune`, a folder of class folders, or a foreign .pt, .npz or .safetensors"
    )
    judge.add_argument("--networks", type=int, default=5, help="fresh networks of each evaluation")
    judge.add_argument("--seeds", type=int, default=1, help="evaluations; random images are drawn anew in each")
    judge.add_argument("--labels", default="", help="of a foreign file: the file of the labels, where they are apart")
    judge.add_argument("--no-augmentation", action="store_true", help="train without DSA augmentation")
    judge.add_argument("--out", default="", metavar="FILE", help="also write the set with this evaluation, as the zoo holds sets")
    judge.add_argument("--method", default="", help="of --out: what the board calls it, where its file does not say")
    judge.add_argument("--source", default="", help="of --out: where it comes from, such as the address of its code")
    judge.add_argument("--loss", default="cross-entropy", help="cross-entropy, or 'half squared error' for real-valued labels")
    judged = command("score", _score, "any sets beside random images by LRS and ARS, with intervals")
    judged.add_argument("sets", metavar="SET", nargs="+", help="as of `evaluate`; also a file of several sets, as DC, DSA and DM save them")
    judged.add_argument("--networks", type=int, default=3, help="fresh networks of each evaluation")
    judged.add_argument("--seeds", type=int, default=3, help="evaluations of each set; random images are drawn anew in each")
    judged.add_argument("--labels", default="own", help="own, hard, stored (one soft label an image) or teacher (of every batch)")
    judged.add_argument("--temperature", type=float, default=1.0, help="of the teacher of every batch")
    judged.add_argument("--rates", default="", help="training rates to choose from by validation images (default: .001,.005,.01,.05,.1)")
    judged.add_argument("--looks", type=int, default=5, help="looks at test images on the way, for what is called best; 0 = none")
    judged.add_argument("--real-epochs", type=int, default=0, help="of all real images: 0 = 200 for published data, else 60")
    judged.add_argument("--equal-seconds", action="store_true", help="also random images of as many seconds as making the set took")
    for one in (judge, judged):
        one.add_argument("--data", required=True, help="a folder or archive, or the name of a published data set, such as cifar10")
        one.add_argument("--data-root", default="", help="where the files of a published data set lie")
        one.add_argument("--network", default="ConvNet", help="ConvNet, ResNet18, ..., or torchvision:NAME")
        one.add_argument("--width", type=int, default=0, help="channels of the ConvNet, 0 = 128 for published data, else by the images")
        one.add_argument("--epochs", type=int, default=0, help="0 = 1000 for published data, else by the size of the set")
        one.add_argument("--pixels", default="auto", help="of a foreign file: auto, standardized, unit or bytes")
        one.add_argument("--logits", action="store_true", help="labels of a foreign file are logits (DATM)")
        one.add_argument("--formation", default="identity", help="of a foreign file: identity, or partition2 (IDC's factor 2)")
        one.add_argument("--normalization", default="own", help="of a foreign file: own, zca, published or published:NAME")
        one.add_argument("--json", metavar="FILE", help="write the rows to a file")
    advise = command("advise", _advise, "which part of a folder, or which few made images, serve as well as all")
    advise.add_argument("data", metavar="DATA", help="a folder or archive of class folders")
    advise.add_argument("--budget", metavar="TIME", default="30m", help="start no new run after this time (default: 30m; 0 = no limit)")
    advise.add_argument("--sizes", default="1,10,5%,30%", help="images of each class, and parts")
    advise.add_argument("--method", default="", help=METHODS_HELP)
    advise.add_argument("--encoder", default="", help="FlexRand goes by complexity through it too: as of prune")
    advise.add_argument("--seeds", type=int, default=5, help="draws and sets of each row")
    advise.add_argument("--out", default="advice.png", help="the figure: accuracy against images, bytes and seconds")
    export = command("export", _export, "a distilled set, or what a list keeps, in a form that others read")
    export.add_argument("file", metavar="FILE", help="a .safetensors file of `distill` or of a notebook, or a list of `prune`")
    export.add_argument("--to", required=True, help="imagefolder (Hugging Face, torchvision), pt (MTT's pair of files) or npz")
    export.add_argument("--out", required=True, metavar="PLACE", help="where to; it must not be there")
    export.add_argument("--copy", action="store_true", help="of a list: copies of its files, in place of links")
    get = command("get", _get, "sets of the zoo: list them, evaluate one again, write it for others")
    get.add_argument("name", metavar="NAME", nargs="?", default="", help="a set, or a file of that form; without it all are listed")
    get.add_argument("--out", default="", metavar="PLACE", help="where to write it; it must not be there")
    get.add_argument("--to", default="", help="imagefolder, pt or npz, as of export (default: the file itself)")
    get.add_argument("--check", action="store_true", help="evaluate it by its card; exit code 0 where that agrees with its record, else 1")
    get.add_argument("--data", default="", help="of --check: as of evaluate")
    get.add_argument("--data-root", default="", help="likewise")
    get.add_argument("--device", default="auto")
    for one in (prune, distill, judge, judged, advise):
        one.add_argument("--side", type=int, default=0, help="pixels a side at which images are looked at, 0 = one that suits them")
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--device", default="auto")
        one.add_argument("--skip-unreadable", action="store_true", help="pass over files that are no images or cannot be decoded")
        one.add_argument("--no-flip", action="store_true", help="a mirrored image is another class (digits, letters)")
    for one in (prune, distill, advise):
        one.add_argument("--force", action="store_true", help="replace files that are there (of folders only that of `distill`)")


def _quietly(function: Callable, *given, **how):
    """What a function returns; what it prints on its way goes to the person who waits, too."""
    with redirect_stdout(sys.stderr):
        return function(*given, **how)


def _common(arguments: argparse.Namespace) -> dict:
    common = {name: getattr(arguments, name) for name in ("side", "seed", "device", "skip_unreadable")}
    return common | {"tell": tell, "progress": sys.stderr.isatty()}


def _convert(arguments) -> int:
    from distillery.data.convert import convert

    print("\n".join(convert(arguments.source, arguments.folder, arguments.copy, sys.stderr.isatty())))
    return 0


def _export(arguments) -> int:
    from distillery.data.export import export, held_out

    print(f"written: {export(arguments.file, arguments.to, arguments.out, arguments.copy)}")
    if held_out(arguments.file):
        why = "it alone says which images judge it where the data have no test/"
        print(f"note: `distillery evaluate` {arguments.file}, not what is written here: {why}")
    return 0


def _get(arguments) -> int:
    from distillery import places
    from distillery.commands import get
    from distillery.report import zoo

    name, out, to, data = arguments.name, arguments.out, arguments.to, arguments.data
    if (out or to or data or arguments.check) and not name or arguments.check != bool(data) or (to and not out):
        raise InputError("get: options alone; accepted: NAME --check --data DATA, NAME --out PLACE, NAME --to KIND --out PLACE")
    if out:
        print(f"written: {get.copy(name, out, to)}")
    if data:
        how = {"data_root": arguments.data_root, "device": arguments.device, "tell": tell, "progress": sys.stderr.isatty()}
        lines, within = get.check(name, data, **how)
        print("\n".join(lines))
        return 0 if within else 1
    if not out:
        entries = [zoo.find(name)] if name else [zoo.read(path) for path in zoo.files(places.SETS)]
        if not entries:
            raise InputError(f"no set in {places.SETS}; accepted: results/sets of the repository, or a .safetensors file")
        name = name or "NAME"
        print(f"{zoo.table(entries)}\n\nevaluate it again:  distillery get {name} --check --data DATA")
        print(f"export it:          distillery get {name} --out FILE, or --to imagefolder, pt or npz --out PLACE")
    return 0


def _prune(arguments) -> int:
    from distillery.commands.prune import check, prune
    from distillery.data.kept import absent
    from distillery.notebook import parameters
    from distillery.report import tables

    if arguments.link and arguments.copy:
        raise InputError("--link and --copy: both; accepted: one of the two")
    places = [one for one in (arguments.out, arguments.link, arguments.copy) if one]
    if len({Path(one).resolve() for one in places}) < len(places):
        raise InputError(f"--out and the folder of the images: both {arguments.out}; accepted: two places")
    if len(places) > 1 and not Path(arguments.data).is_dir():
        raise InputError(
            f"{arguments.data}: images in an archive have no files of their own; accepted: the archive unpacked, or the list alone"
        )
    if arguments.check and arguments.encoder:
        raise InputError("encoder: with --check, which trains networks from scratch; accepted: a score without an encoder")
    for place in places:
        absent(place, arguments.force, arguments.data)
        parameters.writable(Path(place))
    how = {name: getattr(arguments, name) for name in ("score", "rule", "gamma", "encoder")}
    kept = prune(arguments.data, arguments.keep, hold_out=arguments.hold_out, **how, **_common(arguments))
    if folder := arguments.link or arguments.copy:
        kept.place(folder, copy=bool(arguments.copy))
    kept.write(arguments.out)  # last: the list says that all is done
    counts = kept.counts()
    same = f", {counts[0][0]} of {counts[0][1]} in every class" if len(set(counts)) == 1 else ""
    n, of = (sum(column) for column in zip(*counts))
    held = f" ({len(kept.files) - of} more held out)" if arguments.hold_out else ""
    print(f"kept {n} of {of} images{same}{held}: {', '.join(places)}")
    if arguments.check:
        rows = check(arguments.data, arguments.keep, flip=not arguments.no_flip, **how, **_common(arguments))
        print("\n" + tables.rows_table(rows))
    return 0


def _distill(arguments) -> int:
    from distillery.commands.distill import distill, drawn
    from distillery.data.kept import absent
    from distillery.methods import DEFAULT
    from distillery.notebook import parameters
    from distillery.report import tables

    out = Path(arguments.out).with_suffix(".safetensors")
    places = [out, out.with_suffix(""), out.with_suffix(".png"), out.with_suffix(".json")]
    check_positive_int("ipc", arguments.ipc)
    for place in places:
        if arguments.force and drawn(place):
            absent(place / "images", None, arguments.data)
            continue
        absent(place, arguments.force, arguments.data)
        parameters.writable(place)
    settings = {name: parameters.from_text(text) for name, text in arguments.set}
    made = _quietly(
        distill,
        arguments.data,
        arguments.ipc,
        method=arguments.method or DEFAULT,
        settings=settings,
        flip=not arguments.no_flip,
        **_common(arguments),
    )
    made.write(out)
    print(tables.rows_table(made.rows))
    print(f"\n{len(made.labels())} images: {', '.join(map(str, places))}")
    return 0


def _evaluate(arguments) -> int:
    from distillery import store
    from distillery.commands.evaluate import evaluate
    from distillery.report import tables

    how = _judging(arguments) | {"labels": arguments.labels, "loss": arguments.loss, "augmentation": not arguments.no_augmentation}
    how |= {name: getattr(arguments, name) for name in ("out", "method", "source")}
    found = evaluate(arguments.set, arguments.data, **how)
    print("\n".join([found.how, *(f"note: {note}" for note in found.notes), "", tables.rows_table(found.rows)]))
    if arguments.json:
        store.write_json(arguments.json, {"rows": found.rows, "protocol": found.protocol.spec(), "network": found.network.spec()})
    if arguments.out:
        print(f"\nwritten: {arguments.out}")
    return 0


def _score(arguments) -> int:
    from distillery import store
    from distillery.commands.score import score
    from distillery.report.scoreboard import RATES, table

    how = _judging(arguments) | {
        name: getattr(arguments, name) for name in ("labels", "temperature", "looks", "real_epochs", "equal_seconds")
    }
    try:
        rates = [float(one) for one in arguments.rates.split(",")] if arguments.rates else RATES
    except ValueError as error:
        raise InputError(f"--rates: {arguments.rates!r}; accepted: numbers joined by commas, such as .01,.1") from error
    found = score(arguments.sets, arguments.data, rates=rates, **how)
    print("\n".join([found.how, *(f"note: {note}" for note in found.notes), "", table(found.rows)]))
    if arguments.json:
        store.write_json(arguments.json, {"rows": found.rows, "how": found.how, "notes": found.notes})
    return 0


def _judging(arguments) -> dict:
    """What `evaluate` and `score` have in common. Raises InputError on numbers too small, and a file that cannot be written."""
    from distillery.notebook import parameters

    for name, least in {"seeds": 1, "networks": 1, "width": 0, "seed": 0, "epochs": 0, "side": 0, "real_epochs": 0}.items():
        if getattr(arguments, name, least) < least:
            raise InputError(f"--{name.replace('_', '-')}: {getattr(arguments, name)}; accepted: a whole number of at least {least}")
    if arguments.json:
        parameters.writable(Path(arguments.json))
    names = ("data_root", "pixels", "logits", "formation", "normalization", "network", "width", "networks", "epochs", "seeds")
    return {name: getattr(arguments, name) for name in names} | {"flip": not arguments.no_flip} | _common(arguments)


def _advise(arguments) -> int:
    from distillery.cli import budget
    from distillery.commands import advise as advice
    from distillery.data.kept import absent
    from distillery.methods import DEFAULT
    from distillery.notebook import parameters

    absent(arguments.out, arguments.force, arguments.data)
    parameters.writable(Path(arguments.out))
    sizes, minutes = advice.sizes(arguments.sizes), budget(arguments.budget) if arguments.budget != "0" else 0.0
    how = {"budget_minutes": minutes, "method": arguments.method or DEFAULT, "flip": not arguments.no_flip}
    how |= {name: getattr(arguments, name) for name in ("seeds", "encoder")}
    found = _quietly(advice.advise, arguments.data, sizes, **how, **_common(arguments))
    print(f"{advice.table(found)}\n\n{found.told()}")
    advice.draw(found, arguments.out)
    print(arguments.out)
    return 0
