"""lm-evaluation-harness really run, on the tiny model, offline, on a task from local files."""

import json
import os
import random
from pathlib import Path

import pytest
from backburn.components.certification.utility import observe_utility
from backburn.components.preflight.checks import check_run
from backburn.components.shared.config import ModelConfig, UtilityConfig
from backburn.components.shared.derivation.utility import utility_records
from backburn.components.shared.domains.toy import NAMES, OBJECTS, PLACES
from backburn.components.shared.errors import InputError
from backburn.components.shared.models import load_base
from backburn.components.shared.utility.tasks import check_tasks
from backburn.pipelines.recipes import load_recipe

TASK = """
task: toy_sentences
dataset_path: json
dataset_kwargs: {data_files: {test: data/toy.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
"""


def toy_task(folder: Path, documents: int = 40) -> UtilityConfig:
    """A task of the toy grammar: which of two answers is a sentence."""
    rng = random.Random(0)
    (folder / "data").mkdir(parents=True)
    rows = []
    for _ in range(documents):
        name, place, thing = (rng.choice(words) for words in (NAMES, PLACES, OBJECTS))
        sentence = f"{name} lives in {place} near the {thing} ."
        backwards = " ".join(reversed(sentence.split()))
        answer = rng.randrange(2)
        rows.append(
            {
                "question": f"who lives in {place} with {name} near the {thing}",
                "choices": [backwards, sentence] if answer else [sentence, backwards],
                "answer": answer,
            }
        )
    (folder / "data/toy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "toy.yaml").write_text(TASK)
    return UtilityConfig(tasks=["toy_sentences"], task_folder=str(folder))


def test_both_models_are_scored_on_the_same_documents_without_a_hub(
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    config = toy_task(tmp_path / "tasks")
    monkeypatch.chdir(tmp_path)  # the task's data lie beside it, wherever the run is started
    loaded = load_base(tiny_base, ModelConfig(id="builtin:tiny"))
    broken = load_base(tiny_base, ModelConfig(id="builtin:tiny"))
    broken.model.model.norm.weight.data.mul_(-1.0)  # turns every logit round
    capfd.readouterr()
    seen: list[tuple[int, int, str]] = []
    (task,) = observe_utility(loaded, broken, config, 0, lambda *event: seen.append(event))
    assert (task.task, task.metric, task.higher_is_better) == ("toy_sentences", "acc", True)
    assert len(task.documents) == len(task.baseline) == len(task.hardened) == 40
    assert set(task.baseline) <= {0.0, 1.0}
    assert seen[-1] == (80, 80, "hardened")
    assert "lives in" not in task.model_dump_json()
    assert capfd.readouterr().err == ""
    (record,) = utility_records([task], 0.95)
    assert record.baseline > 0.8
    assert record.hardened < 0.2
    assert record.loss == pytest.approx(record.baseline - record.hardened)
    assert record.low < record.loss <= record.high


def test_equal_models_lose_nothing_and_the_limit_and_plain_questions_count(
    tiny_base: Path, tmp_path: Path
) -> None:
    loaded = load_base(tiny_base, ModelConfig(id="builtin:tiny"))
    changes = {"limit": 12, "chat_template": False, "few_shot": 0}
    config = toy_task(tmp_path / "tasks").model_copy(update=changes)
    (task,) = observe_utility(loaded, loaded, config, 0, lambda *_: None)
    assert task.baseline == task.hardened
    (record,) = utility_records([task], 0.95)
    assert (record.samples, record.loss) == (12, 0.0)
    assert -0.4 < record.low == -record.high < 0.0


def test_less_can_be_better() -> None:
    from backburn.components.shared.observations import UtilityObservation

    scores = {"baseline": [0.1, 0.2, 0.3], "hardened": [0.2, 0.3, 0.5]}
    observed = UtilityObservation(
        task="errors", metric="wer", higher_is_better=False, documents=["a", "b", "c"], **scores
    )
    (record,) = utility_records([observed], 0.95)
    assert record.loss == pytest.approx(0.4 / 3)
    assert record.baseline_error == pytest.approx(0.1 / 3**0.5)


def test_the_shipped_task_is_found_from_anywhere_and_has_an_answer_to_every_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = check_tasks(UtilityConfig(tasks=["backburn_everyday"]))
    documents = int(found["backburn_everyday"].split()[2])
    assert documents >= 120
    import backburn.components.shared.utility.tasks as module

    lines = (Path(module.__file__).parent / "everyday.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len({(row["passage"], row["question"]) for row in rows}) == documents
    assert all(len(set(row["choices"])) == 4 and 0 <= row["answer"] < 4 for row in rows)
    answers = [row["answer"] for row in rows]
    assert max(answers.count(place) for place in range(4)) <= documents / 4 + 1


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (TASK, {"tasks": ["toy_name"]}, "no task, group or tag toy_name"),
        (TASK, {"metrics": {"toy_sentences": "f1"}}, "no averaged metric 'f1'; it averages: acc"),
        (TASK, {"metrics": {"toy": "acc"}}, "no task toy is run; there are: toy_sentences"),
        (
            TASK + "task: [",
            {},
            r"task_folder: not readable:\s+\S+toy.yaml: not readable as YAML: while parsing",
        ),
        (TASK.replace("toy.jsonl", "gone.jsonl"), {}, "toy_sentences cannot be loaded"),
        (TASK.replace("doc_to_choice: choices", "doc_to_choice: option"), {}, "cannot be loaded"),
        (TASK + "unsafe_code: true\n", {}, "runs code that the model writes"),
        (TASK, {"task_folder": "nowhere"}, "no folder 'nowhere'"),
    ],
)
def test_preflight_refuses_what_could_not_be_run(
    tmp_path: Path, content: str, settings: dict[str, object], message: str
) -> None:
    config = toy_task(tmp_path / "tasks")
    (tmp_path / "tasks/toy.yaml").write_text(content)
    recipe = load_recipe("smoke")
    changed = config.model_copy(update=settings)
    certification = recipe.certification.model_copy(update={"utility": changed})
    with pytest.raises(InputError, match=message):
        check_run(recipe.model_copy(update={"certification": certification}))


def test_a_group_is_its_tasks(tmp_path: Path) -> None:
    config = toy_task(tmp_path / "tasks")
    (tmp_path / "tasks/second.yaml").write_text(TASK.replace("toy_sentences", "toy_again"))
    (tmp_path / "tasks/group.yaml").write_text("group: toys\ntask: [toy_sentences, toy_again]\n")
    found = check_tasks(config.model_copy(update={"tasks": ["toys"]}))
    assert found == dict.fromkeys(("toy_sentences", "toy_again"), "local data, 40 documents")
