"""Recipe text: canonical both ways, errors that point at the place, and nothing that a hostile text can do."""

from __future__ import annotations

import ast
import contextlib
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpexplore.errors import InputError
from dpexplore.targets import Recipe, capture, entropy, file, parse_recipe, pos, random_prompt, tokens
from dpexplore.targets.parser import CONSTRUCTORS, MAX_CHARACTERS, TRANSFORMS
from dpexplore.targets.recipe import MAX_PARTS

seeds = st.integers(0, 2**63 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
names = st.none() | texts
numbers = st.floats(0, 1e6) | st.integers(0, 1000)
constructors: st.SearchStrategy[Recipe] = st.one_of(
    st.builds(entropy, numbers, seeds, st.sampled_from(["gradient", "temperature"])),
    st.builds(lambda b, s, o: entropy(b, s, outliers=o), numbers, seeds, st.integers(0, 100) | st.lists(texts | seeds)),
    st.builds(capture, texts, names, st.booleans(), st.booleans()),
    st.builds(random_prompt, st.integers(1, 50), seeds, names),
    st.builds(
        pos, st.sampled_from(["NOUN", "propn", "X"]), st.integers(1, 500), seeds, st.sampled_from(["strict", "paper"])
    ),
    st.builds(tokens, st.dictionaries(texts | seeds, st.floats(1e-300, 1e300), min_size=1), st.floats(0, 0.999)),
    st.builds(file, texts),
)


def transformed(recipes: st.SearchStrategy[Recipe]) -> st.SearchStrategy[Recipe]:
    return st.one_of(
        st.builds(Recipe.shuffle, recipes, seeds, st.none() | st.integers(1, 10**6)),
        st.builds(Recipe.matched, recipes, seeds),
        st.builds(Recipe.matched, recipes, seeds, st.just("gradient"), st.floats(0.01, 10)),
        st.builds(Recipe.matched, recipes, seeds, st.just("temperature")),
        st.builds(Recipe.temperature, recipes, st.floats(0.001, 1000)),
        st.builds(Recipe.top_k, recipes, st.integers(1, 10**6)),
        st.builds(Recipe.mix, recipes, recipes, st.floats(0, 1)),
    )


@given(st.recursive(constructors, transformed, max_leaves=8))
@settings(deadline=None, max_examples=300)
def test_text_to_recipe_to_text_is_the_identity(recipe: Recipe) -> None:
    text = str(recipe)
    parsed = parse_recipe(text)
    assert parsed == recipe
    assert hash(parsed) == hash(recipe)
    assert str(parsed) == text


@pytest.mark.parametrize(
    "text",
    [
        "entropy(bits=7, seed=0)",
        "entropy(bits=7, outliers=5, seed=0)",
        'entropy(bits=2.5, outliers=[" yes", 17], seed=3)',
        'entropy(bits=7, outliers=5, mass="paper", seed=0)',
        "entropy(bits=7, seed=0, step=0.01)",
        'entropy(bits=7, seed=0, method="temperature").matched(seed=2, step=1)',
        'capture("I love").matched(seed=1, method="temperature")',
        'capture("I love")',
        'capture("I love", model="gpt2")',
        'capture("a\\n\\"quoted\\" naïve 🙂", chat=True, bos=False)',
        "random_prompt(length=5, seed=0)",
        'pos("NOUN", n=100, seed=0)',
        'tokens({" yes": 0.7, " no": 0.3})',
        'tokens({" yes": 0.7, 11: 0.3}, rest=0.25)',
        'file("target.npz")',
        'capture("I love").shuffle(seed=1).matched(seed=1).temperature(0.5).top_k(50)',
        'capture("I love").shuffle(seed=1, top_k=20).mix(entropy(bits=7, seed=0).top_k(3), 0.5)',
    ],
)
def test_canonical_texts_of_every_kind(text: str) -> None:
    assert str(parse_recipe(text)) == text


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("entropy(7)", "entropy(bits=7, seed=0)"),
        ("  entropy ( 7.0 , seed = 2 )\n .shuffle( 1 )\t", "entropy(bits=7, seed=2).shuffle(seed=1)"),
        ("capture('it\\'s')", 'capture("it\'s")'),
        ('capture("\\u00e9\\x41")', 'capture("éA")'),
        ('pos("noun")', 'pos("NOUN", n=100, seed=0)'),
        ("entropy(bits=7e0, outliers=0, method='gradient')", "entropy(bits=7, seed=0)"),
        (
            "entropy(7, method='gradient', step=0.2).matched(1, 'gradient', 0.2)",
            "entropy(bits=7, seed=0).matched(seed=1)",
        ),
        ("entropy(7, outliers=5, mass='own')", "entropy(bits=7, outliers=5, seed=0)"),
        ("entropy(7, outliers=1, mass='paper')", "entropy(bits=7, outliers=1, seed=0)"),  # the same target
        ("tokens(weights={'a': 1e0,})", 'tokens({"a": 1})'),
    ],
)
def test_other_ways_of_writing_it(written: str, canonical: str) -> None:
    assert str(parse_recipe(written)) == canonical


