"""Does discovery propose what the cluster has, as it is labelled there, and name what it does not know?"""

from typing import Any

import pytest
from berth_operator.api import CapacityType
from berth_operator.catalog import CATALOG
from berth_operator.catalog.discover import Discovery, capacity_type_of, discover
from berth_operator.catalog.nodepools import Requirement, read_node_pool


def node(instance_type: str, labels: Any = None, taints: Any = (), allocatable: Any = None) -> dict[str, Any]:
    return {
        "metadata": {"name": "n", "labels": {"node.kubernetes.io/instance-type": instance_type} | (labels or {})},
        "spec": {"taints": list(taints)},
        "status": {"allocatable": allocatable or {}},
    }


def node_pool(*requirements: tuple[str, str, list[str]], limits: Any = None, taints: Any = ()) -> dict[str, Any]:
    wanted = [{"key": key, "operator": operator, "values": values} for key, operator, values in requirements]
    template = {"spec": {"requirements": wanted, "taints": list(taints)}}
    return {"metadata": {"name": "np"}, "spec": {"template": template, "limits": limits or {}}}


def ask(*nodes: dict[str, Any], pools: Any = ()) -> Discovery:
    return discover(CATALOG, nodes, pools)


def capacities(found: Discovery, name: str) -> dict[str, dict[str, Any]]:
    (body,) = (p for p in found.proposals if p["metadata"]["name"] == name)
    return {capacity["type"]: capacity for capacity in body["spec"]["capacity"]}


def test_a_node_is_proposed_with_its_own_labels_and_taints() -> None:
    spot = {"key": "spot", "value": "yes", "effect": "NoSchedule"}
    passing = {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}
    found = ask(
        node("c8g.4xlarge", {"eks.amazonaws.com/capacityType": "ON_DEMAND"}),
        node("c8g.4xlarge", {"karpenter.sh/capacity-type": "spot"}, taints=[spot, passing]),
    )
    ways = capacities(found, "graviton4-c8g-4xl")
    assert ways["OnDemand"]["usdPerHour"] == "0.638"
    assert ways["Spot"]["selector"] == {
        "karpenter.sh/capacity-type": "spot",
        "node.kubernetes.io/instance-type": "c8g.4xlarge",
    }
    assert ways["Spot"]["tolerations"] == [{"key": "spot", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}]
    assert any("set capacity.maxNodes" in remark for remark in found.remarks)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ({}, CapacityType.ON_DEMAND),
        ({"eks.amazonaws.com/capacityType": "SPOT"}, CapacityType.SPOT),
        ({"cloud.google.com/gke-spot": "true"}, CapacityType.SPOT),
        ({"kubernetes.azure.com/scalesetpriority": "spot"}, CapacityType.SPOT),
        ({"karpenter.sh/capacity-type": "reserved"}, CapacityType.RESERVED),
    ],
)
def test_capacity_types_are_read_as_each_cloud_writes_them(labels: dict[str, str], kind: CapacityType) -> None:
    assert capacity_type_of(labels)[0] is kind


def test_a_graviton_of_another_size_is_proposed_without_a_price_and_cannot_be_planned_with_yet() -> None:
    found = ask(node("m8g.2xlarge"))
    way = capacities(found, "graviton4-m8g-2xl")["OnDemand"]
    assert (way["usdPerHour"], way["maxNodes"]) == ("0", 0)
    assert any("set capacity.usdPerHour" in remark for remark in found.remarks)


def test_a_known_chip_in_another_cloud_is_proposed_without_the_catalogs_price() -> None:
    found = ask(
        node("g2-standard-4", {"cloud.google.com/gke-accelerator": "nvidia-l4"}, allocatable={"nvidia.com/gpu": "1"})
    )
    (body,) = found.proposals
    assert (body["metadata"]["name"], body["spec"]["chip"]) == ("l4-g2-standard-4", "L4")
    assert body["spec"]["capacity"][0]["usdPerHour"] == "0"


def test_what_the_catalog_does_not_know_is_counted_and_named() -> None:
    found = ask(node("m5.large", {"kubernetes.io/arch": "amd64"}), node("m5.large", {"kubernetes.io/arch": "amd64"}))
    assert not found.proposals
    assert found.remarks[0].startswith("2 x m5.large (amd64): not in the catalog")


