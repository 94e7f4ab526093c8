"The report of a batch as W&B's own library writes it, without an account: only the number of the project is made up."

import json
import pytest

interface = pytest.importorskip("wandb_workspaces.reports.v2.interface")
from semissl.many.curves import CURVES
from semissl.many.report import PICTURES, wandb_report


def test_the_report_is_one_that_wandb_would_take(monkeypatch):
    asked = []

    def server(api, query, variables):
        asked.append(variables)
        return {"project": {"internalId": "1"}}

    monkeypatch.setattr(interface, "_get_api", lambda: None)
    monkeypatch.setattr(interface, "execute_graphql", server)
    report = wandb_report(
        ["# Digits", "4 runs.", "| objective | n |\n| --- | ---: |\n| vicreg | 2 |"], "project", "somebody", "grid"
    )
    written = report._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)
    assert asked == [{"entityName": "somebody", "projectName": "project"}] and report.title == "Digits"
    for word in [
        "4 runs.",
        "| vicreg | 2 |",
        "metrics.test_accuracy",
        "trainer/global_step",
        *CURVES,
        *(f"figures/{key}" for key in PICTURES),
    ]:
        assert word in written, word
    grid = next(block for block in json.loads(written)["blocks"] if block["type"] == "panel-grid")
    filters = json.dumps(grid["metadata"]["runSets"][0]["filters"])
    assert '"group"' in filters and '"grid"' in filters, filters
