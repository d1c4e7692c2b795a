"""How the page looks: Gradio's Monochrome made calmer, and the colours of `dpexplore.plots` as CSS variables."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import plotly
from gradio.themes import Base, Monochrome
from gradio.themes.utils import colors, sizes
from gradio.themes.utils.fonts import LocalFont
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route

from dpexplore.plots import COLOURS, DASHES
from dpexplore.shipped import ASSETS

PLOTLY_JS = Path(plotly.__path__[0]) / "package_data" / "plotly.min.js"
OWN = ("charts", "geometry", "microscope", "slots", "share", "runs", "compare", "page", "first-minute")
SCRIPTS = (ASSETS / "view.js", PLOTLY_JS, *(ASSETS / f"{name}.js" for name in OWN))
STYLES = (ASSETS / "page.css", ASSETS / "strings.css", ASSETS / "experiments.css", ASSETS / "compare.css")


def theme() -> Base:
    """Monochrome passes axe's contrast rules in light and dark; only shapes, type and greys are changed."""
    return Monochrome(
        neutral_hue=colors.stone,
        primary_hue=colors.stone,
        radius_size=sizes.radius_md,
        spacing_size=sizes.spacing_sm,
        text_size=sizes.text_sm,
        font=[LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"],
        font_mono=[LocalFont("IBM Plex Mono", weights=(400, 700)), "ui-monospace", "monospace"],
    ).set(
        body_background_fill="#F6F5F1",
        body_background_fill_dark="#121316",
        body_text_color="#1C1C1A",
        body_text_color_dark="#EDECE8",
        body_text_color_subdued="#5B5952",
        body_text_color_subdued_dark="#A9ABB2",
        background_fill_primary="#FFFFFF",
        background_fill_primary_dark="#1A1C20",
        background_fill_secondary="#F1F0EB",
        background_fill_secondary_dark="#22252A",
        block_background_fill="#FFFFFF",
        block_background_fill_dark="#1A1C20",
        border_color_primary="#DDDBD3",
        border_color_primary_dark="#34373E",
        block_border_width="0px",
        block_border_width_dark="0px",
        block_shadow="none",
        block_shadow_dark="none",
        block_padding="2px 0px",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_title_text_weight="500",
        block_title_text_color="#45433D",
        block_title_text_color_dark="#C9CAD0",
        input_background_fill="#F6F5F1",
        input_background_fill_dark="#24272D",
        input_border_color="#CFCDC4",
        input_border_color_dark="#454952",
        input_border_width="1px",
        button_border_width="1px",
        button_primary_background_fill="#1C1C1A",
        button_primary_background_fill_hover="#3A3934",
        button_primary_background_fill_dark="#EDECE8",
        button_primary_background_fill_hover_dark="#FFFFFF",
        button_primary_text_color="#FFFFFF",
        button_primary_text_color_dark="#16171A",
        button_primary_border_color="#1C1C1A",
        button_primary_border_color_dark="#EDECE8",
        button_secondary_border_color="#B9B6AB",
        button_secondary_border_color_dark="#565A64",
        button_secondary_background_fill="#FFFFFF",
        button_secondary_background_fill_dark="#22252A",
        button_secondary_text_color="#1C1C1A",
        button_secondary_text_color_dark="#EDECE8",
        button_secondary_text_color_hover="#1C1C1A",
        button_secondary_text_color_hover_dark="#FFFFFF",
        checkbox_label_background_fill_selected_dark="#EDECE8",
        checkbox_label_text_color_selected_dark="#16171A",
        checkbox_label_border_color="#DDDBD3",
        checkbox_label_border_color_dark="#454952",
        checkbox_label_border_width="1px",
        slider_color="#5B5952",
        slider_color_dark="#B9BBC2",
    )


def colour_css() -> str:
    """The roles' colours as CSS variables, for light and for dark: the only way they enter the page."""
    light = "".join(f"--dpx-{role}:{pair[0]};" for role, pair in COLOURS.items())
    dark = "".join(f"--dpx-{role}:{pair[1]};" for role, pair in COLOURS.items())
    dashes = "".join(f"--dpx-{role}-dash:{dash};" for role, dash in DASHES.items())
    return f":root{{{light}{dashes}}}\n.dark{{{dark}}}\n"


def script_tags() -> str:
    """What charts and page need before they run; plotly.js comes from the installed plotly package."""
    # The time of change in the address keeps a browser from running last week's script out of its cache.
    return "".join(f'<script src="scripts/{path.name}?v={path.stat().st_mtime_ns}"></script>' for path in SCRIPTS)


def script_routes() -> list[Route]:
    """Where the page finds them: addresses that do not tell where they lie on the server."""
    return [Route(f"/scripts/{path.name}", partial(_send, path)) for path in SCRIPTS]


async def _send(path: Path, _request: Request) -> FileResponse:
    return FileResponse(path, media_type="text/javascript")


def css() -> str:
    return colour_css() + "".join(path.read_text(encoding="utf-8") for path in STYLES)
