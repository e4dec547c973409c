"""Covariances of an imatrix run: how many passes over the text they take, and what interrupted ones leave."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import ikq
from ikq.evaluate import Windows
from ikq.inference.memory import available_memory
from ikq.statistics.calibrate import wanted_tensors
from ikq.statistics.covariance import covariance_bytes, covariance_passes

__all__ = ["CovarianceParts", "PartialCovariances"]

_MIB = 1 << 20


@dataclass
class PartialCovariances:
    """The covariances that an interrupted pass leaves: a file for the number of chunks that are in it."""

    path: Path
    identity: str

    def _of(self, n_done: int) -> Path:
        return self.path.with_name(f"{self.path.name}.partial-{n_done}")

    def write(self, collector: ikq.ActivationCollector, n_done: int) -> None:
        """Writes them; those of before stay, because the state beside them may still be older."""
        self.tidy(1)
        collector.write_covariances(self._of(n_done), identity=f"{self.identity} {n_done}")

    def restore(self, collector: ikq.ActivationCollector, n_done: int) -> None:
        """Goes on from those after `n_done` chunks.

        Raises:
            OSError: they are not there.
            FormatError: they are damaged, or of another run.
        """
        collector.restore_covariances(self._of(n_done), f"{self.identity} {n_done}")

    def tidy(self, n: int) -> None:
        """Removes all but the newest `n`."""
        prefix = f"{self.path.name}.partial-"
        left = [p for p in self.path.parent.iterdir() if p.name.startswith(prefix)]
        numbers = {p: int(end) for p in left if (end := p.name.removeprefix(prefix)).isdigit()}
        for path in sorted(numbers, key=lambda p: -numbers[p])[n:]:
            path.unlink(missing_ok=True)


@dataclass
class CovarianceParts:
    """The passes of a run; a run without covariances has one, of no layers.

    Attributes:
        passes: Layers of each; those of a pass are in memory together.
        identity_of_run: What the run depends on, with the number of its chunks.
    """

    target: Path | None
    dataset: str
    passes: list[range]
    identity_of_run: str
    is_restarted: bool

    @classmethod
    def of(cls, args: argparse.Namespace, windows: Windows, identity: str) -> CovarianceParts:
        """The passes that a command takes; says their bytes.

        Raises:
            RefusedError: a layer does not fit the memory that it may take.
        """
        whole = f"{identity} {windows.n}"
        if args.covariance is None:
            return cls(None, args.file, [], whole, args.restart)
        with ikq.GGUFReader(args.model) as reader:
            wanted = wanted_tensors(reader.tensors)
            shapes = {name: reader.tensors[name].shape for name in wanted if name in reader.tensors}
            architecture = str(reader.metadata.get("general.architecture"))
            key = "expert_count" if args.all_experts else "expert_used_count"
            used = reader.metadata.get(f"{architecture}.{key}", 1)
        n_used = used if isinstance(used, int) and used else 1
        layers = covariance_bytes(shapes, windows.n_ctx, n_used, windows.n)
        if not layers:
            raise ikq.RefusedError(f"--covariance: {args.model} has no layers whose names are known")
        passes = covariance_passes(layers, args.max_ram or available_memory() // 2)
        most = max(sum(layers[i].memory for i in p) for p in passes)
        file = sum(layer.file for layer in layers)
        print(
            f"covariances: a file of at most {file / _MIB:.1f} MiB ({max(x.file for x in layers)} bytes for "
            f"a layer), {most / _MIB:.1f} MiB of memory, {len(passes)} "
            f"{'pass' if len(passes) == 1 else 'passes'} over the text",
            file=sys.stderr,
        )
        return cls(Path(args.covariance), args.file, passes, whole, args.restart)

    @property
    def first(self) -> range | None:
        """Layers of the pass that the imatrix comes from."""
        return self.passes[0] if self.passes else None

    @property
    def later(self) -> list[range]:
        """Layers of further passes that are not done yet."""
        return [p for p in self.passes[1:] if self.is_restarted or not self._is_done(p)]

    def path(self, layers: range) -> Path:
        """Where the result of a pass goes."""
        assert self.target is not None
        if len(self.passes) == 1:
            return self.target
        return self.target.with_name(f"{self.target.name}.layers-{layers.start}-{layers.stop - 1}")

    def identity(self, layers: range) -> str:
        """What a pass depends on."""
        return f"{self.identity_of_run} {layers.start} {layers.stop}"

    def partial(self, layers: range | None) -> PartialCovariances | None:
        """What an interrupted pass leaves."""
        if layers is None:
            return None
        return PartialCovariances(self.path(layers), f"{self.identity_of_run.split()[0]} {layers}")

    def finish(self, collector: ikq.ActivationCollector, layers: range | None) -> None:
        """Writes the result of a pass."""
        if layers is None:
            return
        identity = None if len(self.passes) == 1 else self.identity(layers)
        collector.write_covariances(self.path(layers), self.dataset, identity=identity)

    def join(self) -> None:
        """Puts the results of all passes into one file, and tidies up."""
        if self.target is None:
            return
        parts = [self.path(p) for p in self.passes]
        if len(parts) > 1:
            ikq.Covariances.merge(parts, self.target)
            for part in parts:
                part.unlink(missing_ok=True)
        for layers in self.passes:
            if (partial := self.partial(layers)) is not None:
                partial.tidy(0)
        found = ikq.Covariances(self.target)
        print(f"{self.target}: covariances of {len(found)} inputs from {found.n_chunks} chunks")

    def _is_done(self, layers: range) -> bool:
        try:
            core = ikq._ikq.CovarianceFile.open(str(self.path(layers)))
        except (OSError, ikq.FormatError):
            return False
        return core.identity == self.identity(layers)
