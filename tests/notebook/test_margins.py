"""What 'no worse' forgives: never more than half of the published effect that a notebook is about."""

from pathlib import Path

import yaml

from distillery.methods import published
from distillery.notebook import parameters
from distillery.report import records

ROOT = Path(__file__).resolve().parents[2]


def test_margins_of_records_are_at_most_half_of_their_largest_published_difference():
    judged = 0
    for record in records.find(ROOT / "results"):
        known = [abs(claim["published"]["difference"]) for claim in record["claims"] if "difference" in (claim["published"] or {})]
        for claim in (one for one in record["claims"] if known and one.get("margin")):
            assert claim["margin"] <= max(known) / 2, (record["path"], claim["id"])
            judged += 1
    assert judged


def test_the_margin_of_bilp_is_at_most_half_of_what_selection_gains():
    selected, full = (published("cifar10", f"DC, {kept} (BiLP)", 1)["mean"] for kept in ("selected 10%", "full"))
    planned = [parameters.declared(ROOT / "notebooks" / "01_bilp.ipynb")[1]]
    planned += [yaml.safe_load(file.read_text()) for file in (ROOT / "notebooks" / "params").glob("01_bilp.*.yaml")]
    margins = [one["margin"] for one in planned if "margin" in one]
    assert margins and max(margins) <= round((selected - full) / 2, 6)
