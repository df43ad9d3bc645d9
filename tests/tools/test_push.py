"""push: the card, the files, and what the hub's client is asked to do."""

from __future__ import annotations

import io
import json
import shutil
import threading
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import Mock, create_autospec

import datasets
import huggingface_hub
import pytest
import yaml
from PIL import Image
from reporting import tiny_run
from support.commands import Result, run
from support.pipeline import Run, table

from dapo_stages.data.chat import SYSTEM_PROMPT
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.policy_folders import PolicyFolder

SENT = [
    "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
    "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
]  # fmt: skip
HUB_MODEL = "Qwen/Qwen2.5-VL-3B-Instruct"


class Hub:
    """Stands in for huggingface_hub.HfApi with its signatures; keeps what would have been uploaded."""

    def __init__(self) -> None:
        self.api: Mock = create_autospec(huggingface_hub.HfApi, instance=True)
        self.api.upload_folder.side_effect = self._upload
        self.files: dict[str, bytes] = {}
        self.token: str | None = None

    def __call__(self, token: str | None = None) -> Mock:
        self.token = token
        return self.api

    def _upload(self, *, folder_path: Path, **_: Any) -> Any:
        paths = [path for path in folder_path.rglob("*") if path.is_file()]
        self.files = {path.relative_to(folder_path).as_posix(): path.read_bytes() for path in paths}
        return Mock(commit_url="https://huggingface.co/me/looker/commit/1")


