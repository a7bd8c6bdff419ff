"""Every closed-form weight against autograd, and what the paper says of the losses."""

import inspect
import math

import pytest
import torch
from conftest import some_examples, tiny

import data
import losses

BETAS, GAMMAS = (0, 1e-6, 0.1, 2.5, 50), (0, 1)
CASES = [
    ("ga", {}),
    ("ga_per_token", {}),
    ("nll", {}),
    *(("npo", {"beta": beta}) for beta in BETAS),
    *(("simnpo", {"beta": beta, "gamma": gamma}) for beta in BETAS for gamma in GAMMAS),
    *(("dpo", {"beta": beta, "side": side}) for beta in BETAS for side in ("chosen", "rejected")),
]
LOGP = torch.tensor([-0.01, -0.5, -3.0, -40.0, -300.0, -2e3], dtype=torch.float64)
LENGTH = torch.tensor([1, 2, 5, 20, 100, 1000], dtype=torch.float64)


def call(name, logp, length, other, beta=1.0, gamma=0.0, side="rejected"):
    """A loss or weight of losses.py given what it takes. `logp` is DPO's `side`; its other response has `other`."""
    beside = {"rejected": "chosen", "chosen": "rejected"}[side]
    known = {
        "logp": logp,
        "length": length,
        "ref_logp": other,
        "beta": beta,
        "gamma": gamma,
        side + "_logp": logp,
        side + "_ref_logp": other - 2,
        beside + "_logp": other,
        beside + "_ref_logp": other + 1,
    }
    function = getattr(losses, name)
    value = function(*(known[argument] for argument in inspect.signature(function).parameters))
    return -value if name == "dpo_weight" and side == "chosen" else value


@pytest.mark.parametrize("name, settings", CASES, ids=str)
def test_the_weight_is_the_derivative_of_the_loss(name, settings):
    logp, other = LOGP.clone().requires_grad_(), LOGP + torch.linspace(-1.5, 2, len(LOGP))
    (gradient,) = torch.autograd.grad(call(name, logp, LENGTH, other, **settings).sum(), logp)
    assert torch.allclose(gradient, call(name + "_weight", LOGP, LENGTH, other, **settings), rtol=1e-10, atol=0)


@pytest.mark.parametrize("beta", BETAS)
def test_npo_weight_is_exactly_one_at_the_reference(beta):
    assert torch.equal(losses.npo_weight(LOGP, LOGP, beta), torch.ones_like(LOGP))


@pytest.mark.parametrize("beta", BETAS)
def test_simnpo_weight_lies_between_zero_and_one_over_length_and_reaches_it(beta):
    weight = losses.simnpo_weight(LOGP, LENGTH, beta)
    assert torch.all(weight >= 0) and torch.all(weight <= 1 / LENGTH)
    assert torch.equal(losses.simnpo_weight(torch.zeros_like(LOGP), LENGTH, beta), 1 / LENGTH)


@pytest.mark.parametrize("beta", BETAS[2:])
def test_npo_and_simnpo_are_bounded_below_by_zero_and_ga_is_not(beta):
    far, length = LOGP.new_tensor([-2e3, -1e5]), LENGTH.new_tensor([1, 100])
    for values in (losses.npo(far, 0 * far, beta), losses.simnpo(far, length, beta)):
        assert torch.all(values >= 0) and values.min() < 1e-9  # and 0 is approached
    assert torch.equal(losses.ga(far), far)


def test_npo_tends_to_ga():
    beta = 1e-7
    constant = 2 / beta * math.log(2)
    assert torch.allclose(losses.npo(LOGP, LOGP - 3, beta) - constant, torch.full_like(LOGP, 3), atol=1e-6)
    assert torch.allclose(losses.npo_weight(LOGP, LOGP - 3, beta), losses.ga_weight(LOGP), atol=1e-6)
    assert torch.equal(losses.npo(LOGP, LOGP - 3, 0), LOGP)


