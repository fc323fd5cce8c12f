"""Maps of the embeddings: vectors laid out in two dimensions, coloured by class."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ke_metric.arrays import FloatArray, IntArray
from ke_metric.report.charts import MOST_CLASSES, scatter_chart
from ke_metric.report.page_parts import Chart, PageSection, counted
from ke_metric.report.retrieved_sections import Retrieved, called, warnings_of

MOST_POINTS = 700
OTHERS = "all other classes"


def map_section(retrieved: Retrieved) -> PageSection:
    """Return a map of the queries for the first and the last generation whose vectors can be had."""
    name = retrieved.main[1]
    numbers = [number for number, each in retrieved.networks if each == name]
    networks = [(number, name) for number in dict.fromkeys((min(numbers), max(numbers)))]
    query = retrieved.vectors.benchmark.query
    chosen = chosen_positions(query.labels)
    series = legend(query.labels[chosen], query.class_names)
    charts, told = [], ""
    whole = counted(len(query), retrieved.kind)
    for network in networks:
        vectors = retrieved.vectors.vectors(*retrieved.stored(*network))[0]
        places, told = laid_out(vectors, chosen)
        charts.append(_chart(retrieved, network, chosen, places, series, axes=told.split()[0]))
    some = f"{len(chosen):,} of {whole}" if len(chosen) < len(query) else f"all {whole}"
    lead = [
        f"Laid out by {told}: {some}. {min(len(series), MOST_CLASSES)} classes have a colour of their own.",
        "Two dimensions show a part of what many hold: what lies together here need not be near each other.",
    ]
    return PageSection("map", "Map of the embeddings", lead, charts, warnings_of(retrieved.vectors))


def chosen_positions(labels: IntArray) -> IntArray:
    """Return at most `MOST_POINTS` positions, whole classes in the order of their numbers in equal steps."""
    if len(labels) <= MOST_POINTS:
        return np.arange(len(labels))
    classes = np.unique(labels)
    sizes = np.bincount(labels)[classes]
    # The share of the classes that fits, evenly taken from all of them.
    count = max(2, int(len(classes) * MOST_POINTS / sizes.sum()))
    taken = classes[np.linspace(0, len(classes) - 1, min(count, len(classes))).astype(np.int64)]
    return np.flatnonzero(np.isin(labels, taken))[:MOST_POINTS]


def legend(labels: IntArray, class_names: Sequence[str]) -> dict[int, str]:
    """Return label to name of the classes with a colour: the largest ones; of equals, the first."""
    classes, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MOST_CLASSES]
    return {int(classes[each]): class_names[int(classes[each])] for each in order}


def laid_out(vectors: FloatArray, chosen: IntArray) -> tuple[FloatArray, str]:
    """Return places [n, 2] of the chosen vectors, scaled into [0, 1], and by what they were found.

    UMAP is taken where it is installed. PCA is fitted to all vectors, and says how much of their variance it shows.

    Args:
        vectors: All vectors [N, D].
        chosen: Positions [n] of those that are shown.
    """
    if importlib.util.find_spec("umap") is not None and len(chosen) > 15:
        # By its name: nobody has to install it for this, and no extra asks for it.
        umap = importlib.import_module("umap")
        places, told = np.asarray(umap.UMAP(random_state=0).fit_transform(vectors[chosen])), "UMAP"
    else:
        places, told = _by_pca(vectors, chosen)
    low, high = places.min(axis=0), places.max(axis=0)
    return ((places - low) / np.where(high > low, high - low, 1)).astype(np.float32), told


def _by_pca(vectors: FloatArray, chosen: IntArray) -> tuple[FloatArray, str]:
    """Return the places of the chosen vectors; where there is nothing to lay out in a dimension, all at 0 in it."""
    places = np.zeros((len(chosen), 2), np.float32)
    if not np.ptp(vectors, axis=0).any():
        return places, "PCA (there is no variance)"
    from sklearn.decomposition import PCA

    pca = PCA(n_components=min(2, *vectors.shape), svd_solver="full").fit(vectors)
    places[:, : pca.n_components_] = pca.transform(vectors[chosen])
    return places, f"PCA ({100 * float(pca.explained_variance_ratio_.sum()):.0f} % of the variance)"


def _chart(
    retrieved: Retrieved,
    network: tuple[int, str],
    chosen: IntArray,
    places: FloatArray,
    series: Mapping[int, str],
    *,
    axes: str,
) -> Chart:
    query = retrieved.vectors.benchmark.query
    labels = query.labels[chosen]
    has_others = bool(np.isin(labels, list(series), invert=True).any())
    # The first series lies under all others, and its points are listed first.
    colors = {OTHERS: "@other"} if has_others else {}
    names = {label: name if name != OTHERS else f"{name} (a class)" for label, name in series.items()}
    colors |= {name: f"@class-{position}" for position, name in enumerate(names.values())}
    rows: list[dict[str, Any]] = [
        {
            "x": round(float(x), 3),
            "y": round(float(y), 3),
            "series": names.get(int(label), OTHERS),
            "label": query.class_names[int(label)],
            "name": query.keys[int(position)],
        }
        for position, label, (x, y) in zip(chosen, labels, places, strict=True)
    ]
    rows.sort(key=lambda row: row["series"] != OTHERS)
    title = f"Map, {called(network)}"
    what = f"{counted(len(rows), retrieved.kind)} by {axes}, {called(network)}"
    described = f"Map of {what}; coloured: {', '.join(names.values())}."
    specification = scatter_chart(rows, colors, axes=axes)
    return Chart(f"map-generation-{network[0]}", title, described, specification, colors)
