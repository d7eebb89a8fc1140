"""What stands around a run: git, DVC, buckets, and whether this machine has what it takes."""
