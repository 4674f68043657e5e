"""What every notebook needs and no paper is about, in one object.

Standard parameters, each used where the notebook declares it: dataset, data_root, label, published_for, normalization, resize,
max_side, per_class, test_per_class, held_out, flip, seed, first_seed, ipc, width, networks, evaluation_epochs, evaluation_batch,
evaluation_augmentation, published_protocols, settings_for, score_trials, score_epochs, converged_trials, converged_epochs, validations,
validation_networks, validation_epochs, scale, results_dir, device, precision, compiled, engine, budget_minutes, progress.
"""

import platform
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from IPython.display import Markdown

import distillery
from distillery.data.synthetic import Synthetic, export
from distillery.experiment import Experiment
from distillery.methods import METHODS, published
from distillery.notebook import parameters
from distillery.notebook.display import Shown
from distillery.notebook.published import as_published, measured_by, reconstructed
from distillery.notebook.standard import Standard
from distillery.recipe import Recipe
from distillery.report import figures, pooling, records, tables
from distillery.scores import files

AGAIN = 1000  # between the seeds of a row and those of the same row again


@dataclass(frozen=True)
class Row:
    """A row of a table: what it is called, its size, what stands beside it, and its recipes by seed, where it has some.

    against the row that its difference is to, '' = that of the table or of the session
    view    whether its sets are those of another row, judged in another way, and so paid for there
    listed  whether tables and records hold it; it is paid for in any case
    """

    label: str
    size: int | None
    published: dict | None
    against: str
    recipes: list[Recipe] = field(default_factory=list)
    experiment: Experiment | None = None
    view: bool = False
    listed: bool = True


