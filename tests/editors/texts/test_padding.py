"""Padding: every id stays, and the mask says where."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from editors.texts.batches import PaddingSide
from editors.texts.padding import padded, padded_texts

ROWS = st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=4)


@pytest.mark.parametrize("side", ["left", "right"])
@given(rows=ROWS)
def test_ids_are_where_the_mask_is(rows: list[list[int]], side: PaddingSide) -> None:
    ids, mask = padded_texts(rows, 7, side)
    assert ids.dtype == mask.dtype == torch.long
    assert [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)] == rows
    assert (ids[mask == 0] == 7).all()
    edge = 0 if side == "right" else -1
    assert all(real[edge] for real, row in zip(mask, rows, strict=True) if row)
    assert ids.shape == (len(rows), max(map(len, rows), default=1))


def test_rows_may_be_tensors() -> None:
    rows = [torch.tensor([1, 2], dtype=torch.int32), torch.tensor([3])]
    assert padded(rows, -100).tolist() == [[1, 2], [3, -100]]
