"""All rows of the table, by package and export."""

from __future__ import annotations

from contract.row import Row
from contract.scorer_rows import LIBRARY_ROWS, SCORERS, WEIGHTERS
from contract.table import FUNCTIONS, LOSSES, PENALTIES

TABLES: dict[str, dict[str, Row]] = {
    "functional": FUNCTIONS,
    "losses": LOSSES,
    "penalties": PENALTIES,
    "scorers": SCORERS,
    "weighting": WEIGHTERS,
}
ROWS: dict[str, Row] = {f"{package}.{name}": row for package, table in TABLES.items() for name, row in table.items()}
ROWS |= LIBRARY_ROWS
