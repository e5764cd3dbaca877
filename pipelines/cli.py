"""The `backburn` command."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from backburn.components.shared.errors import BackburnError, InputError
from backburn.pipelines import doctor_cli, schedule_cli, size_cli, submit_cli
from backburn.pipelines.kfp_options import RecipeOption, SetOption
from backburn.pipelines.local_options import NO_NETWORK, NetworkOption, Runner, RunnerOption
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from backburn.components.promotion.promoting import Promotion, Registry, Terms
    from backburn.components.shared.config import RunConfig
    from backburn.pipelines.console import Watcher
    from backburn.pipelines.runner import RunFolder

EXIT_INPUT = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Harden an open-weight language model against malicious RL fine-tuning, prove how well "
    "the "
    "hardening holds under a budgeted attack, and register the model only when the proof passes a "
    "gate."
    "\n\n[bold]A quick look[/] (a minute or two, no downloads):  backburn run -r smoke\n\n"
    "[bold]A real model[/] on this machine:  backburn run -r laptop\n\n"
    "[bold]Your own settings[/]:  backburn run -r laptop --set domain.name=home_networking --set "
    "seed=3",
)
app.add_typer(schedule_cli.app, name="schedule")
submit_cli.add_commands(app)
doctor_cli.add_commands(app)
size_cli.add_commands(app)

RunIdOption = Annotated[
    str | None,
    typer.Option(help="Id of the run; must be new. Default: a name, time and four digits."),
]
RunsOption = Annotated[
    Path,
    typer.Option(
        "--runs", envvar="BACKBURN_RUNS", help="Folder that holds runs and MLflow's store."
    ),
]
TrackingOption = Annotated[
    str | None,
    typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow server. Default: the store in --runs."),
]
KeyOption = Annotated[
    Path | None, typer.Option(help="Public key (PEM) that must have signed its evidence.")
]
AnyKeyOption = Annotated[
    bool, typer.Option("--any-key", help="Trust whoever signed the evidence, instead of --key.")
]
GateOption = Annotated[
    Path | None,
    typer.Option(help="YAML of your own thresholds (a `gate` section). Default: the run's."),
]
ReferenceArgument = Annotated[
    str, typer.Argument(help="models:/<name>@<alias> or models:/<name>/<version>.")
]
ActorOption = Annotated[
    str | None,
    typer.Option(
        envvar="BACKBURN_ACTOR", help="Who decides, for the ledger. Default: the system's user."
    ),
]


def _console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout  # fixed: what tasks print is redirected
    return Console(file=stream, width=None if stream.isatty() else 110, emoji=False)


@app.command()
def run(
    recipe: RecipeOption = "laptop",
    overrides: SetOption = None,
    runs: RunsOption = Path("runs"),
    run_id: RunIdOption = None,
    runner: RunnerOption = Runner.PROCESS,
    network: NetworkOption = NO_NETWORK,
) -> None:
    """Run the whole pipeline on this machine: harden, certify, attack, judge, gate.

    The compiled KFP pipeline is executed here, as a cluster would. Results are in runs/<run id>/:
    report.html, evidence.json, summary.json. Exit code: 0 the gate passed, 1 it failed or was
    inconclusive, 2 bad input.
    """
    from backburn.pipelines.recipes import load_recipe

    config = load_recipe(recipe, overrides or [])
    _check_runner(config, runner, network)
    _run_here(config, Path(recipe).stem, runs, run_id, runner, network)


def _check_runner(config: "RunConfig", runner: Runner, network: str) -> None:
    if runner is Runner.DOCKER:
        from backburn.pipelines.containers import check_containers

        check_containers(config)
    elif network != NO_NETWORK:
        raise InputError("--network: only containers have one; add --runner docker")


def _run_here(
    config: "RunConfig",
    title: str,
    runs: Path,
    run_id: str | None,
    runner: Runner = Runner.PROCESS,
    network: str = NO_NETWORK,
) -> None:
    """Check a configuration, run its pipeline on this machine, and leave with its exit code."""
    from backburn.components.preflight.checks import check_run

    _require_key_to_keep(config)
    _settle_environment()
    check_run(config, has_model_steps=runner is Runner.PROCESS)

    from backburn.components.data_prep.splits import run_splits
    from backburn.components.shared.domains import load_domain

    run_splits(load_domain(config.domain), config)

    from backburn.components.shared.tracking import check_server

    check_server(config)

    from backburn.pipelines.runner import make_run_folder, new_run_id

    identity = run_id or new_run_id(title)
    try:
        folder = make_run_folder(runs, identity, config)
    except FileExistsError as error:
        raise InputError(
            f"--run-id {identity}: {runs / identity} exists already; runs never share a folder. "
            f"One that was interrupted goes on with `backburn resume {runs / identity}`"
        ) from error
    console = _console()
    console.print(
        f"Run [bold]{identity}[/] ({title}: {config.model.id}, domain {config.domain_name})"
    )
    _run_in(folder, config, runner, network, console)


def _run_in(
    folder: "RunFolder", config: "RunConfig", runner: Runner, network: str, console: Console
) -> None:
    """Run or go on with a run in its folder, and leave with its exit code."""
    from backburn.pipelines.console import Watcher, print_summary
    from backburn.pipelines.runner import run_local

    console.print(f"Folder {folder.root}; log {folder.log}", highlight=False)
    watcher = Watcher(folder.events, console)
    _end_on_interrupt(folder, watcher, runner)
    with watcher:
        summary = run_local(config, folder.root.name, folder, runner, network)
    print_summary(summary, folder.root, console)
    raise typer.Exit(summary.exit_code)


@app.command()
def resume(
    run_folder: Annotated[
        Path, typer.Argument(help="Folder of a run that was interrupted or failed: runs/<run id>.")
    ],
    runner: RunnerOption = Runner.PROCESS,
    network: NetworkOption = NO_NETWORK,
) -> None:
    """Go on with a run of `run` or `audit` that was interrupted or has failed.

    Tasks that had ended are not done again, and a training goes on from its last checkpoint. On the
    same machine the result is that of a run that was left alone. Exit codes as of `run`.
    """
    from backburn.components.shared.tracking import check_server
    from backburn.pipelines.runner import unfinished_run

    folder, config = unfinished_run(run_folder)
    _check_runner(config, runner, network)
    _settle_environment()
    check_server(config)
    console = _console()
    console.print(f"Run [bold]{folder.root.name}[/] goes on")
    _run_in(folder, config, runner, network, console)


@app.command()
def rejudge(
    run_folder: Annotated[
        Path, typer.Argument(help="Folder of a finished run that has judges.retain_sealed=true.")
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", "-r", help="A YAML file of other `judges` and `gate` settings, no others."
        ),
    ] = None,
    overrides: SetOption = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Score a finished run's sealed completions with another judge; attack nothing again.

    Needs the run's BACKBURN_SEAL_KEY. Writes a run folder of its own, by the pipeline's own steps,
    and leaves the other as it is. It decides and never registers: gate.dry_run is set. Exit codes
    as of `run`.
    """
    _settle_environment()
    from backburn.pipelines import rejudge as again
    from backburn.pipelines import runner
    from backburn.pipelines.console import Watcher, print_summary

    run = again.read_run(run_folder)
    config = again.rejudge_config(run, recipe, overrides or [])

    from backburn.components.shared.tracking import check_server

    check_server(config)
    again.require_judge(run, config)
    identity = runner.stamped(f"{run.record.run_id}-rejudged")
    folder = runner.make_run_folder(runs, identity, config)
    console = _console()
    console.print(
        f"Run [bold]{identity}[/]: judges {run.record.run_id} again, by "
        f"{config.judges.evaluation.id} instead of {run.record.evaluation}. "
        "A rejudged run decides and never registers."
    )
    console.print(f"Folder {folder.root}; log {folder.log}", highlight=False)
    watcher = Watcher(folder.events, console)
    _end_on_interrupt(folder, watcher)
    with watcher:
        summary = again.run_rejudge(run, config, identity, folder)
    print_summary(summary, folder.root, console, before=run.summary)
    raise typer.Exit(summary.exit_code)


