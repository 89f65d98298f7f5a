"""Config fields that steer code: one small source per way of using a field, then upstream's own files."""

import ast
import importlib.util
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

from codegen.recognize.switches import Switch, SwitchKind, config_reads, config_switches


def found(
    source: str, classes: tuple[str, ...] = ("M",), helpers: Mapping[str, tuple[str, ...]] | None = None
) -> dict[str, str]:
    """Field -> kinds, joined by a blank."""
    switches = config_switches(ast.parse(textwrap.dedent(source)), classes, (), helpers or {})
    kinds: dict[str, list[str]] = {}
    for switch in switches:
        kinds.setdefault(switch.field, []).append(switch.kind.value)
    return {field: " ".join(names) for field, names in kinds.items()}


def module(
    init: str = "pass", forward: str = "return x", more: str = "", parameters: str = "config", method: str = ""
) -> str:
    """A class M with these bodies and another method, followed by more top-level code."""
    lines = ["class M(nn.Module):", f"    def __init__(self, {parameters}):", "        super().__init__()"]
    lines += textwrap.indent(textwrap.dedent(init), "        ").splitlines()
    lines += ["    def forward(self, x, labels=None, **kwargs):"]
    lines += textwrap.indent(textwrap.dedent(forward), "        ").splitlines()
    lines += textwrap.indent(textwrap.dedent(method), "    ").splitlines()
    return "\n".join(lines) + "\n\n" + textwrap.dedent(more)


READS = {
    "of the parameter": module("if config.a: self.b = 1"),
    "of self.config": module("self.config = config", "if self.config.a: x = g(x)\nreturn x"),
    "of the config of somebody else": module("pass", "if x.config.a: x = g(x)\nreturn x"),
    "by getattr": module("if getattr(config, 'a', False): self.b = 1"),
    "by getattr with a default from the config": module("if getattr(config, 'a', config.a): self.b = 1"),
    "through a local": module("c = config\nif c.a: self.b = 1"),
    "through an attribute": module("self.a = config.a", "if self.a: x = g(x)\nreturn x"),
    "through an attribute in a conditional": module(
        "self.b = config.a if True else None", "if self.b is not None: x = g(x)\nreturn x"
    ),
    "through an attribute under another name": module("self.b = not config.a"),
    "through a getattr of the object": module("self.b = config.a", "if getattr(self, 'b', None): x = g(x)\nreturn x"),
    "through a property": module(
        "self.config = config",
        "return g(x) if self.b else x",
        method="@property\ndef b(self):\n    return self.config.a",
    ),
    "through a helper method": module(
        "self.config = config",
        "return self.h(x)",
        method="def h(self, x):\n    return x if self.config.a else g(x)",
    ),
    "through a static method": module(
        "self.b = self.h(config)",
        "return x if self.b else g(x)",
        method="@staticmethod\ndef h(c):\n    return c.a",
    ),
    "through a copy of the config": module("config = copy.deepcopy(config)\nif config.a: self.b = 1"),
    "through a function": module(
        "self.config = config", "return f(self, x)", "def f(m, x):\n    return x if m.config.a else g(x)"
    ),
    "through an argument of a function": module(
        "self.b = config.a",
        "return f(x, b=self.b)",
        "def f(x, b=None):\n    if b is not None:\n        x = g(x)\n    return x",
    ),
    "through a result of a function": module(
        "self.b = f(config)", "return x if self.b else g(x)", "def f(c): return c.a"
    ),
    "through a tuple": module("self.b, self.c = config.a, 1", "return x if self.b else g(x)"),
    "through arithmetic of numbers": module("self.b = 2 * config.a + 1", "return x if self.b > 3 else g(x)"),
    "through builtins": module("self.b = int(max(config.a, 0))", "return x if self.b else g(x)"),
    "through a list of the config": module("self.b = config.a[3]", "return x if self.b == 'x' else g(x)"),
    "through a loop over a list": module("for b in config.a:\n    if b == 'x':\n        self.c = 1"),
    "through a set": module("self.b = list(set(config.a))", "return x if 'y' in self.b else g(x)"),
    "through a loop that carries it": module("b = None\nfor _ in y:\n    if b:\n        self.c = 1\n    b = config.a"),
    "in a comprehension": module("self.b = [g(y) for y in config.layers if config.a]"),
    "in a module list": module("self.b = nn.ModuleList([g(config) if i % config.a == 0 else h() for i in range(3)])"),
    "in a while": module("self.config = config", "while self.config.a: x = g(x)\nreturn x"),
    "in a match": module("match config.a:\n    case 'x':\n        self.b = 1"),
    "in a comparison with an argument": module("self.b = layer >= config.a", parameters="config, layer"),
    "in an and": module("self.b = config.a and layer", parameters="config, layer"),
    "in an assertion of membership": module("self.b = layer in config.a", parameters="config, layer"),
    "with an annotated parameter": module("if c.a: self.b = 1", parameters="c: XConfig"),
    "with an optional annotation": module("if c.a: self.b = 1", parameters="c: XConfig | None = None"),
}


