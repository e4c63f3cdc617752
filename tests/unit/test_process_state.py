"""Only `process` has state at module level: everything else there is a constant."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mcp_eventscope

PACKAGE = Path(mcp_eventscope.__file__).parent
OWNER = "process.py"
"""The module that owns the state of the process."""
SOURCES = {str(path.relative_to(PACKAGE)): path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py"))}

READ_ONLY = ("Mapping", "Sequence", "AbstractSet", "Iterable", "TypeAlias", "ContextVar")
"""Annotations of constants, whose value a type checker keeps from changes. A ContextVar belongs to a task."""
CONSTANT_CALLS = {
    # The standard library.
    *("frozenset", "tuple", "slice", "object", "MappingProxyType", "nullcontext", "getattr", "version_of"),
    *("re.compile", "Path(__file__).with_name", "struct.Struct", "TypeVar", "ParamSpec", "ContextVar"),
    "logging.getLogger",  # Loggers belong to the application.
    # Libraries: values that nothing changes after their construction.
    *("platform.python_version", "platform.python_implementation"),
    *(
        "TypeAdapter",
        "Context",
        "click.option",
        "settings",
        "st.text",
        "st.integers",
        "ClientCapabilities",
        "ErrorData",
    ),
    *("ToolsListChanged", "PromptsListChanged", "ResourcesListChanged", "ResourceUpdated"),
    # A text and its digest, a function of the clock, a declaration, a text.
    *("Script", "scripts.Script", "_boot_clock", "_redis_gauge", "OWNER.upper"),
}
FROZEN = {
    node.name
    for source in SOURCES.values()
    for node in ast.walk(ast.parse(source))
    if isinstance(node, ast.ClassDef) and any("frozen=True" in ast.unparse(each) for each in node.decorator_list)
}
DECLARING = {"BaseModel", "BaseSettings", "Result", "TaskResult"}
"""Base classes that take class attributes for declarations of fields, as dataclasses do."""
HOOKS = ("os.register_at_fork", "atexit.register", "weakref.finalize", "finalize", "os.putenv", "sys.settrace")
CHANGES = (
    *("append", "extend", "insert", "remove", "pop", "clear", "sort", "add", "discard", "update", "setdefault"),
    "popitem",
)
LAZY = "__init__.py"
"""Its `__getattr__` keeps imported names, as PEP 562 describes."""
PROGRAM = "cli/serve.py"
"""It runs the process: it sets the search path, and the environment that worker processes inherit."""


def state_of(name: str, source: str) -> list[str]:
    """Each statement of a module that makes or changes state of the process."""
    tree = ast.parse(source)
    names = _names(tree)
    found = list(_values(tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            found += [f"class {node.name}, {value}" for value in _class_values(node)]
        elif _is_definition(node) or (name != PROGRAM and _is_change(node, names)):
            found.append(f"line {getattr(node, 'lineno', 0)}: {ast.unparse(node).splitlines()[0]}")
        elif name != LAZY and isinstance(node, ast.Call) and ast.unparse(node.func) == "globals":
            found.append(f"line {node.lineno}: globals()")
    return found


def _is_definition(node: ast.AST) -> bool:
    """Whether a statement makes state of the process: a hook, a cache, or a variable that functions set."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        decorators = [ast.unparse(each).split("(")[0].split(".")[-1] for each in node.decorator_list]
        return "cache" in decorators or "lru_cache" in decorators
    return isinstance(node, ast.Global) or (isinstance(node, ast.Call) and ast.unparse(node.func) in HOOKS)


def _is_change(node: ast.AST, names: set[str]) -> bool:
    """Whether a statement changes what a name at module level refers to."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr in CHANGES and _root(node.func.value) in names
    if isinstance(node, ast.Attribute | ast.Subscript):
        return not isinstance(node.ctx, ast.Load) and _root(node.value) in names
    return False


def _root(value: ast.expr) -> str:
    """The name at the beginning of an expression with dots and brackets; empty: it begins otherwise."""
    while isinstance(value, ast.Attribute | ast.Subscript):
        value = value.value
    return value.id if isinstance(value, ast.Name) else ""


def _class_values(node: ast.ClassDef) -> Iterator[str]:
    bases = {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
    declares = bool(bases & DECLARING) or any("dataclass" in ast.unparse(each) for each in node.decorator_list)
    return iter(()) if declares else _values(node.body, in_class=True)


def _values(body: list[ast.stmt], *, in_class: bool = False) -> Iterator[str]:
    """The assignments of a body, blocks included, whose values can change."""
    for node in body:
        if isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While):
            blocks = [*getattr(node, "handlers", ())]
            yield from _values(
                [*node.body, *getattr(node, "orelse", ()), *getattr(node, "finalbody", ())], in_class=in_class
            )
            for block in blocks:
                yield from _values(block.body, in_class=in_class)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and node.value is not None:
            target = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
            annotation = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else ""
            if target == "__all__" or annotation.startswith(READ_ONLY):
                continue
            if isinstance(node, ast.AugAssign) or (annotation.endswith("| None") and not in_class):
                yield f"line {node.lineno}: {target} changes"
            elif not _is_constant(node.value):
                yield f"line {node.lineno}: {target} is state, or a constant without a read-only annotation"


def _is_constant(value: ast.expr) -> bool:
    match value:
        case ast.Call(func=function):
            called = ast.unparse(function)
            return (
                called in CONSTANT_CALLS
                or called.split(".")[-1] in FROZEN
                or (isinstance(function, ast.Attribute) and (isinstance(function.value, ast.Constant)))
            )
        case ast.Tuple(elts=elements):
            return all(isinstance(element, ast.Starred) or _is_constant(element) for element in elements)
        case ast.IfExp(body=one, orelse=other):
            return _is_constant(one) and _is_constant(other)
        case ast.BinOp(left=left):  # Of the type of the left side, which joins a frozenset with a set.
            return _is_constant(left)
        case ast.Dict() | ast.List() | ast.Set() | ast.ListComp() | ast.DictComp() | ast.SetComp() | ast.GeneratorExp():
            return False
    return True  # Literals, names and attributes of other constants, functions, types.


def _names(tree: ast.Module) -> set[str]:
    """The names at module level: of values, classes, functions and imports."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}
    # A local variable or parameter of that name hides it.
    hidden = {
        each.arg
        for node in ast.walk(tree)
        if isinstance(node, ast.arguments)
        for each in (*node.args, *node.kwonlyargs)
    }
    hidden |= {
        each.id
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for each in ast.walk(function)
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
    }
    return names - hidden


@pytest.mark.parametrize("module", [name for name in SOURCES if name != OWNER])
def test_module_has_no_state_at_module_level(module: str) -> None:
    """State of the process is an object of `PROCESS.single`; constants are annotated as read-only."""
    assert state_of(module, SOURCES[module]) == []


@pytest.mark.parametrize(
    "source",
    [
        "_seen = {}",
        "_seen: dict[str, int] = {}",
        "_seen = []",
        "_seen = set()",
        "_seen = defaultdict(list)",
        "_seen = WeakSet()",
        "_lock = threading.Lock()",
        "_place: tuple[int, int] | None = None",
        "_count = itertools.count()",
        "_pair = (1, [])",
        "if True:\n    _seen = []",
        "try:\n    pass\nexcept ValueError:\n    _seen = []",
        "class Store:\n    seen = []",
        "class Store:\n    lock = Lock()",
        "N = 0\ndef f():\n    global N\n    N += 1",
        "@functools.cache\ndef f(): ...",
        "@lru_cache(maxsize=3)\ndef f(): ...",
        "import os\nos.register_at_fork(after_in_child=f)",
        "import atexit\natexit.register(f)",
        "import other\ndef f():\n    other.value = 3",
        "from other import TABLE\ndef f():\n    TABLE['key'] = 3",
        "from other import TABLE\ndef f():\n    TABLE.update(a=3)",
        "from other import TABLE\ndef f():\n    del TABLE['key']",
        "import os\ndef f():\n    os.environ['A'] = 'b'",
        "class Store: ...\ndef f():\n    Store.count = 3",
        "def f(): ...\nf.calls = 0",
        "globals()['x'] = 3",
    ],
)
def test_state_at_module_level_is_detected(source: str) -> None:
    """Each form of state of the process that a module could gain."""
    assert state_of("module.py", source)


@pytest.mark.parametrize(
    "source",
    [
        "A = 1",
        "A = ('b', 2)",
        "A: Mapping[str, int] = {'b': 2}",
        "A: Sequence[int] = [2]",
        "A = frozenset({'b'})",
        "A = re.compile('b')",
        "A: ContextVar[int | None] = ContextVar('A', default=None)",
        "class B:\n    def __init__(self):\n        self.seen = []",
        "def f(seen):\n    seen['a'] = 1",
        "__all__ = ['A']",
    ],
)
def test_constant_at_module_level_is_admitted(source: str) -> None:
    """Values that nothing can change are no state."""
    assert state_of("module.py", source) == []
