"""Check that a rule is elementwise and uses only operations that all backends have.

Triton runs a rule on a block of elements, Numba on one element and torch on a whole tensor, so that a sum would differ
between them. A rule is therefore tried once on values that stand for any element: they accept elementwise operations
and refuse all others by name, in helpers and loops too. What the values do not see is checked in the code before:
names that a function takes from outside, and statements that Triton cannot compile.
"""

import ast
import builtins
import dis
import inspect
import textwrap
from collections.abc import Callable, Iterator
from itertools import chain
from types import CodeType, FunctionType, ModuleType

from kernels.rule import Rule, plain, rebind, tl

OPERATIONS = {
    **dict.fromkeys(("exp", "exp2", "log", "log2", "sqrt", "rsqrt", "sin", "cos", "floor", "ceil", "abs"), 1),
    **dict.fromkeys(("sqrt_rn", "erf", "sigmoid"), 1),
    **dict.fromkeys(("minimum", "maximum", "div_rn", "fdiv"), 2),
    **dict.fromkeys(("where", "fma", "clamp"), 3),
}
"""The elementwise functions of `tl` and how many arguments they take. Rules that call one that only Triton has run on
GPUs alone."""

FLOAT32_ONLY = ("sqrt_rn", "div_rn")
DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64")
MAY = (
    "a rule may use + - * /, comparisons, & and | of these, tuples, `for i in tl.static_range(n)`, helpers with "
    f"@triton.jit, and {', '.join(f'tl.{name}' for name in sorted(OPERATIONS))}"
)
STATEMENTS = (
    *(ast.Assign, ast.AugAssign, ast.Return, ast.Expr, ast.Pass, ast.If, ast.For, ast.BinOp, ast.UnaryOp, ast.BoolOp),
    *(ast.Compare, ast.IfExp, ast.Call, ast.keyword, ast.Attribute, ast.Name, ast.Constant, ast.Tuple, ast.Subscript),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context),
)
"""Statements and expressions that Triton can compile."""

UNFIT = {
    **{"pow": "** (a product is x * x)", "abs": "abs (tl.abs)", "floordiv": "//", "mod": "%", "matmul": "@"},
    **{"divmod": "divmod", "lshift": "<<", "rshift": ">>", "invert": "~", "pos": "the sign +", "round": "round"},
    **{"bool": "a value as a condition of if, and, or, not (tl.where, &, |)", "index": "a value as an index"},
    **{"getitem": "[...] of a value, which is a single number", "iter": "a value as if it were a sequence"},
    **{"len": "len of a value", "float": "float", "int": "int"},
}
"""Python's other operators: Triton lacks them, or backends disagree (% of negative numbers, ~ of conditions)."""


class Refused(Exception):
    """A rule does what it may not; the text says what."""


class Value:
    """Stands for a number, or a condition, of any element (in `coefficients`, of any tensor)."""

    def __init__(self, is_condition: bool = False):
        self._is_condition = is_condition

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        raise Refused(f"uses .{name} of a value")

    def to(self, dtype) -> "Value":
        if dtype not in DTYPES:
            raise Refused(f"converts to {dtype!r}")
        return Value()


def is_condition(x) -> bool:
    return isinstance(x, Value) and x._is_condition


def expect(x, what: str, condition: bool = False) -> None:
    """Raise Refused unless x is a number or, with `condition`, a condition."""
    if is_condition(x) != condition or not (isinstance(x, Value) or type(x) in (int, float)):
        found = "a condition" if is_condition(x) else "what is no condition" if condition else repr(x)
        raise Refused(f"uses {what} with {found}")


def operator(symbol: str, takes_conditions: bool = False, gives_condition: bool = False) -> Callable:
    def operation(*operands):
        for x in operands:
            expect(x, symbol, takes_conditions)
        return Value(gives_condition)

    return operation


def unfit(what: str) -> Callable:
    def operation(*_):
        raise Refused(f"uses {what}")

    return operation


ARITHMETIC = {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "neg": "-"}
OPERATORS = {
    **{name: operator(symbol) for name, symbol in ARITHMETIC.items()},
    **{name: operator(symbol, True, True) for name, symbol in {"and": "&", "or": "|", "xor": "^"}.items()},
    **{name: unfit(what) for name, what in UNFIT.items()},
}
for _name, _operation in OPERATORS.items():
    setattr(Value, f"__{_name}__", _operation)
    setattr(Value, f"__r{_name}__", _operation)
for _name, _symbol in {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}.items():
    setattr(Value, f"__{_name}__", operator(_symbol, gives_condition=True))


