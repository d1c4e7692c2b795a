"""The Chromium that browser tests and pictures are made with."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

PATIENCE = 120_000
"""Milliseconds for what a busy machine of two cores may take."""
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_chromium() -> str | None:
    """Path of `DPEXPLORE_CHROMIUM`, or of the first Chromium or Chrome on the PATH; None if there is none."""
    named = os.environ.get("DPEXPLORE_CHROMIUM")
    return named or next((path for path in map(shutil.which, NAMES) if path), None)


def chromium_path() -> str:
    """The same, where it is needed. RuntimeError saying how to get one."""
    path = find_chromium()
    if path is None:
        raise RuntimeError("No Chromium was found: install one, or name it in DPEXPLORE_CHROMIUM.")
    return path


def never_ending(page: Page) -> None:
    """Set the page to runs that end only when they are stopped."""
    fold = page.locator("#advanced > button")
    fold.click()
    for selector, number in (("#knob-patience input", "0"), ("#steps input", "100000")):
        page.fill(selector, number)
        page.keyboard.press("Tab")
    fold.click()
