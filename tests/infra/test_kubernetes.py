"""infra/kubernetes: every manifest is valid, closed as far as it can be, and names only what is there."""

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from mlflow.server.security_utils import get_allowed_hosts_from_env, is_allowed_host_header
from prefect.utilities.dockerutils import get_prefect_image_name
from prefect.utilities.templating import apply_values, find_placeholders

from kshot.runtime.workers import HOST_ADDRESS, HOST_RANK, RENDEZVOUS, Hosts
from tests.conftest import REPOSITORY
from tests.infra.kustomization import KUBERNETES, SECRET_NAMES, Resource, containers_of, identity, pod_of, rendered

VERSIONS = ("1.33", "1.37")  # the first with successPolicy for all, and the last that the schemas know
OVERLAYS = ("one-gpu", "several-nodes", "launch")
POOLS = ("base", "one-gpu")
NAMES_OF_A_SECRET = {
    f"PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET_{part}" for part in ("NAME", "KEY")
}


def flow_job(pool: str, **variables: Any) -> Resource:
    """The Job that Prefect makes for a flow run, by Prefect's own templating."""
    template = json.loads((KUBERNETES / pool / "job-template.json").read_text(encoding="utf-8"))
    properties = template["variables"]["properties"]
    defaults = {name: one["default"] for name, one in properties.items() if "default" in one}
    of_run = {"command": "prefect flow-run execute", "name": "brave-fox", "labels": {"prefect.io/flow-run-id": "1"}}
    job = apply_values(template["job_configuration"]["job_manifest"], {**defaults, **of_run, **variables})
    assert isinstance(job, dict)
    container = job["spec"]["template"]["spec"]["containers"][0]
    container["args"] = container["args"].split()
    return job


RESOURCES: dict[str, list[Resource]] = {name: rendered(KUBERNETES / name) for name in OVERLAYS}
ALL = {
    f"{overlay} {resource['kind']} {resource['metadata']['name']}": resource
    for overlay, resources in RESOURCES.items()
    for resource in resources
} | {f"{pool} flow run": flow_job(pool) for pool in POOLS}
WITH_PODS = {name: resource for name, resource in ALL.items() if pod_of(resource)}
CONTAINERS = {
    f"{name} {container['name']}": container for name, one in WITH_PODS.items() for container in containers_of(one)
}

every_resource = pytest.mark.parametrize("resource", ALL.values(), ids=ALL)
every_pod = pytest.mark.parametrize("resource", WITH_PODS.values(), ids=WITH_PODS)
every_container = pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)


@pytest.mark.parametrize("version", VERSIONS)
@every_resource
def test_a_manifest_is_what_kubernetes_understands(resource: Resource, version: str) -> None:
    known = deepcopy(resource)
    if known["metadata"].get(
        "generateName"
    ):  # Prefect wants two fields of a Job in its pods too; Kubernetes passes over them
        for field in ("parallelism", "completions"):
            del known["spec"]["template"]["spec"][field]
    kubernetes_validate.validate(known, version, strict=True)


def test_a_misspelt_field_is_found() -> None:
    job = deepcopy(ALL["launch Job hosts"])
    job["spec"]["backofLimit"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="backofLimit"):
        kubernetes_validate.validate(job, VERSIONS[-1], strict=True)


def test_a_missing_file_and_a_patch_without_a_target_are_found(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["one.yaml"]}))
    with pytest.raises(AssertionError, match=r"one\.yaml, which is not there"):
        rendered(tmp_path)
    named = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "one"}}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(named))
    (tmp_path / "patch.yaml").write_text(yaml.safe_dump({**named, "metadata": {"name": "two"}}))
    patched = {"resources": ["one.yaml"], "patches": [{"path": "patch.yaml"}]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(patched))
    with pytest.raises(AssertionError, match="found 0 such"):
        rendered(tmp_path)


