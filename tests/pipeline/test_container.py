"""A real Apptainer: the image that the rule builds, and the pipeline that runs in it."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from tests.pipeline import images
from tests.pipeline.machines import write_torch
from tests.pipeline.small import CONFIG
from tests.pipeline.workflow import ROOT, Said, Workflow
from tinsmith.files import sha256

RUN = Path("results/seed=0")
pytestmark = [
    pytest.mark.skipif(images.missing() is not None, reason=images.missing() or ""),
    pytest.mark.timeout(1800),  # of the first, which builds an image and runs a pipeline in it
]


@pytest.fixture(scope="module")
def contained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workflow]:
    """The small pipeline in a git checkout of its own, run in the image that its rule built."""
    base, options = images.copy_of_the_base(tmp_path_factory.mktemp("base"))
    images.lay_in_pinned_packages(base)
    container = {"base": str(base), "build_options": options}
    folder = tmp_path_factory.mktemp("contained")
    workflow = Workflow(folder, CONFIG | {"container": container}, stand_ins=False)
    git("init", "--quiet", folder=folder)
    git("add", "--all", folder=folder)
    git("commit", "--quiet", "--message=All of it", folder=folder)
    said = snakemake(workflow, "--cores", "2")
    assert said.code == 0, said.text
    shutil.rmtree(base)
    yield workflow
    (folder / "containers/engine.sif").unlink()


def snakemake(workflow: Workflow, *arguments: str) -> Said:
    return workflow.snakemake(*arguments, PATH=images.path_with_apptainer())


def git(*arguments: str, folder: Path) -> str:
    person = ("-c", "user.name=Tester", "-c", "user.email=tester@localhost")
    done = subprocess.run(
        ["git", *person, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_every_version_in_the_image_is_the_pinned_one(contained: Workflow) -> None:
    listed = images.apptainer(
        "exec", str(contained.folder / "containers/engine.sif"), "python", "-m", "pip", "list",
        "--format=json",
    )  # fmt: skip
    installed = {normal(p["name"]): Version(p["version"]).public for p in json.loads(listed)}
    lines = (ROOT / "envs/engine.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert len(pins) > 100
    assert {name: installed.get(normal(name)) for name in pins} == pins
    log = (contained.folder / "logs/containers/engine.log").read_text()
    for name in images.LEFT_OUT:  # the definition's own pip brought these
        assert f"{name}-" in log.split("Successfully installed")[1].lower()


def normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def test_the_image_is_labelled_with_the_commit_that_it_was_built_from(contained: Workflow) -> None:
    image = str(contained.folder / "containers/engine.sif")
    labels = json.loads(images.apptainer("inspect", "--json", image))["data"]["attributes"][
        "labels"
    ]
    commit = git("rev-parse", "HEAD", folder=contained.folder)
    assert labels["org.opencontainers.image.revision"] == commit


def test_the_pipeline_in_the_image_trains_the_adapters_that_it_trains_outside(
    contained: Workflow, finished: Workflow
) -> None:
    for stage in ("supervised", "grpo"):
        inside = read(contained.folder / RUN / stage / "checkpoint.json")["weights_sha256"]
        outside = read(finished.folder / RUN / stage / "checkpoint.json")["weights_sha256"]
        assert inside == outside, stage
    adapter = RUN / "export/adapter/adapter_model.safetensors"
    assert sha256(contained.folder / adapter) == sha256(finished.folder / adapter)


def test_every_job_inside_records_the_image_by_its_digest(contained: Workflow) -> None:
    digest = sha256(contained.folder / "containers/engine.sif")
    commit = git("rev-parse", "HEAD", folder=contained.folder)
    metadata = sorted((contained.folder / "results").rglob("run_metadata.json"))
    assert len(metadata) == 8
    for file in metadata:
        record = read(file)
        assert record["container"]["sha256"] == digest, file
        assert record["container"]["commit"] == commit
        assert record["git"] == {"commit": commit, "is_dirty": False}  # there is no git inside
    assert read(contained.folder / "containers/engine.run_metadata.json")["container"] is None


def test_a_second_call_builds_and_runs_nothing(contained: Workflow) -> None:
    said = snakemake(contained, "--cores", "2")
    assert said.code == 0
    assert "Nothing to be done" in said.text


def test_a_failed_build_leaves_no_image_and_says_what_apptainer_said(tmp_path: Path) -> None:
    base, options = images.copy_of_the_base(tmp_path)
    workflow = small_workflow(tmp_path, {"base": str(base), "build_options": options})
    definition = workflow.folder / "containers/engine.def"
    definition.write_text(definition.read_text().replace("%post", "%post\n    no-such-program"))
    said = snakemake(workflow, "--cores", "1", "container")
    assert said.code != 0
    assert "apptainer could not build containers/engine.sif" in said.text
    assert "no-such-program: not found" in said.text
    assert not list((workflow.folder / "containers").glob("*sif*"))


@pytest.mark.parametrize("definition", ["engine-cuda", "vllm"])
def test_an_image_over_a_vendors_keeps_its_torch(tmp_path: Path, definition: str) -> None:
    said, image = build_over_a_vendors(tmp_path, definition, cuda="12.9", vllm="0.32.0")
    assert said.code == 0, said.text
    program = "import torch, idna; print(torch.__file__, idna.__file__)"
    where = images.apptainer("exec", str(image), "python", "-c", program).split()
    assert where[0] == "/usr/lib/python3/dist-packages/torch/__init__.py"
    assert where[1].startswith("/opt/tinsmith/venv/")
    if definition == "vllm":
        asked = "$TINKER_LOCAL_VLLM_PYTHON -c 'import vllm; print(vllm.__file__)'"
        told = images.apptainer("exec", str(image), "sh", "-c", asked)
        assert told.strip() == "/usr/lib/python3/dist-packages/vllm/__init__.py"


def test_a_vendors_image_with_a_torch_for_the_cpu_is_refused(tmp_path: Path) -> None:
    said, image = build_over_a_vendors(tmp_path, "engine-cuda", cuda=None, vllm="0.32.0")
    assert "is built for the CPU only" in said.text
    assert not image.exists()


def test_a_vendors_image_with_another_vllm_than_the_pinned_is_refused(tmp_path: Path) -> None:
    said, image = build_over_a_vendors(tmp_path, "vllm", cuda="12.9", vllm="0.31.0")
    assert "the base has vllm==0.31.0, and envs/vllm-cuda.txt pins vllm==0.32.0" in said.text
    assert not image.exists()


def build_over_a_vendors(
    folder: Path, definition: str, *, cuda: str | None, vllm: str
) -> tuple[Said, Path]:
    """What came of building an image over one whose system has a made-up torch and vLLM."""
    base, options = images.copy_of_the_base(folder)
    packages = base / "usr/lib/python3/dist-packages"
    write_torch(packages, "2.10.0a0", cuda)
    (packages / "vllm").mkdir()
    (packages / "vllm/__init__.py").touch()
    record = packages / f"vllm-{vllm}.dist-info/METADATA"
    record.parent.mkdir()
    record.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {vllm}\n")
    container = {"definition": definition, "base": str(base), "build_options": options}
    workflow = small_workflow(folder, container)
    (workflow.folder / "envs/vllm-cuda.txt").write_text("# A comment.\nvllm==0.32.0\n")
    said = snakemake(workflow, "--cores", "1", "container")
    return said, workflow.folder / f"containers/{definition}.sif"


def small_workflow(folder: Path, container: dict[str, Any]) -> Workflow:
    """A workflow whose image needs one small package beside torch."""
    made = folder / "workflow"
    made.mkdir()
    workflow = Workflow(made, CONFIG | {"container": container}, stand_ins=False)
    (made / "envs/engine.txt").write_text("idna==3.20\ntorch==2.13.0\n")
    return workflow
