"""Linear heads."""

from kshot.errors import EpisodeError


def check_max_way(algorithm: str, n_way: int, max_way: int) -> None:
    """Raise EpisodeError when an episode has more classes than a head of `max_way` rows tells apart."""
    if n_way > max_way:
        raise EpisodeError(
            f"found {n_way} classes; this {algorithm} head was trained for {max_way}; "
            f"next: train with task_pool.meta_train.shape.n_way: {n_way}, or use protonet"
        )