def test_every_file_of_the_folder_is_used() -> None:
    used = set()
    for file in KUBERNETES.glob("*/kustomization.yaml"):
        kustomization = yaml.safe_load(file.read_text(encoding="utf-8"))
        generated = kustomization.get("configMapGenerator", ())
        named = [name for one in generated for key in ("files", "envs") for name in one.get(key, ())]
        patches = [one["path"] for one in kustomization.get("patches", ())]
        used |= {file.parent / name for name in [*kustomization["resources"], *patches, *named, file.name]}
    there = {path for path in KUBERNETES.rglob("*") if path.is_file() and path.name != "secrets.env"}
    assert there - used == set()


@every_pod
def test_a_pod_is_one_of_the_restricted_kind(resource: Resource) -> None:
    pod = pod_of(resource)
    assert pod is not None
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim"}
    assert pod["enableServiceLinks"] is False, "the variables of Services would have the names of settings"
    assert pod["automountServiceAccountToken"] is (pod.get("serviceAccountName") == "worker")


@every_container
def test_a_container_may_do_no_more_than_it_needs(container: dict[str, Any]) -> None:
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
    assert {"cpu", "memory"} == container["resources"]["requests"].keys()
    assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]


@every_container
def test_an_image_is_named_by_a_tag_that_does_not_move(container: dict[str, Any]) -> None:
    assert re.fullmatch(r"[\w./-]+:\d[\w.-]*", container["image"]), container["image"]


@pytest.mark.parametrize("overlay", ["one-gpu", "several-nodes"])
def test_a_server_says_how_it_is(overlay: str) -> None:
    for resource in RESOURCES[overlay]:
        if resource["kind"] in ("Deployment", "StatefulSet"):
            for container in containers_of(resource):
                assert {"startupProbe", "livenessProbe"} <= container.keys(), identity(resource)


@pytest.mark.parametrize("name", ALL)
def test_what_a_pod_refers_to_is_there(name: str) -> None:
    overlay = name.split()[0].replace("base", "several-nodes").replace("launch", "several-nodes")
    there = {(one["kind"], one["metadata"]["name"]): one for one in (*RESOURCES[overlay], *RESOURCES["launch"])}
    for container in containers_of(ALL[name]):
        for source in container.get("envFrom", ()):
            assert ("ConfigMap", source["configMapRef"]["name"]) in there
        for variable in container.get("env", ()):
            source = variable.get("valueFrom", {})
            if key := source.get("secretKeyRef"):
                assert key["key"] in there["Secret", key["name"]]["stringData"]
            if key := source.get("configMapKeyRef"):
                assert key["key"] in there["ConfigMap", key["name"]]["data"]
        volumes = {volume["name"]: volume for volume in (pod_of(ALL[name]) or {})["volumes"]}
        for mount in container["volumeMounts"]:
            volume = volumes.get(mount["name"], {})
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in there
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in there
            assert volume or "volumeClaimTemplates" in ALL[name]["spec"]
    if account := (pod_of(ALL[name]) or {}).get("serviceAccountName"):
        assert ("ServiceAccount", account) in there


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_service_and_a_policy_find_pods(overlay: str) -> None:
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in RESOURCES[overlay] if pod_of(one)]
    labels += [flow_job("base")["spec"]["template"]["metadata"]["labels"]]
    apps = {one["app"] for one in labels}
    for resource in RESOURCES[overlay]:
        selectors = re.findall(r"'app': '(\w+)'", str(resource["spec"])) if "spec" in resource else []
        listed = re.findall(r"'key': 'app', 'operator': 'In', 'values': \[([^]]*)\]", str(resource.get("spec", "")))
        assert {*selectors, *re.findall(r"\w+", " ".join(listed))} <= apps, identity(resource)


