"The marks, the batch that nothing happens to, and the table of the faults that tests/faults has made."

import os, sys
from pathlib import Path
import pytest


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "slow: processes that are killed and started again; SEMISSL_FAULTS=full makes the full number of faults",
    )
    config.addinivalue_line("markers", "cuda: needs an NVIDIA GPU; skipped, and counted, where there is none")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With pytest-xdist (the gate), the tests of a file share its fixtures on one worker, and so do the two files that
    need the undisturbed batch; notebooks are dealt one by one."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = Path(nodeid.split("::")[0]).stem
            if file in ("test_notebooks", "test_experiments", "test_tutorials"):
                return nodeid
            return "batch" if file in ("test_batch", "test_ray") else file

    # the order they are collected in: the faults, which take longest, first
    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_runtest_logreport(report):
    "On a lent GPU every result is told at once: the machine may be gone before the summary."
    if os.environ.get("SEMISSL_GPU_OUT") and (report.when == "call" or report.failed):
        print(
            f"\n{report.outcome} {report.duration:.1f} s {report.nodeid.split('::')[-1]}",
            *([str(report.longrepr)[-1500:]] if report.failed else []),
            flush=True,
        )


def faults() -> list:
    return getattr(sys.modules.get("work"), "FAULTS", [])


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["faults"] = faults()


MADE_ELSEWHERE = []


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    MADE_ELSEWHERE.extend(getattr(node, "workeroutput", {}).get("faults", []))


def pytest_terminal_summary(terminalreporter):
    made = [*faults(), *MADE_ELSEWHERE]
    if made:
        terminalreporter.section("faults")
    for fault, times, told in made:
        terminalreporter.line(f"{times:4} x  {fault}: {told}")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    "A batch of the digits, as it should be."
    from work import batch

    root = tmp_path_factory.mktemp("undisturbed") / "grid"
    process = batch(root)
    told = process.communicate(timeout=3000)[0]
    assert process.returncode == 0, told[-3000:]
    return root