class Language:
    """Stands for `tl` in a rule that is tried."""

    def __init__(self, double: bool):
        self._double = double

    def __getattr__(self, name: str):
        if name in DTYPES:
            return name
        if name == "static_range":
            return range
        if name not in OPERATIONS:
            known = tl is None or hasattr(tl, name)
            raise Refused(f"uses tl.{name}, which is {'not elementwise' if known else 'no function of Triton'}")
        if self._double and name in FLOAT32_ONLY:
            raise Refused(f"uses tl.{name}, which is for float32 alone, and coefficients are float64")
        return lambda *arguments: operate(name, arguments)


def operate(name: str, arguments: tuple) -> Value:
    """Return what a function of `tl` returns for values. Raises: Refused."""
    if len(arguments) != OPERATIONS[name]:
        raise Refused(f"calls tl.{name} with {len(arguments)} arguments instead of {OPERATIONS[name]}")
    if not any(isinstance(x, Value) for x in arguments):
        raise Refused(f"calls tl.{name} of constants alone")
    for i, x in enumerate(arguments):
        expect(x, f"tl.{name}", condition=(name, i) == ("where", 0))
    if name == "where" and all(type(x) is int for x in arguments[1:]):
        raise Refused(f"chooses between whole numbers (write {arguments[1]:.1f} and {arguments[2]:.1f})")
    return Value()