@pytest.mark.parametrize("way", READS)
def test_branches_are_found_however_the_field_is_read(way: str) -> None:
    assert "branch" in found(READS[way]).get("a", ""), found(READS[way])


USES = {
    "flag of a layer": (module("self.b = nn.Linear(3, 4, bias=config.a)"), "flag"),
    "flag by position": (module("self.b = nn.Linear(3, 4, config.a)"), "flag"),
    "affine norm": (module("self.b = nn.LayerNorm(3, elementwise_affine=config.a)"), "flag"),
    "table": (module("self.b = ACT2FN[config.a]"), "dispatch"),
    "table by get": (module("self.b = TABLE.get(config.a, None)"), "dispatch"),
    "attribute by name": (module("self.b = config.a", "return getattr(self, f'{self.b}_weight')"), "dispatch"),
    "mask by layer type": (
        module("self.config = config", "for i in y:\n    x = g(masks[self.config.a[i]])\nreturn x"),
        "dispatch",
    ),
    "factor": (module("self.b = config.a", "return x * self.b"), "scale"),
    "divisor": (module("self.config = config", "return x / self.config.a"), "scale"),
    "power that becomes a factor": (module("self.b = config.a**-0.5", "return g(x * self.b)"), "scale"),
    "factor in place": (module("self.b = config.a", "x *= self.b\nreturn x"), "scale"),
    "factor in a tensor": (module("self.b = config.a", "b = torch.tensor(self.b)\nreturn x * b"), "scale"),
    "epsilon of a layer": (module("self.b = nn.LayerNorm(3, eps=config.a)"), "scale"),
    "epsilon by position": (module("self.b = nn.LayerNorm(3, config.a)"), "scale"),
    "table of frequencies": (
        module("b = 1.0 / config.a ** torch.arange(3)\nself.register_buffer('f', b)", "return self.f @ x"),
        "scale",
    ),
    "groups": (module("self.b = config.a", "return x.view(-1, self.b, 4)"), "shape"),
    "share of a head": (module("self.b = int(config.a * 8)", "return x[..., : self.b]"), "shape"),
    "top-k": (module("self.b = config.a", "return torch.topk(x, self.b, dim=-1)"), "option"),
    "clamp": (module("self.b = config.a", "return x.clamp(min=-self.b, max=self.b)"), "option"),
    "imported function": (module("self.b = get_activation(config.a)"), "option"),
    "attention interface": (module("self.b = config.a", "return interface(self, x, window=self.b)"), "option"),
    "weight": (module("self.b = nn.Linear(config.a, 4)"), "size"),
    "weight by product": (module("self.d = config.a\nself.b = nn.Linear(4, 2 * self.d)"), "size"),
    "parameter": (module("self.b = nn.Parameter(torch.empty(config.a, 4))"), "size"),
    "layers": (module("self.b = nn.ModuleList([g(i) for i in range(config.a)])"), "size"),
    "weight and view": (
        module("self.d = config.a\nself.b = nn.Linear(4, self.d)", "return x.view(-1, self.d)"),
        "size",
    ),
    "weight and scale": (
        module("self.s = config.a**-0.5\nself.b = nn.Linear(4, config.a)", "return x * self.s"),
        "size",
    ),
    "weight and test": (module("self.b = nn.Linear(4, config.a)\nif config.a > 3: self.c = 1"), "branch size"),
    "weight that may be left out": (
        module("b = config.a if config.a is not None else 4\nself.b = nn.Linear(4, b)"),
        "size",
    ),
    "weight filled in": (module("b = config.a\nif b is None:\n    b = 4\nself.b = nn.Linear(4, b)"), "size"),
    "weight that decides": (
        module("if config.a is None:\n    self.b = nn.Linear(3, 4)\nelse:\n    self.b = nn.Linear(4, config.a)"),
        "branch size",
    ),
    "dropout layer": (module("self.b = nn.Dropout(config.a)"), "training"),
    "dropout function": (
        module("self.b = config.a", "return F.dropout(x, p=self.b, training=self.training)"),
        "training",
    ),
    "dropout of the attention": (
        module("self.b = config.a", "return interface(x, dropout=0.0 if not self.training else self.b)"),
        "training",
    ),
    "noise": (
        module("self.b = config.a", "if self.training and self.b > 0:\n    x = x * self.b\nreturn x"),
        "training",
    ),
    "loss": (module("self.b = config.a", "if labels is not None:\n    x = loss(x) * self.b\nreturn x"), "training"),
    "a function that trains and infers": (
        module(
            "self.b = config.a",
            "return f(x, self.b, training=self.training)",
            "def f(x, b, training):\n    return x > b",
        ),
        "branch",
    ),
    "argument left out": (
        """
        class M(nn.Module):
            def forward(self, x, a=None):
                a = a if a is not None else self.config.a
                return g(x, a)
        """,
        "default",
    ),
    "kept": (module("self.b = config.a"), "stored"),
    "checked": (module("self.b = config.a\nif config.a < 3:\n    raise ValueError('no')"), "stored"),
    "warned of": (module("self.b = config.a\nif config.a:\n    logger.warning_once('no')"), "stored"),
}


