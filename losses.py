"""Every unlearning loss, each directly above its gradient weight.

A loss here is a pure function of per-sequence quantities, all tensors of shape [B]:

    logp      log πθ(y|x), the log-probability of the whole response, in nats, at most 0
    ref_logp  the same under the reference model (the model before unlearning)
    length    |y|, the number of response tokens, EOS included, at least 1

Since θ enters only through logp, the gradient of any such loss is a weight times the gradient of
logp. So below each loss stands its closed-form weight w = dℓ/dlogp, and for a batch of B sequences

    ∇θ (1/B) Σ ℓᵢ = (1/B) Σ wᵢ ∇θ log πθ(yᵢ|xᵢ)

GA has w = 1. NPO and SimNPO are GA with other weights, and that is the whole difference:
`python results/weights.py` prints the weights side by side and draws them. Losses of single tokens,
and of the logits at a position, follow below with a weight for each token.

Equation numbers are those of "Simplicity Prevails: Rethinking Negative Preference Optimization for
LLM Unlearning" (arXiv 2410.07163). Nothing here reduces over the batch, knows a model or reads a
file. Half-precision inputs are computed in float32; float32 and float64 stay what they are.
"""

import math

import torch
import torch.nn.functional as F


def _real(x):
    # bfloat16 keeps 8 bits: a sum of log-probabilities near -100 would move in steps of 0.5
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check(beta, gamma=0.0):
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta must be a finite number >= 0, got {beta}")
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma must be a finite number >= 0, got {gamma}")


# ------------------------------------------------------------------ from tokens to sequences


def token_logp(logits, targets):
    """Log-probability of each token in nats: logits [..., V] and targets [...] give [...]; 0 where a target is -100."""
    return -F.cross_entropy(_real(logits).flatten(0, -2), targets.flatten(), ignore_index=-100, reduction="none").view(
        targets.shape
    )


def sequence_logp(logits, labels):
    """(logp [B] in nats, length [B], int64) of each response, from the logits of all positions.

    logits [B, T, V]; labels [B, T], aligned with the input ids as in transformers: -100 where there is no loss,
    and the shift by one happens in here. A row without labels gets logp 0 and length 0: whatever
    divides by length is nan there.
    """
    targets = labels[:, 1:]
    return token_logp(logits[:, :-1], targets).sum(-1), (targets != -100).sum(-1)


# ------------------------------------------------------------------ losses that raise the loss of y


def ga(logp):
    """Gradient ascent on the prediction loss: ℓ = log πθ(y|x)  (Sec. 3). Unbounded below."""
    return _real(logp)


def ga_weight(logp):
    """w = 1"""
    return torch.ones_like(_real(logp))


def ga_per_token(logp, length):
    """Weighted-GradDiff's loss: ℓ = log πθ(y|x) / |y|; its gradient is SimNPO's as β → 0, for γ = 0  (Sec. 5)."""
    return _real(logp) / length


def ga_per_token_weight(logp, length):
    """w = 1 / |y|"""
    return torch.ones_like(_real(logp)) / length


def npo(logp, ref_logp, beta):
    """ℓ = -(2/β) log σ(-β (log πθ(y|x) - log πref(y|x)))  (Eq. 2). Bounded below by 0 for β > 0.

    beta >= 0, else ValueError. As β → 0 the loss is GA plus the constant (2/β) log 2 - log πref,
    which has no gradient; so beta = 0 is GA.
    """
    _check(beta)
    if beta == 0:
        return ga(logp)
    return -2 / beta * F.logsigmoid(-beta * (_real(logp) - _real(ref_logp)))


def npo_weight(logp, ref_logp, beta):
    """w = 2σ(β (log πθ - log πref)) = 2 πθ^β / (πθ^β + πref^β)  (Eq. 3). Exactly 1 at θ = ref."""
    _check(beta)
    return 2 * torch.sigmoid(beta * (_real(logp) - _real(ref_logp)))


def simnpo(logp, length, beta, gamma=0.0):
    """ℓ = -(2/β) log σ(-(β/|y|) log πθ(y|x) - γ)  (Eq. 4). Bounded below by 0 for β > 0; needs no reference.

    beta >= 0 and gamma >= 0, else ValueError. The published code writes γ = β · its own γ ("delta"
    in a later framework). As β → 0 the loss is 2σ(γ) · GA per token plus a constant without
    gradient; so beta = 0 is that, and plain GA per token for gamma = 0.
    """
    _check(beta, gamma)
    if beta == 0:
        return 2 / (1 + math.exp(-gamma)) * ga_per_token(logp, length)
    return -2 / beta * F.logsigmoid(-beta * _real(logp) / length - gamma)


