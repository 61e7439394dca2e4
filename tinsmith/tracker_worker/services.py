"""An adapter for each tracker: open, one point at a time, finish.

`opening` names the run (`run`, `stage`, an `id` that its attempts share), its `settings` and the
stage's `folder`. An adapter says from which step on it wants points. One that can make its record
anew does so and wants all of them, because an attempt that was killed may have gone further than
the checkpoint that the next one starts from.
"""

import json
import shutil
from pathlib import Path


class Wandb:
    """Weights & Biases: a run of its project, online or as files for `wandb sync`."""

    def __init__(self, opening):
        import wandb  # pyright: ignore[reportMissingImports]

        folder, is_offline = Path(opening["folder"]), opening["mode"] == "offline"
        if is_offline:
            shutil.rmtree(folder / "wandb", ignore_errors=True)
        self._run = wandb.init(
            project=opening["project"],
            entity=opening["entity"],
            name=f"{opening['run']}/{opening['stage']}",
            group=opening["run"],
            job_type=opening["stage"],
            id=opening["id"],
            mode=opening["mode"],
            resume=None if is_offline else "allow",
            dir=folder,
            config=opening["settings"],
            settings=wandb.Settings(console="off", disable_git=True, save_code=False),
        )
        # The service takes no point twice, nor one before its last.
        self.next_step = self._run.step

    def log(self, step, metrics):
        self._run.log(metrics, step=step)

    def finish(self, is_done):
        self._run.finish(exit_code=0 if is_done else 1)


class TensorBoard:
    """Event files in the stage's folder `tensorboard`."""

    next_step = 0

    def __init__(self, opening):
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]

        folder = Path(opening["folder"]) / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder), flush_secs=10)
        self._writer.add_text("settings", f"    {json.dumps(opening['settings'])}")

    def log(self, step, metrics):
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, is_done):
        self._writer.close()


class Trackio:
    """A run of a trackio project on this machine (TRACKIO_DIR, else trackio's own folder)."""

    next_step = 0

    def __init__(self, opening):
        import trackio  # pyright: ignore[reportMissingImports]

        project, name = opening["project"], f"{opening['run']}/{opening['stage']}-{opening['id']}"
        self._remove(project, name)
        self._run = trackio.init(
            project,
            name=name,
            group=opening["run"],
            config=opening["settings"],
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step, metrics):
        self._run.log(metrics, step=step)

    def finish(self, is_done):
        self._run.finish()

    def _remove(self, project, name):
        import trackio  # pyright: ignore[reportMissingImports]

        try:
            runs = list(trackio.Api().runs(project))
        except ValueError:  # there is no such project yet
            return
        for run in runs:
            if run.name == name:
                run.delete()


SERVICES = {"wandb": Wandb, "tensorboard": TensorBoard, "trackio": Trackio}
