"""Pairs of functions, written by hand, that must or must not share a fingerprint."""

import ast
import textwrap

import pytest

from runtime.fingerprint import fingerprint, methods, spelling


def of(text: str) -> str:
    return fingerprint(ast.parse(textwrap.dedent(text)).body[0])


SAME = {
    "comments, docstring, layout": (
        """
        def f(self, x):
            '''Says something.'''
            # and more
            return self.a(x,
                          2)
        """,
        "def f(self, x): return self.a(x, 2)",
    ),
    "quotes and joined strings": (
        "def f(x): raise ValueError('a' \"b\" f'{x}' 'c')",
        'def f(x): raise ValueError(f"ab{x}c")',
    ),
    "annotations": (
        "def f(x: Optional[int] = None, *, y: str) -> int:\n    z: int = x\n    w: float\n    return g(z, y)",
        "def f(x=None, *, y):\n    z = x\n    return g(z, y)",
    ),
    "names of locals": (
        "def f(x):\n    for a, b in x:\n        c = g(a, b)\n        h(c, b)\n    return c",
        "def f(x):\n    for c, a in x:\n        b = g(c, a)\n        h(b, a)\n    return b",
    ),
    "names in comprehensions, one shadowing a local": (
        "def f(x):\n    i = g(x)\n    y = [i(j) for j in x]\n    return [i + 1 for i in y], i",
        "def f(x):\n    k = g(x)\n    z = [k(i) for i in x]\n    return [q + 1 for q in z], k",
    ),
    "nested comprehension with a walrus": (
        "def f(x):\n    return [[(y := g(a)) for a in b] for b in x], y",
        "def f(x):\n    return [[(last := g(a)) for a in row] for row in x], last",
    ),
    "names of nested functions and their locals": (
        "def f(x):\n    def inner(q):\n        t = q + x\n        return t * t\n    return inner(x)",
        "def f(x):\n    def helper(q):\n        s = q + x\n        return s * s\n    return helper(x)",
    ),
    "nonlocal": (
        "def f(x):\n    n = 0\n    def up():\n        nonlocal n\n        n += 1\n    up()\n    return n",
        "def f(x):\n    m = 0\n    def bump():\n        nonlocal m\n        m += 1\n    bump()\n    return m",
    ),
    "exception and import names": (
        "def f(x):\n    try:\n        from a import b\n    except E as e:\n        raise F(e)\n    return b(x)",
        "def f(x):\n    try:\n        from a import b as c\n    except E as g:\n        raise F(g)\n    return c(x)",
    ),
    "match captures": (
        """
        def f(x):
            match x:
                case [a, *b]:
                    return a, b
                case {"k": v, **w}:
                    return v, w
        """,
        """
        def f(x):
            match x:
                case [p, *q]:
                    return p, q
                case {"k": s, **t}:
                    return s, t
        """,
    ),
    "*args and **kwargs": (
        "def f(self, *args, **kwargs): return self.g(*args, **kwargs)",
        "def f(self, *rest, **more): return self.g(*rest, **more)",
    ),
    "keyword order": (
        "def f(self, x): return g(x, b=self.b, a=1, c=x, **self.k)",
        "def f(self, x): return g(x, a=1, c=x, b=self.b, **self.k)",
    ),
    "keyword order beside one call": (
        "def f(x): return g(a=h(x), b=x, c=1)",
        "def f(x): return g(c=1, b=x, a=h(x))",
    ),
    "keyword order of pure operations": (
        "def f(self, x): return g(p=x[0] * 2, d=0.0 if not self.training else self.d)",
        "def f(self, x): return g(d=self.d if self.training else 0.0, p=x[0] * 2)",
    ),
    "parentheses": ("def f(a, b, c): return (a + b) + (c * 2)", "def f(a, b, c): return a + b + c * 2"),
    "attribute through a local": (
        "def f(self, x):\n    cfg = self.config\n    y = self.norm(x)\n    return y * cfg.scale + cfg.shift",
        "def f(self, x):\n    y = self.norm(x)\n    return y * self.config.scale + self.config.shift",
    ),
    "attribute through two locals": (
        "def f(self, x):\n    cfg = self.config\n    scale = cfg.scale\n    return x * scale",
        "def f(self, x):\n    return x * self.config.scale",
    ),
    "submodule through a local": (
        "def f(self, x):\n    act = self.act\n    return act(x) * act(x)",
        "def f(self, x): return self.act(x) * self.act(x)",
    ),
    "parameter through a local": (
        "def f(x):\n    y = x\n    return g(y, y)",
        "def f(x): return g(x, x)",
    ),
    "attribute through a local in a loop": (
        "def f(self, xs):\n    for x in xs:\n        kind = x.kind\n        self.take(kind)\n    return xs",
        "def f(self, xs):\n    for x in xs:\n        self.take(x.kind)\n    return xs",
    ),
    "alias read in comprehensions that reuse the root's name": (
        "def f(self, layer):\n    n = layer.n\n    return [layer + n for layer in self.x]",
        "def f(self, layer):\n    n = layer.n\n    return [other + n for other in self.x]",
    ),
    "dtype through a local, past method calls": (
        "def f(self, x):\n    dtype = x.dtype\n    y = x.float()\n    return y.to(dtype)",
        "def f(self, x):\n    y = x.float()\n    return y.to(x.dtype)",
    ),
    "early return": (
        "def f(x):\n    if x.a:\n        return g(x)\n    else:\n        return h(x)",
        "def f(x):\n    if x.a:\n        return g(x)\n    return h(x)",
    ),
    "early return, else continues": (
        "def f(x):\n    if not x.a:\n        y = g(x)\n    else:\n        return x\n    return h(y)",
        "def f(x):\n    if x.a:\n        return x\n    y = g(x)\n    return h(y)",
    ),
    "return of a conditional": (
        "def f(x):\n    return g(x) if x.a is not None else h(x)",
        "def f(x):\n    if x.a is None:\n        return h(x)\n    return g(x)",
    ),
    "assignment of a conditional": (
        "def f(self, x):\n    y = self.a if self.c else x\n    self.z = x if not self.c else y\n    return y",
        """
        def f(self, x):
            if not self.c:
                y = x
            else:
                y = self.a
            if self.c:
                self.z = y
            else:
                self.z = x
            return y
        """,
    ),
    "continue or nesting": (
        "def f(xs):\n    for x in xs:\n        if x.a:\n            continue\n        g(x)",
        "def f(xs):\n    for x in xs:\n        if not x.a:\n            g(x)",
    ),
    "last bare return": (
        "def f(x):\n    g(x)\n    if x:\n        return None\n    h(x)\n    return",
        "def f(x):\n    g(x)\n    if not x:\n        h(x)",
    ),
    "value through a local just before return": (
        "def f(self, x):\n    out: Tensor = self.g(x)\n    return out",
        "def f(self, x): return self.g(x)",
    ),
    "elif or else if": (
        "def f(x):\n    if x.a:\n        g()\n    elif x.b:\n        h()\n    else:\n        k()",
        "def f(x):\n    if x.a:\n        g()\n    else:\n        if not x.b:\n            k()\n        else: h()",
    ),
    "not in": ("def f(x, y): return g(not x in y)", "def f(x, y): return g(x not in y)"),
    "documentation decorators": (
        "@auto_docstring(custom_intro='a')\n@can_return_tuple\ndef f(x): return x",
        "@can_return_tuple\n@auto_docstring\ndef f(x): return x",
    ),
    "class annotations": (
        "class A(B):\n    '''doc'''\n    x: Optional[int] = None\n    y: 'int | str' = 1",
        "class A(B):\n    x: int | None = None\n    y: Union[str, int] = 1",
    ),
    "pass": ("class A(B):\n    pass", "class A(B):\n    '''Nothing more.'''"),
    "numbers": ("def f(x): return x * 1e-2 + 0x10", "def f(x): return x * 0.01 + 16"),
}

