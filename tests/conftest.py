"The mark `slow`, the batch that nothing happens to, and the table of the faults that tests/faults has made."
import sys
import pytest

def pytest_configure(config):
    config.addinivalue_line("markers", "slow: processes that are killed and started again; SEMISSL_FAULTS=full makes the full number of faults")

def pytest_terminal_summary(terminalreporter):
    faults = getattr(sys.modules.get("work"), "FAULTS", [])
    if faults: terminalreporter.section("faults")
    for fault, times, told in faults: terminalreporter.line(f"{times:4} x  {fault}: {told}")

@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    "A batch of the digits, as it should be."
    from work import batch
    root = tmp_path_factory.mktemp("undisturbed")/"grid"
    process = batch(root)
    told = process.communicate(timeout=3000)[0]
    assert process.returncode == 0, told[-3000:]
    return root
