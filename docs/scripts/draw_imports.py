"""Writes docs/images/imports.svg, a drawing of the imports between the folders of the package.

    python docs/scripts/draw_imports.py

Boxes are folders and top-level files, in layers: each imports only from layers below it. An arrow
is left out where a longer path of arrows implies it. The text in a box is the first sentence of its
docstring. A test compares the committed drawing with the output of `make_drawing`.
"""

import ast
import graphlib
import html
import pathlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "invnext_jax"
DRAWING = ROOT / "docs/images/imports.svg"

# Files with a separate box, because they import from layers above the one of their folder.
SEPARATE = (
    "planning.command_line",
    "planning.compiled_step",
    "planning.fitting",
    "planning.memory",
    "planning.plan",
    "planning.shapes",
    "synthetic_world.train_teacher",
    "weights.import_weights",
)
# Imported almost everywhere, so that their arrows would hide the others.
EVERYWHERE = (
    *("errors", "atomic_file", "field_checks", "file_lock", "json_file", "regular_file"),
    "sanitize",
)

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, LANE = 208, 66, 22, 46, 26

Graph = dict[str, set[str]]  # box -> the boxes that it imports


def read_imports() -> Graph:
    """Returns the imports between boxes, read from the source."""
    graph: Graph = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        box = _box_of(module)
        if box in EVERYWHERE or module == "__init__":
            continue
        targets = {_box_of(name) for name in _imported(ast.parse(path.read_text()))}
        graph.setdefault(box, set()).update(targets - {box, *EVERYWHERE})
    return graph


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE.name):
            for alias in node.names:
                yield f"{node.module}.{alias.name}".partition(".")[2]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith(f"{PACKAGE.name}."):
                    yield alias.name.partition(".")[2]


def _box_of(module: str) -> str:
    """Returns the name of the box that contains a module; `module` is relative to the package."""
    separate = (name for name in SEPARATE if f"{module}.".startswith(f"{name}."))
    return next(separate, module.partition(".")[0])


def reduce_edges(graph: Graph) -> Graph:
    """Removes the edges that a longer path implies."""
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    reachable: Graph = {}
    for box in order:
        targets = graph.get(box, set())
        reachable[box] = targets.union(*(reachable[target] for target in targets))
    return {
        box: {t for t in targets if not any(t in reachable[u] for u in targets - {t})}
        for box, targets in graph.items()
    }


def assign_layers(graph: Graph) -> dict[str, int]:
    """Returns the layer of each box: one above the highest box that it imports, or 0."""
    layers: dict[str, int] = {}
    for box in graphlib.TopologicalSorter(graph).static_order():
        layers[box] = 1 + max((layers[target] for target in graph.get(box, ())), default=-1)
    return layers


def order_layers(graph: Graph, layers: Mapping[str, int]) -> tuple[list[list[str]], Graph]:
    """Splits long edges with lanes and orders each layer, so that few edges cross.

    Returns:
      The names of each layer from left to right, and the edges between adjacent layers. A name with
      a ">" is a lane: the place where an edge passes a layer.
    """
    rows: list[list[str]] = [[] for _ in range(max(layers.values()) + 1)]
    for box in sorted(layers):
        rows[layers[box]].append(box)
    edges: Graph = {}
    for box in sorted(graph):
        for target in sorted(graph[box]):
            last = box
            for layer in range(layers[box] - 1, layers[target], -1):
                lane = f"{box}>{target}>{layer}"
                rows[layer].append(lane)
                edges.setdefault(last, set()).add(lane)
                last = lane
            edges.setdefault(last, set()).add(target)
    backward: Graph = {}
    for start, ends in edges.items():
        for end in ends:
            backward.setdefault(end, set()).add(start)
    for sweep in range(24):
        downward = sweep % 2 == 0
        neighbors = backward if downward else edges
        layer_order = range(len(rows) - 2, -1, -1) if downward else range(1, len(rows))
        for layer in layer_order:
            other = rows[layer + 1 if downward else layer - 1]
            place = {name: (i + 0.5) / len(other) for i, name in enumerate(other)}
            row = rows[layer]
            own = {name: (i + 0.5) / len(row) for i, name in enumerate(row)}
            rows[layer] = sorted(row, key=lambda n: (_mean(n, neighbors, place, own), n))  # noqa: B023
    return rows, edges


