"""Why an update is not carried out: its numbers have blown up, or it has nothing to say.

What other trainers skip or stop at: a loss or gradient that is not finite (NeMo's skip_nan_grad, verl), a norm that is
no gradient any more (the skip-step optimisers of OLMo-core), a ratio far off (PPO's target_kl, which ends the updates
of a rollout). All numbers are sums over all ranks, so that all ranks decide alike.
"""

from __future__ import annotations