def simnpo_weight(logp, length, beta, gamma=0.0):
    """w' = 2σ((β/|y|) log πθ(y|x) + γ) / |y|  (Eq. A4; Eq. 5 for γ = 0, where 0 <= w' <= 1/|y|)."""
    _check(beta, gamma)
    return 2 * torch.sigmoid(beta * _real(logp) / length + gamma) / length


def dpo(chosen_logp, chosen_ref_logp, rejected_logp, rejected_ref_logp, beta):
    """ℓ = -(2/β) log σ(β [(chosen - its reference) - (rejected - its reference)]).

    DPO (Rafailov et al. 2023) at the scale 2/β that TOFU gives it: the refusal is chosen, the answer
    to forget is rejected. beta >= 0, else ValueError. As β → 0, up to constants, rejected - chosen.
    """
    _check(beta)
    chosen, rejected = _real(chosen_logp), _real(rejected_logp)
    if beta == 0:
        return rejected - chosen
    margin = (chosen - _real(chosen_ref_logp)) - (rejected - _real(rejected_ref_logp))
    return -2 / beta * F.logsigmoid(beta * margin)


def dpo_weight(chosen_logp, chosen_ref_logp, rejected_logp, rejected_ref_logp, beta):
    """w = 2σ(-β margin) on the rejected response's logp; the chosen one's weight is -w."""
    _check(beta)
    margin = (_real(chosen_logp) - _real(chosen_ref_logp)) - (_real(rejected_logp) - _real(rejected_ref_logp))
    return 2 * torch.sigmoid(-beta * margin)


# ------------------------------------------------------------------ losses of single tokens

# Functions of token_logp = log p_t, p_t = πθ(y_t|x, y_<t), of any shape, which they keep. A response's loss is their
# mean over its tokens, so that w_t / |y| is the weight on ∇θ log p_t. "sg": counted as a constant by the gradient.


def wga(token_logp, beta):
    """Weighted gradient ascent: ℓ_t = sg(p_t^β) log p_t  (Wang et al. 2025). beta >= 0, else ValueError."""
    _check(beta)
    token_logp = _real(token_logp)
    return torch.exp(beta * token_logp).detach() * token_logp


def wga_weight(token_logp, beta):
    """w_t = p_t^β, in [0, 1]; 1 for β = 0, which is GA per token"""
    _check(beta)
    return torch.exp(beta * _real(token_logp))


def satimp(token_logp, beta1, beta2):
    """ℓ_t = sg(p_t^β1 (1 - p_t)^β2) log p_t  (SatImp, Yang et al. 2025).

    The weight tends to 0 where all is forgotten (β1 > 0) and where nothing is (β2 > 0). beta1, beta2 >= 0, else
    ValueError. β2 = 0 is WGA.
    """
    return satimp_weight(token_logp, beta1, beta2).detach() * _real(token_logp)


def satimp_weight(token_logp, beta1, beta2):
    """w_t = p_t^β1 (1 - p_t)^β2, in [0, 1]; the largest at p_t = β1 / (β1 + β2)"""
    _check(beta1)
    _check(beta2)
    token_logp = _real(token_logp)
    return torch.exp(beta1 * token_logp) * (-torch.expm1(token_logp)) ** beta2


def tnpo(token_logp, ref_token_logp, beta):
    """Token-wise NPO: ℓ_t = -(2/β) log σ(-β (log p_t - log p_ref,t))  (Wang et al. 2025); NPO where |y| = 1."""
    return npo(token_logp, ref_token_logp, beta)


def tnpo_weight(token_logp, ref_token_logp, beta):
    """w_t = 2σ(β (log p_t - log p_ref,t)). Exactly 1 at θ = ref."""
    return npo_weight(token_logp, ref_token_logp, beta)


# ------------------------------------------------------------------ losses that push logits to a target

# Functions of the logits z [..., V] at a position and the token y that stands there, targets [...]. The loss is the
# cross-entropy of p = softmax z to a target q; its gradient p - q takes the place of GA's e_y - p. On the right token's
# logit alone that is a weight times GA's: w_t = (p_y - q_y) / (1 - p_y), computed as (1 - q_y) / (1 - p_y) - 1, which
# stays exact near p_y = 1. For CE-U that is the whole gradient, for UNDIAL only at θ = ref.