@pytest.mark.parametrize("gamma, share", [(0, 1), (1, 1.4621171572600098)])  # 2σ(γ)
def test_simnpo_tends_to_ga_per_token(gamma, share):
    beta, limit = 1e-7, losses.simnpo(LOGP, LENGTH, 0, gamma)
    constant = 2 / beta * math.log1p(math.exp(gamma))
    assert torch.allclose(limit, share * LOGP / LENGTH)
    assert torch.allclose(losses.simnpo(LOGP, LENGTH, beta, gamma) - constant, limit, rtol=1e-4, atol=1e-6)
    assert torch.allclose(losses.simnpo_weight(LOGP, LENGTH, beta, gamma), share / LENGTH, rtol=1e-6)


@pytest.mark.parametrize("beta", BETAS[1:])
def test_gamma_is_beta_times_the_published_codes_gamma(beta):
    code_gamma = 0.3
    published = -torch.nn.functional.logsigmoid(beta * (-LOGP / LENGTH - code_gamma)) * 2 / beta
    assert torch.allclose(losses.simnpo(LOGP, LENGTH, beta, beta * code_gamma), published, rtol=1e-12)


def test_eq3_and_eq5_in_the_papers_own_form():
    beta, pi, ref, n = 0.7, LOGP[:3].exp(), (LOGP[:3] - 1).exp(), LENGTH[:3]
    assert torch.allclose(losses.npo_weight(pi.log(), ref.log(), beta), 2 * pi**beta / (pi**beta + ref**beta))
    assert torch.allclose(losses.simnpo_weight(pi.log(), n, beta), 2 * pi ** (beta / n) / (1 + pi ** (beta / n)) / n)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name, settings", CASES, ids=str)
def test_finite_and_computed_in_float32_at_least_over_the_whole_range(dtype, name, settings):
    real = torch.float64 if dtype == torch.float64 else torch.float32
    logp = torch.tensor([0, -1e-6, -1, -1e3, -1e5], dtype=dtype, requires_grad=True)
    for length in (torch.full((5,), 1), torch.full((5,), 4096)):
        for other in (torch.zeros(5, dtype=dtype), torch.full((5,), -1e5, dtype=dtype)):
            for each in (name, name + "_weight"):
                value = call(each, logp, length, other, **settings)
                assert value.shape == (5,) and value.dtype == real and value.isfinite().all()
                # DPO's other numbers are made from `other` by adding, which rounds
                if dtype == torch.bfloat16 and name != "dpo":
                    assert torch.equal(value, call(each, logp.float(), length, other.float(), **settings))
            (gradient,) = torch.autograd.grad(call(name, logp, length, other, **settings).sum(), logp)
            assert gradient.isfinite().all()


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["npo", "simnpo", "dpo", "npo_weight", "simnpo_weight", "dpo_weight"])
def test_bad_beta_and_gamma_raise(name, bad):
    for flag in ("beta", "gamma") if name.startswith("simnpo") else ("beta",):
        with pytest.raises(ValueError, match=flag):
            call(name, LOGP, LENGTH, LOGP, **{flag: bad})


