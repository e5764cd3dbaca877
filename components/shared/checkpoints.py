"""Unfinished work of a step, kept so that another attempt goes on where this one stopped.

A checkpoint holds what a step has finished, by name, and the state of a training in progress:
weights in training, optimiser, random numbers, place in the data. It is one safetensors file in one
of two slots that take turns, and a manifest, written after it, that has its SHA-256 and says what
it is a checkpoint of. One that is half written, damaged, or of other inputs, settings or code is
passed over for the one before. Where it lies: `compute.checkpoints`, else BACKBURN_CHECKPOINTS,
which the local runner sets to the run's folder.

On one machine and with one process an interrupted training ends with the same bytes as one that was
left alone. On SIGTERM a training ends its step, writes a checkpoint, and then the signal takes
its course. Attacks keep finished arms, sealed, and never weights (`contained`).
"""

import json
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from backburn.components.shared import object_store
from backburn.components.shared.config import RunConfig
from backburn.components.shared.errors import BackburnError, ContainmentError, InputError
from backburn.components.shared.provenance import code_digest
from backburn.components.shared.scale.distributed import from_primary, is_primary
from backburn.components.shared.sealing import open_text, seal_text
from backburn.components.shared.storage import (
    canonical_json,
    digests,
    sha256_file,
    sha256_text,
    write_json,
)

if TYPE_CHECKING:
    import torch

FOLDER_VARIABLE = "BACKBURN_CHECKPOINTS"
_SLOTS = ("a", "b")
_GRACE_SECONDS = 25
"""For the step of a training that SIGTERM finds; Kubernetes kills after 30."""
_FACTS = "facts"
_RANDOM_NUMBERS = "random numbers"
_NO_NAME = re.compile(r"[^a-zA-Z0-9]+")
Value = TypeVar("Value")