@pytest.mark.parametrize("use", USES)
def test_what_a_field_is_used_for(use: str) -> None:
    source, kinds = USES[use]
    assert found(source).get("a") == kinds, found(source)


def test_fields_of_nested_configs_and_keys_are_named() -> None:
    source = module(
        """
        self.config = config
        self.b = config.text_config.a
        self.kind = config.rope["type"]
        self.share = config.rope.get("share", 1.0)
        """,
        "return x * self.share if self.b and self.kind == 'x' else x",
    )
    switches = config_switches(ast.parse(source), ["M"])
    assert [(s.field, s.kind.value, s.keys) for s in switches] == [
        ("rope", "branch", ("share", "type")),
        ("rope", "scale", ("share", "type")),
        ("text_config.a", "branch", ()),
    ]


def test_lines_are_those_of_the_uses() -> None:
    source = module(
        "self.a = config.a\nself.b = nn.Linear(3, 4, bias=config.b)", "if self.a: x = g(x)\nreturn x if self.a else -x"
    )
    switches = config_switches(ast.parse(source), ["M"])
    assert switches == (
        Switch("a", SwitchKind.BRANCH, (7, 8)),
        Switch("b", SwitchKind.FLAG, (5,)),
    )


def test_constructors_hand_fields_on_to_the_classes_of_the_file() -> None:
    source = """
    class Norm(nn.Module):
        def __init__(self, size, eps=1e-6):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(size))
            self.eps = eps
        def forward(self, x):
            return self.weight * x * torch.rsqrt(x + self.eps)

    class Scaled(nn.Embedding):
        def __init__(self, count, size, pad, scale=1.0):
            super().__init__(count, size, pad)
            self.scale = scale
        def forward(self, x):
            return super().forward(x) * self.scale

    class Plain(nn.Linear):
        def forward(self, x):
            return x @ self.weight

    class Base(nn.Module):
        def __init__(self, config, wide):
            super().__init__()
            self.kind = config.kind
            self.wide = wide

    class M(Base):
        def __init__(self, config):
            super().__init__(config, wide=config.wide)
            self.norm = Norm(config.hidden, eps=config.eps)
            self.embed = Scaled(config.count, config.hidden, config.pad, scale=config.scale)
            self.plain = Plain(config.hidden, config.hidden, bias=config.bias)
            self.rest = [Norm(config.hidden) for _ in range(3)]
        def forward(self, x):
            for layer in self.rest:
                x = layer(x)
            if self.kind == "a" or self.wide:
                x = self.norm(x)
            return x
    """
    assert found(source, ("M", "Base", "Norm", "Scaled", "Plain")) == {
        "kind": "branch",
        "wide": "branch",
        "hidden": "size",
        "eps": "scale",
        "count": "size",
        "pad": "size",
        "scale": "scale",
        "bias": "flag",
    }


def test_attributes_of_layers_are_followed_into_the_model() -> None:
    source = """
    class Layer(nn.Module):
        def __init__(self, config, index):
            super().__init__()
            self.kind = config.kinds[index]
        def forward(self, x, mask):
            return x + mask

    class M(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.layers = nn.ModuleList([Layer(config, i) for i in range(config.count)])
        def forward(self, x):
            masks = {"a": build(x), "b": build(-x)}
            for layer in self.layers[: self.config.count]:
                x = layer(x, mask=masks[layer.kind])
            return x
    """
    assert found(source, ("M", "Layer")) == {"kinds": "dispatch", "count": "size"}


