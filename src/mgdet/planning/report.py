"""What a check has to say: rows of ok, warning and stop, as a table and as plain values."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mgdet.sections import finite

WIDTH = 100
"""Columns of the terminal that the table is made for."""

Status = Literal["ok", "warning", "stop"]


class Row(NamedTuple):
    """One thing that was looked at.

    status: `stop` is a reason not to start the run, `warning` one to think it over.
    what: a word or two.
    detail: one sentence.
    """

    status: Status
    what: str
    detail: str


@dataclass(slots=True)
class Report:
    """All that was looked at.

    rows: in the order in which it was.
    values: what was measured, plain values by name.
    """

    rows: list[Row] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def add(self, status: Status, what: str, detail: str) -> None:
        """Takes one row."""
        self.rows.append(Row(status, what, detail))

    @property
    def stops(self) -> list[str]:
        """The sentences that speak against starting the run."""
        return [row.detail for row in self.rows if row.status == "stop"]

    @property
    def warnings(self) -> list[str]:
        """The sentences to think over."""
        return [row.detail for row in self.rows if row.status == "warning"]

    def to_dict(self) -> dict[str, Any]:
        """Dicts, lists and scalars, ready for JSON."""
        rows = [row._asdict() for row in self.rows]
        return {"stops": self.stops, "warnings": self.warnings, "rows": rows, "values": finite(self.values)}

    def to_json(self) -> str:
        """The same as text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def table(self, known: Collection[str] = ()) -> str:
        """The rows for people, without colours.

        Args:
            known: details of rows that are said elsewhere and left out here.
        """
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        before = ""
        for row in self.rows:
            if row.detail in known:
                continue
            status = row.status.upper() if row.status == "stop" else row.status
            table.add_row(Text(status), Text(row.what if row.what != before else ""), Text(row.detail))
            before = row.what
        console = Console(width=WIDTH, color_system=None, highlight=False)
        with console.capture() as captured:
            console.print(table)
        return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())