def test_an_empty_cluster_says_so() -> None:
    assert "nothing to propose from" in ask().remarks[0]


def test_a_node_pool_offers_the_types_it_allows_within_its_limits() -> None:
    pool = node_pool(
        ("karpenter.k8s.aws/instance-family", "In", ["c8g"]),
        ("karpenter.k8s.aws/instance-cpu", "Lt", ["33"]),
        ("karpenter.sh/capacity-type", "In", ["spot", "on-demand"]),
        limits={"cpu": "100"},
        taints=[{"key": "llm", "effect": "NoSchedule"}],
    )
    found = ask(pools=[pool])
    assert [p["metadata"]["name"] for p in found.proposals] == ["graviton4-c8g-4xl", "graviton4-c8g-8xl"]
    ways = capacities(found, "graviton4-c8g-4xl")
    assert ways["Spot"]["maxNodes"] == ways["OnDemand"]["maxNodes"] == 6
    assert ways["Spot"]["selector"]["karpenter.sh/nodepool"] == "np"
    assert ways["Spot"]["tolerations"] == [{"key": "llm", "operator": "Exists", "effect": "NoSchedule"}]


def test_a_node_pool_is_on_demand_unless_it_says_otherwise() -> None:
    found = ask(pools=[node_pool(("karpenter.k8s.aws/instance-gpu-name", "In", ["l4"]))])
    assert list(capacities(found, "l4")) == ["OnDemand"]
    assert [p["metadata"]["name"] for p in found.proposals] == ["l4", "l4-4"], "nodes without a GPU have no such label"


ZONE = "topology.kubernetes.io/zone"


def test_zones_are_those_of_spot_nodes_where_there_are_several() -> None:
    spot = {"karpenter.sh/capacity-type": "spot"}
    found = ask(
        node("c8g.4xlarge", spot | {ZONE: "b"}),
        node("c8g.4xlarge", spot | {ZONE: "a"}),
        node("c8g.4xlarge", {ZONE: "c"}),
        node("c8g.8xlarge", spot | {ZONE: "a"}),
    )
    assert capacities(found, "graviton4-c8g-4xl")["Spot"]["zones"] == ["a", "b"]
    assert "zones" not in capacities(found, "graviton4-c8g-4xl")["OnDemand"]
    assert "zones" not in capacities(found, "graviton4-c8g-8xl")["Spot"], "one zone seen says nothing of others"


def test_a_node_pools_zones_are_those_it_lists_and_does_not_rule_out() -> None:
    wanted = [
        ("karpenter.k8s.aws/instance-family", "In", ["c8g"]),
        ("karpenter.sh/capacity-type", "In", ["spot"]),
    ]
    listed = node_pool(*wanted, (ZONE, "In", ["a", "b", "c"]), (ZONE, "NotIn", ["b"]))
    assert capacities(ask(pools=[listed]), "graviton4-c8g-4xl")["Spot"]["zones"] == ["a", "c"]
    assert "zones" not in capacities(ask(pools=[node_pool(*wanted)]), "graviton4-c8g-4xl")["Spot"]


def test_what_runs_goes_before_what_could() -> None:
    pool = node_pool(("node.kubernetes.io/instance-type", "In", ["g6.xlarge"]))
    found = ask(node("g6.xlarge", allocatable={"nvidia.com/gpu": "1"}), pools=[pool])
    assert capacities(found, "l4")["OnDemand"]["selector"] == {"node.kubernetes.io/instance-type": "g6.xlarge"}


