"""Rotations of rotation vectors."""

import pytest
import torch

from videomamba_depth.utils.cameras import cross_matrix, rotation_matrix


@pytest.mark.parametrize("angle", [0.0, 1e-7, 1e-3, 0.5, 3.1, 3.2, 7.0])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_rotation_is_the_exponential_of_its_cross_matrix(angle: float, kind: torch.dtype) -> None:
    vectors = angle * torch.nn.functional.normalize(torch.tensor([[0.3, -1.0, 0.2], [0.0, 0.0, 1.0]], dtype=kind))
    found = rotation_matrix(vectors)
    assert found.dtype == kind
    limit = 1e-5 if kind is torch.float32 else 1e-12
    assert torch.allclose(found, torch.linalg.matrix_exp(cross_matrix(vectors)), rtol=0, atol=limit)
    assert torch.allclose(found @ found.mT, torch.eye(3, dtype=kind).expand(2, 3, 3), rtol=0, atol=limit)
