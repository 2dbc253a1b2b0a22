"""Draw the method: ``python docs/figures/method.py`` writes method-light.svg and method-dark.svg.

Plain SVG, written by hand here, so that it needs nothing and is the same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 760, 662
N, D, K, PHI, P = 112, 92, 26, 9, 13  # sides of the drawn matrices, in pixels
TASKS = 3


@dataclass(frozen=True)
class Palette:
    """Colours of one theme."""

    name: str
    ink: str
    faint: str
    line: str
    basis: str
    tasks: tuple[str, str, str]
    new: str


LIGHT = Palette(
    "light",
    "#1f2430",
    "#5c6370",
    "#9aa1ad",
    "#cfd8ea",
    ("#3f6fd1", "#2f9c79", "#8b5fc7"),
    "#e07b1a",
)
DARK = Palette(
    "dark", "#e6e9f0", "#a5acba", "#6d7585", "#3b4a68", ("#7fa4f2", "#5cc9a3", "#b792ea"), "#f2a04a"
)


class Drawing:
    """An SVG in the making."""

    def __init__(self, palette: Palette) -> None:
        self.c = palette
        self.parts: list[str] = []

    def box(
        self, x: float, y: float, w: float, h: float, fill: str, *, dashed: bool = False
    ) -> None:
        dash = ' stroke-dasharray="3 2"' if dashed else ""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="1.5" fill="{fill}" '
            f'stroke="{self.c.line}" stroke-width="1"{dash}/>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        faint: bool = False,
        mid: bool = True,
        size: int = 13,
    ) -> None:
        """``_i`` is a subscript, ``^T`` a superscript."""
        body = escape(text)
        for mark, shift in (("_", "3"), ("^", "-5")):
            head, *tails = body.split(mark)
            body = head + "".join(
                f'<tspan dy="{shift}" font-size="75%">{t[0]}</tspan>'
                f'<tspan dy="{-int(shift)}">{t[1:] or chr(0x200B)}</tspan>'
                for t in tails
            )
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" '
            f'text-anchor="{"middle" if mid else "start"}" '
            f'fill="{self.c.faint if faint else self.c.ink}">{body}</text>'
        )

    def title(self, y: float, number: int, text: str, note: str) -> None:
        self.parts.append(
            f'<text x="12" y="{y:g}" font-size="15" font-weight="600" fill="{self.c.ink}">'
            f'{number}  {escape(text)}<tspan dx="10" font-size="13" font-weight="400" '
            f'fill="{self.c.faint}">{escape(note)}</tspan></text>'
        )

    def arrow(self, x: float, y: float, length: float, text: str) -> None:
        end = x + length
        self.parts.append(
            f'<path d="M{x:g} {y:g}H{end:g}m-6 -4l6 4l-6 4" fill="none" stroke="{self.c.faint}" '
            'stroke-width="1.5"/>'
        )
        self.text(x + length / 2, y - 9, text)

    def rule(self, y: float) -> None:
        self.parts.append(
            f'<path d="M12 {y:g}H{WIDTH - 12}" stroke="{self.c.line}" stroke-width=".5"/>'
        )

    def svg(self) -> str:
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            'font-family="Inter, Roboto, Helvetica, Arial, sans-serif">\n'
            "<title>Updates of many tasks as a common left basis, one small core per task and a "
            "common right basis; a new task trains coefficients and temporary directions; a merge "
            f"enlarges, truncates and rotates.</title>\n{body}\n</svg>\n"
        )


def initialise(d: Drawing, top: float) -> None:
    """Many updates on the left; two bases and many cores on the right."""
    d.title(top, 1, "Initialise", "one subspace per layer, common to all tasks")
    y = top + 40
    for i in reversed(range(TASKS)):
        d.box(40 + 12 * i, y - 9 * i, D, N, d.c.tasks[i])
    d.text(40 + D / 2, y + N + 20, "updates dW_i = s_i B_i A_i")
    d.text(40 + D / 2, y + N + 37, "n × d, one per task", faint=True)
    d.text(212, y + N / 2 + 7, "≈", size=26)
    d.box(282, y, K, N, d.c.basis)
    d.text(295, y + N + 20, "left basis")
    d.text(295, y + N + 37, "n × k, common", faint=True)
    for i in range(TASKS):
        d.box(392 + 42 * i, y + N / 2 - K / 2, K, K, d.c.tasks[i])
        d.text(392 + 42 * i + K / 2, y + N / 2 - K / 2 - 8, f"C_{i + 1}")
    d.text(447, y + N + 20, "cores C_i = E_i F_i^T")
    d.text(447, y + N + 37, "k × k, tiny, one per task", faint=True)
    d.box(578, y + N / 2 - K / 2, D + 20, K, d.c.basis)
    d.text(634, y + N + 20, "right basis^T")
    d.text(634, y + N + 37, "k × d, common", faint=True)


def learn(d: Drawing, top: float) -> None:
    """Frozen bases, trained coefficients and temporary directions."""
    d.title(top, 2, "Learn a new task from its data", "old tasks are neither read nor changed")
    y = top + 34
    middle = y + N / 2
    d.text(86, middle - 22, "dW of the new task")
    d.text(86, middle - 3, "n × d, rank ≤ p", faint=True)
    d.text(170, middle + 3, "=", size=22)
    d.box(282, y, K, N, d.c.basis, dashed=True)
    d.box(282 + K, y, PHI, N, d.c.new)
    d.text(299, y + N + 20, "frozen basis + φ")
    d.text(299, y + N + 37, "temporary directions", faint=True)
    side = K + PHI
    d.box(398, middle - side / 2, P, side, d.c.new)
    d.text(398 + P / 2, middle - side / 2 - 8, "E, e")
    d.box(440, middle - P / 2, side, P, d.c.new)
    d.text(440 + side / 2, middle - P / 2 - 8, "F^T, f^T")
    d.text(440, y + N + 20, "coefficients")
    d.text(440, y + N + 37, "(k + φ) × p a side", faint=True)
    d.box(578, middle - side / 2, D + 20, K, d.c.basis, dashed=True)
    d.box(578, middle - side / 2 + K, D + 20, PHI, d.c.new)
    d.text(634, y + N + 20, "the same on the right")
    d.box(40, y + N - 4, 12, 12, d.c.new)
    d.text(58, y + N + 7, "trained", mid=False)
    d.box(40, y + N + 16, 12, 12, d.c.basis, dashed=True)
    d.text(58, y + N + 27, "frozen", mid=False)


def merge(d: Drawing, top: float) -> None:
    """Enlarge, truncate, rotate."""
    d.title(top, 3, "Merge, without data", "every task is re-expressed; at the cap k nothing grows")
    y = top + 34
    side = K + PHI
    _space(d, 40, y, temporary=True, cores=side)
    d.text(130, y + N + 20, "enlarge")
    d.text(130, y + N + 37, "old cores zero-padded, exact", faint=True)
    d.arrow(236, y + N / 2, 62, "truncate")
    _space(d, 326, y, temporary=False, cores=K)
    d.text(408, y + N + 20, "best k directions")
    d.text(408, y + N + 37, "of all the cores, weighed", faint=True)
    d.arrow(504, y + N / 2, 62, "rotate")
    d.box(600, y, K, N, d.c.basis)
    d.box(600 + K + 16, y, D, K, d.c.basis)
    for i, colour in enumerate((*d.c.tasks, d.c.new)):
        x, row = 600 + K + 16 + 50 * (i % 2), y + K + 16 + 36 * (i // 2)
        d.box(x, row, K, K, colour)
    d.text(664, y + N + 20, "new bases, new cores")
    d.text(664, y + N + 37, "the ledger notes each loss", faint=True)


def _space(d: Drawing, x: float, y: float, *, temporary: bool, cores: float) -> None:
    """A left basis and the cores of the known tasks and of the new one."""
    d.box(x, y, K, N, d.c.basis)
    if temporary:
        d.box(x + K, y, PHI, N, d.c.new)
    for i, colour in enumerate((*d.c.tasks, d.c.new)):
        left, row = x + K + PHI + 20 + 56 * (i % 2), y + 12 + 52 * (i // 2)
        new = i == TASKS
        if temporary and not new:
            d.box(left, row, cores, cores, "none", dashed=True)
        d.box(left, row, cores if new else K, cores if new else K, colour)


def draw(palette: Palette) -> str:
    """The whole figure."""
    d = Drawing(palette)
    initialise(d, 24)
    d.rule(224)
    learn(d, 250)
    d.rule(440)
    merge(d, 466)
    return d.svg()


def main() -> None:
    for palette in (LIGHT, DARK):
        path = Path(__file__).with_name(f"method-{palette.name}.svg")
        path.write_text(draw(palette), encoding="utf-8")


if __name__ == "__main__":
    main()
