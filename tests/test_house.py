"""Who may import whom, and what the MLX path keeps clear of, read from the sources."""

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import mlx_paligemma
import torch_ref

PRODUCT = Path(mlx_paligemma.__file__).parent
REFERENCE = Path(torch_ref.__file__).parent
ROOT = PRODUCT.parent

BOTH_BACKENDS = ("mlx_paligemma.backends", "mlx_paligemma.parity", "mlx_paligemma.doctor")  # these alone may reach torch_ref
# Imports run downwards only. Parts that are not named here stand with the commands' own parts, above `backends`.
FLOORS = {"__version__": 0, "common": 0, "model": 1, "device": 1, "weights": 2, "fusion": 2, "fused_layers": 2,
          "decode_step": 2, "memory": 2, "packed_layers": 2, "tensor_reader": 2, "next_token": 3, "look_ahead": 3,
          "generation": 3, "conversion": 3, "quantization": 3, "shard_writer": 3, "converted_folder": 3, "backends": 4,
          "cli": 6, "__main__": 7}  # fmt: skip
UPPER_FLOOR = 5
# A string that can only be for `import_module`; plain "mlx" and "torch" are names of the backends too.
MODULE_NAME = re.compile(r"torch_ref(\.\w+)*|(torch|mlx)(\.\w+)+")


@dataclass(frozen=True)
class Import:
    """One import statement, or one string that names a module to `import_module`."""

    importer: str  # module that has it
    name: str  # module that it wants
    inside: bool  # whether it is inside a function

    @property
    def package(self) -> str:
        return self.name.split(".")[0]

    def is_of(self, *modules: str) -> bool:
        return any(self.name == module or self.name.startswith(f"{module}.") for module in modules)


def sources(folder: Path) -> dict[str, Path]:
    """Module name and file of all Python sources."""
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(folder.rglob("*.py"))}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def imports(folder: Path) -> list[Import]:
    return [found for name, path in sources(folder).items() for found in imports_of(name, path)]


def imports_of(importer: str, path: Path) -> list[Import]:
    """All imports of a file, those for the type checker alone left out."""
    found, package = [], importer.split(".") if path.name == "__init__.py" else importer.split(".")[:-1]

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.extend(Import(importer, alias.name, inside) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.append(Import(importer, module, inside))
            found.extend(Import(importer, f"{module}.{alias.name}", inside) for alias in node.names)
        if isinstance(node, ast.Constant) and MODULE_NAME.fullmatch(str(node.value)):
            found.append(Import(importer, node.value, inside))
        for child in ast.iter_child_nodes(node):
            visit(child, inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))

    visit(ast.parse(path.read_text(encoding="utf-8")), inside=False)
    return found


def floor(module: str) -> int:
    parts = module.split(".")
    return FLOORS.get(parts[1], UPPER_FLOOR) if len(parts) > 1 else 0


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def loaded_by(statement: str) -> set[str]:
    """Packages in memory after a statement."""
    return set(python(f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})").split())


def test_common_imports_neither_a_backend_nor_anything_above_it():
    for found in imports(PRODUCT / "common"):
        assert found.package not in ("mlx", "torch", "torch_ref", "transformers"), found
        assert found.package != "mlx_paligemma" or found.is_of("mlx_paligemma.common"), found


def test_the_reference_imports_of_the_product_common_alone_and_never_mlx():
    for found in imports(REFERENCE):
        assert found.package not in ("mlx", "transformers"), found
        if found.package == "mlx_paligemma" and found.name != "mlx_paligemma":
            assert found.is_of("mlx_paligemma.common"), found


def test_the_product_reaches_the_reference_in_three_places_and_inside_functions_only():
    reaching = [found for found in imports(PRODUCT) if found.package in ("torch_ref", "torch", "transformers")]
    for found in reaching:
        assert found.importer.startswith(BOTH_BACKENDS), found
        assert found.inside, found
    assert any(found.importer == "mlx_paligemma.backends" for found in reaching)


def test_the_network_imports_common_alone():
    for found in imports(PRODUCT / "model"):
        if found.package == "mlx_paligemma":
            assert found.is_of("mlx_paligemma.common", "mlx_paligemma.model"), found
        else:
            assert found.package in {"mlx", *sys.stdlib_module_names}, found


def test_imports_run_downwards_only():
    for found in imports(PRODUCT):
        if found.package == "mlx_paligemma" and found.importer != "mlx_paligemma" and found.name != "mlx_paligemma":
            assert floor(found.importer) >= floor(found.name), found


def test_importing_the_package_costs_nothing():
    heavy = {"mlx", "torch", "numpy", "PIL", "sentencepiece", "safetensors", "typer", "transformers"}
    assert not loaded_by("import mlx_paligemma") & (heavy | {"torch_ref"})
    assert not loaded_by("import torch_ref") & (heavy | {"mlx_paligemma"})


def test_common_can_be_used_without_either_backend():
    modules = ", ".join(sources(PRODUCT / "common"))
    assert not loaded_by(f"import {modules}") & {"mlx", "torch", "torch_ref", "transformers"}


def test_each_backend_is_used_without_the_other():
    assert not loaded_by("import mlx_paligemma.weights, mlx_paligemma.generation") & {"torch", "torch_ref", "transformers"}
    assert not loaded_by("import torch_ref.weights, torch_ref.generation") & {"mlx", "transformers"}


@pytest.mark.parametrize("module", [mlx_paligemma, torch_ref], ids=lambda module: module.__name__)
def test_every_public_name_is_there_and_no_other(module):
    assert all(getattr(module, name) is not None for name in module.__all__)
    assert not hasattr(module, "no_such_name")


@pytest.mark.parametrize("name", ["model/*.py", "generation.py", "weights.py"])
def test_the_mlx_path_keeps_clear_of_what_metal_lacks(name):
    """float64, and operations that MLX has on the CPU only: they would fail, or move the work, on a Mac alone."""
    for path in PRODUCT.glob(name):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            code = ast.unparse(node) if isinstance(node, (ast.Attribute, ast.Constant)) else ""
            assert "float64" not in code and "complex128" not in code, f"{path.name}: {code}"
            assert not re.match(r"mx\.(linalg|cpu|set_default_device|set_default_stream|stream)\b", code), f"{path.name}: {code}"
            assert not isinstance(node, ast.keyword) or node.arg != "stream", path.name


def test_no_network_file_uses_numpy():
    assert not [found for found in imports(PRODUCT / "model") if found.package == "numpy"]


def test_no_file_is_a_drawer_for_odds_and_ends():
    names = {path.stem for folder in (PRODUCT, REFERENCE) for path in folder.rglob("*.py")}
    assert not names & {"utils", "util", "helpers", "misc"}