DIFFERENT = {
    "order of statements": ("def f(x):\n    g(x)\n    h(x)", "def f(x):\n    h(x)\n    g(x)"),
    "operand order": ("def f(a, b): return a - b", "def f(a, b): return b - a"),
    "association": ("def f(a, b, c): return a + (b + c)", "def f(a, b, c): return a + b + c"),
    "operator": ("def f(a, b): return a * b", "def f(a, b): return a @ b"),
    "int or float": ("def f(a): return g(1)", "def f(a): return g(1.0)"),
    "int or bool": ("def f(a): return g(1)", "def f(a): return g(True)"),
    "zero and minus zero": ("def f(a): return a * 0.0", "def f(a): return a * -0.0"),
    "str or bytes": ("def f(a): return g('a')", "def f(a): return g(b'a')"),
    "str or name": ("def f(a): return g('a')", "def f(a): return g(a)"),
    "in place": ("def f(a, b):\n    a += b\n    return a", "def f(a, b):\n    a = a + b\n    return a"),
    "called name": ("def f(a): return g(a)", "def f(a): return h(a)"),
    "attribute": ("def f(a): return a.b", "def f(a): return a.c"),
    "parameter name": ("def f(a): return g(a)", "def f(b): return g(b)"),
    "keyword only": ("def f(a, b): return g(a, b)", "def f(a, *, b): return g(a, b)"),
    "default": ("def f(a=None): return g(a)", "def f(a=0): return g(a)"),
    "default or none": ("def f(*, a=None): return g(a)", "def f(*, a): return g(a)"),
    "which parameter has the default": ("def f(*, a, b=1): return a", "def f(*, a=1, b): return a"),
    "positional or keyword": ("def f(a, b): return g(a, b)", "def f(a, b): return g(a, b=b)"),
    "keyword name": ("def f(a): return g(x=a)", "def f(a): return g(y=a)"),
    "keyword values swapped": ("def f(a, b): return g(x=a, y=b)", "def f(a, b): return g(x=b, y=a)"),
    "order of calls in keywords": ("def f(a): return g(x=h(a), y=k(a))", "def f(a): return g(y=k(a), x=h(a))"),
    "order of a read and a call": ("def f(a): return g(x=a.b, y=k(a))", "def f(a): return g(y=k(a), x=a.b)"),
    "order of walrus and read": (
        "def f(a):\n    t = 1\n    return g(x=(t := h(a)), y=t)",
        "def f(a):\n    t = 1\n    return g(y=t, x=(t := h(a)))",
    ),
    "order of a dict's keys": ("def f(a): return dict(x=1, y=2)", "def f(a): return dict(y=2, x=1)"),
    "kwargs dropped": ("def f(a, **k): return g(a, **k)", "def f(a, **k): return g(a)"),
    "star": ("def f(a): return g(*a)", "def f(a): return g(a)"),
    "which local": (
        "def f(x):\n    a = g(x)\n    b = h(x)\n    return k(a, b)",
        "def f(x):\n    a = g(x)\n    b = h(x)\n    return k(b, a)",
    ),
    "local or global": ("def f(x):\n    y = g(x)\n    return h(y)", "def f(x):\n    z = g(x)\n    return h(y)"),
    "local or parameter": ("def f(x):\n    y = g(x)\n    return h(x)", "def f(x):\n    y = g(x)\n    return h(y)"),
    "global statement": ("def f(x):\n    global n\n    n = x", "def f(x):\n    n = x"),
    "which global": ("def f(x):\n    global n\n    n = x", "def f(x):\n    global m\n    m = x"),
    "nonlocal statement": (
        "def f(x):\n    n = 0\n    def g():\n        nonlocal n\n        n = 1\n    g()\n    return h(n, 0)",
        "def f(x):\n    n = 0\n    def g():\n        n = 1\n    g()\n    return h(n, 0)",
    ),
    "comprehension target leaks not": (
        "def f(x, i): return [g(i) for i in x], i",
        "def f(x, i): return [g(j) for j in x], j",
    ),
    "comprehension condition": (
        "def f(x): return [a for a in x if a]",
        "def f(x): return [a for a in x if not a]",
    ),
    "list or generator": ("def f(x): return g([a for a in x])", "def f(x): return g(a for a in x)"),
    "order of clauses": (
        "def f(x, y): return [g(a, b) for a in x for b in y]",
        "def f(x, y): return [g(a, b) for b in y for a in x]",
    ),
    "names that the program reads": (
        "def f(x):\n    a = g(x)\n    return locals()",
        "def f(x):\n    b = g(x)\n    return locals()",
    ),
    "alias rebound": (
        "def f(x):\n    y = x\n    x = g(x)\n    return x + y",
        "def f(x):\n    x = g(x)\n    return x + x",
    ),
    "residual": (
        "def f(self, x):\n    residual = x\n    x = self.norm(x)\n    return residual + self.mlp(x)",
        "def f(self, x):\n    x = self.norm(x)\n    return x + self.mlp(x)",
    ),
    "attribute stored in between": (
        "def f(self, x):\n    n = self.n\n    self.n = g(x)\n    return n",
        "def f(self, x):\n    self.n = g(x)\n    return self.n",
    ),
    "attribute of a changed object": (
        "def f(cache, x):\n    n = cache.seen\n    y = cache.update(x)\n    return y, n",
        "def f(cache, x):\n    y = cache.update(x)\n    return y, cache.seen",
    ),
    "attribute of a changed argument": (
        "def f(cache, x):\n    n = cache.seen\n    update(cache, x)\n    return n",
        "def f(cache, x):\n    update(cache, x)\n    return cache.seen",
    ),
    "attribute of a changed self": (
        "def f(self, x):\n    n = self.n\n    self.advance(x)\n    return n",
        "def f(self, x):\n    self.advance(x)\n    return self.n",
    ),
    "attribute of a changed self through an alias": (
        "def f(self, x):\n    n = self.state.n\n    s = self.state\n    s.advance(x)\n    return n",
        "def f(self, x):\n    s = self.state\n    s.advance(x)\n    return self.state.n",
    ),
    "alias across iterations": (
        "def f(self, xs):\n    y = xs\n    for x in xs:\n        g(y)\n        xs = h(x)\n",
        "def f(self, xs):\n    for x in xs:\n        g(xs)\n        xs = h(x)\n",
    ),
    "alias bound in one branch": (
        "def f(self, x):\n    y = 1\n    if x:\n        y = self.a\n    return y",
        "def f(self, x):\n    y = 1\n    if x:\n        pass\n    return self.a",
    ),
    "alias changed by a closure": (
        "def f(x):\n    n = x\n    def g():\n        nonlocal n\n        n = 2\n    m = n\n    g()\n    return m",
        "def f(x):\n    n = x\n    def g():\n        nonlocal n\n        n = 2\n    g()\n    return n",
    ),
    "late closure": (
        "def f(self, x):\n    y = x\n    g = lambda: y\n    x = 2\n    return g()",
        "def f(self, x):\n    g = lambda: x\n    x = 2\n    return g()",
    ),
    "test negated": ("def f(x):\n    if x:\n        g()", "def f(x):\n    if not x:\n        g()"),
    "return or go on": (
        "def f(x):\n    if x:\n        g()\n        return\n    h()",
        "def f(x):\n    if x:\n        g()\n    h()",
    ),
    "else dropped": (
        "def f(x):\n    if x:\n        g()\n    else:\n        h()",
        "def f(x):\n    if x:\n        g()\n    h()",
    ),
    "break or continue": (
        "def f(xs):\n    for x in xs:\n        if x:\n            break\n        g(x)",
        "def f(xs):\n    for x in xs:\n        if x:\n            continue\n        g(x)",
    ),
    "elif or if": (
        "def f(x):\n    if x.a:\n        g()\n    elif x.b:\n        h()",
        "def f(x):\n    if x.a:\n        g()\n    if x.b:\n        h()",
    ),
    "loop else": (
        "def f(xs):\n    for x in xs:\n        g(x)\n    else:\n        h()",
        "def f(xs):\n    for x in xs:\n        g(x)\n        h()",
    ),
    "statement moved into a loop": (
        "def f(xs):\n    for x in xs:\n        g(x)\n    h()",
        "def f(xs):\n    for x in xs:\n        g(x)\n        h()",
    ),
    "finally sees the local": (
        "def f(x):\n    y = 0\n    try:\n        y = g(x)\n        return y\n    finally:\n        h(y)",
        "def f(x):\n    y = 0\n    try:\n        return g(x)\n    finally:\n        h(y)",
    ),
    "and, or": ("def f(a, b): return g(a and b)", "def f(a, b): return g(a or b)"),
    "order of and": ("def f(a, b): return g(a and b)", "def f(a, b): return g(b and a)"),
    "is or ==": ("def f(a, b): return g(a is b)", "def f(a, b): return g(a == b)"),
    "not equal is not the negation": ("def f(a, b): return g(a != b)", "def f(a, b): return g(not a == b)"),
    "double negation of a value": ("def f(a): return g(not not a)", "def f(a): return g(a)"),
    "generator": ("def f(a):\n    return a\n    yield", "def f(a):\n    return a"),
    "async": ("async def f(a): return a", "def f(a): return a"),
    "decorator": ("@torch.no_grad()\ndef f(a): return a", "def f(a): return a"),
    "order of decorators": ("@a\n@b\ndef f(x): return x", "@b\n@a\ndef f(x): return x"),
    "import of a submodule": (
        "def f():\n    import a.b\n    return a.c",
        "def f():\n    import a.b as a\n    return a.c",
    ),
    "what is imported": ("def f():\n    from a import b\n    return b", "def f():\n    from a import c\n    return c"),
    "format": ("def f(a): return g(f'{a!r}')", "def f(a): return g(f'{a}')"),
    "bases": ("class A(B): pass", "class A(C): pass"),
    "class attribute": ("class A(B):\n    x = 1", "class A(B):\n    x = 2"),
    "class attribute name": ("class A(B):\n    x = 1", "class A(B):\n    y = 1"),
    "class annotation": ("class A(B):\n    config: C", "class A(B):\n    config: D"),
    "field or constant": ("class A(B):\n    x: int = 1", "class A(B):\n    x = 1"),
    "method body": ("class A:\n    def f(self): return 1", "class A:\n    def f(self): return 2"),
    "slice bounds": ("def f(x): return x[1:]", "def f(x): return x[:1]"),
    "tuple or list": ("def f(x): return g((x, 1))", "def f(x): return g([x, 1])"),
    "unpacking": ("def f(x):\n    a, b = x\n    return g(a, b)", "def f(x):\n    b, a = x\n    return g(a, b)"),
    "starred unpacking": (
        "def f(x):\n    a, *b = x\n    return g(a, b)",
        "def f(x):\n    *a, b = x\n    return g(a, b)",
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_spellings_of_one_meaning_share_a_fingerprint(name: str) -> None:
    one, other = SAME[name]
    assert of(one) == of(other)


@pytest.mark.parametrize("name", DIFFERENT)
def test_two_meanings_have_two_fingerprints(name: str) -> None:
    one, other = DIFFERENT[name]
    assert of(one) != of(other)


def test_every_pair_is_a_pair_of_different_texts_that_compile() -> None:
    for one, other in [*SAME.values(), *DIFFERENT.values()]:
        assert one != other
        compile(textwrap.dedent(one), "one", "exec")
        compile(textwrap.dedent(other), "other", "exec")


def test_fingerprint_is_sixteen_hex_characters_and_stable() -> None:
    digest = of("def f(self, x): return self.norm(x) * 2")
    assert len(digest) == 16 and int(digest, 16) >= 0
    # A changed canonical form must come with a new SCHEME: stored fingerprints would all look semantic otherwise.
    assert digest == "c0ec2e1c3bc7ff68"


def test_the_tree_is_left_alone() -> None:
    tree = ast.parse(textwrap.dedent(SAME["early return, else continues"][0]))
    before = ast.dump(tree, include_attributes=True)
    fingerprint(tree.body[0])
    assert ast.dump(tree, include_attributes=True) == before


def test_many_early_returns_and_long_sums_do_not_exhaust_the_stack() -> None:
    lines = ["def f(x):"]
    lines += [f"    if x == {number}:\n        return {number}" for number in range(2000)]
    lines += ["    return " + " + ".join(["x"] * 2000)]
    text = "\n".join(lines)
    assert of(text) == of(text.replace("return 1999", "return  1999"))
    assert of(text) != of(text.replace("return 1999", "return 1998"))


SOURCE = '''
@decorate
class A(B):
    """Doc."""

    x: int = 1  # why

    def f(self):
        # inside
        return 1

    @property
    def p(self):
        return 1

    @p.setter
    def p(self, value):
        self.q = value

    class Inner:
        def f(self):
            return 2


if torch:
    def g():
        return 1
else:
    def g():
        return 2


try:
    import z
except ImportError:
    def h():
        def inside():
            pass
'''


def test_methods_names_everything_once_in_order() -> None:
    found = methods(ast.parse(SOURCE))
    assert list(found) == ["A", "A.f", "A.p", "A.p#2", "A.Inner", "A.Inner.f", "g", "g#2", "h"]
    assert isinstance(found["A"], ast.ClassDef)
    assert fingerprint(found["g"]) != fingerprint(found["g#2"])


def test_class_level_changes_with_the_class_and_not_with_its_methods() -> None:
    def level(source: str) -> tuple[str, str]:
        node = methods(ast.parse(source))["A"]
        return fingerprint(node), spelling(node, source)

    assert level(SOURCE) == level(SOURCE.replace("return 1", "return 3").replace("# inside", "# within"))
    assert level(SOURCE)[0] != level(SOURCE.replace("x: int = 1", "x: int = 2"))[0]
    assert level(SOURCE)[0] != level(SOURCE.replace("@decorate", "@decorated"))[0]
    assert level(SOURCE)[0] == level(SOURCE.replace("# why", "# because"))[0]
    assert level(SOURCE)[1] != level(SOURCE.replace("# why", "# because"))[1]


def test_a_whole_class_contains_its_methods() -> None:
    whole = ast.parse(SOURCE).body[0]
    assert isinstance(whole, ast.ClassDef)
    other = ast.parse(SOURCE.replace("return 2", "return 3", 1)).body[0]
    assert isinstance(other, ast.ClassDef)
    assert fingerprint(whole) != fingerprint(other)


def test_spelling_sees_everything_but_trailing_space() -> None:
    def spelled(source: str) -> str:
        return spelling(methods(ast.parse(source))["A.f"], source)

    assert spelled(SOURCE) == spelled(SOURCE.replace("# inside", "# inside   "))
    assert spelled(SOURCE) == spelled("\n\n" + SOURCE)
    assert spelled(SOURCE) == spelled(SOURCE.replace("\n", "\r\n"))
    assert spelled(SOURCE) != spelled(SOURCE.replace("# inside", "#  inside"))
    assert spelled(SOURCE) != spelled(SOURCE.replace("return 1", "return (1)"))


def test_spelling_includes_decorators() -> None:
    def spelled(source: str) -> str:
        return spelling(methods(ast.parse(source))["A.p"], source)

    assert spelled(SOURCE) != spelled(SOURCE.replace("@property", "@property  # read"))
