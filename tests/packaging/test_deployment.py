"""The files a cluster is made from: every field exists, nothing runs as root or without a token, no secret is in them, and
what they scrape and draw is what is exported."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import metrics
from cluster.session import KEEPALIVE
from shards.commit import Marker

ROOT = Path(__file__).parents[2]
KUBERAY = sorted((ROOT / "cluster" / "kuberay").glob("*.yaml"))
FIELDS = yaml.safe_load(Path(__file__).with_name("kuberay_fields.yaml").read_text())
QUANTITY = re.compile(r"\d+(m|Ki|Mi|Gi|Ti)?")
API = {
    "RayJob": "ray.io/v1",
    "RayCluster": "ray.io/v1",
    "ServiceAccount": "v1",
    "NetworkPolicy": "networking.k8s.io/v1",
}


def wrong(value: Any, schema: Any, where: str = "") -> list[str]:
    """Where `value` is not of `schema` (kuberay_fields.yaml says how to read one)."""
    if isinstance(schema, list):
        items = value if isinstance(value, list) else [None]
        return [line for i, item in enumerate(items) for line in wrong(item, schema[0], f"{where}[{i}]")]
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{where} is no object"]
        fields = {name.rstrip("!"): kind for name, kind in schema.items()}
        lines = [f"{where}.{name} is unknown" for name in value if name not in fields]
        lines += [f"{where}.{n[:-1]} is missing" for n in schema if n.endswith("!") and n[:-1] not in value]
        return lines + [x for n, v in value.items() if n in fields for x in wrong(v, fields[n], f"{where}.{n}")]
    if schema == "map":
        right = isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
    elif schema == "quantities":
        right = isinstance(value, dict) and all(QUANTITY.fullmatch(str(v)) for v in value.values())
    elif schema == "quantity":
        right = bool(QUANTITY.fullmatch(str(value)))
    else:
        right = type(value).__name__ == schema
    return [] if right else [f"{where} = {value!r} is no {schema}"]


def documents() -> list[tuple[str, dict[str, Any]]]:
    return [(path.name, found) for path in KUBERAY for found in yaml.safe_load_all(path.read_text())]


def of_kind(*kinds: str) -> list[tuple[str, dict[str, Any]]]:
    return [(name, found) for name, found in documents() if found["kind"] in kinds]


def cluster_specs() -> list[tuple[str, dict[str, Any]]]:
    return [(n, f["spec"].get("rayClusterSpec", f["spec"])) for n, f in of_kind("RayJob", "RayCluster")]


def pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def test_every_field_is_one_of_the_custom_resources() -> None:
    assert {found["kind"] for _, found in documents()} == set(API)
    for name, found in documents():
        assert found["apiVersion"] == API[found["kind"]], name
        assert wrong(found, FIELDS[found["kind"]]) == [], name


def test_the_fields_are_held_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above can fail: a misspelt, a missing and a mistyped field are each found."""
    found = of_kind("RayJob")[0][1]
    for change in ("misspelt", "missing", "mistyped"):
        broken = json.loads(json.dumps(found))
        group = broken["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
        if change == "misspelt":
            group["maxReplica"] = 3
        elif change == "missing":
            del group["maxReplicas"]
        else:
            group["maxReplicas"] = "3"
        assert len(wrong(broken, FIELDS["RayJob"])) == 1, change


def test_clusters_ask_for_a_token_and_run_nothing_as_root() -> None:
    assert len(cluster_specs()) == 3
    for name, spec in cluster_specs():
        assert spec["authOptions"] == {"mode": "token", "secretName": "villa-ray-token"}, name
        assert spec["headGroupSpec"]["serviceType"] == "ClusterIP", name
        for pod in pods(spec):
            assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] == 10001
            assert pod["serviceAccountName"] == "villa"
            for box in pod["containers"]:
                assert box["securityContext"]["allowPrivilegeEscalation"] is False
                env = {e["name"]: e["value"] for e in box["env"]}
                assert KEEPALIVE.items() <= env.items()
                assert not any(re.search("TOKEN|SECRET|KEY_ID", key) for key in env)


