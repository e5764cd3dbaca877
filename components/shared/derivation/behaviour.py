"""What hardening cost: refusals of prompts that should be answered, and drift of the answers."""

import math

from backburn.components.shared.derivation.harm import refusal_rate
from backburn.components.shared.evidence import BehaviourRecord
from backburn.components.shared.observations import Observations


def behaviour_record(observed: Observations) -> BehaviourRecord:
    """Refusal rates of both models, exact rejection probabilities, perplexities and KL."""
    rates = {
        f"{split}_refusal_{model}": refusal_rate(judged)
        for model, splits in observed.behaviour.items()
        for split, judged in splits.items()
    }
    prompts = {
        f"{split}_prompts": len({item.prompt_id for item in judged})
        for split, judged in observed.behaviour["hardened"].items()
    }
    certified = observed.certification
    rejections = {
        f"{split}_rejection_probability": math.fsum(known.values()) / len(known)
        for split, known in certified.rejection_probabilities.items()
    }
    tokens = sum(item.tokens for item in certified.likelihoods)
    before = math.exp(-math.fsum(item.log_baseline for item in certified.likelihoods) / tokens)
    after = math.exp(-math.fsum(item.log_hardened for item in certified.likelihoods) / tokens)
    divergence = math.fsum(item.divergence for item in certified.likelihoods) / tokens
    return BehaviourRecord.model_validate(
        {
            **rates,
            **prompts,
            **rejections,
            "benign_perplexity_baseline": before,
            "benign_perplexity_hardened": after,
            "benign_perplexity_ratio": after / before,
            "benign_kl": max(0.0, divergence),
        }
    )
