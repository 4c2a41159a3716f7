"""The sink of a stage whose output is one table."""

from typing import Any, BinaryIO

from sonify.engine.tables import TableWriter


class TableSink:
    """Writes rows as they are."""

    def __init__(self, file: BinaryIO, row_type: type) -> None:
        self._table = TableWriter(file, row_type)

    def write(self, row: Any) -> None:
        """Add one row."""
        self._table.write(row)

    def close(self) -> None:
        """Finish the table."""
        self._table.close()
