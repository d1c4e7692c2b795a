"""What Gradio does for each session and event that this page does not use."""

from __future__ import annotations

import gradio as gr
from gradio.state_holder import SessionState

from dpexplore.ui.lean import make_lean


def test_a_session_has_its_own_values_and_no_description_of_the_page() -> None:
    with gr.Blocks() as demo:
        box, kept = gr.Textbox("before"), gr.State([1])
        box.change(lambda text: text, box, box)
    usual = SessionState(demo)
    assert [*usual.components]
    described = demo.get_config_file()["components"]
    make_lean(demo.queue())
    hers, his = SessionState(demo), SessionState(demo)
    assert not [*hers.components]
    hers[kept._id] = [2]
    hers[box._id] = gr.Textbox("after", render=False)
    hers._update_value_in_config(box._id, "typed")
    assert (hers[kept._id], his[kept._id]) == ([2], [1])
    assert (hers[box._id].value, his[box._id].value) == ("after", "before")
    assert hers.blocks_config.fns == usual.blocks_config.fns
    assert not [*hers.components]
    assert demo.get_config_file()["components"] == described


def test_events_are_not_tabulated_for_a_dashboard_that_is_off() -> None:
    with gr.Blocks() as demo:
        gr.Textbox()
    queue = make_lean(demo.queue())._queue
    queue.events_recorded = 10**6
    assert queue.compute_analytics_summary([{"function": "f"}]) == {"functions": {}}