class Checkpoints:
    """Of one task; a step gets its own from `open_step`."""

    def __init__(
        self,
        place: "Folder | Bucket | None",
        identity: str,
        *,
        minutes: float = 0.0,
        contained: bool = False,
    ) -> None:
        """Look for a checkpoint.

        Args:
            place: Where they lie; None: nothing is kept.
            identity: Of inputs, settings and code; a checkpoint with another is passed over.
            minutes: Between two checkpoints of a training; 0: after each of its steps.
            contained: Refuse to keep weights.

        Raises:
            StorageError: if an object store does not answer.
        """
        self._place, self._identity = place, identity
        self._seconds, self._contained = minutes * 60.0, contained
        self._number = 0
        self._finished: dict[str, str] = {}
        self._passed: list[str] = []
        self._training: dict[str, Any] | None = None
        self._tensors: dict[str, torch.Tensor] = {}
        self._saved = time.monotonic()
        if place is not None:
            self._load()

    def remembered(
        self, name: str, kind: type[Value], make: Callable[[], Value], *, sealed: bool = False
    ) -> Value:
        """A result that is computed once, whatever interrupts the step afterwards.

        Args:
            name: Of the result, within the step.
            kind: Its type, as pydantic writes it as JSON and reads it again.
            make: Computes it.
            sealed: Encrypt it; for what may hold completions.
        """
        from pydantic import TypeAdapter

        adapter = TypeAdapter(kind)
        if name in self._finished:
            known = self._finished[name]
            with suppress(ContainmentError):  # sealed with the key of a run that kept none
                return adapter.validate_json(open_text(known, name) if sealed else known)
        value = make()
        if self._place is not None:
            text = adapter.dump_json(value).decode()
            self._finished[name] = seal_text(text) if sealed else text
            self._save()
        return value

    def database(self, name: str) -> str | None:
        """Address of a database that lives as long as the checkpoints, if they lie in a folder."""
        return self._place.database(name) if isinstance(self._place, Folder) else None

    @contextmanager
    def phase(self, name: str, parts: Mapping[str, Any]) -> Iterator["Phase"]:
        """A training within the step, from where it was interrupted.

        Args:
            name: Of the training, within the step.
            parts: What its state consists of, by name: modules (their trained weights),
                optimisers, `torch.Generator`s, anything with `state_dict` and `load_state_dict`,
                and dicts and lists of tensors and what JSON can hold, which are changed in place.

        Raises:
            ContainmentError: in an attack: its weights are not kept.
        """
        if self._contained:
            raise ContainmentError("the weights of an attack are never written to a checkpoint")
        kept = self._training if self._training and self._training["phase"] == name else None
        phase = Phase(self, name, kept, over=name in self._passed)
        for part, value in parts.items():
            phase.add(part, value)
        with _until_sigterm(phase):
            yield phase
        if name not in self._passed:
            self._passed.append(name)
            self._keep(phase)

    def _keep(self, phase: "Phase") -> None:
        """Save what a training is now."""
        if self._place is None:
            return
        tensors: dict[str, torch.Tensor] = {}
        self._training = {
            "phase": phase.name,
            "done": phase.done,
            "parts": _flat({name: _state(part) for name, part in phase.parts.items()}, "", tensors),
        }
        self._tensors = tensors
        self._save()

    def _due(self) -> bool:
        return self._place is not None and time.monotonic() - self._saved >= self._seconds

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self._place is None or not is_primary():
            return
        from safetensors.torch import save_file

        self._number += 1
        slot = _SLOTS[self._number % len(_SLOTS)]
        facts = {"finished": self._finished, "passed": self._passed, "training": self._training}
        try:
            with self._place.writing(slot) as path:
                tensors = self._tensors or {"none": _nothing()}
                save_file(tensors, path, {_FACTS: json.dumps(facts)})
                manifest = {
                    "number": self._number,
                    "identity": self._identity,
                    "sha256": sha256_file(path),
                }
            self._place.write_manifest(slot, manifest)
        except (OSError, BackburnError) as error:
            print(f"no checkpoint could be written, the step goes on: {error}", flush=True)

    def _load(self) -> None:
        found = from_primary(self._newest)
        if found is None:
            return
        self._number, facts, self._tensors = found
        self._finished, self._passed = facts["finished"], facts["passed"]
        self._training = facts["training"]
        training = self._training or {"phase": "", "done": 0}
        where = f", {training['phase']} after step {training['done']}" if self._training else ""
        if is_primary():
            print(
                f"goes on from a checkpoint: {len(self._finished)} finished result(s){where}",
                flush=True,
            )

    def _newest(self) -> "tuple[int, dict[str, Any], dict[str, torch.Tensor]] | None":
        assert self._place is not None
        manifests = [(self._place.manifest(slot), slot) for slot in _SLOTS]
        known = [(m["number"], m, slot) for m, slot in manifests if m is not None]
        for number, manifest, slot in sorted(known, key=lambda item: -item[0]):
            if manifest["identity"] != self._identity:
                print(f"checkpoint {slot} is of other inputs, settings or code: passed over")
                continue
            with self._place.reading(slot) as path:
                if path is None or sha256_file(path) != manifest["sha256"]:
                    print(f"checkpoint {slot} is damaged: passed over")
                    continue
                from safetensors import safe_open

                with safe_open(path, "pt") as file:
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                    return number, json.loads(file.metadata()[_FACTS]), tensors
        return None

    def remove(self) -> None:
        """Forget everything: the step has ended."""
        if self._place is not None and is_primary():
            self._place.remove()


class Phase:
    """A training in progress."""

    def __init__(
        self, checkpoints: Checkpoints, name: str, kept: dict[str, Any] | None, *, over: bool
    ) -> None:
        """Begin, or go on from what was kept."""
        self.name = name
        self.done = 0 if kept is None else int(kept["done"])
        """Steps already made."""
        self.over = over
        """Whether nothing is left to do."""
        self.parts: dict[str, Any] = {}
        self.ending: Callable[[], None] | None = None
        """Set by SIGTERM: ends the process."""
        self._checkpoints = checkpoints
        self._kept = None if kept is None else _nested(kept["parts"], checkpoints._tensors)
        self.add(_RANDOM_NUMBERS, _GlobalRandomNumbers())

    def add(self, name: str, part: Any) -> None:
        """Name another part of the state, and give it the state it had."""
        self.parts[name] = part
        if self._kept is not None and name in self._kept:
            _restore(part, self._kept[name])
            # Last: making what the part belongs to may have drawn some, or set a seed.
            _restore(self.parts[_RANDOM_NUMBERS], self._kept[_RANDOM_NUMBERS])

    def completed(self) -> None:
        """Call at the end of each step, when the state is that of the next one's beginning."""
        self.done += 1
        if self.ending is not None or self._checkpoints._due():
            self._checkpoints._keep(self)
        if self.ending is not None:
            self.ending()

    def steps(self, total: Callable[[], int]) -> Iterator[int]:
        """Numbers of the steps that are left, from 1 on; `total` is asked before each."""
        while not self.over and self.done < total():
            yield self.done + 1
            self.completed()


