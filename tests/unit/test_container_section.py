"""What the container section of the config may say, and what a job in an image is given."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tinsmith.config import Container, check
from tinsmith.container import apptainer_arguments, build_image, current_image
from tinsmith.container_plan import ContainerPlan
from tinsmith.errors import TinsmithError
from tinsmith.files import sha256
from tinsmith.plan import make_plan

CONFIG: dict[str, Any] = {
    "model": {"kind": "tiny"},
    "data": {"kind": "arithmetic"},
    "task": {"kind": "arithmetic"},
    "stages": [{"kind": "supervised", "steps": 1}],
}


@pytest.fixture
def an_apptainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name on the path, and an empty working directory."""
    program = tmp_path / "bin/apptainer"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return program


def container(value: Any) -> Container:
    return check(CONFIG | {"container": value}).container


def test_the_rules_run_outside_unless_the_config_says_otherwise() -> None:
    assert not check(CONFIG).container.use
    assert not container(False).use
    assert container(True) == Container(use=True)
    assert container({"definition": "engine-cuda"}).use


def test_an_image_is_either_given_or_built() -> None:
    assert ContainerPlan(container({"image": "/images/own.sif"}), ()).image() == "/images/own.sif"
    assert ContainerPlan(container({"definition": "vllm"}), ()).image() == "containers/vllm.sif"
    with pytest.raises(TinsmithError, match=r"container\.image must be left out with base"):
        container({"image": "own.sif", "base": "docker://python:3.12-slim"})
    with pytest.raises(TinsmithError, match=r"container\.image must be a \.sif file.*own\.img"):
        container({"image": "own.img"})
    with pytest.raises(TinsmithError, match=r"container\.definition must be 'engine'.*got 'cuda'"):
        container({"definition": "cuda"})
    with pytest.raises(TinsmithError, match="container must be a mapping"):
        container("yes please")


def test_a_given_image_that_is_not_there_is_refused_before_any_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(json.dumps(CONFIG | {"container": {"image": "none.sif"}}))
    with pytest.raises(TinsmithError, match=r"container\.image must be a file, got 'none\.sif'"):
        make_plan(SimpleNamespace(configfiles=[], config={}))


def test_a_container_cannot_be_swept() -> None:
    from tinsmith.runs import expand

    with pytest.raises(TinsmithError, match=r"sweep\.container\.definition must be a stage"):
        expand(check(CONFIG | {"sweep": {"container.definition": ["engine"]}}))


def test_what_lies_outside_of_the_working_directory_is_bound_once(
    an_apptainer: Path, tmp_path: Path
) -> None:
    (tmp_path / "models/own").mkdir(parents=True)
    places = [tmp_path / "models/own", tmp_path / "new/store", Path("inside")]
    said = apptainer_arguments(
        "--cleanenv", image=Path("engine.sif"), outside=places, commit="abc", has_gpu=True
    )
    model = f"--bind {tmp_path / 'models/own'}"
    assert said == f"--cleanenv --bind {tmp_path} {model} --env TINSMITH_GIT_COMMIT=abc --nv"
    again = apptainer_arguments(
        said, image=Path("engine.sif"), outside=places, commit="abc", has_gpu=True
    )
    assert again == said


def test_no_driver_means_no_nv(an_apptainer: Path) -> None:
    said = apptainer_arguments("", image=Path("engine.sif"), outside=[], commit=None, has_gpu=False)
    assert said == ""


def test_a_machine_without_apptainer_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(TinsmithError, match="apptainer must be installed for container: true"):
        apptainer_arguments("", image=Path("a.sif"), outside=[], commit=None, has_gpu=False)


@pytest.mark.parametrize("base", ["no-such-folder", "shub://old/image"])
def test_a_base_that_cannot_be_is_refused_before_a_build(an_apptainer: Path, base: str) -> None:
    with pytest.raises(TinsmithError, match=rf"container\.base must be .*got '{base}'"):
        build_image(Path("engine.def"), Path("engine.sif"), "abc", base, [])


def test_outside_of_an_image_none_is_recorded() -> None:
    assert current_image({}) is None


def test_an_image_that_cannot_be_seen_from_inside_has_no_digest(tmp_path: Path) -> None:
    labels = tmp_path / "labels.json"
    labels.write_text('{"org.opencontainers.image.revision": "abc"}')
    found = current_image({"APPTAINER_CONTAINER": "/nowhere/engine.sif"}, labels)
    assert found == {"path": "/nowhere/engine.sif", "sha256": None, "commit": "abc"}


def test_an_image_is_hashed_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image = tmp_path / "engine.sif"
    inside = {"APPTAINER_CONTAINER": str(image)}

    def write(text: str, time_ns: int) -> dict[str, Any]:
        image.write_text(text)
        os.utime(image, ns=(time_ns, time_ns))
        found = current_image(inside)
        assert found is not None
        return found

    first = write("one", 1)
    assert first["sha256"] == sha256(image)
    assert write("two", 1) == first, "which no image of the same size and time would be"
    assert write("two", 2)["sha256"] == write("two", 3)["sha256"] == sha256(image)
    assert write("longer", 3)["sha256"] == sha256(image)


@pytest.mark.usefixtures("an_apptainer")
def test_the_cuda_image_says_which_base_it_wants() -> None:
    with pytest.raises(TinsmithError, match=r"container\.base is required for engine-cuda\.sif"):
        build_image(Path("engine-cuda.def"), Path("engine-cuda.sif"), "abc", None, [])