def test_no_secret_stands_in_a_manifest() -> None:
    secret = re.compile(r"PASSWORD|SECRET_KEY|SECRET_ACCESS|AUTH_STRING$|ACCESS_KEY_ID|TOKEN")
    for name, container in CONTAINERS.items():
        for variable in container.get("env", ()):
            if secret.search(variable["name"]) and variable["name"] not in NAMES_OF_A_SECRET:
                assert variable["valueFrom"]["secretKeyRef"]["key"] in SECRET_NAMES, f"{name}: {variable['name']}"
    tracked = [path for path in KUBERNETES.rglob("*") if path.is_file() and path.name != "secrets.env"]
    assert [path for path in tracked if re.search(r"kind: Secret\b", path.read_text(encoding="utf-8"))] == []
    assert "/infra/kubernetes/base/secrets.env" in (REPOSITORY / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_the_worker_may_make_jobs_in_its_namespace_and_nothing_else() -> None:
    resources = RESOURCES["one-gpu"]
    (role,) = [one for one in resources if one["kind"] == "Role"]
    (binding,) = [one for one in resources if one["kind"] == "RoleBinding"]
    may = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    assert {("jobs", verb) for verb in ("create", "get", "list", "watch", "delete")} <= may
    assert {("pods", "list"), ("pods", "watch"), ("pods/log", "get")} <= may
    assert {resource for resource, verb in may if verb not in ("get", "list", "watch")} == {"jobs"}
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [one["kind"] for one in resources if one["kind"].startswith("Cluster")] == []


def test_the_worker_is_of_the_prefect_of_the_lock() -> None:
    lock = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
    (version,) = re.findall(r"^prefect==(\S+)", lock, flags=re.M)
    assert CONTAINERS["one-gpu Deployment worker worker"]["image"].removeprefix("docker.io/") == get_prefect_image_name(
        version, python_version="3.12", flavor="kubernetes"
    )


@pytest.mark.parametrize("pool", POOLS)
def test_every_variable_of_the_work_pool_is_used_and_every_placeholder_is_one(pool: str) -> None:
    template = json.loads((KUBERNETES / pool / "job-template.json").read_text(encoding="utf-8"))
    used = {placeholder.name for placeholder in find_placeholders(json.dumps(template["job_configuration"]))}
    assert used == template["variables"]["properties"].keys()


@pytest.mark.parametrize("pool", POOLS)
def test_a_flow_run_has_the_image_of_the_servers(pool: str) -> None:
    """Kustomize does not look into the template."""
    (container,) = containers_of(flow_job(pool))
    assert container["image"] == CONTAINERS["one-gpu Deployment prefect prefect"]["image"]
    assert container["image"] == CONTAINERS["launch Job hosts host"]["image"]


def test_the_pools_differ_in_what_a_pod_asks_for_and_in_nothing_else() -> None:
    base, gpu = (json.loads((KUBERNETES / pool / "job-template.json").read_text(encoding="utf-8")) for pool in POOLS)
    assert [one["variables"]["properties"]["gpus"].pop("default") for one in (base, gpu)] == ["0", "1"]
    for name in ("cpus", "memory"):
        for one in (base, gpu):
            one["variables"]["properties"][name].pop("default")
    assert base == gpu


def test_a_flow_run_has_the_gpus_of_its_pool_and_memory_that_its_processes_share() -> None:
    (container,) = containers_of(flow_job("one-gpu"))
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert containers_of(flow_job("one-gpu", gpus="4"))[0]["resources"]["limits"]["nvidia.com/gpu"] == "4"
    volumes = {one["name"]: one for one in (pod_of(flow_job("one-gpu")) or {})["volumes"]}
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/project", "/tmp", "/dev/shm"}
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    assert container["workingDir"] == "/project"


def test_mlflow_answers_to_the_names_that_it_is_called_by(monkeypatch: pytest.MonkeyPatch) -> None:
    def value(container: dict[str, Any], name: str) -> str:
        (found,) = [one["value"] for one in container["env"] if one["name"] == name]
        return str(found)

    server, client = CONTAINERS["one-gpu Deployment mlflow mlflow"], CONTAINERS["one-gpu flow run prefect-job"]
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", value(server, "MLFLOW_SERVER_ALLOWED_HOSTS"))
    allowed = get_allowed_hosts_from_env() or []
    assert is_allowed_host_header(allowed, value(client, "MLFLOW_TRACKING_URI").removeprefix("http://"))
    assert value(server, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION") == "false"
    assert value(server, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION") == value(client, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION")
    assert value(client, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION") == "false"


# the hosts of one training


JOB = ALL["launch Job hosts"]
SPEC = JOB["spec"]


def environment_of_pod(index: int) -> dict[str, str]:
    """What Kubernetes sets in the pod of that index."""
    fields = {
        "metadata.annotations['batch.kubernetes.io/job-completion-index']": str(index),
        "status.podIP": f"10.0.0.{index + 1}",
    }
    (container,) = containers_of(JOB)
    config = {one["metadata"]["name"]: one["data"] for one in RESOURCES["launch"] if one["kind"] == "ConfigMap"}
    found = {}
    for variable in container["env"]:
        source = variable.get("valueFrom", {})
        if "fieldRef" in source:
            found[variable["name"]] = fields[source["fieldRef"]["fieldPath"]]
        elif "configMapKeyRef" in source:
            found[variable["name"]] = config[source["configMapKeyRef"]["name"]][source["configMapKeyRef"]["key"]]
        else:
            found[variable["name"]] = variable["value"]
    return found


@pytest.mark.parametrize("index", range(SPEC["completions"]))
def test_the_environment_of_a_pod_makes_it_a_host(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = environment_of_pod(index)
    assert {RENDEZVOUS, HOST_RANK, HOST_ADDRESS} <= environment.keys()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    hosts = Hosts.from_environment(SPEC["completions"])
    assert hosts == Hosts(
        n=SPEC["completions"], rank=index, rendezvous=environment[RENDEZVOUS], address=f"10.0.0.{index + 1}"
    )
    assert f"--rdzv-conf=is_host={int(index == 0)}" in hosts.options("job")[4]


def test_the_hosts_meet_at_the_name_of_the_first_pod() -> None:
    (service,) = [one for one in RESOURCES["launch"] if one["kind"] == "Service"]
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"] is True
    assert SPEC["template"]["spec"]["subdomain"] == name
    (port,) = [one["port"] for one in service["spec"]["ports"]]
    first = f"{JOB['metadata']['name']}-0"  # what Kubernetes calls the pod of index 0 of an Indexed Job
    assert environment_of_pod(1)[RENDEZVOUS] == f"{first}.{name}.{namespace}.svc:{port}"


def test_all_hosts_run_at_once() -> None:
    assert SPEC["completionMode"] == "Indexed" and SPEC["parallelism"] == SPEC["completions"] >= 2
    assert SPEC["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}


def test_a_preempted_host_is_replaced_and_a_refusal_is_not_tried_again() -> None:
    refused, preempted = SPEC["podFailurePolicy"]["rules"]
    (container,) = containers_of(JOB)
    assert refused == {
        "action": "FailJob",
        "onExitCodes": {"containerName": container["name"], "operator": "In", "values": [2]},
    }
    assert preempted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert SPEC["template"]["spec"]["restartPolicy"] == "Never", "a failure policy asks for it"
    assert SPEC["backoffLimit"] > 0


def test_the_hosts_share_the_project_folder() -> None:
    (claim,) = [one for one in RESOURCES["several-nodes"] if one["kind"] == "PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claim["spec"]["resources"]["requests"]["storage"], "the rest of the claim is that of the base"


def test_the_hosts_run_a_module_that_exists() -> None:
    (container,) = containers_of(JOB)
    python, option, module, stage = container["args"]
    assert (python, option, stage) == ("python", "-m", "$(STAGE)")
    assert (REPOSITORY / f"{module.replace('.', '/')}.py").is_file()
    assert environment_of_pod(0)["STAGE"] == "meta_train"
