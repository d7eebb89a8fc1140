"""Tables that the tests write beside pictures, and what is read of them."""

from pathlib import Path

from kshot.data.folders import FoundFile
from kshot.ingest.columns import Columns
from kshot.ingest.pictures import Pictures
from kshot.ingest.tables import Table, read_table

PICTURES = ("batch0/0.png", "batch0/1.png", "batch1/0.png", "batch1/1.png")
CLASSES = {"batch0/0.png": "ant", "batch0/1.png": "bee", "batch1/0.png": "001", "batch1/1.png": "NA"}


def pictures(*names: str) -> Pictures:
    return Pictures([FoundFile(parts=tuple(name.split("/")), path=Path(name)) for name in names])


def read(tmp_path: Path, content: str | bytes, name: str = "labels.csv", *names: str, **asked: str) -> Table:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_table(path, name, pictures(*(names or PICTURES)), asked=Columns(**asked))


def labels(table: Table) -> dict[str, str]:
    return {row.path: row.class_name for row in table.rows}
