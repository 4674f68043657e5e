"""The scoreboard of methods: every one at every size, judged along several axes, beside random images judged alike."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from IPython.display import Markdown
from matplotlib.ticker import LogLocator

from distillery.methods import METHODS, published
from distillery.notebook.session import Session
from distillery.recipe import Evaluate, Prune, Recipe
from distillery.report import figures, standing, tables
from distillery.report.robustness import normalized, robustness
from distillery.report.statistics import difference
from distillery.selection import count

REAL = "all images"  # the row of all real images
AXES = "accuracy", "LRS", "ARS", "equal bytes", "equal seconds", "other networks"


class Board:
    """Rows of methods by size under the protocol of the session's bench and under changes of it.

    methods   size -> names of methods
    seeds     size -> number of sets of each method
    numbers   random images of each class whose accuracy and cost are the frontier
    networks  further architectures that are trained on the sets
    rates     of training, tried beside a set's own rate: that of the protocol, or the one it has learned. Validation images choose for the
              first set of a row, by the protocol of the bench; the other sets and other protocols take the same
    """

    def __init__(
        self, session: Session, methods: dict[int, Sequence[str]], seeds: dict[int, int], numbers: Sequence[int], networks: Sequence[str],
        rates: Sequence[float],
    ):  # fmt: skip
        self.session, self.methods, self.seeds = session, methods, seeds
        self.numbers, self.networks, self.rates = sorted(set(numbers)), networks, rates
        self.random, self.parts = METHODS["random"].name, {}

    # Rows

    def loss(self, method: str, size: int) -> str:
        """By which networks learn the labels of its sets."""
        [seed] = self.session.seeds(1)
        bench = self.session.bench
        return METHODS[method].loss_of_labels(bench.job(Recipe(method, size, seed))) or bench.protocol.loss

    def row(self, method: str, size: int, n: int, network: str = "", labels: str = "own", loss: str = "", **changes) -> str:
        """Run a row and give its name. What is judged as all are judged is listed.

        network, labels  of `Evaluate`
        loss             for random images beside a set with another one, '' = that of the method
        changes          of the protocol, such as augmentation='' or epochs=300
        """
        session, own = self.session, self.loss(method, size)
        protocol = replace(session.bench.protocol, **changes, loss=loss or own)
        told = {f"on {network}": network, f"{labels} labels": labels == "hard", loss: loss not in ("", own)}
        told |= {f"{changes.get('epochs')} epochs": "epochs" in changes, "augmented": changes.get("augmentation")}
        told |= {"not augmented": changes.get("augmentation") == ""}
        told = [words for words, so in told.items() if so]
        name = ", ".join([f"{method} {size}", *told])
        if len(session.results.get(name, [])) < n:
            evaluate = Evaluate(network=network, labels=labels)
            rate = self.rate(Recipe(method, size, session.seeds(1)[0], evaluate=evaluate), protocol.loss)
            how = {"evaluate": replace(evaluate, lr=rate), "experiment": session.bench.under(protocol), "listed": not told}
            against = {"against": name if method == self.random else self.row(self.random, size, n, network, "own", loss or own, **changes)}
            session.row(name, method, size, n, label=", ".join([method, *told]), published=None if told else "", **how, **against)
        return name

    def rate(self, recipe: Recipe, loss: str) -> float:
        """The rate of `Evaluate` for a row by its first recipe, 0 = its own."""
        if not self.rates:
            return 0.0
        bench = self.session.bench
        found = bench.under(replace(bench.protocol, loss=loss)).best_rate(recipe, self.rates)
        return found["rate"] if found else 0.0

    def twin(self, method: str, size: int, **changes) -> str:
        """The row of as many random images, trained by the same loss."""
        return self.row(self.random, size, self.seeds[size], loss=self.loss(method, size), **changes)

    def run(self, epochs: int, batch: int, parts: Sequence[float] = (), networks: int = 0) -> None:
        """Run everything that the axes ask for; all real images, and random parts of them, are passed so often, `batch` a step.

        networks  trained on those, 0 = as many as on sets
        """
        settings = {"epochs": epochs, "batch": batch}
        protocol = self.session.bench.protocol
        rate = self.rate(Recipe("whole", 0, self.session.seeds(1)[0], settings=settings), protocol.loss)
        how = {"settings": settings, "against": REAL, "evaluate": Evaluate(lr=rate)}
        how |= {"experiment": self.session.bench.under(replace(protocol, networks=networks or protocol.networks))}
        self.session.row(REAL, "whole", 0, published="whole", **how)
        for part in parts:
            if part not in (1, *self.parts.values()):
                name = f"{part:.0%} of all" if part < 1 else f"{part:g} of each class"
                self.parts[name] = part
                self.session.row(name, "whole", 0, prune=Prune(part, "random"), published=None, **how)
        for size, methods in self.methods.items():
            n = self.seeds[size]
            for method in methods:
                for how in ({}, {"augmentation": ""}, *({"network": one} for one in self.networks)):
                    self.row(method, size, n, **how)
                self.twin(method, size, augmentation="")
                self._hard(method, size)
        for number in self.numbers:
            self.row(self.random, number, self.seeds[min(self.seeds)])

    @staticmethod
    def distilled(method: str) -> bool:
        """Whether something of its sets is made: pixels, or labels."""
        return bool(METHODS[method].learns) or METHODS[method].own_labels

    def _hard(self, method: str, size: int) -> str:
        """The row of its sets under hard labels, which is its own where they bring no others."""
        return self.row(method, size, self.seeds[size], labels="hard" if METHODS[method].own_labels else "own")

    # Costs and what random images reach

    def seconds(self, name: str) -> float | None:
        """What one network costs from real images to its accuracy: experts and scores of the set, making it, training and testing on it.

        Medians over sets; None where nothing has run.
        """
        session, done = self.session, [one for one in self.session.results[name] if one]
        if not done:
            return None
        recipe = session.rows[name].recipes[0]
        each = [one["seconds"] - one["seconds_evaluation"] * (1 - 1 / len(one["accuracies"])) for one in done]
        shared = [one.get("experts", {}).get("seconds", 0.0) for one in done]
        scored = 0.0
        for score in METHODS[recipe.method].scores(session.bench.job(recipe)):
            session.bench.scores.get(score, recipe.seed)
            scored += session.bench.scores.costs.get((score, recipe.seed), {"seconds": 0.0})["seconds"]
        return float(np.median(each) + np.median(shared) + scored)

    def worth(self, name: str) -> float | None:
        """How many random images of each class take as many bytes: four a number, but one a pixel that is not learned."""
        done = [one for one in self.session.results[name] if one]
        if not done:
            return None
        recipe, image = self.session.rows[name].recipes[0], self.session.train.pixels.shape[1:].numel() * len(self.session.classes)
        kept = 0 if METHODS[recipe.method].learns else recipe.size
        return kept + 4 * (done[0]["stored_numbers"] / image - kept)

    def costs(self) -> dict[str, dict[str, float]]:
        """Rows of the frontier -> what they cost by 'bytes', in random images of each class, and by 'seconds'."""
        rows = {f"{self.random} {number}": number for number in self.numbers}
        found = {name: {"bytes": number, "seconds": self.seconds(name)} for name, number in rows.items()}
        fewest = min(self.session.train.counts())
        for name, part in {**self.parts, REAL: 1.0}.items():
            found[name] = {"bytes": count(part, fewest), "seconds": self.seconds(name)}
        return {name: one for name, one in found.items() if one["seconds"] is not None}

    def reached(self, by: str, cost: float, i: int) -> float | None:
        """What random images reach at a cost, of the i-th seed; rows of which one set has run stand for every seed."""
        points = []
        for name, costs in self.costs().items():
            values = self.by_seed(name)
            value = values[i] if i < len(values) else values[0] if name in (REAL, *self.parts) else None
            points += [(costs[by], value)] if value is not None else []
        return standing.frontier(points, cost) if points else None

    # Axes

    def by_seed(self, name: str) -> list[float | None]:
        """The mean accuracy of each set of a row."""
        return [one and float(np.mean(one)) for one in self.session.accuracies(name)]

    def values(self, size: int) -> dict[str, standing.Values]:
        """axis -> method -> its value under each seed, as fractions; large is good on every axis."""
        return {axis: {method: self._along(axis, method, size) for method in self.methods[size]} for axis in self.axes}

    @property
    def axes(self) -> list[str]:
        return [axis for axis in AXES if axis != "other networks" or self.networks]

    def _along(self, axis: str, method: str, size: int) -> list[float | None]:
        rows, name = self._rows(method, size), f"{method} {size}"
        own = self.by_seed(name)[: self.seeds[size]]  # the frontier may have more seeds of random images
        if axis == "accuracy":
            return own
        if axis == "other networks":
            by_network = [self.by_seed(f"{name}, on {network}") for network in self.networks]
            return [None if None in one else float(np.mean(one)) for one in zip(*by_network)]
        if axis.startswith("equal"):
            by = axis.removeprefix("equal ")
            cost = self.worth(name) if by == "bytes" else self.seconds(name)
            base = [cost and self.reached(by, cost, i) for i in range(self.seeds[size])]
            return [None if None in one else one[0] - one[1] for one in zip(own, base)]
        real = self.by_seed(REAL)[0]
        found = []
        for values in zip(*(self.by_seed(one) for one in rows.values())):
            one = dict(zip(rows, values), real=real)
            if None in one.values():
                found.append(None)
            elif axis == "LRS":
                found.append(normalized((one["own"] - one["random"] - (one["real"] - one["hard"])) / 2))
            else:
                found.append(normalized((one["own"] - one["random"] + one["own_plain"] - one["random_plain"]) / 2))
        return found

    def _rows(self, method: str, size: int) -> dict[str, str]:
        """The rows that `robustness` asks for."""
        n, plain = self.seeds[size], {"augmentation": ""}
        names = {"hard": self._hard(method, size), "own": self.row(method, size, n), "random": self.twin(method, size)}
        return names | {"own_plain": self.row(method, size, n, **plain), "random_plain": self.twin(method, size, **plain)}

    def scores(self, method: str, size: int) -> dict | None:
        """`robustness` of the seeds that have run, None where none has."""
        rows = {name: self.session.accuracies(row) for name, row in self._rows(method, size).items()}
        whole = [i for i in range(self.seeds[size]) if all(one[i] for one in rows.values())]
        real = [one for one in self.session.accuracies(REAL) if one]
        return robustness(real, **{name: [one[i] for i in whole] for name, one in rows.items()}) if whole and real else None

    # What is shown

    def table(self, size: int) -> Markdown:
        """A line a method: accuracy, what LRS and ARS are made of and both, with 95% intervals."""
        head, lines = ["method", "accuracy, %", "HLR", "IOR", "IOR, not augmented", "LRS", "ARS"], []
        for method in self.methods[size]:
            cell, one = tables.percent(self.session.summary(f"{method} {size}")["measured"]), self.scores(method, size)
            shown = [tables.score(one[name]) for name in ("hlr", "ior", "gap_plain", "lrs", "ars")] if one else ["not run"] * 5
            lines.append([method, cell, *shown])
        return Markdown(tables.markdown(head, lines))

    def gains(self, size: int) -> Markdown:
        """A line a method: what it costs in bytes and seconds, how much random images reach at that, and the gain with its interval."""
        head, lines = ["method", "accuracy, %"], []
        head += ["random images of as many bytes", "gain over them, points", "seconds in all", "gain over random images of as many, points"]
        gaps, means = self.gaps(size), standing.means(self.values(size)["accuracy"])
        for method in self.methods[size]:
            name = f"{method} {size}"
            if (seconds := self.seconds(name)) is None:
                lines.append([method, *["not run"] * 5])
                continue
            bytes_, spent = (tables.points(gap) if (gap := gaps[cost][method]) else "-" for cost in ("bytes", "seconds"))
            lines.append([method, f"{100 * means[method]:.1f}", f"{self.worth(name):.1f} a class", bytes_, f"{seconds:.1f}", spent])
        return Markdown(tables.markdown(head, lines))

    def gaps(self, size: int) -> dict[str, dict[str, dict | None]]:
        """'images', 'bytes' or 'seconds' -> method -> `difference` of its accuracy to that of random images at equal cost."""
        values, found = self.values(size), {}
        beside = self.by_seed(f"{self.random} {size}")[: self.seeds[size]]
        for cost in ("images", "bytes", "seconds"):
            found[cost] = {}
            for method in self.methods[size]:
                ours = values["accuracy"][method] if cost == "images" else values[f"equal {cost}"][method]
                base = beside if cost == "images" else [0.0] * len(ours)
                found[cost][method] = difference(*([None if one is None else [one] for one in side] for side in (ours, base)))
        return found

    def draw_gains(self, axes, size: int) -> None:
        """Draw `gaps` in three axes of one row, best by accuracy first, each at its own scale."""
        order = [one for one in standing.places(self.values(size)["accuracy"]) if one != self.random]
        for axis, (cost, gaps) in zip(axes, self.gaps(size).items()):
            figures.intervals(axis, {one: gaps[one] for one in order}, f"random images\nof as many {cost}")
            for label in axis.get_yticklabels():
                label.set_color(self.styles[label.get_text()]["color"])

    @property
    def styles(self) -> dict[str, dict]:
        """How methods are drawn, alike in all figures; selections in grey."""
        names = list(dict.fromkeys(name for methods in self.methods.values() for name in methods))
        return figures.told_apart(names, [name for name in names if not self.distilled(name)])

    def draw_lines(self, axis, curves: dict[str, tuple], marker: str = "") -> dict[str, tuple]:
        """Draw curves method -> (x, y) as methods are drawn; the last point of each."""
        for method, (x, y) in curves.items():
            axis.plot(x, y, marker=marker, color=self.styles[method]["color"], ls=self.styles[method]["ls"], lw=1.6, ms=5)
        return {method: (x[-1], y[-1]) for method, (x, y) in curves.items() if len(x)}

    def name_lines(self, axis, ends: dict[str, tuple]) -> None:
        """Write names of methods beside the ends of their lines."""
        figures.name_ends(axis, ends, {method: self.styles[method]["color"] for method in ends})

    def draw_weights(self, axis, score: str, size: int) -> None:
        """Draw the curve of each method of 'LRS' or 'ARS' over its weight."""
        curves = {}
        for method in self.methods[size]:
            if found := self.scores(method, size):
                curve = found[f"{score.lower()}_curve"]
                curves[method] = [one["weight"] for one in curve], [one["value"] for one in curve]
        axis.axvline(0.5, color=figures.INK, lw=0.8, ls=":")
        self.name_lines(axis, self.draw_lines(axis, curves))
        axis.set(ylabel=score, xticks=(0, 0.5, 1))

    def draw_frontier(self, axis, size: int) -> None:
        """Draw accuracy in percent against seconds: a dot a method, the line of random images of growing number, named by it."""
        costs = {name: one["seconds"] for name, one in self.costs().items()}
        points = sorted((spent, 100 * standing.means({name: self.by_seed(name)})[name], name) for name, spent in costs.items())
        axis.set_xscale("log")
        x, y = ([point[i] for point in points] for i in range(2))
        axis.plot(x, np.maximum.accumulate(y), color=figures.INK, lw=1.2)
        axis.plot(x, y, "o", color=figures.INK, ms=4)
        for one, two, name in points:
            shown = name.removesuffix(" images").removeprefix(f"{self.random} ")
            axis.annotate(shown, (one, two), (0, -11), textcoords="offset points", ha="center", fontsize=8, color=figures.INK)
        dots = {}
        for method in self.methods[size]:
            if method != self.random and (spent := self.seconds(f"{method} {size}")):
                dots[method] = spent, 100 * standing.means({method: self.by_seed(f"{method} {size}")})[method]
        figures.named_dots(axis, dots, self.styles)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.set(xlabel="seconds: making the set,\ntraining and testing one network", ylabel="test accuracy, %")

    # Protocols

    def protocols(self, size: int, methods: Sequence[str], epochs: Sequence[int], looks: int, n: int) -> dict[str, dict[tuple, str]]:
        """Run the same sets under several protocols: method -> ('augmented' or 'not augmented', epochs) -> its row.

        Beside each stands its row ', best on test', the same runs by the largest accuracy on test images on the way.
        """
        kinds, found = {"not augmented": "", "augmented": self.session.augmentation}, {}
        for method in methods:
            found[method] = {}
            for kind, families in kinds.items():
                for passes in epochs:
                    name = self.row(method, size, n, epochs=passes, augmentation=families, looks=looks)
                    self.session.view(f"{name}, best on test", of=name, by="best")
                    found[method][kind, passes] = name
        return found

    def protocol_table(self, size: int, tried: dict[str, dict[tuple, str]]) -> Markdown:
        """Accuracies of `protocols` in percent by the last weights, how far apart the protocols put a method, and a protocol the methods."""
        columns = list(next(iter(tried.values())))
        head = ["method", "published, %", *(f"{kind}, {passes} epochs" for kind, passes in columns), "apart by protocol, points"]
        values = {method: [standing.means({one: self.by_seed(one)}).get(one) for one in rows.values()] for method, rows in tried.items()}
        known = {method: published(self.session.published_set, method, size) for method in tried}
        lines = []
        for method, row in values.items():
            apart = f"{100 * (max(row) - min(row)):.1f}" if None not in row else "-"
            lines.append([method, tables.published(known[method]), *("-" if one is None else f"{100 * one:.1f}" for one in row), apart])
        numbers = [one["mean"] for one in known.values() if one]
        spans = [numbers, *zip(*values.values())]
        apart = [f"{100 * (max(one) - min(one)):.1f}" if len(one) > 1 and None not in one else "-" for one in spans]
        lines.append(["*apart by method, points*", *apart, ""])
        return Markdown(tables.markdown(head, lines))

    def draw_protocols(self, axes, tried: dict[str, dict[tuple, str]]) -> None:
        """Draw accuracies of `protocols` over epochs, a panel a kind: dots and a line by the last weights, crosses by the best on test images."""
        ends = []
        for axis, kind in zip(axes, dict.fromkeys(kind for rows in tried.values() for kind, _ in rows)):
            axis.set(xscale="log", title=kind, xlabel="epochs (dot: last weights, cross: best on test images)")
            curves, best = {}, {}
            for method, rows in tried.items():
                names = {passes: name for (of, passes), name in rows.items() if of == kind and any(self.session.results[name])}
                for found, more in ((curves, ""), (best, ", best on test")):
                    y = [100 * standing.means({method: self.by_seed(name + more)})[method] for name in names.values()]
                    found[method] = list(names), y
            passes = sorted({one for x, _ in curves.values() for one in x})
            axis.set_xticks(passes, passes)
            axis.minorticks_off()
            for method, (x, y) in best.items():
                axis.plot(x, y, "x", color=self.styles[method]["color"], ms=6)
            ends.append(self.draw_lines(axis, curves, "o"))
        for axis, names in zip(axes, ends):  # which share their heights
            self.name_lines(axis, names)
        axes[0].set_ylabel("test accuracy, %")
