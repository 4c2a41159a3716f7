"""Archives and tables: one that the user names, or all below a folder; and the files that tables name."""

from pathlib import Path

from sonify.io.places import child, is_below, is_file, leads_out, list_files
from sonify.keys import escape_key
from sonify.stores import Place


def list_containers(path: Place, suffix: str) -> list[str]:
    """The one file that the path is, or all of the suffix below it, in the order of their keys."""
    return [path.name] if _is_one(path, suffix) else sorted(list_files(path, (suffix,)), key=escape_key)


def container(path: Place, uri: str) -> Place:
    """Where a file that `list_containers` found is."""
    return path if _is_one(path, Path(uri).suffix.lower()) else child(path, uri)


def file_beside(table: Place, name: str) -> Place | None:
    """The file that a table names; None where the name is a URL or leads out of the table's folder."""
    if not is_below(name) or ":" in name.partition("/")[0]:
        return None
    file = child(table.parent, name)
    if isinstance(file, Path) and isinstance(table, Path) and leads_out(table.parent, file):
        return None
    return file


def _is_one(path: Place, suffix: str) -> bool:
    """Whether a path is a file of its kind; a folder may be named `x.parquet`."""
    return path.suffix.lower() == suffix and is_file(path)
