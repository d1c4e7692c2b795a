"""LoRA: trained, stopped, saved and replayed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import dpexplore as dp
from dpexplore.cli import main
from dpexplore.diffuse.adapter import PAPER_MODULES, Adapter, load_adapter, new_adapter, target_choices
from dpexplore.diffuse.capsule import load_adapter_capsule, replay_adapter, save_run
from dpexplore.diffuse.config import AdapterConfig
from dpexplore.diffuse.metrics import outcome_fit
from dpexplore.diffuse.report import answers
from dpexplore.diffuse.training import AdapterRun
from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import strings
from tests.benchmarks.architectures import tiny_config
from tests.diffuse.shared import ASKED, TinyLm, recomputed
from tests.tiny_models import byte_level_tokenizer


def weights_of(lm: LanguageModel) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in lm.model.parameters()]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom", "phi3"])
def test_lora_lowers_the_loss_and_leaves_the_model_alone(tiny_lm: TinyLm, architecture: str) -> None:
    lm = tiny_lm(architecture)
    target = ASKED.build(lm)
    before, names = weights_of(lm), [name for name, _ in lm.model.named_modules()]
    state = torch.random.get_rng_state()
    engine = dp.Engine(lm)  # another user's rows, stepped in the midst of the training
    other = engine.submit(dp.entropy(bits=4).build(lm), dp.TuneConfig(restarts=1, steps=4, patience=None))
    run = AdapterRun(lm, [target], AdapterConfig(learning_rate=0.02, passes=8))
    for _ in run:
        engine.step()
    assert run.status == "max_passes"
    assert outcome_fit(run.adapter.lm, target).kl_nats < outcome_fit(lm, target).kl_nats
    assert run.steps[0].loss_nats == pytest.approx(outcome_fit(lm, target).cross_entropy_nats, abs=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(before, weights_of(lm), strict=True))
    assert names == [name for name, _ in lm.model.named_modules()]
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert torch.equal(state, torch.random.get_rng_state())
    while engine.step():
        pass
    alone = dp.tune(lm, other.target, other.config)
    assert [step.kl_nats for step in other.steps] == [
        pytest.approx(step.kl_nats, abs=1e-5)
        for step in alone  # type: ignore[misc]
    ]


def test_an_adapter_shares_the_base_weights_and_begins_as_the_base(tiny_lm: TinyLm) -> None:
    lm = tiny_lm("llama")
    target = ASKED.build(lm)
    adapter = new_adapter(lm, rank=4, seed=0)
    own = {parameter.data_ptr() for parameter in lm.model.parameters()}
    frozen = [parameter for parameter in adapter.peft.parameters() if not parameter.requires_grad]
    assert {parameter.data_ptr() for parameter in frozen} == own
    assert outcome_fit(adapter.lm, target).kl_nats == pytest.approx(outcome_fit(lm, target).kl_nats, abs=1e-6)
    assert adapted(adapter) == set(PAPER_MODULES)
    again = new_adapter(lm, rank=4, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(adapter.parameters(), again.parameters(), strict=True))
    assert next(target_choices(tiny_lm("gpt2"))) is None  # PEFT's own default


def test_two_trainings_beside_each_other_are_those_alone(tiny_lm: TinyLm) -> None:
    lm = tiny_lm("llama")
    targets = [ASKED.build(lm), strings(["lazy", "quick"], request="The dog is").build(lm)]
    config = AdapterConfig(learning_rate=0.01, passes=3)
    runs = [AdapterRun(lm, [target], config) for target in targets]
    for _ in zip(*runs, strict=True):
        pass
    for run, target in zip(runs, targets, strict=True):
        alone = AdapterRun(lm, [target], config).finish()
        assert [step.loss_nats for step in run.steps] == pytest.approx(
            [step.loss_nats for step in alone.steps], abs=1e-5
        )


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT's own, by its plain loader
def test_adapters_load_with_plain_peft_and_replay(
    tiny_lm: TinyLm, tiny_folders: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    lm = tiny_lm("llama")
    target = ASKED.build(lm)
    run = AdapterRun(lm, [target], AdapterConfig(learning_rate=0.01, passes=3)).finish()
    told = [answers(run.adapter.lm, "sea", target, samples=5)]
    save_run(run, told, tmp_path)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folders("llama")), str(tmp_path)).eval()
    reader = LanguageModel("plain", plain, lm.tokenizer, "plain")  # type: ignore[arg-type]
    expected = recomputed(reader, target, target.request_ids)
    assert outcome_fit(run.adapter.lm, target).probabilities.log().tolist() == pytest.approx(expected, abs=1e-4)
    assert outcome_fit(load_adapter(lm, tmp_path).lm, target).kl_nats == pytest.approx(told[0].fit.kl_nats, abs=1e-5)
    found = replay_adapter(lm, tmp_path)
    assert found.agrees
    assert found.same_weights
    kept = load_adapter_capsule(tmp_path)
    assert main(["capsule", "--schema", "--kind", "lora"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) == set(kept)
    assert set(schema["$defs"]["AdapterConfig"]["properties"]) == set(kept["config"])
    answered = schema["$defs"]["AnswersRecord"]["properties"]
    assert set(answered) == set(kept["result"]["answers"][0])
    assert set(schema["$defs"]["SamplesRecord"]["properties"]) <= set(kept["result"]["answers"][0]["samples"])
    del kept["config"]["rank"], kept["model"]["name"], kept["targets"][0]["recipe"]
    kept["config"]["passes"], kept["result"]["answers"][0]["valid_mass"] = 0, 2
    (tmp_path / "capsule.json").write_text(json.dumps(kept))
    assert main(["capsule", "--check", str(tmp_path / "capsule.json"), "--json"]) == 1
    faults = " ".join(json.loads(capsys.readouterr().out)["faults"])
    for fault in (
        "`model.name` is missing",
        "`passes` is 0",
        "`targets.0.recipe` is missing",
        "`result.answers.0.valid_",
    ):
        assert fault in faults
    with pytest.raises(dp.InputError, match=r"`model\.name` is missing"):
        replay_adapter(lm, tmp_path)
    with pytest.raises(dp.InputError, match="made for another model"):
        load_adapter(tiny_lm("gpt2"), tmp_path)
    with pytest.raises(dp.InputError, match="is not an adapter"):
        load_adapter(lm, tmp_path / "nowhere")


def test_an_early_stop_ends_with_the_first_pass_near_the_floor(decided: LanguageModel) -> None:
    asked = (strings(["s", "t", "e"], "I love the", eos=False), strings(["s", "t"], "The dog is", eos=False))
    targets = [one.build(decided) for one in asked]
    config = AdapterConfig(learning_rate=0.01, passes=40)
    losses = [step.loss_nats for step in AdapterRun(decided, targets, config).finish().steps]
    near = 1.2 * sum(target.entropy_nats for target in targets)
    first = next(i for i, loss in enumerate(losses) if loss <= near)
    assert 1 < first < len(losses) - 1  # neither at once nor at the end
    run = AdapterRun(decided, targets, replace(config, early_stop=True)).finish()
    assert (run.status, run.config.gamma) == ("early_stop", 0.2)
    assert [step.loss_nats for step in run.steps] == pytest.approx(losses[: first + 1], abs=1e-3)


def test_a_cancelled_run_keeps_its_passes(tiny_lm: TinyLm) -> None:
    lm = tiny_lm("llama")
    target = ASKED.build(lm)
    run = AdapterRun(lm, [target], AdapterConfig(passes=9))
    for step in run:
        if step.step == 2:
            run.cancel()
    assert run.status == "cancelled"
    assert len(run.steps) == 2


@pytest.mark.parametrize(
    "wrong", [{"rank": 0}, {"learning_rate": 0.0}, {"passes": 1.5}, {"gamma": -1.0}, {"decay": 1}, {"clip": math.inf}]
)
def test_settings_that_no_run_can_have_are_refused(wrong: dict) -> None:
    with pytest.raises(dp.InputError, match=next(iter(wrong))):
        AdapterConfig(**wrong)


def test_the_paper_preset_is_the_papers() -> None:
    paper = AdapterConfig.preset("paper")
    assert (paper.rank, paper.learning_rate, paper.clip, paper.passes, paper.batch) == (4, 5e-5, 1.0, 50, 32)
    assert (paper.gamma, paper.decay) == (0.2, False)


@pytest.mark.parametrize("architecture", ["mamba", "mixtral"])
def test_state_spaces_and_mixtures_of_experts_train(architecture: str) -> None:
    lm = tried(architecture)
    run = AdapterRun(lm, [ASKED.build(lm)], AdapterConfig(learning_rate=0.02, passes=3)).finish()
    assert run.steps[-1].loss_nats < run.steps[0].loss_nats
    assert all(torch.isfinite(parameter).all() for parameter in run.adapter.parameters())


def test_what_lora_cannot_train_is_refused_before_anything_is_measured(
    tiny_lm: TinyLm, tiny_folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    lm = tiny_lm("gpt2")
    for choices in ([], ["nowhere"]):  # no module at all, and none that PEFT finds
        monkeypatch.setattr("dpexplore.diffuse.adapter.target_choices", lambda _lm, found=choices: iter([found]))
        with pytest.raises(InputError, match=r"LoRA cannot train .*gpt2.* Tune a prompt instead"):
            new_adapter(lm, rank=2, seed=0)
    monkeypatch.setattr("dpexplore.cli.diffuse._measure", lambda *_: pytest.fail("measured"))
    asked = ["diffuse", 'strings(["a", "b"], request="r")', "--model", str(tiny_folders("gpt2"))]
    assert main(asked) == 2
    assert "LoRA cannot train" in capsys.readouterr().err.splitlines()[-1]


def test_modules_that_no_gradient_reaches_are_passed_over(tiny_lm: TinyLm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpexplore.diffuse.adapter._learns", lambda adapter: "q_proj" not in adapted(adapter))
    assert "q_proj" not in adapted(new_adapter(tiny_lm("phi3"), rank=2, seed=0))
    with pytest.raises(InputError, match="no finite gradient reaches it"):
        new_adapter(tiny_lm("llama"), rank=2, seed=0)


def adapted(adapter: Adapter) -> set[str]:
    return {
        name.split(".lora_A")[0].rpartition(".")[2] for name, _ in adapter.peft.named_parameters() if "lora_A" in name
    }


def tried(architecture: str) -> LanguageModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(architecture)).eval().requires_grad_(False)
    return LanguageModel(architecture, model, byte_level_tokenizer(), architecture)
