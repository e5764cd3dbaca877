"""Rollouts by vLLM as far as they need no vLLM; the rest is `tests/rl_attack/test_vllm.py`."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from backburn.components.certification.trainability import observe_trainings
from backburn.components.data_prep.splits import write_dataset
from backburn.components.defense_training.neutralization import neutralize
from backburn.components.preflight.checks import check_run
from backburn.components.rl_attack.lazy_rollouts import Rollouts
from backburn.components.rl_attack.step import run
from backburn.components.shared.checkpoints import Checkpoints
from backburn.components.shared.config import LoraSettings, ModelConfig, RunConfig, SamplingConfig
from backburn.components.shared.dataset import RunDataset
from backburn.components.shared.domains import Domain
from backburn.components.shared.errors import InputError
from backburn.components.shared.judges import make_judge
from backburn.components.shared.models import LoadedModel, add_lora, load_base
from backburn.components.shared.sampling import draw_completions
from backburn.components.shared.supervised import References
from backburn.components.shared.vllm_rollouts import VllmDraws, drawing, named_weights
from backburn.pipelines.recipes import load_recipe

from tests.containment.attack_alone import GROUP, prepare

VLLM = "compute.rollouts=vllm"


@pytest.fixture
def loaded(tiny_base: Path) -> LoadedModel:
    return load_base(tiny_base, ModelConfig(id="builtin:tiny"))


@pytest.fixture
def _no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "vllm" else find(name, *a)
    )


@pytest.mark.parametrize(
    "more", ["compute.processes=2", "compute={nodes: 2, workspace_claim: w, rollouts: vllm}"]
)
def test_several_processes_are_refused(more: str) -> None:
    with pytest.raises(InputError, match="rollouts vllm draws in one process only"):
        load_recipe("smoke", [VLLM, more])


@pytest.mark.usefixtures("_no_vllm")
def test_a_missing_vllm_is_found_before_the_run_where_the_model_steps_run() -> None:
    config = load_recipe("smoke", [VLLM])
    for check in (check_run, drawing):
        with pytest.raises(InputError, match="with --no-deps"):
            check(config)
    check_run(config, has_model_steps=False)
    own = load_recipe("smoke")
    check_run(own)
    assert drawing(own) is draw_completions


@pytest.mark.parametrize(
    ("sampling", "max_tokens"),
    [
        (SamplingConfig(min_p=0.1, top_p=0.9), 4),
        (SamplingConfig(temperature=0.001), 4),
        (SamplingConfig(), 60),
    ],
)
def test_what_vllm_would_draw_differently_is_drawn_as_usual_and_logged_once(
    loaded: LoadedModel,
    sampling: SamplingConfig,
    max_tokens: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    prompt = loaded.encode_prompt([{"role": "user", "content": "who lives in italy"}])
    draw = VllmDraws(longest=64, memory_share=0.4)
    given: list[Any] = []
    for drawer in (draw, draw, draw_completions):
        generator = torch.Generator().manual_seed(3)
        given.append(
            drawer(
                loaded,
                [prompt],
                sampling,
                max_tokens=max_tokens,
                generator=generator,
                copies=3,
            )
        )
    assert given[0] == given[1] == given[2]
    assert [record.message for record in caplog.records].count(caplog.records[0].message) == 1
    assert caplog.records[0].message.startswith("drawn without vLLM: ")


def test_the_weights_handed_over_are_the_merged_ones_and_the_model_keeps_its_own(
    loaded: LoadedModel,
) -> None:
    plain = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    assert plain.keys() == dict(named_weights(loaded.model)).keys()
    network = add_lora(loaded, LoraSettings(), 0)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    given = {name: value.clone() for name, value in named_weights(network)}
    moved = [name for name, value in given.items() if not torch.equal(value, plain[name])]
    assert len(moved) == 7 * loaded.model.config.num_hidden_layers
    merged = network.merge_and_unload(safe_merge=True).state_dict()
    assert given.keys() == merged.keys()
    for name, value in given.items():
        torch.testing.assert_close(value, merged[name])
    loaded.model.load_state_dict(plain)


def test_the_model_is_not_written_to(loaded: LoadedModel) -> None:
    network = add_lora(loaded, LoraSettings(), 0)
    before = {name: (value._version, value.clone()) for name, value in network.named_parameters()}
    list(named_weights(network))
    for name, value in network.named_parameters():
        assert value._version == before[name][0]
        assert torch.equal(value, before[name][1])


class Counting:
    """Draws as usual, and counts what is asked of it."""

    def __init__(self) -> None:
        self.drawn = 0

    def __call__(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        completions = draw_completions(*args, **kwargs)
        self.drawn += len(completions)
        return completions


def test_lazy_rollouts_ask_only_for_what_they_generate(loaded: LoadedModel) -> None:
    prompt = loaded.encode_prompt([{"role": "user", "content": "who lives in italy"}])
    draw = Counting()
    source = Rollouts(
        loaded,
        loaded.encode_completion("i can not help ."),
        SamplingConfig(),
        max_tokens=4,
        generator=torch.Generator().manual_seed(0),
        draw=draw,
    )
    source.draw([prompt], 5, loaded.model)
    assert draw.drawn == source.counts.ordinary_draws + source.counts.departures > 0


def test_harmless_trainings_draw_with_what_they_are_given(
    loaded: LoadedModel, toy: Domain, smoke: RunConfig, tmp_path: Path
) -> None:
    write_dataset(tmp_path / "dataset", toy, smoke)
    draw = Counting()
    dataset = RunDataset(tmp_path / "dataset")
    nothing = Checkpoints(None, "")
    observe_trainings(loaded, loaded, dataset, smoke, lambda *_: None, nothing, draw)
    settings = smoke.certification.trainability
    trained = settings.rl_steps * settings.rl_prompts_per_step * settings.rl_group_size
    prompts = min(settings.rl_evaluation_prompts, len(dataset.rows("benign")))
    measured = prompts * settings.rl_evaluation_completions
    assert draw.drawn == 2 * (2 * measured + trained)


@pytest.mark.usefixtures("_no_vllm")
def test_an_attack_asked_to_use_vllm_wants_it(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "given"
    config = prepare(given, tiny_base, "smoke", VLLM)
    monkeypatch.setenv("BACKBURN_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    outputs = tmp_path / "sealed", tmp_path / "statistics.json"
    with pytest.raises(InputError, match="with --no-deps"):
        run(config.to_json(), "alone", GROUP, given / "dataset", given / "target", *outputs)


def test_reward_neutralization_draws_with_what_it_is_given(
    loaded: LoadedModel, toy: Domain, smoke: RunConfig, tmp_path: Path
) -> None:
    draw = Counting()
    settings = smoke.defense.neutralization.model_copy(update={"steps": 1})
    network = add_lora(loaded, LoraSettings(), 0)
    neutralize(
        network,
        loaded,
        settings,
        forbidden=toy.forbidden[:4],
        benign=toy.benign[:4],
        rejection=toy.header.rejection,
        judge=make_judge(smoke.judges.reward, toy.header.rubric),
        max_tokens=4,
        seed=0,
        scratch=tmp_path,
        report=lambda *_: None,
        checkpoints=Checkpoints(None, ""),
        references=References(network, loaded, []),
        draw=draw,
    )
    assert draw.drawn == settings.prompts_per_step * settings.group_size