@pytest.mark.parametrize(
    ("operator", "values", "value", "holds"),
    [
        ("In", ("a",), "a", True),
        ("In", ("a",), None, False),
        ("NotIn", ("a",), None, True),
        ("Exists", (), None, False),
        ("DoesNotExist", (), None, True),
        ("Gt", ("3",), "4", True),
        ("Gt", ("3",), "3", False),
        ("Gte", ("3",), "3", True),
        ("Lt", ("3",), "x", False),
        ("Fancy", ("3",), "3", False),
    ],
)
def test_requirements_hold_as_in_kubernetes(
    operator: str, values: tuple[str, ...], value: str | None, holds: bool
) -> None:
    assert Requirement("k", operator, values).holds(value) is holds


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        ({}, None),
        ({"cpu": "64"}, 4),
        ({"cpu": "64500m"}, 4),
        ({"cpu": "1k", "nodes": "7"}, 7),
        ({"memory": "100Gi"}, 3),
        ({"memory": "100G"}, 2),
        ({"nvidia.com/gpu": "10"}, 5),
        ({"amd.com/gpu": "0"}, None),
        ({"cpu": "many"}, None),
    ],
)
def test_limits_become_nodes(limits: dict[str, str], most: int | None) -> None:
    takes = {"cpu": 16, "nodes": 1, "memory": 32 * 2**30, "nvidia.com/gpu": 2}
    assert read_node_pool(node_pool(limits=limits)).most_nodes(takes) == most


def test_limits_of_gpus_bound_a_node_pool() -> None:
    pool = node_pool(("node.kubernetes.io/instance-type", "In", ["g6.xlarge"]), limits={"nvidia.com/gpu": "3"})
    assert capacities(ask(pools=[pool]), "l4")["OnDemand"]["maxNodes"] == 3


def test_no_taint_of_a_node_that_goes_away_is_tolerated() -> None:
    """Workers would be sent where all others are taken from."""
    keys = (
        "karpenter.sh/disrupted",
        "aws-node-termination-handler/spot-itn",
        "cloud.google.com/impending-node-termination",
        "remediator.kubernetes.azure.com/unschedulable",
        "DeletionCandidateOfClusterAutoscaler",
    )
    found = ask(node("c8g.4xlarge", taints=[{"key": key, "effect": "NoSchedule"} for key in keys]))
    assert "tolerations" not in capacities(found, "graviton4-c8g-4xl")["OnDemand"]


def test_nodes_that_are_set_aside_are_tolerated_only_where_all_are() -> None:
    aside = [{"key": "dedicated", "value": "databases", "effect": "NoSchedule"}]
    mixed = ask(node("c8g.4xlarge", taints=aside), node("c8g.4xlarge"))
    assert "tolerations" not in capacities(mixed, "graviton4-c8g-4xl")["OnDemand"]
    (toleration,) = capacities(ask(node("c8g.4xlarge", taints=aside)), "graviton4-c8g-4xl")["OnDemand"]["tolerations"]
    assert toleration["key"] == "dedicated"


