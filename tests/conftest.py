"The marks, the batch that nothing happens to, and the table of the faults that tests/faults has made."
import sys
import pytest

def pytest_configure(config):
    config.addinivalue_line("markers", "slow: processes that are killed and started again; SEMISSL_FAULTS=full makes the full number of faults")
    config.addinivalue_line("markers", "xdist_group(name): tests that one worker of pytest-xdist runs")

def pytest_itemcollected(item):
    "With pytest-xdist (the gate), the tests of a file share its fixtures on one worker; notebooks are dealt one by one."
    if item.path.stem not in ("test_notebooks", "test_experiments", "test_tutorials"):
        item.add_marker(pytest.mark.xdist_group("batch" if "undisturbed" in item.fixturenames else item.path.stem))

def faults() -> list: return getattr(sys.modules.get("work"), "FAULTS", [])

def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"): session.config.workeroutput["faults"] = faults()

MADE_ELSEWHERE = []

@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error): MADE_ELSEWHERE.extend(getattr(node, "workeroutput", {}).get("faults", []))

def pytest_terminal_summary(terminalreporter):
    made = [*faults(), *MADE_ELSEWHERE]
    if made: terminalreporter.section("faults")
    for fault, times, told in made: terminalreporter.line(f"{times:4} x  {fault}: {told}")

@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    "A batch of the digits, as it should be."
    from work import batch
    root = tmp_path_factory.mktemp("undisturbed")/"grid"
    process = batch(root)
    told = process.communicate(timeout=3000)[0]
    assert process.returncode == 0, told[-3000:]
    return root
