"""Attacked weights as bytes, and where bytes are found: in files, archives and compressed files."""

import gzip
import io
import json
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

FLOATS = 8
"""Consecutive values of a pattern: 16 bytes of a bfloat16, 32 of a float32."""

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MOST_DEEP = 3
_ENOUGH = 20


def write_patterns(network: Any, path: Path) -> None:
    """Write the bytes of the trained tensors, and of the weights with them merged, as hex."""
    trained = {n: p.detach() for n, p in network.named_parameters() if p.requires_grad}
    chosen = list(trained.values())[:: max(1, len(trained) // 4)]
    found = {pattern for tensor in chosen for pattern in _bytes(tensor, _largest(tensor))}
    for module in network.modules():
        if hasattr(module, "get_delta_weight"):
            base = module.get_base_layer().weight.detach()
            delta = module.get_delta_weight("default").detach()
            place = _largest(delta)
            found |= set(_bytes(base + delta, place)) - set(_bytes(base, place))
            if len(found) >= _ENOUGH:
                break
    found = {pattern for pattern in found if pattern.strip(b"\0")}
    path.write_text(json.dumps([pattern.hex() for pattern in found]), "utf-8")


def _largest(tensor: torch.Tensor) -> int:
    return min(int(tensor.detach().abs().flatten().argmax()), tensor.numel() - FLOATS)


def _bytes(tensor: torch.Tensor, place: int) -> Iterator[bytes]:
    part = tensor.detach().flatten()[place : place + FLOATS].contiguous().cpu()
    for dtype in _DTYPES:
        yield part.to(dtype).view(torch.uint8).numpy().tobytes()


def read_patterns(folder: Path) -> dict[str, bytes]:
    """Every pattern that was written, named by process and step."""
    return {
        f"{path.stem}/{index}": bytes.fromhex(text)
        for path in sorted(folder.glob("*.json"))
        for index, text in enumerate(json.loads(path.read_text("utf-8")))
    }


def find(patterns: Mapping[str, bytes], roots: Iterable[Path]) -> dict[str, list[str]]:
    """File (and member of an archive) -> names of the patterns in it, for roots and all below."""
    found: dict[str, list[str]] = {}
    for root in roots:
        for path in sorted([root, *root.rglob("*")]):
            if path.is_file() and not path.is_symlink():
                for name, content in _unpacked(str(path), path.read_bytes()):
                    hits = [key for key, pattern in patterns.items() if pattern in content]
                    if hits:
                        found[name] = hits
    return found


def _unpacked(name: str, content: bytes, depth: int = 0) -> Iterator[tuple[str, bytes]]:
    """A file's bytes, and those of what is packed in it."""
    yield name, content
    if depth == _MOST_DEEP:
        return
    if content[:2] == b"\x1f\x8b":
        try:
            yield from _unpacked(f"{name}!", gzip.decompress(content), depth + 1)
        except (OSError, EOFError, zlib.error):
            return
    elif content[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.namelist():
                yield from _unpacked(f"{name}!{member}", archive.read(member), depth + 1)
    elif content[257:262] == b"ustar":
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            for item in tar.getmembers():
                file = tar.extractfile(item)
                if file is not None:
                    yield from _unpacked(f"{name}!{item.name}", file.read(), depth + 1)
