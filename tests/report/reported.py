"""A lineage with all that a training leaves, its report, and what a page of it shows."""

import json
from dataclasses import dataclass
from html.parser import HTMLParser

from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.report.lineage_report import gather_report
from ke_metric.report.page import render_page
from ke_metric.split.hypotheses import mean_magnitudes

HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    '"><svg onload=alert(2)>',
    "{{ 7 * 7 }}",
    "@dense",
    "ordinary & plain",
    "'; DROP TABLE",
)
"""Names of classes."""


def record_training(lineage, epochs=3):
    """Write what a training leaves beside weights and scores: a log, sizes of the weights, versions, seconds."""
    networks = LineageNetworks(lineage.recipe, len(lineage.class_names))
    for number in lineage.numbers:
        folder = lineage.generation_folder(number)
        network, plan = networks.restore(lineage.load(number))
        card = json.loads((folder / "scorecard.json").read_text())
        card["magnitudes"] = mean_magnitudes(network, plan)
        (folder / "scorecard.json").write_text(json.dumps(card))
        records = [
            {"generation": number, "epoch": epoch, "loss": 1 / (number + epoch), "spread": 0.5, "images": 40}
            for epoch in range(1, epochs + 1)
        ]
        (folder / "training.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        provenance = json.loads((folder / "provenance.json").read_text())
        provenance["seconds"] = {"training": 12.5, "scoring": 0.5}
        provenance["training"] = {"device": "cpu", "precision": "fp32", "ties": "mean over all orders"}
        provenance["environment"] = {"versions": {"torch": f"9.{number}", "numpy": "2.0"}, "cores": 2}
        (folder / "provenance.json").write_text(json.dumps(provenance))
    return lineage


@dataclass
class Grown:
    """A lineage, its report, and the page of it."""

    lineage: object
    gathered: object
    page: str

    @classmethod
    def of(cls, lineage):
        gathered = gather_report([lineage])
        return cls(lineage, gathered, render_page(gathered.report))

    def section(self, name):
        return next(section for section in self.gathered.report.sections if section.name == name)


class Page(HTMLParser):
    """What is shown in a page: numbers by their key, and the text."""

    def __init__(self, text):
        super().__init__()
        self.numbers, self.text, self.tags, self._data = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "data":
            self._data = dict(attributes)

    def handle_endtag(self, tag):
        if tag == "data":
            self._data = None

    def handle_data(self, data):
        if self._data is not None:
            self.numbers.append((self._data.get("data-key"), float(self._data["value"]), data))
        self.text.append(data)
