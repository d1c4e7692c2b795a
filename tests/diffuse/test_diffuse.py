"""The sequence objective, LoRA, samples and metrics, against plain transformers and arithmetic."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dpexplore as dp
from dpexplore.diffuse.adapter import PAPER_MODULES, load_adapter, new_adapter, target_modules
from dpexplore.diffuse.biographies import Biography, BiographyCounts
from dpexplore.diffuse.capsule import replay_adapter, save_run
from dpexplore.diffuse.config import AdapterConfig
from dpexplore.diffuse.families import FAMILIES, SIZES, family
from dpexplore.diffuse.generalise import generalise, interval
from dpexplore.diffuse.metrics import coverage, outcome_fit, perplexity, sample_facts
from dpexplore.diffuse.prompts import fill_slots, prompt_config
from dpexplore.diffuse.report import answers, held_out_text
from dpexplore.diffuse.sampling import sample_answers
from dpexplore.diffuse.training import AdapterRun, cross_entropy, part_log_probs, weighted_loss
from dpexplore.models import LanguageModel
from dpexplore.targets import StringTarget, strings
from dpexplore.tuning import Slots, replay
from dpexplore.tuning.objectives.sequences import (
    can_pack,
    objective_for,
    outcome_log_probs,
    packed_log_probs,
    plain_log_probs,
)
from tests.tiny_models import ARCHITECTURES

TinyLm = Callable[[str], LanguageModel]
ASKED = strings({"sea": 1, "shore": 2, "she sells": 1}, request="I love the")


def recomputed(lm: LanguageModel, target: StringTarget, prompt: list[int]) -> list[float]:
    """log q of every outcome by one plain pass for each, as anybody would compute it."""
    found = []
    for i in range(len(target.outcomes)):
        before, outcome = target.tree.sequence(0, i)
        whole = torch.tensor([prompt + before + outcome])
        with torch.no_grad():
            log_q = lm.model(input_ids=whole, use_cache=False).logits[0].double().log_softmax(-1)
        start = len(prompt) + len(before)
        found.append(sum(float(log_q[start + j - 1, token]) for j, token in enumerate(outcome)))
    return found


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_packed_outcomes_have_the_probabilities_of_plain_passes(tiny_lm: TinyLm, architecture: str) -> None:
    lm = tiny_lm(architecture)
    target = ASKED.build(lm)
    prompt = lm.embed(torch.tensor([target.request_ids]))
    expected = recomputed(lm, target, target.request_ids)
    with torch.no_grad():
        assert outcome_log_probs(lm, prompt, target.tree)[0, 0].tolist() == pytest.approx(expected, abs=1e-4)
        assert plain_log_probs(lm, prompt, target.tree, 2)[0, 0].tolist() == pytest.approx(expected, abs=1e-4)
        if can_pack(lm):
            assert packed_log_probs(lm, prompt, target.tree)[0, 0].tolist() == pytest.approx(expected, abs=1e-4)
    assert can_pack(lm) == (lm.max_positions is not None)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_gradient_flows_through_the_request(tiny_lm: TinyLm, architecture: str) -> None:
    lm = tiny_lm(architecture)
    target = strings({"sea": 1, "shore": 3}, request="I love the", response=["", " big"]).build(lm)
    rows = torch.stack([lm.embed(torch.tensor(ids)) for ids in (target.request_ids, target.request_ids[::-1])]).detach()
    grads = []
    for score in (packed_log_probs, plain_log_probs):
        leaf = rows.clone().requires_grad_()
        found = score(lm, leaf, target.tree)
        assert found.shape == (2, 2, 2)
        grads.append(torch.autograd.grad(-(target.weights.float() * found).sum(), leaf)[0])
    assert torch.allclose(grads[0], grads[1], atol=1e-5)
    assert (grads[0].abs().sum(-1) > 0).all()


def test_the_default_models_loss_is_the_same_packed_and_plain(default_lm: LanguageModel) -> None:
    target = strings([f"{{{n}}}" for n in (1, 10, 100, 25)], request="Say a number.").build(default_lm)
    prompt = default_lm.embed(torch.tensor([target.request_ids]))
    with torch.no_grad():
        losses = [
            -(target.weights.float() * score(default_lm, prompt, target.tree)[0, 0]).sum()
            for score in (packed_log_probs, plain_log_probs)
        ]
        by_training = cross_entropy(default_lm, target)
    assert float(losses[0]) == pytest.approx(float(losses[1]), abs=1e-4)
    assert float(by_training) == pytest.approx(float(losses[0]), abs=1e-4)


def test_batches_of_outcomes_add_up_to_the_loss(tiny_lm: TinyLm) -> None:
    lm = tiny_lm("llama")
    target = ASKED.build(lm)
    order = torch.tensor([2, 0, 1])
    parts = [weighted_loss(part_log_probs(lm, target, part), target.weights[part]) for part in order.split(2)]
    assert float(sum(parts)) == pytest.approx(float(cross_entropy(lm, target)), abs=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [2, 32])
def test_a_pass_tells_the_probabilities_that_it_met(tiny_lm: TinyLm, batch: int) -> None:
    lm = tiny_lm("llama")
    kept = strings({"sea": 1, "shore": 2, "the": 0, "she sells": 1}, request="I love the", response=["", " big"])
    target = kept.build(lm)
    run = AdapterRun(lm, [target], AdapterConfig(learning_rate=0.01, passes=3, batch=batch))
    assert run.probabilities[0].isnan().all()
    next(iter(run))
    expected = outcome_fit(lm, target).probabilities
    asked = target.weights > 0
    assert run.probabilities[0][asked].tolist() == pytest.approx(expected[asked].tolist(), rel=1e-4)
    assert run.probabilities[0].isnan().tolist() == (~asked).tolist()


@pytest.mark.parametrize("kind", ["kl", "js", "tv"])
def test_the_engine_tunes_prompts_to_strings(tiny_lm: TinyLm, kind: str) -> None:
    lm = tiny_lm("llama")
    target = ASKED.build(lm)
    config = dp.TuneConfig(method="hybrid", slots='soft*2 "I love" hard*1', restarts=2, steps=6, objective=kind)  # type: ignore[arg-type]
    result = dp.tune(lm, target, config).result
    prompt = result.prompt_embeds
    fit = outcome_fit(lm, target, prompt)
    assert result.kl_nats == pytest.approx(fit.kl_nats, abs=1e-4)
    assert result.log_probs.shape == (4,)
    assert float(result.log_probs.exp().sum()) == pytest.approx(1, abs=1e-4)
    first = dp.tune(lm, target, dp.TuneConfig(**{**config.to_dict(), "steps": 1})).result
    scored = [objective_for(lm, target, kind).score(lm, one.prompt_embeds[None], [objective_for(lm, target, kind)])  # type: ignore[arg-type]
              for one in (result, first)]  # fmt: skip
    assert float(scored[0].loss) <= float(scored[1].loss)


def test_strings_and_tokens_are_tuned_side_by_side_and_replayed(tiny_lm: TinyLm) -> None:
    lm = tiny_lm("llama")
    engine = dp.Engine(lm)
    config = dp.TuneConfig(method="hard", length=3, restarts=2, steps=3, patience=None, screen=3)
    runs = [engine.submit(target, config) for target in (ASKED.build(lm), dp.entropy(bits=4).build(lm))]
    while engine.step():
        pass
    for run in runs:
        alone = dp.tune(lm, run.target, config).result
        assert run.result.kl_nats == pytest.approx(alone.kl_nats, abs=1e-4)
        assert replay(lm, run.result.capsule).agrees


def test_reverse_kl_over_strings_is_refused(tiny_lm: TinyLm) -> None:
    with pytest.raises(dp.InputError, match="infinite"):
        dp.tune(tiny_lm("llama"), ASKED.build(tiny_lm("llama")), dp.TuneConfig(objective="reverse_kl"))


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
    adapted = {
        name.split(".lora_A")[0].rpartition(".")[2] for name, _ in adapter.peft.named_parameters() if "lora_A" in name
    }
    assert adapted == set(PAPER_MODULES)
    again = new_adapter(lm, rank=4, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(adapter.parameters(), again.parameters(), strict=True))
    assert target_modules(tiny_lm("gpt2")) is None  # PEFT's own default


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
    tiny_lm: TinyLm, tiny_folders: Callable[[str], Path], tmp_path: Path
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
    with pytest.raises(dp.InputError, match="made for another model"):
        load_adapter(tiny_lm("gpt2"), tmp_path)
    with pytest.raises(dp.InputError, match="is no adapter"):
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


@pytest.fixture(scope="module")
def decided(tiny_lm: TinyLm) -> LanguageModel:
    """A tiny model with steeper logits, so that it can be sure of something."""
    lm = tiny_lm("gpt2")
    model = copy.deepcopy(lm.model)
    with torch.no_grad():
        dict(model.named_parameters())["transformer.ln_f.weight"].mul_(3)
    return LanguageModel("decided", model, lm.tokenizer, "decided")


@pytest.mark.parametrize("eos", [True, False])
def test_samples_follow_the_models_own_probabilities(decided: LanguageModel, eos: bool) -> None:
    target = strings(["s", "t", "e"], request="I love the", response=["", " big"], eos=eos).build(decided)
    run = AdapterRun(decided, [target], AdapterConfig(learning_rate=0.02, passes=40)).finish()
    fit = outcome_fit(run.adapter.lm, target)
    assert fit.valid_mass > 0.5  # so that answers and their end, which is no part of them, are met
    drawn = sample_answers(run.adapter.lm, target, 401, seed=1)
    assert len(drawn) == 401
    for text, q in zip(target.outcomes, fit.probabilities.tolist(), strict=True):
        assert abs(drawn.count(text) / 401 - q) < 5 * math.sqrt(q * (1 - q) / 401) + 1e-2
    facts = sample_facts(target, drawn)
    assert abs(1 - facts.invalid_share - fit.valid_mass) < 5 * math.sqrt(0.25 / 401)
    assert drawn == sample_answers(run.adapter.lm, target, 401, seed=1)
    assert drawn != sample_answers(run.adapter.lm, target, 401, seed=2)


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_coverage_is_the_mean_over_all_draws(counts: list[int], data: st.DataObject) -> None:
    total = sum(counts) + data.draw(st.integers(0, 2))
    draws = data.draw(st.integers(0, total))
    pool = [k for k, count in enumerate(counts) for _ in range(count)] + [-1] * (total - sum(counts))
    drawn = [len(set(some) - {-1}) for some in combinations(pool, draws)]
    assert coverage(counts, draws, total) == pytest.approx(sum(drawn) / len(drawn))


def test_facts_count_what_was_never_trained_on(tiny_lm: TinyLm) -> None:
    target = strings({"sea": 1, "shore": 1, "lazy": 0, "dog": 0}, request="I love the").build(tiny_lm("llama"))
    facts = sample_facts(target, ["sea", "sea", "lazy", "what?"], sizes=[2, 4, 10])
    assert facts.unseen == 1
    assert facts.invalid_share == 0.25
    assert facts.entropy_nats == pytest.approx(1.5 * math.log(2))
    assert facts.coverage == {2: pytest.approx(coverage([2, 1], 2, 4)), 4: 2}
    assert target.entropy_nats == pytest.approx(math.log(2))


SKETCHES = ("{Ann Lee}\n{Female}\n{May 1, 1950}\n{Chile}\n{Baker}", "{Bo Ray}\n{Male}\n{May 2, 1960}\n{Peru}\n{Pilot}")


@pytest.mark.parametrize("text", SKETCHES)
def test_a_biography_is_read_as_it_was_written(text: str) -> None:
    read = Biography.parse(text)
    assert str(read) == text
    assert Biography.parse(f"{text}\n{{Won a prize}}") == read  # the paper's sixth line
    assert Biography.parse(f"Sure!\n{text}") is None
    assert Biography.parse(text.rpartition("\n")[0]) is None


def test_different_people_among_samples_are_counted(tiny_lm: TinyLm) -> None:
    target = strings(SKETCHES, request="I love the").build(tiny_lm("llama"))
    new = "{ann Kay}\n{Female}\n{May 1, 1950}\n{Kenya}\n{baker}"
    samples = [*SKETCHES, new, SKETCHES[0], "Ann Lee, a baker", ""]
    found = sample_facts(target, samples).biographies
    assert found == BiographyCounts(sketches=4, first_names=2, birth_places=3, careers=2)
    assert sample_facts(ASKED.build(tiny_lm("llama")), samples).biographies is None
    (people,) = family("biographies", "full")
    assert all(Biography.parse(text) for text in people.strings.texts)


def test_valid_mass_counts_outcomes_of_weight_zero(tiny_lm: TinyLm) -> None:
    lm = tiny_lm("llama")
    both = outcome_fit(lm, strings({"sea": 1, "dog": 0}, request="I love the").build(lm))
    one = outcome_fit(lm, strings({"sea": 1}, request="I love the").build(lm))
    assert both.cross_entropy_nats == pytest.approx(one.cross_entropy_nats, abs=1e-5)
    assert both.valid_mass == pytest.approx(float(both.probabilities.sum()))
    assert both.valid_mass > one.valid_mass
    assert both.kl_nats == pytest.approx(one.kl_nats, abs=1e-5)


def test_perplexity_is_the_exponential_of_the_mean_loss(tiny_lm: TinyLm) -> None:
    lm = tiny_lm("gpt2")
    text = "The quick brown fox."
    ids = torch.tensor([[*lm.bos_ids, *lm.encode(text, bos=False)]])
    loss = lm.model(input_ids=ids, labels=ids).loss
    assert perplexity(lm, text) == pytest.approx(float(loss.exp()), rel=1e-4)
    assert perplexity(lm, held_out_text()) > 1  # in windows: the text is longer than the model


def test_slots_stand_around_the_request(default_lm: LanguageModel) -> None:
    request = 'Say "yes" or "no"\nnow: request it'
    filled = fill_slots('soft*3 request " request " hard*2', request)
    assert Slots.parse(filled).items[1].text == request
    assert Slots.parse(filled).items[2].text == " request "
    config = prompt_config(default_lm, strings(["a"], request="Say a."), "soft", restarts=1)
    assert config.chat
    assert config.slots == '"Say a." soft*5'


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_is_a_target(default_lm: LanguageModel, name: str, size: str) -> None:
    tasks = family(name, size)  # type: ignore[arg-type]
    assert tasks == family(name, size)  # type: ignore[arg-type]
    for task in tasks:
        target = task.strings.build(default_lm)
        assert target.weights.sum() == pytest.approx(1)
        assert (target.weights > 0).sum() >= 7
        trained = target.weights[target.weights > 0]
        assert trained.max() == pytest.approx(float(trained.min()))


def test_the_lists_are_the_worlds() -> None:
    outcomes = {task.name: set(task.strings.texts) for name in FAMILIES for task in family(name, "full")}
    assert {"{France}", "{Italy}"} <= outcomes["europe"]
    assert {"{Fiji}", "{Samoa}"} <= outcomes["oceania"]
    assert outcomes["primes"] == {f"{{{n}}}" for n in range(2, 101) if all(n % d for d in range(2, n))}
    assert len(outcomes["february"]) == 29
    assert len(outcomes["africa"]) == 54
    with pytest.raises(dp.InputError, match="no family"):
        family("colours")


def test_leave_one_out_trains_on_the_others_alone(tiny_lm: TinyLm, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    small = {"a": ["sea", "shore"], "b": ["fox", "dog"], "c": ["lazy", "quick"]}
    monkeypatch.setattr(
        "dpexplore.diffuse.generalise.family",
        lambda name, size: [type(family("fruits")[0])(name, strings(small[name], request="The"))],
    )
    config = AdapterConfig(learning_rate=0.02, passes=4)
    cells = list(generalise(lm, families=list(small), config=config, seeds=(0, 1)))
    by_place = {(cell.mode, cell.trained, cell.tested): cell for cell in cells}
    assert set(by_place) == (
        {("untuned", (), name) for name in small}
        | {("leave-one-out", tuple(other for other in small if other != name), name) for name in small}
        | {("leave-one-in", (name,), tested) for name in small for tested in small}
    )
    own = by_place["leave-one-in", ("a",), "a"]
    assert len(own.told) == 2
    mean, low, high = own.kl_nats
    assert low <= mean <= high
    assert mean < by_place["untuned", (), "a"].kl_nats[0]
    known = {place for place in by_place if place[1:] != (("b",), "c")}
    (left,) = generalise(lm, families=list(small), config=config, seeds=(0, 1), known=known)
    assert left.place == ("leave-one-in", ("b",), "c")
    assert left.kl_nats == pytest.approx(by_place[left.place].kl_nats, abs=1e-5)


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6))
def test_an_interval_lies_within_its_values(values: list[float]) -> None:
    mean, low, high = interval(values)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert min(values) - 1e-9 <= mean <= max(values) + 1e-9
