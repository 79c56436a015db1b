"""Models for the tests: synthetic ones with a tokenizer, and a tiny one of each architecture that upstream can make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from turboprefill import synth
from upstream.arms import Arm, run

# they look at the whole prompt at once, and upstream ends the process if a ubatch is shorter than that
_NOT_CAUSAL = ("dream", "llada", "rnd1")


@dataclass(frozen=True)
class Models:
    """Files in `folder`, made when they are asked for."""

    folder: Path
    maker: Arm

    def synthetic(self, preset: str) -> Path:
        path = self.folder / f"{preset}.gguf"
        self.folder.mkdir(parents=True, exist_ok=True)
        return path if path.exists() else synth.write_model(path, preset)

    def architectures(self) -> Path:
        """A folder with a model of two layers for each architecture, about 900 MB."""
        folder = self.folder / "architectures"
        done = self.folder / "architectures.done"
        if not done.exists():
            folder.mkdir(parents=True, exist_ok=True)
            arguments = ("-s", "1", "-o", str(folder))
            run(self.maker, "test-llama-archs", *arguments, cwd=self.folder, environment={}).need_success()
            done.touch()
        return folder

    def causal(self) -> Path:
        """The same without those that cannot be cut into ubatches."""
        folder = self.folder / "causal"
        folder.mkdir(parents=True, exist_ok=True)
        for path in self.architectures().glob("*.gguf"):
            link = folder / path.name
            if not path.name.startswith(_NOT_CAUSAL) and not link.exists():
                link.symlink_to(path)
        return folder
