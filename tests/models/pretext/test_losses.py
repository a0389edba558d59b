"""The discrimination losses by hand."""

import math

import torch

from models.interface import Memory
from models.pretext.losses import (
    CONTRAST_TEMPERATURE,
    AgreementHead,
    contrastive_loss,
    embedding_loss,
    feature_loss,
    pool_views,
)


def test_feature_loss_by_hand():
    predicted = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    target = torch.tensor([[5.0, 0.0], [1.0, 0.0], [7.0, 0.0]])
    # equal, orthogonal and opposite directions: squared distances 0, 2 and 4
    loss = feature_loss(predicted, target, torch.tensor([0, 0, 1]), num_layers=2, num_regions=2)
    torch.testing.assert_close(loss, torch.tensor([1.0, 2.0]))


def test_embedding_loss_by_hand():
    predicted = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    target = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    # pairs: (1 + 2) / 2 and (0 + 2) / 2
    torch.testing.assert_close(embedding_loss(predicted, target), torch.tensor(1.25))
    assert embedding_loss(predicted[:0], target[:0]) == 0


def test_pooling_ignores_padding_even_nan():
    tokens = torch.tensor([[[1.0], [3.0], [float("nan")], [9.0], [10.0]]])
    mask = torch.tensor([[False, False, True, True, False]])
    memory = Memory(tokens=tokens, mask=mask, pos=torch.zeros_like(tokens), shapes=[(1, 3), (2, 1)])
    torch.testing.assert_close(pool_views(memory, num_levels=2), torch.tensor([[2.0, 10.0]]))
    torch.testing.assert_close(pool_views(memory, num_levels=1), torch.tensor([[2.0]]))


def test_agreement_is_symmetric_and_matches_its_definition():
    head = AgreementHead(input_dim=6, hidden_dim=4).eval()
    view1, view2 = torch.randn(3, 6), torch.randn(3, 6)
    loss = head(view1, view2)
    torch.testing.assert_close(loss, head(view2, view1))

    def unit(x):
        return x / x.norm(dim=-1, keepdim=True)

    z1, z2 = head.projector(view1), head.projector(view2)
    # |u - v|^2 = 2 - 2 cos for unit vectors
    forward = (unit(head.predictor(z1)) - unit(z2)).square().sum(-1).mean()
    backward = (unit(head.predictor(z2)) - unit(z1)).square().sum(-1).mean()
    torch.testing.assert_close(loss, 0.5 * forward + 0.5 * backward)


def test_no_gradient_through_the_target_side():
    head = AgreementHead(input_dim=6, hidden_dim=4)
    view1, view2 = torch.randn(3, 6), torch.randn(3, 6)
    projected = head.projector(view1)
    target = head.projector(view2)
    target.retain_grad()
    head._distance(projected, target).backward()
    assert target.grad is None
    assert head.predictor[0].weight.grad.abs().sum() > 0


def test_contrastive_loss_by_hand():
    predicted = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    features = torch.tensor([[[5.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]]).expand(2, -1, -1)
    loss = contrastive_loss(
        predicted, features, torch.tensor([0, 0]), torch.tensor([0, 1]), num_layers=2, num_regions=4
    )
    # cosines with the three regions: 1, 0, -1 and 0, 1, 0; the first is the right one
    e = [[math.exp(cosine / CONTRAST_TEMPERATURE) for cosine in cosines] for cosines in ((1, 0, -1), (0, 1, 0))]
    expected = [-math.log(row[0] / sum(row)) / 4 for row in e]
    torch.testing.assert_close(loss, torch.tensor(expected))
