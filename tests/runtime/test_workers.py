import torch

from kshot.runtime.workers import PairwiseSum, Workers


def summed(terms: list[torch.Tensor]) -> torch.Tensor:
    total = PairwiseSum()
    for term in terms:
        total.add(term)
    return total.result()


def test_parts_of_a_power_of_two_sum_to_the_bits_of_the_whole() -> None:
    terms = list(torch.randn(8, 100, generator=torch.Generator().manual_seed(1)))
    whole = summed(terms)
    for n_parts in (2, 4):
        parts = [summed([terms[i] for i in Workers(rank, n_parts).share(range(8))]) for rank in range(n_parts)]
        assert torch.equal(summed(parts), whole)
    assert not torch.equal(torch.stack(list(reversed(terms))).sum(0), whole)  # another order has other bits


def test_any_number_of_terms_is_summed() -> None:
    for count in range(1, 12):
        terms = list(torch.arange(1.0, count + 1))
        assert float(summed(terms)) == count * (count + 1) / 2


def test_the_terms_stay_as_they_were() -> None:
    terms = [torch.ones(3), torch.ones(3)]
    summed(terms)
    assert all(torch.equal(term, torch.ones(3)) for term in terms)