@app.command()
def audit(
    reference: Annotated[
        str | None,
        typer.Argument(
            help="models:/<name>@<alias> or models:/<name>/<version>. Default: the champion of the "
            "recipe's model."
        ),
    ] = None,
    recipe: RecipeOption = "laptop",
    overrides: SetOption = None,
    key: KeyOption = None,
    any_key: AnyKeyOption = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Put a failure on record, but move no alias.")
    ] = False,
    runs: RunsOption = Path("runs"),
    run_id: RunIdOption = None,
) -> None:
    """Attack a registered model again; a champion that fails loses its alias.

    The model is fetched and verified as by `pull`, then certified, attacked with the recipe's
    arms, judged and gated like a new one. A champion that fails gives its alias to the previous
    one. Exit code: 0 it holds, 1 it failed or nothing follows, 2 bad input.
    """
    from backburn.components.shared.consumption import find_version
    from backburn.pipelines.audit_options import load_audit
    from mlflow.tracking import MlflowClient

    config = load_audit(recipe, overrides or [], reference, key, any_key, report_only)
    store = _store(config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"), runs)
    find_version(MlflowClient(tracking_uri=store), config.audited_reference)
    _run_here(config, f"audit-{Path(recipe).stem}", runs, run_id)


@app.command()
def validate(recipe: RecipeOption = "laptop", overrides: SetOption = None) -> None:
    """Check a recipe, its model, domain and splits, without running anything."""
    from backburn.components.data_prep.splits import run_splits
    from backburn.components.preflight.checks import check_run
    from backburn.components.shared.domains import load_domain
    from backburn.pipelines.recipes import load_recipe

    config = load_recipe(recipe, overrides or [])
    facts = check_run(config)
    splits = run_splits(load_domain(config.domain), config)
    console = _console()
    console.print(f"[green]valid[/]: {recipe} (config digest {config.digest()[:16]})")
    console.print(f"  model   {config.model.id}: {facts['model']['kind']}", highlight=False)
    rows = ", ".join(f"{name} {len(items)}" for name, items in splits.items())
    console.print(f"  domain  {config.domain_name}: {rows}", highlight=False)
    for arm in config.attack.arms:
        draws = arm.steps * arm.prompts_per_step * arm.group_size
        console.print(
            f"  arm     {arm.name}: {len(arm.seeds)} hardened seed(s) of {arm.steps} steps, "
            f"{draws} draws each; {len(arm.control_seeds)} control(s) of at most "
            f"{arm.control_steps} steps",
            highlight=False,
        )
    if sweep := config.attack.sweep.trials:
        console.print(f"  sweep   {sweep} trials x {config.attack.sweep.steps} steps")


@app.command()
def compile(
    recipe: RecipeOption = "laptop",
    overrides: SetOption = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path(
        "harden.yaml"
    ),
) -> None:
    """Compile the pipeline to KFP YAML, with the recipe as its default configuration."""
    from backburn.pipelines.compilation import compile_pipeline
    from backburn.pipelines.recipes import load_recipe

    config = load_recipe(recipe, overrides or [])
    compile_pipeline(config, output)
    _console().print(f"wrote {output}", highlight=False)


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(help="A run's folder, such as runs/<run id>.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: its report.html.")
    ] = None,
) -> None:
    """Render a finished run's HTML report again from its evidence and decision."""
    from backburn.components.shared.evidence import Decision, Evidence
    from backburn.components.shared.parsing import first_problem
    from backburn.components.shared.report import render_report
    from backburn.components.shared.storage import sha256_file, write_text
    from pydantic import ValidationError

    evidence_file, decision_file = run_folder / "evidence.json", run_folder / "decision.json"
    for path in (evidence_file, decision_file):
        if not path.is_file():
            raise InputError(
                f"{path}: no such file; {run_folder} is not the folder of a finished run"
            )
    try:
        evidence = Evidence.model_validate_json(evidence_file.read_bytes())
        decision = Decision.model_validate_json(decision_file.read_bytes())
    except ValidationError as error:
        problem = first_problem(error)
        raise InputError(f"{run_folder}: evidence or decision is damaged: {problem}") from error
    if sha256_file(evidence_file) != decision.evidence_sha256:
        raise InputError(f"{evidence_file}: changed since the decision was made (SHA-256 differs)")
    target = output or run_folder / "report.html"
    write_text(target, render_report(evidence, decision))
    _console().print(f"wrote {target}", highlight=False)


