"""Every closed-form weight against autograd, and what the paper says of the losses."""
import math

import pytest
import torch
from conftest import some_examples, tiny

import data
import losses

BETAS, GAMMAS = (0, 0.1, 2.5, 4.5), (0, 1)
# name, loss(logp, length, other), weight(logp, length, other); `other` is a fixed second log-probability
METHODS = [("ga", lambda p, n, q: losses.ga(p), lambda p, n, q: losses.ga_weight(p)),
           ("weighted_ga", lambda p, n, q: losses.weighted_ga(p, n), lambda p, n, q: losses.weighted_ga_weight(p, n)),
           ("nll", lambda p, n, q: losses.nll(p, n), lambda p, n, q: losses.nll_weight(p, n))]
for b in BETAS:
    METHODS += [(f"npo beta={b}", lambda p, n, q, b=b: losses.npo(p, q, b), lambda p, n, q, b=b: losses.npo_weight(p, q, b))]
    METHODS += [(f"simnpo beta={b} gamma={g}", lambda p, n, q, b=b, g=g: losses.simnpo(p, n, b, g),
                 lambda p, n, q, b=b, g=g: losses.simnpo_weight(p, n, b, g)) for g in GAMMAS]
    METHODS += [(f"dpo rejected beta={b}", lambda p, n, q, b=b: losses.dpo(q, q + 1, p, q - 2, b),
                 lambda p, n, q, b=b: losses.dpo_weight(q, q + 1, p, q - 2, b)),
                (f"dpo chosen beta={b}", lambda p, n, q, b=b: losses.dpo(p, q - 2, q, q + 1, b),
                 lambda p, n, q, b=b: -losses.dpo_weight(p, q - 2, q, q + 1, b))]


def flat_gradient(scalar, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(scalar, list(model.parameters()), retain_graph=True)])


@pytest.fixture(scope="module", params=[(kind, seed) for kind in ("gpt2", "llama") for seed in (0, 1, 2)], ids=str)
def sequences(request):
    """logp and length of seven responses of mixed length under a model, and each one's own ∇θ logp."""
    kind, seed = request.param
    model = tiny(kind, seed)
    logp, length = data.response_logp(model, some_examples(7, seed))
    assert len(set(length.tolist())) > 2
    return model, logp, length, torch.stack([flat_gradient(p, model) for p in logp])


@pytest.mark.parametrize("name, loss, weight", METHODS, ids=[m[0] for m in METHODS])
def test_gradient_is_weight_times_gradient_of_logp(sequences, name, loss, weight):
    model, logp, length, each = sequences
    other = logp.detach() + torch.linspace(-1.5, 2, len(logp))
    actual = flat_gradient(loss(logp, length, other).mean(), model)
    expected = (weight(logp, length, other).detach()[:, None] * each).sum(0) / len(logp)
    assert expected.norm() > 0
    assert (actual - expected).norm() <= 1e-10 * expected.norm()


LOGP = torch.tensor([-0.01, -0.5, -3.0, -40.0, -300.0, -2e3], dtype=torch.float64)
LENGTH = torch.tensor([1, 2, 5, 20, 100, 1000], dtype=torch.float64)


@pytest.mark.parametrize("beta", BETAS)
def test_npo_weight_is_exactly_one_at_the_reference(beta):
    assert torch.equal(losses.npo_weight(LOGP, LOGP, beta), torch.ones_like(LOGP))


@pytest.mark.parametrize("beta", BETAS)
def test_simnpo_weight_lies_between_zero_and_one_over_length(beta):
    for logp in (LOGP, torch.zeros_like(LOGP)):
        weight = losses.simnpo_weight(logp, LENGTH, beta)
        assert torch.all(weight >= 0) and torch.all(weight <= 1 / LENGTH)
    # tight: reached where the response is certain
    assert torch.equal(losses.simnpo_weight(torch.zeros_like(LOGP), LENGTH, beta), 1 / LENGTH)


@pytest.mark.parametrize("beta", BETAS[1:])
def test_npo_and_simnpo_are_bounded_below_by_zero(beta):
    far = torch.cat([LOGP, torch.tensor([-1e5], dtype=torch.float64)])
    length = torch.cat([LENGTH, torch.tensor([100.0])])
    for values in (losses.npo(far, torch.zeros_like(far), beta), losses.simnpo(far, length, beta)):
        assert torch.all(values >= 0) and values.min() < 1e-9  # and 0 is approached
    assert losses.ga(far).min() < -1e4


