"""Episodes from a store of 4 GiB in a process that may take half a GiB beyond its imports. The files are sparse."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kshot.data.items import ImageKind
from kshot.data.items.contract import item_size_bytes
from kshot.data.packed import DatasetInfo, Shard, Splits, info_json, manifest_schema, npy_header

ITEM = ImageKind(image_size=512, channels=3)
N_SHARDS, PER_SHARD, PER_CLASS = 16, 340, 10

LOAD_EPISODES = """
import resource
from pathlib import Path

import numpy as np
import torch

from kshot.data.packed import PackedDataset
from kshot.episodes.episode import EpisodeShape
from kshot.data.gather import item_gather
from kshot.episodes.loader import EpisodeLoader
from kshot.episodes.sampling import Uniform
from kshot.episodes.pools import SampledPool

dataset = PackedDataset.open(Path("large"))
held_kib = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))
limit_bytes = held_kib * 1024 + 512 * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
assert dataset.size_bytes > 3.9 * 2**30
shape = EpisodeShape(n_way=5, k_shot=1, n_query=2)
pool = SampledPool.of_split(dataset.class_table("meta_train"), shape, Uniform(), seed=1, split="meta_train")
numbers = range(24)
loader = EpisodeLoader(pool=pool, gather=item_gather(dataset, torch.device("cpu")))
indices = pool.episodes(numbers)
shards = set()
for number in numbers:
    episodes = loader.load(range(number, number + 1))
    images = torch.cat([episodes.support_x, episodes.query_x], dim=1)[0]
    marks = (images[:, :2, 0, 0] * 255).round().long() @ torch.tensor([1, 256])
    items = np.concatenate([indices.support[number].ravel(), indices.query[number].ravel()])
    assert marks.tolist() == items.tolist()
    shards |= set((items // 340).tolist())
print(len(shards))
"""


def write_sparse_store(folder: Path) -> None:
    """Every item is zero but for its first two numbers, which are its own."""
    folder.mkdir()
    header = npy_header(PER_SHARD, ITEM)
    for shard in range(N_SHARDS):
        with (folder / f"items-{shard:05d}.npy").open("wb") as file:
            file.write(header)
            file.truncate(len(header) + PER_SHARD * item_size_bytes(ITEM))
            for i in range(PER_SHARD):
                file.seek(len(header) + i * item_size_bytes(ITEM))
                file.write((shard * PER_SHARD + i).to_bytes(2, "little"))
    n_items = N_SHARDS * PER_SHARD
    classes = [f"c{i // PER_CLASS:04d}" for i in range(n_items)]
    columns = {
        "id": [str(i) for i in range(n_items)],
        "class": classes,
        "group": [""] * n_items,
        "sha256": ["0" * 64] * n_items,
        "source": ["sparse"] * n_items,
        "width": np.full(n_items, 512),
        "height": np.full(n_items, 512),
        "mode": ["RGB"] * n_items,
        "version": np.ones(n_items, dtype=np.int64),
    }
    pq.write_table(pa.table(columns, schema=manifest_schema(ITEM)), folder / "manifest.parquet")
    info = DatasetInfo(
        name="large",
        source="sparse",
        licence="none",
        item=ITEM,
        splits=Splits(meta_train=tuple(dict.fromkeys(classes))),
        shards=tuple(Shard(file=f"items-{i:05d}.npy", items=PER_SHARD, sha256="0" * 64) for i in range(N_SHARDS)),
    )
    (folder / "dataset.json").write_bytes(info_json(info))


def test_episodes_of_a_store_larger_than_memory_are_read_from_its_files(tmp_path: Path) -> None:
    write_sparse_store(tmp_path / "large")
    done = subprocess.run(
        [sys.executable, "-c", LOAD_EPISODES], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > N_SHARDS // 2  # of the shards, most were asked