class Folder:
    """A local folder, or one on a mounted volume, as the place of a task's checkpoints."""

    def __init__(self, path: Path, above: int = 0) -> None:
        """Name it; it is made when there is something to write.

        Args:
            path: The folder.
            above: Folders above it that go with it if they are empty then.
        """
        self._path, self._above = path, above

    @contextmanager
    def writing(self, slot: str) -> Iterator[Path]:
        """A path to write to, whose file takes the slot."""
        self._path.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self._path, prefix=f".{slot}.")
        os.close(handle)
        try:
            yield Path(name)
            with Path(name).open("rb") as file:
                os.fsync(file.fileno())
            Path(name).replace(self._data(slot))
        finally:
            Path(name).unlink(missing_ok=True)

    @contextmanager
    def reading(self, slot: str) -> Iterator[Path | None]:
        """The slot's file, if there is one."""
        yield self._data(slot) if self._data(slot).is_file() else None

    def write_manifest(self, slot: str, manifest: dict[str, Any]) -> None:
        """Say what the slot's file is."""
        write_json(self._path / f"{slot}.json", manifest)

    def manifest(self, slot: str) -> dict[str, Any] | None:
        """What the slot's file should be; None if nothing readable says so."""
        try:
            return _manifest((self._path / f"{slot}.json").read_bytes())
        except OSError:
            return None

    def database(self, name: str) -> str:
        """Address of a database in the folder."""
        self._path.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{self._path.resolve() / name}.db"

    def remove(self) -> None:
        """Delete all of it."""
        shutil.rmtree(self._path, ignore_errors=True)
        with suppress(OSError):
            for folder in list(self._path.parents)[: self._above]:
                folder.rmdir()

    def _data(self, slot: str) -> Path:
        return self._path / f"{slot}.safetensors"


class Bucket:
    """A prefix in an object store as the place of a task's checkpoints."""

    def __init__(self, uri: str) -> None:
        """Name it."""
        self._uri = uri.rstrip("/")

    @contextmanager
    def writing(self, slot: str) -> Iterator[Path]:
        """A path to write to, whose file takes the slot."""
        with tempfile.TemporaryDirectory(prefix="backburn-checkpoint-") as folder:
            path = Path(folder) / slot
            yield path
            object_store.upload(path, self._data(slot))

    @contextmanager
    def reading(self, slot: str) -> Iterator[Path | None]:
        """The slot's file, if there is one."""
        with tempfile.TemporaryDirectory(prefix="backburn-checkpoint-") as folder:
            path = Path(folder) / slot
            try:
                object_store.download(self._data(slot), path)
            except InputError:
                yield None
                return
            yield path

    def write_manifest(self, slot: str, manifest: dict[str, Any]) -> None:
        """Say what the slot's object is."""
        with tempfile.TemporaryDirectory(prefix="backburn-checkpoint-") as folder:
            path = Path(folder) / slot
            write_json(path, manifest)
            object_store.upload(path, self._manifest(slot))

    def manifest(self, slot: str) -> dict[str, Any] | None:
        """What the slot's object should be; None if nothing readable says so."""
        try:
            return _manifest(object_store.read(self._manifest(slot)))
        except InputError:
            return None

    def remove(self) -> None:
        """Delete all of it."""
        for slot in _SLOTS:
            object_store.delete(self._manifest(slot))
            object_store.delete(self._data(slot))

    def _data(self, slot: str) -> str:
        return f"{self._uri}/{slot}.safetensors"

    def _manifest(self, slot: str) -> str:
        return f"{self._uri}/{slot}.json"


def open_checkpoints(
    config: RunConfig, run_id: str, step: str, inputs: Sequence[Path], *, contained: bool = False
) -> Checkpoints:
    """The checkpoints of a task.

    Args:
        config: Of the run.
        run_id: Of the pipeline run; a retried task has the same.
        step: The task: name of the step, and what tells it from others of the same step.
        inputs: Files and folders that the task works from.
        contained: Refuse to keep weights.
    """
    where = config.compute.checkpoints or os.environ.get(FOLDER_VARIABLE)
    if not where:
        return Checkpoints(None, "")
    identity = [step, config.digest(), code_digest(), *map(digests, inputs)]
    name = f"{_NO_NAME.sub('-', step)[:60].strip('-')}-{sha256_text(step)[:10]}"
    ours = config.compute.checkpoints is None  # and not a folder that somebody made for this
    return Checkpoints(
        place_below(where, run_id, name, above=1 + ours),
        sha256_text(canonical_json(identity)),
        minutes=config.compute.checkpoint_minutes,
        contained=contained,
    )


