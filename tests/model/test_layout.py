from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmmlkd_ext.model.layout import BlockLayout, ParameterSpec

shapes = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple), min_size=1, max_size=6)


def layout_of(sizes: list[tuple[int, ...]], std: float = 1.0) -> BlockLayout:
    return BlockLayout({f"parameter {number}": ParameterSpec(shape, std) for number, shape in enumerate(sizes)})


@given(shapes, st.integers(0, 3))
def test_views_cover_every_column_once_in_order(sizes, devices):
    layout = layout_of(sizes)
    matrix = torch.arange(devices * layout.size).view(devices, layout.size)
    views = layout.views(matrix)
    assert [tuple(view.shape) for view in views.values()] == [(devices, *shape) for shape in sizes]
    assert torch.equal(torch.cat([view.flatten(1) for view in views.values()], 1), matrix)


def test_views_share_memory_with_the_matrix():
    layout = layout_of([(2, 3), (3,)])
    matrix = torch.zeros(4, layout.size)
    for view in layout.views(matrix).values():
        view += 1
    assert torch.equal(matrix, torch.ones(4, 9))


def test_initial_values_have_the_scale_of_each_parameter():
    specs = {
        "wide": ParameterSpec((100, 100), 0.5),
        "zero": ParameterSpec((7,), 0.0),
        "narrow": ParameterSpec((10**4,), 2.0),
    }
    layout = BlockLayout(specs)
    views = layout.views(layout.initialize(torch.Generator().manual_seed(0)).unsqueeze(0))
    assert views["wide"].std().item() == pytest.approx(0.5, rel=0.05)
    assert views["narrow"].std().item() == pytest.approx(2.0, rel=0.05)
    assert views["wide"].mean().item() == pytest.approx(0.0, abs=0.02)
    assert not views["zero"].any()


def test_the_same_generator_gives_the_same_block():
    layout = layout_of([(4, 3), (2,)])
    first, second = (layout.initialize(torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (14,)
    assert not torch.equal(first, layout.initialize(torch.Generator().manual_seed(6)))
