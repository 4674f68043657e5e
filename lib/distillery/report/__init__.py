"""Records, claims and verdicts, tables, figures, provenance."""

from distillery.report.external import compare_with_random
from distillery.report.provenance import provenance
from distillery.report.records import (
    VERDICTS,
    accuracies,
    best_of,
    claim,
    cost,
    critical_size,
    difference,
    find,
    measured,
    rank_correlation,
    record_key,
    row,
    verdict,
    write,
)
from distillery.report.tables import percent, rows_by_record, rows_table, table

__all__ = [
    "VERDICTS",
    "accuracies",
    "best_of",
    "claim",
    "compare_with_random",
    "cost",
    "critical_size",
    "difference",
    "find",
    "measured",
    "percent",
    "provenance",
    "rank_correlation",
    "record_key",
    "row",
    "rows_by_record",
    "rows_table",
    "table",
    "verdict",
    "write",
]
