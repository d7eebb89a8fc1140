"""As much of kustomize as infra/kubernetes uses: what `kubectl apply -k FOLDER` would send, from the files alone."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import REPOSITORY

KUBERNETES = REPOSITORY / "infra" / "kubernetes"
SECRET_NAMES = re.findall(
    r"^([A-Z0-9_]+)=", (REPOSITORY / "infra" / "make_secrets.sh").read_text(encoding="utf-8"), flags=re.M
)
_KNOWN = {
    "apiVersion",
    "kind",
    "namespace",
    "resources",
    "patches",
    "images",
    "configMapGenerator",
    "secretGenerator",
    "generatorOptions",
}
_WITHOUT_NAMESPACE = {"Namespace"}

Resource = dict[str, Any]


def rendered(folder: Path) -> list[Resource]:
    """Every resource of the kustomization in `folder`. AssertionError where it names what is not there."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    assert kustomization.keys() <= _KNOWN, kustomization.keys() - _KNOWN
    if "configMapGenerator" in kustomization:
        assert kustomization["generatorOptions"] == {"disableNameSuffixHash": True}
    resources: list[Resource] = []
    for name in kustomization["resources"]:
        path = folder / name
        assert path.exists(), f"{folder} names {name}, which is not there"
        resources += rendered(path) if path.is_dir() else documents(path)
    for patch in kustomization.get("patches", ()):
        for change in documents(folder / patch["path"]):
            found = [one for one in resources if identity(one) == identity(change)]
            assert len(found) == 1, f"{folder / patch['path']} changes {identity(change)}, found {len(found)} such"
            _merge(found[0], change)
    for generator in kustomization.get("configMapGenerator", ()):
        made = _config_map(folder, generator)
        same = [one for one in resources if identity(one) == identity(made)]
        assert len(same) == (generator.get("behavior") == "replace"), f"{folder}: {identity(made)}"
        resources = [one for one in resources if one not in same] + [made]
    for generator in kustomization.get("secretGenerator", ()):
        assert generator["envs"] == ["secrets.env"]
        data = dict.fromkeys(SECRET_NAMES, "made by make_secrets.sh")
        resources.append(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": generator["name"]}, "stringData": data}
        )
    images = {
        image["name"]: f"{image.get('newName', image['name'])}:{image['newTag']}"
        for image in kustomization.get("images", ())
    }
    for resource in resources:
        for container in containers_of(resource):
            container["image"] = images.get(container["image"], container["image"])
        if resource["kind"] not in _WITHOUT_NAMESPACE:
            resource["metadata"]["namespace"] = kustomization["namespace"]
    names = [identity(one) for one in resources]
    assert len(set(names)) == len(names)
    return resources


def documents(path: Path) -> list[Resource]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def identity(resource: Resource) -> tuple[str, str, str]:
    return resource["apiVersion"], resource["kind"], resource["metadata"]["name"]


def pod_of(resource: Resource) -> dict[str, Any] | None:
    """The specification of the pods that the resource makes."""
    template = resource.get("spec", {}).get("template", {})
    return template.get("spec") if isinstance(template, dict) else None


def containers_of(resource: Resource) -> list[dict[str, Any]]:
    pod = pod_of(resource) or {}
    return [*pod.get("initContainers", ()), *pod.get("containers", ())]


def _config_map(folder: Path, generator: dict[str, Any]) -> Resource:
    data: dict[str, str] = {}
    for name in generator.get("files", ()):
        data[Path(name).name] = (folder / name).read_text(encoding="utf-8")
    lines = [
        line for name in generator.get("envs", ()) for line in (folder / name).read_text(encoding="utf-8").splitlines()
    ]
    for line in [*lines, *generator.get("literals", ())]:
        key, _, value = line.partition("=")
        data[key] = value
    assert data and generator.keys() <= {"name", "behavior", "files", "envs", "literals"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data}


def _merge(below: dict[str, Any], above: dict[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _merge(below[key], value)
        else:
            below[key] = deepcopy(value)