def check_place(config: RunConfig, run_id: str) -> None:
    """Write to an object store that is to hold checkpoints, and delete what was written.

    Raises:
        InputError: if the store refuses.
        StorageError: if it does not answer.
    """
    where = config.compute.checkpoints
    if where is not None and object_store.is_remote(where):
        place = place_below(where, run_id, "probe")
        place.write_manifest(_SLOTS[0], {})
        place.remove()


def place_below(where: str, *names: str, above: int = 0) -> Folder | Bucket:
    """A folder, or a prefix in an object store, below a configured one; see `Folder`."""
    if object_store.is_remote(where):
        return Bucket("/".join([where.rstrip("/"), *names]))
    return Folder(Path(where).joinpath(*names), above)


def _manifest(content: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(content)
    except ValueError:
        return None
    kinds = {"number": int, "identity": str, "sha256": str}
    if isinstance(found, dict) and all(isinstance(found.get(k), t) for k, t in kinds.items()):
        return found
    return None


class _GlobalRandomNumbers:
    """torch's own generators, which dropout and the like draw from."""

    def state_dict(self) -> dict[str, Any]:
        import torch

        on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return {"cpu": torch.get_rng_state(), "cuda": on_gpu}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        import torch

        torch.set_rng_state(state["cpu"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])


def _state(part: Any) -> Any:
    import torch

    if isinstance(part, torch.nn.Module):
        return {name: value for name, value in part.named_parameters() if value.requires_grad}
    if isinstance(part, torch.Generator):
        return part.get_state()
    return part.state_dict() if hasattr(part, "state_dict") else part


def _restore(part: Any, state: Any) -> None:
    import torch

    if isinstance(part, torch.nn.Module):
        with torch.no_grad():
            for name, value in part.named_parameters():
                if value.requires_grad:
                    value.copy_(state[name])
    elif isinstance(part, torch.Generator):
        part.set_state(state)
    elif hasattr(part, "load_state_dict"):
        part.load_state_dict(state)
    elif isinstance(part, list):
        part[:] = state
    else:
        part.clear()
        part.update(state)


def _flat(value: Any, path: str, tensors: "dict[str, torch.Tensor]") -> Any:
    """A nested state as JSON can hold it; its tensors go, copied, to `tensors`."""
    import torch

    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": path}
    if isinstance(value, dict):
        items = [[key, _flat(item, f"{path}/{key}", tensors)] for key, item in value.items()]
        return {"items": items}
    if isinstance(value, list | tuple):
        return [_flat(item, f"{path}/{place}", tensors) for place, item in enumerate(value)]
    return value


def _nested(value: Any, tensors: "Mapping[str, torch.Tensor]") -> Any:
    """What `_flat` flattened; tuples come back as lists."""
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]].clone()
        return {key: _nested(item, tensors) for key, item in value["items"]}
    if isinstance(value, list):
        return [_nested(item, tensors) for item in value]
    return value


def _nothing() -> "torch.Tensor":
    import torch

    return torch.zeros(1)


@contextmanager
def _until_sigterm(phase: Phase) -> Iterator[None]:
    """Let a SIGTERM wait for the end of the training's step, but not for long."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    owner = os.getpid()
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGALRM)}

    def end() -> None:
        for kind, handler in before.items():
            signal.signal(kind, handler)
        signal.alarm(0)
        os.kill(os.getpid(), signal.SIGTERM)

    def wait(signum: int, frame: Any) -> None:
        if os.getpid() != owner or phase.ending is not None:
            end()
            return
        phase.ending = end
        signal.signal(signal.SIGALRM, lambda *_: end())
        signal.alarm(_GRACE_SECONDS)

    signal.signal(signal.SIGTERM, wait)
    try:
        yield
    finally:
        if phase.ending is None:
            signal.signal(signal.SIGTERM, before[signal.SIGTERM])
        else:
            phase.ending()
