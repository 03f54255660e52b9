"""Numbers made of other numbers."""

import pytest
import torch

from dreamgym.streams import anew


def test_numbers_anew_are_uniform_and_tell_nothing_of_those_they_are_for():
    given = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    first, second = anew(given, 1), anew(given, 2)
    for numbers in (first, second):
        assert numbers.min() >= 0 and numbers.max() < 1 and numbers.dtype == torch.float32
        torch.testing.assert_close(torch.histc(numbers, 20, 0, 1) / 10_000, torch.ones(20), atol=0.06, rtol=0)
    # Of those whose number was in a narrow range, too.
    narrow = (given > 0.5) & (given < 0.52)
    assert torch.corrcoef(torch.stack([given, first, second])).triu(1).abs().max() < 0.01
    assert first[narrow].mean() == pytest.approx(0.5, abs=0.02) and first[narrow].std() == pytest.approx(
        12**-0.5, abs=0.02
    )
    assert torch.equal(anew(given[7:9], 2), second[7:9])