@pytest.mark.parametrize(
    ("text", "column", "says"),
    [
        ("entrpy(7)", 1, "did you mean `entropy`"),
        ("entropy(bats=7)", 9, "takes no `bats`"),
        ("entropy(bits=7, bits=8)", 17, "twice"),
        ('capture("é🙂").shufle(seed=1)', 15, "did you mean `shuffle`"),
        ("entropy(7).shuffle()", 12, "missing"),
        ("entropy(bits='x')", 1, "`bits` is 'x'"),
        ("entropy(7).top_k(0)", 12, "1 or more"),
        ("entropy(7).temperature(0)", 12, "above 0"),
        ("entropy(7).mix(entropy(7), 2)", 12, "from 0 to 1"),
        ("entropy(7).mix(7, 0.5)", 12, "not a recipe"),
        ('capture("never closed)', 9, "never closed"),
        ('capture("a\\d")', 9, "unknown escape"),
        ('capture("a\nb")', 9, "end of the line"),
        ('capture("a") + 1', 14, "`+`"),
        ("entropy(7", 8, "never closed"),
        ("entropy(bits=1).__class__", 1, "begins with"),
        ("  lambda: 1", 3, "begins with"),
        ("entropy(--7)", 9, "minus"),
        ("entropy(seed=1e400, bits=1)", 1, "`seed` is inf"),
        ('capture("\\ud800")', 1, "surrogate"),
        ("entropy(bits=entropy(7))", 1, "entropy in bits"),
        ("entropy(7, outliers=[1.5])", 1, "token"),
        ('tokens({"a": 1, "a": 2})', 17, "twice"),
        ("tokens({[1]: 2})", 9, "keys"),
        ('pos("BLAH")', 1, "NOUN"),
        ("entropy(7, step=0)", 1, "from 0.01 to 10"),
        ("entropy(7, method='temperature', step=0.1)", 1, "takes no steps"),
        ("entropy(7).matched(1, method='newton')", 12, "'gradient' or 'temperature'"),
        ("entropy(7, mass='paper')", 1, "give `outliers`"),
        ("entropy(7, outliers=2, mass='all')", 1, "'paper'"),
    ],
)
def test_errors_point_at_the_place(text: str, column: int, says: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_recipe(text)
    assert f"at column {column} of the recipe" in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n",
        "(" * 1000 + ")" * 1000,
        "[" * 1000 + "]" * 1000,
        "entropy(" * 1000 + ")" * 1000,
        "entropy(7).mix(" * 1000 + "entropy(7)" + ", 0.5)" * 1000,
        "entropy(7)" + ".shuffle(seed=1)" * 1000,
        "-" * 40_000 + "1",
        "entropy(bits=" + "-" * 1000 + "1)",
        "entropy" + "()" * 5000,
        "a" + ".a" * 20_000,
        "a" * 2_000_000,
        "entropy(bits=" + "9" * 20_000 + ")",
        "entropy(bits=" + "1," * 20_000 + ")",
        "capture(" + '"a" ' * 20_000 + ")",
        "tokens({" + "'a':" * 5000 + "})",
        "__import__('os').system('echo')",
        "entropy(bits=__import__('os').getpid())",
        "[r for r in (1,)]",
        "(lambda: entropy(7))()",
        "entropy(bits=7) if True else 1",
        "entropy(*[7])",
        "entropy(**{'bits': 7})",
        "capture(f'{1}')",
        "capture(b'a')",
        "capture(open('/etc/passwd').read())",
        "entropy(7)[0]",
        "entropy(7)(7)",
        "entropy(7) == 1",
        "entropy(x := 7)",
        "entropy(7); entropy(8)",
        "entropy(7)\0",
        "entropy(7)\\\n",
        "entropy(bits=007)",
        "entropy(bits=1_0)",
        "entropy(bits=0x10)",
        "entropy(bits=1j)",
        "entropy(bits=1or 2)",
        "entropy(bits=...)",
        "#",
        "entropy(7) # comment",
        "\ufeffentropy(7)",
        "ｅntropy(7)",
        "entropy(٧)",
    ],
)
def test_hostile_texts_are_refused_fast(text: str) -> None:
    start = time.process_time()
    with pytest.raises(InputError) as caught:
        parse_recipe(text)
    assert len(str(caught.value)) < 400
    assert time.process_time() - start < 2  # a bound on the work, generous for busy machines


