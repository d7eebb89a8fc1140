"""Self-contained HTML pages: no script, no network, every picture inside the page."""

import base64
import io
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATES = Path(__file__).parent / "templates"
_INK = "#7d838c"  # reads on light and on dark paper


def render(template_name: str, **context: Any) -> str:
    """The page of a template in templates/. Text in `context` is escaped; a name missing from it is an error."""
    return _environment().get_template(template_name).render(**context)


def markup(html: str) -> Markup:
    """HTML that `render` made before, to be put into a page as it is."""
    return Markup(html)  # noqa: S704  made by the same templates, which escape what they are given


def figure_uri(figure: "Figure", kind: Literal["svg", "png"] = "svg") -> str:
    """The figure as a data URI for an image's src, on transparent ground, the same bytes for the same figure.

    Changes the figure: its text and lines take an ink that reads in light and in dark mode.
    """
    import matplotlib  # half a second, for which a page without figures need not wait

    _take_ink(figure)
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "kshot"}):
        figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return _data_uri("image/svg+xml" if kind == "svg" else "image/png", buffer.getvalue())


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["sentence"] = lambda text: text[:1].upper() + text[1:]  # Jinja's capitalize lowers the rest
    environment.filters["percent"] = lambda fraction, digits=2: f"{100 * fraction:.{digits}f}"
    return environment


def _take_ink(figure: "Figure") -> None:
    figure.patch.set_alpha(0)
    legends = [*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()))]
    for legend in legends:
        legend.get_frame().set_alpha(0)
        for text in legend.get_texts():
            text.set_color(_INK)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
        axes.title.set_color(_INK)
        axes.tick_params(colors=_INK, which="both")
        for spine in axes.spines.values():
            spine.set_edgecolor(_INK)
        for axis in (axes.xaxis, axes.yaxis):
            axis.label.set_color(_INK)
            axis.offsetText.set_color(_INK)


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
