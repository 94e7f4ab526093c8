"A batch on a cluster of two nodes, one of which is killed in the middle of its runs."

import os, time
import pandas as pd
import pytest
from work import FAULTS, batch, table

# the second one keeps a cluster on the loopback, the third one ends no run for the memory of others
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_memory_monitor_refresh_ms="0")
ray = pytest.importorskip("ray", reason="Ray is an extra: pip install semissl[ray]")
pytestmark = pytest.mark.slow


@pytest.fixture
def cluster():
    "A head and a worker on the loopback; `ray stop` would end every Ray on this machine, shutdown() ends this one."
    from ray.cluster_utils import Cluster

    node = dict(
        num_cpus=1, num_gpus=0, object_store_memory=100 * 2**20, include_dashboard=False, node_ip_address="127.0.0.1"
    )
    two = Cluster(initialize_head=True, head_node_args=node)
    try:
        yield two, two.add_node(**{k: v for k, v in node.items() if k != "include_dashboard"})
    finally:
        two.shutdown()


def under_way(root) -> list[str]:
    "Runs that train at this moment: rows in metrics.csv and no status."
    return [
        d.name
        for d in root.glob("*-*")
        if (d / "attempt.ipynb").exists() and (d / "config.json").exists() and not (d / "status.json").exists()
    ]


def test_a_node_is_lost(undisturbed, tmp_path, cluster):
    two, worker = cluster
    root = tmp_path / "grid"
    process = batch(root, "--ray", two.address)
    end = time.monotonic() + 300
    while len(under_way(root)) < 2 and time.monotonic() < end and process.poll() is None:
        time.sleep(0.05)
    assert len(under_way(root)) == 2, process.communicate()[0][-3000:]
    two.remove_node(worker, allow_graceful=False)
    told = process.communicate(timeout=3000)[0]
    assert process.returncode == 0, told[-3000:]
    found = pd.read_parquet(root / "results.parquet")
    assert set(found.state) == {"done"} and found.attempts.sum() == len(found) + 1, found[["run", "attempts"]]
    pd.testing.assert_frame_equal(table(root), table(undisturbed))
    FAULTS.append(
        (
            f"a node of two lost under a batch of {len(found)} runs on Ray",
            1,
            "its run went on on the other, the same table",
        )
    )