def names_of(code: CodeType) -> Iterator[str]:
    """Yield the global names that a function reads. Raises: Refused if it assigns or imports one."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("STORE_GLOBAL", "DELETE_GLOBAL", "IMPORT_NAME"):
            raise Refused(f"changes or imports {instruction.argval}")
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval


def jitted(x) -> FunctionType | None:
    """Return the Python function inside a `@triton.jit` function, else None."""
    function = getattr(x, "fn", None)
    if isinstance(function, FunctionType) and (x is function or type(x).__module__.startswith("triton.runtime")):
        return function
    return None


def check_names(function: FunctionType, callers: tuple = ()) -> None:
    """Raise Refused unless a function and its helpers use only arguments, `tl` and helpers."""
    code, namespace = function.__code__, function.__globals__
    if code.co_freevars:
        raise Refused(f"uses {', '.join(code.co_freevars)} of the function around it")
    for name in names_of(code):
        found = namespace.get(name)
        body = getattr(found, "fn", found)
        if name == "tl":
            if found is not tl:
                raise Refused("uses a tl that is not kernels.rule.tl, Triton's language")
        elif isinstance(body, FunctionType) and body.__module__.startswith("triton."):
            raise Refused(f"uses Triton's {body.__name__} other than by tl")
        elif helper := jitted(found):
            if helper in (*callers, function):
                raise Refused(f"calls {name}, which calls itself")
            check_function(helper, (*callers, function))
        elif name != "len" or name in namespace:
            raise Refused(f"uses {describe(name, found)}")


def describe(name: str, found) -> str:
    """Describe what a global name stands for, and what to write instead."""
    if isinstance(found, ModuleType):
        return f"the module {name}"
    if isinstance(found, FunctionType):
        return f"{name}, which lacks @triton.jit"
    if found is None:
        return f"Python's {name}" if hasattr(builtins, name) else f"{name}, which is not defined"
    return f"{name}" if callable(found) else f"the global variable {name} (write its value, or make it a default)"


def check_function(function: FunctionType, callers: tuple = ()) -> None:
    """Raise Refused if a function does what a trial on values cannot show."""
    code = function.__code__
    kinds = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS | inspect.CO_GENERATOR | inspect.CO_COROUTINE
    kinds |= inspect.CO_ASYNC_GENERATOR
    if code.co_flags & kinds or code.co_kwonlyargcount or code.co_posonlyargcount or function.__defaults__:
        raise Refused(f"is or calls {function.__name__}, which has other than plain arguments, awaits or yields")
    if hasattr(function, "__wrapped__"):
        raise Refused(f"is or calls {function.__name__}, which a decorator has wrapped")
    source = source_of(function)
    for node in chain.from_iterable(map(ast.walk, source.body if source else [])):
        if not isinstance(node, STATEMENTS):
            raise Refused(f"has a {type(node).__name__} in line {getattr(node, 'lineno', '?')}")
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            raise Refused(f"uses .{node.attr}")
        if isinstance(node, ast.For) and not ast.unparse(node.iter).startswith("tl.static_range("):
            raise Refused(f"loops over {ast.unparse(node.iter)}")
        if isinstance(node, ast.Assign) and not simple(node.targets):
            raise Refused(f"assigns to more than a name or a tuple of names: {ast.unparse(node)}")
    check_names(function, callers)


def simple(targets: list[ast.expr]) -> bool:
    """Return whether Triton can assign to these targets: one name, or one tuple of names."""
    within = targets[0].elts if isinstance(targets[0], ast.Tuple) else ()
    return len(targets) == 1 and not any(isinstance(one, ast.Tuple) for one in within)


def source_of(function: FunctionType) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """Return the definition of a function; None if it is a lambda or its source cannot be read."""
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, SyntaxError, ValueError):
        return None
    return definition if isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef) else None


def helpers_of(function: FunctionType) -> Iterator[FunctionType]:
    """Yield the function and all helpers that it calls, directly or not."""
    yield function
    for name in names_of(function.__code__):
        if helper := jitted(function.__globals__.get(name)):
            yield from helpers_of(helper)


def call(function: Callable, what: str, name: str, n_arguments: int, arguments: tuple, double: bool):
    """Return what a function of a rule returns for values. Raises: ValueError if it does what it may not."""
    body = plain(function)
    if not isinstance(body, FunctionType) or not (body is function or jitted(function)):
        raise ValueError(f"{what} of {name} must be a function made by def, not {type(function).__name__}")
    if body.__code__.co_argcount != n_arguments:
        raise ValueError(f"{what} of {name} must take {n_arguments} arguments, not {body.__code__.co_argcount}")
    try:
        check_function(body)
        return rebind(body, Language(double))(*arguments)
    except Refused as error:
        raise ValueError(f"{what} of {name} {error}: {MAY}") from None
    except Exception as error:
        raise ValueError(f"{what} of {name} cannot be run: {type(error).__name__}: {error}") from error


def check(rule: Rule) -> None:
    """Try a rule on values that stand for any element.

    Raises: ValueError if it is not elementwise, if a backend could not run it, or if its results do not fit its states.
    """

    def values(names) -> tuple:
        return tuple(Value() for _ in names)

    def run(what: str, *inputs, double: bool):
        return call(getattr(rule, what), what, rule.name, len(inputs), inputs, double)

    scalars = values(rule.scalars)
    coefficients = run("coefficients", values(rule.hyper), Value(), *([scalars] if scalars else []), double=True)
    if scalars:
        coefficients = with_scalars("coefficients", rule, coefficients)
    check_tuple("coefficients", rule, coefficients)
    coefficients = values(coefficients)  # conditions are numbers from here on
    totals = ()
    if rule.sums:
        terms = run("sums", Value(), Value(), values(rule.states), coefficients, double=False)
        check_tuple("sums", rule, terms, numbers=True)
        totals = values(terms)
        if rule.finish:
            totals = with_scalars("finish", rule, run("finish", totals, coefficients, scalars, double=True))
            check_tuple("finish", rule, totals, numbers=True)
            totals = values(totals)
    inputs = Value(), Value(), values(rule.states), coefficients, *([totals] if rule.sums else [])
    result = run("update", *inputs, double=False)
    fits = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], tuple)
    if not fits or len(result[1]) != len(rule.states):
        expected = ", ".join(rule.states) or "nothing"
        raise ValueError(f"update of {rule.name} must return (p, state), state being a tuple of {expected}")
    if not all(isinstance(value, Value) and not value._is_condition for value in (result[0], *result[1])):
        raise ValueError(f"update of {rule.name} must return values that it computes from its arguments")
    for what, function in rule.functions.items():
        if unread := [f.__name__ for f in helpers_of(plain(function)) if source_of(f) is None]:
            raise ValueError(
                f"{what} of {rule.name}: the source of {unread[0]} cannot be read, and Triton compiles it: "
                "write it with def, in a file or a notebook"
            )


def with_scalars(what: str, rule: Rule, result) -> tuple:
    """Return the first of a function's two results. Raises: ValueError unless the second fits the rule's scalars."""
    fits = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], tuple)
    if not fits or len(result[1]) != len(rule.scalars) or not all(isinstance(x, Value) for x in result[1]):
        expected = ", ".join(rule.scalars) or "nothing"
        raise ValueError(f"{what} of {rule.name} must return (tuple, scalars), scalars being a tuple of {expected}")
    return result[0]


def check_tuple(what: str, rule: Rule, result, numbers: bool = False) -> None:
    """Raise ValueError unless a function returns a tuple of values or, with `numbers`, also of plain numbers."""
    if not isinstance(result, tuple):
        kind = "float64" if isinstance(result, Value) else type(result).__name__
        raise ValueError(f"{what} of {rule.name} must return a tuple, not {kind}")
    # Terms and totals are numbers; coefficients may be conditions.
    good = (
        (isinstance(x, Value) and not (numbers and x._is_condition)) or (numbers and type(x) in (int, float))
        for x in result
    )
    if not result or not all(good):
        raise ValueError(
            f"{what} of {rule.name} must return a tuple of one or more values that it computes from its arguments"
        )