def _lowered(logits, targets, beta):
    # z - β e_y; for β = ∞ the logits of all other tokens
    by = torch.full_like(targets, -beta, dtype=_real(logits).dtype)
    return _real(logits).scatter_add(-1, targets[..., None], by[..., None])


def _log_rest(logits, targets):
    # log(1 - p_y), exact also where p_y rounds to 1
    return torch.logsumexp(_lowered(logits, targets, math.inf), -1) - torch.logsumexp(_real(logits), -1)


def ceu(logits, targets):
    """ℓ_t = -log(1 - p_y). q = softmax(z with z_y = -∞), which CE-U (Yang 2025) counts as a constant.

    The cross-entropy to that q is this plus q's entropy, which then has no gradient. So CE-U is unlikelihood training
    (Welleck et al. 2020). Bounded below by 0.
    """
    return -_log_rest(logits, targets)


def ceu_gradient(logits, targets):
    """dℓ/dz = p - q: p_y on the right token, -p_j p_y / (1 - p_y) on the others"""
    return torch.softmax(_real(logits), -1) - torch.softmax(_lowered(logits, targets, math.inf), -1)


def ceu_weight(logits, targets):
    """w_t = p_y / (1 - p_y), the odds, and p - q = w_t (e_y - p). Unbounded, but what it multiplies tends to 0."""
    return torch.expm1(-_log_rest(logits, targets))


def undial(logits, ref_logits, targets, beta):
    """ℓ_t = -Σ_j q_j log p_j with q = softmax(z_ref - β e_y)  (UNDIAL, Dong et al. 2025; β is their strength γ).

    At its minimum y has e^-β of its odds under the reference model, whatever these were. beta >= 0, else ValueError;
    0 is `kl` plus a constant. As β → ∞ q becomes CE-U's, of the reference model.
    """
    _check(beta)
    target = torch.softmax(_lowered(ref_logits, targets, beta), -1)
    return -(target * torch.log_softmax(_real(logits), -1)).sum(-1)


def undial_gradient(logits, ref_logits, targets, beta):
    """dℓ/dz = p - q"""
    _check(beta)
    return torch.softmax(_real(logits), -1) - torch.softmax(_lowered(ref_logits, targets, beta), -1)


def undial_weight(logits, ref_logits, targets, beta):
    """w_t = (p_y - q_y) / (1 - p_y), below 0 once p_y < q_y. At θ = ref, p - q = w_t (e_y - p)."""
    _check(beta)
    return torch.expm1(_log_rest(_lowered(ref_logits, targets, beta), targets) - _log_rest(logits, targets))


# ------------------------------------------------------------------ losses that keep y likely


def nll(logp, length):
    """ℓ = -log πθ(y|x) / |y|: the retain loss, and IDK's forget loss with a refusal as y."""
    return -_real(logp) / length


def nll_weight(logp, length):
    """w = -1 / |y|"""
    return -torch.ones_like(_real(logp)) / length


def kl(logits, ref_logits):
    """KL(πref ‖ πθ) between next-token distributions, in nats: logits, ref_logits [..., V] give [...].

    Its mean over a response's tokens is TOFU's other retain loss (Maini et al. 2024). Its gradient: UNDIAL's at β = 0.
    """
    log_pi, log_ref = F.log_softmax(_real(logits), -1), F.log_softmax(_real(ref_logits), -1)
    return F.kl_div(log_pi, log_ref, log_target=True, reduction="none").sum(-1)


# ------------------------------------------------------------------ methods without a weight on logp


def rmu(hidden, target):
    """ℓ = ‖h - t‖² / d per token: steers activations to t = c·u, or with t = h_ref keeps them.

    hidden, target broadcast to [..., d]; returns [...]. The two losses of RMU (Li et al. 2024, the WMDP
    paper): u a fixed random unit vector, c `--steer`; h_ref the activations before unlearning.
    """
    return (_real(hidden) - _real(target)).square().mean(-1)


def rmu_gradient(hidden, target):
    """dℓ/dh = 2 (h - t) / d, shape of `hidden`"""
    return 2 * (_real(hidden) - _real(target)) / hidden.shape[-1]


def task_vector(theta, tuned, alpha):
    """θ - α (θ_ft - θ): away from what fine-tuning on the forget set did  (Ilharco et al. 2023). In float32 at least.

    theta, tuned: one tensor of the two models; ValueError unless their shapes are the same.
    """
    if theta.shape != tuned.shape:
        raise ValueError(f"shapes {tuple(theta.shape)} and {tuple(tuned.shape)} differ")
    return (_real(theta) - alpha * (_real(tuned) - _real(theta))).to(theta.dtype)
