"""Take a rule of containment out of the product, and see that its test fails.

`python -m tests.containment.mutations` copies the tree for each mutation, changes one place, runs
one test, and prints a table; `--only WORD` runs those whose title has the word. Not part of the
suite: a mutated run takes as long as its test.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.containment.runs import ROOT

_COPIED = ("components", "pipelines", "tests", "benchmarks", "pyproject.toml")
_TESTS = "tests/containment"
_LONGEST_REASON = 110


class Mutation(NamedTuple):
    """One change that breaks a rule, and the test that has to notice."""

    rule: str
    title: str
    file: str
    old: str
    new: str
    test: str


_ATTACK, _STEP = "components/rl_attack/attack.py", "components/rl_attack/step.py"
_SCRATCH = "components/shared/scratch.py"
_TRAINED = "            ).train()\n"
_ENDS = f"{_TESTS}/test_weights.py::test_an_attack_that_ends_well_leaves_no_attacked_weights"
_CUT = f"{_TESTS}/test_weights.py::test_an_attack_that_is_cut_short_leaves_no_attacked_weights"
_SEALED = "        seal(sealed, completions)\n"
_REFUSED = f"{_TESTS}/test_rules.py::test_no_configuration_gets_an_attack_past_the_entry"

MUTATIONS = [
    Mutation(
        "1", "save the attacked weights", _ATTACK, _TRAINED,
        _TRAINED + '            torch.save(dict(network.named_parameters()), "w.pt")\n',
        _ENDS,
    ),
    Mutation(
        "1", "save the adapter, merged, in bfloat16", _ATTACK, _TRAINED,
        _TRAINED + "            network.merge_adapter()\n"
        '            network.to(torch.bfloat16).base_model.save_pretrained("w")\n',
        f"{_CUT}[SIGKILL--9]",
    ),
    Mutation(
        "1", "leave scratch after an exception", _SCRATCH,
        "    finally:\n        _remove(folder)\n", "    finally:\n",
        f"{_CUT}[raise-1]",
    ),
    Mutation(
        "1", "leave scratch on SIGTERM", _SCRATCH,
        "            _remove(folder)\n        signal.signal",
        "            pass\n        signal.signal",
        f"{_CUT}[SIGTERM--15]",
    ),
    Mutation(
        "1", "leave what a SIGKILL left", _SCRATCH,
        "    remove_leftovers()\n    folder", "    folder",
        f"{_CUT}[SIGKILL--9]",
    ),
    Mutation(
        "1", "scratch on disk", _SCRATCH,
        "    return _MEMORY if", "    return None if", f"{_CUT}[SIGKILL--9]",
    ),
    Mutation(
        "1", "let an attack keep weights in checkpoints", _STEP,
        "inputs, contained=True", "inputs",
        f"{_TESTS}/test_rules.py::test_an_attack_that_is_cut_short_keeps_sealed_arms_and_no_weights",
    ),
    Mutation(
        "2", "keep finished arms in clear", _STEP,
        "partial(attack, recipe, seed), sealed=True", "partial(attack, recipe, seed)",
        f"{_TESTS}/test_rules.py::test_an_attack_that_is_cut_short_keeps_sealed_arms_and_no_weights",
    ),
    Mutation(
        "1", "an output for weights", "components/rl_attack/component.py",
        "    statistics: dsl.Output[dsl.Artifact],\n",
        "    statistics: dsl.Output[dsl.Artifact],\n    model: dsl.Output[dsl.Model],\n",
        f"{_TESTS}/test_weights.py::"
        "test_the_attack_has_an_output_for_sealed_text_and_statistics_and_no_other",
    ),
    Mutation(
        "2", "log a completion", _STEP, _SEALED,
        _SEALED + '        print(completions[0]["completion"])\n',
        f"{_TESTS}/test_text.py::test_an_attack_shows_none_of_its_completions",
    ),
    Mutation(
        "2", "write completions in clear", "components/shared/sealing.py",
        "_cipher().encrypt(text.encode()).decode(\"ascii\")", "text",
        f"{_TESTS}/test_text.py::test_an_attack_shows_none_of_its_completions",
    ),
    Mutation(
        "2", "examples of any domain", "components/judge_evaluation/step.py",
        "_examples(opened, items, book, arms) if data.header.stand_in else []",
        "_examples(opened, items, book, arms)",
        f"{_TESTS}/test_text.py::test_text_of_a_whole_run_is_in_its_dataset_alone",
    ),
    Mutation(
        "2", "let errors speak", "components/shared/step.py",
        "        return is_stand_in(config.domain)\n", "        return True\n",
        f"{_TESTS}/test_text.py::test_a_failure_with_text_in_its_message_shows_none_of_it",
    ),
    Mutation(
        "2", "quote duplicate prompts", "components/data_prep/splits.py",
        "if shows_text else", "if True else",
        f"{_TESTS}/test_text.py::test_bad_rows_are_named_and_not_quoted",
    ),
    Mutation(
        "2", "let optuna log failed trials", "components/rl_attack/sweep.py",
        "optuna.logging.ERROR", "optuna.logging.WARNING",
        f"{_TESTS}/test_text.py::test_a_sweep_s_failed_trial_is_not_quoted_in_the_log",
    ),
    Mutation(
        "2", "let TRL quote completions without a reward", "components/shared/grpo.py",
        "setLevel(logging.ERROR)", "setLevel(logging.WARNING)",
        f"{_TESTS}/test_text.py::"
        "test_a_completion_that_no_judge_scores_is_not_quoted_in_the_log",
    ),
    Mutation(
        "keys", "log the seal key", _STEP, _SEALED,
        _SEALED + '        import os\n\n        print(os.environ["BACKBURN_SEAL_KEY"])\n',
        f"{_TESTS}/test_keys.py::test_an_attack_writes_no_secret",
    ),
    Mutation(
        "keys", "quote the server's answer", "components/shared/judges/chat.py",
        '    code = getattr(error, "status_code", None)', "    return str(error)",
        f"{_TESTS}/test_keys.py::test_a_judge_server_s_answer_is_not_quoted",
    ),
    Mutation(
        "3", "do not authorise", _STEP, "        authorise(role, manifest, config)\n", "",
        f"{_TESTS}/test_rules.py::test_the_target_must_fit_the_role",
    ),
    Mutation(
        "3", "no purpose needed", _STEP, "    if not config.attack.purpose.strip() or",
        "    if", _REFUSED,
    ),
    Mutation(
        "3", "no cap on steps", _STEP, "    if longest > ATTACK_STEP_HARD_CAP:",
        "    if longest < 0:",
        f"{_TESTS}/test_rules.py::"
        "test_the_cap_holds_for_a_configuration_that_nothing_validated",
    ),
    Mutation(
        "3", "a setting that nobody looked at", "components/shared/config.py",
        "    lazy_rollouts: bool = Field(", "    keep_weights: bool = False\n"
        "    lazy_rollouts: bool = Field(",
        f"{_TESTS}/test_rules.py::test_what_can_be_set_about_an_attack_is_all_that_was_looked_at",
    ),
    Mutation(
        "3", "attack without a key", _STEP, "        require_key()\n", "",
        f"{_TESTS}/test_rules.py::test_without_a_key_to_seal_with_nothing_is_attacked",
    ),
]  # fmt: skip


def outcome(mutation: Mutation, folder: Path) -> tuple[str, str]:
    """What the test says of the mutated tree (caught, MISSED, no answer), and its first error.

    Raises:
        ValueError: if the place to change is not there exactly once.
    """
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    links = folder / "build/types/backburn"
    links.mkdir(parents=True)
    for name in ("components", "pipelines"):
        (links / name).symlink_to(folder / name)
    target = folder / mutation.file
    text = target.read_text("utf-8")
    if text.count(mutation.old) != 1:
        raise ValueError(f"{mutation.file}: {mutation.old!r} is there {text.count(mutation.old)}x")
    target.write_text(text.replace(mutation.old, mutation.new), "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", mutation.test,
         f"--basetemp={folder / 'pytest'}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "build/types")},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return "MISSED", ""
    why = next((line for line in done.stdout.splitlines() if line.startswith("E  ")), done.stderr)
    return "caught" if done.returncode == 1 else "no answer", why[1:_LONGEST_REASON].strip()


def main() -> int:
    """Run the mutations; 0 if every one is caught."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="Part of the titles or tests to run.")
    only = parser.parse_args().only
    chosen = [item for item in MUTATIONS if only in item.title or only in item.test]
    print("| rule | mutation | test | result | by |\n|---|---|---|---|---|", flush=True)
    missed = 0
    for mutation in chosen:
        with tempfile.TemporaryDirectory(prefix="backburn-mutation-") as folder:
            said, why = outcome(mutation, Path(folder))
        missed += said != "caught"
        test = mutation.test.rsplit("/", 1)[-1]
        print(f"| {mutation.rule} | {mutation.title} | `{test}` | {said} | {why} |", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
