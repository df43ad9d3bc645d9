"""rollout with vLLM's own server over loopback, killed during the run and restarted."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
from support.pipeline import Run, table
from support.vllm import kill, serving, train

SERVER = {"rollout__engine": "server", "engines__server__backoff": 0.1, "engines__server__retries": 2}


def test_a_server_gives_the_completions_of_vllm_in_process(run: Run, sampled: Path, tmp_path: Path) -> None:
    out = tmp_path / "rollout"
    with serving(run.policy(0), tmp_path / "first.log") as (url, process):

        def kill_on_the_way() -> None:
            while not (out / "completions-00000.parquet").exists():
                time.sleep(0.01)
            kill(process)

        threading.Thread(target=kill_on_the_way, daemon=True).start()
        settings = SERVER | {"engines__server__url": url, "engines__server__concurrency": 1}
        result = run.attempt("rollout", *run.rollout_inputs(1), "--out", out, **settings)
    assert result.code == 3
    assert "no valid response in 3 attempts" in result.stderr and "finished shards are kept" in result.stderr
    assert {path.name for path in out.glob("*.parquet")} == {"completions-00000.parquet"}
    with serving(run.policy(0), tmp_path / "second.log") as (url, _):
        began = time.monotonic()
        run.command("rollout", *run.rollout_inputs(1), "--out", out, **SERVER | {"engines__server__url": url})
        print(f"{time.monotonic() - began:.1f} s for 32 completions")
        other = run.attempt(
            "rollout", "--policy", run.policy(1), *run.rollout_inputs(1)[2:], "--out", tmp_path / "other",
            **SERVER | {"engines__server__url": url},
        )  # fmt: skip
        assert other.code == 3 and f"it serves policy {run.policy(0)}, expected {run.policy(1)}." in other.stderr
    served, own = table(out, "completions"), table(sampled, "completions")
    assert len(served) == 64 and set(served.engine) == {"server"}
    same = [list(one) == list(two) for one, two in zip(served.completion_ids, own.completion_ids, strict=True)]
    assert np.mean(same) > 0.9  # other batches round otherwise, and may draw another token now and then
    found = train(run, out, tmp_path, run.policy(0))
    print(f"|Δ logprob| {found.engine_diff_mean.mean():.2e} on average, {found.engine_diff_max.max():.2e} at most")
    assert found.engine_diff_mean.max() < 1e-5 and found.engine_diff_max.max() < 1e-3