grammar = st.lists(
    st.sampled_from(
        [
            *CONSTRUCTORS,
            *TRANSFORMS,
            *"()[]{},:=.-+*\\\"'# \n\t0123456789",
            "bits",
            "seed",
            '"a"',
            "7",
            "0.5",
            "1e9",
            "é",
            "None",
        ]
    ),
    max_size=40,
).map("".join)


@given(st.text(max_size=80) | grammar)
@settings(deadline=None, max_examples=1500)
@example("entropy(bits=7" + " " * 10)
@example("\x1f")
def test_any_text_is_a_recipe_or_a_clear_error(text: str) -> None:
    try:
        recipe = parse_recipe(text)
    except InputError:
        return
    assert parse_recipe(str(recipe)) == recipe


@given(st.recursive(constructors, transformed, max_leaves=3), st.data())
@settings(deadline=None, max_examples=300)
def test_a_recipe_with_one_character_changed(recipe: Recipe, data: st.DataObject) -> None:
    text = str(recipe)
    at = data.draw(st.integers(0, len(text) - 1))
    changed = (
        text[:at]
        + data.draw(st.sampled_from(["", "(", ")", '"', "\\", ".", "=", ",", "-", "z", "9", "\n"]))
        + text[at + 1 :]
    )
    with contextlib.suppress(InputError):
        assert isinstance(parse_recipe(changed), Recipe)


def test_nothing_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("evaluated")

    with monkeypatch.context() as patched:
        for name in ("eval", "exec"):
            patched.setattr(f"builtins.{name}", forbidden)
        patched.setattr(ast, "literal_eval", forbidden)
        parsed = parse_recipe('capture("I love").shuffle(seed=1)')
    assert parsed == capture("I love").shuffle(1)


def test_bounds_hold_for_recipes_made_in_python_too() -> None:
    recipe: Recipe = entropy(7)
    for _ in range(MAX_PARTS - 1):
        recipe = recipe.shuffle(1)
    with pytest.raises(InputError, match="51 parts"):
        recipe.shuffle(1)
    with pytest.raises(InputError, match="101 parts"):
        recipe.mix(recipe, 0.5)
    assert parse_recipe(str(recipe)) == recipe
    long = capture("a" * (MAX_CHARACTERS - 20))
    assert parse_recipe(str(long)) == long


@pytest.mark.parametrize(
    "make",
    [
        lambda: entropy(True),
        lambda: entropy(float("nan")),
        lambda: entropy(10**400),
        lambda: entropy(7, seed=-1),
        lambda: entropy(7, seed=2**63),
        lambda: entropy(7, method="magic"),  # type: ignore[arg-type]
        lambda: entropy(7, method="temperature", outliers=3),
        lambda: entropy(7, outliers=-1),
        lambda: entropy(7, outliers="ab"),
        lambda: capture(7),  # type: ignore[arg-type]
        lambda: capture("a", bos=1),  # type: ignore[arg-type]
        lambda: random_prompt(0),
        lambda: pos("NOUN", n=0),
        lambda: pos("NOUN", mode="loose"),  # type: ignore[arg-type]
        lambda: tokens({}),
        lambda: tokens([1]),  # type: ignore[arg-type]
        lambda: tokens({"a": 0}),
        lambda: tokens({"a": -1}),
        lambda: tokens({"a": 1}, rest=1),
        lambda: tokens({1.5: 1}),  # type: ignore[dict-item]
        lambda: file(7),  # type: ignore[arg-type]
        lambda: entropy(7).shuffle(1, top_k=0),
        lambda: entropy(7).mix("entropy(7)", 0.5),  # type: ignore[arg-type]
    ],
)
def test_values_are_checked_when_the_recipe_is_made(make: object) -> None:
    with pytest.raises(InputError):
        make()  # type: ignore[operator]