def test_npo_tends_to_ga():
    beta = 1e-7
    constant = 2 / beta * math.log(2)
    assert torch.allclose(losses.npo(LOGP, LOGP - 3, beta) - constant, torch.full_like(LOGP, 3.0), atol=1e-6)
    assert torch.allclose(losses.npo_weight(LOGP, LOGP - 3, beta), losses.ga_weight(LOGP), atol=1e-6)
    assert torch.equal(losses.npo(LOGP, LOGP - 3, 0), losses.ga(LOGP))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_simnpo_tends_to_weighted_ga(gamma):
    beta, share = 1e-7, 2 / (1 + math.exp(-gamma))
    constant = 2 / beta * math.log1p(math.exp(gamma))
    limit = losses.simnpo(LOGP, LENGTH, 0, gamma)
    assert torch.allclose(losses.simnpo(LOGP, LENGTH, beta, gamma) - constant, limit, rtol=1e-4, atol=1e-6)
    assert torch.allclose(limit, share * losses.weighted_ga(LOGP, LENGTH))
    assert torch.allclose(losses.simnpo_weight(LOGP, LENGTH, beta, gamma),
                          share * losses.weighted_ga_weight(LOGP, LENGTH), rtol=1e-6)
    if gamma == 0:
        assert torch.equal(limit, losses.weighted_ga(LOGP, LENGTH))


@pytest.mark.parametrize("beta", BETAS[1:])
def test_gamma_is_beta_times_the_published_codes_gamma(beta):
    code_gamma = 0.3
    published = -torch.nn.functional.logsigmoid(beta * (-LOGP / LENGTH - code_gamma)) * 2 / beta
    assert torch.allclose(losses.simnpo(LOGP, LENGTH, beta, beta * code_gamma), published, rtol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_shorter_response_gets_larger_simnpo_weight_at_equal_token_probability(beta):
    lengths = torch.arange(1, 50)
    weight = losses.simnpo_weight(-0.4 * lengths.double(), lengths, beta)
    assert torch.all(weight[:-1] > weight[1:])


def test_eq3_and_eq5_in_the_papers_own_form():
    beta, pi, ref = 0.7, LOGP[:3].exp(), (LOGP[:3] - 1).exp()
    assert torch.allclose(losses.npo_weight(pi.log(), ref.log(), beta), 2 * pi**beta / (pi**beta + ref**beta))
    n = LENGTH[:3]
    assert torch.allclose(losses.simnpo_weight(pi.log(), n, beta), 2 * pi**(beta / n) / (1 + pi**(beta / n)) / n)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [0, 1e-6, 0.1, 50])
def test_finite_and_at_least_float32_over_the_whole_range(dtype, beta):
    logp = torch.tensor([0, -1e-6, -1, -1e3, -1e5], dtype=dtype, requires_grad=True)
    for n in (1, 4096):
        length = torch.full((5,), n)
        for other in (0.0, -1e5):
            ref = torch.full((5,), other, dtype=dtype)
            values = [losses.ga(logp), losses.weighted_ga(logp, length), losses.nll(logp, length),
                      losses.npo(logp, ref, beta), losses.simnpo(logp, length, beta, 1.0),
                      losses.dpo(ref, ref, logp, ref, beta), losses.dpo(logp, ref, ref, ref, beta)]
            weights = [losses.ga_weight(logp), losses.npo_weight(logp, ref, beta), losses.nll_weight(logp, length),
                       losses.simnpo_weight(logp, length, beta, 1.0), losses.weighted_ga_weight(logp, length),
                       losses.dpo_weight(ref, ref, logp, ref, beta)]
            for value in values + weights:
                assert value.shape == (5,) and torch.isfinite(value).all()
                assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            gradient, = torch.autograd.grad(sum(value.sum() for value in values), logp)
            assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_bad_beta_and_gamma_raise(bad):
    for call in (lambda: losses.npo(LOGP, LOGP, bad), lambda: losses.simnpo(LOGP, LENGTH, bad),
                 lambda: losses.simnpo(LOGP, LENGTH, 1.0, bad), lambda: losses.dpo(LOGP, LOGP, LOGP, LOGP, bad),
                 lambda: losses.npo_weight(LOGP, LOGP, bad), lambda: losses.simnpo_weight(LOGP, LENGTH, 1.0, bad),
                 lambda: losses.dpo_weight(LOGP, LOGP, LOGP, LOGP, bad)):
        with pytest.raises(ValueError, match="beta|gamma"):
            call()


