"""The run directory: rows as they come, and the summary at the end.

``rows.jsonl`` has one line per evaluation: ``round``, ``experience`` (the server's, ``-1`` before
training), ``client`` (null for the server's own test of the global model), ``model`` (``global`` or
``personal``), ``eval_experience``, ``accuracy``, ``accuracy_among_own`` and ``accuracy_among_met``
(see :class:`fedsim.scoring.Score`), ``loss``, ``num_examples``, and where clients are validated
``val_accuracy`` and ``val_examples``. ``rounds.jsonl`` has one line per round,
``rejections.jsonl`` one per refused update.
"""

import ctypes
import hashlib
import json
import os
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from flwr.app import ArrayRecord

from fedsim.arrays import Params, to_params
from fedsim.evaluation import Evaluation
from fedsim.judging import rows_of, summarise
from fedsim.loop import RoundLog
from fedsim.matrices import MATRICES, Matrices
from fedsim.tables import Row, plain, write_parquet


class RunExistsError(ValueError):
    """The run directory already holds a finished or interrupted run."""


class Results:
    """Writes what a run measures, line by line, so that an interrupted run keeps what it had.

    Args:
        run_dir: Where the files go; created when needed.
        personal: Whether client evaluations measure personal models.
        overwrite: Whether an earlier run in the same directory may be replaced.
        resumed: What :meth:`memory` gave: the files go on from there. What they have beyond it is
            cut off.

    Raises:
        RunExistsError: If the directory holds results, and they are neither to be replaced nor
            resumed.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        personal: bool,
        overwrite: bool = False,
        resumed: Row | None = None,
    ) -> None:
        self.run_dir = run_dir
        self.personal = personal
        run_dir.mkdir(parents=True, exist_ok=True)
        if (run_dir / "rounds.jsonl").exists() and not overwrite and resumed is None:
            raise RunExistsError(
                f"{run_dir} already holds a run; choose another hydra.run.dir, replace it with"
                f" overwrite=true, or go on with it: fedsim resume={run_dir}"
            )
        ends = {} if resumed is None else resumed["files"]
        self._rows = _open(run_dir / "rows.jsonl", ends)
        self._rounds = _open(run_dir / "rounds.jsonl", ends)
        self._rejections = _open(run_dir / "rejections.jsonl", ends)
        self._matrices = Matrices(run_dir, resumed_at=ends.get(MATRICES))
        (run_dir / "summary.json").unlink(missing_ok=True)
        self.seconds: dict[str, float] = {}
        self.bytes: dict[str, dict[str, int]] = {"upload": {}, "download": {}}
        self.measures: dict[str, float] = {}  # the newest value of each
        self.rejected = 0
        self.rounds = 0
        if resumed is not None:
            self.seconds, self.bytes = dict(resumed["seconds"]), dict(resumed["bytes"])
            self.measures = dict(resumed["measures"])
            self.rejected, self.rounds = resumed["rejected"], resumed["rounds"]

    def record(self, log: RoundLog, wall_s: float) -> None:
        """Write one round's log."""
        for row in rows_of(log, self.personal):
            _write(self._rows, row)
        for rejection in log.rejections:
            self.rejected += 1
            _write(self._rejections, asdict(rejection))
        if log.tick.round > 0:
            self.rounds += 1
            _write(self._rounds, _round_row(log, wall_s))
            self.measures |= log.measures
            _accumulate(self.seconds, log.seconds)
            _accumulate(self.bytes["upload"], log.upload_bytes)
            _accumulate(self.bytes["download"], log.download_bytes)
        self._matrices.record(log.tick.round, log.matrices)
        for file in self._files():
            file.flush()

    def memory(self) -> Row:
        """How far the results have come: sizes of the files, and the sums over rounds."""
        files = self._files()
        return {
            "files": {os.path.basename(f.name): os.fstat(f.fileno()).st_size for f in files},
            "seconds": dict(self.seconds),
            "bytes": {way: dict(sizes) for way, sizes in self.bytes.items()},
            "measures": dict(self.measures),
            "rejected": self.rejected,
            "rounds": self.rounds,
        }

    def sync(self) -> None:
        """See to it that what was written survives a loss of power."""
        for file in self._files():
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files."""
        for file in self._files():
            file.close()

    def abandon(self) -> None:
        """Close the files of a run that ends early, whatever could not be written."""
        for file in self._files():
            with suppress(OSError):
                file.close()

    def _rejected_by_kind(self) -> Counter[str]:
        return Counter(row["kind"] for row in self.rejections())

    def _files(self) -> list[IO[str]]:
        return [self._rows, self._rounds, self._rejections, *self._matrices.files()]

    def rows(self) -> list[Row]:
        """Every evaluation row so far."""
        return _lines(self.run_dir / "rows.jsonl")

    def rejections(self) -> list[Row]:
        """Every refused update so far."""
        return _lines(self.run_dir / "rejections.jsonl")

    def finish(self, arrays: ArrayRecord, facts: Row, evaluation: Evaluation | None = None) -> Row:
        """Write ``rows.parquet``, ``model.safetensors`` and ``summary.json``; returns the summary.

        Args:
            arrays: The final server arrays, for the digest.
            facts: Further entries of the summary, e.g. ``num_clients``.
            evaluation: How the run is judged; by default on its last round.
        """
        self.close()
        self._matrices.finish()
        _give_back_memory()  # what rounds needed, tables do not
        rows = self.rows()
        write_parquet(rows, self.run_dir / "rows.parquet")
        write_tensors(self.run_dir / "model.safetensors", to_params(arrays))
        summary = {
            **summarise(rows, self.personal, evaluation or Evaluation()),
            **{f"{way}_bytes": sum(sizes.values()) for way, sizes in self.bytes.items()},
            **{
                f"{way}_bytes/{record}": size
                for way, sizes in self.bytes.items()
                for record, size in sorted(sizes.items())
            },
            **{f"seconds/{phase}": round(s, 4) for phase, s in self.seconds.items()},
            **{f"measure/{name}": plain(v) for name, v in sorted(self.measures.items())},
            "rounds": self.rounds,
            "rejected_updates": self.rejected,
            **{f"rejected/{kind}": n for kind, n in sorted(self._rejected_by_kind().items())},
            "digest": digest(arrays),
            **facts,
        }
        write_json(self.run_dir / "summary.json", summary)
        return summary


def _give_back_memory() -> None:
    """Give free memory back to the system, where glibc holds it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _lines(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def digest(arrays: ArrayRecord) -> str:
    """SHA-256 over name, dtype, shape and bytes of every array, in the order of the names."""
    sha = hashlib.sha256()
    for name, tensor in sorted(to_params(arrays).items()):
        sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        sha.update(tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()


def write_tensors(path: Path, params: Params) -> None:
    """Write tensors to a safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    beside = path.with_suffix(".partial")
    save_file({name: t.detach().cpu().clone() for name, t in params.items()}, beside)
    beside.replace(path)


def write_json(path: Path, content: Row) -> None:
    """Write a JSON file whole or not at all."""
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    beside.replace(path)


def _open(path: Path, ends: Row) -> IO[str]:
    """A file to append to, new or cut off where the last checkpoint found its end."""
    if path.name not in ends:
        return path.open("w", encoding="utf-8")
    os.truncate(path, ends[path.name])
    return path.open("a", encoding="utf-8")


def _write(file: IO[str], row: Row) -> None:
    file.write(json.dumps({name: plain(value) for name, value in row.items()}) + "\n")


def _round_row(log: RoundLog, wall_s: float) -> Row:
    return {
        "round": log.tick.round,
        "experience": log.tick.experience,
        "step": log.tick.step,
        "wall_s": round(wall_s, 6),
        **{f"{phase}_s": round(s, 6) for phase, s in log.seconds.items()},
        "num_clients": len(log.cohort),
        "num_idle": len(log.idle),
        "num_rejected": len(log.rejections),
        "num_examples": log.num_examples,
        "train_loss": log.train_loss,
        "upload_bytes": sum(log.upload_bytes.values()),
        "download_bytes": sum(log.download_bytes.values()),
        "cohort": log.cohort,
        **({"measures": {n: plain(v) for n, v in log.measures.items()}} if log.measures else {}),
    }


def _accumulate(total: dict[str, Any], part: dict[str, Any]) -> None:
    for name, value in part.items():
        total[name] = total.get(name, 0) + value