def some_logits(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_each_labels_log_probability_is_read_one_position_before_it():
    logits, labels = some_logits(2, 5, 7), torch.tensor([[-100, 3, 4, -100, -100], [6, -100, 2, 1, 0]])
    a, b = logits.log_softmax(-1)
    by_hand = torch.tensor([[a[0, 3], a[1, 4], 0, 0], [0, b[1, 2], b[2, 1], b[3, 0]]])
    assert torch.allclose(losses.token_logp(logits[:, :-1], labels[:, 1:]), by_hand, rtol=1e-12)
    logp, length = losses.sequence_logp(logits, labels)
    assert torch.allclose(logp, by_hand.sum(1), rtol=1e-12) and length.tolist() == [2, 3]


# ------------------------------------------------------------------ single tokens, and whole distributions

TOKEN_LOGP = torch.tensor([[-1e-7, -0.01, -0.3], [-2.0, -9.0, -300.0]], dtype=torch.float64)
EXPONENTS = (0, 0.5, 1, 5)


@pytest.mark.parametrize(
    "name, settings",
    [
        *(("wga", (beta,)) for beta in EXPONENTS),
        *(("satimp", (beta1, beta2)) for beta1 in EXPONENTS for beta2 in EXPONENTS),
        *(("tnpo", (TOKEN_LOGP.flip(1) - 0.5, beta)) for beta in BETAS),
    ],
    ids=str,
)
def test_a_tokens_weight_is_the_derivative_of_its_loss(name, settings):
    token_logp = TOKEN_LOGP.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(getattr(losses, name)(token_logp, *settings).sum(), token_logp)
    assert torch.allclose(gradient, getattr(losses, name + "_weight")(TOKEN_LOGP, *settings), rtol=1e-10, atol=1e-300)


def test_weighted_losses_of_tokens_in_the_papers_own_form_and_where_they_meet():
    p = TOKEN_LOGP.exp()
    assert torch.allclose(losses.wga(TOKEN_LOGP, 0.7), p**0.7 * p.log())
    assert torch.allclose(losses.satimp(TOKEN_LOGP, 5, 1), p**5 * (1 - p) * p.log(), atol=1e-20)
    assert torch.equal(losses.satimp(TOKEN_LOGP, 0.7, 0), losses.wga(TOKEN_LOGP, 0.7))
    assert torch.equal(losses.wga(TOKEN_LOGP, 0), losses.ga(TOKEN_LOGP))
    assert losses.satimp_weight(torch.tensor([0.0, 5 / 6, 1 - 1e-6]).log(), 5, 1).tolist() == pytest.approx(
        [0, (5 / 6) ** 5 / 6, 1e-6], rel=0.1
    )

    # the mean over a response's tokens: GA per token without exponents, and NPO of every token
    length = torch.tensor([3, 3])
    assert torch.allclose(losses.wga(TOKEN_LOGP, 0).mean(1), losses.ga_per_token(TOKEN_LOGP.sum(1), length))
    assert torch.equal(losses.tnpo(TOKEN_LOGP, TOKEN_LOGP - 1, 0.3), losses.npo(TOKEN_LOGP, TOKEN_LOGP - 1, 0.3))
    assert torch.equal(losses.tnpo_weight(TOKEN_LOGP, TOKEN_LOGP, 2.5), torch.ones_like(TOKEN_LOGP))


def cross_entropy(logits, target):
    return -(target * logits.log_softmax(-1)).sum(-1)


def one_hot(targets):
    return torch.nn.functional.one_hot(targets, 7).double()


LOGITS, REF_LOGITS = some_logits(2, 4, 5, 7) * 3
TARGETS = torch.arange(20).view(4, 5) % 7


def gradient_of(function, logits, *arguments):
    logits = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(logits, *arguments).sum(), logits)
    return gradient


def test_ceus_gradient_is_autograds_and_that_of_the_cross_entropy_to_the_others():
    masked = LOGITS.masked_fill(one_hot(TARGETS).bool(), -math.inf).softmax(-1)
    expected = gradient_of(cross_entropy, LOGITS, masked)
    for gradient in (gradient_of(losses.ceu, LOGITS, TARGETS), losses.ceu_gradient(LOGITS, TARGETS)):
        assert torch.allclose(gradient, expected, rtol=1e-10, atol=1e-14)

    # the entropy of that target is all that lies between them
    entropy = -torch.special.xlogy(masked, masked).sum(-1)
    others = LOGITS.log_softmax(-1).masked_fill(masked == 0, 0)
    assert torch.allclose(losses.ceu(LOGITS, TARGETS) + entropy, -(masked * others).sum(-1), rtol=1e-10)

    # which is GA's gradient times the odds
    ga = one_hot(TARGETS) - LOGITS.softmax(-1)
    assert torch.allclose(losses.ceu_weight(LOGITS, TARGETS)[..., None] * ga, expected, rtol=1e-10, atol=1e-14)
    p = losses.token_logp(LOGITS, TARGETS).exp()
    assert torch.allclose(losses.ceu_weight(LOGITS, TARGETS), p / (1 - p), rtol=1e-10)


