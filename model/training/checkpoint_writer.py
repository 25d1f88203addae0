"""Writes checkpoints in a thread, while training goes on.

In: a Snapshot, which is host memory that nobody else touches. Out: the folder, complete; then `on_written` is called
in the training's own thread. One write at a time: a second one waits for the first. An error of the thread comes out,
as it was raised, of the next call; a process that is killed meanwhile leaves a folder that does not count.
"""

import concurrent.futures
from collections.abc import Callable
from pathlib import Path

from model.training.checkpoint import Snapshot, write_checkpoint


class CheckpointWriter:
    def __init__(self, root: Path, on_written: Callable[[Path], None]) -> None:
        self.root, self.on_written = root, on_written
        self.thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint-writer")
        self.writing: concurrent.futures.Future[Path] | None = None

    def start(self, snapshot: Snapshot) -> None:
        assert self.writing is None, "the snapshot's buffers are those of the write before"
        self.writing = self.thread.submit(write_checkpoint, self.root, snapshot)

    def poll(self) -> None:
        """Finish a write that has ended. Waits for nothing."""
        if self.writing is not None and self.writing.done():
            self.finish()

    def finish(self) -> None:
        """Wait for the write, if there is one. Raises what it raised."""
        if self.writing is not None:
            writing, self.writing = self.writing, None
            self.on_written(writing.result())

    def wait(self) -> None:
        """Wait for the write and leave its outcome to `finish`."""
        concurrent.futures.wait([self.writing] if self.writing is not None else [])

    def close(self) -> None:
        self.thread.shutdown(wait=True)