def test_a_function_that_an_interface_gives_back_is_followed() -> None:
    source = module(
        "self.cap = config.cap\nself.window = config.window",
        """
        attend = ALL.get_interface(self.config._impl, eager)
        return attend(self, x, cap=self.cap, window=self.window)
        """,
        "def eager(module, x, cap=None, **kwargs):\n    if cap is not None:\n        x = x / cap\n    return x",
    )
    assert found(source) == {"cap": "branch scale", "window": "option"}


def test_classes_and_functions_in_tables_are_followed() -> None:
    source = """
    class A(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.cap = config.cap
        def forward(self, x):
            return x / self.cap

    TABLE = {"a": A, "b": None}

    class M(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.a = TABLE[config.kind](config)
    """
    assert found(source, ("M", "A")) == {"cap": "scale", "kind": "dispatch"}


def test_methods_that_neither_constructor_nor_forward_reach_play_no_part() -> None:
    source = module(method="def _init_weights(self, m):\n    init.normal_(m.weight, std=self.config.a)")
    assert found(source) == {}


def test_the_framework_s_own_attributes_are_left_out() -> None:
    assert found(module("self.b = TABLE[config._attn_implementation]")) == {}


def test_tied_weights_of_a_head_are_a_switch() -> None:
    source = "class M(nn.Module):\n    _tied_weights_keys = {'head.weight': 'embed.weight'}"
    (switch,) = config_switches(ast.parse(source), ["M"])
    assert switch == Switch("tie_word_embeddings", SwitchKind.TIED, (2,))
    assert found(source.replace("{'head.weight': 'embed.weight'}", "{}")) == {}


def test_helpers_that_are_given_the_whole_config() -> None:
    masks = ast.parse(
        textwrap.dedent(
            """
            def window_mask(config, x):
                window = getattr(config, "window", None)
                return overlay(config, x, window)

            def overlay(config, x, window):
                return config._impl(x, window, config.get_text_config().heads, config.kinds)

            def other(x):
                return x.config.nothing
            """
        )
    )
    helpers = config_reads(masks)
    assert helpers == {"window_mask": ("kinds", "window"), "overlay": ("kinds",)}
    source = module(
        "self.config = config", "build = {'a': window_mask}['a']\nk = {'config': self.config}\nreturn build(**k)"
    )
    assert found(source) == {}
    assert found(source, helpers=helpers) == {"kinds": "option", "window": "option"}


def test_unknown_names_are_an_error() -> None:
    with pytest.raises(ValueError, match="not defined in the module: N, f"):
        config_switches(ast.parse("class M: pass"), ["M", "N"], ["f"])


def test_recursive_code_ends() -> None:
    source = module(
        "self.config = config",
        "return f(self.config, x)",
        """
        def f(config, x):
            while config.text_config:
                config = config.text_config
            return f(config, x) if config.a else x
        """,
    )
    assert "branch" in found(source)["a"]


# ----------------------------------------------------------------------------------------------------- upstream's files


def _models() -> Path:
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations))) / "models"


def _tree(family: str) -> ast.Module:
    return ast.parse((_models() / family / f"modeling_{family}.py").read_text(encoding="utf-8"))


