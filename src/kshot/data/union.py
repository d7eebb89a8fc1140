"""Unions of datasets: which there are, and whether one is that of its members as they are now."""

from collections.abc import Sequence
from pathlib import Path

from kshot.data.packed import INFO_FILE, Member, PackedDataset, read_info
from kshot.errors import DataError
from kshot.printing import listed


def check_united(members: Sequence[str], name: str, data_folder: Path) -> None:
    """Raise DataError unless data_folder/name is the union of `members` as they are now."""
    folder = data_folder / name
    found = read_info(folder).members if (folder / INFO_FILE).is_file() else ()
    if found != tuple(as_member(PackedDataset.open(data_folder / member)) for member in members):
        raise DataError(
            f"{folder} is not the union of {listed(members, len(members))} as they are now; next: kshot unite"
        )


def unions_of(name: str, data_folder: Path) -> list[str]:
    """Names of the unions under `data_folder` that hold items of the dataset `name`."""
    infos = [read_info(path.parent) for path in sorted(data_folder.glob(f"*/{INFO_FILE}"))]
    return [info.name for info in infos if name in [member.name for member in info.members]]


def as_member(dataset: PackedDataset) -> Member:
    return Member(name=dataset.name, content_hash=dataset.content_hash)
