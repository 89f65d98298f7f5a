"""What ``import runtime.qeff`` adds to importing AutoModelForCausalLM, and what one family's variants load.

python benchmarks/import_time.py [--json]
"""

import json
import statistics
import subprocess
import sys

RUNS = 5
TIMED = "import time; s = time.process_time(); {}; print(time.process_time() - s)"
BASE = "from transformers import AutoModelForCausalLM"
FAMILY = """
import sys
from transformers import LlamaConfig, LlamaForCausalLM
from runtime.qeff import KVCacheTransform
sizes = dict(hidden_size=8, intermediate_size=8, num_attention_heads=1, num_hidden_layers=1, vocab_size=8)
KVCacheTransform.apply(LlamaForCausalLM(LlamaConfig(**sizes)))
print(",".join(sorted(m for m in sys.modules if m.startswith("generated.qeff."))))
"""


def output(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    base, both = [], []
    for _ in range(RUNS):  # side by side: the machine's load changes
        base.append(float(output(TIMED.format(BASE))))
        both.append(float(output(TIMED.format(f"{BASE}; import runtime.qeff"))))
    result = {
        "AutoModelForCausalLM": {"cpu_seconds": round(statistics.median(base), 2)},
        "and runtime.qeff": {"ratio": round(statistics.median(b / a for a, b in zip(base, both, strict=True)), 3)},
        "variants loaded for llama": output(FAMILY).splitlines()[-1],
    }
    print(json.dumps(result, indent=2) if "--json" in sys.argv else "\n".join(f"{k}: {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
