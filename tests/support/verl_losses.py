"""Policy losses of verl 0.9.1, copied: verl itself needs ray.

From verl/trainer/ppo/core_algos.py, verl/trainer/ppo/rollout_corr_helper.py and verl/utils/torch_functional.py,
Copyright 2024 Bytedance Ltd. and/or its affiliates, and 2022 The HuggingFace Team; Apache License 2.0
(http://www.apache.org/licenses/LICENSE-2.0). Left out: metrics, checks and reading of the configuration, whose values
are parameters here. Types added.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def masked_sum(values: Tensor, mask: Tensor, axis: int | None = None) -> Tensor:
    valid_values = torch.where(mask.bool(), values, 0.0)
    return (valid_values * mask).sum(dim=axis)


def masked_mean(values: Tensor, mask: Tensor, axis: int | None = None) -> Tensor:
    s = masked_sum(values, mask, axis)
    mean: Tensor = s / (mask.sum(dim=axis) + 1e-8)
    return mean


def agg_loss(loss_mat: Tensor, loss_mask: Tensor, loss_agg_mode: str, loss_scale_factor: int | None = None) -> Tensor:
    if loss_agg_mode == "token-mean":
        batch_num_tokens = loss_mask.sum()
        loss = masked_sum(loss_mat, loss_mask) / batch_num_tokens
    elif loss_agg_mode == "token-sum":
        loss = masked_sum(loss_mat, loss_mask)
    elif loss_agg_mode in ["seq-mean-token-sum", "seq-mean-token-sum-norm"]:
        seq_losses = torch.sum(loss_mat * loss_mask, dim=-1)  # token-sum
        seq_mask = (torch.sum(loss_mask, dim=-1) > 0).float()  # exclude fully masked sequences
        global_batch_size = seq_mask.sum()
        loss = masked_sum(seq_losses, seq_mask) / global_batch_size  # seq-mean
        if loss_agg_mode == "seq-mean-token-sum-norm":
            if loss_scale_factor is None:
                horizon = loss_mask.shape[-1]
                loss_scale_factor = horizon
            loss /= loss_scale_factor
    elif loss_agg_mode == "seq-mean-token-mean":
        seq_mask = torch.sum(loss_mask, dim=-1)  # per-sequence token count
        seq_losses = torch.sum(loss_mat * loss_mask, dim=-1) / (seq_mask + 1e-8)  # token-mean
        seq_mask = (seq_mask > 0).float()  # exclude fully masked sequences
        global_batch_size = seq_mask.sum()
        loss = masked_sum(seq_losses, seq_mask) / global_batch_size  # seq-mean
    else:
        raise ValueError(f"Invalid loss_agg_mode: {loss_agg_mode}")
    return loss


def vanilla(old_log_prob: Tensor, log_prob: Tensor, advantages: Tensor, low: float, high: float, c: float) -> Tensor:
    negative_approx_kl = log_prob - old_log_prob
    negative_approx_kl = torch.clamp(negative_approx_kl, min=-20.0, max=20.0)
    ratio = torch.exp(negative_approx_kl)
    pg_losses1 = -advantages * ratio
    pg_losses2 = -advantages * torch.clamp(ratio, 1 - low, 1 + high)
    clip_pg_losses1 = torch.maximum(pg_losses1, pg_losses2)
    pg_losses3 = -advantages * c
    clip_pg_losses2 = torch.min(pg_losses3, clip_pg_losses1)
    return torch.where(advantages < 0, clip_pg_losses2, clip_pg_losses1)


def sapo(old_log_prob: Tensor, log_prob: Tensor, advantages: Tensor, tau_pos: float, tau_neg: float) -> Tensor:
    def gate_function(x: Tensor, tau: Tensor) -> Tensor:
        return torch.sigmoid(tau * (x - 1.0)) * (4.0 / tau)

    negative_approx_kl = log_prob - old_log_prob
    negative_approx_kl = torch.clamp(negative_approx_kl, min=-20.0, max=20.0)
    ratio = torch.exp(negative_approx_kl)
    taus = torch.where(
        condition=advantages > 0,
        input=torch.as_tensor(tau_pos, dtype=advantages.dtype),
        other=torch.as_tensor(tau_neg, dtype=advantages.dtype),
    )
    gates = gate_function(ratio, taus)
    return -gates * advantages


def cispo(old_log_prob: Tensor, log_prob: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    negative_approx_kl = log_prob - old_log_prob
    negative_approx_kl = torch.clamp(negative_approx_kl, min=-20.0, max=20.0)
    ratio = torch.exp(negative_approx_kl)
    clipped_ratio = torch.clamp(ratio, 1 - low, 1 + high)
    clipped_ratio_sg = clipped_ratio.detach()
    return -clipped_ratio_sg * advantages * log_prob


def geo_mean(
    old_log_prob: Tensor, log_prob: Tensor, advantages: Tensor, response_mask: Tensor, low: float, high: float
) -> Tensor:
    """Of whole completions, [B]; verl takes their mean."""
    negative_approx_kl = log_prob - old_log_prob
    sgn_advantage = torch.sign(advantages)
    negative_approx_kl_clamp = torch.clamp(negative_approx_kl, -low, high)
    negative_approx_kl_min = torch.min(sgn_advantage * negative_approx_kl, sgn_advantage * negative_approx_kl_clamp)
    negative_approx_kl_min = sgn_advantage * negative_approx_kl_min
    response_mask_sum = response_mask.sum(dim=-1)
    ratio = torch.exp((negative_approx_kl_min * response_mask).sum(dim=-1) / (response_mask_sum + 1e-8))
    advantage = (advantages * response_mask).sum(dim=-1) / (response_mask_sum + 1e-8)
    return -advantage * ratio


def dppo(
    old_log_prob: Tensor, log_prob: Tensor, advantages: Tensor, low: float, high: float, c: float, kind: str
) -> Tensor:
    negative_approx_kl = log_prob - old_log_prob
    negative_approx_kl = torch.clamp(negative_approx_kl, min=-20.0, max=20.0)
    ratio = torch.exp(negative_approx_kl)
    truncated_ratio = torch.clamp(ratio, max=c)
    truncated_ratio = truncated_ratio.detach()
    prob = torch.exp(log_prob)
    old_prob = torch.exp(old_log_prob)
    if kind == "tv":
        valid_positive_mask = (prob - old_prob) <= high
        valid_negative_mask = (prob - old_prob) >= -low
    else:
        binary_kl = old_prob * (old_log_prob - log_prob) + (1 - old_prob) * torch.log(
            (1.0 - old_prob + 1e-8) / (1.0 - prob + 1e-8)
        )
        valid_positive_mask = (binary_kl <= high) | (prob <= old_prob)
        valid_negative_mask = (binary_kl <= low) | (prob >= old_prob)
    valid_mask = torch.where(advantages > 0, valid_positive_mask, valid_negative_mask)
    valid_mask = valid_mask.detach().float()
    return -advantages * truncated_ratio * log_prob * valid_mask


def clip_cov(
    old_log_prob: Tensor, log_prob: Tensor, advantages: Tensor, response_mask: Tensor, low: float, high: float,
    clip_cov_ratio: float, clip_cov_lb: float, clip_cov_ub: float,
) -> Tensor:  # fmt: skip
    negative_approx_kl = log_prob - old_log_prob
    ratio = torch.exp(negative_approx_kl)
    pg_losses1 = -advantages * ratio
    corr = torch.ones_like(advantages)
    pg_losses2 = -advantages * torch.clamp(ratio, 1 - low, 1 + high)
    clip_by_origin = (pg_losses2 > pg_losses1) & (response_mask > 0)
    cov_all = (advantages - masked_mean(advantages, response_mask)) * (
        log_prob - masked_mean(log_prob.detach(), response_mask)
    )
    cov_all[response_mask == 0] = -torch.inf
    cov_all[clip_by_origin] = -torch.inf
    clip_num = max(int(clip_cov_ratio * response_mask.sum().item()), 1)
    top_k = (cov_all < clip_cov_ub) & (cov_all > clip_cov_lb) & (response_mask > 0)
    top_k_idx = torch.nonzero(top_k)
    if len(top_k_idx) > 0:
        perm = torch.randperm(len(top_k_idx))
        top_k_idx = top_k_idx[perm[: min(clip_num, len(top_k_idx))]]
    else:
        top_k_idx = torch.empty((0, 2), device=cov_all.device, dtype=torch.long)
    corr[top_k_idx[:, 0], top_k_idx[:, 1]] = 0
    return torch.maximum(pg_losses1, pg_losses2) * corr


def kl_cov(
    old_log_prob: Tensor, log_prob: Tensor, advantages: Tensor, response_mask: Tensor, kl_cov_ratio: float,
    ppo_kl_coef: float,
) -> Tensor:  # fmt: skip
    negative_approx_kl = log_prob - old_log_prob
    abs_kl = negative_approx_kl.abs()
    ratio = torch.exp(negative_approx_kl)
    pg_losses1 = -advantages * ratio
    pg_losses_kl = -advantages * ratio + ppo_kl_coef * abs_kl
    pg_losses = pg_losses1
    all_valid = response_mask > 0
    all_valid_idx = torch.nonzero(all_valid.reshape(-1), as_tuple=True)[0]
    all_valid_adv = advantages[all_valid].detach().reshape(-1).cpu()
    all_valid_logp = log_prob[all_valid].detach().reshape(-1).cpu()
    cov_lst_all = (all_valid_adv - all_valid_adv.mean()) * (all_valid_logp - all_valid_logp.mean())
    k_percent_nums = max(1, int(len(cov_lst_all) * kl_cov_ratio))
    large_cov_idxs = torch.topk(cov_lst_all, k_percent_nums, largest=True).indices
    large_cov_idxs = all_valid_idx[large_cov_idxs]
    pg_losses[large_cov_idxs // advantages.shape[1], large_cov_idxs % advantages.shape[1]] = pg_losses_kl[
        large_cov_idxs // advantages.shape[1], large_cov_idxs % advantages.shape[1]
    ]
    return pg_losses


def rejection_by_k1(
    log_ratio: Tensor, response_mask: Tensor, option_name: str, lower_value: float, upper_value: float
) -> Tensor:
    """The tokens that stay, [B, T]."""
    log_ratio_safe = torch.clamp(log_ratio, min=-20.0, max=20.0)
    token_k1 = -log_ratio_safe
    lower_log = math.log(lower_value)
    upper_log = math.log(upper_value)
    if option_name == "token_k1":
        token_keep_bool = (token_k1 >= lower_log) & (token_k1 <= upper_log)
    else:
        axis = -1
        if option_name == "seq_sum_k1":
            seq_stat = masked_sum(token_k1, response_mask, axis=axis)
        else:
            seq_stat = masked_mean(token_k1, response_mask, axis=axis)
        seq_keep_bool_direct = (seq_stat >= lower_log) & (seq_stat <= upper_log)
        token_keep_bool = seq_keep_bool_direct.unsqueeze(-1).expand_as(response_mask.bool())
    return token_keep_bool & response_mask.bool()
