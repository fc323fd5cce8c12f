"""Draw what queries find in two generations of a lineage, one above the other.

    python -m eval.figures.generations lineages/emoji_resnet18-s0 --generations 1 10 -o found.png

The queries are drawn at random: what is shown is neither the best nor the worst. Right neighbours have a green frame
and a tick, wrong ones a red frame and a cross.
"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from ke_metric import Lineage
from ke_metric.arrays import IntArray
from ke_metric.report.vectors import LineageVectors

# In pixels.
PICTURE, FRAME, GAP, MARGIN, TEXT, BETWEEN = 88, 4, 10, 20, 164, 26
CELL = PICTURE + 2 * FRAME
STEP = CELL + GAP
DOTS_PER_INCH = 144
PAPER, INK, RIGHT, WRONG = "#ffffff", "#202124", "#1e8e4e", "#c9353f"


def main() -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lineage", type=Path)
    parser.add_argument("--generations", type=int, nargs=2, required=True, metavar=("EARLIER", "LATER"))
    parser.add_argument("--network", default="dense", help="dense when left out")
    parser.add_argument("--queries", type=int, default=4, help="4 when left out")
    parser.add_argument("--neighbours", type=int, default=6, help="6 when left out")
    parser.add_argument("--seed", type=int, default=0, help="of the queries that are drawn; 0 when left out")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    vectors = LineageVectors.open(Lineage(options.lineage))
    queries = drawn_queries(len(vectors.benchmark.query), options.queries, options.seed)
    sheet = draw(vectors, options.generations, options.network, queries, options.neighbours)
    sheet.quantize(256).save(options.output, optimize=True)
    print(f"{options.output}: queries {queries.tolist()}")


def drawn_queries(count: int, drawn: int, seed: int) -> IntArray:
    """Return positions of `drawn` of `count` queries, at random, ascending."""
    return np.sort(np.random.default_rng(seed).choice(count, drawn, replace=False))


def draw(
    vectors: LineageVectors, generations: Sequence[int], network: str, queries: IntArray, neighbours: int
) -> Image.Image:
    """Return the sheet: a row of every query and generation, the query at the left."""
    outcomes = [vectors.outcomes(number, network) for number in generations]
    height = MARGIN + len(queries) * (2 * STEP + BETWEEN)
    width = 2 * MARGIN + CELL + TEXT + neighbours * STEP
    sheet = Image.new("RGB", (width, height), PAPER)
    texts: list[tuple[str, int, int, str]] = []
    for row, query in enumerate(queries.tolist()):
        top = MARGIN + row * (2 * STEP + BETWEEN)
        sheet.paste(framed(vectors.picture("query", query), INK), (MARGIN, top + STEP // 2))
        for line, (number, found) in enumerate(zip(generations, outcomes, strict=True)):
            above = top + line * STEP
            texts.append((f"generation {number}", MARGIN + CELL + 16, above + CELL // 2, INK))
            for rank in range(neighbours):
                position, is_right = int(found.neighbors[query, rank]), bool(found.right[query, rank])
                left, color = MARGIN + CELL + TEXT + rank * STEP, RIGHT if is_right else WRONG
                sheet.paste(framed(vectors.picture("gallery", position), color), (left, above))
                texts.append(("✓" if is_right else "✗", left + CELL - 11, above + CELL - 13, color))
    return written_on(sheet, texts)


def framed(picture: Image.Image, color: str) -> Image.Image:
    """Return a picture as a square of CELL pixels with a frame."""
    whole = ImageOps.pad(picture, (PICTURE, PICTURE), Image.Resampling.LANCZOS, PAPER)
    return ImageOps.expand(whole, FRAME, color)


def written_on(sheet: Image.Image, texts: Sequence[tuple[str, int, int, str]]) -> Image.Image:
    """Return a sheet with texts: what is written, where in pixels, in which colour; marks lie on a white ground."""
    figure = Figure((sheet.width / DOTS_PER_INCH, sheet.height / DOTS_PER_INCH), dpi=DOTS_PER_INCH)
    figure.figimage(np.asarray(sheet))
    for text, left, top, color in texts:
        is_mark = len(text) == 1
        figure.text(
            left / sheet.width,
            1 - top / sheet.height,
            text,
            ha="center" if is_mark else "left",
            va="center",
            size=9,
            color=color,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5} if is_mark else None,
        )
    drawn = io.BytesIO()
    figure.savefig(drawn, format="raw", dpi=DOTS_PER_INCH)
    return Image.frombytes("RGBA", sheet.size, drawn.getvalue()).convert("RGB")


if __name__ == "__main__":
    main()
