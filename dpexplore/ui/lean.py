"""Without what Gradio does for each session and each event and this page does not use.

For a session, a program's single question included, it describes every component of the page: a quarter of a second of
the loop that answers everybody, and 0.8 MiB. Only its deep links read that, and the page has links of its own. At the
end of an event it tabulates the last ten thousand events for a dashboard, which is switched off here.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import gradio as gr
from gradio.blocks import Block, BlocksConfig
from gradio.renderable import Renderable


class _SessionConfig(BlocksConfig):
    @staticmethod
    def config_for_block(
        _id: int, rendered_ids: list[int], block: Block, renderable: Renderable | None = None
    ) -> dict[str, Any]:
        """Nothing, as Gradio itself says of what is not drawn; what `gr.render` draws is described."""
        return {} if renderable is None else BlocksConfig.config_for_block(_id, rendered_ids, block, renderable)


class _PageConfig(BlocksConfig):
    def __copy__(self) -> BlocksConfig:
        """For a session."""
        new = _SessionConfig(self.root_block)
        new.blocks, new.fns, new.fn_id = copy.copy(self.blocks), copy.copy(self.fns), self.fn_id
        new.renderables = copy.copy(self.renderables)
        return new


def make_lean(demo: gr.Blocks) -> gr.Blocks:
    """The page, which has its queue, without that."""
    demo.default_config.__class__ = _PageConfig
    demo._queue.ANAYLTICS_CACHE_FREQUENCY = sys.maxsize  # Gradio's own spelling
    demo._queue.ANALYTICS_MAX_EVENTS = 1
    return demo
