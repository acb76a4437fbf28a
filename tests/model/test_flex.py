"""The mask that FlexAttention compiles is the layout's, and so is what comes out of attention under it."""

import pytest
import torch

from unmask.layout import Layout, Segment
from unmask.model.attention import AttentionPlan
from unmask.model.flex import FlexPlan
from unmask.model.layout_mask import LayoutMask

CPU = torch.device("cpu")
LAYOUTS = {
    "causal": [Segment(0, 7)],
    "both ways": [Segment(0, 5, causal=False)],
    "documents": [Segment(0, 4), Segment(0, 6), Segment(0, 1)],
    "clean and noisy": [
        Segment(0, 9),
        *(Segment(start, 4, parent=0, offset=start, causal=False) for start in (1, 5)),
        Segment(0, 6),
        Segment(1, 5, parent=3, offset=1, causal=False),
    ],
    "a tree": [
        Segment(0, 4),
        Segment(4, 3, parent=0, offset=4),
        Segment(6, 2, parent=1, offset=2, causal=False),
        Segment(2, 3, parent=0, offset=2, causal=False),
        Segment(4, 2, parent=3, offset=0),
    ],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_mask_is_the_layouts(name: str) -> None:
    layout = Layout(LAYOUTS[name])
    mask, places = LayoutMask(layout, CPU), torch.arange(layout.num_tokens)
    seen = mask(torch.zeros(()), torch.zeros(()), places[:, None], places[None])
    truth = [[layout.visible(query, key) for key in places.tolist()] for query in places.tolist()]
    assert seen.tolist() == truth


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("name", "num_kv_heads"), [("clean and noisy", 2), ("a tree", 4)])
def test_attention_is_that_of_the_other_plan(name: str, num_kv_heads: int) -> None:
    layout, generator = Layout(LAYOUTS[name]), torch.Generator().manual_seed(0)
    size = layout.num_tokens
    queries = torch.randn(size, 4, 16, generator=generator)
    keys, values = (torch.randn(size, num_kv_heads, 16, generator=generator) for _ in range(2))
    plan = FlexPlan(layout, CPU, compiled=False)
    expected = AttentionPlan(layout, None, CPU).attend(0, queries, keys, values)
    torch.testing.assert_close(plan.attend(0, queries, keys, values), expected, atol=1e-5, rtol=1e-5)


def test_layouts_on_a_cache_are_refused() -> None:
    with pytest.raises(ValueError, match="without cache rows"):
        FlexPlan(Layout([Segment(3, 2, row=0)]), CPU)