@pytest.mark.parametrize(
    ("labels", "taints"),
    [
        ({}, [{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]),
        ({"kubernetes.io/os": "windows"}, []),
    ],
)
def test_a_node_that_is_no_place_for_workers_is_not_proposed(labels: Any, taints: Any) -> None:
    assert not ask(node("c8g.4xlarge", labels, taints)).proposals


@pytest.mark.parametrize(
    ("allocatable", "there"),
    [({}, "0"), ({"nvidia.com/gpu": "0", "nvidia.com/mig-1g.10gb": "56"}, "0"), ({"nvidia.com/gpu": "32"}, "32")],
)
def test_a_node_whose_gpus_are_missing_cut_or_shared_is_named_and_not_proposed(allocatable: Any, there: str) -> None:
    found = ask(node("p5.48xlarge", {"kubernetes.io/arch": "amd64"}, allocatable=allocatable))
    assert not found.proposals
    (remark,) = found.remarks
    assert remark.startswith(f"1 x p5.48xlarge (amd64) with {there} nvidia.com/gpu, where h100-8 has 8: not proposed")


@pytest.mark.parametrize(
    ("label", "told"), [("cloud.google.com/gke-provisioning", True), ("cloud.google.com/gke-spot", False)]
)
def test_on_demand_nodes_that_no_label_tells_from_spot_are_named(label: str, told: bool) -> None:
    gpu = {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    ways = {"cloud.google.com/gke-provisioning": ("standard", "spot"), "cloud.google.com/gke-spot": (None, "true")}
    nodes = [
        node("g2-standard-4", gpu | ({label: value} if value else {}), allocatable={"nvidia.com/gpu": "1"})
        for value in ways[label]
    ]
    found = ask(*nodes)
    assert set(capacities(found, "l4-g2-standard-4")) == {"OnDemand", "Spot"}
    assert any("no label tells its OnDemand nodes from Spot" in remark for remark in found.remarks) is not told


def test_a_node_pool_of_eks_auto_mode_offers_no_more_than_its_own_labels_allow() -> None:
    general = node_pool(
        ("eks.amazonaws.com/instance-category", "In", ["c", "m", "r"]),
        ("kubernetes.io/arch", "In", ["arm64", "amd64"]),
    )
    names = {p["metadata"]["name"] for p in ask(pools=[general]).proposals}
    assert names
    assert all(name.startswith("graviton") for name in names)
    gpus = node_pool(("eks.amazonaws.com/instance-gpu-name", "In", ["l4"]))
    assert {p["spec"]["chip"] for p in ask(pools=[gpus]).proposals} == {"L4"}


def test_a_node_pool_of_another_cloud_is_named_and_offers_nothing_of_the_catalogs() -> None:
    pool = node_pool(("kubernetes.io/arch", "In", ["amd64"]))
    pool["spec"]["template"]["spec"]["nodeClassRef"] = {"group": "karpenter.azure.com", "kind": "AKSNodeClass"}
    found = ask(pools=[pool])
    assert not found.proposals
    assert found.remarks[0].startswith("NodePool np makes nodes by karpenter.azure.com")


def test_nodes_that_a_proposal_does_not_select_are_not_counted_to_it() -> None:
    def spot(zone: str, **label: str) -> dict[str, Any]:
        named = {"managed": "eks.amazonaws.com/capacityType", "karpenter": "karpenter.sh/capacity-type"}
        told = {named[who]: word for who, word in label.items()}
        return node("c8g.4xlarge", told | {"topology.kubernetes.io/zone": zone})

    found = ask(spot("a", managed="SPOT"), spot("b", karpenter="spot"), spot("c", karpenter="spot"))
    way = capacities(found, "graviton4-c8g-4xl")["Spot"]
    assert way["selector"]["eks.amazonaws.com/capacityType"] == "SPOT"
    assert "zones" not in way
    assert any("1 Spot seen" in remark for remark in found.remarks)


def test_nodes_that_the_proposed_labels_leave_out_are_named() -> None:
    aside = [{"key": "dedicated", "value": "databases", "effect": "NoSchedule"}]
    found = ask(
        node("c8g.4xlarge", {"eks.amazonaws.com/capacityType": "ON_DEMAND"}),
        node("c8g.4xlarge", {"karpenter.sh/capacity-type": "on-demand"}),
        node("c8g.4xlarge", {"karpenter.sh/capacity-type": "on-demand"}),
        node("c8g.4xlarge", {"eks.amazonaws.com/capacityType": "ON_DEMAND"}, taints=aside),
    )
    told = [remark for remark in found.remarks if "left out" in remark]
    assert [remark.partition(", and left out")[0] for remark in told] == [
        "graviton4-c8g-4xl: 2 OnDemand nodes are not labelled eks.amazonaws.com/capacityType=ON_DEMAND",
        "graviton4-c8g-4xl: 1 OnDemand node is set aside by taint dedicated",
    ]
    assert any("1 OnDemand seen" in remark for remark in found.remarks)


def test_a_node_pool_that_the_proposed_labels_leave_out_is_named() -> None:
    wanted = ("karpenter.k8s.aws/instance-family", "In", ["c8g"])
    first, second = node_pool(wanted), node_pool(wanted)
    second["metadata"]["name"] = "other"
    told = [remark for remark in ask(pools=[first, second]).remarks if "left out" in remark]
    assert len(told) == len(ask(pools=[first]).proposals)
    assert "NodePool other may make OnDemand nodes not labelled karpenter.sh/nodepool=np, which" in told[0]
    karpenters = node("c8g.4xlarge", {"karpenter.sh/capacity-type": "on-demand"})
    covered = ask(karpenters, pools=[node_pool(("node.kubernetes.io/instance-type", "In", ["c8g.4xlarge"]))])
    assert not [remark for remark in covered.remarks if "left out" in remark]
