"""The certification step: exact slip rates, the certificate, and behaviour on benign prompts."""

from pathlib import Path

from backburn.components.certification.behaviour import Behaviour, observe
from backburn.components.certification.certificate import observe_other_domains, observe_slips
from backburn.components.certification.trainability import observe_trainings
from backburn.components.shared.dataset import RunDataset
from backburn.components.shared.derivation.certificate import certificate_record
from backburn.components.shared.derivation.trainability import trainability_records
from backburn.components.shared.derivation.utility import utility_records
from backburn.components.shared.models import load_artifact
from backburn.components.shared.observations import (
    CertificationObservation,
    SlipObservation,
    UtilityObservation,
)
from backburn.components.shared.scale.distributed import is_primary
from backburn.components.shared.sealing import require_key, seal
from backburn.components.shared.step import open_step, use_threads
from backburn.components.shared.storage import write_json
from backburn.components.shared.tracking import metric_name
from backburn.components.shared.vllm_rollouts import drawing


def run(
    config_json: str,
    run_id: str,
    dataset: Path,
    baseline: Path,
    hardened: Path,
    certificate: Path,
    sealed: Path,
) -> dict[str, str | float]:
    """Certify the hardened model; returns the artifact's metadata.

    Args:
        config_json: Configuration of the run.
        run_id: Id of the pipeline run.
        dataset: What `data_prep` made.
        baseline: The model before hardening.
        hardened: The model to certify.
        certificate: Where the slip rates and the exact benign figures go.
        sealed: Where both models' completions on benign prompts go, sealed.
    """
    inputs = [dataset, baseline, hardened]
    with open_step(config_json, run_id, "certification", ["certification"], inputs) as step:
        config, checkpoints = step.config, step.checkpoints
        require_key()
        use_threads(config)
        data = RunDataset(dataset)
        sharding = config.compute.sharding
        target = load_artifact(hardened, config.model, sharding=sharding)
        slips, rejection_tokens, seconds = checkpoints.remembered(
            "slips",
            tuple[list[SlipObservation], int, float],
            lambda: observe_slips(
                target,
                data,
                config,
                lambda done, total, note: step.progress.update(
                    "exact slip rates", done, total, note
                ),
            ),
        )
        unhardened = load_artifact(baseline, config.model, sharding=sharding)
        behaviour = checkpoints.remembered(
            "behaviour",
            Behaviour,
            lambda: observe(
                unhardened,
                target,
                data,
                config,
                lambda done, total, note: step.progress.update(
                    "benign behaviour", done, total, note
                ),
            ),
            sealed=True,
        )
        trainings = observe_trainings(
            unhardened,
            target,
            data,
            config,
            lambda done, total, note: step.progress.update("trainability", done, total, note),
            checkpoints,
            drawing(config),
        )
        utility: list[UtilityObservation] = []
        if config.certification.utility.tasks:
            from backburn.components.certification.utility import observe_utility  # seconds

            utility = checkpoints.remembered(
                "utility",
                list[UtilityObservation],
                lambda: observe_utility(
                    unhardened,
                    target,
                    config.certification.utility,
                    config.seed,
                    lambda done, total, note: step.progress.update(
                        "utility tasks", done, total, note
                    ),
                ),
            )
        observed = CertificationObservation(
            rejection_tokens=rejection_tokens,
            slips=slips,
            likelihoods=behaviour.likelihoods,
            rejection_probabilities=behaviour.rejection_probabilities,
            other_domains=observe_other_domains(target, data, config),
            trainings=trainings,
            seconds=seconds,
            utility=utility,
        )
        if not is_primary():
            return {}
        seal(sealed, behaviour.completions)
        write_json(certificate, observed.model_dump(mode="json"))
        record = certificate_record(observed, config)
        step.tracking.metrics({"run_probability": record.run_probability})
        for slip in record.slip_rates:
            name = f"slip_rate/{slip.split}.t{slip.temperature:g}"
            step.tracking.metrics({f"{name}.mean": slip.mean, f"{name}.worst": slip.worst})
        for gained in trainability_records(trainings, config.gate.confidence):
            step.tracking.metrics({f"trainability/{gained.training}.ratio": gained.ratio})
        for item in utility_records(utility, config.gate.confidence):
            step.tracking.metrics(
                {
                    f"utility/{metric_name(item.task)}.{name}": getattr(item, name)
                    for name in ("baseline", "hardened", "loss", "low", "high")
                }
            )
        metadata: dict[str, str | float] = {"seconds": step.seconds}
        if record.run_probability is not None:
            metadata["run_probability"] = record.run_probability
        return metadata
