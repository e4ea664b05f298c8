from __future__ import annotations

import torch

from optuna_nis.models.products import _products, products


def test_products_are_those_of_all_pairs() -> None:
    rows = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    found = products(rows)
    a, b, c = rows.unbind(1)
    torch.testing.assert_close(found.pairs, (a * b + a * c + b * c).sum(1))
    torch.testing.assert_close(found.norms, rows.square().sum((1, 2)))
    torch.testing.assert_close(found.sums, a + b + c)
    with torch.no_grad():
        torch.testing.assert_close(products(rows), found)


def test_gradients_are_those_of_plain_sums() -> None:
    rows = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    grads = [torch.randn_like(each) for each in _products(rows)]
    for used in (slice(0, 1), slice(1, 2), slice(2, 3), slice(None)):
        of_found, of_plain = (
            torch.autograd.grad(make(rows)[used], rows, grads[used])
            for make in (products, _products)
        )
        torch.testing.assert_close(of_found, of_plain)