def test_sequence_logp_against_a_plain_loop():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 9, 11, dtype=torch.float64), torch.randint(0, 11, (4, 9))
    labels[0, :4] = labels[1, :7] = labels[2, 5:] = -100
    logp, length = losses.sequence_logp(logits, labels)
    for row in range(4):
        steps = [t for t in range(1, 9) if labels[row, t] != -100]
        expected = sum(logits[row, t - 1].log_softmax(-1)[labels[row, t]] for t in steps)
        assert logp[row] == pytest.approx(expected.item(), rel=1e-12) and length[row] == len(steps)


def test_sequence_logp_agrees_with_transformers_own_loss():
    model, example = tiny("llama"), some_examples(1)[0]
    input_ids, labels = data.collate([example], 0)
    logp, length = losses.sequence_logp(model(input_ids).logits, labels)
    assert model(input_ids, labels=labels).loss.item() == pytest.approx((-logp / length).item(), rel=1e-6)


def test_sequence_logp_upcasts_half_precision():
    logp, _ = losses.sequence_logp(torch.randn(2, 5, 7, dtype=torch.bfloat16), torch.ones(2, 5, dtype=torch.long))
    assert logp.dtype == torch.float32


def test_kl_is_the_divergence_from_reference_to_model():
    torch.manual_seed(1)
    logits, ref = torch.randn(2, 6, 5, dtype=torch.float64), torch.randn(2, 6, 5, dtype=torch.float64)
    q, log_p = ref.softmax(-1), logits.log_softmax(-1)
    assert torch.allclose(losses.kl(logits, ref), (q * (q.log() - log_p)).sum(-1), rtol=1e-12)
    assert losses.kl(ref, ref).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rmus_gradient_is_autograds_in_both_of_its_losses(dtype):
    """2 (h - t) / d: with t = c·u, one vector for all tokens, and with t = h_ref, one for each."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 5, 8, generator=draw, dtype=dtype).requires_grad_()
    for target in (6.5 * torch.ones(8, dtype=dtype) / 8 ** 0.5, torch.randn(3, 5, 8, generator=draw, dtype=dtype)):
        loss = losses.rmu(hidden, target)
        assert loss.shape == (3, 5)
        by_hand = sum((hidden[1, 2, i] - (target if target.dim() == 1 else target[1, 2])[i]) ** 2 for i in range(8)) / 8
        assert loss[1, 2].item() == pytest.approx(by_hand.item(), rel=1e-5)
        gradient, = torch.autograd.grad(loss.sum(), hidden)
        assert torch.allclose(gradient, losses.rmu_gradient(hidden, target), rtol=1e-6 if dtype == torch.float32 else 1e-14)
        assert gradient.abs().max() > 0.1
    assert losses.rmu(hidden, hidden).abs().max() == 0


def test_the_task_vector_goes_back_from_where_fine_tuning_went():
    theta, tuned = torch.tensor([1.0, 2.0]), torch.tensor([1.5, 1.0])
    assert losses.task_vector(theta, tuned, 2).tolist() == [0.0, 4.0]
    assert torch.equal(losses.task_vector(theta, tuned, 0), theta) and torch.equal(losses.task_vector(theta, tuned, -1), tuned)
    half = losses.task_vector(torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.0078125], dtype=torch.bfloat16), 0.75)
    assert half.dtype == torch.bfloat16 and half.item() == torch.tensor(1 - 0.75 * 0.0078125).bfloat16().item()
    with pytest.raises(ValueError, match="shapes"):
        losses.task_vector(theta, tuned[:1], 1)


def test_token_logps_add_up_to_the_sequences():
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(2, 6, 9, generator=draw), torch.tensor([[-100, -100, 3, 4, 0, -100], [-100, 8, -100, -100, -100, 1]])
    logp = losses.token_logp(logits[:, :-1], labels[:, 1:])
    assert torch.all(logp[labels[:, 1:] == -100] == 0)
    assert logp[0, 1].item() == pytest.approx(logits[0, 1].log_softmax(-1)[3].item(), rel=1e-5)
    assert torch.equal(losses.sequence_logp(logits, labels)[0], logp.sum(1))