class Session(Standard, Shown):
    """One run of a notebook. `p` holds the checked parameters, `results` the results of each row by seed, None = not run.

    against  the row that differences are to, where neither the row nor its table names another one
    source   who says what is claimed, '' = the paper of the method at hand
    reads    names of notebooks whose finished runs of the same scale are read where its own has none
    """

    def __init__(self, notebook: str, namespace: dict, against: str = "random", source: str = "", reads: Iterable[str] = ()):
        self.notebook, self.against, self.source, self.reads = notebook, against, source, tuple(reads)
        self.p = parameters.settings(namespace)  # refused before anything is computed
        self.kinds = dict(namespace["__annotations__"])
        self.began = time.monotonic()
        self.rows: dict[str, Row] = {}
        self.results: dict[str, list[dict | None]] = {}
        self.claims: list[dict] = []
        self.told = 0  # claims whose verdicts were shown
        self.bills: list[dict] = []  # 'seconds' and 'samples' of what no row holds
        self.experiments: list[Experiment] = []
        figures.style()
        warnings.filterwarnings("ignore", message="IProgress not found")  # of tqdm, which some libraries import, without widgets
        print(f"distillery {distillery.__version__}, Python {platform.python_version()}, torch {torch.__version__}")

    # Rows

    def row(
        self,
        name: str,
        method: str,
        size: int,
        n: int = 1,
        *,
        label: str = "",
        published: str | dict | None = "",
        against: str = "",
        experiment: Experiment | None = None,
        listed: bool = True,
        **parts,
    ) -> list[dict | None]:
        """Run a row, or more seeds of one, and keep its results; what is stored is not run again.

        name       its name in `results`; `label` = what tables call it, where that is another name
        n          sets, one a seed
        published  the name of its published number, '' = that of the method where the recipe changes nothing, None = there is none;
                   more seeds of a row keep that of the row
        against    the row that its difference is to, '' = that of the table or of the session, or `control` under a protocol of its own
        listed     False for one of several tries of which another row takes the best
        parts      of a Recipe: prune, start, batches, settings, evaluate
        """
        n = max(n, len(self.results.get(name, [])))
        if experiment is None and (experiment := self.judging(method, size)).protocol != self.bench.protocol:
            against = against or self.control(method, size, n)
        experiment = experiment or self.bench
        recipes = [Recipe(method, size, seed, **parts) for seed in self.seeds(n)]
        if name in self.rows:  # more seeds of it
            number = self.rows[name].published
        else:
            number = self._number(recipes[0], published, experiment) if isinstance(published, str) else published
        shown = size if METHODS[method].makes_set else None
        self.rows[name] = Row(label or name, shown, number, against, recipes, experiment, listed=listed)
        self.results[name] = experiment.run_all(recipes)
        if all(one and "top5" in one for one in self.results[name]):  # of many classes
            self.view(f"{name}, top 5", of=name, by="top5", label=f"{label or name}, top 5")
        return self.results[name]

    def control(self, method: str, size: int, n: int = 1, name: str = "random images", **parts) -> str:
        """The name of a row of n sets of random images, stored and judged as those of a method, run where it is not there yet.

        name, parts  what such a row is called where it is judged as all are, and parts of its recipes, such as prune
        """
        here = self.judging(method, size)
        [seed] = self.seeds(1)
        _, formation, shrunk = METHODS[method].stored(here.job(Recipe(method, size, seed)))
        packed = {} if formation == "identity" else {"settings": {"interpolation": shrunk}}
        how, alike = "random, packed" if packed else "random", here.protocol != self.bench.protocol
        wanted = Recipe(how, size, seed, **packed | parts), here.protocol
        same = [one for one, row in self.rows.items() if row.recipes and (row.recipes[0], row.experiment.protocol) == wanted]
        against = self.control(method, size, n) if alike and parts else ""
        name = same[0] if same else ", ".join([name, *(["packed", shrunk] if packed else []), *([f"judged as {method}"] * alike)])
        if len(self.results.get(name, [])) < n:
            self.row(name, how, size, n, published=None, against=against, experiment=here, **packed | parts)
        return name

    def again(self, name: str) -> list[dict | None]:
        """Run a row once more under as many other seeds, as 'NAME, again': its difference to the row is the noise of every other one."""
        row = self.rows[name]
        recipes = [replace(one, seed=one.seed + AGAIN) for one in row.recipes]
        self.rows[f"{name}, again"] = replace(row, label=f"{row.label}, again", against=name, recipes=recipes, published=None)
        self.results[f"{name}, again"] = row.experiment.run_all(recipes)
        return self.results[f"{name}, again"]

    def add(self, name: str, results: list[dict | None], against: str = "", published: dict | None = None, **how) -> None:
        """Keep a row whose results, by seed, are known already: the best of several, or numbers of another kind.

        how  view and listed, as a `Row` has them
        """
        self.rows[name], self.results[name] = Row(name, None, published, against, **how), results

    def view(self, name: str, of: str, by: str, *, label: str = "", published: dict | None = None, against: str = "") -> None:
        """Keep the sets of row `of` as another row, judged by accuracies that their results hold under `by`, such as 'regression'."""
        row = replace(self.rows[of], label=label or name, published=published, against=against, view=True)
        self.rows[name] = row
        self.results[name] = [one and one | {"accuracies": one[by]} for one in self.results[of]]

    def _number(self, recipe: Recipe, name: str, experiment: Experiment | None = None) -> dict | None:
        """The published number beside a row: at paper scale only where the set is judged as published."""
        if experiment and self.p.scale == "paper" and measured_by(experiment, recipe.method, recipe.size) != experiment.protocol:
            return None
        plain = not (recipe.prune or recipe.batches or recipe.start or recipe.evaluate.spec())
        return published(self.published_set, name or recipe.method, recipe.size) if name or plain else None

    def published_on(self, network: str, method: str, size: int) -> dict | None:
        """The published accuracy of a method's sets on another network."""
        return published(f"{self.published_set} on {network}", method, size)

    def comparable(self, name: str) -> bool:
        """Whether data, network, settings and evaluation of a row are those of its published number."""
        row = self.rows[name]
        return bool(row.published and row.recipes) and as_published(row.experiment, row.recipes[0], self.p, self.published_set)

    def set_of(self, name: str, i: int = 0) -> Synthetic | None:
        """The set of a row's i-th seed, None where it was not run or its file was not kept."""
        result = self.results[name][i] if name in self.results else None
        row = self.rows.get(name)
        return row.experiment.synthetic(result, row.recipes[i].evaluate.iterate) if result and row.recipes else None

    def accuracies(self, name: str) -> list[list[float] | None]:
        """accuracies[set][network] of a row."""
        return records.accuracies(self.results[name])

    def summary(self, name: str, against: str = "") -> dict:
        """A row as records and tables hold it."""
        row, other = self.rows[name], against or self.rows[name].against or self.against
        baseline = self.results.get(other) if other != name else None
        return records.row(row.label, row.size, self.results[name], baseline, row.published) | {"name": name, "against": other}

    def table(self, names: Iterable[str] = (), against: str = "", every: bool = False) -> Markdown:
        """Rows as a table, () = all; differences are paired by seed where `records.difference` pairs.

        against  the row that differences are to where a row names none of its own, '' = that of the session
        every    compare every row with `against`, whatever its own is
        """
        names = [name for name in names or self.rows if name in self.rows and self.rows[name].listed]
        if not names:
            return Markdown("Not asked for.")
        other = against or self.rows[names[0]].against or self.against
        called = self.rows[other].label if other in self.rows else other
        base = {name: against if every else self.rows[name].against or against for name in names}
        return Markdown(tables.rows_table([self.summary(name, base[name]) for name in names], called, self.p.scale))

    def grid(self, head: list[str], lines: dict[str, list[str]], published: bool = False) -> Markdown:
        """Accuracies in percent, with the deviation over sets, of several rows side by side: what a line is called -> names of rows.

        published  whether published numbers follow in brackets
        """
        cells = {name: records.measured(self.accuracies(name)) for line in lines.values() for name in line if name in self.rows}
        shown = {name: tables.percent(cell).split(" (")[0] for name, cell in cells.items()}
        if published:
            shown |= {name: f"{shown[name]} [{tables.published(known)}]" for name in cells if (known := self.rows[name].published)}
        return Markdown(tables.markdown(head, [[called, *(shown.get(one, "-") for one in line)] for called, line in lines.items()]))

    def costs(self, names: Iterable[str], against: str) -> Markdown:
        """What sets cost to make, relative to a row: seconds (median) and real images touched; last the score itself."""
        head, rows = ["made from", "accuracy, %", f"seconds, {against} = 1", f"real images touched, {against} = 1"], []
        base = self._paid(against)
        for name in names:
            paid = self._paid(name)
            if paid and base:
                shares = [f"{ours / theirs:.{digits}f}" if theirs else "-" for ours, theirs, digits in zip(paid[1:], base[1:], (2, 3))]
                rows.append([name, f"{paid[0]:.1f}", *shares])
        score = self.bench.scores.costs.get(("loss", self.p.seed))
        if score and base and base[2]:
            rows.append(["*the score itself, once*", "", "", f"{score['samples'] / base[2]:.3f}"])
        return Markdown(tables.markdown(head, rows))

    def _paid(self, name: str) -> tuple[float, float, float] | None:
        """Accuracy in percent, seconds and real images touched to make a set of a row, None where none was made."""
        done = [result for result in self.results.get(name, []) if result and result["artifact"]]
        if not done:
            return None
        accuracy = 100 * np.mean([np.mean(one["accuracies"]) for one in done])
        seconds = np.median([one["seconds"] - one["seconds_evaluation"] for one in done])
        return float(accuracy), float(seconds), float(np.mean([one["samples"] for one in done]))

    # Claims

    def claim(self, id: str, statement: str, ours: str, against: str = "", source="", note="", comparable=None, **how) -> None:
        """Claim that a row is more accurate than another one, or no worse by a margin; nothing where one of them was not asked for.

        against     a row, '' = the claim is about the value of `ours`
        source      who says so, '' = as the session says
        comparable  whether the published number is of this setting, None = by `comparable`
        how         margin, untestable, unit, digits, data, family, further and same: of `records.claim`
        """
        if ours not in self.rows or (against and against not in self.rows):
            return
        row = self.rows[ours]
        if row.published:
            note = "; ".join(filter(None, [note, *self._unlike()]))
        source = source or self.source or "arXiv {0.paper}; {0.source}".format(METHODS[row.recipes[0].method])
        same = self.comparable(ours) if comparable is None else comparable
        theirs = self.accuracies(against) if against else None
        called = self.rows[against].label if against else ""
        filled = reconstructed(row.recipes[0]) if same and row.recipes else ""
        how |= {"scale": self.p.scale, "published_baseline": self.rows[against].published if against else None, "reconstructed": filled}
        found = records.claim(id, statement, source, self.accuracies(ours), theirs, row.published, same, called, note, **how)
        given = {name: how.get(name, "") for name in ("untestable", "same", "reconstructed")} | {"comparable": same, "note": note}
        self.claims.append(found | {"judged": {"rows": [ours, against]} | given})

    def claim_published(self) -> None:
        """Claim of every row that ran in the setting of its published number that it has that accuracy; where part of the setting had to be
        reconstructed, that it has the published gain over the same from all images, a selection over random images."""
        for name in [one for one in self.rows if self.results[one] and any(self.results[one]) and self.comparable(one)]:
            label, size, recipe = self.rows[name].label, self.rows[name].size, self.rows[name].recipes[0]
            what = f"{label}{f' at ipc {size}' * bool(size)}: the published"
            if not reconstructed(recipe):
                self.claim(f"value-{name}", f"{what} accuracy", name, family="value")
                continue
            plain = replace(recipe, prune=None, method="random" if METHODS[recipe.method].selects else recipe.method)
            for base in [one for one, row in self.rows.items() if row.recipes and row.recipes[0] == plain and row.published][:1]:
                self.claim(f"gain-{name}", f"{what} gain over {self.rows[base].label}", name, base, family="value", equal=True)

    def _unlike(self) -> list[str]:
        """In what images differ from the published ones, where the setting is else the same."""
        held, copies = len(self.data.validation), self.p.dataset == "folder" and self.published_set != "folder"
        notes = [f"{held / (held + len(self.train)):.0%} of the training images were held out"] if held else []
        return notes + ["the images are copies in files of their own"] * copies

    def claim_values(self, id: str, statement: str, ours: list, theirs: list | None, against: str, *, source: str = "ours", **how) -> None:
        """Claim that numbers are above others: a list for each seed, class or image; `how` as `records.claim` has it."""
        self.claims.append(records.claim(id, statement, source, ours, theirs, against=against, scale=self.p.scale, **how))

    def verdicts(self, fresh: bool = True) -> Markdown:
        """Claims since it was last asked with what was measured and their verdicts, once a section; all of them where not `fresh`."""
        claims, self.told = records.corrected(self.claims)[self.told if fresh else 0 :], len(self.claims)
        return Markdown(tables.verdicts(claims))

    # What is left behind

    def export(self, name: str, file: str, **card) -> Synthetic | None:
        """Write the first set of a row, made or kept, as a file for others; what was written, None where it was not run.

        card  what else the file says of itself
        """
        result = (self.results.get(name) or [None])[0]
        if result is None:
            return None
        row, made = self.rows[name], self.set_of(name)
        recipe = row.recipes[0]
        if not METHODS[recipe.method].makes_set:
            kept = row.experiment.kept(recipe).to(self.train.device)
            made = Synthetic({"images": self.train.batch(kept), "targets": self.train.targets[kept]}, self.classes)
        if made is None:
            return None
        export(made, self.here / f"{file}.safetensors", self.card(recipe, result, row.experiment) | card, self.train.transform)
        return made

    def card(self, recipe: Recipe, result: dict, experiment: Experiment) -> dict:
        """What the file of a set says of how it was made."""
        known = {"method": recipe.method, "size": recipe.size, "seed": recipe.seed, "data": self.label, "data_digest": self.data.digest}
        known |= {"steps": result["steps"], "network": experiment.network.spec()}
        return known | ({"prune": recipe.prune.spec()} if recipe.prune else {})

    def export_scores(self, *names: str) -> None:
        """Write scores as files that say what they are and of which images, and are refused for any others."""
        for name in names:
            path, scores = self.here / f"{name.replace(' ', '-')}.safetensors", self.bench.scores
            trials, epochs = scores.lengths.get(name, (1, 0))
            card = {"score": name, "network": self.bench.network.spec(), "trials": trials, "epochs": epochs, "seed": self.p.seed}
            files.save(path, scores.get(name, self.p.seed), self.train, card)
            read_back, card = files.load(path, self.train)
            print(f"{card['score']}: {len(read_back)} images, {card['trials']} networks of {card['epochs']} epochs")

    def record(self, **data) -> None:
        """Write the record: what was claimed, measured and spent. A run counts as done only if this file is there.

        data  what else it says of the data
        """
        finished = [one for name, row in self.rows.items() if not row.view for one in self.results[name] if one]
        distinct = list({id(one): one for one in finished}.values())  # the best of several is one of them
        billed = self.experiments[0].billed(distinct) if self.experiments else distinct
        passes = [*self.bills, *(bill for one in self.experiments for bill in one.billed_passes)]
        passes = [bill for i, bill in enumerate(passes) if bill not in passes[:i]]  # experiments share stored scores
        splits, listed = self.data, [name for name, row in self.rows.items() if row.listed]
        sizes = {"train": len(splits.train), "test": len(splits.test)}
        records.write(
            self.here / "record.json",
            notebook=self.notebook,
            key=records.record_key(self.notebook, vars(self.p)),
            pool=pooling.pool_key(self.notebook, vars(self.p)),
            scale=self.p.scale,
            parameters=parameters.public(self.kinds, vars(self.p)),
            claims=records.corrected(self.claims),
            rows=[self.summary(name) for name in listed],
            costs=records.cost(time.monotonic() - self.began, self.runs, billed, passes),
            missing=self.runs.missing,
            against=self.against,
            data={"label": self.label, "digest": splits.digest, "notes": list(splits.notes)} | sizes | data,
        )
        left = f"{len(self.runs.missing)} not run within the budget"
        further = sum(one["further"] for one in self.claims)
        made = f"{len(self.claims) - further} claims, {further} further comparisons"
        print(f"record written: {len(listed)} rows, {len(finished)} sets, {made}; {left}")
