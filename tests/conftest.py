"The mark `slow`, and the table of the faults that tests/faults has made."
FAULTS = []   # (fault, how often, what came of it)

def pytest_configure(config):
    config.addinivalue_line("markers", "slow: processes that are killed and started again; SEMISSL_FAULTS=full runs them at their full number")

def pytest_terminal_summary(terminalreporter):
    if FAULTS:
        terminalreporter.section("faults")
        for fault, times, told in FAULTS: terminalreporter.line(f"{times:4} x  {fault}: {told}")
