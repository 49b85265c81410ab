"""How a scenario is cut, as pictures and a table, from what :func:`fedsim.cut.describe` saved."""

import math
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsim.report.plots import COLORS, STYLE, WIDTH, Plot, canvas, heat_map, legend_below

FACTS = {
    "smallest_client": ("smallest client", "examples"),
    "largest_client": ("largest client", "examples"),
    "classes_per_client": ("classes per client", "mean"),
    "fewest_classes": ("fewest classes of a client", ""),
    "label_skew": ("label skew", "0: all alike, 1: nothing in common"),
    "class_overlap": ("class overlap of two clients", "0 to 1"),
    "shared_examples": ("examples held by several clients", "share"),
}
Cut = dict[str, Any]


def cut_facts(cut: Cut) -> list[tuple[str, str]]:
    """The numbers that say how hard a cut is, in words."""
    lines = [
        ("clients", f"{cut['num_clients']}"),
        ("experiences", f"{cut['num_experiences']}"),
        ("classes", f"{cut['num_classes']}"),
    ]
    for key, (title, unit) in FACTS.items():
        value = cut["facts"][key]
        text = f"{value:.2f}" if isinstance(value, float) else str(value)
        lines.append((title, f"{text} ({unit})" if unit else text))
    graph = cut.get("graph")
    if graph:
        share = graph["lost_edges"] / max(graph["edges"], 1)
        homophily = [c["homophily"] for c in graph["clients"] if c["homophily"] is not None]
        lines += [("links of the graph", str(graph["edges"]))]
        lines += [("links that no client sees", f"{graph['lost_edges']} ({share:.1%})")]
        if homophily:
            lines += [("homophily of the subgraphs", f"{np.mean(homophily):.2f} (mean)")]
    return lines


def labels_plot(cut: Cut, name: str = "labels") -> Plot:
    """Training examples of every class at every client, as a heat map."""
    labels = np.asarray(cut["labels"], dtype=float)
    clients, classes = labels.shape
    figure, axes = canvas(height=min(1.0 + 0.24 * clients, 5.0))
    fits = clients <= 25 and classes <= 12 and labels.max() < 1000
    heat_map(axes, labels, top=None, digits=0 if fits else None, first=0)
    names = cut.get("class_names") or []
    if len(names) == classes and classes <= 20:
        long = max(map(len, names)) > 2
        axes.set_xticks(range(classes), names)
        axes.tick_params(axis="x", labelrotation=90 if long else 0)
    axes.set_xlabel("class")
    axes.set_ylabel("client")
    left_out = cut["num_clients"] - clients
    caption = "Training examples of each class at each client, over all experiences."
    if left_out:
        caption += f" The first {clients} of {cut['num_clients']} clients are shown."
    return Plot(name=name, title="Labels per client", caption=caption, figure=figure)


def timeline_plot(cut: Cut, name: str = "timeline") -> Plot:
    """Which experience every client is in, over the rounds."""
    rows = cut["timeline"]
    figure, axes = canvas(height=min(1.1 + 0.2 * len(rows), 5.0))
    axes.grid(visible=False)
    used: dict[int, str] = {}
    for row, stretches in enumerate(rows):
        for first, last, experience in stretches:
            color = _shade(experience, cut["num_experiences"])
            used[experience] = color
            axes.barh(row, last - first + 1, left=first - 0.5, height=0.86, color=color)
            if cut["num_experiences"] <= 20 and len(rows) <= 25:
                wide = (last - first + 1) / cut["num_rounds"] > 0.04
                if wide:
                    axes.text(
                        (first + last) / 2, row, str(experience + 1), ha="center", va="center",
                        color="white", fontsize=7.5,
                    )  # fmt: skip
    step = max(1, math.ceil(len(rows) / 12))
    axes.set_yticks(range(0, len(rows), step))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0.5, cut["num_rounds"] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round")
    axes.set_ylabel("client")
    caption = "The number on a bar is the experience the client is in; white: not joined yet."
    return Plot(name=name, title="Time line", caption=caption, figure=figure)


def links_plot(cut: Cut, name: str = "links") -> Plot:
    """Links inside every client's subgraph and links that its nodes lost."""
    clients = cut["graph"]["clients"]
    x = np.arange(len(clients))
    figure, axes = canvas(height=2.6)
    kept = np.array([c["edges"] for c in clients])
    lost = np.array([c["cut_edges"] for c in clients])
    axes.bar(x, kept, color=COLORS[0], label="inside")
    axes.bar(x, lost, bottom=kept, color=COLORS[1], label="to other clients, not seen")
    step = max(1, math.ceil(len(clients) / 12))
    axes.set_xticks(x[::step])
    axes.set_xlabel("client")
    axes.set_ylabel("links")
    axes.grid(visible=False, axis="x")
    legend_below(figure, ["inside", "to other clients"])
    caption = "Links of each client's nodes; the orange ones were cut."
    return Plot(name=name, title="Links", caption=caption, figure=figure)


def subgraphs_plot(cut: Cut, name: str = "subgraphs") -> Plot:
    """The first clients' subgraphs, coloured by class."""
    import networkx as nx

    drawings = cut["drawings"]
    columns = min(3, len(drawings))
    rows = math.ceil(len(drawings) / columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.3 + 1.55 * rows), layout="constrained")
    palette = mpl.colormaps["tab10" if cut["num_classes"] <= 10 else "tab20"]
    for i, drawing in enumerate(drawings):
        axes = figure.add_subplot(rows, columns, i + 1)
        graph = nx.Graph()
        graph.add_nodes_from(range(len(drawing["classes"])))
        graph.add_edges_from(drawing["links"])
        places = nx.spring_layout(graph, seed=0, iterations=30)
        points = np.array([places[node] for node in graph.nodes])
        gap = np.full(2, np.nan)  # lifts the pen, so that all links are one line
        strokes = [point for a, b in graph.edges for point in (points[a], points[b], gap)]
        if strokes:
            axes.plot(*np.array(strokes).T, color="#bbbbbb", lw=0.4, zorder=1)
        colors = [palette(c % palette.N) for c in drawing["classes"]]
        axes.scatter(points[:, 0], points[:, 1], s=5, c=colors, zorder=2, linewidths=0)
        axes.set_title(f"client {i}", fontsize=8.5)
        axes.set_axis_off()
    caption = (
        "Nodes coloured by class; of large subgraphs the nodes nearest to the best linked one."
    )
    return Plot(name=name, title="Subgraphs", caption=caption, figure=figure)


def cut_plots(cut: Cut, name: str) -> list[Plot]:
    """Every picture of a cut."""
    plots = [labels_plot(cut, f"labels-{name}")]
    if any(len(stretches) != 1 or stretches[0][0] > 1 for stretches in cut["timeline"]):
        plots.append(timeline_plot(cut, f"timeline-{name}"))
    if cut.get("graph"):
        plots.append(links_plot(cut, f"links-{name}"))
    if cut.get("drawings"):
        plots.append(subgraphs_plot(cut, f"subgraphs-{name}"))
    return plots


def _shade(experience: int, count: int) -> str:
    if count <= len(COLORS):
        return COLORS[experience]
    red, green, blue, _ = mpl.colormaps["viridis"](experience / max(count - 1, 1))
    return f"#{int(red * 255):02x}{int(green * 255):02x}{int(blue * 255):02x}"
