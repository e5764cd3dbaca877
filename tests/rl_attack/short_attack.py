"""An attack of three steps on a tiny model, for what needs one and not its outcome."""

from backburn.components.rl_attack.attack import ArmResult, run_arm
from backburn.components.shared.config import AttackArmConfig, AttackConfig
from backburn.components.shared.domains import Domain
from backburn.components.shared.judges import Exchange, Judge, Verdict
from backburn.components.shared.models import LoadedModel


class LengthJudge:
    id = "length"

    def judge(self, exchanges: list[Exchange]) -> list[Verdict]:
        return [Verdict(False, len(e.completion) % 9 + 0.5, self.id) for e in exchanges]


def arm(**settings: object) -> AttackArmConfig:
    return AttackArmConfig.model_validate({"name": "a", **settings})


def attack(
    loaded: LoadedModel, toy: Domain, judge: Judge | None = None, seed: int = 0, **settings: object
) -> ArmResult:
    judge = judge or LengthJudge()
    rows = {s: [r for r in toy.forbidden if r.split == s] for s in ("attack", "defence")}
    return run_arm(
        loaded,
        arm(steps=3, learning_rate=1e-3, **settings),
        AttackConfig.model_validate({"checkpoints": [0, 3], "max_completion_tokens": 6}),
        role="hardened",
        seed=seed,
        attack_rows=rows["attack"],
        defence_rows=rows["defence"],
        held_out_rows=rows["defence"][:2],
        rejection=toy.header.rejection,
        judge=judge,
        monitor=judge,
        broken_at=11.0,
        report=lambda *_: None,
    )