@app.command()
def verify(
    bundle: Annotated[
        Path, typer.Argument(help="A bundle, the folder of a finished run, or a wheel of Backburn.")
    ],
    key: Annotated[
        Path | None,
        typer.Option(help="Public key (PEM) that must have signed; see `backburn signing-key`."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="A model's folder, holding `adapter`: are these the tested weights?"),
    ] = None,
) -> None:
    """Check a run's evidence without its model: signature, files, every figure, the decision.

    Figures are made again from the observations and compared bit for bit. Of a wheel, check that
    --key signed it. Exit code: 0 the bundle is sound (whatever its gate said), 1 it is not, 2 it is
    no bundle.
    """
    if bundle.suffix == ".whl":
        return _verify_wheel(bundle, key)

    from backburn.components.shared.verification import verify_bundle

    found = verify_bundle(bundle, None if key is None else _read_key(key), model)
    console = _console()
    for finding in found.findings:
        mark = "[green]✓[/]" if finding.holds else "[bold red]✗[/]"
        note = f"  [dim]{_plain(finding.note)}[/]" if finding.note else ""
        console.print(f"{mark} {finding.question}{note}", highlight=False)
        for problem in finding.problems:
            console.print(f"    {_plain(problem)}", highlight=False, soft_wrap=True)
    if not found.sound:
        console.print("[bold red]Not sound[/]: nothing in this bundle can be relied on.")
        if found.other_code and found.evidence is not None:
            console.print(
                f"It was made by other code (Backburn {found.evidence.backburn_version}, SHA-256 "
                f"{found.evidence.code_sha256[:16]}); verify it with that before you conclude."
            )
        raise typer.Exit(1)
    assert found.decision is not None
    assert found.evidence is not None
    console.print(
        f"[bold green]Sound[/]: run {found.decision.run_id}, model "
        f"{found.evidence.hardened_digest[:16]}, gate {found.decision.outcome}.",
        highlight=False,
    )