def test_mounts_have_volumes_and_gpus_are_requested_as_they_are_limited() -> None:
    for name, spec in cluster_specs():
        for pod in pods(spec):
            volumes = {v["name"] for v in pod.get("volumes", ())}
            for box in pod["containers"]:
                assert {m["name"] for m in box.get("volumeMounts", ())} <= volumes, name
                asked, limit = box["resources"]["requests"], box["resources"]["limits"]
                assert asked.get("nvidia.com/gpu") == limit.get("nvidia.com/gpu")
                assert asked["memory"] == limit["memory"], name


def test_the_ray_of_the_clusters_is_the_locked_one() -> None:
    locked = re.search(r"^ray==(\S+)$", (ROOT / "constraints" / "cpu.txt").read_text(), re.M)
    assert locked is not None
    assert {spec["rayVersion"] for _, spec in cluster_specs()} == {locked[1]}


def test_data_workers_bear_spot_nodes_and_training_is_a_gang() -> None:
    specs = dict(cluster_specs())
    for group in specs["data.yaml"]["workerGroupSpecs"]:
        assert any(t.get("value") == "spot" for t in group["template"]["spec"]["tolerations"])
        assert group["minReplicas"] == 0 < group["maxReplicas"]
    assert specs["data.yaml"]["workerGroupSpecs"][0]["replicas"] > 0, "the head has no CPU for a first worker"
    jobs = dict(of_kind("RayJob"))
    assert jobs["train.yaml"]["metadata"]["labels"]["ray.io/gang-scheduling-enabled"] == "true"
    (gang,) = specs["train.yaml"]["workerGroupSpecs"]
    assert gang["replicas"] == gang["minReplicas"] == gang["maxReplicas"]
    assert f"train.workers={gang['replicas']}" in jobs["train.yaml"]["spec"]["entrypoint"]