@pytest.fixture()
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", stand_in)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return stand_in


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture(scope="module")
def trained(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run with an evaluated start, as make leaves it."""
    folder = tmp_path_factory.mktemp("runs") / "looker"
    shutil.copytree(small_run.folder, folder)
    small_run.command(
        "evaluate", "--policy", folder / "policy", "--data", folder / "data", "--out", folder / "iter-0000/eval"
    )
    return folder


@pytest.fixture(scope="module")
def adapter(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapter") / "train"
    lora = "{rank: 2, alpha: 4, target_modules: [v_proj, q_proj]}"
    small_run.command("train-step", *small_run.train_inputs(1), "--out", out, train__lora=lora)
    return out / "policy"


def push(policy: Path, *arguments: object, repo: str = "me/looker") -> Result:
    return run("push", "--policy", policy, "--repo", repo, *arguments)


def front_matter(card: str) -> dict[str, Any]:
    matter: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return matter


def refused(result: Result, text: str) -> None:
    assert result.code == 3 and text in result.stderr, result.stderr


def test_a_dry_run_prints_card_and_files_and_touches_no_network(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Mock(side_effect=AssertionError("the network was asked")))
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    result = push(trained / "iter-0002/train/policy", "--dry-run", "--license", "apache-2.0", "--private")
    assert result.code == 0, result.stderr
    assert result.stderr == "push would send to me/looker (private):\n"
    assert result.stdout.split("\n\n")[0].splitlines() == SENT
    assert "# looker\n" in result.stdout and "\napache-2.0.\n" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_the_card_says_how_the_policy_was_prompted(trained: Path) -> None:
    prompting = [{"dataset": "", "system_prompt": SYSTEM_PROMPT, "template": None}]
    assert PolicyFolder(trained / "policy").prompting == []  # the starting policy keeps its own
    for number in (1, 2):
        assert PolicyFolder(trained / f"iter-000{number}/train/policy").prompting == prompting
    card = json.loads(push(trained / "iter-0002/train/policy", "--dry-run", "--json").stdout)["card"]
    assert "It was trained with this system message:" in card and SYSTEM_PROMPT in card
    card = json.loads(push(trained / "policy", "--dry-run", "--json").stdout)["card"]
    assert "system message" not in card


def test_the_card_has_the_figures_of_the_evaluations(trained: Path) -> None:
    card = json.loads(push(trained / "iter-0002/train/policy", "--dry-run", "--json").stdout)["card"]
    start, own = (
        json.loads((trained / f"iter-000{number}/eval/metrics.json").read_text()) for number in (0, 2)
    )  # fmt: skip
    greedy = f"| greedy | {100 * start['greedy_accuracy']:.1f}% | {100 * own['greedy_accuracy']:.1f}% |"
    assert greedy in card and "12 questions held out from embedded synthetic questions." in card
    metrics = front_matter(card)["model-index"][0]["results"][0]["metrics"]
    assert metrics[0] == {
        "type": "accuracy", "value": pytest.approx(own["greedy_accuracy"], abs=1e-4), "name": "held-out, greedy",
    }  # fmt: skip
    assert "| iterations | 2 |" in card and "| sampling temperature | 1.20 |" in card
    assert str(trained) not in card and "## Limitations" in card


def test_the_card_names_rewards_that_weigh_1_because_nothing_else_is_said(
    trained: Path, small_run: Run, tmp_path: Path
) -> None:
    run_ = tmp_path / "judged"
    shutil.copytree(trained, run_)
    rewards = {"rewards__judge": "{model: m}", "rewards__plugins": "{brevity: a.py:f, places: a.py:g}"}
    weights = "{accuracy: 2, format: 0, plugins: {places: 0}}"
    small_run.command("config", "--out", run_ / "config.yaml", **rewards, weights__reward_weights=weights)
    card = json.loads(push(run_ / "iter-0002/train/policy", "--dry-run", "--json").stdout)["card"]
    assert "| rewards | accuracy 2, overlong 1, brevity 1, judge 1 |" in card
    assert "its format, and by brevity, judge. The text before the answer may not be the reason for it." in card


def test_uploading_makes_the_repository_and_sends_what_is_listed(trained: Path, hub: Hub) -> None:
    policy = trained / "iter-0002/train/policy"
    result = push(policy, "--private", "--json")
    assert result.code == 0, result.stderr
    assert json.loads(result.stdout)["url"] == "https://huggingface.co/me/looker/commit/1"
    assert hub.token == "hf_secret" and "hf_secret" not in result.stdout + result.stderr
    hub.api.create_repo.assert_called_once_with("me/looker", private=True, exist_ok=True, repo_type="model")
    assert hub.api.upload_folder.call_args.kwargs["repo_id"] == "me/looker"
    assert sorted(hub.files) == SENT
    assert hub.files["model.safetensors"] == (policy / "model.safetensors").read_bytes()
    assert b"# looker" in hub.files["README.md"]


def test_rollouts_are_sent_as_a_dataset_that_shows_images(trained: Path, hub: Hub, tmp_path: Path) -> None:
    """Two iterations of the run, opened by the datasets library as the hub's viewer opens them."""
    result = run("push", "--rollouts", trained, "--repo", "me/looks", "--license", "apache-2.0", "--json")
    assert result.code == 0, result.stderr
    hub.api.create_repo.assert_called_once_with("me/looks", private=None, exist_ok=True, repo_type="dataset")
    assert hub.api.upload_folder.call_args.kwargs["repo_type"] == "dataset"
    assert sorted(hub.files) == ["README.md", "iteration-0001.parquet", "iteration-0002.parquet"]
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    opened = datasets.load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert opened.features["images"] == datasets.List(datasets.Image())
    prompts, completions = (table(trained / "iter-0001/rollout", kind) for kind in ("prompts", "completions"))
    later = table(trained / "iter-0002/rollout", "prompts")
    assert opened["group_id"] == [*prompts["group_id"], *later["group_id"]]
    first, own = opened[0], completions[completions["group_id"] == prompts["group_id"][0]]
    assert first["completions"] == list(own["text"]) and first["reward_accuracy"] == list(own["reward_accuracy"])
    shown = Image.open(io.BytesIO(prompts["images"][0][0]["bytes"]))
    assert first["images"][0].size == shown.size and first["images"][0].tobytes() == shown.tobytes()
    everything = b"".join(hub.files.values())
    assert str(trained).encode() not in everything and b"row" not in opened.features


def test_the_card_of_rollouts_says_what_they_are(trained: Path, small_run: Run) -> None:
    result = run("push", "--rollouts", trained / "iter-0002/rollout", "--repo", "me/looks", "--dry-run", "--json")
    said = json.loads(result.stdout)
    assert said["files"] == ["README.md", "iteration-0002.parquet"]
    matter = front_matter(said["card"])
    assert matter["configs"][0]["data_files"] == [{"split": "train", "path": "iteration-*.parquet"}]
    assert matter["task_categories"] == ["visual-question-answering"] and "license" not in matter
    counts = Source(trained / "iter-0002/rollout").manifest.counts
    assert f"| completions | {counts['completions']} |" in said["card"]
    assert "| starting policy | embedded |" in said["card"] and "on embedded synthetic questions" in said["card"]
    assert "load_dataset('me/looks', split=\"train\")" in said["card"]
    for row in ("reward_accuracy", "completions", "images"):
        assert f"| {row} |" in said["card"].replace("\\_", "_")


def test_either_a_policy_or_rollouts_are_sent(trained: Path) -> None:
    both = run("push", "--repo", "me/a", "--policy", trained / "policy", "--rollouts", trained)
    assert both.code == run("push", "--repo", "me/a").code == 2
    refused(run("push", "--repo", "me/a", "--rollouts", trained / "data"), "expected the output of rollout")


def test_no_pickle_no_code_and_no_manifest_is_sent(tmp_path: Path, hub: Hub) -> None:
    names = ["model.safetensors", "config.json", "pytorch_model.bin", "training_args.pt", "modeling.py", "vocab.txt"]

    def fill(output: Output) -> None:
        for name in names:
            (output.folder / name).write_text("{}")
        output.add_files(*names)
        output.policy = {"version": 1, "model": "embedded"}

    tiny_run.publish(Plan("policy", tmp_path / "policy", {}, 1), fill)
    result = push(tmp_path / "policy")
    assert result.code == 0, result.stderr
    assert sorted(hub.files) == ["README.md", "config.json", "model.safetensors", "vocab.txt"]
    stay = [f"push: {name} is not sent" for name in ("modeling.py", "pytorch_model.bin", "training_args.pt")]
    assert result.stderr.splitlines()[:3] == stay
    assert b"This policy was not evaluated." in hub.files["README.md"]


def test_an_adapter_names_its_base_where_peft_looks_for_it(adapter: Path, hub: Hub) -> None:
    refused(
        push(adapter),
        f"{adapter}: the base of this adapter is not on the hub, only on this machine. Merge it "
        "(dapo-stages merge) and push that, or name its base on the hub: --base-model user/name.",
    )
    assert push(adapter, "--base-model", "me/base").code == 0
    assert json.loads(hub.files["adapter_config.json"])["base_model_name_or_path"] == "me/base"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    card = hub.files["README.md"].decode()
    assert front_matter(card)["base_model"] == "me/base" and front_matter(card)["library_name"] == "peft"
    assert "PeftModel.from_pretrained(base, 'me/looker')" in card
    assert "model.safetensors" not in hub.files and "adapter_model.safetensors" in hub.files


def test_an_adapter_over_a_hub_model_finds_that_name_itself(adapter: Path, tmp_path: Path, hub: Hub) -> None:
    def refer(output: Output) -> None:
        output.policy = {
            "version": 0,
            "model": HUB_MODEL,
            "reference": HUB_MODEL,
        }

    def fill(output: Output) -> None:
        for path in adapter.glob("adapter_*"):
            shutil.copy(path, output.folder)
        output.add_files(*(path.name for path in adapter.glob("adapter_*")))
        output.policy = {"version": 4, "model": HUB_MODEL, "base": "../start"}

    tiny_run.publish(Plan("init-policy", tmp_path / "start", {}, 1), refer)
    tiny_run.publish(Plan("policy", tmp_path / "policy", {}, 1), fill)
    assert push(tmp_path / "policy").code == 0
    card = hub.files["README.md"].decode()
    assert front_matter(card)["base_model"] == HUB_MODEL
    assert f"A LoRA adapter for [{HUB_MODEL}](https://huggingface.co/{HUB_MODEL})" in card


def test_a_merged_adapter_has_the_figures_of_the_adapter(
    small_run: Run, adapter: Path, tmp_path: Path
) -> None:  # fmt: skip
    small_run.command("evaluate", "--policy", adapter, "--data", small_run.folder / "data", "--out", tmp_path / "eval")
    assert run("merge", "--policy", adapter, "--out", tmp_path / "merged").code == 0
    greedy = json.loads((tmp_path / "eval/metrics.json").read_text())["greedy_accuracy"]
    shown = push(tmp_path / "merged", "--evaluation", tmp_path / "eval", "--dry-run").stdout
    assert f"| greedy | {100 * greedy:.1f}% |" in shown and "| merged | linear, 1 policies |" in shown
    refused(
        push(small_run.policy(2), "--evaluation", tmp_path / "eval", "--dry-run"),
        f"{tmp_path}/eval: this is not an evaluation of {small_run.policy(2)}. Name the one that is.",
    )


def test_texts_of_others_are_no_markup_in_the_card(trained: Path, tmp_path: Path) -> None:
    """Slice names come from a dataset, the dataset's name from a user."""
    run_ = tmp_path / "run"
    tiny_run.build(run_)
    (run_ / "config.yaml").write_text("seed: 1\ndata: {source: '<img src=x> | [a](javascript:b)'}\n")
    card = json.loads(push(run_ / "iter-0002/train/policy", "--run", run_, "--dry-run", "--json").stdout)["card"]
    assert "| greedy, prior\\|violating | 15.0% | 65.0% |" in card
    assert "<img" not in card and "javascript" not in card
    assert front_matter(card)["model-index"][0]["results"][0]["dataset"]["name"] == "a local dataset"


def test_a_policy_of_another_run_is_refused(trained: Path, tmp_path: Path) -> None:
    other = tiny_run.build(tmp_path / "other")
    policy = trained / "iter-0002/train/policy"
    refused(push(policy, "--run", other, "--dry-run"), f"{policy}: {other} did not make this policy.")


def test_a_reference_to_a_hub_model_is_not_sent(tmp_path: Path) -> None:
    def refer(output: Output) -> None:
        output.policy = {"version": 0, "reference": "Qwen/Qwen2.5-VL-7B-Instruct"}

    tiny_run.publish(Plan("init-policy", tmp_path / "policy", {}, 1), refer)
    refused(
        push(tmp_path / "policy", "--dry-run"), "this policy has no weights, only a reference to a model elsewhere."
    )


def test_a_changed_file_is_not_sent(trained: Path, tmp_path: Path, hub: Hub) -> None:
    shutil.copytree(trained / "iter-0002/train/policy", tmp_path / "policy")
    (tmp_path / "policy/config.json").write_text("{}")
    refused(push(tmp_path / "policy"), "config.json: has 2 bytes, expected ")
    assert not hub.files


@pytest.mark.parametrize(
    ("arguments", "repo", "text"),
    [
        ([], "looker", "--repo: expected user/name, as on the hub, got 'looker'. Fix it."),
        ([], "me/lo oker", "--repo: expected user/name, as on the hub, got 'me/lo oker'"),
        (["--base-model", "../up/there"], "me/looker", "--base-model: expected user/name, as on the hub, got '../up"),
        (["--license", "a: b"], "me/looker", "--license: expected a name such as apache-2.0, got 'a: b'. Fix it."),
        ([], "me/looker", "HF_TOKEN: not set in the environment. Set it to a token that may write."),
    ],
)
def test_what_cannot_be_sent_is_said(arguments: list[str], repo: str, text: str, small_run: Run) -> None:
    refused(push(small_run.policy(2), *arguments, repo=repo), text)


def test_a_hub_that_refuses_is_named(trained: Path, hub: Hub) -> None:
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    response = httpx.Response(403, request=httpx.Request("POST", "https://huggingface.co/api/repos/create"))
    hub.api.create_repo.side_effect = HfHubHTTPError("403 Forbidden: you may not", response=response)
    refused(push(trained / "iter-0002/train/policy"), "me/looker: the hub refused or cannot be reached (403 Forbidden")


def test_a_hub_out_of_reach_is_named(trained: Path, hub: Hub) -> None:
    from huggingface_hub.errors import HTTPError

    hub.api.create_repo.side_effect = HTTPError("[Errno 111] Connection refused")  # as its client raises it
    refused(push(trained / "iter-0002/train/policy"), "me/looker: the hub refused or cannot be reached ([Errno 111]")


class Server(BaseHTTPRequestHandler):
    """The hub's interface as far as an upload of small files needs it; keeps every request."""

    asked: ClassVar[list[tuple[str, str, bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.asked.append((self.path, self.headers["Authorization"], body))
        answers: dict[str, Any] = {
            "create": {"url": "https://huggingface.co/me/looker", "id": "1"},
            "validate-yaml": {"errors": [], "warnings": []},
            "main": {"commitUrl": "https://huggingface.co/me/looker/commit/2", "commitOid": "2"},
        }
        answer = answers[self.path.split("?")[0].split("/")[-1]]
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        payload = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: Any) -> None:
        pass


def test_the_real_client_sends_the_same_over_http(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    policy = trained / "iter-0002/train/policy"
    result = push(policy)
    server.shutdown()
    assert result.code == 0, result.stderr
    assert result.stderr == "push: done -> https://huggingface.co/me/looker/commit/2\n"
    assert {token for _, token, _ in Server.asked} == {"Bearer hf_secret"}
    (commit,) = (body for path, _, body in Server.asked if "/commit/" in path)
    lines = [json.loads(line) for line in commit.splitlines()]
    sent = {line["value"]["path"]: b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"}
    assert sorted(sent) == SENT
    assert sent["model.safetensors"] == (policy / "model.safetensors").read_bytes()