@pytest.mark.parametrize("beta", [0, 1, 10])
def test_undials_gradient_is_autograds_and_its_weight_that_on_the_right_logit(beta):
    target = (REF_LOGITS - beta * one_hot(TARGETS)).softmax(-1)
    assert torch.allclose(losses.undial(LOGITS, REF_LOGITS, TARGETS, beta), cross_entropy(LOGITS, target), rtol=1e-10)
    closed = losses.undial_gradient(LOGITS, REF_LOGITS, TARGETS, beta)
    assert torch.allclose(gradient_of(losses.undial, LOGITS, REF_LOGITS, TARGETS, beta), closed, rtol=1e-10, atol=1e-14)

    p = LOGITS.softmax(-1)
    on_right = closed.gather(-1, TARGETS[..., None])[..., 0]
    weight = losses.undial_weight(LOGITS, REF_LOGITS, TARGETS, beta)
    assert torch.allclose(weight * (1 - p.gather(-1, TARGETS[..., None])[..., 0]), on_right, rtol=1e-10, atol=1e-14)

    # at θ = ref it is all of the gradient
    weight = losses.undial_weight(LOGITS, LOGITS, TARGETS, beta)[..., None]
    gradient = losses.undial_gradient(LOGITS, LOGITS, TARGETS, beta)
    assert torch.allclose(weight * (one_hot(TARGETS) - p), gradient, rtol=1e-10, atol=1e-14)
    lowered = p.gather(-1, TARGETS[..., None]) * -math.expm1(-beta)
    assert torch.allclose(weight, lowered / (1 - lowered), rtol=1e-10)


def test_undial_lies_between_kl_and_ceu_and_stops_at_its_target():
    kl = gradient_of(losses.kl, LOGITS, REF_LOGITS)
    assert torch.allclose(losses.undial_gradient(LOGITS, REF_LOGITS, TARGETS, 0), kl, rtol=1e-10, atol=1e-14)
    far = losses.undial_gradient(LOGITS, LOGITS, TARGETS, 60)
    assert torch.allclose(far, losses.ceu_gradient(LOGITS, TARGETS), rtol=1e-10, atol=1e-14)
    assert losses.undial_gradient(LOGITS - 2 * one_hot(TARGETS), LOGITS, TARGETS, 2).abs().max() < 1e-14
    with pytest.raises(ValueError, match="beta"):
        losses.undial(LOGITS, LOGITS, TARGETS, -1)


def test_ceu_and_undial_stay_exact_where_float32_rounds_p_to_one():
    logits, targets = torch.tensor([[30.0, 0.0, -2.0]]), torch.tensor([0])
    rest = math.log(1 + math.exp(-2))
    assert losses.token_logp(logits, targets).item() == 0  # there p / (1 - p) would be infinite
    assert losses.ceu(logits, targets).item() == pytest.approx(30 - rest, rel=1e-6)
    assert losses.ceu_weight(logits, targets).item() == pytest.approx(math.exp(30 - rest), rel=1e-5)
    assert losses.ceu_gradient(logits, targets).tolist()[0] == pytest.approx(
        [1, -1 / (1 + math.exp(-2)), -0.1192], rel=1e-3
    )
    assert losses.undial_weight(logits, logits, targets, 10).item() == pytest.approx(math.exp(10) - 1, rel=1e-4)
    assert losses.ceu(logits.bfloat16(), targets).dtype == torch.float32