def _verify_wheel(wheel: Path, key: Path | None) -> None:
    from backburn.components.shared.signing import key_id
    from backburn.components.shared.wheels import verify_wheel

    if key is None:
        raise InputError(
            f"{wheel}: give --key, the public key of whoever released it; nothing else says who "
            "made a wheel"
        )
    trusted = _read_key(key)
    source = verify_wheel(wheel, trusted).predicate.build_definition.external_parameters
    tree = "" if source.clean_tree else "; [yellow]files differed from that commit[/]"
    _console().print(
        f"[bold green]Sound[/]: {_plain(wheel.name)}, commit {_plain(source.commit)}, signed by "
        f"key {key_id(trusted)[:16]}{tree}",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def pull(
    reference: ReferenceArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make; must be new.")],
    key: KeyOption = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Also write the base with the adapter merged into it.")
    ] = False,
    tracking_uri: TrackingOption = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Fetch a registered model, and refuse it unless its evidence holds.

    Its bundle is verified as by `verify`, its weights must be those that were tested, and its gate
    must have passed; otherwise nothing is left in the folder. Exit code: 0 fetched, 1 refused, 2 no
    such model, or bad input.
    """
    _settle_environment()
    from backburn.components.shared import consumption

    consumption.check_reference(reference)
    trusted = None if key is None else _read_key(key)
    uri = _store(tracking_uri, runs)
    pulled = consumption.pull(reference, output, uri, trusted, merged=merged)
    console = _console()
    if not pulled.verification.trusted:
        console.print(
            "[yellow]Nobody in particular vouches for this:[/] without --key, the key that the "
            "bundle itself names was used."
        )
    console.print(
        f"[green]fetched[/] version {pulled.version} into {output}, signed by key "
        f"{pulled.verification.signer[:16]}",
        highlight=False,
    )


@app.command()
def promote(
    reference: ReferenceArgument,
    key: KeyOption = None,
    any_key: AnyKeyOption = False,
    gate: GateOption = None,
    require_approval: Annotated[
        bool, typer.Option("--require-approval", help="Wait until somebody else approves.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Decide, and write nothing.")] = False,
    actor: ActorOption = None,
    tracking_uri: TrackingOption = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Make a registered version champion, if its evidence holds and it is not worse.

    Its bundle is verified, the gate decides again, its evidence must be fresh, and on the arms of
    the present champion it must not be worse beyond the uncertainty. The champion becomes
    `previous`. Every decision is kept in the model's ledger. Exit code: 0 champion, 1 rejected,
    3 waits for approval, 2 bad input.
    """
    registry, terms = _registry(
        reference, key, any_key, gate, require_approval, dry_run, actor, tracking_uri, runs
    )
    with _refusals():
        promotion = registry.promote(reference, terms)
    _end_promotion(promotion, dry_run)


@app.command()
def approve(
    reference: Annotated[
        str, typer.Argument(help="models:/<name>/<version> that waits for approval.")
    ],
    key: KeyOption = None,
    any_key: AnyKeyOption = False,
    gate: GateOption = None,
    actor: ActorOption = None,
    tracking_uri: TrackingOption = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Approve a version that waits for it; everything is checked again, then it is promoted.

    Whoever trained it or asked for its promotion cannot approve it. Exit codes as of `promote`.
    """
    registry, terms = _registry(
        reference, key, any_key, gate, False, False, actor, tracking_uri, runs
    )
    with _refusals():
        promotion = registry.approve(reference, terms)
    _end_promotion(promotion, dry_run=False)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="Registered model.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the ledger.")],
    actor: ActorOption = None,
    tracking_uri: TrackingOption = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Make the previous champion champion again."""
    from backburn.components.promotion.promoting import Registry

    with _refusals():
        state = Registry(_store(tracking_uri, runs), name).roll_back(_actor(actor), reason)
    _console().print(f"champion of {name} is version {state.champion} again", highlight=False)


@app.command("copy")
def copy_version(
    reference: ReferenceArgument,
    to: Annotated[str, typer.Option(help="Registered model to copy to; made if there is none.")],
    key: KeyOption = None,
    any_key: AnyKeyOption = False,
    tracking_uri: TrackingOption = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Copy a version to another environment's registered model, as its candidate.

    Its evidence is verified first, as by `pull`. It is champion there only after a `promote` or
    `approve` there. Exit code: 0 copied (or there already), 1 refused, 2 bad input.
    """
    _say_whose_signature(key, any_key)
    from backburn.components.promotion import promoting

    trusted = None if key is None else _read_key(key)
    number, made = promoting.copy_version(_store(tracking_uri, runs), reference, to, trusted)
    words = "is" if made else "was copied before: it is"
    _console().print(f"{reference} {words} version {number} of {to}, candidate", highlight=False)


@app.command()
def ledger(
    name: Annotated[str, typer.Argument(help="Registered model.")],
    tracking_uri: TrackingOption = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """List every decision about a registered model, and put its aliases right if they differ."""
    from backburn.components.promotion.promoting import Registry

    registry = Registry(_store(tracking_uri, runs), name)
    table = Table("#", "at (UTC)", "version", "decision", "by", "reasons", title=name)
    with _refusals():
        entries = registry.ledger.entries()
    for entry in entries:
        event = entry.event
        action = event.action if entry.valid else f"{event.action}, void: another came first"
        table.add_row(
            str(entry.number),
            event.at,
            event.version,
            action,
            event.actor,
            "; ".join(event.reasons),
        )
    console = _console()
    console.print(table)
    with _refusals():
        state = registry.ledger.settle()
    console.print(f"champion {state.champion or '-'}, previous {state.previous or '-'}")


def _registry(
    reference: str,
    key: Path | None,
    any_key: bool,
    gate: Path | None,
    require_approval: bool,
    dry_run: bool,
    actor: str | None,
    tracking_uri: str | None,
    runs: Path,
) -> "tuple[Registry, Terms]":
    """The registry of a reference's model, and the terms of the command line."""
    _say_whose_signature(key, any_key)
    from backburn.components.promotion.promoting import Registry, Terms
    from backburn.pipelines.recipes import read_gate

    terms = Terms(
        actor=_actor(actor),
        trusted_key=None if key is None else _read_key(key),
        gate=None if gate is None else read_gate(gate),
        require_approval=require_approval,
        dry_run=dry_run,
    )
    name = reference.removeprefix("models:/").partition("@")[0].partition("/")[0]
    return Registry(_store(tracking_uri, runs), name), terms


def _say_whose_signature(key: Path | None, any_key: bool) -> None:
    if (key is None) != any_key:
        raise InputError(
            "say whose signature counts: --key with a public key, or --any-key to trust whoever "
            "signed (a local run signs with a key of its own)"
        )


def _end_promotion(promotion: "Promotion", dry_run: bool) -> None:
    """Say what was decided and leave with its exit code."""
    console = _console()
    words = {
        "promoted": "[green]promoted[/]",
        "unchanged": "[green]champion already[/]",
        "rejected": "[bold red]rejected[/]",
        "pending": "[yellow]waits for approval[/] (`backburn approve`)",
    }
    note = " (dry run: nothing was written)" if dry_run else ""
    console.print(f"version {promotion.version}: {words[promotion.result]}{note}", highlight=False)
    for reason in promotion.reasons:
        console.print(f"  - {_plain(reason)}", highlight=False, soft_wrap=True)
    found = promotion.comparison
    if found is not None:
        console.print(
            f"  harm {found.harm_candidate:.2f}, the champion's {found.harm_champion:.2f}: "
            f"{found.increase:+.2f} [{found.low:.2f}, {found.high:.2f}] over {found.prompts} "
            f"prompts and {len(found.arms)} arm(s)",
            highlight=False,
        )
    state = promotion.state
    console.print(f"  champion {state.champion or '-'}, previous {state.previous or '-'}")
    raise typer.Exit({"rejected": 1, "pending": 3}.get(promotion.result, 0))


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Make what a registry refuses one message: no such model, no permission, no answer."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise InputError(f"the MLflow server refused: {error}") from error


def _actor(given: str | None) -> str:
    import getpass

    return given or getpass.getuser()


def _store(tracking_uri: str | None, runs: Path) -> str:
    """Address of the MLflow server, or of the local store."""
    _settle_environment()
    if tracking_uri is not None:
        from backburn.components.shared.tracking import check_address

        check_address(tracking_uri)
        return tracking_uri
    if not (runs / "mlflow.db").is_file():
        raise InputError(
            f"no MLflow server: give --tracking-uri, set MLFLOW_TRACKING_URI, or give --runs a "
            f"folder with a local store ({runs / 'mlflow.db'} does not exist)"
        )
    return f"sqlite:///{(runs / 'mlflow.db').resolve()}"


def _read_key(path: Path) -> str:
    from backburn.components.shared.signing import key_id

    try:
        text = path.read_text(encoding="utf-8")
        key_id(text)
    except (OSError, UnicodeDecodeError, InputError) as error:
        raise InputError(
            f"--key {path}: cannot be read as a public key: {error}. Give the PEM file that came "
            "from whoever signs; `backburn signing-key --public FILE` writes it when it makes a key"
        ) from error
    return text


@app.command()
def domains() -> None:
    """List the shipped stand-in domains."""
    from backburn.components.shared.config import DomainConfig
    from backburn.components.shared.domains import load_domain, shipped_domains

    table = Table(
        "name", "what it is", "forbidden", "near-miss", "benign", "calibration", "licence"
    )
    for name, title in shipped_domains().items():
        domain = load_domain(DomainConfig(name=name))
        counts = (domain.forbidden, domain.near_miss, domain.benign, domain.calibration)
        table.add_row(name, title, *(str(len(rows)) for rows in counts), domain.header.licence)
    console = _console()
    console.print(table)
    console.print(
        "Your own domain: set domain.custom in a recipe; see docs/domains.md", highlight=False
    )


@app.command()
def arms() -> None:
    """List the shipped attack arms, to be named in a recipe's attack.arms."""
    from backburn.pipelines.recipes import shipped_arms

    table = Table("name", "differs from the defaults in", "after")
    for name, settings in shipped_arms().items():
        changes = {k: v for k, v in settings.items() if k not in ("name", "source")}
        shown = ", ".join(f"{key}: {value}" for key, value in changes.items())
        table.add_row(name, shown or "nothing", settings.get("source", ""))
    console = _console()
    console.print(table)
    console.print(
        "All of them: --set 'attack.arms=[matrix]'. One, changed: "
        "--set 'attack.arms=[{like: harm-rlvr, steps: 100}]'",
        highlight=False,
        markup=False,
    )


@app.command()
def schema(
    kind: Annotated[
        str,
        typer.Argument(
            help="config, attestation, evidence, observations, decision, summary or notification."
        ),
    ] = "config",
) -> None:
    """Print the JSON schema of the configuration, a result file or what webhooks are sent."""
    from backburn.components.notification.event import Notification
    from backburn.components.shared import evidence
    from backburn.components.shared.attestation import Statement
    from backburn.components.shared.config import config_schema
    from backburn.components.shared.observations import Observations

    kinds: dict[str, Any] = {
        "config": config_schema,
        "evidence": evidence.Evidence.model_json_schema,
        "observations": Observations.model_json_schema,
        "decision": evidence.Decision.model_json_schema,
        "summary": evidence.Summary.model_json_schema,
        "attestation": Statement.model_json_schema,
        "notification": Notification.model_json_schema,
    }
    if kind not in kinds:
        raise InputError(f"no schema {kind!r}; there are {', '.join(kinds)}")
    typer.echo(json.dumps(kinds[kind](), indent=2))


@app.command("seal-key")
def seal_key() -> None:
    """Print a new key for BACKBURN_SEAL_KEY: export it, or put it into the Kubernetes Secret."""
    from backburn.components.shared.sealing import new_key

    typer.echo(new_key())


@app.command("webhook-key")
def webhook_key() -> None:
    """Print a new key for BACKBURN_WEBHOOK_KEY; the receiver needs it too, to verify."""
    from backburn.components.notification.delivery import new_key

    typer.echo(new_key())


@app.command("signing-key")
def signing_key(
    public: Annotated[
        Path | None, typer.Option(help="File for the public key, which `verify --key` wants.")
    ] = None,
) -> None:
    """Print a new key for BACKBURN_SIGNING_KEY, to be put into a Kubernetes Secret."""
    from backburn.components.shared.signing import new_key, public_key_of
    from backburn.components.shared.storage import write_text

    key = new_key()
    if public is not None:
        if public.exists():
            raise InputError(f"--public {public}: exists already; give a new file")
        write_text(public, public_key_of(key))
    typer.echo(key)


def _require_key_to_keep(config: "RunConfig") -> None:
    """Refuse to keep what nobody could open: the key of a local run is forgotten with it."""
    from backburn.components.shared.sealing import KEY_VARIABLE

    if config.judges.retain_sealed and not os.environ.get(KEY_VARIABLE):
        raise InputError(
            f"judges.retain_sealed: {KEY_VARIABLE} is not set, so the run would seal its "
            "completions with a key of its own and forget it: nobody could open what is kept. Make "
            f"a key with `backburn seal-key`, keep it, and set {KEY_VARIABLE}"
        )


def _end_on_interrupt(
    folder: "RunFolder", watcher: "Watcher", runner: Runner = Runner.PROCESS
) -> None:
    """Let SIGINT and SIGTERM end the tasks and the command, and leave no result."""
    from backburn.pipelines.containers import stop_containers
    from backburn.pipelines.runner import mark_interrupted
    from backburn.pipelines.warm_start import stop_tasks

    console = _console(stderr=True)  # now: while a run goes on, stderr is its log

    def interrupted(signum: int, frame: Any) -> None:
        # Here and not by an exception: one raised in a library's callback or thread can be lost.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if runner is Runner.DOCKER:
            stop_containers(folder.root.name)
        stop_tasks()
        watcher.__exit__(None, None, None)  # gives the terminal its cursor back
        mark_interrupted(folder)
        console.print(f"\nInterrupted; no result was written. Log: {folder.log}")
        if folder.pipeline.is_file():  # a rejudged run has none, and is started anew
            console.print(f"Go on with: backburn resume {folder.root}")
        sys.stdout.flush()
        os._exit(EXIT_INTERRUPTED)

    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, interrupted)


def _settle_environment() -> None:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def main() -> None:
    """Entry point: errors a user can mend are one message and exit code 2, others a failed run."""
    try:
        app()
    except InputError as error:
        _console(stderr=True).print(
            f"[bold red]error:[/] {_plain(error)}", highlight=False, soft_wrap=True
        )
        sys.exit(EXIT_INPUT)
    except BackburnError as error:
        _console(stderr=True).print(
            f"[bold red]failed:[/] {_plain(error)}", highlight=False, soft_wrap=True
        )
        sys.exit(1)


def _plain(text: object) -> str:
    from rich.markup import escape

    return escape(str(text))


if __name__ == "__main__":
    main()
