"""The executor without Ray: this process does one unit after another. For notebooks, debugging and small sets."""

from collections.abc import Iterator, Sequence

from sonify.config import Config
from sonify.engine.job import Task
from sonify.engine.stage import Stage
from sonify.engine.worker import Outcome, Worker


class LocalExecutor:
    """Does tasks here; a row that kills the process kills the run, which resumes."""

    def __init__(self, config: Config) -> None:
        self._worker = Worker(config)

    def __call__(self, stage: Stage, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Yield outcomes in the order of the tasks."""
        for task in tasks:
            yield self._worker.run(stage.key, task, {})

    def close(self) -> None:
        """End what the last stage has started."""
        self._worker.close()
