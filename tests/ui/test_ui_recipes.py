"""Panels and recipe text say the same in both directions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gradio.utils import get_upload_folder
from hypothesis import given
from hypothesis import strategies as st

from dpexplore.errors import InputError
from dpexplore.serving.uploads import check_files, upload_folder
from dpexplore.targets import parse_recipe
from dpexplore.targets.by_pos import TAGS
from dpexplore.targets.listed import KINDS, RESTS, TOKENS_ARE
from dpexplore.targets.sources import File
from dpexplore.ui.components import recipes
from dpexplore.ui.components.target_panel import panels_of
from dpexplore.ui.components.target_tabs import file_recipe, offered_arrays

SEEDS = st.integers(0, 10_000)
BITS = st.floats(0, 15.5)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)

PANELS = {
    "entropy": st.tuples(BITS, SEEDS, st.sampled_from(sorted(recipes.METHOD_NAMES.values())), st.floats(0.01, 10)),
    "outliers": st.tuples(
        BITS,
        st.integers(1, 100),
        SEEDS,
        st.lists(TEXTS.map("={}".format), unique=True, max_size=4),
        st.sampled_from(sorted(recipes.MASS_NAMES.values())),
    ),
    "prompt": st.tuples(TEXTS, st.sampled_from(["", "gpt2"]), st.just([recipes.BOS]) | st.just([recipes.CHAT])),
    "pos": st.tuples(st.sampled_from(TAGS), st.integers(1, 500), SEEDS, st.sampled_from(["strict", "paper"])),
    "hand": st.tuples(st.just(recipes.HAND_EXAMPLE), st.floats(0, 0.9)),
}
WRITERS = {
    "entropy": (recipes.entropy_recipe, ("bits", "seed", "method", "entropy_step")),
    "outliers": (recipes.outliers_recipe, ("outlier_bits", "count", "outlier_seed", "picks", "mass_of")),
    "prompt": (recipes.prompt_recipe, ("text", "source", "options")),
    "pos": (recipes.pos_recipe, ("tag", "pos_count", "pos_seed", "mode")),
    "hand": (recipes.hand_recipe, ("lines", "rest")),
}


@pytest.mark.parametrize("tab", list(PANELS))
def test_what_a_tab_writes_it_reads_again(tab: str) -> None:
    make, names = WRITERS[tab]

    @given(PANELS[tab])
    def check(values: tuple) -> None:
        text = str(make(*values))
        found, read = recipes.panel_values(recipes.split_recipe(text).base)
        assert found == tab
        # What the text does not say (the count of chosen outliers) stays in the panel as it was.
        again = make(*(read.get(name, value) for name, value in zip(names, values, strict=True)))
        assert str(again) == text

    check()


@given(st.lists(st.sampled_from(["shuffle(seed=1)", "top_k(50)", "temperature(0.5)", "matched(seed=2)"]), max_size=6))
def test_transforms_come_off_and_go_on_in_their_order(calls: list[str]) -> None:
    text = recipes.join_recipe("entropy(bits=7)", calls)
    split = recipes.split_recipe(text)
    assert split.transforms == calls
    assert recipes.join_recipe(str(split.base), split.transforms) == text == str(parse_recipe(text))


@given(*(st.sampled_from(["", *choices]) for choices in (KINDS, TOKENS_ARE, RESTS, ("probs", "a b"))))
def test_the_choices_for_a_file_stand_in_its_recipe_and_come_back(
    kind: str, tokens: str, rest: str, array: str
) -> None:
    base = recipes.file_recipe("x.csv", kind, tokens, rest, array)
    assert parse_recipe(str(base)) == base
    shown = {"file_kind": kind, "file_tokens": tokens, "file_rest": rest, "file_array": array}
    assert recipes.panel_values(base) == ("file", shown)


def test_one_of_several_arrays_is_chosen_by_name(tmp_path: Path) -> None:
    several, single = tmp_path / "several.npz", tmp_path / "single.npz"
    np.savez(several, before=np.ones(3), after=np.ones(3), recipe=np.array("x"))
    np.savez(single, p=np.ones(3))
    offered = {name: offered_arrays(str(tmp_path / name))["choices"] for name in ("several.npz", "single.npz", "no")}
    assert [value for _, value in offered["several.npz"]] == ["", "before", "after"]
    assert [value for _, value in offered["single.npz"]] == [value for _, value in offered["no"]] == [""]
    assert file_recipe(str(several), "", "", "", "after") == File(str(several), array="after")
    assert file_recipe(str(single), "", "", "", "after") == File(str(single))  # chosen of the file before
    chosen = panels_of(f"file({str(several)!r}, array='after')")["file_array"]
    assert (chosen["value"], [value for _, value in chosen["choices"]]) == ("after", ["", "after"])


def test_a_new_base_keeps_the_transforms() -> None:
    base = recipes.prompt_recipe("I love", "", [recipes.BOS])
    assert recipes.with_base("entropy(bits=7).shuffle(seed=1)", base) == 'capture("I love").shuffle(seed=1)'
    assert recipes.with_base("nonsense(", base) == 'capture("I love")'


WEIGHTS = st.lists(
    st.tuples(TEXTS | st.integers(0, 50_000), st.floats(0, 100).map(lambda x: float(f"{x:g}"))), min_size=1, max_size=6
)


@given(WEIGHTS)
def test_weights_survive_their_lines(weights: list[tuple[str | int, float]]) -> None:
    assert recipes.read_weights(recipes.write_weights(weights)) == weights


@pytest.mark.parametrize("line", ["yes 0.7", "yes: 0.7", "yes=0.7", "yes, 0.7", "yes\t0.7", '"yes": 0.7,'])
def test_pasted_weights_are_read_in_the_usual_spellings(line: str) -> None:
    assert recipes.read_weights(line) == [("yes", 0.7)]


@pytest.mark.parametrize("lines", ["", "yes", "0.7", '"unclosed 0.7x', '"yes" 0.7\nno'])
def test_unreadable_weights_are_one_sentence(lines: str) -> None:
    with pytest.raises(InputError):
        recipes.read_weights(lines)


def test_a_nudged_bar_changes_its_own_line_only() -> None:
    assert recipes.set_weight('" yes" 0.7\n#5 0.3', 1, 0.45) == '" yes" 0.7\n#5 0.45'
    with pytest.raises(InputError):
        recipes.set_weight('" yes" 0.7', 3, 0.1)


@pytest.mark.parametrize(
    "text", ['file("/etc/passwd.csv")', 'entropy(bits=1).mix(file("../x.npz").top_k(3), 0.5).shuffle(seed=1)']
)
def test_the_pages_recipes_open_uploads_only(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="uploaded"):
        check_files(parse_recipe(text), tmp_path)
    inside = tmp_path / "upload" / "t.csv"
    check_files(parse_recipe(f'file("{inside}")'), tmp_path)


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (recipes.entropy_recipe, (None, 0, "temperature")),
        (recipes.entropy_recipe, (3, 1.5, "temperature")),
        (recipes.entropy_recipe, (3, 0, "gradient descent", None)),
        (recipes.outliers_recipe, (3, None, 0, [], "")),
        (recipes.prompt_recipe, ("", "", [])),
        (recipes.file_recipe, (None,)),
    ],
)
def test_empty_controls_are_answered_by_one_sentence(make, values: tuple) -> None:
    with pytest.raises(InputError):
        make(*values)


def test_uploads_lie_where_gradio_puts_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert str(upload_folder()) == get_upload_folder()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    assert str(upload_folder()) == get_upload_folder()
