"""Advantages of TRL 1.16.0 and verl 0.9.1, copied: TRL has them in a method that samples, and verl needs ray.

From _generate_and_score_completions of trl.trainer.grpo_trainer, Copyright 2020-2026 The HuggingFace Team, and from
verl/trainer/ppo/core_algos.py and verl/utils/torch_functional.py, Copyright 2024 Bytedance Ltd. and/or its affiliates;
both Apache License 2.0 (http://www.apache.org/licenses/LICENSE-2.0). Left out: configuration, logging. verl's take
scores, [B], in place of their sums over tokens. Types added.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from support.verl_losses import masked_mean


def nanstd(tensor: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    mean = torch.nanmean(tensor, dim=dim, keepdim=True)
    variance = torch.nanmean((tensor - mean) ** 2, dim=dim, keepdim=True)
    count = torch.sum(~torch.isnan(tensor), dim=dim, keepdim=True)
    correction = count / (count - 1)
    correction = torch.where(count > 1, correction, torch.full_like(correction, float("nan")))
    variance *= correction  # Bessel's correction
    std = torch.sqrt(variance)
    if keepdim:
        return std
    return std.squeeze(dim) if dim is not None else std.squeeze()


def trl_normalize_then_sum(rewards_per_func: Tensor, reward_weights: Tensor, num_generations: int) -> Tensor:
    unscorable_mask = torch.isnan(rewards_per_func).all(dim=1)
    grouped = rewards_per_func.view(-1, num_generations, rewards_per_func.shape[1])
    mean_k = torch.nanmean(grouped, dim=1, keepdim=True)
    std_k = nanstd(grouped, dim=1, keepdim=True) if num_generations > 1 else torch.zeros_like(mean_k)
    reward_k = (grouped - mean_k) / (std_k + 1e-4)
    reward_k = reward_k.view(-1, rewards_per_func.shape[1])
    rewards = (reward_k * reward_weights.unsqueeze(0)).nansum(dim=1)
    rewards[unscorable_mask] = torch.nan
    std_rewards = nanstd(rewards).expand_as(rewards) if rewards.numel() > 1 else torch.zeros_like(rewards)
    advantages = (rewards - torch.nanmean(rewards)) / (std_rewards + 1e-4)
    return torch.nan_to_num(advantages, nan=0.0)


def masked_var(values: Tensor, mask: Tensor) -> Tensor:
    mean = masked_mean(values, mask)
    centered_values = values - mean
    variance = masked_mean(centered_values**2, mask)
    mask_sum = mask.sum()
    bessel_correction = mask_sum / (mask_sum - 1)
    return variance * bessel_correction


def masked_whiten(values: Tensor, mask: Tensor) -> Tensor:
    mean, var = masked_mean(values, mask), masked_var(values, mask)
    return (values - mean) * torch.rsqrt(var + 1e-8)


def _by_group(scores: Tensor, index: list[Any]) -> dict[Any, Tensor]:
    id2score = defaultdict(list)
    for i in range(scores.shape[0]):
        id2score[index[i]].append(scores[i])
    return {idx: torch.stack(values) for idx, values in id2score.items()}


def verl_rloo(scores: Tensor, index: list[Any]) -> Tensor:
    id2score, scores = _by_group(scores, index), scores.clone()
    for i in range(scores.shape[0]):
        response_num = len(id2score[index[i]])
        if response_num > 1:
            scores[i] = scores[i] * response_num / (response_num - 1) - torch.mean(
                id2score[index[i]]
            ) * response_num / (response_num - 1)
    return scores


def verl_opo(scores: Tensor, index: list[Any], response_mask: Tensor) -> Tensor:
    response_length = response_mask.sum(dim=-1)
    id2score, id2len = _by_group(scores, index), _by_group(response_length, index)
    scores = scores.clone()
    for i in range(scores.shape[0]):
        len_tensor, score_tensor = id2len[index[i]], id2score[index[i]]
        scores[i] = scores[i] - (len_tensor * score_tensor).sum() / len_tensor.sum()
    return scores


def verl_grpo_passk(scores: Tensor, index: list[Any], epsilon: float = 1e-6) -> Tensor:
    advantages = torch.zeros_like(scores)
    id2scores = defaultdict(list)
    id2indices = defaultdict(list)
    for i in range(scores.shape[0]):
        id2scores[index[i]].append(scores[i])
        id2indices[index[i]].append(i)
    for idx in id2scores:
        rewards = torch.stack(id2scores[idx])
        topk, topk_idx = torch.topk(rewards, 2)
        r_max, r_second_max = topk[0], topk[1]
        i_max = id2indices[idx][int(topk_idx[0].item())]
        advantage = r_max - r_second_max
        std = torch.std(rewards)
        advantages[i_max] = advantage / (std + epsilon)
    return advantages


def verl_reinforce_plus_plus(scores: Tensor, response_mask: Tensor) -> Tensor:
    """Of tokens, [B, T], with gamma 1: the score is at the last token."""
    token_level_rewards = torch.zeros_like(response_mask)
    last = response_mask.sum(dim=-1).long() - 1
    token_level_rewards[torch.arange(len(scores)), last] = scores
    returns = torch.zeros_like(token_level_rewards)
    running_return = torch.zeros_like(scores)
    for t in reversed(range(token_level_rewards.shape[1])):
        new_running_return = token_level_rewards[:, t] + 1.0 * running_return
        returns[:, t] = new_running_return * response_mask[:, t]
        running_return = new_running_return * response_mask[:, t] + running_return * (1 - response_mask[:, t])
    advantages = masked_whiten(returns, response_mask)
    return advantages * response_mask


def verl_reinforce_plus_plus_baseline(scores: Tensor, index: list[Any], response_mask: Tensor) -> Tensor:
    """Of tokens, [B, T]."""
    response_length = response_mask.shape[-1]
    id2score, scores = _by_group(scores, index), scores.clone()
    for i in range(scores.shape[0]):
        scores[i] = scores[i] - torch.mean(id2score[index[i]])
    scores = scores.unsqueeze(-1).tile([1, response_length]) * response_mask
    return masked_whiten(scores, response_mask) * response_mask