def test_the_autoscaler_beside_a_head_has_its_token_and_nothing_else_has() -> None:
    """Ray's autoscaler reads the pod's Kubernetes token, or scales nothing."""
    from ray.autoscaler._private.kuberay import node_provider

    assert node_provider.IN_CLUSTER_TOKEN_PATH.startswith("/var/run/secrets/kubernetes.io/serviceaccount/")
    ((_, account),) = of_kind("ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    scaled = [spec for _, spec in cluster_specs() if spec.get("enableInTreeAutoscaling")]
    assert len(scaled) == 2
    for _, spec in cluster_specs():
        head, *workers = (pod.get("automountServiceAccountToken", False) for pod in pods(spec))
        assert head is bool(spec.get("enableInTreeAutoscaling")) and not any(workers)


def test_what_an_autoscaler_is_to_start_is_asked_for() -> None:
    """By the entry point of a job, or by the command in the header of what is submitted to."""
    from villa_dist.config_file import as_given

    cpus: dict[str, int] = {}
    for name, spec in cluster_specs():
        if spec.get("enableInTreeAutoscaling"):
            boxes = [(g["maxReplicas"], g["template"]["spec"]["containers"][0]) for g in spec["workerGroupSpecs"][:1]]
            cpus[f"kuberay/{name}"] = sum(n * int(box["resources"]["requests"]["cpu"]) for n, box in boxes)
    kinds = yaml.safe_load((ROOT / "cluster" / "aws.yaml").read_text())["available_node_types"]
    cpus["aws.yaml"] = kinds["cpu"]["max_workers"] * kinds["cpu"]["resources"]["CPU"]
    for name, most in cpus.items():
        asked = as_given(None, re.findall(r"--set (ray\.\S+)", (ROOT / "cluster" / name).read_text())).ray
        assert asked.workers == most and asked.start_seconds == 1800, name
    assert kinds["cpu"]["min_workers"] > 0


def test_entry_points_are_commands_of_villa() -> None:
    from typer.main import get_command

    from cluster.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    for _, job in of_kind("RayJob"):
        words = shlex.split(job["spec"]["entrypoint"].replace(";", " ; "))
        named = words[words.index("villa") + 1]
        stages = words[words.index("in") + 1 : words.index(";")] if named == "$stage" else [named]
        assert stages and set(stages) <= set(commands)


def test_dashboard_and_metrics_are_closed_to_others() -> None:
    (_, policy), *more = of_kind("NetworkPolicy")
    assert not more and policy["spec"]["policyTypes"] == ["Ingress"]
    for rule in policy["spec"]["ingress"]:
        assert rule["from"], "an empty `from` lets anybody in"
        among = rule["from"] == [{"podSelector": policy["spec"]["podSelector"]}]
        ports = {p["port"] for p in rule.get("ports", ())}
        assert among or (ports and ports <= {8265, 52365, 8080})
        if 8080 in ports:
            assert rule["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "monitoring"}


# ---- Ray's launcher


def test_the_launchers_file_is_valid_and_starts_ray_with_a_token() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    given = yaml.safe_load((ROOT / "cluster" / "aws.yaml").read_text())
    validate_config({**prepare_config(json.loads(json.dumps(given))), "cluster_synced_files": []})
    with pytest.raises(Exception, match="max_worker"):
        validate_config({**given, "max_worker": 3})
    for start in (given["head_start_ray_commands"][-1], given["worker_start_ray_commands"][-1]):
        assert "RAY_AUTH_MODE=token" in start and "RAY_AUTH_TOKEN_PATH=/home/ubuntu/villa-token" in start
        assert all(f"{name}={value}" in start for name, value in KEEPALIVE.items())
    assert "/home/ubuntu/villa-token" in given["file_mounts"]
    kinds = given["available_node_types"]
    assert "InstanceMarketOptions" not in kinds["head"]["node_config"]
    assert all(k["node_config"]["MetadataOptions"] == {"HttpTokens": "required"} for k in kinds.values())


def test_the_launcher_makes_no_security_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that it makes has port 22 open to everybody, beside what the file says."""
    from ray.autoscaler._private.aws import config as launcher

    made: list[str] = []

    def upsert(config: dict[str, Any], kinds: list[str]) -> Any:
        made.extend(kinds)
        raise LookupError

    monkeypatch.setattr(launcher, "_upsert_security_groups", upsert)
    assert "0.0.0.0/0" in str(launcher._create_default_inbound_rules({"sg-1"}))
    text = (ROOT / "cluster" / "aws.yaml").read_text()
    launcher._configure_security_group(yaml.safe_load(text))
    assert not made and "security_group:" not in text
    one_without = yaml.safe_load(text.replace("      SecurityGroupIds: [GROUP]\n", ""))
    with pytest.raises(LookupError):
        launcher._configure_security_group(one_without)
    assert set(made) == {"head", "cpu", "gpu"}
    rules = [line.split("--protocol ")[1] for line in text.splitlines() if "authorize-security-group-ingress" in line]
    assert rules == ["all --source-group $GROUP", "tcp --port 22 --cidr 203.0.113.0/24"]


STAND_INS = {
    "sudo": 'exec "$@"',
    "mountpoint": "test -e ~/mounted",
    "mount": "touch ~/mounted; echo mount >>~/log",
    "python3.11": 'mkdir -p ~/villa/bin; cp "$(dirname "$0")/pip" ~/villa/bin/; echo venv >>~/log',
    "pip": 'echo pip "$@" >>~/log',
    **dict.fromkeys(("apt-get", "add-apt-repository", "mkdir", "chown"), ""),
}


def test_the_launchers_commands_can_be_repeated_and_install_a_changed_lock(tmp_path: Path) -> None:
    given = yaml.safe_load((ROOT / "cluster" / "aws.yaml").read_text())
    tools = tmp_path / "tools"
    tools.mkdir()
    (tmp_path / "villa-token").touch()
    for name, body in STAND_INS.items():
        head = "export PATH=/usr/bin:/bin\n" if name == "python3.11" else ""
        (tools / name).write_text(f"#!/bin/sh\n{head}{body}\n")
        (tools / name).chmod(0o755)
    env = {"HOME": str(tmp_path), "PATH": f"{tools}:/usr/bin:/bin"}
    for _ in range(2):  # of nodes that are kept between two `ray up`
        for command in (*given["initialization_commands"], *given["setup_commands"]):
            here = command.replace("/home/ubuntu", str(tmp_path))
            done = subprocess.run(["bash", "-c", here], env=env, capture_output=True, text=True)
            assert done.returncode == 0, (command, done.stderr)
    install = f"pip install -q -c {tmp_path}/villa_dist/constraints/cpu.txt {tmp_path}/villa_dist"
    assert (tmp_path / "log").read_text().splitlines() == ["mount", "venv", install, install]


# ---- what is scraped and drawn


class Counted:
    def __init__(self) -> None:
        self.names: set[tuple[str, tuple[str, ...]]] = set()

    def add(self, name: str, description: str, number: float, tags: dict[str, str]) -> None:
        self.names.add((name, tuple(sorted(tags))))


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Metric as Prometheus sees it -> its labels, from what the counters are really called."""
    counted = Counted()
    monkeypatch.setattr(metrics, "add", counted.add)
    fields = {"counts": dict.fromkeys(metrics.COUNTED, 1), "refused": {"no_text": 1}, "seconds": {"read": 1.0}}
    metrics.count(Marker(**{**empty_marker(), **fields}))
    metrics.count_retry("Deadline")
    return {f"ray_{name}": set(tags) for name, tags in counted.names}


def empty_marker() -> dict[str, Any]:
    import dataclasses

    kinds = {"str": "", "int": 0, "float": 0.0, "bool": False}
    return {
        f.name: kinds.get(str(f.type), {})
        for f in dataclasses.fields(Marker)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }


def drawn() -> list[str]:
    board = json.loads((ROOT / "cluster" / "grafana" / "villa.json").read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def test_every_metric_is_drawn_and_everything_drawn_is_a_metric(exported: dict[str, set[str]]) -> None:
    ours = {name for expr in drawn() for name in re.findall(r"ray_villa_\w+", expr)}
    assert ours == set(exported)
    for expr in drawn():
        for name in re.findall(r"ray_villa_\w+", expr):
            by = re.search(r"sum by \(([^)]*)\)", expr)
            assert by is not None and set(by[1].split(", ")) <= exported[name], expr


def test_rays_metrics_that_are_drawn_exist() -> None:
    from ray.dashboard.modules.reporter import reporter_agent

    source = Path(reporter_agent.__file__).read_text(encoding="utf-8")
    names = {name for expr in drawn() for name in re.findall(r"ray_(node_\w+)", expr)}
    assert names and all(f'"{name}"' in source for name in names), names


def test_prometheus_keeps_what_is_drawn(exported: dict[str, set[str]]) -> None:
    config = yaml.safe_load((ROOT / "cluster" / "prometheus.yaml").read_text())
    assert {job["job_name"] for job in config["scrape_configs"]} == {"villa", "villa-kubernetes"}
    used = {name for expr in drawn() for name in re.findall(r"ray_\w+", expr)} | set(exported)
    for job in config["scrape_configs"]:
        (kept,) = (r for r in job["metric_relabel_configs"] if r["action"] == "keep")
        assert all(re.fullmatch(kept["regex"], name) for name in used)


# ---- images


def instructions(path: Path) -> list[tuple[str, str]]:
    text = re.sub(r"(?m)^\s*#.*\n", "", path.read_text()).replace("\\\n", " ")
    return [(w, rest.strip()) for w, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())]


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.gpu"])
def test_images_install_the_locked_set_and_run_without_root(name: str) -> None:
    found = instructions(ROOT / name)
    assert {word for word, _ in found} <= {"FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "USER", "CMD"}
    (install,) = re.findall(r"pip install ([^&]*)", " ".join(rest for word, rest in found if word == "RUN"))
    words = shlex.split(install)
    assert words[words.index("-c") + 1] == "constraints/cpu.txt" and "--no-cache-dir" in words
    extras = re.fullmatch(r"\.(?:\[(\w+)\])?", words[-1])
    assert extras is not None
    assert extras[1] is None or f"\n{extras[1]} = [" in (ROOT / "pyproject.toml").read_text()
    copied = {source for word, rest in found if word == "COPY" for source in rest.split()[:-1]}
    assert {"pyproject.toml", "constraints", "shards", "villa_dist", "cluster"} <= copied
    assert all((ROOT / source).exists() for source in copied), copied
    users = [i for i, (word, _) in enumerate(found) if word == "USER"]
    assert found[users[-1]][1] == "10001" and users[-1] > max(i for i, (w, _) in enumerate(found) if w == "RUN")
    env = " ".join(rest for word, rest in found if word in ("ENV", "ARG"))
    assert "RAY_AUTH_MODE=token" in env and not re.search(r"(SECRET|_TOKEN|PASSWORD|KEY_ID)\w*=", env)


def test_images_have_the_python_that_is_locked() -> None:
    for name in ("Dockerfile", "Dockerfile.gpu"):
        assert dict(instructions(ROOT / name))["FROM"].startswith("python:3.11-")


def test_what_is_not_for_an_image_is_left_out() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "runs"} <= set(ignored)
