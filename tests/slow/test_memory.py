"""Converting needs little more memory than the weights: streamed, or beyond torch's own copy."""

import shutil
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.slow

LIMIT = 1.3
BILLION_LIMIT = 1.2

PREPARE = """
import sys, torch, transformers
config = transformers.LlamaConfig(
    vocab_size=8000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=10,
    num_attention_heads=16, num_key_value_heads=4, max_position_embeddings=256)
"""

MEASURE = """
def resident():
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines["VmRSS"].split()[0]) * 1024, int(lines["VmHWM"].split()[0]) * 1024

def tiny():
    small = transformers.LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=64,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    module = transformers.LlamaForCausalLM(small).eval()
    return ji.from_torch(module, (), {"input_ids": torch.ones(2, 4, dtype=torch.long),
                                      "use_cache": False})
import jaxinfer as ji
tiny()  # imports, and what the libraries allocate once
"""


def run(code, *args):
    text = PREPARE + MEASURE + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", text, *map(str, args)],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return float(done.stdout.strip().splitlines()[-1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_streaming_a_checkpoint_and_saving(tmp_path):
    run(
        """
        module = transformers.LlamaForCausalLM(config)
        module.save_pretrained(sys.argv[1])
        print(0)
        """,
        tmp_path / "llama",
    )
    ratio = run(
        """
        from jaxinfer.core.frontend import Options, open_source
        before, _ = resident()
        model = open_source(sys.argv[1], Options()).convert(None)
        model.save(sys.argv[2])
        _, peak = resident()
        weights = sum(leaf.nbytes for leaf in model.params.values())
        assert weights > 400e6, weights
        print((peak - before) / weights)
        """,
        tmp_path / "llama",
        tmp_path / "out",
    )
    print(f"checkpoint: peak {ratio:.2f}x the weights")
    assert ratio <= LIMIT  # torch holds no copy at all here


@pytest.fixture(scope="module")
def billion(tmp_path_factory):
    """A random Llama of 1.34 billion parameters in bfloat16: 2.7 GB."""
    path = tmp_path_factory.mktemp("llama")
    run(
        """
        config = transformers.LlamaConfig(
            vocab_size=32000, hidden_size=2048, intermediate_size=5504, num_hidden_layers=24,
            num_attention_heads=16, num_key_value_heads=16, max_position_embeddings=2048)
        torch.set_default_dtype(torch.bfloat16)
        transformers.LlamaForCausalLM(config).save_pretrained(sys.argv[1])
        print(0)
        """,
        path / "billion",
    )
    yield path / "billion"
    shutil.rmtree(path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize("scan_layers", [False, True])
def test_streaming_a_billion_parameters(billion, scan_layers):
    ratio = run(
        """
        from jaxinfer.core.frontend import Options, open_source
        before, _ = resident()
        options = Options(scan_layers=sys.argv[2] == "True")
        model = open_source(sys.argv[1], options).convert(None)
        _, peak = resident()
        weights = sum(leaf.nbytes for leaf in model.params.values())
        assert sum(leaf.size for leaf in model.params.values()) > 1.3e9
        assert ("model.layers.*.mlp.up_proj.weight" in model.params) == options.scan_layers
        print((peak - before) / weights)
        """,
        billion,
        scan_layers,
    )
    print(f"checkpoint, scan_layers={scan_layers}: peak {ratio:.3f}x the weights")
    assert ratio <= BILLION_LIMIT


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_converting_a_module():
    ratio = run(
        """
        module = transformers.LlamaForCausalLM(config).eval()
        before, _ = resident()
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # forget the peak so far
        model = ji.from_torch(module, (), {"input_ids": torch.ones(2, 4, dtype=torch.long),
                                           "use_cache": False})
        _, peak = resident()
        weights = sum(leaf.nbytes for leaf in model.params.values())
        print((peak - before) / weights)
        """
    )
    print(f"module: peak {ratio:.2f}x the weights beyond torch's")
    assert ratio <= LIMIT