def _mean(
    name: str, neighbors: Graph, place: Mapping[str, float], own: Mapping[str, float]
) -> float:
    places = [place[other] for other in neighbors.get(name, ())]
    return round(sum(places) / len(places), 9) if places else own[name]


def place_names(rows: Sequence[Sequence[str]]) -> dict[str, tuple[int, int]]:
    """Returns the center (x, y) in pixels of each box and lane; rows are centered."""
    widths = [sum(_width(name) + GAP_X for name in row) for row in rows]
    positions = {}
    for layer, row in enumerate(rows):
        x = (max(widths) - widths[layer]) // 2 + GAP_X // 2
        y = (len(rows) - 1 - layer) * (BOX_HEIGHT + GAP_Y) + BOX_HEIGHT // 2 + 8
        for name in row:
            positions[name] = (x + _width(name) // 2, y)
            x += _width(name) + GAP_X
    return positions


def _width(name: str) -> int:
    return LANE if ">" in name else BOX_WIDTH


def read_sentence(box: str) -> str:
    """Returns the first sentence of the docstring of a folder or file."""
    path = PACKAGE / box.replace(".", "/")
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    text = " ".join((ast.get_docstring(ast.parse(source)) or "").split())
    return text.split(". ")[0].rstrip(".")


def make_drawing() -> str:
    """Returns the text of docs/images/imports.svg."""
    graph = reduce_edges(read_imports())
    rows, edges = order_layers(graph, assign_layers(graph))
    positions = place_names(rows)
    width = max(x for x, _ in positions.values()) + BOX_WIDTH // 2 + GAP_X
    height = max(y for _, y in positions.values()) + BOX_HEIGHT // 2 + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#667"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for start in sorted(edges):
        for end in sorted(edges[start]):
            parts.append(_draw_edge(start, end, positions))
    for name in sorted(positions):
        if ">" not in name:
            parts.append(_draw_box(name, *positions[name]))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _draw_edge(start: str, end: str, positions: Mapping[str, tuple[int, int]]) -> str:
    (x0, y0), (x1, y1) = positions[start], positions[end]
    half = BOX_HEIGHT // 2
    y0, y1 = y0 + half, y1 - half
    bend = GAP_Y // 2
    path = f"M{x0} {y0}C{x0} {y0 + bend} {x1} {y1 - bend} {x1} {y1}"
    tip = "" if ">" in end else ' marker-end="url(#tip)"'
    if ">" in end:
        path += f"V{y1 + BOX_HEIGHT}"
    return f'<path d="{path}" fill="none" stroke="#99a" stroke-width="1.3"{tip}/>'


def _draw_box(name: str, x: int, y: int) -> str:
    is_folder = (PACKAGE / name).is_dir()
    left, top = x - BOX_WIDTH // 2, y - BOX_HEIGHT // 2
    fill = "#e8eefc" if is_folder else "#f7f3e6"
    title = f"{name}/" if is_folder else f"{name.replace('.', '/')}.py"
    lines = textwrap.wrap(read_sentence(name), 34, max_lines=3, placeholder=" ...")
    size = 13 if len(title) < 24 else 10.5
    text = "".join(
        f'<text x="{left + 8}" y="{top + 30 + 12 * i}" font-size="10" fill="#333">'
        f"{html.escape(line, quote=False)}</text>"
        for i, line in enumerate(lines)
    )
    return (
        f'<rect x="{left}" y="{top}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="5" '
        f'fill="{fill}" stroke="#667"/>'
        f'<text x="{left + 8}" y="{top + 16}" font-size="{size}" font-weight="bold">{title}</text>'
        f"{text}"
    )


if __name__ == "__main__":
    DRAWING.write_text(make_drawing())
    print(f"Wrote {DRAWING}")