def _below(tree: ast.Module, head: str) -> list[str]:
    """The classes that a head mentions, directly, through others, or through a table of the module."""
    nodes: dict[str, ast.stmt] = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    tables = {
        target.id: node
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    seen: set[str] = set()
    todo = [head]
    while todo:
        name = todo.pop()
        node = nodes.get(name) or tables.get(name)
        if name not in seen and node is not None:
            seen.add(name)
            parts = node.body if isinstance(node, ast.ClassDef) else [node]
            todo += [part.id for inner in parts for part in ast.walk(inner) if isinstance(part, ast.Name)]
    return sorted(seen & nodes.keys())


LLAMA_LIKE = {
    "hidden_act": "dispatch",
    "num_attention_heads": "branch",  # `n_rep == 1` in repeat_kv
    "num_key_value_heads": "branch",
    "rms_norm_eps": "scale",
    "rope_parameters": "branch dispatch scale",
    "tie_word_embeddings": "tied",
}
BIASED = {**LLAMA_LIKE, "attention_bias": "flag"}
WINDOWED = {"layer_types": "branch dispatch", "sliding_window": "option"}
EXPERTS = {"num_experts_per_tok": "option shape"}
SPARSE = {
    "decoder_sparse_step": "branch",
    "mlp_only_layers": "branch",
    "norm_topk_prob": "branch",
    "num_experts": "branch",
}
GROUPED = {
    "first_k_dense_replace": "branch",
    "n_group": "shape",
    "norm_topk_prob": "branch",
    "num_experts_per_tok": "option",
    "num_local_experts": "branch",
    "routed_scaling_factor": "scale",
    "topk_group": "option",
}
GRANITE = {
    **BIASED,
    "attention_multiplier": "scale",
    "embedding_multiplier": "scale",
    "logits_scaling": "scale",
    "residual_multiplier": "scale",
}
PARTIAL = {"rope_parameters": "branch dispatch scale shape"}
GEMMA = {
    **{field: kinds for field, kinds in BIASED.items() if field != "hidden_act"},
    "final_logit_softcapping": "branch scale",
    "hidden_activation": "dispatch",
    "query_pre_attn_scalar": "scale",
    "use_bidirectional_attention": "branch",
}

# Judged by reading the source of 5.5.4: everything that steers inference, nothing else.
STEERING: dict[tuple[str, str], dict[str, str]] = {
    ("llama", "LlamaForCausalLM"): {**BIASED, "mlp_bias": "flag"},
    ("olmo2", "Olmo2ForCausalLM"): BIASED,
    ("qwen2", "Qwen2ForCausalLM"): {**LLAMA_LIKE, **WINDOWED},
    ("qwen3_moe", "Qwen3MoeForCausalLM"): {**BIASED, **EXPERTS, **SPARSE, "sliding_window": "branch option"},
    ("gemma2", "Gemma2ForCausalLM"): {**GEMMA, **WINDOWED, "attn_logit_softcapping": "branch scale"},
    ("gemma3", "Gemma3ForCausalLM"): {
        **GEMMA,
        "layer_types": "branch dispatch option",
        "rope_parameters": "branch dispatch option scale",
        "sliding_window": "branch option",
    },
    ("phi3", "Phi3ForCausalLM"): {**LLAMA_LIKE, **PARTIAL, "sliding_window": "branch option"},
    ("phimoe", "PhimoeForCausalLM"): {
        **BIASED,
        **EXPERTS,
        "lm_head_bias": "flag",
        "num_local_experts": "branch",
        "router_jitter_noise": "branch",  # the sparse mixer's threshold, at inference too
        "sliding_window": "branch",
    },
    ("granite", "GraniteForCausalLM"): {**GRANITE, "mlp_bias": "flag"},
    ("granitemoe", "GraniteMoeForCausalLM"): {**GRANITE, **EXPERTS},
    ("glm4_moe", "Glm4MoeForCausalLM"): {**BIASED, **PARTIAL, **GROUPED, "use_qk_norm": "branch"},
    ("deepseek_v3", "DeepseekV3ForCausalLM"): {
        **BIASED,
        **GROUPED,
        "head_dim": "scale shape",  # of the rotary part alone: no weight has it
        "num_key_value_heads": "branch shape",
        "q_lora_rank": "branch",
        "qk_head_dim": "branch",  # padding for flash attention
        "rope_interleave": "branch",
        "v_head_dim": "branch",
    },
    ("gpt_oss", "GptOssForCausalLM"): {
        **{field: kinds for field, kinds in BIASED.items() if field != "hidden_act"},
        **WINDOWED,
        **EXPERTS,
        "num_local_experts": "branch",
    },
    ("stablelm", "StableLmForCausalLM"): {
        **{field: kinds for field, kinds in LLAMA_LIKE.items() if field != "rms_norm_eps"},
        **PARTIAL,
        "head_dim": "scale shape",
        "layer_norm_eps": "scale",
        "qk_layernorm": "branch",
        "use_parallel_residual": "branch",
        "use_qkv_bias": "flag",
    },
    ("gpt_neox", "GPTNeoXForCausalLM"): {
        **PARTIAL,
        "attention_bias": "flag",
        "head_dim": "scale shape",
        "hidden_act": "dispatch",
        "layer_norm_eps": "scale",
        "num_attention_heads": "scale shape",
        "tie_word_embeddings": "tied",
        "use_parallel_residual": "branch",
    },
    ("falcon", "FalconForCausalLM"): {
        "activation": "option",
        "alibi": "branch",
        "bias": "flag",
        "dtype": "option",  # in the flash attention class of the table
        "head_dim": "scale shape",
        "layer_norm_epsilon": "option",
        "multi_query": "branch",
        "new_decoder_architecture": "branch",
        "num_attention_heads": "branch",
        "num_ln_in_parallel_attn": "branch",
        "parallel_attn": "branch",
        "rope_parameters": "branch dispatch scale",
        "tie_word_embeddings": "tied",
    },
    ("cohere", "CohereForCausalLM"): {
        **{field: kinds for field, kinds in BIASED.items() if field != "rms_norm_eps"},
        "layer_norm_eps": "scale",
        "logit_scale": "scale",
        "use_qk_norm": "branch",
    },
    ("cohere2", "Cohere2ForCausalLM"): {
        **{field: kinds for field, kinds in BIASED.items() if field != "rms_norm_eps"},
        **WINDOWED,
        "layer_norm_eps": "scale",
        "logit_scale": "scale",
        "sliding_window": "branch option",
    },
    ("smollm3", "SmolLM3ForCausalLM"): {
        **BIASED,
        **WINDOWED,
        "mlp_bias": "flag",
        "no_rope_layers": "branch",
        "use_sliding_window": "branch",
    },
}


@pytest.mark.parametrize(("family", "head"), STEERING)
def test_what_steers_upstream_s_families(family: str, head: str) -> None:
    tree = _tree(family)
    steering: dict[str, list[str]] = {}
    for switch in config_switches(tree, _below(tree, head)):
        if switch.kind.steers:
            steering.setdefault(switch.field, []).append(switch.kind.value)
    assert {field: " ".join(kinds) for field, kinds in steering.items()} == STEERING[family, head]


def test_windows_that_only_the_mask_builders_read() -> None:
    helpers = config_reads(ast.parse((_models().parent / "masking_utils.py").read_text(encoding="utf-8")))
    assert "sliding_window" in helpers["create_sliding_window_causal_mask"]
    assert "attention_chunk_size" in helpers["create_chunked_causal_mask"]
    for family, head, field in (
        ("qwen2_moe", "Qwen2MoeForCausalLM", "sliding_window"),
        ("llama4", "Llama4ForCausalLM", "attention_chunk_size"),
    ):
        tree = _tree(family)
        classes = _below(tree, head)
        assert not any(s.field == field and s.kind.steers for s in config_switches(tree, classes))
        assert any(
            s.field == field and s.kind is SwitchKind.OPTION for s in config_switches(tree, classes, (), helpers)
        )


def _only_messages(node: ast.AST) -> bool:
    """An `if` under which there is nothing but errors and log messages."""
    return isinstance(node, ast.If) and all(
        isinstance(statement, ast.Raise) or "logger." in ast.unparse(statement) for statement in node.body
    )


def test_no_read_of_the_config_is_lost() -> None:
    """Compares with a plain search: every field that a constructor or forward reads has a kind."""
    files = lost = reads = 0
    for path in sorted(_models().glob("*/modeling_*.py")):
        text = path.read_text(encoding="utf-8")
        if "ForCausalLM(" not in text:
            continue
        files += 1
        if files % 5:
            continue
        tree = ast.parse(text)
        heads = [n.name for n in tree.body if isinstance(n, ast.ClassDef) and n.name.endswith("ForCausalLM")]
        classes = sorted({name for head in heads for name in _below(tree, head)})
        fields = {part for switch in config_switches(tree, classes) for part in switch.field.split(".")}
        for node in tree.body:
            if not (isinstance(node, ast.ClassDef) and node.name in classes):
                continue
            for method in node.body:
                if not (isinstance(method, ast.FunctionDef) and method.name in ("__init__", "forward")):
                    continue
                checked = {id(part) for check in ast.walk(method) if _only_messages(check) for part in ast.walk(check)}
                for part in ast.walk(method):
                    if isinstance(part, ast.Attribute) and ast.unparse(part.value) in ("config", "self.config"):
                        reads += 1
                        plain = isinstance(part.ctx, ast.Load) and not part.attr.startswith(("_", "get_", "to_"))
                        if plain and not part.attr.endswith("_config") and id(part) not in checked:
                            lost += part.attr not in fields
                            assert part.attr in fields, f"{path.name}:{part.lineno} {part.attr}"
    assert files > 100 and reads > 1000 and lost == 0