SETTINGS = {"wga": (0.7,), "satimp": (0.7, 0.4), "tnpo": (0.7,), "ceu": (), "undial": (0.7,)}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_closed_form_gives_the_gradient_of_all_parameters_of_a_model(name, kind):
    """(1/|y|) Σ w_t ∇θ log p_t of a response; of CE-U and UNDIAL (1/|y|) Σ (p − q) · ∇θ z."""
    (examples, settings), model = (some_examples(3), SETTINGS[name]), tiny(kind)
    ref = data.respond(tiny(kind, seed=1), examples, needs_logits=True)
    y = data.respond(model, examples, needs_logits=True)
    tokens = [y.token_logp, ref.token_logp] if name == "tnpo" else [y.token_logp]
    logits = [y.logits, ref.logits, y.targets] if name == "undial" else [y.logits, y.targets]
    loss, by_weight = 0, 0
    for parts in zip(*(logits if name in ("ceu", "undial") else tokens), strict=True):
        parts = [part.detach() if i else part for i, part in enumerate(parts)]
        loss = loss + getattr(losses, name)(*parts, *settings).mean()
        end = "_gradient" if name in ("ceu", "undial") else "_weight"
        constant = getattr(losses, name + end)(*[part.detach() for part in parts], *settings)
        by_weight = by_weight + (constant * parts[0]).sum() / len(parts[0])
    parameters = [*model.parameters()]
    ours = torch.autograd.grad(loss, parameters, retain_graph=True)
    theirs = torch.autograd.grad(by_weight, parameters)
    scale = max(gradient.abs().max() for gradient in ours)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12 * scale)


def test_kl_is_the_divergence_from_reference_to_model():
    logits, ref = some_logits(2, 2, 6, 5)
    q, log_p = ref.softmax(-1), logits.log_softmax(-1)
    assert torch.allclose(losses.kl(logits, ref), (q * (q.log() - log_p)).sum(-1), rtol=1e-12)
    assert losses.kl(ref, ref).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["token_logp", "kl", "rmu", "rmu_gradient"])
def test_half_precision_logits_and_activations_are_computed_in_float32(name):
    one, other = some_logits(2, 3, 40).bfloat16()
    target = torch.tensor([5, -100, 39]) if name == "token_logp" else other
    value = getattr(losses, name)(one, target)
    assert value.dtype == torch.float32
    assert torch.equal(value, getattr(losses, name)(one.float(), target if name == "token_logp" else target.float()))


def test_rmus_gradient_is_autograds_in_both_of_its_losses():
    """2 (h - t) / d: with t = c·u, one vector for all tokens, and with t = h_ref, one for each."""
    hidden, kept = some_logits(2, 3, 5, 8)
    hidden.requires_grad_()
    for target in (torch.arange(8.0, dtype=torch.float64), kept):
        loss = losses.rmu(hidden, target)
        assert torch.allclose(loss, sum((hidden - target)[..., i] ** 2 for i in range(8)) / 8, rtol=1e-12)
        (gradient,) = torch.autograd.grad(loss.sum(), hidden)
        assert torch.allclose(gradient, losses.rmu_gradient(hidden, target), rtol=1e-14)


def test_the_task_vector_goes_back_from_where_fine_tuning_went():
    theta, tuned = torch.tensor([1.0, 2.0]), torch.tensor([1.5, 1.0])
    for alpha, expected in ((2, [0.0, 4.0]), (0, [1.0, 2.0]), (-1, [1.5, 1.0])):
        assert losses.task_vector(theta, tuned, alpha).tolist() == expected
    half = losses.task_vector(torch.tensor([1.0]).bfloat16(), torch.tensor([1.90625]).bfloat16(), 0.98)
    assert half.dtype == torch.bfloat16 and half.item() == torch.tensor(1 - 0.98 * 0.90625).bfloat16().item()
    with pytest.raises(ValueError, match="shapes"):
        losses.task_vector(theta, tuned[:1], 1)
