"""Records, claims and verdicts, tables, figures, provenance."""
