"""The layers: what may import what, held at run time."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.live_server import ROOT


@pytest.mark.parametrize("module", ["dpexplore", "dpexplore.__main__", "dpexplore.plots"])
def test_the_core_imports_without_the_interface(module: str) -> None:
    script = f"import sys, {module}; print([name for name in ('gradio', 'spacy', 'ray') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_serves_pages_and_programs_knows_no_page_and_loads_no_extra() -> None:
    script = (
        "import importlib, pkgutil, sys, dpexplore.serving as s; "
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(s.__path__, 'dpexplore.serving.')]; "
        "print([name for name in sys.modules if name in ('gradio', 'spacy', 'scispacy', 'ray') "
        "or name.startswith('dpexplore.ui')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_imports_point_one_way() -> None:
    """The contract of pyproject.toml, imports under TYPE_CHECKING included."""
    command = ["-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_help_needs_no_torch() -> None:
    script = "import sys, dpexplore.cli; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_plots_know_neither_torch_nor_transformers() -> None:
    script = (
        "import sys, types; import importlib.util as u; "
        "spec = u.spec_from_file_location('plots', 'dpexplore/plots.py'); module = u.module_from_spec(spec); "
        "sys.modules['plots'] = module; spec.loader.exec_module(module); "
        "print([name for name in ('torch', 'transformers', 'gradio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
