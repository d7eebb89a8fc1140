"""Writes small packed datasets byte by byte, good ones and ones that no writer would let through."""

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kshot.data.items import ImageKind
from kshot.data.packed import SPLITS, DatasetInfo, Quarantined, Shard, Splits, info_json, manifest_schema

SIZE_PX = 16
_MANIFEST = manifest_schema(ImageKind(image_size=SIZE_PX, channels=1))


@dataclass(kw_only=True)
class TinyDataset:
    """Change any part, then write it. Every class's name tells its split: "train/c0", "val/c0", "test/c0"."""

    pixels: NDArray[np.uint8]
    manifest: pd.DataFrame
    splits: dict[str, list[str]]
    rotations: tuple[int, ...] = (0,)
    quarantined: list[Quarantined] = field(default_factory=list)

    def rows(self, class_name: str) -> NDArray[np.int64]:
        return np.flatnonzero(self.manifest["class"] == class_name)

    def drop(self, rows: NDArray[np.int64]) -> None:
        self.pixels = np.delete(self.pixels, rows, axis=0)
        self.manifest = self.manifest.drop(index=rows).reset_index(drop=True)

    def append(self, pixels: NDArray[np.uint8], class_name: str, *, version: int = 1) -> None:
        new = pd.DataFrame(
            {
                "id": [f"{class_name}/{len(self.pixels) + i}.png" for i in range(len(pixels))],
                "class": class_name,
                "group": class_name.split("/")[0],
                "source": "tiny",
                "width": SIZE_PX,
                "height": SIZE_PX,
                "mode": "L",
                "version": version,
            }
        )
        self.pixels = np.concatenate([self.pixels, pixels])
        self.manifest = pd.concat([self.manifest, new], ignore_index=True)

    def write(self, folder: Path, *, items_per_shard: int = 40) -> Path:
        folder.mkdir(parents=True)
        shards = []
        for number, start in enumerate(range(0, len(self.pixels), items_per_shard)):
            part = self.pixels[start : start + items_per_shard]
            path = folder / f"items-{number:05d}.npy"
            np.save(path, part)
            shards.append(Shard(file=path.name, items=len(part), sha256=sha256(path.read_bytes()).hexdigest()))
        manifest = self.manifest.assign(sha256=[sha256(item.tobytes()).hexdigest() for item in self.pixels])
        table = pa.Table.from_pandas(manifest[_MANIFEST.names], schema=_MANIFEST, preserve_index=False)
        pq.write_table(table, folder / "manifest.parquet")
        info = DatasetInfo(
            name=folder.name,
            source="tiny",
            licence="none",
            item=ImageKind(image_size=SIZE_PX, channels=self.pixels.shape[3]),
            rotations=self.rotations,
            splits=Splits(**{split: tuple(names) for split, names in self.splits.items()}),
            shards=tuple(shards),
            quarantined=tuple(self.quarantined),
        )
        (folder / "dataset.json").write_bytes(info_json(info))
        return folder


def noise(n_images: int, *, seed: int, low: int = 0, high: int = 256, channels: int = 1) -> NDArray[np.uint8]:
    """Images of which no two look alike."""
    return np.random.default_rng(seed).integers(low, high, (n_images, SIZE_PX, SIZE_PX, channels), dtype=np.uint8)


def tiny_dataset(*, n_classes: int = 4, n_images: int = 5, channels: int = 1) -> TinyDataset:
    """A good one: `n_classes` classes in each split, `n_images` images in each class."""
    columns = [name for name in _MANIFEST.names if name != "sha256"]
    empty = np.zeros((0, SIZE_PX, SIZE_PX, channels), dtype=np.uint8)
    tiny = TinyDataset(pixels=empty, manifest=pd.DataFrame(columns=columns), splits={split: [] for split in SPLITS})
    for split in SPLITS:
        for number in range(n_classes):
            name = f"{split.removeprefix('meta_')}/c{number}"
            tiny.splits[split].append(name)
            tiny.append(noise(n_images, seed=len(tiny.pixels), channels=channels), name)
    return tiny
