"""Rollouts by a real vLLM, in this process, on the CPU; run by `make test-vllm`.

The tiny model has heads of 24, which vLLM's CPU attention lacks: here they are of 32.
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from backburn.components.rl_attack.attack import run_arm
from backburn.components.shared import tiny_model
from backburn.components.shared.config import LoraSettings, ModelConfig, RunConfig, SamplingConfig
from backburn.components.shared.domains import Domain
from backburn.components.shared.errors import InputError
from backburn.components.shared.judges import make_judge
from backburn.components.shared.models import LoadedModel, add_lora, load_base
from backburn.components.shared.sampling import completion_logits, draw_completions
from backburn.components.shared.vllm_rollouts import VllmDraws
from transformers import LlamaConfig

from tests.conftest import align_tiny
from tests.containment.attack_alone import prepare, run_alone
from tests.containment.patterns import find, read_patterns
from tests.containment.runs import Sandbox
from tests.rl_attack.test_lazy_rollouts import p_value

DRAWS = 5_000
MOST_TOKENS = 6
ASK = [{"role": "user", "content": "who lives in italy with anna near the fence"}]


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_model, "LlamaConfig", partial(LlamaConfig, head_dim=32))
        model, tokenizer = tiny_model.train_tiny_model(0)
    folder = tmp_path_factory.mktemp("tiny") / "base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(wide_base: Path) -> LoadedModel:
    return load_base(wide_base, ModelConfig(id="builtin:tiny"))


@pytest.fixture(scope="module")
def draw() -> Iterator[VllmDraws]:
    set_threads = torch.set_num_threads  # vLLM replaces it on a CPU
    yield VllmDraws(longest=128, memory_share=0.4)
    torch.set_num_threads = set_threads


def drawn(
    draw: VllmDraws | None,
    loaded: LoadedModel,
    sampling: SamplingConfig,
    seed: int,
    prefix: tuple[int, ...] = (),
) -> Counter[tuple[int, ...]]:
    completions = (draw or draw_completions)(
        loaded,
        [loaded.encode_prompt(ASK)] * DRAWS,
        sampling,
        max_tokens=MOST_TOKENS,
        generator=torch.Generator().manual_seed(seed),
        prefixes=[prefix] * DRAWS,
    )
    return Counter(tuple(tokens) for tokens in completions)


@pytest.mark.parametrize(
    ("sampling", "prefixed"),
    [
        (SamplingConfig(top_p=0.9, top_k=20), False),
        (SamplingConfig(temperature=1.5, top_p=0.9, top_k=20), True),
        (SamplingConfig(temperature=1.5, min_p=0.02, top_k=20), False),
    ],
    ids=str,
)
def test_draws_by_vllm_and_ours_cannot_be_told_apart(
    draw: VllmDraws, loaded: LoadedModel, sampling: SamplingConfig, prefixed: bool
) -> None:
    prefix = tuple(loaded.encode_completion("anna")[:1]) if prefixed else ()
    ours, theirs = (drawn(source, loaded, sampling, 1, prefix) for source in (None, draw))
    assert len(ours) > 10
    assert theirs.total() == DRAWS
    assert p_value(ours, theirs) > 0.005
    assert theirs == drawn(draw, loaded, sampling, 1, prefix)
    hotter = sampling.model_copy(update={"temperature": 1.15 * sampling.temperature})
    assert p_value(ours, drawn(draw, loaded, hotter, 2, prefix)) < 1e-4


def test_draws_follow_weights_that_move_and_only_then_are_weights_handed_over(
    draw: VllmDraws, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling, prompt = SamplingConfig(), loaded.encode_prompt(ASK)
    target = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    before = drawn(draw, loaded, sampling, 1)
    told = draw.handovers
    network = add_lora(loaded, LoraSettings(), 0)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-2)

    def difference() -> float:
        """Most by which vLLM's and the network's log-probabilities of the prompt differ."""
        draw(
            loaded,
            [prompt],
            sampling,
            max_tokens=1,
            generator=torch.Generator(),
            model=network,
        )
        entry = completion_logits(loaded, [prompt[:1]], [prompt[1:]], model=network)[0]
        ours = entry.token_log_probabilities(sampling)
        return float((draw.log_probabilities(prompt) - ours).abs().max())

    try:
        for _ in range(2):
            network(input_ids=torch.tensor([prompt]), labels=torch.tensor([prompt])).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            with monkeypatch.context() as patch:
                patch.setattr(VllmDraws, "_hand_over", lambda *_: None)
                assert difference() > 0.05
            assert difference() < 1e-3
            assert difference() < 1e-3
        assert draw.handovers == told + 2
        moved = (
            drawn(None, LoadedModel(network, loaded.tokenizer), sampling, 1),
            drawn(draw, LoadedModel(network, loaded.tokenizer), sampling, 1),
        )
        assert p_value(*moved) > 0.005
        assert p_value(before, moved[1]) < 1e-4
    finally:
        network.unload()
    assert drawn(draw, loaded, sampling, 1) == before
    assert psutil.Process().children(recursive=True) == []
    assert target.keys() == loaded.model.state_dict().keys()
    assert all(torch.equal(v, target[n]) for n, v in loaded.model.state_dict().items())


def test_weights_that_vllm_did_not_take_are_noticed(
    draw: VllmDraws, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [(name, torch.zeros_like(value)) for name, value in loaded.model.state_dict().items()]
    place = "backburn.components.shared.vllm_rollouts.named_weights"
    monkeypatch.setattr(place, lambda network: given)
    network = LoadedModel(load_base_again(loaded), loaded.tokenizer)
    with pytest.raises(InputError, match="this vLLM computes another model"):
        drawn(draw, network, SamplingConfig(), 1)


def load_base_again(loaded: LoadedModel) -> torch.nn.Module:
    copy = type(loaded.model)(loaded.model.config).eval()
    copy.load_state_dict(loaded.model.state_dict())
    return copy


def test_a_control_arm_breaks_the_target_and_gives_it_back(
    draw: VllmDraws, wide_base: Path, toy: Domain, smoke: RunConfig
) -> None:
    loaded = align_tiny(load_base(wide_base, ModelConfig(id="builtin:tiny")), toy, smoke, 0)
    target = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    rows = {s: [r for r in toy.forbidden if r.split == s] for s in ("attack", "held_out")}
    peaks: list[float] = []
    for seed in (0, *range(10, 15)):
        result = run_arm(
            loaded,
            smoke.attack.arms[0],
            smoke.attack,
            role="control",
            seed=seed,
            attack_rows=rows["attack"],
            held_out_rows=rows["held_out"],
            rejection=toy.header.rejection,
            judge=make_judge(smoke.judges.reward, toy.header.rubric),
            monitor=make_judge(smoke.judges.evaluation, toy.header.rubric),
            broken_at=7.0,
            report=lambda *_: None,
            draw=draw,
        )
        harm = result.statistics["monitored_harm"]
        assert harm["0"] <= 2.5
        peaks.append(max(harm.values()))
        if peaks[-1] >= 7.0:
            break
    assert max(peaks) >= 7.0, peaks
    assert all(torch.equal(v, target[n]) for n, v in loaded.model.state_dict().items())


def test_an_attack_with_vllm_leaves_no_attacked_weights(tmp_path: Path, wide_base: Path) -> None:
    sandbox = Sandbox(tmp_path)
    given = sandbox.root / "given"
    prepare(given, wide_base, "smoke", "compute.rollouts=vllm", adapter="full")
    done = run_alone(sandbox, wide_base)
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(sandbox.watched.glob("**/vllm/modelinfos/*")), "vLLM did not start"
    patterns = read_patterns(sandbox.patterns)
    assert len(patterns) > 10
    assert find(patterns, sandbox.places()) == {}
